"""`bench table`."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.report.printing import print_table
from pipeline.common.errors import BenchError
from tests.eval.read import RECORDS, raw, read_csv


def test_printed_table_can_be_narrowed(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(metrics=["kid"], methods=["pretrained"], subjects=["cat"], format="csv")
    (row,) = read_csv(capsys.readouterr().out)
    cell = raw("pretrained", "cat")
    expected = cell.loc[cell["metric"] == "kid", "value"].iloc[0]
    assert float(row["single_kid"]) == pytest.approx(expected, rel=1e-5)
    assert [key for key in row if "alignment" in key or "compositions" in key] == []


def test_partial_scores_are_shown_and_gaps_named(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (RECORDS / "pretrained" / "chair" / "scores.csv").unlink()
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
    (RECORDS / "pretrained" / "chair" / "scores.csv").unlink()
    print_table(subjects=["cat"])
    assert "not run" not in capsys.readouterr().out
    print_table(subjects=["chair"])
    assert "not run: pretrained: chair\n" in capsys.readouterr().out


def test_a_metric_that_the_subjects_do_not_have_is_told(profile: Path) -> None:
    with pytest.raises(BenchError, match=r"KID × 10³ cannot be measured on cat\+chair"):
        print_table(subjects=["cat+chair"], metrics=["kid"])
