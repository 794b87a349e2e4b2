"""The report's part about sequences: tables, maps in colours, a chart and pictures of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from eval.continual import SequenceResults
from eval.metrics import Values
from eval.metrics.catalogue import METRICS
from eval.metrics.continual import averages, known
from eval.papers.compare import sequence_orders
from eval.papers.sequences import sequence_claims
from eval.report.cost import sequence_costs
from eval.report.grids import Tile, labelled
from eval.report.maps import HeatMap, shades
from eval.scores.pictures import PICTURES, read_pictures
from eval.style import GREY, STYLE, method_style, words
from eval.tables.sequences import confusions, matrix, measures, references
from eval.tables.table import STALE, Table, metric_column
from pipeline.common.failures import failure_of
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import Grid, Params


class Part(NamedTuple):
    """What the page shows of a sequence; charts and pictures are files."""

    name: str
    concepts: list[str]
    measures: Table
    further: list[tuple[str, str, Table]]  # a title, the name of its file, and the table
    maps: list[HeatMap]
    tables: list[str]  # names of its tables' files
    chart: str
    grid: str
    stale: tuple[str, ...]


# Tables beside the measures, by the ends of their names.
FURTHER = {
    "cost": "What it takes",
    "claims": "What is said of it, and what these scores say",
    "order": "In what order others have the methods",
}


def alone(grid: Grid) -> dict[str, str]:
    """By method, that whose adapters of single concepts it could have used instead of its own.

    What its first task's adapter is, or is made of; the method itself if it makes such adapters.
    """
    from pipeline.methods import load_method

    found = {}
    for about in grid.sequences.values():
        for name in about.methods:
            method = load_method(name, grid)
            needs = method.sequence.needs(about.concepts[:1]).adapters if method.sequence else ()
            if needs or method.single:
                found[name] = needs[0][0] if needs else name
    return found


def sequence_tables(
    sequences: Sequence[SequenceResults], grid: Grid, params: Params
) -> dict[str, Table]:
    """All tables, by the names of their files."""
    of = alone(grid)
    tables = {}
    for sequence in sequences:
        name = f"sequence_{sequence.name}"
        tables[name] = measures(sequence, of)
        tables[f"{name}_cost"] = sequence_costs(sequence, params)
        tables[f"{name}_order"] = sequence_orders(sequence)
        tables[f"{name}_claims"] = sequence_claims(sequence, of)
        for metric in sequence.metrics:
            tables[f"{name}_{metric}"] = matrix(sequence, metric, of)
            tables[f"{name}_{metric}_confusion"] = confusions(sequence, metric)
    return {name: table for name, table in tables.items() if table.rows}


def sequence_parts(
    sequences: Sequence[SequenceResults], tables: Mapping[str, Table], grid: Grid
) -> list[Part]:
    """What the page shows of each sequence.

    Args:
        sequences: what was scored.
        tables: of `sequence_tables`, perhaps among others.
        grid: of the profile.
    """
    of = alone(grid)
    return [
        Part(
            sequence.name,
            sequence.concepts,
            tables[f"sequence_{sequence.name}"],
            [
                (title, name, tables[name])
                for end, title in FURTHER.items()
                if (name := f"sequence_{sequence.name}_{end}") in tables
            ],
            [heat_map(sequence, metric, of) for metric in sequence.metrics],
            [name for name in names_of(sequence) if name in tables],
            f"sequence_{sequence.name}.svg",
            f"{sequence.name}.jpg",
            sequence.fresh.notes(STALE, sequence.methods, [sequence.name]),
        )
        for sequence in sequences
    ]  # fmt: skip


def names_of(sequence: SequenceResults) -> list[str]:
    """The names of the files that a sequence's tables have, if they have rows."""
    stem = f"sequence_{sequence.name}"
    of_metrics = [f"{stem}_{m}{end}" for m in sequence.metrics for end in ("", "_confusion")]
    return [stem, *(f"{stem}_{end}" for end in FURTHER), *of_metrics]


def heat_map(sequence: SequenceResults, metric: str, of: Mapping[str, str]) -> HeatMap:
    """A metric after each task in one scale of colours for all methods; above the diagonal none."""
    rows: list[tuple[str, list[float | None]]] = []
    for method in sequence.methods:
        r = sequence.matrix(method, metric)
        for task, concept in enumerate(sequence.concepts):
            after = f"{words(method)}, after {task + 1}: {words(concept)}"
            rows.append((after, [_mean(values) for values in r[task]]))
    for name, whose in references(sequence, metric, of).items():
        if (found := sequence.of_singles(whose, metric)) is not None:
            rows.append((name, [_mean(values) for values in found]))
    flat = shades(
        [value for _, values in rows for value in values], METRICS[metric].higher_is_better
    )
    n = len(sequence.concepts)
    return HeatMap(
        metric_column(metric),
        sequence.concepts,
        [(name, flat[i * n : (i + 1) * n]) for i, (name, _) in enumerate(rows)],
    )


def _mean(values: Values) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None


def course_chart(sequence: SequenceResults) -> Figure:
    """The average over the concepts learned so far after each task, with one standard error.

    Beside them the averages after the last task, one metric against the other if there are two.
    """
    with mpl.rc_context(STYLE):
        metrics = sequence.metrics
        count = len(metrics) + (len(metrics) > 1)
        figure = Figure(figsize=(4.5 * count, 3.8), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, count))
        if len(metrics) > 1:
            _trade_off(sequence, axes[-1])
        tasks = np.arange(1, len(sequence.concepts) + 1)
        for ax, metric in zip(axes, sequence.metrics):
            for method in sequence.methods:
                r = sequence.matrix(method, metric)
                means, errors = averages(r), np.zeros(len(tasks))
                for task in range(len(tasks)):
                    found = sequence.estimate(known(r, task))
                    if found and not math.isnan(found.here.std_error):
                        errors[task] = found.here.std_error
                colour, marker = method_style(sequence.results.grid, method)
                ax.plot(tasks, means, marker=marker, color=colour, label=words(method))
                ax.fill_between(tasks, means - errors, means + errors, color=colour, alpha=0.15)
            ax.set(title=METRICS[metric].title, xlabel="after task", xticks=tasks)
            ax.grid(axis="x", visible=False)
            ax.spines["bottom"].set_color(GREY)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _trade_off(sequence: SequenceResults, ax: Axes) -> None:
    """What each method has after the last task: the first metric against the second."""
    pair = sequence.metrics[:2]
    for method in sequence.methods:
        matrices = [sequence.matrix(method, metric) for metric in pair]
        found = [sequence.estimate(known(r, len(r) - 1)) for r in matrices]
        if any(one is None for one in found):
            continue
        (y, y_error), (x, x_error) = ((f.here.mean, f.here.std_error) for f in found if f)
        colour, marker = method_style(sequence.results.grid, method)
        ax.errorbar(x, y, y_error, x_error, marker=marker, color=colour, elinewidth=1)
    first, second = (METRICS[metric].title for metric in pair)
    ax.set(title="after the last task", xlabel=second, ylabel=first)


def pictures(sequence: SequenceResults, params: Params) -> Image.Image:
    """Each concept's first prompt after each task, method by method: what is kept can be seen."""
    rows: list[tuple[str, list[Tile]]] = []
    concepts = sequence.concepts
    for method in sequence.methods:
        path = params.record(method, sequence.name) / PICTURES
        shown = read_pictures(path).images if path.is_file() and not failure_of(path) else {}
        for number in range(1, len(concepts) + 1):
            tiles: list[Tile] = [
                sequence.failed.get((method, number)) or shown.get((number, place))
                for place in range(1, number + 1)
            ]
            after = f"{words(method)} after {words(concepts[number - 1])}"
            rows.append((after, [*tiles, *[None] * (len(concepts) - number)]))
    # Of a concept whose tasks all failed there are no scores that would say its prompts.
    asked = [load_subject(concept, params.profile).prompts[0] for concept in concepts]
    prompts = [prompt.format(words(concept)) for prompt, concept in zip(asked, concepts)]
    return labelled(prompts, rows)
