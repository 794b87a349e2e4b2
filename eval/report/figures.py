"""Charts of the scores: the trade-off of text and image, and KID.

The bytes of a chart depend on the scores alone: no dates, no random identifiers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from eval.metrics.catalogue import METRICS
from eval.results import KINDS, REFERENCES, Results
from eval.scores.file import ORACLE
from eval.style import GREY, INK, STYLE, method_style, words
from eval.tables.gaps import counted


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Draws `scatter_<kind>` and a chart of each distance, as SVG; returns what was written.

    A chart that would show nothing is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        charts = {f"scatter_{kind}": scatter(results, kind) for kind in results.kinds()}
        charts |= {
            metric: bars(results, metric)
            for metric in results.metrics("single")
            if not METRICS[metric].per_image
        }
        for name, figure in charts.items():
            if figure is not None:
                path = folder / f"{name}.svg"
                save_chart(figure, path)
                written.append(path)
    return written


def save_chart(figure: Figure, path: Path) -> None:
    """Writes a chart as SVG; the same one gives the same bytes."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})


def scatter(results: Results, kind: str) -> Figure | None:
    """Text- against image-alignment (Custom Diffusion, figure 8); up and to the right is better.

    Large marks are means over subjects with one standard error, as ellipse and bars; small ones
    are subjects. The dashed line is the oracle's image-alignment; the other one leads along the
    `frontier` of the methods that learn.
    """
    grid, found = results.grid, results.found
    figure = Figure(figsize=(4.5, 4.6), layout="constrained")
    ax = figure.subplots()
    shown: dict[str, tuple[float, float]] = {}
    over = {method: len(results.scored(method, kind, "image_alignment")) for method in grid.methods}
    most = max(over.values(), default=0)
    for method in grid.methods:
        x = results.mean(method, kind, "text_alignment")
        y = results.mean(method, kind, "image_alignment")
        colour, marker = method_style(grid, method)
        if not x or not y:
            if results.failures(method, kind):
                ax.plot([], [], marker, color=colour, label=_label(results, method, kind))
            continue
        for subject in results.averaged(kind, "image_alignment"):
            text = found.get((method, subject, "text_alignment"))
            image = found.get((method, subject, "image_alignment"))
            if text and image:
                ax.plot(text.mean, image.mean, marker, color=colour, alpha=0.35, ms=4, mew=0)
        label = _label(results, method, kind)
        label += f" ({over[method]} of {most} subjects)" if over[method] < most else ""
        reach = [0.0 if math.isnan(e.std_error) else e.std_error for e in (x, y)]
        if all(reach):
            size = 2 * reach[0], 2 * reach[1]
            ax.add_patch(Ellipse((x.mean, y.mean), *size, color=colour, alpha=0.15, lw=0))
            ax.errorbar(x.mean, y.mean, reach[1], reach[0], color=colour, lw=1, alpha=0.7)
        ax.plot(x.mean, y.mean, marker, color=colour, ms=9, mec="white", mew=1, label=label)
        shown[method] = x.mean, y.mean
    if not shown:
        return None
    oracle = results.mean(ORACLE, kind, "image_alignment")
    if oracle:
        _dashed(ax, oracle.mean)
    best = frontier({m: at for m, at in shown.items() if m not in REFERENCES and over[m] == most})
    ax.plot(*zip(*(shown[method] for method in best)), color=GREY, lw=1, zorder=1)
    ax.margins(0.12)
    ax.set(
        title=KINDS[kind].capitalize(),
        xlabel=f"{METRICS['text_alignment'].title} →",
        ylabel=f"{METRICS['image_alignment'].title} →",
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of those that no other one beats or equals in both ways, from left to right."""
    found: list[str] = []
    for name in sorted(points, key=points.__getitem__, reverse=True):
        if not found or points[name][1] > points[found[-1]][1]:
            found.append(name)
    return found[::-1]


def _label(results: Results, method: str, kind: str) -> str:
    """The method, and for how many subjects of the kind there is nothing to show, and why."""
    return ", ".join([words(method), *counted(results.failures(method, kind))])


def _dashed(ax: Axes, y: float) -> None:
    ax.axhline(y, color=GREY, lw=1, ls="--", zorder=1)
    said = "oracle: target images with each other"
    across = ax.get_yaxis_transform()
    ax.text(0.01, y, said, color=GREY, size=8.5, transform=across, va="bottom")


def bars(results: Results, metric: str) -> Figure | None:
    """A distance of each method: the mean over concepts with its error, and each concept."""
    grid, found = results.grid, results.found
    rows = []
    for method in (ORACLE, *grid.methods):
        mean = results.mean(method, "single", metric)
        if mean:
            concepts = results.averaged("single", metric)
            cells = [found[key].mean for c in concepts if (key := (method, c, metric)) in found]
            rows.append((method, mean, cells))
    if not rows:
        return None
    figure = Figure(figsize=(4.5, 0.42 * len(rows) + 1.1), layout="constrained")
    ax = figure.subplots()
    for i, (method, mean, cells) in enumerate(rows):
        colour, _ = method_style(grid, method)
        ax.barh(i, mean.mean, 0.62, color=colour, alpha=0.85)
        if not math.isnan(mean.std_error):
            ax.errorbar(mean.mean, i, xerr=mean.std_error, color=INK, lw=1.2, capsize=3)
        # Spread a little, so that equal values stay visible.
        at = i + np.linspace(-0.16, 0.16, len(cells)) if len(cells) > 1 else [i]
        ax.plot(cells, at, "o", color="white", mec=INK, mew=0.7, ms=4)
    ax.set_yticks(range(len(rows)), [_label(results, method, "single") for method, _, _ in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color=INK, lw=0.8)
    title = METRICS[metric].title
    said = f"{title} (dots: concepts)"
    better = f"{said} →" if METRICS[metric].higher_is_better else f"← {said}"
    ax.set(xlabel=better, title=f"{title}: distance to real images")
    return figure
