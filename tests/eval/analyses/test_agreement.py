"""What prompts ask for, who is recognised, and whether metrics agree with it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from eval.analyses.agreement import DRAWN, OTHERS, recognition
from eval.analyses.agreement.asked import Asked, Named, asked, scene_of, shown
from eval.analyses.agreement.recognition import (
    auc,
    features,
    learned,
    lessons,
    pixels,
    reliability,
)
from eval.analyses.agreement.stage import (
    alike,
    analyse_agreement,
    looked,
    of_images,
    of_methods,
    paid,
    shares_of,
)
from pipeline.common.errors import BenchError
from pipeline.toyland.pretrain.judge import CHOICES, Judge, load_judge
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import full_caption, random_scene
from tests.eval.analyses.conftest import JUDGE, Configure

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(JUDGE)


# ------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("photo of a cat in the snow", Asked((Named("cat"),), None, "snow", None, "photo")),
        ("a wooden pot on a city street", Asked((Named("wooden pot"),), None, "city", None, None)),
        ("far away photo of a tortoise plushy", 
         Asked((Named("tortoise plushy"),), None, None, "small", "photo")),
        ("a pencil sketch of a moongate next to a red ball",
         Asked((Named("moongate"), Named("ball", "red")), "beside", None, None, "pencil sketch")),
        ("a cat and a white dog in a living room",
         Asked((Named("cat"), Named("dog", "white")), "beside", "living room", None, None)),
        ("a flower in a white vase in the living room",
         Asked((Named("flower"), Named("vase", "white")), "in", "living room", None, None)),
        ("a teddybear on a chair", 
         Asked((Named("teddybear"), Named("chair")), "on", None, None, None)),
        ("photo of a dog wearing sunglasses at night",
         Asked((Named("dog", None, "sunglasses"),), None, "night", None, "photo")),
    ],
)  # fmt: skip
def test_prompts_are_read(prompt: str, wanted: Asked) -> None:
    assert asked(prompt) == wanted


def test_every_prompt_of_drawn_things_is_read_and_can_be_drawn() -> None:
    for path in (PROJECT / "datasets" / "prompts").glob("*.txt"):
        names = path.stem.split("+")
        if all(name in PERSONAL for name in names):
            nouns = [PERSONAL[name].category for name in names]
            for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
                wanted = asked(line.format(*nouns))
                assert {thing.category for thing in wanted.things} >= set(nouns)
                own = {PERSONAL[name].category: PERSONAL[name] for name in names}
                scene = scene_of(wanted, own, np.random.default_rng(0))
                drawn = [(t.category, t.rgb, t.shape, t.pattern) for t in scene.things]
                for name in names:
                    thing = PERSONAL[name]
                    assert (thing.category, thing.rgb, thing.shape, thing.pattern) in drawn


def test_what_is_drawn_says_what_was_asked_for() -> None:
    for i in range(200):
        scene = random_scene(np.random.default_rng([4, i]))
        wanted = asked(full_caption(scene))
        again = asked(full_caption(scene_of(wanted, {}, np.random.default_rng([5, i]))))
        assert again == wanted


@pytest.mark.parametrize("prompt", ["photo of a zebra", "a cat, a dog and a ball"])
def test_other_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(BenchError, match=r"analyses\.agreement: the prompt .* names"):
        asked(prompt)


def test_facts_are_counted() -> None:
    said = {name: names[0] for name, names in CHOICES.items()}
    said |= {"category": "cat", "colour": "red", "other_category": "ball", "other_colour": "blue"}
    said |= {"relation": "beside", "background": "beach", "style": "photo", "size": "normal"}
    wanted = asked("a ball next to a red cat on the beach")
    assert shown(wanted, said, {"cat", "ball"}) == [True, True, True, True, True]
    #                        beach, a ball, a cat, which is red, beside
    assert shown(wanted, said | {"colour": "green"}, {"cat", "ball"}) == [True] * 3 + [False, True]
    assert shown(wanted, said, {"cat"}) == [True, False, True, True, False]
    assert shown(asked("a cat in the snow"), said, {"cat"}) == [False, True]


def test_the_judge_sees_in_drawn_scenes_what_their_prompts_ask_for(judge: Judge) -> None:
    prompts = [full_caption(random_scene(np.random.default_rng([6, i]))) for i in range(200)]
    scenes = [scene_of(asked(p), {}, np.random.default_rng([7, i])) for i, p in enumerate(prompts)]
    images = [Image.fromarray(draw(scene)) for scene in scenes]
    right, *_ = looked(judge, [], images, prompts)
    assert right.mean() > 0.95
    other, *_ = looked(judge, [], images, prompts[1:] + prompts[:1])
    assert other.mean() < 0.4


# ------------------------------------------------------------------------------ who is recognised


def test_things_are_told_from_others_of_their_category(judge: Judge) -> None:
    found = reliability(judge, PERSONAL["dog"], learned(judge, PERSONAL["dog"], 400), 200)
    assert found.auc > 0.9
    assert found.auc_same_colour > 0.9
    assert found.found > found.mistaken + 0.6


def test_lessons_are_balanced_and_others_for_another_purpose() -> None:
    scenes, own, same = lessons(PERSONAL["cat"], "learn", 40)
    cats = [next(t for t in scene.things if t.category == "cat") for scene in scenes]
    assert [cat == PERSONAL["cat"] for cat in cats] == own.tolist()
    assert own.sum() == 20
    assert (own & ~same).sum() == 0
    assert {cat.colour for cat in np.array(cats)[same]} == {"orange"}
    assert len({scene.background for scene in scenes}) > 5
    assert not {scene.tint for scene in scenes} & {
        scene.tint for scene in lessons(PERSONAL["cat"], "check", 40)[0]
    }


def test_a_recogniser_is_ridge_regression(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "degrade", lambda images, rng: images)
    ours = learned(judge, PERSONAL["cat"], 60)
    scenes, own, _ = lessons(PERSONAL["cat"], "learn", 60)
    x = features(judge, pixels([Image.fromarray(draw(s)) for s in scenes])).astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-3
    theirs = Ridge(alpha=recognition.RIDGE * 60, fit_intercept=False, solver="svd")
    theirs.fit((x - mean) / scale, np.where(own, 1.0, -1.0))
    assert ours.scores(x) == pytest.approx(theirs.predict((x - mean) / scale), abs=1e-6)


def test_auc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.integers(3, 9, 50).astype(float), rng.integers(0, 7, 30).astype(float)
    labels = np.r_[np.ones(50), np.zeros(30)]
    assert auc(high, low) == pytest.approx(roc_auc_score(labels, np.r_[high, low]))


def test_features_depend_on_the_picture_alone(judge: Judge) -> None:
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    whole = features(judge, images)
    assert whole.shape[0] == 3
    assert features(judge, images[1:2])[0] == pytest.approx(whole[1], abs=1e-4)


# ------------------------------------------------------------------------------ do metrics agree


def test_alike_is_kendalls_tau_where_nothing_is_equal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random(7), rng.random(7)
        assert alike(a, b) == pytest.approx((kendalltau(a, b).statistic + 1) / 2)
    assert alike(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.5


def synthetic(noise: float, subjects: int = 6) -> pd.DataFrame:
    """Images of three methods; likeness pays 0.5 for the thing and 0.2 for the background."""
    rng, rows = np.random.default_rng(1), []
    for subject, (m, method), prompt, sample in product(
        range(subjects), enumerate(["pretrained", "a", "b", "c"]), range(6), range(3)
    ):
        thing = float(rng.random() < 0.1 + 0.25 * m)
        copied = float(rng.random() < 0.4)
        value = 0.3 * prompt + 0.5 * thing + 0.2 * copied + noise * rng.standard_normal()
        rows.append(
            {"method": method, "kind": "single", "subject": f"s{subject}", "target": 1,
             "group": subject,
             "prompt_index": prompt, "sample": sample, "thing": thing, "copied": copied,
             "facts": 1 - thing / 2, "image_alignment": value,
             "text_alignment": 1 - thing}
        )  # fmt: skip
    return pd.DataFrame(rows)


def test_what_is_paid_is_found_whatever_prompts_add() -> None:
    (row,) = paid(synthetic(0)).to_dict("records")
    assert (row["thing"], row["copied"]) == pytest.approx((0.5, 0.2))
    (row,) = paid(synthetic(0.2)).to_dict("records")
    assert row["metric"] == "image_alignment"
    assert row["thing_low"] < 0.5 < row["thing_high"]
    assert row["copied_low"] < 0.2 < row["copied_high"]
    assert row["concepts"] == 6


def test_methods_that_follow_the_truth_are_in_its_order() -> None:
    found = of_methods(synthetic(0.1)).set_index("metric")
    assert found.loc["image_alignment", "alike"] == 1
    assert found.loc["image_alignment", ["pairs", "methods", "subjects"]].tolist() == [3, 3, 6]
    assert found.loc["text_alignment", "alike"] == 1  # by facts, which it follows
    turned = synthetic(0.1).assign(image_alignment=lambda v: -v["image_alignment"])
    assert of_methods(turned).set_index("metric").loc["image_alignment", "alike"] == 0


def test_a_subject_that_a_method_lacks_counts_for_none() -> None:
    values = synthetic(0.1)
    less = values[(values["method"] != "b") | (values["subject"] != "s0")]
    assert of_methods(less).set_index("metric").loc["image_alignment", "subjects"] == 5


def test_subjects_that_share_a_concept_are_drawn_together() -> None:
    one = of_methods(synthetic(0.1).assign(group=0))
    assert one[["low", "high"]].isna().all(axis=None)
    # With two groups a draw is one of them twice, or both.
    two = synthetic(3).assign(group=lambda v: (v["subject"] > "s2").astype(int))
    found = of_methods(two).set_index("metric").loc["image_alignment"]
    means = (
        two[two["method"] != "pretrained"]
        .groupby(["group", "method"])[["image_alignment", "thing"]]
        .mean()
    )
    halves = [
        alike(*(means.loc[group][name].to_numpy() for name in ("image_alignment", "thing")))
        for group in (0, 1)
    ]
    three = [*halves, found["alike"]]
    assert (found["low"], found["high"]) == pytest.approx((min(three), max(three)))
    images = of_images(synthetic(0.1).assign(group=0))
    assert images[images["subject"] == "all"][["low", "high"]].isna().all(axis=None)


def test_images_are_ranked_within_their_subject() -> None:
    values = synthetic(0)
    # A subject where everything is higher changes no order within one.
    values.loc[values["subject"] == "s0", "text_alignment"] += 5
    found = of_images(values)
    text = found[found["metric"] == "text_alignment"]
    assert text["rho"].to_numpy() == pytest.approx(1)
    assert text["subject"].tolist()[-1] == "all"


def test_shares_are_means_of_a_cell() -> None:
    values = synthetic(0)
    found = shares_of(values).set_index(["method", "subject"])
    some = values[(values["method"] == "a") & (values["subject"] == "s2")]
    assert found.loc[("a", "s2"), "thing"] == pytest.approx(some["thing"].mean())
    assert found.loc[("a", "s2"), "n"] == 18


# ------------------------------------------------------------------------------ the stage

SMALL = {"portraits": 300, "checks": 60, "drawn": 1}


def test_methods_that_draw_the_thing_are_told_from_one_that_does_not(
    configure: Configure,
) -> None:
    """Of the fixture's methods all but the pretrained one draw the very things."""
    configure(agreement=SMALL)
    folder = analyse_agreement()
    cells = pd.read_csv(folder / "cells.csv").set_index(["method", "subject"])["thing"]
    for subject in ("cat", "chair", "cat+chair"):
        assert cells["custom_diffusion", subject] > cells["pretrained", subject]
        assert cells[DRAWN, subject] > 0.8
        assert cells[OTHERS, subject] < 0.4
    known = {"cells", "images", "methods", "background", "recognisers"}
    assert {path.stem for path in folder.glob("*.csv")} == known
    assert (folder / "agreement.png").is_file()
    trusted = pd.read_csv(folder / "recognisers.csv").set_index("concept")["auc"]
    assert trusted[["cat", "chair"]].min() > 0.85


def test_what_is_no_drawn_thing_is_refused(configure: Configure) -> None:
    configure(agreement=SMALL | {"subjects": ["bicycle"]})
    with pytest.raises(BenchError, match=r"analyses\.agreement\.subjects: 'bicycle' is not of dr"):
        analyse_agreement()
