"""Marks at numbers that are not of the present parameters, protocol, code or data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from eval.freshness import Cell, Freshness
from eval.tables.table import STALE, Table


def marked(fresh: Freshness, table: Table, cells: Sequence[Collection[Cell]]) -> Table:
    """The table with a mark at all numbers of the rows that stale cells are in, and why.

    Args:
        fresh: which cells are stale.
        table: is about nothing else.
        cells: method and subject of what each row is about.
    """
    marks = {
        (i, j): STALE
        for i, row in enumerate(table.rows)
        if not fresh.stale.keys().isdisjoint(cells[i])
        for j, value in enumerate(row)
        if value is not None and not isinstance(value, str)
    }
    methods, subjects = ({cell[k] for row in cells for cell in row} for k in (0, 1))
    notes = fresh.notes(STALE, methods, subjects)
    return replace(table, marks={**table.marks, **marks}, notes=(*notes, *table.notes))
