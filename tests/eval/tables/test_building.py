"""Tables against means and errors computed by hand from the files of scores."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.metrics.catalogue import METRICS
from eval.results import Results, estimates, load_results
from eval.scores.reading import load_scores
from eval.statistics import Estimate, holm
from eval.tables.building import by_prompt, by_subject, comparison, differences
from eval.tables.printing import print_table
from eval.tables.rendering import as_csv, as_latex, as_markdown, as_text
from eval.tables.table import Column, Compared, Table
from pipeline.common.errors import BenchError
from pipeline.settings.profile import load_grid
from pipeline.settings.protocol import Protocol, load_protocol

CELLS = Path("runs/toyland/cells")
EXAMPLE = Table(
    "An example",
    (Column("method", "method"), Column("a_b", "a_b × 10³ ↓", "some", 2), Column("n", "n")),
    (
        ("custom_diffusion", Compared(Estimate(-1.234, 0.056, 20, 4), 0.0123, 0.002, True), "3/4"),
        ("pretrained", None, "0/4"),
        ("dreambooth", Estimate(2.0, float("nan"), 5, 1), "1/4"),
    ),
)


def raw(method: str, subject: str) -> pd.DataFrame:
    return pd.read_csv(CELLS / method / subject / "scores.csv")


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def prompt_means(method: str, subject: str, metrics: list[str]) -> np.ndarray:
    rows = raw(method, subject)
    rows = rows[rows["metric"].isin(metrics)]
    return rows.groupby("prompt_index")["value"].mean().to_numpy()


def test_a_cells_error_is_that_of_its_prompts_means(profile: Path) -> None:
    found = estimates(load_scores("toyland"))
    means = prompt_means("custom_diffusion", "cat", ["image_alignment"])
    cell = found["custom_diffusion", "cat", "image_alignment"]
    assert cell.mean == pytest.approx(means.mean())
    assert cell.std_error == pytest.approx(stats.sem(means))
    assert (cell.n, cell.clusters) == (6, 3)


def test_compositions_get_the_mean_over_their_concepts(profile: Path) -> None:
    found = estimates(load_scores("toyland"))
    both = ["image_alignment"]
    means = prompt_means("custom_diffusion_merge", "cat+chair", both)
    cell = found["custom_diffusion_merge", "cat+chair", "image_alignment"]
    assert cell.mean == pytest.approx(means.mean())
    assert cell.std_error == pytest.approx(stats.sem(means))


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
    assert float(row["text_alignment_se"]) == pytest.approx(stats.sem(means), rel=1e-4)
    # A single composition: the error is over its prompts.
    rows = read_csv(as_csv(differences(results, "compositions")))
    first = prompt_means("custom_diffusion", "cat+chair", ["text_alignment"])
    second = prompt_means("pretrained", "cat+chair", ["text_alignment"])
    assert float(rows[0]["text_alignment_se"]) == pytest.approx(stats.sem(first - second), rel=1e-4)


def test_tables_by_subject_hold_every_cell(profile: Path) -> None:
    table = by_subject(load_results(), "single")
    assert [row[:2] for row in table.rows] == [
        (subject, method)
        for subject in ("cat", "chair")
        for method in ("oracle", "pretrained", "custom_diffusion")
    ]


def test_formats_say_the_same() -> None:
    lines = as_text(EXAMPLE).splitlines()
    assert lines[1].split() == ["method", "a_b", "×", "10³", "↓", "n"]
    assert lines[3].split() == ["custom_diffusion", "-1.23", "±", "0.06", "▲", "3/4"]
    assert lines[5].split() == ["dreambooth", "2.00", "1/4"]
    assert "| custom_diffusion | -1.23 ± 0.06 ▲ | 3/4 |" in as_markdown(EXAMPLE).splitlines()
    latex = as_latex(EXAMPLE)
    assert r"custom\_diffusion & $-$1.23 $\pm$ 0.06$^{+}$ & 3/4 \\" in latex
    assert r"a\_b $\times 10^3$ $\downarrow$" in latex
    assert latex.count("{") == latex.count("}")
    assert not re.search(r"(?<!\\)_", latex)
    rows = read_csv(as_csv(EXAMPLE))
    assert rows[0]["a_b"] == "-1.234"
    assert (rows[0]["a_b_p"], rows[0]["a_b_p_here"]) == ("0.0123", "0.002")
    assert rows[1]["a_b_se"] == rows[2]["a_b_se"] == rows[2]["a_b_p"] == ""


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
    (difference,) = differences(results, "single").rows
    assert difference[1].estimate.clusters == 3  # prompts of the cat
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
            "protocol": "toyland-v2", "method": method, "subject": subject,
            "metric": metric, "target": pd.NA, "prompt_index": prompt, "prompt": f"prompt {prompt}",
            "sample": 0, "value": hard + effect * (method == "custom_diffusion")
            * (-1 if metric == "kid" else 1) + rng.normal(0, 0.01), "extractor": "e",
            "std_error": 0.1, "n": 8, "scale": 1.0, "text_rule": "class_noun",
        }
        for subject in ("cat", "dog", "chair", "barn", "table", "flower")
        for metric in ("text_alignment", "image_alignment")
        for prompt in range(4)
        for hard in [rng.normal(0, 1)]
        for method in ("pretrained", "custom_diffusion", "lora")
    ]  # fmt: skip
    grid = load_grid().model_copy(
        update={
            "concepts": {row["subject"]: None for row in rows},
            "compositions": {},
            "methods": ["pretrained", "custom_diffusion", "lora"],
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


def test_lower_kid_is_better() -> None:
    assert not METRICS["kid"].higher_is_better
    one, none = Estimate(1, 0.1, 4, 4), float("nan")
    assert Compared(one, 0.01, 0.01, better=False).mark() == "▼"
    assert Compared(one, 0.06, 0.01, better=False).mark() == "▽"
    assert Compared(one, none, 0.01, better=True).mark() == "△"
    assert Compared(one, 0.06, none, better=True).mark() == ""


def test_prompts_are_means_over_samples(profile: Path) -> None:
    rows = read_csv(as_csv(by_prompt(load_results(), "cat+chair")))
    assert [row["prompt_index"] for row in rows] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    both = ["image_alignment"]
    means = prompt_means("pretrained", "cat+chair", both)
    shown = [float(row["image_alignment"]) for row in rows if row["method"] == "pretrained"]
    assert shown == pytest.approx(means)


def test_printed_table_can_be_narrowed(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(metrics=["kid"], methods=["pretrained"], subjects=["cat"], format="csv")
    (row,) = read_csv(capsys.readouterr().out)
    cell = raw("pretrained", "cat")
    expected = cell.loc[cell["metric"] == "kid", "value"].item()
    assert float(row["single_kid"]) == pytest.approx(expected, rel=1e-5)
    assert [key for key in row if "alignment" in key or "compositions" in key] == []


def test_partial_scores_are_shown_and_gaps_named(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (CELLS / "pretrained" / "chair" / "scores.csv").unlink()
    print_table()
    out = capsys.readouterr().out
    assert "not run: pretrained: chair" in out
    assert "1/2" in out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"metrics": ["fid"]}, "metric 'fid'"),
        ({"methods": ["lora"]}, "method 'lora'"),
        ({"subjects": ["unicorn"]}, "subject 'unicorn'"),
        ({"format": "xml"}, "format 'xml'"),
    ],
)
def test_unknown_names_are_refused_with_those_there_are(
    profile: Path, arguments: dict, name: str
) -> None:
    with pytest.raises(BenchError, match=f"{name} is unknown: choose from"):
        print_table(**arguments)


def test_no_scores_are_told(project: Path) -> None:
    with pytest.raises(BenchError, match="no scores yet"):
        print_table()


def test_cells_that_were_not_chosen_are_not_said_to_be_missing(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (CELLS / "pretrained" / "chair" / "scores.csv").unlink()
    print_table(subjects=["cat"])
    assert "not run" not in capsys.readouterr().out
    print_table(subjects=["chair"])
    assert "not run: pretrained: chair\n" in capsys.readouterr().out


def test_a_metric_that_the_subjects_do_not_have_is_told(profile: Path) -> None:
    with pytest.raises(BenchError, match=r"KID × 10³ cannot be measured on cat\+chair"):
        print_table(subjects=["cat+chair"], metrics=["kid"])


def test_small_p_values_are_not_printed_as_zero() -> None:
    columns = (Column("m", "method"), Column("p", "p of no preference", digits=4, p_value=True))
    table = Table("Made up", columns, (("a", 0.00004), ("b", 0.0312)))
    assert "| a | < 0.0001 |" in as_markdown(table)
    assert "| b | 0.0312 |" in as_markdown(table)
    assert r"a & $<$ 0.0001" in as_latex(table)
    assert "a,4e-05" in as_csv(table)
