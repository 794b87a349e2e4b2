"""Text- and image-alignment along the training of a method.

What training sees is drawn from a seed of each concept and of each step, and the learning rate is
constant. So a run of k steps is the first k steps of any longer one, and one run gives all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import (
    ALIGNMENTS,
    Judge,
    adapter_scores,
    folder_of,
    made,
    summary,
    write_results,
)
from eval.analyses.steps import Parameters
from eval.metrics.catalogue import METRICS
from eval.style import COLOURS, STYLE, words
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import load_subject
from pipeline.methods import Trained, TrainingSet, load_method
from pipeline.models.base import load_base
from pipeline.settings.profile import load_grid, load_params
from pipeline.train.inputs import load_training_sets
from pipeline.train.making import Making
from pipeline.train.stage import check_hyper


def analyse_steps(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `prompts.csv` (each prompt's mean scores), `steps.csv` and a chart.

    Raises:
        BenchError: the profile does not run it, the method does not train single concepts, or a
            shard is missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    hyper = params.methods.get(about.method)
    if hyper is None:
        raise BenchError(f"params.yaml: methods.{about.method}: missing: analyses.steps trains it")

    method = load_method(about.method, load_grid(profile))

    def loop(concept: str) -> tuple[Trained, Sequence[TrainingSet]]:
        subject = load_subject(concept, profile)
        how = method.how(subject, about.method)
        if not isinstance(how, Trained):
            raise BenchError(f"params.yaml: analyses.steps: {about.method} does not train")
        needs = how.needs([concept])
        check_hyper(about.method, needs, hyper)
        return how, load_training_sets(subject, params.runs(), needs)

    loops = dict(made(about.concepts, loop))
    base, judge = load_base(params.base), Judge(params)
    checkpoints = sorted(set(about.steps))

    def scores(concept: str) -> pd.DataFrame:
        (how, images), subject = loops[concept], load_subject(concept, profile)
        making = Making.of(base, about.method, subject, params, hyper)
        adapters = making.train_through(how, images, checkpoints)
        parts = [
            adapter_scores(judge, base, adapter, subject, about.images_per_prompt)
            for adapter in adapters
        ]
        return pd.concat(
            [part.assign(method=about.method, steps=n) for n, part in zip(checkpoints, parts)]
        )

    parts = [part for _, part in made(loops, scores)]
    found = pd.concat(parts, ignore_index=True)
    table = summary(found, ["method"], "steps")
    for row in table.to_dict("records"):
        said = ", ".join(f"{METRICS[name].title} {row[name]:.3f}" for name in ALIGNMENTS)
        print(f"steps: {about.method} after {row['steps']}: {said}")
    tables = {"prompts": found, "steps": table}
    return write_results(folder_of(params, "steps"), tables, {"steps": chart(found, table)})


def chart(prompts: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Each metric by steps: the mean with one standard error, and a thin line for each concept."""
    concepts: Sequence[str] = list(dict.fromkeys(prompts["subject"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        for ax, metric, colour in zip(figure.subplots(1, 2), ALIGNMENTS, COLOURS):
            for concept in concepts if len(concepts) > 1 else ():
                rows = prompts[(prompts["subject"] == concept) & (prompts["metric"] == metric)]
                line = rows.groupby("steps")["value"].mean()
                ax.plot(line.index, line, color=colour, alpha=0.35, lw=1)
                ax.annotate(words(concept), (line.index[-1], line.iloc[-1]), fontsize=7)
            ax.errorbar(
                table["steps"], table[metric], table[f"{metric}_se"],
                color=colour, marker="o", capsize=3,
            )  # fmt: skip
            ax.set(xlabel="training steps", title=METRICS[metric].heading)
    return figure
