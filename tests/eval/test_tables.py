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

from eval.scores import load_scores
from eval.statistics import Estimate
from eval.tables import (
    Column,
    Table,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    by_subject,
    comparison,
    differences,
    estimates,
    print_table,
    printed,
)
from pipeline.errors import BenchError
from pipeline.params import load_grid

CELLS = Path("runs/toyland/cells")
EXAMPLE = Table(
    "An example",
    (Column("method", "method"), Column("a_b", "a_b × 10³ ↓", "some", 2), Column("n", "n")),
    (
        ("custom_diffusion", Estimate(-1.234, 0.056, 20, 4), "3/4"),
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
    both = ["image_alignment_1", "image_alignment_2"]
    means = prompt_means("custom_diffusion_merge", "cat+chair", both)
    cell = found["custom_diffusion_merge", "cat+chair", "image_alignment"]
    assert cell.mean == pytest.approx(means.mean())
    assert cell.std_error == pytest.approx(stats.sem(means))


def test_comparison_is_a_mean_over_subjects_with_their_error(profile: Path) -> None:
    scores = load_scores("toyland")
    rows = read_csv(as_csv(comparison(estimates(scores), load_grid())))
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
    found = estimates(load_scores("toyland"))
    table = comparison(found, load_grid(), ["pretrained"], ["text_alignment"])
    assert table.rows[0][3] == found["pretrained", "cat+chair", "text_alignment"]


def test_differences_are_paired_by_prompt_and_subject(profile: Path) -> None:
    scores, grid = load_scores("toyland"), load_grid()
    (row,) = read_csv(as_csv(differences(scores, grid, "single")))
    assert row["difference"] == "custom_diffusion − pretrained"
    means = []
    for subject in grid.concepts:
        first = prompt_means("custom_diffusion", subject, ["text_alignment"])
        second = prompt_means("pretrained", subject, ["text_alignment"])
        means.append((first - second).mean())
    assert float(row["text_alignment"]) == pytest.approx(np.mean(means), rel=1e-4)
    assert float(row["text_alignment_se"]) == pytest.approx(stats.sem(means), rel=1e-4)
    # A single composition: the error is over its prompts.
    rows = read_csv(as_csv(differences(scores, grid, "compositions")))
    first = prompt_means("custom_diffusion", "cat+chair", ["text_alignment"])
    second = prompt_means("pretrained", "cat+chair", ["text_alignment"])
    assert float(rows[0]["text_alignment_se"]) == pytest.approx(stats.sem(first - second), rel=1e-4)


def test_tables_by_subject_hold_every_cell(profile: Path) -> None:
    table = by_subject(estimates(load_scores("toyland")), load_grid(), "single")
    assert [row[:2] for row in table.rows] == [
        (subject, method)
        for subject in ("cat", "chair")
        for method in ("oracle", "pretrained", "custom_diffusion")
    ]


def test_formats_say_the_same() -> None:
    lines = as_text(EXAMPLE).splitlines()
    assert lines[1].split() == ["method", "a_b", "×", "10³", "↓", "n"]
    assert lines[3].split() == ["custom_diffusion", "-1.23", "±", "0.06", "3/4"]
    assert lines[5].split() == ["dreambooth", "2.00", "1/4"]
    assert "| custom_diffusion | -1.23 ± 0.06 | 3/4 |" in as_markdown(EXAMPLE).splitlines()
    latex = as_latex(EXAMPLE)
    assert r"custom\_diffusion & $-$1.23 $\pm$ 0.06 & 3/4 \\" in latex
    assert r"a\_b $\times 10^3$ $\downarrow$" in latex
    assert latex.count("{") == latex.count("}")
    assert not re.search(r"(?<!\\)_", latex)
    rows = read_csv(as_csv(EXAMPLE))
    assert rows[0]["a_b"] == "-1.234"
    assert rows[1]["a_b_se"] == rows[2]["a_b_se"] == ""


def test_the_papers_numbers_are_there() -> None:
    rows = {row[0]: row[1:] for row in printed(load_grid()).rows}
    assert rows["custom_diffusion"] == (0.795, 0.775, 20.96, 0.801, 0.706)
    assert rows["custom_diffusion_merge"] == (None, None, None, 0.8, 0.695)


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
