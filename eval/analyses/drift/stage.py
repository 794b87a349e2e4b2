"""Language drift: what the class noun alone gives after a concept was learned (paper, Fig. 24).

A method that forgets draws the concept, or worse things, when it is asked for "photo of a cat"
without a modifier token.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from eval.analyses.common import (
    Judge,
    adapter_of,
    folder_of,
    made,
    picture_table,
    write_results,
)
from eval.analyses.drift import Parameters, single_methods
from eval.metrics.catalogue import METRICS
from eval.statistics import mean_over
from eval.style import STYLE, method_style, words
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Concept, load_concept
from pipeline.models.adapter import applied
from pipeline.models.base import Base, load_base
from pipeline.sample.requests import Request
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import Grid, Params, load_grid, load_params

SHOWN = 8


def class_requests(params: Params, concept: Concept, count: int) -> list[Request]:
    """Images of the concept's class: its caption with the noun in place of the reference.

    All methods start from the same noise.
    """
    prompt = concept.caption.format(concept.class_noun)
    seeds = [seed_of(params.protocol.name, "class", prompt, i) for i in range(count)]
    return [Request(f"class-{i:03d}", prompt, seed, {}) for i, seed in enumerate(seeds)]


def analyse_drift(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `drift.csv`, a chart, and a sheet of images for each concept.

    Text-alignment is that with the class prompt, KID that with the concept's held-out real images,
    and image-alignment is that with its targets: here a lower one is better.

    Raises:
        BenchError: the profile does not run it, or adapters or real images are missing.
    """
    params, grid = load_params(profile), load_grid(profile)
    about = Parameters.of(params)
    methods = about.methods or single_methods(grid)
    base, judge = load_base(params.base), Judge(params)
    rows: list[dict[str, str | float]] = []
    sheets: dict[str, dict[str, list[Image.Image]]] = {}

    def of(cell: tuple[str, str]) -> tuple[dict[str, str | float], list[Image.Image]]:
        return _drift(base, judge, *cell, about.images)

    for (name, method), (row, images) in made(product(about.concepts, methods), of):
        rows.append(row)
        print(
            f"drift: {method} on {name}: text-alignment {row['text_alignment']:.3f}, "
            f"image-alignment {row['image_alignment']:.3f}, KID {row['kid']:.2f}"
        )
        sheets.setdefault(name, {})[words(method)] = images[:SHOWN]
    table = pd.DataFrame(rows)
    figures = {name: picture_table(sheet) for name, sheet in sheets.items()}
    folder = folder_of(params, "drift")
    return write_results(folder, {"drift": table}, {"drift": chart(table, grid), **figures})


def _drift(
    base: Base, judge: Judge, concept: str, method: str, count: int
) -> tuple[dict[str, str | float], list[Image.Image]]:
    """A row of the table and the images that it is about."""
    params = judge.params
    requests = class_requests(params, load_concept(concept), count)
    with applied(base, adapter_of(params, method, concept)):
        images = sample_all(base, requests, params.sampler())
    text = mean_over(judge.text_alignment(images, [request.prompt for request in requests]))
    near = mean_over(judge.image_alignment(images, concept))
    distance = judge.kid(images, concept)
    row: dict[str, str | float] = {
        "method": method,
        "subject": concept,
        "images": len(images),
        "text_alignment": text.mean,
        "text_alignment_se": text.std_error,
        "image_alignment": near.mean,
        "image_alignment_se": near.std_error,
        "kid": distance.value,
        "kid_se": distance.std_error,
    }
    return row, images


def chart(table: pd.DataFrame, grid: Grid) -> Figure:
    """A panel for each metric: the mean over concepts of each method, and each concept as a dot."""
    methods = list(dict.fromkeys(table["method"]))
    titles = {
        "text_alignment": f"{METRICS['text_alignment'].title} with the class →",
        "image_alignment": f"← {METRICS['image_alignment'].title} with the targets",
        "kid": f"← {METRICS['kid'].title}",
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 0.4 * len(methods) + 1), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        for ax, (metric, title) in zip(axes, titles.items()):
            for place, method in enumerate(methods):
                values = table.loc[table["method"] == method, metric]
                ax.barh(place, values.mean(), 0.62, color=method_style(grid, method)[0], alpha=0.85)
                ax.plot(values, np.full(len(values), place), "o", color="white", mec="k", ms=4)
            ax.set(xlabel=title)
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(methods)), [words(method) for method in methods])
        axes[0].invert_yaxis()
    return figure
