"""What the cells of each method took."""

from __future__ import annotations

import numpy as np

from eval.analyses.cost.file import COST_FILE, read_cost
from eval.results import KINDS, subjects_of
from eval.tables.table import Cell, Column, Table
from pipeline.common.failures import failure_of
from pipeline.settings.profile import Grid, Params


def cost_table(params: Params, grid: Grid) -> Table:
    """What a cell of each method takes to train and to store, the mean over its cells."""
    shown = (
        ("seconds", "training, s", 1, 1.0),
        ("peak_bytes", "peak, GB", 2, 1e-9),
        ("parameters", "trains, millions", 3, 1e-6),
        ("bytes", "stored, MB", 3, 1e-6),
    )
    kinds = [kind for kind in KINDS if subjects_of(grid, kind)]
    columns = [Column("method", "method")]
    columns += [
        Column(f"{k}_{key}", title, KINDS[k], d) for k in kinds for key, title, d, _ in shown
    ]
    rows: list[tuple[Cell, ...]] = []
    for method in grid.methods:
        row: list[Cell] = [method]
        for kind in kinds:
            folders = [params.cell(method, s) for s in subjects_of(grid, kind)]
            costs = [cost for f in folders if (cost := read_cost(f / COST_FILE))]
            adapters = [f / "adapter.safetensors" for f in folders]
            sizes = [p.stat().st_size for p in adapters if p.is_file() and not failure_of(p)]
            for key, _, _, unit in shown:
                values = sizes if key == "bytes" else [getattr(cost, key) for cost in costs]
                row.append(float(np.mean(values)) * unit if values else None)
        if any(value is not None for value in row[1:]):
            rows.append(tuple(row))
    return Table("Mean over cells of what their training took", tuple(columns), tuple(rows))


def trained_on(params: Params, grid: Grid) -> list[str]:
    """The machines that trained the cells and how they computed, as far as they wrote it down."""
    paths = [params.cell(m, s) / COST_FILE for m in grid.methods for s in grid.subjects()]
    costs = [cost for path in paths if (cost := read_cost(path))]
    return sorted({f"{cost.hardware} ({cost.device}, {cost.arithmetic})" for cost in costs})
