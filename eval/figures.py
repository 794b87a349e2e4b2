"""Charts of the scores: the trade-off of text and image, KID, and every subject by itself.

The bytes of a chart depend on the scores alone: no dates, no random identifiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from eval.scores import ORACLE
from eval.tables import (
    KINDS,
    METRICS,
    Estimates,
    over_subjects,
    subjects_of,
    words,
)
from pipeline.params import Grid

# Okabe and Ito's colours, which people with any colour vision can tell apart; shapes help too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
GREY, INK = "#8a8f98", "#24292f"
DPI = 160
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c5c9d0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "svg.hashsalt": "concept-bench",
    "svg.fonttype": "path",
}


def write_figures(found: Estimates, grid: Grid, folder: Path) -> list[Path]:
    """Draws `scatter` (PNG and SVG), `kid` and `subjects` (PNG); returns what was written.

    A chart that would show nothing is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in (
            ("scatter", scatter(found, grid)),
            ("kid", kid_bars(found, grid)),
            ("subjects", heat_maps(found, grid)),
        ):
            if figure is None:
                continue
            for suffix in (".png", ".svg") if name == "scatter" else (".png",):
                path = folder / f"{name}{suffix}"
                metadata = {"Software": None} if suffix == ".png" else {"Date": None}
                figure.savefig(path, dpi=DPI, metadata=metadata)
                written.append(path)
    return written


def method_style(grid: Grid, method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in all charts."""
    number = grid.methods.index(method)
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def scatter(found: Estimates, grid: Grid) -> Figure | None:
    """Text- against image-alignment (Custom Diffusion, figure 8); up and to the right is better.

    Large marks are means over subjects with one standard error, as ellipse and bars; small ones
    are subjects. The dashed line is the oracle's image-alignment.
    """
    kinds = [k for k in KINDS if any((m, s, "text_alignment") in found
             for m in grid.methods for s in subjects_of(grid, k))]  # fmt: skip
    if not kinds:
        return None
    figure = Figure(figsize=(5.4 * len(kinds), 4.8), layout="constrained")
    panels = []
    for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
        panels.append((ax, _scatter_panel(ax, found, grid, kind)))
    # Only now it is known where everything lies.
    figure.draw_without_rendering()
    for ax, points in panels:
        _label(ax, points)
    return figure


class _Point(NamedTuple):
    label: str
    x: float
    y: float
    x_error: float
    y_error: float


def _scatter_panel(ax: Axes, found: Estimates, grid: Grid, kind: str) -> list[_Point]:
    """Draws everything but the labels of the points, which it returns."""
    subjects = subjects_of(grid, kind)
    points = []
    for method in grid.methods:
        colour, marker = method_style(grid, method)
        for subject in subjects:
            text = found.get((method, subject, "text_alignment"))
            image = found.get((method, subject, "image_alignment"))
            if text and image:
                ax.plot(text.mean, image.mean, marker, color=colour, alpha=0.3, ms=4, mew=0)
        x = over_subjects(found, method, "text_alignment", subjects)
        y = over_subjects(found, method, "image_alignment", subjects)
        if not x or not y:
            continue
        reach = [0.0 if math.isnan(e.std_error) else e.std_error for e in (x, y)]
        if all(reach):
            ax.add_patch(
                Ellipse(
                    (x.mean, y.mean), 2 * reach[0], 2 * reach[1], color=colour, alpha=0.15, lw=0
                )
            )
            ax.errorbar(x.mean, y.mean, reach[1], reach[0], color=colour, lw=1, alpha=0.7)
        ax.plot(x.mean, y.mean, marker, color=colour, ms=9, mec="white", mew=1)
        points.append(_Point(words(method), x.mean, y.mean, *reach))
    oracle = over_subjects(found, ORACLE, "image_alignment", subjects)
    if oracle:
        ax.axhline(oracle.mean, color=GREY, lw=1, ls="--", zorder=1)
        across = ax.get_yaxis_transform()
        said = "oracle: target images with each other"
        ax.text(0.01, oracle.mean, said, color=GREY, size=8.5, transform=across, va="bottom")
    ax.margins(0.16)
    ax.set(title=KINDS[kind].capitalize(), xlabel="text-alignment →", ylabel="image-alignment →")
    return points


def _label(ax: Axes, points: Sequence[_Point]) -> None:
    """Writes each point's label where it hides least of marks, other labels and the frame."""
    frame = ax.get_window_extent()
    taken = [text.get_window_extent() for text in ax.texts]
    for point in points:
        x, y, dx, dy = point[1:]
        corners = ax.transData.transform([(x - dx, y - dy), (x + dx, y + dy)])
        taken.append(Bbox(corners + np.array([[-9, -9], [9, 9]])))
    directions = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    for point in points:
        costs: list[tuple[float, int, tuple[int, int], Bbox]] = []
        for distance in (8, 14, 20, 28, 40):
            for direction in directions:
                shift = distance * direction[0], distance * direction[1]
                trial = _annotate(ax, point, shift)
                box = trial.get_window_extent()
                trial.remove()
                outside = box.width * box.height - _overlap(box, frame)
                cost = sum(_overlap(box, other) for other in taken) + 4 * outside + distance
                costs.append((cost, len(costs), shift, box))
        _, _, shift, box = min(costs)
        _annotate(ax, point, shift)
        taken.append(box)


def _annotate(ax: Axes, point: _Point, shift: tuple[int, int]) -> Annotation:
    dx, dy = shift
    return ax.annotate(
        point.label,
        (point.x, point.y),
        xytext=shift,
        textcoords="offset points",
        size=9,
        ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="bottom" if dy > 0 else "top" if dy < 0 else "center",
        in_layout=False,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _overlap(a: Bbox, b: Bbox) -> float:
    common = Bbox.intersection(a, b)
    return 0.0 if common is None else float(common.width * common.height)


def kid_bars(found: Estimates, grid: Grid) -> Figure | None:
    """KID of each method: the mean over concepts with its standard error, and each concept."""
    rows = []
    for method in (ORACLE, *grid.methods):
        mean = over_subjects(found, method, "kid", list(grid.concepts))
        if mean:
            cells = [found[key].mean for s in grid.concepts if (key := (method, s, "kid")) in found]
            rows.append((method, mean, cells))
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 0.5 * len(rows) + 1.1), layout="constrained")
    ax = figure.subplots()
    for i, (method, mean, cells) in enumerate(rows):
        colour = GREY if method == ORACLE else method_style(grid, method)[0]
        ax.barh(i, mean.mean, 0.62, color=colour, alpha=0.85)
        if not math.isnan(mean.std_error):
            ax.errorbar(mean.mean, i, xerr=mean.std_error, color=INK, lw=1.2, capsize=3)
        # Spread a little, so that equal values stay visible.
        at = i + np.linspace(-0.16, 0.16, len(cells)) if len(cells) > 1 else [i]
        ax.plot(cells, at, "o", color="white", mec=INK, mew=0.7, ms=4)
    ax.set_yticks(range(len(rows)), [words(method) for method, _, _ in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color=INK, lw=0.8)
    ax.set(xlabel="← KID × 10³ (dots: concepts)", title="Distance to real images of the class")
    return figure


def heat_maps(found: Estimates, grid: Grid) -> Figure | None:
    """Each metric of each method and subject; darker is better."""
    panels = []
    for name in METRICS:
        methods = [
            m for m in (ORACLE, *grid.methods) if any(k[0] == m and k[2] == name for k in found)
        ]
        if methods:
            panels.append((name, methods))
    if not panels:
        return None
    subjects = [s for s in grid.subjects() if any(s == key[1] for key in found)]
    heights = [len(methods) for _, methods in panels]
    size = 0.85 * len(subjects) + 2.2, 0.34 * sum(heights) + 0.45 * len(panels) + 0.9
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for ax, (name, methods) in zip(axes, panels):
        title, digits, higher = METRICS[name]
        values = np.array(
            [
                [found[k].mean if (k := (m, s, name)) in found else np.nan for s in subjects]
                for m in methods
            ]
        )
        # The oracle is not in the competition and would stretch the scale; and no cell gets so
        # dark that its number could not be read.
        rated = values[[m != ORACLE for m in methods]] if len(methods) > 1 else values
        low, high = float(np.nanmin(rated)), float(np.nanmax(rated))
        beyond = 0.9 * max(high - low, 1e-9)
        limits = (low, high + beyond) if higher else (low - beyond, high)
        colours = "Blues" if higher else "Blues_r"
        ax.imshow(values.clip(low, high), colours, vmin=limits[0], vmax=limits[1], aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", size=8)
        ax.set_yticks(range(len(methods)), [words(m) for m in methods])
        ax.set_yticks(np.arange(len(methods) + 1) - 0.5, minor=True)
        ax.set_xticks(np.arange(len(subjects) + 1) - 0.5, minor=True)
        ax.grid(visible=False, which="major")
        ax.grid(color="white", lw=2, which="minor")
        ax.set(title=f"{title} ({'higher' if higher else 'lower'} is better)")
        ax.tick_params(length=0, which="both")
        ax.spines[:].set_visible(False)
    axes[-1].set_xticks(range(len(subjects)), [words(s) for s in subjects], rotation=30, ha="right")
    return figure
