"""The tables of a report, built of results."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from eval.metrics.catalogue import METRICS
from eval.results import (
    KINDS,
    LEAST_SUBJECTS,
    Differences,
    Results,
    reference_method,
)
from eval.scores.file import ORACLE
from eval.statistics import Estimate, holm, p_value
from eval.style import words
from eval.tables.gaps import counted
from eval.tables.stale import marked
from eval.tables.table import (
    AGAIN,
    ANYWHERE,
    EXTERNAL,
    FEWER,
    HERE,
    SIGNIFICANT,
    STALE,
    Cell,
    Column,
    Compared,
    Table,
    metric_column,
)

PLACES = ("for any subject", "for these")  # what a first and a second p-value are about


def comparison(
    results: Results,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Table:
    """Methods by metrics, single concepts and compositions side by side (the paper's Table 1).

    Each method is compared with `reference_method` on the same prompts, and the p-values are
    corrected for all comparisons in the table.

    Args:
        results: what was scored.
        methods: the rows; the oracle and all of the grid if not given.
        metrics: the columns, as far as the protocol has them; the headline ones if not given.
    """
    grid, reference = results.grid, reference_method(results.grid)
    shown = {
        kind: results.headline(kind)
        if metrics is None
        else [m for m in results.metrics(kind) if m in metrics]
        for kind in results.kinds()
    }
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
    compared = _corrected(differences, results.trainings)
    columns = [Column("method", "method")]
    for kind, names in shown.items():
        columns += [metric_column(name, f"{kind}_{name}", KINDS[kind]) for name in names]
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
                lost = [s for s in results.averaged(kind, name) if (method, s) in results.failed]
                mark = STALE * any((method, s) in results.fresh.stale for s in (*mine, *lost))
                if mine and lacks:
                    mark += FEWER
                    known = fewer.setdefault((method, kind), [])
                    known += [subject for subject in lacks if subject not in known]
                if mark:
                    marks[len(rows), len(row)] = mark
                mean, test = results.mean(method, kind, name), compared.get((method, kind, name))
                row.append(test._replace(estimate=mean) if mean and test else mean or gap)
            subjects = results.subjects(kind)
            scored = {s for m, s, _ in results.found if m == method}.intersection(subjects)
            said = [f"{len(scored)}/{len(subjects)}", *counted(failures)]
            row.append(", ".join(said) if scored or failures else None)
        rows.append(tuple(row))
    caption = "Mean over subjects ± standard error over subjects, those that share a concept as one"
    if any(
        len(results.scored(method, kind, name)) == 1
        for method in rows_of
        for kind, names in shown.items()
        for name in names
    ):
        caption += "; of a single subject ± over its prompts"
    if compared:
        caption += (
            f"; {ANYWHERE[0]} better or {ANYWHERE[1]} worse than {words(reference)} on the same "
            f"prompts, {' or '.join(HERE)} for these subjects only{_repeated(results)}, "
            f"{_correction(compared.values())}"
        )
    lacking = [
        f"{words(method)} lacks {', '.join(map(words, subjects))} ({KINDS[kind]})"
        for (method, kind), subjects in fewer.items()
    ]
    over_fewer = f"{FEWER} over fewer subjects than others, so do not compare: "
    table = Table(
        "; ".join(filter(None, (caption, results.left_out()))),
        tuple(columns),
        tuple(rows),
        marks,
        (
            *results.fresh.notes(STALE, [*rows_of, reference], grid.subjects()),
            *results.fresh.unverified(),
            *results.refused(grid.subjects(), {name for names in shown.values() for name in names}),
            *(line for kind, names in shown.items() for line in results.by_chance([kind], names)),
            *_untested([(kind, found.anywhere) for (_, kind, _), found in differences.items()]),
            *([over_fewer + "; ".join(lacking)] if lacking else []),
        ),
        results.heading(),
    )
    return _credited(results, table, 0)


def by_subject(results: Results, kind: str, subjects: Sequence[str] | None = None) -> Table:
    """Every subject of a kind by itself, all or these, methods below each other."""
    metrics = results.metrics(kind)
    subjects = results.subjects(kind) if subjects is None else subjects
    columns = [Column("subject", "subject"), Column("method", "method")]
    columns += [metric_column(name) for name in metrics]
    rows = [
        (
            subject,
            method,
            *(
                results.found.get((method, subject, metric), results.failed.get((method, subject)))
                for metric in metrics
            ),
        )
        for subject in subjects
        for method in (ORACLE, *results.grid.methods)
        if (method, subject) in results.failed
        or any((method, subject, metric) in results.found for metric in metrics)
    ]
    caption = f"{KINDS[kind].capitalize()}: mean ± standard error clustered by prompt"
    cells = [[(str(row[1]), str(row[0]))] for row in rows]
    table = Table(caption, tuple(columns), tuple(rows), heading=results.heading())
    table = marked(results.fresh, table, cells)
    refused = results.refused(subjects, metrics)
    chance = results.by_chance([kind], metrics, subjects)
    return _credited(results, replace(table, notes=(*table.notes, *refused, *chance)), 1)


def by_prompt(results: Results, subject: str) -> Table:
    """Every prompt of a subject: the mean over samples of what is measured image by image."""
    kind = results.kind_of(subject)
    columns = [Column("subject", "subject"), Column("prompt_index", "number")]
    columns += [Column("prompt", "prompt"), Column("method", "method")]
    metrics = [metric for metric in results.metrics(kind) if METRICS[metric].per_image]
    columns += [metric_column(metric) for metric in metrics]
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
            for metric in results.headline(kind)
            if (difference := results.difference(second, first, kind, metric))
        },
        results.trainings,
    )


def differences(results: Results, kind: str) -> Table:
    """Each pair of methods: the mean of their differences; see `tested`."""
    metrics, found = results.headline(kind), tested(results, kind)
    pairs = list(dict.fromkeys((first, second) for first, second, _ in found))
    rows = [
        (f"{second} − {first}", *(found.get((first, second, metric)) for metric in metrics))
        for first, second in pairs
    ]
    subjects = results.subjects(kind)
    cells = [[(method, subject) for method in pair for subject in subjects] for pair in pairs]
    columns = (Column("difference", "difference"), *map(metric_column, metrics))
    caption = (
        f"{KINDS[kind].capitalize()}: paired differences of methods ± standard error; "
        f"{ANYWHERE[0]} the first is better, {ANYWHERE[1]} the second, {' or '.join(HERE)} for "
        f"these subjects only{_repeated(results)}, {_correction(found.values())}"
    )
    table = Table(caption, columns, tuple(rows), heading=results.heading())
    table = marked(results.fresh, table, cells)
    untested = _untested([(kind, each.estimate) for each in found.values()])
    return replace(table, notes=(*table.notes, *untested))


def _untested(anywhere: Iterable[tuple[str, Estimate]]) -> list[str]:
    """Says of which kinds of subjects no two methods share enough for a test over subjects.

    Args:
        anywhere: differences, with their kind.
    """
    most: dict[str, int] = {}
    for kind, found in anywhere:
        most[kind] = max(most.get(kind, 0), found.clusters)
    return [
        f"{KINDS[kind].capitalize()}: no test for other subjects, which takes {LEAST_SUBJECTS} "
        f"that share no concept; here {'is 1' if count == 1 else f'are {count}'}"
        for kind, count in most.items()
        if count < LEAST_SUBJECTS
    ]


def _credited(results: Results, table: Table, column: int) -> Table:
    """The table with a mark at methods whose images were made elsewhere, and whose they are."""
    names = [str(row[column]) for row in table.rows]
    marks = {(i, column): EXTERNAL for i, name in enumerate(names) if name in results.external}
    notes = []
    for method in dict.fromkeys(names[i] for i, _ in marks):
        note = f"{words(method)} {EXTERNAL}: images by {results.external[method].credit()}"
        scored = {m for m in METRICS if results.scored(method, "single", m)}
        asked = results.metrics("single") if scored else []
        sets = [m for m in asked if not METRICS[m].per_image]
        if lacking := [m.upper() for m in sets if m not in scored]:
            note += f"; no {' or '.join(lacking)}, as there are no images of captions"
        notes.append(note)
    return replace(table, marks={**table.marks, **marks}, notes=(*table.notes, *notes))


def _correction(tests: Collection[Compared]) -> str:
    """Says how p-values were corrected: those for any and for these subjects apart."""
    counts = [sum(not math.isnan(p) for p in ps) for ps in zip(*((t.p, t.p_here) for t in tests))]
    said = " and ".join(
        f"{n} comparison{'s' * (n != 1)} {of}" for n, of in zip(counts, PLACES) if n
    )
    return f"p ≤ {SIGNIFICANT:g} after Holm's correction" + (f" for {said}" if said else "")


def _repeated(results: Results) -> str:
    """Says what AGAIN means, if trainings are repeated."""
    if results.trainings < 2:
        return ""
    return f", {AGAIN} for other trainings on these subjects, too"


def _corrected(
    found: Mapping[tuple[str, str, str], Differences], trainings: int
) -> dict[tuple[str, str, str], Compared]:
    """Differences with their p-values, corrected for all of them; keys end with the metric.

    What is the same by construction, such as what a method that changes no weight makes of class
    nouns and what the base model does, is no test and makes no other one stricter. With more than
    one of `trainings` there is a p-value for other ones, too.
    """
    p, p_here, p_trainings = (
        holm([math.nan if _same(each[i]) else p_value(each[i]) for each in found.values()]).tolist()
        for i in range(3)
    )
    return {
        key: Compared(
            each.anywhere,
            p[i],
            p_here[i],
            (each.here.mean > 0) == METRICS[key[2]].higher_is_better,
            p_trainings[i] if trainings > 1 else None,
        )
        for i, (key, each) in enumerate(found.items())
    }


def _same(found: Estimate) -> bool:
    """Whether two methods have the very same values."""
    return found.mean == 0 and found.std_error == 0
