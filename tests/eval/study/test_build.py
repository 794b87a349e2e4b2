"""Questionnaires: balanced, seeded, and about the samples that are there."""

from __future__ import annotations

import csv
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from eval.scores.file import COLUMNS
from eval.study.build import Picture, Trial, build, choose_checks, choose_duels, interleaved
from eval.study.questionnaire import (
    Question,
    Questionnaire,
    image_name_of,
    load_questionnaire,
)
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, read_tar, write_tar
from pipeline.concepts.concept import load_concept, load_subject
from pipeline.concepts.photos import read_photo, square
from pipeline.settings.profile import load_grid, load_params
from pipeline.settings.study import StudyParams
from tests.eval.study.conftest import QUESTIONNAIRE, SMALL
from tests.eval.study.simulated import METHODS

CELLS = Path("runs/toyland/cells")
RECORDS = Path("reports/cells")


@pytest.fixture
def about(study: Path) -> Questionnaire:
    return load_questionnaire(QUESTIONNAIRE)


def asked(about: Questionnaire) -> list[Question]:
    return [question for question in about.questions if not question.gold]


def rebuilt(study: StudyParams) -> Questionnaire:
    build("toyland", study)
    return load_questionnaire(QUESTIONNAIRE)


def target_images(concept: str) -> set[str]:
    """The targets as the shard stage makes them."""
    return {
        image_name_of(png_bytes(square(read_photo(path), 64)))
        for path in load_concept(concept).images
    }


def made_by(method: str) -> dict[str, tuple[str, int]]:
    """The subject and prompt number of each image of single concepts that a method made."""
    return {
        image_name_of(sample["png"]): (subject, sample["json"]["prompt_index"])
        for subject in ("cat", "chair", "dog")
        for sample in read_tar(CELLS / method / subject / "samples.tar")
        if sample["json"]["part"] == "prompt"
    }


def write_scores(method: str, subject: str, good: set[str]) -> None:
    """Scores of 1 for the good images, of 0 for all others."""
    rows = [
        {
            "protocol": load_params().protocol.name, "method": method, "subject": subject,
            "metric": metric, "prompt_index": sample["json"]["prompt_index"],
            "sample": sample["json"]["sample"],
            "value": float(image_name_of(sample["png"]) in good), "extractor": "e", "scale": 1.0,
        }
        for sample in read_tar(CELLS / method / subject / "samples.tar")
        if sample["json"]["part"] == "prompt"
        for metric in ("text_alignment", "image_alignment")
    ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(rows=len(rows)).reindex(columns=list(COLUMNS))
    path = RECORDS / method / subject / "scores.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


def spread(values: Iterable[object], known: Iterable[object]) -> int:
    counts = Counter({value: 0 for value in known})
    counts.update(values)
    return max(counts.values()) - min(counts.values())


def cell(question: Question) -> tuple[object, ...]:
    methods = frozenset((question.left_method, question.right_method))
    return question.kind, "+" in question.subject, methods


def test_the_reference_meets_every_other_method_equally_often(about: Questionnaire) -> None:
    counts = Counter(cell(question) for question in asked(about))
    assert counts == {
        # Compositions have 5 prompts of 2 samples.
        (kind, composed, frozenset(("custom_diffusion", other))): 10 if composed else 12
        for kind in ("text", "image")
        for composed in (False, True)
        for other in METHODS[:2]
    }


def test_both_images_are_samples_of_the_same_prompt_and_number(about: Questionnaire) -> None:
    tars: dict[tuple[str, str], dict[str, dict]] = {}
    for question in asked(about):
        for method, image in (
            (question.left_method, question.left_image),
            (question.right_method, question.right_image),
        ):
            key = method, question.subject
            if key not in tars:
                samples = read_tar(CELLS / method / question.subject / "samples.tar")
                tars[key] = {s["__key__"]: s for s in samples}
            sample = tars[key][f"prompt-{question.prompt_index:03d}-{question.sample:03d}"]
            assert image == image_name_of(sample["png"])
            assert question.prompt == sample["json"]["scored_prompt"]
        assert (
            question.prompt
            == load_subject(question.subject).scored_prompts()[question.prompt_index]
        )


@pytest.mark.parametrize(
    "params",
    [SMALL, StudyParams(questions=7, block=5, checks=1), StudyParams(questions=9, block=30)],
    ids=["small", "odd", "large blocks"],
)
def test_blocks_are_balanced(study: Path, params: StudyParams) -> None:
    about = rebuilt(params)
    blocks = about.blocks()
    for kind in ("text", "image"):
        own = {b: [q for q in qs if not q.gold] for b, qs in blocks.items() if qs[0].kind == kind}
        sizes = [len(questions) for questions in own.values()]
        assert max(sizes) - min(sizes) <= 1
        for name in {cell(q) for qs in own.values() for q in qs}:
            of_cell = [(b, q) for b, qs in own.items() for q in qs if cell(q) == name]
            assert spread((b for b, _ in of_cell), own) <= 1
            lefts = [q.left_method == "custom_diffusion" for _, q in of_cell]
            assert spread(lefts, [True, False]) <= 1
        for questions in own.values():
            lefts = [q.left_method == "custom_diffusion" for q in questions]
            assert spread(lefts, [True, False]) <= 1


def test_a_block_asks_one_thing_and_shows_no_image_twice(about: Questionnaire) -> None:
    for block, questions in about.blocks().items():
        assert [q.position for q in questions] == list(range(len(questions)))
        assert {q.block for q in questions} == {block}
        assert len({q.kind for q in questions}) == 1
        assert len(questions) <= SMALL.block
        images = [image for q in questions for image in (q.left_image, q.right_image)]
        assert len(images) == len(set(images))
    assert len(about.by_name()) == len(about.questions)


def test_subjects_and_prompts_have_their_share(about: Questionnaire) -> None:
    by_cell = defaultdict(list)
    for question in asked(about):
        by_cell[cell(question)].append((question.subject, question.prompt_index, question.sample))
    for (_, composed, _), trials in by_cell.items():
        subjects = ["cat+chair"] if composed else ["cat", "chair", "dog"]
        assert spread((subject for subject, *_ in trials), subjects) == 0
        for subject in subjects:
            assert spread((p for s, p, _ in trials if s == subject), range(5)) <= 1
    # The same trials for every pair, and for both kinds.
    for composed in (True, False):
        assert len({frozenset(t) for (_, c, _), t in by_cell.items() if c == composed}) == 1


def test_attention_checks_have_a_sure_answer(about: Questionnaire) -> None:
    checks = [question for question in about.questions if question.gold]
    assert Counter(q.block for q in checks) == dict.fromkeys(about.blocks(), SMALL.checks)
    for kind in ("text", "image"):
        assert spread((q.gold for q in checks if q.kind == kind), ["left", "right"]) <= 1
    made = made_by("custom_diffusion")
    for question in checks:
        right, wrong = question.left_image, question.right_image
        assert getattr(question, f"{question.gold}_method") == "asked for"
        if question.gold == "right":
            right, wrong = wrong, right
        (subject, prompt), (other, other_prompt) = made[right], made[wrong]
        assert subject == question.subject
        assert load_concept(other).class_noun != load_concept(subject).class_noun
        assert prompt != other_prompt
        assert question.prompt == load_subject(subject).scored_prompts()[prompt]
        if question.kind == "image":
            assert set(question.targets) <= target_images(subject)


def test_attention_checks_cannot_be_told_by_how_sharp_they_are(about: Questionnaire) -> None:
    """Whatever a rater chooses between was generated; target images are only shown beside it."""
    real = set().union(*(target_images(name) for name in ("cat", "chair", "dog")))
    for question in about.questions:
        assert real.isdisjoint((question.left_image, question.right_image))


def test_attention_checks_show_what_scores_best(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the images that no other question shows."""
    monkeypatch.setattr("eval.study.build.CANDIDATES", 3)
    shown = {i for q in asked(rebuilt(SMALL)) for i in (q.left_image, q.right_image)}
    others = {
        subject: sorted(
            i
            for i, (s, _) in made_by("custom_diffusion").items()
            if s == subject and i not in shown
        )
        for subject in ("cat", "chair", "dog")
    }
    good = {image for images in others.values() for image in images[-3:]}
    assert all(len(images) > 3 for images in others.values())
    for subject in others:
        write_scores("custom_diffusion", subject, good)
    checks = [q for q in rebuilt(SMALL).questions if q.gold]
    assert len(checks) > 8
    assert {i for q in checks for i in (q.left_image, q.right_image)} <= good


def test_targets_of_all_concepts_are_shown(about: Questionnaire) -> None:
    for question in asked(about):
        if question.kind == "text":
            assert question.targets == ()
        else:
            assert len(question.targets) == len(set(question.targets)) == 4
            for concept in question.subject.split("+"):
                share = len(set(question.targets) & target_images(concept))
                assert share == 4 / len(question.subject.split("+"))


def test_building_is_seeded(study: Path) -> None:
    def content() -> dict[str, bytes]:
        files = [path for path in QUESTIONNAIRE.rglob("*") if path.is_file()]
        return {path.name: path.read_bytes() for path in files}

    before = content()
    shutil.rmtree(QUESTIONNAIRE)
    build("toyland", SMALL)
    assert content() == before
    build("toyland", SMALL.model_copy(update={"seed": 2}))
    assert content()["questions.csv"] != before["questions.csv"]


def test_what_has_no_samples_is_left_out(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(CELLS / "dreambooth" / "cat")
    about = rebuilt(SMALL)
    subjects = {q.subject for q in asked(about) if "dreambooth" in (q.left_method, q.right_method)}
    assert subjects == {"chair", "dog", "cat+chair"}
    shutil.rmtree(CELLS / "custom_diffusion")
    capsys.readouterr()
    assert rebuilt(SMALL).questions == ()
    assert "no questions" in capsys.readouterr().out
    with (QUESTIONNAIRE / "amt_upload.csv").open() as file:
        assert list(csv.DictReader(file)) == []


def test_equal_images_are_not_asked_about(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subject in ("cat", "chair", "dog"):
        samples = read_tar(CELLS / "custom_diffusion" / subject / "samples.tar")
        for sample in samples:
            sample["json"]["method"] = "dreambooth"
        write_tar(CELLS / "dreambooth" / subject / "samples.tar", samples)
    about = rebuilt(SMALL)
    assert all(q.left_image != q.right_image for q in about.questions)
    assert "left out 12 pairs" in capsys.readouterr().out


def test_damaged_samples_are_named(study: Path) -> None:
    path = CELLS / "dreambooth" / "cat" / "samples.tar"
    samples = read_tar(path)
    for sample in samples:
        sample["json"]["scored_prompt"] += " now"
    write_tar(path, samples)
    with pytest.raises(BenchError, match="prompt .* now"):
        build("toyland", SMALL)
    path.write_bytes(b"no tar")
    with pytest.raises(BenchError, match=r"dreambooth/cat/samples\.tar"):
        build("toyland", SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": ("custom",)}, r"params\.yaml: study\.references: method 'custom'"),
        ({"checks": 10}, r"params\.yaml: study\.checks"),
    ],
)
def test_settings_have_to_fit(study: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        build("toyland", SMALL.model_copy(update=change))


def test_checks_need_another_class_noun(study: Path) -> None:
    cat = load_concept("cat")
    pictures = [Picture(f"{i}.png", Trial("cat", i, 0), "a cat") for i in range(2)]
    assert choose_checks([cat], {"cat": pictures}, {"cat": ["a", "b"]}, "text", SMALL) == []


def test_all_pairs_are_compared_if_all_are_references(study: Path) -> None:
    grid = load_grid()
    there = {(m, "cat"): {(p, 0) for p in range(5)} for m in METHODS}
    duels = choose_duels(there, grid, SMALL.model_copy(update={"references": tuple(METHODS)}))
    assert Counter((d.first, d.second) for d in duels) == {
        ("pretrained", "dreambooth"): 5,
        ("pretrained", "custom_diffusion"): 5,
        ("dreambooth", "custom_diffusion"): 5,
    }


def test_interleaving_takes_of_each_in_turn() -> None:
    assert interleaved([[1, 4, 6], [], [2], [3, 5]]) == [1, 2, 3, 4, 5, 6]
