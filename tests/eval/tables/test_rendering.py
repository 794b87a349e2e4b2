"""The same table as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import re

from eval.metrics.catalogue import METRICS
from eval.statistics import Estimate
from eval.tables.rendering import as_csv, as_latex, as_markdown, as_text
from eval.tables.table import Column, Compared, Table
from tests.eval.read import read_csv

EXAMPLE = Table(
    "An example",
    (Column("method", "method"), Column("a_b", "a_b × 10³ ↓", "some", 2), Column("n", "n")),
    (
        ("custom_diffusion", Compared(Estimate(-1.234, 0.056, 20, 4), 0.0123, 0.002, True), "3/4"),
        ("pretrained", None, "0/4"),
        ("dreambooth", Estimate(2.0, float("nan"), 5, 1), "1/4"),
    ),
)


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


def test_lower_kid_is_better() -> None:
    assert not METRICS["kid"].higher_is_better
    one, none = Estimate(1, 0.1, 4, 4), float("nan")
    assert Compared(one, 0.01, 0.01, better=False).mark() == "▼"
    assert Compared(one, 0.06, 0.01, better=False).mark() == "▽"
    assert Compared(one, none, 0.01, better=True).mark() == "△"
    assert Compared(one, 0.06, none, better=True).mark() == ""


def test_small_p_values_are_not_printed_as_zero() -> None:
    columns = (Column("m", "method"), Column("p", "p of no preference", digits=4, p_value=True))
    table = Table("Made up", columns, (("a", 0.00004), ("b", 0.0312)))
    assert "| a | < 0.0001 |" in as_markdown(table)
    assert "| b | 0.0312 |" in as_markdown(table)
    assert r"a & $<$ 0.0001" in as_latex(table)
    assert "a,4e-05" in as_csv(table)


def test_latex_takes_signs_that_end_or_split_a_row() -> None:
    """Unescaped, `%` hides the rest of its row, with the end of it."""
    columns = (Column("a", "95 % & #1"), Column("b", "≥ 2 ≈ 3 → 4"))
    (head, *_) = [line for line in as_latex(Table("t", columns, (("x", "y"),))).splitlines()
                  if "95" in line]  # fmt: skip
    assert head == r"95 \% \& \#1 & $\geq$ 2 $\approx$ 3 $\to$ 4 \\"
