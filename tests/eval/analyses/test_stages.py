"""What DVC is told of an analysis, against the files that it opens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.analyses.stages import NAMES, analyses_of, kind_of, run
from pipeline.common.errors import BenchError
from pipeline.settings.profile import TRAIN_KEYS, load_grid, load_params
from tests.eval.analyses.conftest import Adapt, Configure
from tests.eval.synthetic import write_cost

ROOT = Path(__file__).parents[3]
SECTIONS: dict[str, dict[str, Any]] = {
    "weights": {"methods": ["custom_diffusion"]},
    "spectra": {"concepts": ["cat"]},
    "compression": {"concepts": ["cat"], "shares": [1]},
    "scales": {"methods": ["custom_diffusion"], "subjects": ["cat", "cat+chair"], "scales": [1]},
    "drift": {"concepts": ["cat"], "images": 2},
    "attention": {"images": 1},
    "editing": {"concept": "cat", "edits": [{"source": "a {}", "target": "a red {}"}]},
    "regions": {"subjects": ["cat+chair"], "methods": ["custom_diffusion"], "images": 1},
    "truth": {"concepts": ["cat"], "scenes": 3, "grades": 2, "sets": 3, "set_images": 4},
    "agreement": {"portraits": 8, "checks": 8, "drawn": 1},
    "cost": {},
}


def test_every_folder_is_an_analysis_and_has_a_stage() -> None:
    folders = {path.parent.name for path in (ROOT / "eval" / "analyses").glob("*/stage.py")}
    assert folders == set(NAMES)
    for name in NAMES:
        assert kind_of(name).name() == name
        assert f"def analyse_{name}(profile" in (
            ROOT / "eval" / "analyses" / name / "stage.py"
        ).read_text(encoding="utf-8")


def test_parameters_are_checked_without_what_analyses_import(project: Path) -> None:
    """In a process of its own: others may have imported these."""
    code = (
        "import sys\n"
        "from eval.analyses.stages import NAMES, kind_of\n"
        "kinds = [kind_of(name) for name in NAMES]\n"
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("analyses", "said"),
    [
        ({"colour": {}}, r"params\.yaml: analyses\.colour: unknown: choose from weights, "),
        ({"cost": {"method": "lora"}}, r"analyses\.cost\.method: extra inputs"),
        ({"weights": {}}, r"analyses\.weights\.methods: field required"),
        ({"truth": {"grades": 1}}, r"analyses\.truth\.grades: .* greater than or equal to 2"),
        ({"editing": {"concept": "cat", "edits": [{"source": "a", "target": "{}"}]}},
         r"analyses\.editing\.edits\.0\.source: "),
        ({"spectra": ["cat"]}, r"analyses\.spectra: .* dictionary"),
    ],
)  # fmt: skip
def test_a_typing_error_is_told_before_any_work(
    configure: Configure, analyses: dict[str, Any], said: str
) -> None:
    configure(**analyses)
    with pytest.raises(BenchError, match=said):
        analyses_of(load_params())


@pytest.mark.parametrize("name", SECTIONS)
def test_inputs_are_the_files_that_are_opened(
    name: str, configure: Configure, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("pretrained", "custom_diffusion"):
        for subject in ("cat", "chair", "cat+chair"):
            adapt(method, subject, size=float(method != "pretrained"))
            write_cost(Path("reports/cells", method, subject, "cost.json"), 1)
    configure(**{name: SECTIONS[name]})
    ((found, analysis),) = analyses_of(load_params()).items()
    assert found == name
    known = analysis.deps(load_params(), load_grid())
    assert all(Path(path).exists() or name == "cost" for path in known)
    for path in Path("runs/toyland").rglob("*.*"):
        if path.is_file() and not any(path.is_relative_to(one) for one in known):
            path.unlink()
    run(name)
    assert Path("reports/analyses", name).is_dir()


def test_what_dvc_watches(configure: Configure) -> None:
    configure(steps={"method": "dreambooth", "concepts": ["cat"], "steps": [1]})
    analysis = analyses_of(load_params())["steps"]
    assert analysis.keys() == [
        "analyses.steps", "base", "protocol", *TRAIN_KEYS, "train.seeds.0", "methods.dreambooth",
    ]  # fmt: skip
    found = analysis.deps(load_params(), load_grid())
    assert len(set(found)) == len(found)
    assert set(found) == {
        "models/base",
        "models/scorer",
        "datasets/concepts/cat/concept.yaml",
        "datasets/prompts/cat.txt",
        "runs/toyland/shards/cat.tar",
        "runs/toyland/generated/cat.tar",
    }


def test_datasets_are_those_of_what_is_sampled(configure: Configure) -> None:
    configure(attention={"images": 1}, tuning={"rates": {"lora": [1e-4]}, "steps": [1],
                                               "composition_steps": [1]})  # fmt: skip
    concepts = {f"datasets/concepts/{name}/concept.yaml" for name in ("cat", "chair")}
    singles = {f"datasets/prompts/{name}.txt" for name in ("cat", "chair")}
    pair = {"datasets/prompts/cat+chair.txt"}
    for name, wanted in (("attention", concepts | pair), ("tuning", concepts | singles | pair)):
        found = analyses_of(load_params())[name].deps(load_params(), load_grid())
        assert {path for path in found if path.startswith("datasets/")} == wanted


def test_unknown_names_are_told(configure: Configure) -> None:
    configure()
    assert analyses_of(load_params()) == {}
    with pytest.raises(BenchError, match="analysis 'colour' is unknown: choose one of weights"):
        run("colour")
    with pytest.raises(BenchError, match=r"analyses\.cost: missing"):
        run("cost")
