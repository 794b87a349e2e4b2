"""The series that are drawn, and what metrics say of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval.analyses.common import Judge
from eval.analyses.truth import Parameters as TruthParams
from eval.analyses.truth.stage import (
    ALL,
    FACTS,
    IDENTITY,
    _rng,
    analyse_truth,
    between,
    class_set,
    identity_series,
    measured,
    pair_series,
    prompt_series,
    ranks,
)
from pipeline.common.errors import BenchError
from pipeline.settings.profile import load_params
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import BACKGROUNDS, Scene, full_caption, random_thing
from tests.eval.analyses.conftest import Configure
from tests.eval.conftest import Score

PROJECT = Path(__file__).parents[3]
CAT = PERSONAL["cat"]
SMALL = {"scenes": 3, "grades": 3, "sets": 3, "set_images": 4}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_things_change_steadily_into_each_other() -> None:
    other = random_thing(rng(), "cat")
    assert between(CAT, other, 0) == CAT
    assert replace(between(CAT, other, 1), colour=other.colour) == other
    half = between(CAT, other, 0.5)
    assert half.shape == pytest.approx(np.mean([CAT.shape, other.shape], 0))
    assert half.rgb == pytest.approx(np.mean([CAT.rgb, other.rgb], 0), abs=0.5)
    pixels = [draw(scene).astype(float) for scene in identity_series(rng(1), CAT, 5)]
    away = [np.abs(picture - pixels[0]).mean() for picture in pixels]
    assert away == sorted(away)
    assert away[1] > 0


def test_identity_series_show_the_concept_first_and_always_the_same_scene() -> None:
    series = identity_series(rng(), CAT, 4)
    assert series[0].things == (CAT,)
    assert {replace(scene, things=()) for scene in series} == {replace(series[0], things=())}
    assert {scene.things[0].category for scene in series} == {"cat"}


def test_pairs_keep_what_stands_beside_the_concept() -> None:
    series = pair_series(rng(), CAT, 4)
    assert series[0].things[0] == CAT
    (beside,) = {scene.things[1] for scene in series}
    assert beside.category != "cat"
    assert {replace(scene, things=()) for scene in series} == {replace(series[0], things=())}
    assert len({scene.things[0] for scene in series}) == 4


def facts(scene: Scene) -> dict[str, str]:
    (thing,) = scene.things
    return {
        "category": thing.category,
        "colour": thing.colour,
        "background": scene.background,
        "size": scene.size,
        "style": scene.style,
    }


@pytest.mark.parametrize("seed", range(6))
def test_prompt_series_lose_one_fact_after_the_other(seed: int) -> None:
    series = [facts(scene) for scene in prompt_series(rng(seed), CAT)]
    lost = [{fact for fact in FACTS if one[fact] != series[0][fact]} for one in series]
    assert [len(some) for some in lost] == list(range(len(FACTS) + 1))
    assert all(before < after for before, after in zip(lost, lost[1:]))
    said = full_caption(prompt_series(rng(seed), CAT)[0])
    for words in ("orange", "cat", BACKGROUNDS[series[0]["background"]][0]):
        assert words in said


def test_sets_differ_in_the_share_that_is_of_another_class() -> None:
    sets = [class_set(rng(), "cat", "dog", 8, share) for share in (0, 0.5, 1)]
    counts = [sum(scene.things[0].category == "dog" for scene in one) for one in sets]
    assert counts == [0, 4, 8]
    assert sets[0][4:] == sets[1][4:]
    assert sets[1][:4] == sets[2][:4]


def test_ranks_are_high_where_metrics_do_what_they_should() -> None:
    rows = [
        ("s", truth, scene, d, metric, sign * d + 0.01 * scene)
        for truth, metric, sign in (("identity", "image_alignment", -1), ("class", "kid", 1),
                                    ("prompt", "text_alignment", 1))
        for scene in range(4)
        for d in (0, 0.5, 1)
    ]  # fmt: skip
    columns = ["subject", "truth", "scene", "distance", "metric", "value"]
    frame = pd.DataFrame(rows, columns=columns)
    table = ranks(pd.concat([frame, frame.assign(subject="t")]))
    means = table[table["subject"] == ALL].set_index("truth")["rho"]
    assert means["identity"] == means["class"] == -means["prompt"]
    assert 0.9 < means["class"] <= 1
    assert (table["n"] == [12, 12, 24] * 3).all()
    assert (table["clusters"] == [4, 4, 2] * 3).all()


def test_stage(configure: Configure) -> None:
    configure(truth={"concepts": ["cat", "chair"], **SMALL})
    folder = analyse_truth()
    names = {"values.csv", "ranks.csv", "truth.png", "series.png"}
    assert {path.name for path in folder.iterdir()} == names
    values, table = pd.read_csv(folder / "values.csv"), pd.read_csv(folder / "ranks.csv")
    counts = values.groupby(["truth", "metric"], sort=False).size().to_dict()
    assert counts == {
        ("identity", "text_alignment"): 18,
        ("identity", "image_alignment"): 18,
        ("pair", "text_alignment"): 18,
        ("pair", "image_alignment"): 18,
        ("prompt", "text_alignment"): 36,
        ("prompt", "image_alignment"): 36,
        ("class", "kid"): 18,
    }
    assert set(table["subject"]) == {"cat", "chair", ALL}
    before = (folder / "values.csv").read_bytes()
    analyse_truth()
    assert (folder / "values.csv").read_bytes() == before


def test_values_are_those_of_the_metrics(configure: Configure) -> None:
    configure(truth={"concepts": ["cat"], **SMALL})
    judge = Judge(load_params())
    found = measured(judge, {"image_alignment": judge.extract}, "cat", TruthParams(**SMALL))
    scenes = identity_series(_rng("cat", IDENTITY, 2), CAT, 3)
    images = [Image.fromarray(draw(scene)) for scene in scenes]
    rows = found[(found["truth"] == "identity") & (found["scene"] == 2)]
    for metric, expected in (
        ("image_alignment", judge.image_alignment(images, "cat")),
        ("text_alignment", judge.text_alignment(images, [full_caption(scenes[0])] * 3)),
    ):
        part = rows[rows["metric"] == metric]
        assert part["value"].to_numpy() == pytest.approx(expected, abs=1e-5)
        assert list(part["distance"]) == [0, 0.5, 1]


def test_toylands_scorer_follows_the_truth(configure: Configure, profile: Path) -> None:
    configure(truth={"concepts": ["cat"]})
    shutil.rmtree(profile / "models" / "scorer")
    shutil.copytree(PROJECT / "models" / "toyland" / "scorer", profile / "models" / "scorer")
    judge = Judge(load_params())
    about = TruthParams(scenes=6, grades=4, sets=3, set_images=12)
    values = measured(judge, {"image_alignment": judge.extract}, "cat", about)
    found = ranks(values).set_index(["truth", "metric", "subject"])["rho"]
    assert found["identity", "image_alignment", "cat"] > 0.7
    assert found["prompt", "text_alignment", "cat"] > 0.8
    assert found["class", "kid", "cat"] > 0.85


def test_identity_of_toylands_scorer_follows_the_truth(
    configure: Configure, profile: Path, score: Score
) -> None:
    """Alone and beside another thing: high for the concept, low for another individual."""
    score("custom_diffusion", "cat", cat=8, chair=8)
    configure(truth={"concepts": ["cat"]})
    shutil.rmtree(profile / "models" / "scorer")
    shutil.copytree(PROJECT / "models" / "toyland" / "scorer", profile / "models" / "scorer")
    judge = Judge(load_params())
    about = TruthParams(scenes=12, grades=5, sets=3, set_images=2)
    values = measured(judge, {"image_alignment": judge.extract}, "cat", about)
    found = ranks(values).set_index(["truth", "metric", "subject"])["rho"]
    assert found["identity", "identity_map", "cat"] > 0.6
    means = values.groupby(["truth", "metric", "distance"])["value"].mean()
    for truth in ("identity", "pair"):
        for metric in ("identity_map", "identity_top1"):
            assert found[truth, metric, "cat"] > 0, (truth, metric)
            assert means[truth, metric, 0.0] > means[truth, metric, 1.0] + 0.2, (truth, metric)


def test_only_drawn_things_have_a_truth(configure: Configure) -> None:
    configure(truth={"concepts": ["neon"]})
    with pytest.raises(BenchError, match=r"analyses\.truth\.concepts: 'neon' is not a drawn thing"):
        analyse_truth()
    configure()
    with pytest.raises(BenchError, match=r"analyses\.truth: missing"):
        analyse_truth()
