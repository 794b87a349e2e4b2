"""Tables of scores: what they hold, and how they are written for people and programs.

The rules are the protocol's: which metrics there are, and which concepts a metric's mean leaves
out.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.freshness import Freshness, freshness
from eval.papers.reference import printed_means
from eval.scores import ORACLE, failed_cells, load_scores, missing_cells
from eval.statistics import (
    Estimate,
    clustered_mean,
    holm,
    interval,
    mean_over,
    mean_over_strata,
    p_value,
)
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.settings.profile import Grid, load_grid, load_params
from pipeline.settings.protocol import Protocol

SIGNIFICANT = 0.05
# Better and worse: for subjects of the kind, and for the subjects at hand only.
ANYWHERE, HERE = ("▲", "▼"), ("△", "▽")
# What else a number may need said: scores are stale, a mean is over fewer subjects than others.
STALE, FEWER = "†", "‡"


class Metric(NamedTuple):
    """How a metric is called and printed."""

    title: str
    digits: int
    higher_is_better: bool


METRICS: dict[str, Metric] = {
    "text_alignment": Metric("text-alignment", 3, True),
    "image_alignment": Metric("image-alignment", 3, True),
    "dino_image_alignment": Metric("DINO image-alignment", 3, True),
    "kid": Metric("KID × 10³", 2, False),
    "fid": Metric("FID", 2, False),
}
# The groups of subjects; KID and FID need real images of what was asked for, so of one concept.
KINDS: dict[str, str] = {"single": "single concepts", "compositions": "compositions"}
DISTANCES = ("kid", "fid")

Estimates = dict[tuple[str, str, str], Estimate]  # by method, subject and metric


class Differences(NamedTuple):
    """The mean difference of two methods, paired by prompt and subject."""

    anywhere: Estimate  # with the error of the sample of subjects
    here: Estimate  # with the error of the sample of prompts; NaN for values of sets


class Compared(NamedTuple):
    """A number, and whether two methods differ in it.

    The p-values are those of no difference after Holm's correction for the whole table, NaN where
    there is no test.
    """

    estimate: Estimate
    p: float  # for subjects of this kind: would others show the same?
    p_here: float  # for the subjects at hand: would other prompts?
    better: bool  # the direction of the difference

    def mark(self) -> str:
        """ANYWHERE or HERE, of the right direction, if the difference is significant."""
        for p, marks in ((self.p, ANYWHERE), (self.p_here, HERE)):
            if p <= SIGNIFICANT:
                return marks[0 if self.better else 1]
        return ""


Cell = str | Estimate | Compared | Failure | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table; `digits` are those of its numbers."""

    key: str  # its name in CSV
    title: str
    group: str = ""  # what it has in common with its neighbours
    digits: int = 0
    metric: str = ""  # what it measures, if it is one of METRICS
    p_value: bool = False  # small ones are printed as "< 0.001"


@dataclass(frozen=True)
class Table:
    """Rows of texts, numbers, numbers with an error, failures to make them, and gaps."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)  # by row and column
    notes: tuple[str, ...] = ()  # what the marks mean, and what else has to be said
    heading: str = ""  # what all of it is of


@dataclass(frozen=True)
class Results:
    """The scores of a grid, and the protocol that says how they are averaged."""

    scores: pd.DataFrame  # as `eval.scores.load_scores` gives
    grid: Grid
    protocol: Protocol
    profile: str = DEFAULT_PROFILE
    fresh: Freshness = field(default_factory=Freshness)
    # Why cells could not be made, by method and subject.
    failed: Mapping[tuple[str, str], Failure] = field(default_factory=dict)

    def heading(self) -> str:
        """What stands above every table that is printed."""
        return f"Profile {self.profile}, protocol {self.protocol.name}"

    def scored(self, method: str, kind: str, metric: str) -> list[str]:
        """The subjects that the method's mean is over."""
        subjects = self.averaged(kind, metric)
        return [subject for subject in subjects if (method, subject, metric) in self.found]

    @cached_property
    def by_metric(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """The rows of each method, subject and metric."""
        return _by_metric(self.scores)

    @cached_property
    def found(self) -> Estimates:
        """The mean of every metric in every cell; see `estimates`."""
        return estimates(self.scores)

    def kinds(self) -> list[str]:
        """Those of KINDS that the grid has subjects of."""
        return [kind for kind in KINDS if subjects_of(self.grid, kind)]

    def metrics(self, kind: str) -> list[str]:
        """What the protocol measures of a kind of subjects."""
        asked = self.protocol.score.metrics
        return [m for m in METRICS if m in asked and (kind == "single" or m not in DISTANCES)]

    def averaged(self, kind: str, metric: str) -> list[str]:
        """The subjects that a mean is over."""
        return averaged(self.grid, kind, metric, self.protocol)

    def mean(self, method: str, kind: str, metric: str) -> Estimate | None:
        """The mean over subjects; see `over_subjects`."""
        return over_subjects(self.found, method, metric, self.averaged(kind, metric))

    def failures(self, method: str, kind: str) -> list[Failure]:
        """Why subjects of a kind have no scores though the method was run on them."""
        subjects = subjects_of(self.grid, kind)
        return [self.failed[key] for s in subjects if (key := (method, s)) in self.failed]

    def difference(self, first: str, second: str, kind: str, metric: str) -> Differences | None:
        """The mean of first - second over the subjects that they share; None if there are none.

        Both errors are over prompts where the two share one subject only.
        """
        found = {
            subject: _by_prompt(a) - _by_prompt(b)
            for subject in self.averaged(kind, metric)
            if (a := self.by_metric.get((first, subject, metric))) is not None
            and (b := self.by_metric.get((second, subject, metric))) is not None
        }
        if not found:
            return None
        return mean_difference(pd.concat(found).dropna())

    def left_out(self) -> str:
        """Says which concepts of the grid means leave out; empty if none."""
        said = [
            f"{METRICS[metric].title} leaves out {', '.join(map(words, names))}"
            for metric, concepts in self.protocol.score.leave_out.items()
            if (names := [c for c in concepts if c in self.grid.concepts])
        ]
        return "; ".join([*said, f"as protocol {self.protocol.name} asks"]) if said else ""


def mean_difference(pairs: pd.Series[float]) -> Differences:
    """The mean over subjects of paired differences, of which there is one at least.

    Args:
        pairs: first - second, indexed by subject and prompt. Both errors are over prompts where
            there is one subject only.
    """
    subjects, prompts = (pairs.index.get_level_values(i) for i in (0, 1))
    here = mean_over_strata(pairs, prompts, subjects)
    means = pairs.groupby(level=0, sort=False).mean()
    return Differences(here if len(means) == 1 else mean_over(means), here)


def load_results(profile: str = DEFAULT_PROFILE) -> Results:
    """What was scored of a profile so far.

    Raises:
        BenchError: nothing was, a file is damaged, or scores cannot be compared.
    """
    scores, failed = load_scores(profile), failed_cells(profile)
    if scores.empty and not failed:
        raise BenchError(f"profile {profile!r} has no scores yet: run `{repro_command(profile)}`")
    return Results(
        scores,
        load_grid(profile),
        load_params(profile).protocol,
        profile,
        freshness(profile, scores),
        failed,
    )


def words(name: str) -> str:
    """A name in `datasets/` or of a method as words: "custom_diffusion" as "custom diffusion"."""
    return name.replace("_", " ").replace("+", " + ")


def subjects_of(grid: Grid, kind: str) -> list[str]:
    """The grid's concepts or its compositions."""
    return list(grid.concepts if kind == "single" else grid.composed())


def averaged(grid: Grid, kind: str, metric: str, protocol: Protocol) -> list[str]:
    """The subjects that the protocol's mean of a metric is over."""
    left_out = {
        concept
        for name, concepts in protocol.score.leave_out.items()
        if name == metric
        for concept in concepts
    }
    return [subject for subject in subjects_of(grid, kind) if subject not in left_out]


def reference_method(grid: Grid) -> str:
    """The method that all others are compared with: Custom Diffusion, or the grid's first."""
    return "custom_diffusion" if "custom_diffusion" in grid.methods else grid.methods[0]


def estimates(scores: pd.DataFrame) -> Estimates:
    """The mean of every metric in every cell, with its error clustered by prompt.

    Image-alignment with a composition is the mean of that with its concepts (Custom Diffusion,
    Table 1), image by image, so that its error takes their correlation into account.

    Args:
        scores: as `eval.scores.load_scores` gives.
    """
    found: Estimates = {}
    for (method, subject, metric), rows in _by_metric(scores).items():
        if rows["prompt_index"].isna().all():
            value, error, n = rows.iloc[0][["value", "std_error", "n"]]
            estimate = Estimate(float(value), float(error), int(n), int(n))
        else:
            estimate = clustered_mean(rows["value"], rows["prompt_index"].astype(int))
        found[method, subject, metric] = estimate
    return found


def over_subjects(
    found: Estimates, method: str, metric: str, subjects: Sequence[str]
) -> Estimate | None:
    """The mean over those of the subjects that were scored.

    The error is that of the sample of subjects; for a single one it is its own.
    """
    cells = [found[key] for s in subjects if (key := (method, s, metric)) in found]
    if not cells:
        return None
    return cells[0] if len(cells) == 1 else mean_over([cell.mean for cell in cells])


def comparison(
    results: Results,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] = tuple(METRICS),
) -> Table:
    """Methods by metrics, single concepts and compositions side by side (the paper's Table 1).

    Each method is compared with `reference_method` on the same prompts, and the p-values are
    corrected for all comparisons in the table.

    Args:
        results: what was scored.
        methods: the rows; the oracle and all of the grid if not given.
        metrics: the columns, as far as the protocol has them.
    """
    grid, reference = results.grid, reference_method(results.grid)
    shown = {kind: [m for m in results.metrics(kind) if m in metrics] for kind in results.kinds()}
    shown = {kind: names for kind, names in shown.items() if names}
    rows_of = list(methods or (ORACLE, *grid.methods))
    differences = {
        (method, kind, name): found
        for method in rows_of
        if method not in (ORACLE, reference)
        for kind, names in shown.items()
        for name in names
        if (found := results.difference(method, reference, kind, name))
    }
    compared = _corrected(differences)
    columns = [Column("method", "method")]
    for kind, names in shown.items():
        columns += [_metric_column(name, f"{kind}_{name}", KINDS[kind]) for name in names]
        columns.append(Column(f"{kind}_subjects", "subjects", KINDS[kind]))
    rows: list[tuple[Cell, ...]] = []
    marks: dict[tuple[int, int], str] = {}
    fewer: dict[tuple[str, str], list[str]] = {}  # the subjects that a row lacks, by kind
    for method in rows_of:
        row: list[Cell] = [method]
        for kind, names in shown.items():
            failures = results.failures(method, kind)
            gap = failures[0] if failures else None
            for name in names:
                mine = results.scored(method, kind, name)
                others = {s for other in rows_of for s in results.scored(other, kind, name)}
                lacks = [s for s in results.averaged(kind, name) if s in others - {*mine}]
                mark = STALE * any((method, subject) in results.fresh.stale for subject in mine)
                if mine and lacks:
                    mark += FEWER
                    known = fewer.setdefault((method, kind), [])
                    known += [subject for subject in lacks if subject not in known]
                if mark:
                    marks[len(rows), len(row)] = mark
                mean, test = results.mean(method, kind, name), compared.get((method, kind, name))
                row.append(test._replace(estimate=mean) if mean and test else mean or gap)
            subjects = subjects_of(grid, kind)
            scored = {s for m, s, _ in results.found if m == method}.intersection(subjects)
            said = [f"{len(scored)}/{len(subjects)}", *counted(failures)]
            row.append(", ".join(said) if scored or failures else None)
        rows.append(tuple(row))
    caption = "Mean over subjects ± standard error over subjects"
    if compared:
        caption += (
            f"; {ANYWHERE[0]} better or {ANYWHERE[1]} worse than {words(reference)} on the same "
            f"prompts, {' or '.join(HERE)} for these subjects only, {_correction(len(compared))}"
        )
    lacking = [
        f"{words(method)} lacks {', '.join(map(words, subjects))} ({KINDS[kind]})"
        for (method, kind), subjects in fewer.items()
    ]
    over_fewer = f"{FEWER} over fewer subjects than others, so do not compare: "
    return Table(
        "; ".join(filter(None, (caption, results.left_out()))),
        tuple(columns),
        tuple(rows),
        marks,
        (
            *results.fresh.notes(STALE, [*rows_of, reference], grid.subjects()),
            *results.fresh.unverified(),
            *([over_fewer + "; ".join(lacking)] if lacking else []),
        ),
        results.heading(),
    )


def by_subject(results: Results, kind: str) -> Table:
    """Every subject of a kind by itself, methods below each other."""
    metrics = results.metrics(kind)
    columns = [Column("subject", "subject"), Column("method", "method")]
    columns += [_metric_column(name) for name in metrics]
    rows = [
        (
            subject,
            method,
            *(
                results.found.get((method, subject, metric), results.failed.get((method, subject)))
                for metric in metrics
            ),
        )
        for subject in subjects_of(results.grid, kind)
        for method in (ORACLE, *results.grid.methods)
        if (method, subject) in results.failed
        or any((method, subject, metric) in results.found for metric in metrics)
    ]
    caption = f"{KINDS[kind].capitalize()}: mean ± standard error clustered by prompt"
    cells = [[(str(row[1]), str(row[0]))] for row in rows]
    return _marked(results, Table(caption, tuple(columns), tuple(rows)), cells)


def by_prompt(results: Results, subject: str) -> Table:
    """Every prompt of a subject: the mean over samples of what is measured image by image."""
    kind = "single" if subject in results.grid.concepts else "compositions"
    columns = [Column("subject", "subject"), Column("prompt_index", "number")]
    columns += [Column("prompt", "prompt"), Column("method", "method")]
    metrics = [metric for metric in results.metrics(kind) if metric not in DISTANCES]
    columns += [_metric_column(metric) for metric in metrics]
    rows: list[tuple[Cell, ...]] = []
    for method in results.grid.methods:
        means = {
            metric: found.groupby(["prompt_index", "prompt"])["value"].mean()
            for metric in metrics
            if (found := results.by_metric.get((method, subject, metric))) is not None
        }
        for index, prompt in sorted(set().union(*(series.index for series in means.values()))):
            values = [
                float(series.loc[index, prompt]) if (series := means.get(m)) is not None else None
                for m in metrics
            ]
            rows.append((subject, str(index), prompt, method, *values))
    rows.sort(key=lambda row: int(str(row[1])))  # stable: methods stay in the grid's order
    return Table("Prompt by prompt: mean over samples", tuple(columns), tuple(rows))


def tested(results: Results, kind: str) -> dict[tuple[str, str, str], Compared]:
    """Second − first of each pair of methods and metric, on the same prompts of the same subjects.

    The p-values are corrected for all of them; `better` says whether the second is.
    """
    return _corrected(
        {
            (first, second, metric): difference
            for first, second in combinations(results.grid.methods, 2)
            for metric in results.metrics(kind)
            if (difference := results.difference(second, first, kind, metric))
        }
    )


def differences(results: Results, kind: str) -> Table:
    """Each pair of methods: the mean of their differences; see `tested`."""
    metrics, found = results.metrics(kind), tested(results, kind)
    pairs = list(dict.fromkeys((first, second) for first, second, _ in found))
    rows = [
        (f"{second} − {first}", *(found.get((first, second, metric)) for metric in metrics))
        for first, second in pairs
    ]
    subjects = subjects_of(results.grid, kind)
    cells = [[(method, subject) for method in pair for subject in subjects] for pair in pairs]
    columns = (Column("difference", "difference"), *map(_metric_column, metrics))
    caption = (
        f"{KINDS[kind].capitalize()}: paired differences of methods ± standard error; "
        f"{ANYWHERE[0]} the first is better, {ANYWHERE[1]} the second, {' or '.join(HERE)} for "
        f"these subjects only, {_correction(len(found))}"
    )
    return _marked(results, Table(caption, columns, tuple(rows)), cells)


def printed(results: Results) -> Table:
    """What a paper prints for the methods of the grid; see `papers.reference.printed_means`."""
    source, means = printed_means(results.protocol.name)
    keys = [(kind, metric) for kind in KINDS for metric in results.metrics(kind)]
    columns = [Column("method", "method")]
    columns += [_metric_column(metric, f"{kind}_{metric}", KINDS[kind]) for kind, metric in keys]
    values = [
        (method, *(means.get((kind, method, metric)) for kind, metric in keys))
        for method in results.grid.methods
    ]
    rows = tuple(row for row in values if any(value is not None for value in row[1:]))
    return Table(f"As printed: {source.source}", tuple(columns), rows)


def print_table(
    profile: str = DEFAULT_PROFILE,
    metrics: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
    format: str = "text",
) -> None:
    """Prints the comparison of what has been scored so far; runs nothing.

    Args:
        profile: the name of a profile.
        metrics: those to show; all of the protocol if not given.
        methods: the rows to show, `oracle` among them; all if not given.
        subjects: those to average over; all if not given.
        format: one of FORMATS.

    Raises:
        BenchError: a name is unknown, nothing was scored yet, or scores cannot be compared.
    """
    params, grid = load_params(profile), load_grid(profile)
    measured = [metric for metric in METRICS if metric in params.protocol.score.metrics]
    chosen_metrics = _chosen("metric", metrics, measured)
    chosen_methods = _chosen("method", methods, (ORACLE, *grid.methods))
    chosen_subjects = _chosen("subject", subjects, grid.subjects())
    _chosen("format", [format], FORMATS)
    results = load_results(profile)
    grid = grid.model_copy(
        update={
            "concepts": {k: v for k, v in grid.concepts.items() if k in chosen_subjects},
            "compositions": {k: v for k, v in grid.compositions.items() if k in chosen_subjects},
            "triples": {k: v for k, v in grid.triples.items() if k in chosen_subjects},
        }
    )
    table = comparison(replace(results, grid=grid), chosen_methods, chosen_metrics)
    if len(table.columns) == 1:
        raise BenchError(
            f"{' and '.join(METRICS[m].title for m in chosen_metrics)} cannot be measured on "
            f"{', '.join(chosen_subjects)}, only on single concepts: choose one, or another metric"
        )
    show(table, format)
    missing = {
        method: names
        for method, subjects in missing_cells(profile, results.scores).items()
        if method in chosen_methods
        and (names := [subject for subject in subjects if subject in chosen_subjects])
    }
    if format == "text" and missing:
        print(not_run(missing))
    if format == "text":
        failed = {key: why for key, why in results.failed.items() if key[0] in chosen_methods}
        print("".join(f"{line}\n" for line in could_not_be_made(failed)), end="")


def counted(failures: Iterable[Failure]) -> list[str]:
    """How many there are of each kind: "2 diverged"."""
    counts = Counter(failure.kind for failure in failures)
    return [f"{count} {kind}" for kind, count in counts.items()]


def by_failure(
    failed: Mapping[tuple[str, str], Failure],
) -> dict[Failure, list[tuple[str, str]]]:
    """The cells, by method and subject, that failed for the same reason."""
    cells: dict[Failure, list[tuple[str, str]]] = {}
    for cell, failure in failed.items():
        cells.setdefault(failure, []).append(cell)
    return cells


def could_not_be_made(failed: Mapping[tuple[str, str], Failure]) -> list[str]:
    """A line for each reason for which cells failed, and which cells they are."""
    return [
        f"{failure.kind}: {', '.join(f'{m}/{s}' for m, s in cells)}: {failure.message}"
        for failure, cells in by_failure(failed).items()
    ]


def show(table: Table, format: str) -> None:
    """Prints a table in one of FORMATS; the notes of CSV, which has no room for them, on stderr."""
    print(FORMATS[format](table), end="")
    if format == "csv" and table.notes:
        print("\n".join(table.notes), file=sys.stderr)


def not_run(missing: dict[str, list[str]]) -> str:
    """Says which cells have no scores."""
    cells = "; ".join(f"{method}: {', '.join(subjects)}" for method, subjects in missing.items())
    return f"not run: {cells}"


def cell_text(cell: Cell, digits: int) -> str:
    """A cell as text: "0.783 ± 0.012 ▲", "22.27", "diverged", "–" for a gap."""
    if isinstance(cell, (str, Failure)):
        return cell if isinstance(cell, str) else cell.kind
    if cell is None:
        return "–"
    if isinstance(cell, Compared):
        return f"{cell_text(cell.estimate, digits)} {cell.mark()}".rstrip()
    if isinstance(cell, Estimate):
        if math.isnan(cell.std_error):
            return f"{cell.mean:.{digits}f}"
        return f"{cell.mean:.{digits}f} ± {cell.std_error:.{digits}f}"
    return f"{cell:.{digits}f}"


def p_text(p: float, digits: int) -> str:
    """A p-value: "0.012", or "< 0.001" where rounding would leave nothing of it."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if p < least else f"{p:.{digits}f}"


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
    titles = [f"{c.title} ({c.group})" if c.group else c.title for c in table.columns]
    alignment = ["---" if _is_text(table, i) else "--:" for i in range(len(table.columns))]
    rows = [titles, alignment, *_texts(table)]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    heading = [f"{table.heading}:"] if table.heading else []
    said = [f"{text}." for text in (table.caption, *table.notes)]
    return "\n\n".join([*heading, body, *said]) + "\n"


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
                p = (cell.p, cell.p_here) if isinstance(cell, Compared) else (None, None)
                numbers = (estimate.mean, estimate.std_error, *interval(estimate), *p)
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


def _marked(results: Results, table: Table, cells: Sequence[Sequence[tuple[str, str]]]) -> Table:
    """The table with a mark at all numbers of the rows that stale cells are in.

    Args:
        results: what was scored.
        table: is about nothing else.
        cells: method and subject of what each row is about.
    """
    marks = {
        (i, j): STALE
        for i, row in enumerate(table.rows)
        if not results.fresh.stale.keys().isdisjoint(cells[i])
        for j, column in enumerate(table.columns)
        if column.metric and row[j] is not None
    }
    methods, subjects = ({cell[k] for row in cells for cell in row} for k in (0, 1))
    notes = results.fresh.notes(STALE, methods, subjects)
    return replace(table, marks=marks, notes=notes, heading=results.heading())


def _metric_column(metric: str, key: str | None = None, group: str = "") -> Column:
    title, digits, higher = METRICS[metric]
    return Column(key or metric, f"{title} {'↑' if higher else '↓'}", group, digits, metric)


def _correction(count: int) -> str:
    return f"p ≤ {SIGNIFICANT:g} after Holm's correction for {count} comparisons"


def _corrected(
    found: Mapping[tuple[str, str, str], Differences],
) -> dict[tuple[str, str, str], Compared]:
    """Differences with their p-values, corrected for all of them; keys end with the metric."""
    p, p_here = (
        holm(np.array([p_value(two[i]) for two in found.values()])).tolist() for i in (0, 1)
    )
    return {
        key: Compared(
            two.anywhere, *both, better=(two.here.mean > 0) == METRICS[key[2]].higher_is_better
        )
        for (key, two), both in zip(found.items(), zip(p, p_here))
    }


def _by_metric(scores: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """The rows of each method, subject and metric; those of several targets also made one."""
    target = scores["metric"].str.extract(r"^(.*image_alignment)_\d+$", expand=False)
    several = scores[target.notna()].assign(metric=target.dropna())
    cell = [
        "protocol",
        "method",
        "subject",
        "metric",
        "extractor",
        "prompt_index",
        "prompt",
        "sample",
    ]
    means = several.groupby(cell, as_index=False, sort=False)["value"].mean()
    groups = pd.concat([scores, means]).groupby(["method", "subject", "metric"], sort=False)
    return {(str(m), str(s), str(name)): rows for (m, s, name), rows in groups}


def _by_prompt(rows: pd.DataFrame) -> pd.Series[float]:
    """The mean of each prompt; a set's only value has none."""
    return rows.fillna({"prompt_index": -1}).groupby("prompt_index")["value"].mean()


def _chosen(what: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    options = list(known)
    for name in names or ():
        if name not in options:
            raise BenchError(f"{what} {name!r} is unknown: choose from {', '.join(options)}")
    return list(names or options)


def _suffixes(cells: Sequence[Cell]) -> Sequence[str]:
    """What stands behind a column's key in CSV, for each of the numbers of its cells."""
    if any(isinstance(cell, Compared) for cell in cells):
        return "", "_se", "_low", "_high", "_p", "_p_here"
    return ("", "_se", "_low", "_high") if any(isinstance(c, Estimate) for c in cells) else ("",)


def _texts(table: Table) -> list[list[str]]:
    places = range(len(table.columns))
    return [[_text(table, i, j) for j in places] for i in range(len(table.rows))]


def _text(table: Table, i: int, j: int) -> str:
    """A cell as text, with its mark."""
    cell, column = table.rows[i][j], table.columns[j]
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
        "±": r"$\pm$",
        "× 10³": r"$\times 10^3$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        " ▲": "$^{+}$",
        " ▼": "$^{-}$",
        " △": "$^{(+)}$",
        " ▽": "$^{(-)}$",
        "≤": r"$\leq$",
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
