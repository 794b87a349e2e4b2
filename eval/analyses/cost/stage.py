"""What methods cost: time and memory of training, numbers that train, bytes that are stored.

Bytes and numbers are those of the adapters. Time and memory were written down by the run that
trained a cell, in `cost.json` beside the adapter: they differ between equal runs, so that they
must not be part of it. A cell that came from a cache has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import folder_of, made, write_results
from eval.analyses.cost import Parameters
from eval.analyses.cost.file import COST_FILE, read_cost
from eval.style import STYLE, method_style, words
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.models.adapter import load_adapter
from pipeline.settings.profile import Grid, load_grid, load_params

MEASURED = ("seconds", "peak_bytes", "trained", "parameters", "bytes")


def cell_cost(adapter: Path) -> dict[str, float | str | None]:
    """What a cell stores, and what training it took as far as that is known (None if not).

    Returns:
        seconds, peak_bytes and trained (numbers that an optimizer moved), measured by the run;
        parameters (numbers) and bytes of the file; device, arithmetic and hardware.

    Raises:
        BenchError: the adapter or its costs cannot be read.
        FailureError: the adapter could not be made.
    """
    cost = read_cost(adapter.with_name(COST_FILE))
    return {
        "seconds": cost.seconds if cost else None,
        "peak_bytes": cost.peak_bytes if cost else None,
        "trained": cost.parameters if cost else None,
        "parameters": load_adapter(adapter).parameters(),
        "bytes": adapter.stat().st_size,
        "device": cost.device if cost else None,
        "arithmetic": cost.arithmetic if cost else None,
        "hardware": cost.hardware if cost else None,
    }


def analyse_cost(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `cells.csv`, `cost.csv` (the mean of each method and kind of subject) and a chart.

    Raises:
        BenchError: the profile does not run it, or there are no adapters.
    """
    params, grid = load_params(profile), load_grid(profile)
    about = Parameters.of(params)
    paths = {
        (method, subject): path
        for method in about.methods or grid.methods
        for subject in grid.subjects()
        if (path := params.cell(method, subject) / "adapter.safetensors").is_file()
    }
    rows = []
    for (method, subject), cost in made(paths, lambda cell: cell_cost(paths[cell])):
        kind = "single" if subject in grid.concepts else "compositions"
        rows.append({"method": method, "kind": kind, "subject": subject, **cost})
    if not rows:
        raise BenchError(f"profile {profile!r} has no adapters yet: run `{repro_command(profile)}`")
    cells = pd.DataFrame(rows).astype(dict.fromkeys(MEASURED, "float64"))
    means = cells.groupby(["method", "kind"], sort=False)[list(MEASURED)].mean().reset_index()
    for row in means.to_dict("records"):
        took = "" if math.isnan(row["seconds"]) else f", {row['seconds']:.1f} s"
        print(f"cost: {row['method']}, {row['kind']}: {row['bytes'] / 1e6:.3f} MB{took}")
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
