"""What the page and README say of the analysis `agreement`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eval.report.readme import _seen
from eval.report.seen import orders, recognised, seen_table

CELLS = """\
method,kind,subject,group,n,facts,thing,copied
pretrained,single,cat,0,60,0.9,0.0,0.5
pretrained,single,dog,1,60,1.0,0.1,0.5
lora,single,cat,0,60,0.8,0.5,0.5
lora,single,dog,1,60,0.6,0.7,0.5
lora_merge,compositions,cat+dog,0,24,0.7,0.25,0.5
lora_merge,compositions,cat+chair,0,24,0.7,0.35,0.5
drawn,single,cat,0,40,1,1,0.6
"drawn, another one",single,cat,0,40,1,0.05,0.6
"""
METHODS = """\
kind,metric,truth,alike,low,high,pairs,methods,subjects
single,text_alignment,facts,1,0.66666667,1,3,3,4
single,image_alignment,thing,0.33333333,0.33333333,1,3,3,4
single,identity_top1,thing,1,0,1,3,3,4
compositions,image_alignment,thing,0.5,,,1,2,1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "analyses" / "agreement"
    path.mkdir(parents=True)
    (path / "cells.csv").write_text(CELLS, encoding="utf-8")
    (path / "methods.csv").write_text(METHODS, encoding="utf-8")
    return path


def test_the_table_has_the_mean_over_subjects(folder: Path) -> None:
    table = seen_table(folder)
    assert table is not None
    assert [column.key for column in table.columns] == [
        "method", "single_thing", "single_facts", "compositions_thing", "compositions_facts",
    ]  # fmt: skip
    rows = {str(row[0]): row[1:] for row in table.rows}
    assert list(rows) == ["pretrained", "lora", "lora_merge", "drawn", "drawn, another one"]
    thing, facts, *pairs = rows["lora"]
    assert (thing.mean, thing.std_error) == pytest.approx((0.6, 0.1))
    assert (facts.mean, facts.clusters) == pytest.approx((0.7, 2))
    assert pairs == [None, None]
    assert rows["lora_merge"][:2] == (None, None)
    # Two compositions of the cat are one independent subject, which has no error.
    assert rows["lora_merge"][2].mean == pytest.approx(0.3)
    assert math.isnan(rows["lora_merge"][2].std_error)


def test_orders_are_counted_in_pairs_and_a_second_ranking_is_left_out(folder: Path) -> None:
    said = orders(folder)
    assert (
        "Of 3 pairs on single concepts text-alignment 3 [2, 3] and image-alignment 1 [1, 3]" in said
    )
    assert "of 1 pair on compositions image-alignment 0.5;" in said
    assert "top-1" not in said


def test_readme_says_it_of_methods_and_of_drawn_scenes(folder: Path, tmp_path: Path) -> None:
    assert recognised(folder)["pretrained"] == pytest.approx(0.05)
    said = _seen(tmp_path)
    assert "pictures: pretrained 5 %, lora 60 %; in 100 % of drawn scenes with it, and 5 %" in said


def test_nothing_is_said_of_what_was_not_run(tmp_path: Path) -> None:
    assert seen_table(tmp_path) is None
    assert orders(tmp_path) == ""
    assert _seen(tmp_path) == ""
