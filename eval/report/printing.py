"""`bench table`: the comparison of what has been scored so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.continual import failed_sequences
from eval.metrics.catalogue import METRICS
from eval.report.missing import missing_cells
from eval.results import load_results
from eval.scores.file import ORACLE
from eval.tables.building import comparison
from eval.tables.gaps import could_not_be_made, not_run
from eval.tables.rendering import FORMATS, show
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.settings.profile import load_grid, load_params


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
        metrics: those to show; the headline ones if not given.
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
            # Of a composition's concepts nobody may have chosen any: their nouns are needed.
            "sequence_concepts": grid.all_concepts(),
        }
    )
    # Without a choice the report's columns: each more would make all tests stricter.
    shown = chosen_metrics if metrics else None
    table = comparison(replace(results, grid=grid), chosen_methods, shown)
    if len(table.columns) == 1:
        raise BenchError(
            f"{' and '.join(METRICS[m].title for m in chosen_metrics)} cannot be measured on "
            f"{', '.join(chosen_subjects)}, only on single concepts: choose one, or another metric"
        )
    show(table, format)
    missing = {
        method: names
        for method, names in missing_cells(profile, chosen_subjects if subjects else None).items()
        if not methods or method in chosen_methods
    }
    if format == "text" and missing:
        print(not_run(missing))
    if format == "text":
        failed = {**results.failed, **failed_sequences(profile)}
        failed = {k: why for k, why in failed.items() if not methods or k[0] in chosen_methods}
        print("".join(f"{line}\n" for line in could_not_be_made(failed)), end="")


def _chosen(what: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    options = list(known)
    for name in names or ():
        if name not in options:
            raise BenchError(f"{what} {name!r} is unknown: choose from {', '.join(options)}")
    return list(names or options)
