"""What the cells of each method took."""

from __future__ import annotations

import numpy as np

from eval.analyses.cost.file import COST_FILE, Cost, read_cost
from eval.continual import SequenceResults
from eval.results import KINDS, Results
from eval.style import words
from eval.tables.stale import marked
from eval.tables.table import Cell, Column, Table
from pipeline.settings.external import is_external
from pipeline.settings.profile import Grid, Params

BYTES_EACH = 4  # of a number in an adapter's file


def cost_table(params: Params, results: Results) -> Table:
    """What a cell of each method takes to train and to store, the mean over all trainings.

    The time has that of the adapters that a cell is made of: a merge of two trains two before it.
    """
    shown = (
        ("seconds", "training, s", 1, 1.0),
        ("peak_bytes", "peak, GB", 2, 1e-9),
        ("parameters", "trains, millions", 3, 1e-6),
        ("bytes", "stored, MB", 3, 1e-6),
    )
    kinds = results.kinds()
    columns = [Column("method", "method")]
    columns += [
        Column(f"{k}_{key}", title, KINDS[k], d) for k in kinds for key, title, d, _ in shown
    ]
    rows: list[tuple[Cell, ...]] = []
    for method in results.grid.methods:
        row: list[Cell] = [method]
        for kind in kinds:
            subjects = results.subjects(kind)
            costs = [cost for s in subjects for cost in _costs(params, results.grid, method, s)]
            for key, _, _, unit in shown:
                values = [getattr(cost, key) for cost in costs]
                row.append(float(np.mean(values)) * unit if values else None)
        if any(value is not None for value in row[1:]):
            rows.append(tuple(row))
    caption = (
        "Mean over cells of what their training took, with the time of the adapters of single "
        "concepts that they are made of"
    )
    return Table(caption, tuple(columns), tuple(rows))


def _costs(params: Params, grid: Grid, method: str, subject: str) -> list[Cost]:
    """What the trainings of a cell took, as far as that is written down."""
    from pipeline.methods import load_method

    concepts = grid.concepts_of(subject)
    how = None if is_external(method) else load_method(method, grid).of(len(concepts))
    parts = how.needs(concepts).adapters if how else ()
    found = []
    for seed, folder in params.records(method, subject).items():
        made = read_cost(folder / COST_FILE)
        of_parts = [read_cost(params.record(*part, seed) / COST_FILE) for part in parts]
        before = [cost.seconds for cost in of_parts if cost]
        if made and len(before) == len(parts):
            found.append(made.model_copy(update={"seconds": made.seconds + sum(before)}))
    return found


def sequence_costs(sequence: SequenceResults, params: Params) -> Table:
    """What a sequence takes with each method: time to learn, bytes to learn on and to sample.

    Adapters of single concepts that a task is made of count with it, in time and in what is kept.
    """
    from pipeline.methods import load_method

    columns = (
        Column("method", "method"),
        Column("seconds", "a task, s", digits=1),
        Column("kept", "kept to learn on, MB", digits=3),
        Column("kept_more", "of it for the last task, MB", digits=3),
        Column("used", "used to sample, MB", digits=3),
    )
    grid = sequence.results.grid

    def of(method: str, subject: str) -> Cost | None:
        return read_cost(params.record(method, subject) / COST_FILE)

    rows: list[tuple[Cell, ...]] = []
    for method in sequence.methods:
        how = load_method(method, grid).sequence
        assert how is not None  # it was scored
        chain = how.needs(sequence.concepts).previous
        seconds, kept = list[float](), list[float]()
        for task, concepts in grid.tasks(sequence.name).items():
            made, needs = of(method, task), how.needs(concepts)
            parts = {concept: of(other, concept) for other, concept in needs.adapters}
            if made is None or None in parts.values():
                break
            new = parts.get(concepts[-1])
            seconds.append(made.seconds + (new.seconds if new else 0.0))
            # A chain reads its last file again; what is made anew reads the adapters it is made of.
            whole = sum(part.bytes for part in parts.values() if part)
            kept.append(made.bytes if chain else whole)
        else:
            last = list(grid.tasks(sequence.name))[-1]
            used = of(method, last)
            assert used is not None
            rows.append(
                (
                    method,
                    float(np.mean(seconds)),
                    kept[-1] / 1e6 if kept[-1] else None,  # of a method that reads images again
                    (kept[-1] - kept[-2]) / 1e6 if kept[-1] else None,
                    used.parameters * BYTES_EACH / 1e6,
                )
            )
    table = Table(
        f"What {words(sequence.name)} takes: the mean time of a task, with the adapter of a single "
        "concept that it is made of; the bytes of files that a further task would read; and those "
        "of the numbers that the last model consists of",
        columns,
        tuple(rows),
        heading=sequence.results.heading(),
    )
    return marked(sequence.fresh, table, [{(str(row[0]), sequence.name)} for row in rows])


def trained_on(params: Params, grid: Grid) -> list[str]:
    """The machines that trained the cells and how they computed, as far as they wrote it down."""
    records = [params.records(m, s) for m in grid.methods for s in grid.subjects()]
    paths = [folder / COST_FILE for trainings in records for folder in trainings.values()]
    costs = [cost for path in paths if (cost := read_cost(path))]
    return sorted({f"{cost.hardware} ({cost.device}, {cost.arithmetic})" for cost in costs})
