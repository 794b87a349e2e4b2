"""What DVC is told of an analysis, against the files that it opens."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from eval.analyses.stages import STAGES, chosen, datasets, deps, inputs, run, settings, sources
from pipeline.common.errors import BenchError
from pipeline.settings.analyses import AnalysesParams
from pipeline.settings.profile import load_grid, load_params
from tests.eval.analyses.conftest import Adapt, Configure

ROOT = Path(__file__).parents[3]
SECTIONS: dict[str, dict[str, Any]] = {
    "weights": {"methods": ["custom_diffusion"]},
    "spectra": {"concepts": ["cat"]},
    "compression": {"concepts": ["cat"], "shares": [1]},
    "drift": {"concepts": ["cat"], "images": 2},
    "attention": {"images": 1},
    "editing": {"concept": "cat", "edits": [{"source": "a {}", "target": "a red {}"}]},
    "truth": {"concepts": ["cat"], "scenes": 3, "grades": 2, "sets": 3, "set_images": 4},
    "cost": {},
}


def test_every_analysis_has_a_stage() -> None:
    assert set(STAGES) == set(AnalysesParams.model_fields)
    for name in STAGES:
        for path in sources(name):
            assert (ROOT / path).exists()


@pytest.mark.parametrize("name", SECTIONS)
def test_inputs_are_the_files_that_are_opened(
    name: str, configure: Configure, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("pretrained", "custom_diffusion"):
        for subject in ("cat", "chair", "cat+chair"):
            adapt(method, subject, size=float(method != "pretrained"))
    configure(**{name: SECTIONS[name]})
    known = inputs(name, load_params(), load_grid())
    assert chosen(load_params()) == [name]
    assert all(Path(path).exists() or name == "cost" for path in known)
    assert all(Path(path).is_file() for path in datasets(name, load_params(), load_grid()))
    for path in Path("runs/toyland").rglob("*.*"):
        if path.is_file() and not any(path.is_relative_to(one) for one in known):
            path.unlink()
    run(name)
    assert Path("reports/analyses", name).is_dir()


def test_imports_are_sources() -> None:
    """Modules of the project that the models, the images or the numbers come from."""
    plain = {
        "pipeline.common.errors",
        "pipeline.common.failures",
        "pipeline.common.files",
        "pipeline.settings.profile",
    }
    plain |= {
        "pipeline.concepts.concept",
        "pipeline.common.seeds",
        "pipeline.methods",
        "pipeline.settings.analyses",
        "eval.analyses.common",
    }
    for name in STAGES:
        tree = ast.parse((ROOT / "eval" / "analyses" / name / "stage.py").read_text())
        used = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        own = {m for m in used if m.startswith("pipeline.") or m.startswith("eval.analyses.")}
        for module in own - plain:
            path = Path(f"{module.replace('.', '/')}.py")
            assert any(path.is_relative_to(source) for source in sources(name)), (name, module)


def test_what_dvc_watches(configure: Configure) -> None:
    configure(steps={"method": "dreambooth", "concepts": ["cat"], "steps": [1]})
    params, grid = load_params(), load_grid()
    assert settings("steps", params)[0] == "analyses.steps"
    assert settings("steps", params)[-1] == "methods.dreambooth"
    found = deps("steps", params, grid)
    assert len(set(found)) == len(found)
    made = {"runs/toyland/shards/cat.tar", "runs/toyland/generated/cat.tar"}
    assert made | {"models/base", "models/scorer", "pipeline/train/loop.py"} <= set(found)


def test_unknown_names_are_told(configure: Configure) -> None:
    configure()
    assert chosen(load_params()) == []
    with pytest.raises(BenchError, match="analysis 'colour' is unknown: choose one of weights"):
        run("colour")
    with pytest.raises(BenchError, match=r"analyses\.cost: missing"):
        run("cost")
