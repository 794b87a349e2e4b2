"""How good Toyland's models are: the judge that looks at pictures, the prompts, the scorecard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.metrics.kid import kid, kid_by_caption
from pipeline.common.errors import BenchError
from pipeline.models.texts import Condition
from pipeline.toyland.pretrain import prompts, scorecard
from pipeline.toyland.pretrain.autoencoder import to_tensor
from pipeline.toyland.pretrain.budget import BUDGET
from pipeline.toyland.pretrain.cards import MODELS, hardware_named, write_cards
from pipeline.toyland.pretrain.judge import (
    CHOICES,
    Judge,
    answers,
    hits,
    judge_loss,
    judged,
    labels_of,
    load_judge,
    mirrored,
    right_answers,
    save_judge,
    study_scene,
)
from pipeline.toyland.pretrain.pictures import held_out_scene
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import (
    ACCESSORIES,
    BACKGROUNDS,
    CATEGORIES,
    SIZES,
    STYLES,
    Scene,
    caption,
    random_scene,
    random_thing,
)

SHIPPED = Path(__file__).parents[4] / "models" / "toyland"


@pytest.fixture(scope="module")
def shipped_judge() -> Judge:
    if not (SHIPPED / "judge").is_dir():
        pytest.skip("models/toyland/judge is not here")
    return load_judge(SHIPPED / "judge")


def scene_of(*things: tuple[str, str], relation: str | None = None, **changes: Any) -> Scene:
    """A scene with things of these colours and categories, not mirrored."""
    rng = np.random.default_rng(7)
    individuals = tuple(random_thing(rng, category, colour) for colour, category in things)
    scene = random_scene(
        rng, things=individuals, relation=relation, background="beach", size="normal", style="photo"
    )
    return replace(scene, flip=False, **changes)


# ------------------------------------------------------------------------------ the judge


def test_first_of_two_things_is_the_one_on_the_left_or_on_top() -> None:
    cat, dog = ("red", "cat"), ("blue", "dog")
    beside = answers(scene_of(cat, dog, relation="next to"))
    assert (beside["category"], beside["colour"]) == ("cat", "red")
    assert (beside["other_category"], beside["other_colour"]) == ("dog", "blue")
    assert beside["relation"] == "beside" and "accessory" not in beside
    swapped = answers(mirrored(scene_of(cat, dog, relation="and")))
    assert (swapped["category"], swapped["other_colour"]) == ("dog", "red")
    upon = mirrored(scene_of(cat, ("blue", "table"), relation="on"))
    assert (answers(upon)["category"], answers(upon)["relation"]) == ("cat", "on")


def test_answers_about_one_thing() -> None:
    scene = scene_of(("pink", "cat"))
    assert answers(scene) == {
        "category": "cat",
        "colour": "pink",
        "relation": "alone",
        "background": "beach",
        "size": "normal",
        "style": "photo",
        "accessory": "none",
    }
    worn = replace(scene, things=(replace(scene.things[0], accessory="hat"),))
    assert answers(worn)["accessory"] == "hat"
    assert "colour" not in answers(replace(scene, style="pencil sketch"))


def test_what_is_first_is_drawn_on_the_left_unless_mirrored() -> None:
    """The drawing itself says so: the left half has more of the first thing's colour."""
    scene = scene_of(("red", "ball"), ("blue", "ball"), relation="and", background="snow")
    scene = replace(scene, things=tuple(replace(t, pattern="plain") for t in scene.things))
    for shown in (scene, mirrored(scene)):
        pixels = draw(shown).astype(int)
        redness = pixels[..., 0] - pixels[..., 2]
        left, right = redness[:, :32].sum(), redness[:, 32:].sum()
        assert (answers(shown)["colour"] == "red") == (left > right)


def test_study_scenes_are_what_they_are_said_to_be() -> None:
    scenes = [study_scene(i) for i in range(200)]
    assert all(len(s.things) == 2 for i, s in enumerate(scenes) if i % 10 < 6)
    assert all(s.things[0].accessory for i, s in enumerate(scenes) if 6 <= i % 10 < 8)
    assert study_scene(17) == scenes[17]
    said = [answers(scene) for scene in scenes]
    for name in ("relation", "accessory", "style", "size"):
        assert {s[name] for s in said if name in s} == set(CHOICES[name])


def test_judge_loss_equals_a_plain_computation() -> None:
    scenes = [study_scene(i) for i in range(12)]
    rng = np.random.default_rng(4)
    sizes = {name: len(names) for name, names in CHOICES.items()} | {"present": 16}
    logits = {name: rng.normal(size=(12, size)) for name, size in sizes.items()}
    loss = 0.0
    for name, names in CHOICES.items():
        terms = []
        for row, scene in zip(logits[name], scenes):
            if name in answers(scene):
                chances = np.exp(row) / np.exp(row).sum()
                terms.append(-np.log(chances[names.index(answers(scene)[name])]))
        loss += np.mean(terms)
    for row, scene in zip(logits["present"], scenes):
        for category, logit in zip(CATEGORIES, row):
            there = category in {thing.category for thing in scene.things}
            loss += np.log1p(np.exp(-logit if there else logit)) / 12
    tensors = {name: torch.from_numpy(values) for name, values in logits.items()}
    value = judge_loss(tensors, labels_of(scenes), np.arange(12)).item()
    assert value == pytest.approx(loss, rel=1e-5)


def test_judge_is_independent_of_the_batch_and_survives_being_saved(tmp_path: Path) -> None:
    save_judge(Judge(), tmp_path)
    judge = load_judge(tmp_path)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(6)) * 2 - 1
    choices, present = judged(judge, images)
    for i in range(5):
        alone, there = judged(judge, images[i : i + 1])
        assert {k: v[i] for k, v in choices.items()} == {k: v[0] for k, v in alone.items()}
        assert present[i] == there[0]


def test_damaged_judge_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"judge\.safetensors: the weights are missing"):
        load_judge(tmp_path)
    save_judge(Judge(), tmp_path)
    whole = (tmp_path / "judge.safetensors").read_bytes()
    (tmp_path / "judge.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchError, match=r"judge\.safetensors: not the judge's weights"):
        load_judge(tmp_path)


class _Oracle(nn.Module):
    """A judge that is told what the scenes show."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        labels = labels_of(list(scenes))
        self.logits = {
            name: torch.nn.functional.one_hot(torch.from_numpy(v).clamp(min=0), 16).float()
            for name, v in labels.choices.items()
        } | {"present": torch.from_numpy(labels.present) * 2 - 1}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.logits


def test_hits_of_a_perfect_judge_are_all_and_each_error_counts_once() -> None:
    wanted = [*prompts.single_prompts(20), *prompts.pair_prompts(6)]
    scenes = [w.scene for w in wanted]
    oracle, images = _Oracle(scenes), torch.zeros(26, 3, 64, 64)
    right = hits(oracle, images, scenes)
    left = right.pop("left_first")
    assert left.tolist() == [not scene.flip for scene in scenes[20:]]
    assert {name: (len(v), v.all()) for name, v in right.items()} == {
        **dict.fromkeys(("category", "colour", "accessory"), (20, True)),
        **dict.fromkeys(("background", "size", "style"), (26, True)),
        **dict.fromkeys(("pair_both", "pair_colours", "relation"), (6, True)),
    }
    # One thing of the first pair is overlooked; a third thing seen elsewhere does not matter.
    oracle.logits["present"][20, CATEGORIES.index(scenes[20].things[1].category)] = -1
    oracle.logits["present"][21] = 1
    right = hits(oracle, images, scenes)
    assert right["pair_both"].tolist() == [False, True, True, True, True, True]


def _right(shown: Scene, wanted: Scene) -> dict[str, bool]:
    """What a perfect judge of one scene says to another one that was wanted."""
    said = {name: names[0] for name, names in CHOICES.items()} | answers(shown)
    return right_answers(said, {thing.category for thing in shown.things}, wanted)


def test_swapped_colours_and_a_single_thing_are_no_pair_in_its_colours() -> None:
    wanted = scene_of(("red", "cat"), ("blue", "dog"), relation="and")
    shown = _right(wanted, wanted)
    assert shown["pair_both"] and shown["pair_colours"] and shown["relation"]
    # A mirror does not matter to who has which colour.
    assert _right(mirrored(wanted), wanted)["pair_colours"]
    swapped = _right(scene_of(("blue", "cat"), ("red", "dog"), relation="and"), wanted)
    assert swapped["pair_both"] and not swapped["pair_colours"]
    alone = _right(scene_of(("red", "cat")), wanted)
    assert not (alone["pair_both"] or alone["pair_colours"] or alone["relation"])


def test_relation_means_a_place_that_a_layout_has() -> None:
    cat, table = ("red", "cat"), ("blue", "table")
    beside, upon = (scene_of(cat, table, relation=r) for r in ("next to", "on"))
    assert _right(beside, beside)["left_first"] is True
    assert _right(mirrored(beside), beside)["relation"]
    assert _right(mirrored(beside), beside)["left_first"] is False
    assert _right(mirrored(upon), upon)["relation"]
    assert "left_first" not in _right(upon, upon)
    assert not _right(upon, beside)["relation"] and not _right(beside, upon)["relation"]
    below = scene_of(table, cat, relation="on")  # the wrong one is on top
    assert not _right(below, upon)["relation"]


def test_shipped_judge_knows_what_it_judges_by(shipped_judge: Judge) -> None:
    """Its ceiling: drawn scenes that nothing was trained on."""
    assert sum(p.numel() for p in shipped_judge.parameters()) <= 1_200_000
    scenes = [held_out_scene(i) for i in range(400)]
    right = hits(shipped_judge, to_tensor(np.stack([draw(s) for s in scenes])), scenes)
    assert len(right["pair_colours"]) >= 80 and len(right["relation"]) >= 100
    for name in ("category", "colour", "background", "style", "size", "accessory"):
        assert right[name].mean() >= 0.95, name
    assert right["pair_colours"].mean() >= 0.9
    assert right["relation"].mean() >= 0.9
    assert 0.3 < right["left_first"].mean() < 0.7


def test_shipped_judge_says_no_to_what_was_not_asked_for(shipped_judge: Judge) -> None:
    sizes = scorecard.Sizes(singles=48, pairs=32, relations=16, others=48)
    mistaken = scorecard.measure_mistakes(shipped_judge, sizes.prompts())
    asked = {name for name in scorecard.ASKED if not name.startswith("le")}  # letter, left
    assert {name.partition(".")[2] for name in mistaken} == asked
    assert {name: m.value for name, m in mistaken.items() if m.value > 0.1} == {}


# ------------------------------------------------------------------------------ the prompts


def test_prompts_of_the_scorecard_are_balanced_and_fit_their_scenes() -> None:
    wanted = prompts.single_prompts(176)
    things = [w.scene.things[0] for w in wanted]
    assert len({(t.category, t.colour) for t in things}) == 176
    counts = [sum(w.scene.background == b for w in wanted) for b in BACKGROUNDS]
    assert max(counts) - min(counts) <= 1
    for w, thing in zip(wanted, things):
        words = f" {thing.colour} {thing.category} {BACKGROUNDS[w.scene.background][0]}"
        assert w.prompt in (f"photo of a{words}", f"photo of an{words}")
    pairs = prompts.pair_prompts(64)
    assert len({w.prompt for w in pairs}) == 64
    for w in pairs:
        first, second = w.scene.things
        assert first.category != second.category and first.colour != second.colour
        assert f"{first.colour} {first.category} and " in w.prompt
        assert w.prompt.endswith(f"{second.colour} {second.category}")
    assert wanted == prompts.single_prompts(176)


def test_other_prompts_say_what_their_scenes_show() -> None:
    for w in prompts.night_prompts(48):
        assert w.prompt.endswith("at night") and w.scene.things[0].colour in prompts.DARK
    worn = prompts.accessory_prompts(48)
    assert {w.scene.things[0].accessory for w in worn} == set(ACCESSORIES)
    assert all(ACCESSORIES[w.scene.things[0].accessory or ""] in w.prompt for w in worn)
    styled = prompts.style_prompts(48)
    assert {w.scene.style for w in styled} == set(STYLES) - {"photo"}
    assert all(w.scene.style in w.prompt for w in styled)
    sized = prompts.size_prompts(48)
    assert {w.scene.size for w in sized} == {"small", "large"}
    assert all(SIZES[w.scene.size][0] in w.prompt for w in sized)
    for relation in ("next to", "in", "on"):
        related = prompts.relation_prompts(relation, 32)
        assert len({w.prompt for w in related}) == 32
        for w in related:
            first, second = w.scene.things
            between = f" {first.colour} {first.category} {relation} "
            assert between in w.prompt and f" {second.colour} {second.category} " in w.prompt
            assert first.colour != second.colour and first.category != second.category


def test_letters_stand_before_the_noun_and_change_nothing_else() -> None:
    plain, lettered = prompts.single_prompts(48), prompts.letter_prompts(48)
    for k, (w, other) in enumerate(zip(lettered, plain)):
        letter = prompts.LETTERS[k % len(prompts.LETTERS)]
        before, _, after = w.prompt.partition(f" {letter} {w.scene.things[0].category}")
        assert f"{before} {w.scene.things[0].category}{after}" == other.prompt
        assert w.scene == other.scene
    assert "a" not in prompts.LETTERS


def test_a_scene_drawn_again_shows_the_same_and_others() -> None:
    for w in (*prompts.relation_prompts("on", 4), *prompts.accessory_prompts(4)):
        other = w.again(np.random.default_rng(1))
        assert other.things != w.scene.things
        for name in ("relation", "background", "size", "style"):
            assert getattr(other, name) == getattr(w.scene, name)
        told = [(t.category, t.colour, t.accessory) for t in other.things]
        assert told == [(t.category, t.colour, t.accessory) for t in w.scene.things]
    # A prompt that names no place leaves it open.
    pair = prompts.pair_prompts(1)[0]
    places = {pair.again(np.random.default_rng(i)).background for i in range(40)}
    assert len(places) > 4


def test_altered_scenes_are_what_a_perfect_judge_says_no_to() -> None:
    kinds = scorecard.Sizes().prompts()
    for name, (of, question) in scorecard.ASKED.items():
        for kind in of if question != "left_first" else ():
            for w in kinds[kind]:
                assert _right(w.scene, w.scene)[question], (name, w.prompt)
                assert not _right(prompts.ALTERED[question](w.scene), w.scene)[question]


# ------------------------------------------------------------------------------ the scorecard


def test_errors_of_shares_and_clusters() -> None:
    measure = scorecard.share([True] * 30 + [False] * 70)
    assert measure.value == 0.3 and measure.n == 100
    assert measure.std_error == pytest.approx(np.sqrt(0.3 * 0.7 / 100), rel=0.02)
    assert scorecard.share([True] * 50).std_error > 0
    clusters = scorecard.clustered([0.2, 0.4, 0.9], 30)
    assert clusters.value == pytest.approx(0.5) and clusters.n == 30
    assert clusters.std_error == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3))


def test_retrieval_counts_captions_of_the_thing_alone() -> None:
    nouns = sorted({thing.category for thing in PERSONAL.values()})

    def near(text: str, noun: str) -> bool:
        """Captions that end in "of a cat" or "and a cat": the latter are wrong."""
        return text.endswith((f" of a {noun}", f" and a {noun}"))

    def encode_texts(texts: list[str]) -> Any:
        rows = np.array([[near(text, noun) for noun in nouns] for text in texts], np.float32)
        return np.column_stack([rows, 1 - rows.sum(1)])

    clip: Any = SimpleNamespace(encode_texts=encode_texts)
    measured = scorecard.measure_retrieval(clip, 3000)
    found, right, wanted = np.zeros((3, len(nouns)), int)
    for i in range(3000):
        scene = held_out_scene(i)
        text = caption(scene, np.random.default_rng([scorecard.CAPTIONS_SEED, i]))
        for k, noun in enumerate(nouns):
            alone = [thing.category for thing in scene.things] == [noun] and scene.style == "photo"
            wanted[k] += alone
            found[k] += near(text, noun)
            right[k] += near(text, noun) and alone
    assert (found > 0).all() and (right < found).any()
    assert measured["retrieval.precision"].value == pytest.approx((right / found).mean())
    assert measured["retrieval.recall"].value == pytest.approx((right / wanted).mean())
    assert measured["retrieval.fewest"].value == found.min()


def test_identity_of_a_clip_that_sees_all_and_of_one_that_sees_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sees_all(_: object, scenes: list[Any]) -> Any:
        return np.array([[scene.things[0] in PERSONAL.values(), 1] for scene in scenes], np.float32)

    def sees_nothing(_: object, scenes: list[Any]) -> Any:
        return np.ones((len(scenes), 2), np.float32)

    clip: Any = None
    for features, expected in ((sees_all, 1.0), (sees_nothing, 0.5)):
        monkeypatch.setattr(scorecard, "_features", features)
        measured = scorecard.measure_identity(clip, 3)
        assert {m.value for m in measured.values()} == {expected}


def test_letters_are_compared_at_their_place_and_at_the_noun() -> None:
    """Features that differ by letter at the letter's place alone."""

    def condition(texts: list[str]) -> Condition:
        out = torch.zeros(len(texts), 9, 32)
        for row, text in zip(out, texts):
            row[:, 0] = 1  # any other place: the same for all
            row[4] = torch.nn.functional.one_hot(torch.tensor(ord(text[11]) - 97), 32)
        return Condition(out)

    def tokenizer(text: str) -> Any:
        return SimpleNamespace(input_ids=["start", *text.split(), "end"])

    base: Any = SimpleNamespace(texts=SimpleNamespace(tokenizer=tokenizer), condition=condition)
    measured = scorecard.measure_letters(base)
    assert measured["letters.cosine_letter"].value == pytest.approx(0, abs=1e-6)
    assert measured["letters.cosine_noun"].value == pytest.approx(1, abs=1e-6)


def test_floor_of_kid_is_zero_in_expectation() -> None:
    """Where the images of a caption resemble each other, `kid` itself comes out below zero."""
    rng = np.random.default_rng(3)
    floors, plain, far = [], [], []
    for _ in range(200):
        captions = rng.normal(size=(20, 6))  # what a caption says about its images
        one, two = (captions + rng.normal(size=(20, 6)) for _ in range(2))
        floors.append(kid_by_caption(one, two).value)
        plain.append(kid(one, two, np.arange(20), np.arange(20)).value)
        far.append(kid_by_caption(one, two + 1.0).value)
    error = np.std(floors) / np.sqrt(len(floors))
    assert abs(np.mean(floors)) < 3 * error
    assert np.mean(plain) < -3 * error
    assert np.mean(far) > 20 * error


def test_kid_by_caption_equals_a_plain_computation_and_wants_pairs() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 7, 3))

    def k(a: Any, b: Any) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def plain(rows: Sequence[int]) -> float:
        terms = [
            k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
            for i in rows
            for j in rows
            if i != j
        ]
        return 1000 * float(np.mean(terms))

    measured = kid_by_caption(x, y)
    assert measured.value == pytest.approx(plain(range(7)))
    without = [plain([j for j in range(7) if j != i]) for i in range(7)]
    assert measured.std_error == pytest.approx(np.sqrt(6 * np.var(without)))
    assert measured.n == 7
    with pytest.raises(ValueError, match="as many images on either side, not 7, 6"):
        kid_by_caption(x, y[:6])


def test_distances_are_those_of_each_set_from_the_drawn_scenes() -> None:
    wanted = prompts.single_prompts(4)
    images = scorecard.drawn([w.scene for w in wanted])

    def encode_images(pictures: list[Any]) -> Any:
        means = np.stack([np.asarray(p, np.float32).mean((0, 1)) for p in pictures])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def distance(reals: Any, others: Any) -> tuple[float, float, int]:
        assert np.allclose((reals**2).sum(1), 3)  # sqrt(d) long
        return float(np.abs(reals - others).sum()), 0.5, len(others)

    clip: Any = SimpleNamespace(encode_images=encode_images)
    sets = {"same": images, "other": images.flip(1)}
    measured = scorecard.measure_distances(distance, clip, wanted, sets)
    assert measured["kid.same"] == scorecard.Measure(0.0, 0.5, 4)
    assert measured["kid.other"].value > 0.1


def test_sheet_shows_what_misses_with_its_prompt() -> None:
    wanted = prompts.pair_prompts(3)
    images = scorecard.drawn([w.scene for w in wanted])
    right = [{"pair_both": True, "pair_colours": i != 1, "relation": True} for i in range(3)]
    kinds = dict.fromkeys(scorecard.Sizes().prompts(), scorecard.Pictures([], images[:0], []))
    pictures = kinds | {"pair": scorecard.Pictures(wanted, images, right)}
    missed = scorecard.misses(pictures)
    assert list(missed) == ["pair_colours"]
    [(prompt, image)] = missed["pair_colours"]
    assert prompt == wanted[1].prompt
    assert np.array_equal(image, draw(wanted[1].scene))
    measures = scorecard.measure_pictures("generated", pictures)
    assert measures["generated.pair_colours"].value == pytest.approx(2 / 3)
    alone = scorecard.pictures_sheet(
        kinds | {"pair": replace(pictures["pair"], right=[right[0]] * 3)}, measures
    )
    assert scorecard.pictures_sheet(pictures, measures).height > alone.height + 128


def test_goals_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    measure = scorecard.Measure(0.9, 0.01, 160)
    names = [f"{group}.pair_colours" for group in scorecard.PICTURES]
    scorecard.print_measures(
        dict.fromkeys((*names, "generated.category", "autoencoder.psnr", "kid.drawn"), measure)
    )
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["pair_colours"].split()[1:5] == ["0.900"] * 4
    assert rows["pair_colours"].endswith("0.9 met")
    assert rows["category"].endswith("0.99 MISSED")
    assert rows["autoencoder.psnr"].endswith("36 MISSED")
    assert rows["kid.drawn"].split() == ["kid.drawn", "0.900", "0.010", "160"]


def test_hardware_is_named_for_each_model() -> None:
    named = hardware_named(["base=one GPU", "two cores"])
    assert named == {**dict.fromkeys(MODELS, "two cores"), "base": "one GPU"}
    for options, message in (
        (["bass=one GPU", "two cores"], "no model 'bass': .* base, clip, scorer, judge"),
        (["base=one GPU"], "for each model, or once"),
        (["one", "two"], "for each model, or once"),
    ):
        with pytest.raises(BenchError, match=f"--hardware: .*{message}"):
            hardware_named(options)


def test_scorecard_has_all_it_should_and_cards_show_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (SHIPPED / "base").is_dir():
        pytest.skip("models/toyland is not here")
    models = tmp_path / "models"
    shutil.copytree(SHIPPED, models)
    save_judge(Judge(), models / "judge")
    monkeypatch.chdir(tmp_path)
    few = np.stack([draw(held_out_scene(i)) for i in range(64)])
    for module in ("clip", "judge"):
        monkeypatch.setattr(f"pipeline.toyland.pretrain.{module}.pictures", lambda *_: few)
    sizes = scorecard.Sizes(
        held_out=64, captions=200, queries=2, singles=6, pairs=3, relations=2, others=3
    )
    results = scorecard.scorecard(
        models,
        tmp_path / "s.json",
        tmp_path / "s.jpg",
        dict.fromkeys(MODELS, "a test"),
        sizes,
        scorecard.SAMPLING.model_copy(update={"steps": 2}),
        kid_by_caption,
    )
    assert json.loads((tmp_path / "s.json").read_text()) == results
    assert (tmp_path / "s.jpg").stat().st_size > 1000
    table = capsys.readouterr().out
    optional = {"left_first"}  # only where a relation was right
    shows = set(scorecard.ASKED) - optional
    seen = {"category", "colour", "background", "retrieval_r1"}
    expected = {
        **dict.fromkeys(("real", "reconstructed", "generated"), shows),
        "mistaken": {name for name in shows if not name.startswith("letter")},
        **dict.fromkeys(("clip", "scorer"), seen | {"identity_auc", "identity_accuracy"}),
        "autoencoder": {"psnr", "zero_shot_category", "zero_shot_kept"},
        "retrieval": {"precision", "recall", "fewest"},
        "letters": {"cosine_letter", "cosine_noun"},
        "kid": {"drawn", "reconstructed", "generated"},
    }
    for group, names in expected.items():
        assert set(results[group]) - optional == names
        assert set(results["n"][group]) == set(results["std_error"][group]) == set(results[group])
        assert all(name in table for name in names)
    assert results["n"]["generated"] == {
        **dict.fromkeys(shows, 3),
        **dict.fromkeys(("category", "colour", "background"), 6),
        "pair_colours": 9,
        "relation_beside": 5,
        "relation_in": 2,
        "relation_on": 2,
    }
    assert results["n"]["kid"]["generated"] == 6 + 3 + 3 * 2 + 4 * 3
    assert set(results["models"]) == {"base", "clip", "scorer", "judge"}
    flat = {f"{group}.{name}" for group, names in expected.items() for name in names}
    assert set(scorecard.GOALS) <= flat

    card = (models / "base.md").read_text()
    assert f"| generated.category | {results['generated']['category']:.3f} |" in card
    assert f"| kid.drawn | {results['kid']['drawn']:.3f} |" in card
    assert "Hardware: a test." in card
    budget = replace(BUDGET, clip=1234)
    results["clip"]["category"] = 0.9876
    write_cards(results, models, budget, dict.fromkeys(MODELS, "another machine"))
    card = (models / "clip.md").read_text()
    assert "1,234 steps" in card and "0.988" in card and "another machine" in card
    assert card.startswith("---\nlicense: apache-2.0")
