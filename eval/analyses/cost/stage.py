"""What methods cost: time and memory of training, numbers that train, bytes that are stored.

All was written down by the run that trained a cell, in the `cost.json` of its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import folder_of, write_results
from eval.analyses.cost import Parameters
from eval.analyses.cost.file import COST_FILE, read_cost
from eval.results import KINDS, subjects_of
from eval.style import STYLE, method_style, words
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.concepts.concept import styles_of
from pipeline.settings.profile import Grid, load_grid, load_params

MEASURED = ("seconds", "peak_bytes", "parameters", "bytes")


def analyse_cost(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `cells.csv`, `cost.csv` (the mean of each method and kind of subject) and a chart.

    Raises:
        BenchError: the profile does not run it, nothing was trained, or a file is damaged.
    """
    params, grid = load_params(profile), load_grid(profile)
    about = Parameters.of(params)
    rows, styles = [], styles_of(grid)
    kinds = {subject: kind for kind in KINDS for subject in subjects_of(grid, kind, styles)}
    for method in about.methods or grid.methods:
        for subject in grid.subjects():
            if cost := read_cost(params.record(method, subject) / COST_FILE):
                row = {"method": method, "kind": kinds[subject], "subject": subject}
                rows.append(row | cost.model_dump())
    if not rows:
        raise BenchError(f"profile {profile!r} has no costs yet: run `{repro_command(profile)}`")
    cells = pd.DataFrame(rows).astype(dict.fromkeys(MEASURED, "float64"))
    means = cells.groupby(["method", "kind"], sort=False)[list(MEASURED)].mean().reset_index()
    for method, kind, seconds, size in means[["method", "kind", "seconds", "bytes"]].itertuples(
        index=False
    ):
        print(f"cost: {method}, {kind}: {size / 1e6:.3f} MB, {seconds:.1f} s")
    tables = {"cells": cells, "cost": means}
    return write_results(folder_of(params, "cost"), tables, {"cost": chart(means, grid)})


def chart(means: pd.DataFrame, grid: Grid) -> Figure:
    """Megabytes of a concept, and seconds of its training where they are known, logarithmic."""
    shown: Sequence[tuple[str, str, float]] = (
        ("bytes", "← stored, MB", 1e-6),
        ("seconds", "← training, s", 1),
        ("peak_bytes", "← peak memory, GB", 1e-9),
    )
    single = means[means["kind"] == "single"]
    single = single if len(single) else means
    panels = [panel for panel in shown if single[panel[0]].gt(0).any()]
    with mpl.rc_context(STYLE):
        size = (4 * max(len(panels), 1), 0.4 * len(single) + 1)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, max(len(panels), 1), squeeze=False, sharey=True)[0]
        for ax, (column, title, unit) in zip(axes, panels):
            colours = [method_style(grid, method)[0] for method in single["method"]]
            ax.barh(range(len(single)), single[column].fillna(0) * unit, 0.62, color=colours)
            ax.set(xscale="log", xlabel=title)
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(single)), [words(method) for method in single["method"]])
        axes[0].invert_yaxis()
    return figure
