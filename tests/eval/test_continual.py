"""Sequences from samples to scores, measures, tables and the page, on drawn samples."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from eval.continual import SequenceResults, failed_sequences, load_sequences
from eval.freshness import Freshness
from eval.metrics.continual import averages, mean_of, transfer
from eval.papers.claims import print_claims
from eval.report.sequences import alone, course_chart, heat_map, pictures, sequence_tables
from eval.report.stage import write_report
from eval.results import load_results
from eval.scores.file import SEQUENCE_COLUMNS, read_scores
from eval.scores.stage import score_cell, score_oracle, score_sequence
from eval.style import words
from eval.tables.rendering import as_csv
from eval.tables.sequences import confusions, matrix, measures
from eval.tables.table import STALE
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure, FailureError
from pipeline.common.files import read_tar, write_failure, write_tar
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import load_grid, load_params
from pipeline.settings.protocol import protocol_path
from tests.eval.synthetic import _sample, make_profile, make_samples, write_cost

METHODS = ["custom_diffusion_sequential", "custom_diffusion_merge"]
CONCEPTS = ["cat", "chair"]
PROMPTS = 4
RUNS = Path("runs/toyland/cells")
RECORDS = Path("reports/cells")


def change(path: Path, **values: object) -> None:
    yaml = YAML()
    content = yaml.load(path)
    content.update(values)
    yaml.dump(content, path)


def write_tasks(forgets: str) -> None:
    """Samples of all tasks; one method makes chairs of cats once it has learned chairs.

    So it does if a cat is asked for that it never learned; the other one is as the pretrained.
    """
    params, grid = load_params(), load_grid()
    for method in METHODS:
        for task, concepts in grid.tasks("two").items():
            samples = []
            for place, concept in enumerate(concepts, 1):
                prompts = load_subject(concept).scored_prompts()[:PROMPTS]
                drawn = "chair" if method == forgets and len(concepts) == 2 else concept
                for p, text in enumerate(prompts):
                    made = _sample("custom_diffusion", load_subject(drawn), "prompt", p, 0, text)
                    made["__key__"] = f"{place:03d}-{made['__key__']}"
                    made["json"] |= {"concept": concept, **params.identity(method, task)}
                    samples.append(made)
            write_tar(RUNS / method / task / "samples.tar", samples)
        plain = []
        for place, concept in enumerate(CONCEPTS, 1):
            drawn = load_subject("chair" if method == forgets else concept)
            for p, text in enumerate(load_subject(concept).scored_prompts()[:PROMPTS]):
                made = _sample("pretrained", drawn, "prompt", p, 0, text)
                made["__key__"] = f"{place:03d}-{made['__key__']}"
                made["json"] |= {"concept": concept, **params.identity(method, "two")}
                plain.append(made)
        write_tar(RUNS / method / "two" / "samples.tar", plain)


@pytest.fixture(scope="module")
def sequenced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile with a sequence of two concepts, scored; only to be read."""
    root = tmp_path_factory.mktemp("sequences")
    make_profile(root, CONCEPTS, [], ["pretrained", "custom_diffusion"])
    before = Path.cwd()
    os.chdir(root)
    try:
        about = {"two": {"concepts": CONCEPTS, "methods": METHODS}}
        change(root / "grid.yaml", sequences=about)
        protocol = load_params().protocol.name
        change(root / protocol_path(protocol), sequence={"images_per_prompt": 1, "steps": 12})
        make_samples(reals=12, prompts=PROMPTS)
        write_tasks(forgets=METHODS[0])
        for concept in CONCEPTS:
            score_oracle(concept, "toyland")
            for method in ("pretrained", "custom_diffusion"):
                score_cell(method, concept, "toyland")
        for method in METHODS:
            score_sequence(method, "two", "toyland")
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def profile(sequenced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(sequenced, tmp_path / "profile")
    monkeypatch.chdir(tmp_path / "profile")
    return tmp_path / "profile"


def loaded() -> SequenceResults:
    (found,) = load_sequences(load_results())
    return found


def test_scores_say_task_concept_and_all_targets_after_the_last(profile: Path) -> None:
    scores = read_scores(
        RECORDS / METHODS[0] / "two/scores.csv", METHODS[0], "two", SEQUENCE_COLUMNS
    )
    alike = scores[scores["metric"] == "image_alignment"]
    found = {
        (int(task), str(concept)): sorted(part["target"].unique())
        for (task, concept), part in alike.groupby(["task", "subject"])
    }
    assert found == {(1, "cat"): [1], (2, "cat"): [1, 2], (2, "chair"): [1, 2]}
    text = scores[scores["metric"] == "text_alignment"]
    assert len(text) == (3 + 2) * PROMPTS
    assert text["task"].isna().sum() == 2 * PROMPTS  # of no task: class nouns, after the last
    assert set(scores["metric"]) == {"text_alignment", "image_alignment"}


def test_the_matrix_is_what_the_scores_say(profile: Path) -> None:
    sequence = loaded()
    rows = pd.read_csv(RECORDS / METHODS[0] / "two/scores.csv")
    rows = rows[rows["metric"] == "image_alignment"]
    r = sequence.matrix(METHODS[0], "image_alignment")
    assert r.shape == (2, 2, PROMPTS)
    assert np.isnan(r[0, 1]).all()
    for task, concept, number in ((1, "cat", 1), (2, "cat", 1), (2, "chair", 2)):
        own = rows[(rows["task"] == task) & (rows["subject"] == concept)]
        values = own[own["target"] == number].sort_values("prompt_index")["value"]
        np.testing.assert_allclose(r[task - 1, CONCEPTS.index(concept)], values)


def test_who_forgets_is_found_and_who_does_not_has_exactly_none(profile: Path) -> None:
    sequence = loaded()
    forgets, keeps = (sequence.matrix(method, "image_alignment") for method in METHODS)
    assert (transfer(keeps)[0] == 0).all()
    lost = sequence.estimate(transfer(forgets))
    assert lost is not None and lost.here.mean < 0
    # One concept before the last: nothing is known about others.
    assert np.isnan(lost.anywhere.std_error)
    values = transfer(forgets)[0]
    assert lost.here.mean == pytest.approx(values.mean())
    assert lost.here.std_error == pytest.approx(values.std(ddof=1) / np.sqrt(PROMPTS))
    confused = sequence.confusion(METHODS[0], "image_alignment")
    clear = sequence.confusion(METHODS[1], "image_alignment")
    assert confused is not None and clear is not None
    assert confused.accuracy[0] < clear.accuracy[0]
    # Its cats are chairs: as like the targets of chairs as its chairs are.
    assert confused.alignment[0, 1] == pytest.approx(confused.alignment[1, 1], abs=0.05)


def test_separate_and_pretrained_are_the_first_images_of_single_concepts(profile: Path) -> None:
    sequence = loaded()
    found = sequence.of_singles("custom_diffusion", "text_alignment")
    rows = pd.read_csv(RECORDS / "custom_diffusion/chair/scores.csv")
    rows = rows[(rows["metric"] == "text_alignment") & (rows["sample"] == 0)]
    assert found is not None
    np.testing.assert_allclose(found[1], rows.sort_values("prompt_index")["value"])
    assert sequence.of_singles("textual_inversion", "text_alignment") is None
    protocol = load_params().protocol.name
    change(protocol_path(protocol), sequence={"images_per_prompt": 1, "steps": 9})
    assert loaded().of_singles("custom_diffusion", "text_alignment") is None


def test_concepts_of_sequences_alone_are_in_no_table_of_subjects(profile: Path) -> None:
    before, yaml = loaded(), YAML()
    grid = yaml.load(Path("grid.yaml"))
    grid["sequence_concepts"] = {"chair": grid["concepts"].pop("chair")}
    yaml.dump(grid, Path("grid.yaml"))
    results = load_results()
    assert set(results.scores["subject"]) == {"cat"}
    assert results.subjects("single") == ["cat"]
    (after,) = load_sequences(results)
    for metric in ("text_alignment", "image_alignment"):
        one, other = (s.of_singles("custom_diffusion", metric) for s in (before, after))
        assert one is not None
        np.testing.assert_array_equal(one, other)
    assert after.templates == before.templates


def test_tables_hold_the_measures(profile: Path) -> None:
    sequence, grid = loaded(), load_grid()
    of = alone(grid)
    assert of == dict.fromkeys(METHODS, "custom_diffusion")
    table = measures(sequence, of)
    line = table.rows[[row[:2] for row in table.rows].index((METHODS[0], "image-alignment"))]
    cell = dict(zip([column.key for column in table.columns], line))
    r = sequence.matrix(METHODS[0], "image_alignment")
    assert cell["average"].mean == pytest.approx(averages(r)[-1])
    assert cell["course"] == pytest.approx(averages(r).mean())
    assert cell["transfer"].estimate.mean == pytest.approx(mean_of(transfer(r)))
    assert not cell["transfer"].better
    pretrained = sequence.of_singles("pretrained", "image_alignment")
    now = sequence.of_nouns(METHODS[0], "image_alignment")
    assert pretrained is not None and now is not None
    assert cell["base"].mean == pytest.approx((pretrained - now).mean())
    # The other one draws class nouns as the pretrained model does.
    keeps = table.rows[[row[:2] for row in table.rows].index((METHODS[1], "image-alignment"))]
    assert keeps[-1].mean == pytest.approx(0, abs=1e-6)
    whole = matrix(sequence, "image_alignment", of)
    assert [row[:2] for row in whole.rows[:2]] == [
        (METHODS[0], "1: cat"), (METHODS[0], "2: chair"),
    ]  # fmt: skip
    assert whole.rows[0][3] is None
    assert [row[0] for row in whole.rows[-2:]] == ["separate (custom diffusion)", "pretrained"]
    assert "own" in as_csv(confusions(sequence, "image_alignment")).splitlines()[0]
    for number, cell in enumerate(
        [*((m, task) for m in METHODS for task in grid.tasks("two")), *(
            ("custom_diffusion", concept) for concept in CONCEPTS
        )]
    ):  # fmt: skip
        (RECORDS / cell[0] / cell[1]).mkdir(parents=True, exist_ok=True)
        write_cost(RECORDS / cell[0] / cell[1] / "cost.json", number)
    assert set(sequence_tables([sequence], grid, load_params())) == {
        "sequence_two", "sequence_two_cost", "sequence_two_claims", "sequence_two_text_alignment",
        "sequence_two_image_alignment",
        "sequence_two_image_alignment_confusion",
    }  # fmt: skip
    costs = sequence_tables([sequence], grid, load_params())["sequence_two_cost"]
    found = {row[0]: row[1:] for row in costs.rows}
    # Files: of the chain 1 and 2 kB, of the singles 5 and 6.
    # Tasks take 10.5 s and their number more, and so do the singles that they are made of.
    assert found[METHODS[0]] == pytest.approx(((10.5 + 14.5 + 11.5) / 2, 0.002, 0.001, 1.2))
    assert found[METHODS[1]] == pytest.approx(((12.5 + 14.5 + 13.5 + 15.5) / 2, 0.011, 0.006, 1.2))


def test_a_task_that_failed_is_a_gap_and_no_mean_over_fewer(profile: Path) -> None:
    path = RUNS / METHODS[0] / "two/task-2/samples.tar"
    plain, record = RUNS / METHODS[0] / "two", RECORDS / METHODS[0] / "two"
    for file in (path, plain / "samples.tar", record / "task-2/cost.json"):  # as stages record it
        write_failure(file, Failure("diverged", "the training diverged"))
    score_sequence(METHODS[0], "two", "toyland")
    sequence, of = loaded(), alone(load_grid())
    table = measures(sequence, of)
    cells = dict(zip([column.key for column in table.columns], table.rows[0]))
    assert [key for key in list(cells)[2:] if cells[key] is not None] == []
    assert any("after task 2: diverged" in note for note in table.notes)
    row = matrix(sequence, "text_alignment", of).rows[1]
    assert isinstance(row[2], Failure)
    assert pictures(sequence, load_params()).size[1] > 4 * 128
    write_failure(path.parent.with_name("task-1") / "samples.tar", Failure("diverged", "too"))
    with pytest.raises(FailureError, match="the training diverged|too"):
        score_sequence(METHODS[0], "two", "toyland")


def test_samples_of_another_sequence_are_refused(profile: Path) -> None:
    change(Path("grid.yaml"), sequences={"two": {"concepts": CONCEPTS[::-1], "methods": METHODS}})
    with pytest.raises(BenchError, match="hold no images of chair: the sequence was another"):
        score_sequence(METHODS[0], "two", "toyland")


def test_scores_of_another_order_are_refused(profile: Path) -> None:
    """Targets are known by their number: in another order they are other concepts."""
    change(Path("grid.yaml"), sequences={"two": {"concepts": CONCEPTS[::-1], "methods": METHODS}})
    with pytest.raises(BenchError, match=r"two/scores\.csv: of other concepts after task 1"):
        load_sequences(load_results())


def test_methods_whose_sequence_is_not_there_are_named(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One failed as a whole, one was not run: no table of the sequence has a row of either."""
    failed, lacking = METHODS
    write_failure(RECORDS / failed / "two/scores.csv", Failure("diverged", "cat: no number"))
    (RECORDS / lacking / "two/scores.csv").unlink()
    assert failed_sequences("toyland").keys() == {(failed, "two")}
    print_claims("toyland", write=True)
    write_report("toyland")
    out = capsys.readouterr().out
    assert f"diverged: {failed}/two: cat: no number" in out
    assert f"{lacking}: two" in out
    page = " ".join(Path("reports/index.html").read_text(encoding="utf-8").split())
    assert f"{words(failed)} on two: cat: no number" in page
    assert f"{words(lacking)}: two" in page


def test_scores_of_another_model_are_in_no_table_with_singles(profile: Path) -> None:
    path = RECORDS / METHODS[0] / "two/scores.csv"
    rows = pd.read_csv(path)
    rows.assign(extractor="another " + rows["extractor"]).to_csv(path, index=False)
    with pytest.raises(BenchError, match="another"):
        load_sequences(load_results())


def test_what_is_stale_carries_the_mark_in_every_table(profile: Path) -> None:
    fresh = Freshness({(METHODS[0], "two"): "as x has changed"})
    sequence, of = replace(loaded(), fresh=fresh), alone(load_grid())
    tables = [
        measures(sequence, of),
        matrix(sequence, "image_alignment", of),
        confusions(sequence, "image_alignment"),
    ]
    for table in tables:
        marked = {i for i, _ in table.marks}
        assert marked == {i for i, row in enumerate(table.rows) if row[0] == METHODS[0]} != set()
        assert all(mark == STALE for mark in table.marks.values())
        assert f"{STALE} stale, as x has changed: {METHODS[0]}/two" in table.notes
    # Single concepts stand beside them.
    sequence = replace(loaded(), fresh=Freshness({("pretrained", "cat"): "as x has changed"}))
    table = matrix(sequence, "image_alignment", of)
    assert {table.rows[i][0] for i, _ in table.marks} == {"pretrained"}


def test_a_concept_without_scores_is_a_gap(profile: Path) -> None:
    """As where the last task failed for every method."""
    whole = loaded()
    sequence = replace(whole, scores=whole.scores[whole.scores["subject"] == "cat"])
    assert pictures(sequence, load_params()).size == pictures(whole, load_params()).size
    assert course_chart(sequence).axes
    cells = measures(sequence, alone(load_grid())).rows[0]
    assert cells[2] is None


def test_one_scale_of_colours_for_all_methods(profile: Path) -> None:
    sequence = loaded()
    found = heat_map(sequence, "image_alignment", alone(load_grid()))
    shades = {(name, i): shade for name, row in found.rows for i, shade in enumerate(row)}
    known = [shade.value for shade in shades.values() if shade.value is not None]
    best = max(shades.values(), key=lambda shade: shade.value or -1)
    assert best.level == 6 and best.value == max(known)
    assert shades["custom diffusion merge, after 1: cat", 1].value is None
    assert {shade.level for shade in shades.values() if shade.value == min(known)} == {0}


def test_the_page_has_the_section_with_everything_in_it(profile: Path) -> None:
    print_claims("toyland", write=True)
    write_report("toyland")
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert '<h2 id="sequences">' in page and 'href="#sequences"' in page
    for name in ("figures/sequence_two.svg", "grids/two.jpg", "tables/sequence_two.csv"):
        assert name in page
        assert (Path("reports") / name).stat().st_size > 100
    first = read_tar(RUNS / METHODS[0] / "two/task-1/samples.tar")
    assert len(first) == PROMPTS
    assert "separate (custom diffusion)" in page
