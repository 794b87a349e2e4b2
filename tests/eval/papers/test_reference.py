"""Printed numbers: read as they stand, and in agreement with themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest

from eval.papers.reference import (
    FOLDER,
    Source,
    load_source,
    printed_name,
    printed_tables,
    sources,
)
from pipeline.common.errors import BenchError

PAPER = FOLDER / "custom_diffusion.yaml"


def means_of(found: Iterable[Source]) -> dict[tuple[str, str, str], float]:
    """Printed means by kind, method and metric; of several tables the first counts."""
    means: dict[tuple[str, str, str], float] = {}
    for printed in (table for source in found for table in source.tables):
        for row in printed.rows:
            for metric, value in row.means.items() if row.target is None else ():
                means.setdefault((printed.kind, row.method, metric), value)
    return means


def test_all_tables_are_there_under_both_numbers() -> None:
    found = {printed.table: printed.cvpr for _, printed in printed_tables()}
    assert found == {
        "1": "1", "2": "2", "3": "3", "4": None, "5": "4", "6": "5", "7": "6", "8": "7",
    }  # fmt: skip
    assert [printed.kind for _, printed in printed_tables("1")] == ["single", "compositions"]


def test_rows_reproduce_the_printed_means() -> None:
    """By the rule that was found: nine concepts and digits cut off, but for KID.

    Values are cut off too, so that a mean of n of them may be lower than that of the true values
    by a digit, and never higher.
    """
    checked = 0
    for _, printed in printed_tables():
        for row in printed.rows:
            for metric in set(row.values) & set(row.means):
                step, mean = printed.step(metric), printed.mean_of_values(row, metric)
                cut = math.floor(row.means[metric] / step + 0.5) * step
                assert cut == pytest.approx(row.means[metric], abs=1e-9)  # as many digits
                assert abs(mean - row.means[metric]) < step * 1.0001, (printed.table, row.method)
                checked += 1
    assert checked >= 30


def test_without_the_rule_the_means_would_not_be_those_printed() -> None:
    (_, table) = printed_tables("7")[0]
    ours = next(row for row in table.rows if row.method == "custom_diffusion")
    of_ten = sum(ours.values["image_alignment"]) / 10
    assert round(of_ten, 3) == 0.764
    assert table.mean_of_values(ours, "image_alignment") == pytest.approx(0.775, abs=1e-6)
    assert table.mean_of_values(ours, "kid") == pytest.approx(20.96)


def test_table_1_is_made_of_tables_7_and_8() -> None:
    means = means_of(source for source in sources() if source.protocol == "paper-v1")
    (_, singles), (_, pairs) = printed_tables("7")[0], printed_tables("8")[0]
    for row in singles.rows:
        for metric, value in row.means.items():
            assert means["single", row.method, metric] == value
    for method in {row.method for row in pairs.rows}:
        rows = [row for row in pairs.rows if row.method == method and row.target]
        assert [row.target for row in rows] == [1, 2]
        mean = sum(sum(row.values["image_alignment"]) for row in rows) / 10
        known = 0.0013 if method == "dreambooth" else 0.001  # an erratum of the paper
        assert abs(mean - means["compositions", method, "image_alignment"]) < known
    notes = [note for _, printed in printed_tables("1") for note in printed.errata]
    assert any(".695" in note and ".6938" in note for note in notes)


def test_a_mistyped_value_is_refused(tmp_path: Path) -> None:
    text = PAPER.read_text(encoding="utf-8")
    wrong = text.replace("[0.772, 0.791, 0.828,", "[0.772, 0.891, 0.828,", 1)
    assert wrong != text
    path = tmp_path / "wrong.yaml"
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(BenchError, match=r"custom_diffusion: text_alignment: the mean of the val"):
        load_source(path)


def test_a_missing_value_is_refused(tmp_path: Path) -> None:
    text = PAPER.read_text(encoding="utf-8")
    path = tmp_path / "short.yaml"
    path.write_text(text.replace("[0.772, 0.791, 0.828,", "[0.772, 0.828,", 1), encoding="utf-8")
    with pytest.raises(BenchError, match="9 values of 10 subjects"):
        load_source(path)


def test_customconcept101_is_printed_for_its_protocol() -> None:
    (source,) = [source for source in sources() if source.protocol == "customconcept101-v1"]
    means = means_of([source])
    assert source.url.endswith("customconcept101")
    assert means["single", "custom_diffusion", "dino_image_alignment"] == 0.5311
    assert means["compositions", "custom_diffusion_merge", "text_alignment"] == 0.7627


def test_people_are_compared_with_each_rival() -> None:
    rows = [row for _, printed in printed_tables("2") for row in printed.rows]
    assert len(rows) == 9
    assert all(set(row.means) == set(row.errors) for row in rows)
    assert {row.against for row in rows} == {
        "textual_inversion", "dreambooth", "custom_diffusion_all",
    }  # fmt: skip


def test_unknown_tables_are_refused_with_those_there_are() -> None:
    with pytest.raises(BenchError, match="table '9' is unknown: choose one of 1, 2, 3, 4, 5"):
        printed_tables("9")


def test_photographs_go_by_the_papers_names() -> None:
    assert printed_name("moongate_photo+dog_photo") == "moongate+dog"
    assert printed_name("wooden_pot") == "wooden_pot"
