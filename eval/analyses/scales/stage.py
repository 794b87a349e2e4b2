"""How much of what was learned is wanted: scores by the share of an adapter that is applied.

Applying less of a change of weights trades the concept for the prompt. So one point says little of
a method: another may lie on its curve. What is best is the curve that lies above the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import (
    ALIGNMENTS,
    Judge,
    adapter_of,
    folder_of,
    made,
    prompt_scores,
    requests_of,
    summary,
    write_results,
)
from eval.analyses.scales import Parameters
from eval.metrics.catalogue import METRICS
from eval.style import STYLE, method_style, words
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import Concept, Subject, load_subject
from pipeline.methods import load_method
from pipeline.models.adapter import Adapter, LowRank
from pipeline.models.base import load_base
from pipeline.sample.requests import Request, task_requests
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import Grid, Params, load_grid, load_params


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with all changes of weights times a number; its modifier tokens stay."""
    deltas = {
        name: LowRank(scale * delta.up, delta.down) if isinstance(delta, LowRank) else scale * delta
        for name, delta in adapter.deltas.items()
    }
    return replace(adapter, deltas=deltas)


def groups(
    params: Params, about: Subject, references: tuple[str, ...], count: int
) -> Iterator[tuple[str, tuple[Concept, ...], list[Request]]]:
    """What is asked for, and of which concepts: of a task, each concept's own prompts."""
    if about.task:
        found = task_requests(params, about, references)
        for concept, requests in zip(about.concepts, found, strict=True):
            yield concept.name, (concept,), requests
    else:
        yield about.name, about.concepts, requests_of(params, about, references, count)


def analyse_scales(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `prompts.csv` (each prompt's mean scores), `scales.csv` and a chart.

    Raises:
        BenchError: the profile does not run it, a method makes no adapters of a subject, or an
            adapter or a shard is missing.
    """
    params, grid = load_params(profile), load_grid(profile)
    about = Parameters.of(params)
    subjects = {name: load_subject(name, profile) for name in about.subjects}
    hows = {
        (method, name): load_method(method, grid).how(subject, method)
        for method, (name, subject) in product(about.methods, subjects.items())
    }
    whole = dict(made(hows, lambda cell: adapter_of(params, *cell)))
    base, judge = load_base(params.base), Judge(params)
    parts = []
    for (method, name), adapter in whole.items():
        subject = subjects[name]
        sampler = params.task_sampler() if subject.task else params.sampler(len(subject.concepts))
        asked = [*groups(params, subject, adapter.provenance.references, about.images_per_prompt)]
        for scale in about.scales:
            with hows[method, name].open(base, scaled(adapter, scale)) as session:
                images = [sample_all(base, requests, sampler, session) for *_, requests in asked]
            for (of, concepts, requests), pictures in zip(asked, images):
                scores = prompt_scores(judge, requests, pictures, of, concepts)
                parts.append(scores.assign(of=name, method=method, scale=scale))
    found = pd.concat(parts, ignore_index=True)
    table = summary(found, ["of", "method"], "scale")
    for row in table.to_dict("records"):
        said = ", ".join(f"{METRICS[name].title} {row[name]:.3f}" for name in ALIGNMENTS)
        print(f"scales: {row['method']} on {row['of']} at {row['scale']:g}: {said}")
    return write_results(
        folder_of(params, "scales"),
        {"prompts": found, "scales": table},
        {
            str(name).replace("/", "-"): chart(part, grid)
            for name, part in table.groupby("of", sort=False)
        },
    )


def chart(table: pd.DataFrame, grid: Grid) -> Figure:
    """Image- by text-alignment: a curve for each method, a point for each share."""
    text, image = (METRICS[name].heading for name in ALIGNMENTS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        ax = figure.subplots()
        for method, rows in table.groupby("method", sort=False):
            colour, marker = method_style(grid, str(method))
            x, y = rows["text_alignment"], rows["image_alignment"]
            ax.plot(x, y, color=colour, marker=marker, label=words(str(method)), markersize=4)
            for scale, text_at, image_at in zip(rows["scale"], x, y):
                at = (text_at, image_at)
                ax.annotate(f"{scale:g}", at, (4, 3), textcoords="offset points", fontsize=7)
        ax.set(xlabel=text, ylabel=image)
        ax.legend(fontsize=7)
    return figure
