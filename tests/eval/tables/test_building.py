"""Tables against means and errors computed by hand from the files of scores."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.results import Results, load_results
from eval.statistics import Estimate, holm
from eval.tables.building import by_prompt, by_subject, comparison, differences
from eval.tables.rendering import as_csv, as_latex, as_markdown, as_text
from eval.tables.table import Compared
from pipeline.settings.profile import GridConcept, load_grid
from pipeline.settings.protocol import Protocol, load_protocol
from tests.eval.read import RECORDS, prompt_means, raw, read_csv


def test_comparison_is_a_mean_over_subjects_with_their_error(profile: Path) -> None:
    rows = read_csv(as_csv(comparison(load_results())))
    assert [row["method"] for row in rows] == [
        "oracle", "pretrained", "custom_diffusion", "custom_diffusion_merge",
    ]  # fmt: skip
    by_hand = []
    for subject in ("cat", "chair"):
        cell = raw("custom_diffusion", subject)
        by_hand.append(cell.loc[cell["metric"] == "text_alignment", "value"].mean())
    row = rows[2]
    assert float(row["single_text_alignment"]) == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert float(row["single_text_alignment_se"]) == pytest.approx(stats.sem(by_hand), rel=1e-5)
    low, high = stats.t.interval(0.95, 1, np.mean(by_hand), stats.sem(by_hand))
    assert float(row["single_text_alignment_low"]) == pytest.approx(low, rel=1e-4)
    assert float(row["single_text_alignment_high"]) == pytest.approx(high, rel=1e-4)
    assert row["single_subjects"] == "2/2"
    assert rows[3]["single_kid"] == rows[3]["single_subjects"] == ""
    assert rows[0]["compositions_text_alignment"] == ""


def test_one_subject_keeps_its_own_error(profile: Path) -> None:
    results = load_results()
    table = comparison(results, ["custom_diffusion"], ["text_alignment"])
    assert table.rows[0][3] == results.found["custom_diffusion", "cat+chair", "text_alignment"]


def test_differences_are_paired_by_prompt_and_subject(profile: Path) -> None:
    results, grid = load_results(), load_grid()
    (row,) = read_csv(as_csv(differences(results, "single")))
    assert row["difference"] == "custom_diffusion − pretrained"
    means = []
    for subject in grid.concepts:
        first = prompt_means("custom_diffusion", subject, ["text_alignment"])
        second = prompt_means("pretrained", subject, ["text_alignment"])
        means.append((first - second).mean())
    assert float(row["text_alignment"]) == pytest.approx(np.mean(means), rel=1e-4)
    # Two subjects, and a single composition, say nothing of others.
    assert (row["text_alignment_se"], row["text_alignment_p"]) == ("", "")
    table = differences(results, "compositions")
    assert read_csv(as_csv(table))[0]["text_alignment_p"] == ""
    assert table.notes == (
        "Compositions: no test for other subjects, which takes 3 that share no concept; here is 1",
    )
    # For these the error is over prompts.
    first = prompt_means("custom_diffusion", "cat+chair", ["text_alignment"])
    second = prompt_means("pretrained", "cat+chair", ["text_alignment"])
    found = results.difference("custom_diffusion", "pretrained", "compositions", "text_alignment")
    assert found is not None
    assert found.here.mean == pytest.approx((first - second).mean(), rel=1e-4)
    assert found.here.std_error == pytest.approx(stats.sem(first - second), rel=1e-4)


def test_tables_by_subject_hold_every_cell(profile: Path) -> None:
    table = by_subject(load_results(), "single")
    assert [row[:2] for row in table.rows] == [
        (subject, method)
        for subject in ("cat", "chair")
        for method in ("oracle", "pretrained", "custom_diffusion")
    ]


def test_images_made_elsewhere_are_marked_and_credited(profile: Path) -> None:
    before = load_results()
    assert "external" not in as_text(comparison(before)) + as_text(by_subject(before, "single"))
    about = profile / "datasets/external/pretrained/method.yaml"
    about.parent.mkdir(parents=True)
    about.write_text("source: a large model\nlicence: CC0-1.0\nurl: https://example.org\n")
    for subject in ("cat", "chair"):  # as without images of captions
        rows = raw("pretrained", subject)
        rows = rows[rows["metric"] != "kid"].assign(rows=len)
        rows.to_csv(RECORDS / "pretrained" / subject / "scores.csv", index=False)
    results = load_results()
    note = "pretrained (external): images by a large model, licence CC0-1.0, https://example.org"
    no_kid = "; no KID, as there are no images of captions"
    table = comparison(results)
    assert table.notes[-1] == note + no_kid
    for text in (as_text(table), as_markdown(table), as_latex(table)):
        assert text.count("pretrained (external)") == 2  # its row, and the note
    names = [row["method"] for row in read_csv(as_csv(table))]
    assert names == ["oracle", "pretrained", "custom_diffusion", "custom_diffusion_merge"]
    single = by_subject(results, "single")
    assert single.notes[-1] == note + no_kid
    assert as_markdown(single).count("| pretrained (external) |") == 2
    # What is measured stays as it is.
    first, second = (comparison(r).rows[1][1] for r in (before, results))
    assert isinstance(first, Compared) and isinstance(second, Compared)
    assert first.estimate == second.estimate


def with_protocol(**score: object) -> Results:
    """The profile's results under a protocol whose scoring was changed."""
    results = load_results()
    content = results.protocol.model_dump()
    content["score"] |= score
    return Results(results.scores, results.grid, Protocol.model_validate(content))


def test_means_leave_out_what_the_protocol_says(profile: Path) -> None:
    results = with_protocol(leave_out={"text_alignment": ["chair"]})
    table = comparison(results)
    row = next(row for row in table.rows if row[0] == "custom_diffusion")
    assert row[1] == results.found["custom_diffusion", "cat", "text_alignment"]
    both = [results.found["custom_diffusion", s, "image_alignment"].mean for s in ("cat", "chair")]
    assert row[2].mean == pytest.approx(np.mean(both))
    assert "text-alignment leaves out chair; as protocol toyland-v2 asks" in table.caption
    # Differences are over the same subjects; compositions are not concerned.
    found = results.difference("custom_diffusion", "pretrained", "single", "text_alignment")
    assert found is not None
    assert found.here.clusters == 3  # prompts of the cat
    assert results.averaged("compositions", "text_alignment") == ["cat+chair"]


def test_columns_are_those_of_the_protocol(profile: Path) -> None:
    results = with_protocol(metrics=["kid", "text_alignment"])
    keys = [column.key for column in comparison(results).columns]
    assert keys == [
        "method", "single_text_alignment", "single_kid", "single_subjects",
        "compositions_text_alignment", "compositions_subjects",
    ]  # fmt: skip


def made_up(effect: float, seed: int = 3) -> Results:
    """Six concepts with four prompts, on which one method is better by `effect` than another."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "protocol": "toyland-v2", "method": method, "subject": subject, "seed": pd.NA,
            "metric": metric, "target": pd.NA, "prompt_index": prompt,
            "prompt": f"prompt {prompt} of {subject[::-1]}",
            "sample": 0, "value": hard + effect * (method == "custom_diffusion")
            * (-1 if metric == "kid" else 1) + rng.normal(0, 0.01), "extractor": "e",
            "std_error": 0.1, "n": 8, "clusters": 8, "scale": 1.0, "text_rule": "class_noun",
        }
        for subject in ("cat", "dog", "chair", "barn", "table", "flower")
        for metric in ("text_alignment", "image_alignment")
        for prompt in range(4)
        for hard in [rng.normal(0, 1)]
        for method in ("pretrained", "custom_diffusion", "lora")
    ]  # fmt: skip
    grid = load_grid().model_copy(
        update={
            "concepts": {row["subject"]: GridConcept(class_noun=row["subject"]) for row in rows},
            "compositions": {},
            "rows": ["pretrained", "custom_diffusion", "lora"],
        }
    )
    return Results(pd.DataFrame(rows), grid, load_protocol("toyland-v2"))


def test_marks_use_p_values_corrected_for_the_whole_table(project: Path) -> None:
    results = made_up(0.05)
    rows = {row[0]: row for row in comparison(results).rows}
    raw = []
    for method in ("pretrained", "lora"):
        for metric in ("text_alignment", "image_alignment"):
            of = results.scores[results.scores["metric"] == metric]
            means = of.groupby(["method", "subject"])["value"].mean()
            raw.append(stats.ttest_rel(means[method], means["custom_diffusion"]).pvalue)
    shown = [rows[m][i].p for m in ("pretrained", "lora") for i in (1, 2)]
    assert shown == pytest.approx(holm(raw))
    assert max(shown) < 0.05
    assert [rows[m][i].mark() for m in ("pretrained", "lora") for i in (1, 2)] == ["▼"] * 4
    assert isinstance(rows["custom_diffusion"][1], Estimate)
    assert "after Holm's correction for 4 comparisons" in comparison(results).caption
    # For just these subjects: prompts are what could have been others.
    of = results.scores.pivot_table("value", ["metric", "subject", "prompt_index"], "method")
    pairs = (of["pretrained"] - of["custom_diffusion"])["text_alignment"]
    by_subject = pairs.groupby("subject")
    error = np.sqrt((by_subject.sem() ** 2).sum()) / 6
    alone = comparison(results, ["pretrained"], ["text_alignment"]).rows[0][1]
    assert alone.p_here == pytest.approx(2 * stats.t.sf(abs(pairs.mean()) / error, 6 * 3))
    # The same difference alone needs less of a correction.
    assert alone.p == pytest.approx(raw[0])
    text = as_text(comparison(results))
    assert len(re.findall(r"± 0\.\d+ ▼", text)) == 4


def test_where_nothing_differs_few_tables_have_a_mark(project: Path) -> None:
    marked = 0
    for seed in range(30):
        cells = [cell for row in comparison(made_up(0.0, seed)).rows for cell in row]
        marked += any(isinstance(cell, Compared) and cell.mark() for cell in cells)
    assert marked <= 8  # 5 % of 30 tables for each of two kinds of marks; more: one in 300


def test_prompts_are_means_over_samples(profile: Path) -> None:
    rows = read_csv(as_csv(by_prompt(load_results(), "cat+chair")))
    assert [row["prompt_index"] for row in rows] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    both = ["image_alignment"]
    means = prompt_means("pretrained", "cat+chair", both)
    shown = [float(row["image_alignment"]) for row in rows if row["method"] == "pretrained"]
    assert shown == pytest.approx(means)
