"""Our numbers beside printed ones: `bench compare`.

A printed number has no interval, and can only be met by a run of the same protocol, base model
and extractors. Where one of them differs, the values say nothing about each other, and what is
left to compare is the order of the methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.continual import SequenceResults
from eval.metrics.continual import known
from eval.papers.reference import (
    PrintedRow,
    PrintedTable,
    Source,
    metric_title,
    printed_name,
    printed_tables,
    sequence_sources,
)
from eval.results import KINDS, Estimates, Results, load_results, over_subjects
from eval.statistics import Estimate, rank_correlation
from eval.tables.rendering import FORMATS, show
from eval.tables.stale import marked
from eval.tables.table import STALE, Cell, Column, Table
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.settings.profile import Params, load_params

Z = 1.959963984540054  # of a 95 % interval


class Line(NamedTuple):
    """A printed number and what stands for it here."""

    method: str
    subject: str | None  # None for a mean over subjects
    metric: str
    ours: Estimate | None
    printed: float
    tolerance: float  # NaN where ours has no error within subjects
    obstacle: str  # why the two cannot be compared; empty if they can
    against: str | None = None  # the rival, where people chose between two
    stale: bool = False  # ours is at least partly of cells that `eval.freshness` calls so
    failure: Failure | None = None  # why there is nothing of ours
    target: int | None = None  # the number of the concept, if it is about one of several

    def beside(self) -> bool:
        """Whether the printed value may stand beside ours; where not, only an order can."""
        return self.ours is not None and not self.obstacle

    def verdict(self) -> str:
        """Whether ours is what the paper prints, as far as that can be said."""
        if self.ours is None:
            gap = self.failure.kind if self.failure else "not run"
            return gap if self.against is None else "no responses"
        if self.obstacle:
            return f"not comparable: {self.obstacle}"
        if math.isnan(self.tolerance):
            return "not comparable: no error is known"
        return "within" if abs(self.ours.mean - self.printed) <= self.tolerance else "beyond"


def tolerance(errors: Sequence[float], step: float) -> float:
    """By how much two honest runs of one protocol differ at most, 19 times out of 20.

    The printed mean has an error of its own, which no paper prints: it is taken to be as large as
    ours. Subjects are the same in both, so that only errors within subjects count, and a printed
    number may have been cut off or rounded by its last digit.

    Args:
        errors: the standard errors of the subjects, [subjects], clustered by prompt.
        step: the last printed digit.
    """
    error = math.sqrt(sum(e * e for e in errors)) / len(errors)
    return step + Z * math.sqrt(2) * error


def obstacle(
    results: Results, params: Params, source: Source, printed: PrintedTable, metric: str
) -> str:
    """Why our numbers cannot be compared with those of a table; empty if they can."""
    if metric in source.never_comparable:
        return source.never_comparable[metric]
    sample = params.protocol.sample
    steps = (sample.single if printed.kind == "single" else sample.composition).steps
    measure = source.extractors.get(metric)  # people have none
    extractors = results.scores.loc[results.scores["metric"] == metric, "extractor"].unique()
    differs = {
        "protocol": params.protocol.name != source.protocol,
        "steps": printed.steps not in (None, steps),
        # A checkpoint in a folder is known by the name of its folder.
        "base model": Path(params.base.path).name != Path(source.base).name,
        "extractor": bool(measure) and not all(str(e).startswith(str(measure)) for e in extractors),
    }
    said = [what for what, other in differs.items() if other]
    return f"other {', '.join(said)}" if said else ""


def lines(
    results: Results, params: Params, source: Source, printed: PrintedTable
) -> Iterator[Line]:
    """Every number of a table, and what was scored or answered here.

    Raises:
        BenchError: the results of the human study are damaged.
    """
    preferred = preferences(params)
    for row in printed.rows:
        found = results.found if row.target is None else results.found_by_target.get(row.target, {})
        for metric in dict.fromkeys((*row.values, *row.means)):
            why = obstacle(results, params, source, printed, metric)
            step = printed.step(metric)
            for subject, value in _values(printed, row, metric):
                ours, errors, cells = None, list[float](), dict[str, Estimate]()
                if row.against is not None:
                    ours = preferred.get((printed.kind, row.method, row.against, metric))
                    errors = [ours.std_error] if ours else []
                elif cells := _cells(results, found, printed, row.method, metric, subject):
                    ours = over_subjects(found, results.grid, row.method, metric, list(cells))
                    errors = [cell.std_error for cell in cells.values()]
                allowed = tolerance(errors, step) if errors else float("nan")
                if subject is None and not why and row.against is None:
                    why = _other_subjects(printed, metric, cells)
                stale = any((row.method, cell) in results.fresh.stale for cell in cells)
                chosen = [(row.method, s) for s in _subjects(results, printed, metric, subject)]
                failure = next((f for key in chosen if (f := results.failed.get(key))), None)
                said = (why, row.against, stale, failure, row.target)
                yield Line(row.method, subject, metric, ours, value, allowed, *said)


def _other_subjects(printed: PrintedTable, metric: str, cells: Iterable[str]) -> str:
    """Says how many of a mean's subjects were scored; empty if all were, and no others."""
    names = {printed_name(subject) for subject in cells}
    left_out = printed.leave_out.get(metric, [])
    wanted = {name for name in printed.subjects if name not in left_out}
    same = names == wanted if wanted else len(names) == printed.count
    common = len(names & wanted) if wanted else len(names)
    return "" if same else f"other subjects ({common} of {len(wanted) or printed.count})"


def preferences(params: Params) -> dict[tuple[str, str, str, str], Estimate]:
    """What people preferred, by kind of subjects, method, rival and metric; empty without answers.

    Raises:
        BenchError: the file of `bench study analyse` is damaged.
    """
    path = params.reports() / "study" / "preferences.csv"
    if not path.is_file():
        return {}
    kinds = {title: kind for kind, title in KINDS.items()}
    found = {}
    try:
        for row in pd.read_csv(path).to_dict("records"):
            key = kinds[row["subjects"]], row["method"], row["against"], f"prefers_by_{row['kind']}"
            clusters = int(min(row["raters"], row["questions"]))
            found[key] = Estimate(
                row["preferred"], row["preferred_se"], int(row["answers"]), clusters
            )
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(
            f"{path}: not what `bench study analyse` writes ({error}): run it again"
        ) from error
    return found


def _values(
    printed: PrintedTable, row: PrintedRow, metric: str
) -> Iterator[tuple[str | None, float]]:
    yield from zip(printed.subjects, row.values.get(metric, []))
    if metric in row.means:
        yield None, row.means[metric]


def _subjects(
    results: Results, printed: PrintedTable, metric: str, subject: str | None
) -> list[str]:
    """Our subjects that a printed number is about; for a mean, by the table's rule."""
    left_out = printed.leave_out.get(metric, [])
    return [
        ours
        for ours in results.subjects(printed.kind)
        if (name := printed_name(ours)) == subject or (subject is None and name not in left_out)
    ]


def _cells(
    results: Results,
    found: Estimates,
    printed: PrintedTable,
    method: str,
    metric: str,
    subject: str | None,
) -> dict[str, Estimate]:
    """Our estimates that a printed number is about, by subject."""
    chosen = _subjects(results, printed, metric, subject)
    return {s: found[key] for s in chosen if (key := (method, s, metric)) in found}


def compared(
    source: Source, printed: PrintedTable, found: Sequence[Line], errata: Sequence[str] = ()
) -> Table:
    """A row for each line; the caption says what is known to be wrong with the table."""
    several = any(line.subject is not None for line in found)
    rivals = any(line.against is not None for line in found)
    columns = [Column("method", "method")]
    columns += [Column("against", "against")] * rivals
    columns += [Column("subject", "subject")] * several
    columns += [
        Column("metric", "metric"),
        Column("ours", "ours", digits=3, by_row=True),
        Column("printed", "printed", digits=3, by_row=True),
        Column("difference", "difference", digits=3, by_row=True),
        Column("tolerance", "tolerance", digits=3, by_row=True),
        Column("verdict", "verdict"),
    ]
    rows: list[tuple[Cell, ...]] = []
    for line in found:
        row: list[Cell] = [line.method]
        row += [line.against] * rivals
        row += [line.subject or "mean"] * several
        rows.append(
            (
                *row,
                metric_title(line.metric, line.target),
                line.ours,
                line.printed,
                line.ours.mean - line.printed if line.ours and not line.obstacle else None,
                None if line.obstacle or math.isnan(line.tolerance) else line.tolerance,
                line.verdict(),
            )
        )
    notes = [f"{source.source}, {printed.name()}", *errata, *printed.errata]
    ours = next(i for i, column in enumerate(columns) if column.key == "ours")
    return Table(
        " ".join(note.rstrip(".") + "." for note in notes)[:-1],
        tuple(columns),
        tuple(rows),
        {(i, ours): STALE for i, line in enumerate(found) if line.stale},
        digits=tuple(printed.digits_of(line.metric) for line in found),
    )


def comparable(results: Results, params: Params) -> list[tuple[Source, PrintedTable, list[Line]]]:
    """The printed numbers that may stand beside ours, by table; tables without any are left out."""
    found = [
        (
            source,
            printed,
            [line for line in lines(results, params, source, printed) if line.beside()],
        )
        for source, printed in printed_tables()
    ]
    return [(source, printed, some) for source, printed, some in found if some]


class Agreement(NamedTuple):
    """How far ours orders methods as a paper does."""

    methods: int
    rho: float  # Spearman's rank correlation, the mean over subjects; NaN with fewer than three
    same: int  # pairs of methods that differ in the same direction
    pairs: int  # pairs that differ at all in the paper


def agreement(found: Sequence[Line]) -> Agreement:
    """Whether the order of the methods is the paper's, subject by subject.

    Args:
        found: lines of one metric.
    """
    rhos, same, pairs, methods = [], 0, 0, 0
    subjects = dict.fromkeys(line.subject for line in found)
    # A printed mean (of no subject) counts where a paper prints nothing else.
    for subject in [subject for subject in subjects if subject is not None] or subjects:
        both = [
            (line.ours.mean, line.printed)
            for line in found
            if line.subject == subject and line.ours is not None
        ]
        methods = max(methods, len(both))
        if len(both) > 2:
            ours, theirs = zip(*both)
            rhos.append(rank_correlation(ours, theirs, np.arange(len(both))).rho)
        for (a, x), (b, y) in combinations(both, 2):
            pairs += x != y
            same += (a - b) * (x - y) > 0
    known = [rho for rho in rhos if not math.isnan(rho)]
    return Agreement(methods, float(np.mean(known)) if known else float("nan"), same, pairs)


def orders(compared_lines: Sequence[tuple[PrintedTable, Sequence[Line]]]) -> Table:
    """A row for each table and metric of which two methods at least were run."""
    rows: list[tuple[Cell, ...]] = []
    marks: dict[tuple[int, int], str] = {}
    for printed, found in compared_lines:
        ours = [line for line in found if line.against is None]
        for metric, target in dict.fromkeys((line.metric, line.target) for line in ours):
            of_metric = [line for line in ours if (line.metric, line.target) == (metric, target)]
            agreed = agreement(of_metric)
            if agreed.pairs:
                if any(line.stale for line in of_metric):
                    marks |= {(len(rows), j): STALE for j in (3, 4)}
                rows.append(
                    (
                        printed.name(),
                        metric_title(metric, target),
                        str(agreed.methods),
                        None if math.isnan(agreed.rho) else agreed.rho,
                        f"{agreed.same}/{agreed.pairs}",
                    )
                )
    columns = (
        Column("table", "order of methods in"),
        Column("metric", "metric"),
        Column("methods", "methods"),
        Column("rank_correlation", "rank correlation", digits=2),
        Column("same_direction", "pairs in the same direction"),
    )
    caption = "Where values cannot be compared, the order of the methods can: 1 is the paper's"
    return Table(caption, columns, tuple(rows), marks)


def sequence_orders(sequence: SequenceResults) -> Table:
    """How far methods are in a paper's order after the last task, by their means over concepts."""
    found = []
    for source in sequence_sources():
        for printed in source.tables:
            lines = []
            for row in printed.rows:
                for metric in row.values if row.method in sequence.methods else ():
                    r = sequence.matrix(row.method, metric)
                    ours = sequence.estimate(known(r, len(r) - 1))
                    value = row.means.get(metric, printed.mean_of_values(row, metric))
                    why = source.never_comparable[metric]
                    mean = ours.here if ours else None
                    lines.append(Line(row.method, None, metric, mean, value, math.nan, why))
            found.append((printed, lines))
    said = ", ".join(source.source for source in sequence_sources())
    table = replace(
        orders(found),
        caption="Whether methods are in the order of the means that others print of other concepts "
        f"({said}), as values cannot be compared: 1 is the paper's",
        heading=sequence.results.heading(),
    )
    about = {(method, sequence.name) for method in sequence.methods}
    return marked(sequence.fresh, table, [about] * len(table.rows))


class Comparison(NamedTuple):
    """Numbers beside printed ones, and what is left where they cannot be compared."""

    tables: list[Table]
    order: Table
    notes: tuple[str, ...] = ()  # on marks of all tables


def compare(results: Results, params: Params, table: str | None = None) -> Comparison:
    """What was scored beside what is printed, and how far the order of methods agrees.

    Args:
        results: what was scored.
        params: of the profile.
        table: a number of arXiv's version, whose rows are all shown; by default all tables, of
            them the rows of methods that were run.

    Raises:
        BenchError: there is no table of that number.
    """
    shown = []
    for source, printed in printed_tables(table):
        found = list(lines(results, params, source, printed))
        if table is None:
            found = [line for line in found if line.ours is not None]
        if found:
            shown.append((source, printed, found))
    said: set[str] = set()
    tables = []
    for source, printed, found in shown:
        tables.append(compared(source, printed, found, () if source.url in said else source.errata))
        said.add(source.url)
    order = orders([(printed, found) for _, printed, found in shown])
    stale = {line.method for _, _, found in shown for line in found if line.stale}
    notes = results.fresh.notes(STALE, stale, results.grid.subjects())
    return Comparison(tables, order, (*notes, *results.fresh.unverified()))


def print_comparison(
    profile: str = DEFAULT_PROFILE, table: str | None = None, format: str = "text"
) -> None:
    """Prints what was scored beside what is printed; runs nothing.

    Args:
        profile: the name of a profile.
        table: see `compare`.
        format: one of `eval.tables.rendering.FORMATS`.

    Raises:
        BenchError: a name is unknown, or nothing was scored yet.
    """
    if format not in FORMATS:
        raise BenchError(f"format {format!r} is unknown: choose from {', '.join(FORMATS)}")
    printed_tables(table)  # a wrong number is told before anything is read
    results = load_results(profile)
    tables, order, notes = compare(results, load_params(profile), table)
    if not tables:
        raise BenchError(f"no paper prints numbers of what was run of profile {profile!r}")
    shown = [*tables, order] if order.rows else tables
    shown[0] = replace(shown[0], heading=results.heading())
    shown[-1] = replace(shown[-1], notes=notes)
    for i, found in enumerate(shown):
        print("\n" * (i > 0), end="")
        show(found, format)
