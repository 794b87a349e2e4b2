"""Tables as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import NamedTuple

from eval.statistics import Estimate, interval
from eval.tables.table import Cell, Compared, Table
from pipeline.common.failures import Failure


def cell_text(cell: Cell, digits: int) -> str:
    """A cell as text: "0.783 ± 0.012 ▲", "22.27", "diverged", "–" for a gap."""
    if isinstance(cell, (str, Failure)):
        return cell if isinstance(cell, str) else cell.kind
    if cell is None:
        return "–"
    if isinstance(cell, Compared):
        return f"{cell_text(cell.estimate, digits)} {cell.mark()}{cell.again()}".rstrip()
    if isinstance(cell, Estimate):
        if math.isnan(cell.std_error):
            return f"{cell.mean:.{digits}f}"
        return f"{cell.mean:.{digits}f} ± {cell.std_error:.{digits}f}"
    return f"{cell:.{digits}f}"


def p_text(p: float, digits: int) -> str:
    """A p-value: "0.012", or "< 0.001" where rounding would leave nothing of it."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if p < least else f"{p:.{digits}f}"


class Texts(NamedTuple):
    """A table as people read it, cell by cell."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def texts_of(table: Table) -> Texts:
    """The texts that Markdown and a page are made of; titles of columns name their group."""
    titles = [f"{c.title} ({c.group})" if c.group else c.title for c in table.columns]
    return Texts(f"{table.caption}.", titles, _texts(table))


def as_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    grid = [[column.title for column in table.columns], *_texts(table)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    lines = [table.heading] if table.heading else []
    groups = _groups(table)
    if any(name for name, _ in groups):
        parts, at = [], 0
        for name, count in groups:
            width = sum(widths[at : at + count]) + 2 * (count - 1)
            parts.append(f" {name} ".center(width, "─") if name else " " * width)
            at += count
        lines.append("  ".join(parts))
    left = [_is_text(table, i) for i in range(len(widths))]
    lines.append(_aligned(grid[0], widths, left))
    width = len(lines[-1])
    lines.append("─" * width)
    lines += [_aligned(row, widths, left) for row in grid[1:]]
    lines += [fill(text, max(width, 80)) for text in (table.caption, *table.notes)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def as_markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    caption, titles, texts = texts_of(table)
    alignment = ["---" if _is_text(table, i) else "--:" for i in range(len(table.columns))]
    rows = [titles, alignment, *texts]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    heading = [f"{table.heading}:"] if table.heading else []
    notes = [f"{note}." for note in table.notes]
    return "\n\n".join([*heading, body, caption, *notes]) + "\n"


def as_csv(table: Table) -> str:
    """Plain numbers: value, standard error, 95 % interval and p-values in columns of their own.

    A failure stands in the column of the value.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    suffixes = [_suffixes([row[i] for row in table.rows]) for i in range(len(table.columns))]
    writer.writerow(
        [column.key + suffix for column, parts in zip(table.columns, suffixes) for suffix in parts]
    )
    for row in table.rows:
        line: list[str] = []
        for cell, parts in zip(row, suffixes):
            if isinstance(cell, (Estimate, Compared)):
                estimate = cell.estimate if isinstance(cell, Compared) else cell
                p = cell[1:3] if isinstance(cell, Compared) else (None, None)
                again = cell.p_trainings if isinstance(cell, Compared) else None
                numbers = (estimate.mean, estimate.std_error, *interval(estimate), *p, again)
                line += map(_plain, numbers[: len(parts)])
            else:
                text = cell_text(cell, 0) if isinstance(cell, (str, Failure)) else _plain(cell)
                line += [text, *[""] * (len(parts) - 1)]
        writer.writerow(line)
    return out.getvalue()


def as_latex(table: Table) -> str:
    """A tabular that needs the package booktabs."""
    count = len(table.columns)
    kinds = "".join("l" if _is_text(table, i) else "r" for i in range(count))
    said = (table.heading, table.caption, *table.notes)
    lines = [*(f"% {text}" for text in said if text), rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    groups = _groups(table)
    if any(name for name, _ in groups):
        parts, rules, at = [], [], 1
        for name, width in groups:
            parts.append(rf"\multicolumn{{{width}}}{{c}}{{{name}}}" if name else "")
            if name:
                rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        lines += [" & ".join(parts) + r" \\", "".join(rules)]
    titles = [_latex(column.title) for column in table.columns]
    lines += [" & ".join(titles) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(text) for text in row) + r" \\" for row in _texts(table)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}


def show(table: Table, format: str) -> None:
    """Prints a table in one of FORMATS; the notes of CSV, which has no room for them, on stderr."""
    print(FORMATS[format](table), end="")
    if format == "csv" and table.notes:
        print("\n".join(table.notes), file=sys.stderr)


def _suffixes(cells: Sequence[Cell]) -> Sequence[str]:
    """What stands behind a column's key in CSV, for each of the numbers of its cells."""
    compared = [cell for cell in cells if isinstance(cell, Compared)]
    if compared:
        repeated = any(cell.p_trainings is not None for cell in compared)
        return "", "_se", "_low", "_high", "_p", "_p_here", *(["_p_trainings"] if repeated else [])
    return ("", "_se", "_low", "_high") if any(isinstance(c, Estimate) for c in cells) else ("",)


def _texts(table: Table) -> list[list[str]]:
    places = range(len(table.columns))
    return [[_text(table, i, j) for j in places] for i in range(len(table.rows))]


def _text(table: Table, i: int, j: int) -> str:
    """A cell as text, with its mark."""
    cell, column = table.rows[i][j], table.column(i, j)
    if column.p_value and isinstance(cell, float):
        text = p_text(cell, column.digits)
    else:
        text = cell_text(cell, column.digits)
    return f"{text} {table.marks.get((i, j), '')}".rstrip()


def _is_text(table: Table, i: int) -> bool:
    cells = (row[i] for row in table.rows)
    return i == 0 or any(isinstance(cell, str) and cell[:1].isalpha() for cell in cells)


def _groups(table: Table) -> list[tuple[str, int]]:
    """The groups of columns from left to right, and of how many each is."""
    groups: list[tuple[str, int]] = []
    for column in table.columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


def _aligned(row: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    return "  ".join(
        text.ljust(width) if to_left else text.rjust(width)
        for text, width, to_left in zip(row, widths, left)
    )


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.10g}"


def _latex(text: str) -> str:
    symbols = {
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "±": r"$\pm$",
        "× 10³": r"$\times 10^3$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        " ▲": "$^{+}$",
        " ▼": "$^{-}$",
        " △": "$^{(+)}$",
        " ▽": "$^{(-)}$",
        "°": r"$^{\circ}$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "≈": r"$\approx$",
        "→": r"$\to$",
        "< ": r"$<$ ",
        " †": r"$^{\dagger}$",
        " ‡": r"$^{\ddagger}$",
        "_": r"\_",
        "–": "--",
        "−": "$-$",
    }
    for symbol, command in symbols.items():
        text = text.replace(symbol, command)
    return f"$-${text[1:]}" if text.startswith("-") and text[1:2].isdigit() else text
