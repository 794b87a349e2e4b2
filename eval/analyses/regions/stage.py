"""Several concepts, each in its place: what boxes do, for any method of the grid.

The same noise is sampled without boxes (`none`: the prompt alone), with boxes in attention
(`mix_of_show`) and with a prediction for each box (`cidm`). Where all concepts can be drawn, so are
the layouts: as they should be, which no method can surpass, and wrong in known ways, which says
whether a measure is to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageDraw

from eval.analyses.common import (
    Judge,
    adapter_of,
    folder_of,
    made,
    picture_table,
    write_results,
)
from eval.analyses.regions import Parameters
from eval.analyses.regions.looking import MEASURES, SHARES, WHOLE, Looker
from eval.analyses.regions.truth import DRAWN, can_draw, drawn, validated
from eval.statistics import clustered_mean, interval
from eval.style import COLOURS, GREY, STYLE, words
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Subject, load_subject
from pipeline.methods import How, load_method
from pipeline.models.base import Base, load_base
from pipeline.regions.layouts import Layout, check_cells, load_layouts
from pipeline.regions.sessions import Mode, Place, coarsest, regional
from pipeline.sample.requests import Request
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import Params, load_grid, load_params

MODES: tuple[Mode, ...] = ("none", "mix_of_show", "cidm")
KEYS = ["subject", "layout", "image", "region", "measure"]  # of the same picture in each mode
SHOWN = 2  # pictures of each layout on a sheet
LARGER = 4  # pixels there for one
Pictures = dict[str, list[Image.Image]]  # of a sheet, by row


def analyse_regions(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `values.csv` (each picture and box), `means.csv`, `truth.csv`, a chart and sheets.

    Raises:
        BenchError: the profile does not run it, a layout is wrong or a box too small, a method
            makes no adapters of a subject, or files are missing.
        FailureError: no adapter could be made.
    """
    params, grid = load_params(profile), load_grid(profile)
    about = Parameters.of(params)
    subjects = {name: load_subject(name, profile) for name in about.subjects}
    layouts = {name: load_layouts(subject) for name, subject in subjects.items()}
    hows = {
        (method, name): load_method(method, grid).how(subject, method)
        for method, (name, subject) in product(about.methods, subjects.items())
    }
    base, judge = load_base(params.base), Judge(params)
    for name, found in layouts.items():
        check_cells(name, found, coarsest(base), about.cells)
    lookers = {name: Looker(judge, subject, about.judge) for name, subject in subjects.items()}
    parts, sheets = [], dict[tuple[str, str], Pictures]()
    right: dict[str, list[Image.Image]] = {}
    for name, subject in subjects.items():
        truths, right[name] = _truth(lookers[name], subject, layouts[name], about, base.resolution)
        parts += truths

    def of(cell: tuple[str, str]) -> tuple[pd.DataFrame, Pictures]:
        method, name = cell
        looker, found = lookers[name], layouts[name]
        return _sampled(base, looker, hows[cell], method, subjects[name], found, about)

    for (method, name), (values, pictures) in made(hows, of):
        parts.append(values)
        shown = {words(mode): images for mode, images in pictures.items()}
        shown |= {DRAWN: right[name]} if right[name] else {}
        sheets[method, name] = shown
    values = pd.concat(parts, ignore_index=True)
    truth = validated(values[values["method"] == ""])
    means = summary(values, truth)
    for row in means[means["mode"].isin([*MODES, DRAWN])].to_dict("records"):
        if row["measure"] in ("bound", "all_in"):
            print(
                f"regions: {row['method'] or 'truth'}, {row['mode']}: {row['measure']} "
                f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            )
    figures = {"regions": chart(means)}
    for (method, name), shown in sheets.items():
        figures[f"{method}_{name.replace('/', '-')}"] = picture_table(shown)
    tables = {"values": values, "means": means, "truth": truth}
    return write_results(folder_of(params, "regions"), tables, figures)


def _sampled(
    base: Base,
    looker: Looker,
    how: How,
    method: str,
    subject: Subject,
    layouts: Sequence[Layout],
    about: Parameters,
) -> tuple[pd.DataFrame, Pictures]:
    """What a method's pictures of all layouts show in each mode, and the first of them."""
    params = looker.judge.params
    adapter = adapter_of(params, method, subject.name)
    parts: list[pd.DataFrame] = []
    pictures: Pictures = {mode: [] for mode in MODES}
    with how.open(base, adapter) as session:
        references = adapter.provenance.references
        for (number, layout), mode in product(enumerate(layouts), MODES):
            places = [
                Place(region.prompt.format(references[region.concept]), region.box)
                for region in layout.regions
            ]
            images = sample_all(
                base,
                _requests(params, layout, references, about.images),
                params.sampler(len(layout.regions)),
                regional(base, session, mode, places, about.cells, about.kept),
            )
            found = looker.measured(images, layout)
            parts.append(
                found.assign(method=method, mode=mode, subject=subject.name, layout=number)
            )
            pictures[mode] += [outlined(image, layout) for image in images[:SHOWN]]
    return pd.concat(parts, ignore_index=True), pictures


def _requests(
    params: Params, layout: Layout, references: Sequence[str], count: int
) -> list[Request]:
    """Pictures of a layout, from the same noise in each mode and with each method."""
    prompt = layout.prompt.format(*references)
    seeds = [seed_of(params.protocol.name, "regions", layout.prompt, i) for i in range(count)]
    return [Request(f"layout-{i:03d}", prompt, seed, {}) for i, seed in enumerate(seeds)]


def _truth(
    looker: Looker, subject: Subject, layouts: Sequence[Layout], about: Parameters, size: int
) -> tuple[list[pd.DataFrame], list[Image.Image]]:
    """What drawn pictures show of layouts, and the first right ones; nothing if one cannot be."""
    parts, shown = list[pd.DataFrame](), list[Image.Image]()
    if not all(can_draw(subject, layout) for layout in layouts):
        return parts, shown
    for number, layout in enumerate(layouts):
        for kind, regions, images in drawn(subject, layout, about.images, size):
            found = looker.measured(images, layout)
            found = found[found["region"].isin([*regions, WHOLE])]
            parts.append(found.assign(method="", mode=kind, subject=subject.name, layout=number))
            shown += [outlined(image, layout) for image in images[:SHOWN] if kind == DRAWN]
    return parts, shown


def summary(values: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The mean of each measure, and what boxes add to it.

    Args:
        values: columns method ("" for drawn pictures), mode, measure, value and KEYS.
        truth: see `validated`.

    Returns:
        Columns method, mode, measure, valid, mean, low, high, n, clusters, and difference_mean,
        difference_low and difference_high (from `none`, image by image; empty for `none` itself).
        Errors are clustered by layout.
    """
    valid = dict(zip(truth["measure"], truth["valid"]))
    rows = []
    for (method, mode), part in values.groupby(["method", "mode"], sort=False):
        for measure in MEASURES:
            of = part[part["measure"] == measure].set_index(KEYS)["value"]
            if of.empty:
                continue
            row = {"method": method, "mode": mode, "measure": measure}
            least, most = (0.0, 1.0) if measure in SHARES else (-np.inf, np.inf)
            row |= {"valid": valid.get(measure, False), **_estimate(of, "", least, most)}
            row |= {"n": len(of), "clusters": len({key[:2] for key in of.index})}
            if method and mode != MODES[0]:
                plain = values[(values["method"] == method) & (values["mode"] == MODES[0])]
                more = of - plain.set_index(KEYS)["value"].reindex(of.index)
                row |= _estimate(more, "difference_", least - most, most - least)
            rows.append(row)
    return pd.DataFrame(rows)


def _estimate(values: pd.Series, prefix: str, least: float, most: float) -> dict[str, float]:
    """A mean with the interval that layouts give it, within what is possible."""
    layouts = [f"{subject} {layout}" for subject, layout, *_ in values.index]
    found = clustered_mean(values, layouts)
    low, high = (float(np.clip(end, least, most)) for end in interval(found))
    return {f"{prefix}mean": found.mean, f"{prefix}low": low, f"{prefix}high": high}


def chart(means: pd.DataFrame) -> Figure:
    """A panel for each measure: what each method reaches in each mode, and drawn pictures do."""
    measures = [measure for measure in MEASURES if measure in set(means["measure"])]
    methods = [method for method in dict.fromkeys(means["method"]) if method]
    across = min(len(measures), 4)
    down = -(-len(measures) // across)
    with mpl.rc_context(STYLE):
        size = (3.2 * across, (0.45 * len(methods) + 1.3) * down)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for ax in axes[len(measures) :]:
            ax.set_visible(False)
        for ax, measure in zip(axes, measures):
            part = means[means["measure"] == measure].set_index(["method", "mode"])
            for number, mode in enumerate(MODES):
                points = part.reindex([(method, mode) for method in methods])
                mean, low, high = (points[name].to_numpy() for name in ("mean", "low", "high"))
                places = np.arange(len(methods)) + 0.22 * (number - 1)
                style = {"fmt": "o", "ms": 5, "color": COLOURS[number], "label": words(mode)}
                ax.errorbar(mean, places, xerr=[mean - low, high - mean], **style)
            if ("", DRAWN) in part.index:
                ax.axvline(part.loc[("", DRAWN), "mean"], color=GREY, ls="--", label=DRAWN)
            mark = "" if part["valid"].any() else " †"
            ax.set_title(f"{measure}{mark}", fontsize=10)
            ax.set_xlabel(MEASURES[measure], fontsize=8)
        axes[0].set_yticks(range(len(methods)), [words(method) for method in methods])
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=4, fontsize=9)
        if not means["valid"].all():
            figure.supxlabel("† does not tell drawn layouts from wrong ones", fontsize=8)
    return figure


def outlined(image: Image.Image, layout: Layout) -> Image.Image:
    """A picture, larger, with the outlines of its boxes in a colour for each region."""
    side = LARGER * image.width
    page = image.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(page)
    for region, colour in zip(layout.regions, COLOURS * 2):
        left, top, right, bottom = (LARGER * x for x in region.box.pixels(image.width))
        rgb = ImageColor.getrgb(colour)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=rgb, width=LARGER)
    return page
