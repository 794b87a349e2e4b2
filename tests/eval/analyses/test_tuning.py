from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval.analyses.common import folder_of
from eval.analyses.tuning import Parameters as TuningParams
from eval.analyses.tuning.stage import SETTING, analyse_tuning, choose, marked, products
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, write_tar
from pipeline.models.base import Base
from pipeline.settings.profile import load_params
from tests.eval.analyses.conftest import Configure
from tests.pipeline.tiny import training_set

ROOT = Path(__file__).parents[3]
NAN = float("nan")


def trials(*rows: tuple[float, float, float, float], words: Sequence[Any] = ()) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["product", "steps", "learning_rate", "ridge"])
    return table.assign(template_words=words or NAN)


def test_rule_takes_the_cheapest_of_the_nearly_best() -> None:
    table = trials((0.50, 500, 1e-3, NAN), (0.49, 250, 2e-3, NAN), (0.49, 250, 1e-3, NAN),
                   (0.40, 125, 1e-3, NAN))  # fmt: skip
    assert choose(table, 0.03) == 2
    assert choose(table, 0.0) == 0
    assert choose(table, 0.5) == 3


def test_rule_takes_the_largest_ridge_and_bears_negative_products() -> None:
    assert choose(trials((0.3, NAN, NAN, 1e-3), (0.299, NAN, NAN, 0.1)), 0.03) == 1
    both = trials((0.3, NAN, NAN, 0.1), (0.299, NAN, NAN, 1e-2), words=[True, False])
    assert (choose(both, 0.03), choose(both, 0.0)) == (1, 0)
    assert choose(trials((-0.2, 500, 1e-3, NAN), (-0.1, 500, 2e-3, NAN)), 0.03) == 1


def prompts() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    settings = [("pretrained", NAN, NAN), ("a", 1e-3, 10.0), ("a", 1e-3, 20.0), ("a", 2e-3, 10.0)]
    rows = [
        (subject, i, metric, rng.normal(), method, kind, rate, steps, NAN, NAN)
        for (method, rate, steps), (subject, kind) in itertools.product(
            settings, (("x", "single"), ("y", "single"), ("x+y", "compositions"))
        )
        # Unequal numbers of prompts: each subject counts once all the same.
        for i in range(2 + len(subject) + (subject == "y"))
        for metric in ("text_alignment", "image_alignment")
    ]
    names = ["subject", "prompt_index", "metric", "value", "method", "kind"]
    return pd.DataFrame(rows, columns=[*names, *SETTING])


def test_products_are_of_means_over_subjects() -> None:
    found = prompts()
    table = products(found)
    assert len(table) == 8

    def mean(method: str, metric: str, rate: float = NAN, steps: float = NAN) -> float:
        values = []
        for subject in ("x", "y"):
            rows = found[(found["method"] == method) & (found["subject"] == subject)]
            rows = rows[rows["metric"] == metric]
            if method != "pretrained":
                rows = rows[(rows["learning_rate"] == rate) & (rows["steps"] == steps)]
            values.append(rows["value"].mean())
        return float(np.mean(values))

    row = table[(table["kind"] == "single") & (table["learning_rate"] == 1e-3)].iloc[1]
    gain = mean("a", "image_alignment", 1e-3, 20) - mean("pretrained", "image_alignment")
    assert row["gain"] == pytest.approx(gain)
    assert row["product"] == pytest.approx(gain * mean("a", "text_alignment", 1e-3, 20))


def test_compositions_are_chosen_at_the_rate_of_single_concepts() -> None:
    table = products(prompts())
    table.loc[table["learning_rate"] == 2e-3, "product"] = [0.1, 99.0]  # single, compositions
    table.loc[table["learning_rate"] == 1e-3, "product"] = [0.5, 1.0, 0.5, 0.2]
    single = (table["kind"] == "single") & (table["learning_rate"] == 1e-3)
    table.loc[single, "product"] = [0.4, 0.5]  # after 10 and 20 steps
    found = marked(table, TuningParams(**SECTION))
    taken = found[found["chosen"]]
    assert list(taken["kind"]) == ["single", "compositions"]
    assert set(taken["learning_rate"]) == {1e-3}
    assert taken["steps"].iloc[0] == 20


def write_shard(concept: str) -> None:
    drawn = training_set(concept, concept)
    samples = [("target", image, "") for image in drawn.targets]
    samples += list(zip(["regularization"] * 5, drawn.regularization, drawn.captions))
    write_tar(
        Path(f"runs/toyland/shards/{concept}.tar"),
        [
            {"__key__": f"{kind}-{i:04d}", "png": png_bytes(image), "txt": text, "json": {}}
            for i, (kind, image, text) in enumerate(samples)
        ],
    )


SECTION = {
    "rates": {"textual_inversion": [1e-2], "custom_diffusion": [1e-3, 2e-3]},
    "steps": [1, 2],
    "composition_steps": [1],
}


def test_stage(configure: Configure, base: Base) -> None:
    configure(tuning=SECTION)
    for concept in ("cat", "chair"):
        write_shard(concept)
    folder = analyse_tuning()
    table = pd.read_csv(folder / "trials.csv")
    # Textual Inversion trains no compositions; the pretrained model stands there once a kind.
    counts = table.groupby(["method", "kind"]).size().to_dict()
    assert counts == {
        ("custom_diffusion", "compositions"): 2, ("custom_diffusion", "single"): 4,
        ("pretrained", "compositions"): 1, ("pretrained", "single"): 1,
        ("textual_inversion", "single"): 2,
    }  # fmt: skip
    assert table.groupby(["method", "kind"])["chosen"].sum().to_dict() == {
        key: int(key[0] != "pretrained") for key in counts
    }
    assert (folder / "tuning.png").is_file()


def test_a_merge_needs_adapters_that_are_tried(configure: Configure, base: Base) -> None:
    configure(tuning=SECTION | {"ridges": {"custom_diffusion": [0.1]}})
    with pytest.raises(BenchError, match="custom_diffusion merges no adapters of"):
        analyse_tuning()
    configure(tuning=SECTION | {"rates": {"nobody": [0.1]}})
    with pytest.raises(BenchError, match=r"methods\.nobody: missing"):
        analyse_tuning()


@pytest.mark.parametrize("profile", ["toyland", "toyland-full"])
def test_profiles_train_as_the_committed_trials_say(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    table = pd.read_csv(folder_of(load_params("toyland-tuning"), "tuning") / "trials.csv")
    methods = load_params(profile).methods
    for row in table[table["chosen"]].to_dict("records"):
        has = methods.get(row["method"])
        if has is None:
            continue
        if pd.notna(row["ridge"]):
            assert (has.ridge, has.template_words) == (row["ridge"], bool(row["template_words"]))
        else:
            steps = has.steps if row["kind"] == "single" else has.composition_steps
            assert (has.learning_rate, steps) == (row["learning_rate"], row["steps"]), row
