"""Learning rates, steps and ways of merging by trial, one grid and one rule for all methods.

The profile's concepts and compositions are held out: no report compares methods on them. The rule
was written down before the first trial: of all settings of a method, the one with the highest
product of text-alignment and *gain*, which is image-alignment less that of the pretrained model;
among settings within `tolerance` of that product the one with the fewest steps, then the lowest
rate. Steps and rate are those for single concepts; the steps for compositions are chosen at that
rate. A merge is tried with each ridge, with and without the words of the template, on the adapters
of the chosen setting; within `tolerance` the way without those words is taken, then the largest
ridge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import (
    ALIGNMENTS,
    Judge,
    adapter_scores,
    folder_of,
    write_results,
)
from eval.analyses.tuning import Parameters
from eval.metrics.catalogue import METRICS
from eval.style import COLOURS, STYLE, words
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import Subject, load_subject
from pipeline.methods import Merged, Trained, load_method
from pipeline.models.adapter import Adapter
from pipeline.models.base import Base, load_base
from pipeline.settings.profile import Grid, MethodParams, Params, load_grid, load_params
from pipeline.train.inputs import load_training_sets, regularization_captions
from pipeline.train.making import Making, provenance_of

PRETRAINED = "pretrained"
SETTING = ["learning_rate", "steps", "template_words", "ridge"]
SINGLE, COMPOSITIONS = "single", "compositions"


def choose(trials: pd.DataFrame, tolerance: float) -> int:
    """The row of the setting that the rule takes.

    Args:
        trials: settings of one method and kind: `product` and the columns of SETTING, which may
            be missing.
        tolerance: a share of the best product.

    Returns:
        The row's label in the index of `trials`.
    """
    best = trials["product"].max()
    near = trials[trials["product"] >= best - tolerance * abs(best)]
    order = near.sort_values(
        ["steps", "learning_rate", "template_words", "ridge"],
        ascending=[True, True, True, False],
        kind="stable",
    )
    return int(order.index[0])


def products(prompts: pd.DataFrame) -> pd.DataFrame:
    """Each setting's means over subjects, and the product that the rule compares.

    Args:
        prompts: columns subject, prompt_index, metric, value, method, kind and those of SETTING;
            the pretrained model is among the methods, once for each subject.

    Returns:
        A row for each method, kind and setting: the metrics, `gain` and `product`.
    """
    keys = ["method", "kind", *SETTING]
    means = prompts.groupby([*keys, "subject", "metric"], dropna=False, sort=False)["value"].mean()
    table = means.groupby(level=[*keys, "metric"], dropna=False, sort=False).mean()
    wide = table.unstack("metric")[list(ALIGNMENTS)].reset_index()
    before = wide[wide["method"] == PRETRAINED].set_index("kind")["image_alignment"]
    wide["gain"] = wide["image_alignment"] - wide["kind"].map(before)
    wide["product"] = wide["text_alignment"] * wide["gain"]
    return wide


class _Trials:
    """Trains, samples and scores; keeps the adapters that a merge may need."""

    def __init__(self, params: Params, about: Parameters, profile: str) -> None:
        self.params, self.about = params, about
        self.grid = grid = load_grid(profile)
        self.subjects = {
            SINGLE: [load_subject(name, profile) for name in grid.concepts],
            COMPOSITIONS: [load_subject(name, profile) for name in grid.composed()],
        }
        self.base: Base = load_base(params.base)
        self.judge = Judge(params)

    def scored(
        self, adapter: Adapter, subject: Subject, kind: str, method: str, **setting: float
    ) -> pd.DataFrame:
        count = self.about.images_per_prompt
        scores = adapter_scores(self.judge, self.base, adapter, subject, count)
        known = {name: setting.get(name, float("nan")) for name in SETTING}
        said = ", ".join(f"{name} {value:g}" for name, value in setting.items())
        means = scores.groupby("metric")["value"].mean()
        values = ", ".join(f"{METRICS[m].title} {means[m]:.3f}" for m in ALIGNMENTS)
        print(f"tuning: {method} on {subject.name}, {said or 'as it is'}: {values}", flush=True)
        return scores.assign(method=method, kind=kind, **known)

    def pretrained(self) -> Iterator[pd.DataFrame]:
        for kind, subjects in self.subjects.items():
            for subject in subjects:
                about = provenance_of(self.base, PRETRAINED, subject, self.params.train.seeds[0])
                yield self.scored(Adapter({}, {}, about), subject, kind, PRETRAINED)

    def trained(self, method: str) -> Iterator[tuple[pd.DataFrame, tuple[Any, ...], Adapter]]:
        """Scores, setting (subject, rate, steps) and adapter of each trial of a method."""
        checkpoints = {SINGLE: self.about.steps, COMPOSITIONS: self.about.composition_steps}
        for kind, subjects in self.subjects.items():
            for subject in subjects:
                how = load_method(method, self.grid).how(subject, method)
                if not isinstance(how, Trained):
                    continue
                needs = how.needs([concept.name for concept in subject.concepts])
                sets = load_training_sets(subject, self.params.runs(), needs)
                for rate in self.about.rates[method]:
                    hyper = self.params.methods[method].model_copy(update={"learning_rate": rate})
                    steps = sorted(set(checkpoints[kind]))
                    making = Making.of(self.base, method, subject, self.params, hyper)
                    adapters = making.train_through(how, sets, steps)
                    for done, adapter in zip(steps, adapters):
                        setting = {"learning_rate": rate, "steps": done}
                        scores = self.scored(adapter, subject, kind, method, **setting)
                        yield scores, (subject.name, rate, done), adapter

    def merges(
        self, method: str, parts: Mapping[str, Adapter], hyper: MethodParams
    ) -> Iterator[pd.DataFrame]:
        """Scores of a merge in each way; `parts` are adapters by concept."""
        captions = regularization_captions(self.params)
        for subject in self.subjects[COMPOSITIONS]:
            how = load_method(method, self.grid).how(subject, method)
            chosen = [parts[concept.name] for concept in subject.concepts]
            for template_words, ridge in product((False, True), self.about.ridges[method]):
                way = {"template_words": template_words, "ridge": ridge}
                now = hyper.model_copy(update=way)
                adapter = how.make(
                    Making.of(self.base, method, subject, self.params, now, (), chosen, captions)
                )
                yield self.scored(adapter, subject, COMPOSITIONS, method, **way)


def _check(params: Params, grid: Grid, about: Parameters, subjects: Sequence[Subject]) -> None:
    """Finds out whether every method can be tried as asked.

    Raises:
        BenchError: names the method and what is the matter.
    """
    for method in (*about.rates, *about.ridges):
        if method not in params.methods:
            raise BenchError(f"params.yaml: methods.{method}: missing: analyses.tuning tries it")
    for method in about.ridges:
        for subject in subjects:
            if len(subject.concepts) == 1:
                continue
            how = load_method(method, grid).how(subject, method)
            if not isinstance(how, Merged) or how.of not in about.rates:
                raise BenchError(
                    f"params.yaml: analyses.tuning.ridges: {method} merges no adapters of "
                    f"{' or '.join(about.rates)}: name a method that does"
                )


def analyse_tuning(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `trials.csv` (a row for each setting, the chosen ones marked), `prompts.csv`, a chart.

    Raises:
        BenchError: the profile does not run it, a method cannot be tried, or a shard is missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    grid = load_grid(profile)
    _check(params, grid, about, [load_subject(name, profile) for name in grid.subjects()])
    trials = _Trials(params, about, profile)
    rows = list(trials.pretrained())
    adapters: dict[tuple[Any, ...], Adapter] = {}
    merging = {
        how.of
        for name in about.ridges
        for subject in trials.subjects[COMPOSITIONS]
        if isinstance(how := load_method(name, grid).how(subject, name), Merged)
    }
    for method in about.rates:
        for scores, setting, adapter in trials.trained(method):
            rows.append(scores)
            if method in merging:
                adapters[(method, *setting)] = adapter
    table = marked(products(pd.concat(rows, ignore_index=True)), about)
    for name in about.ridges:
        how = load_method(name, grid).how(trials.subjects[COMPOSITIONS][0], name)
        assert isinstance(how, Merged)
        of = table[(table["method"] == how.of) & (table["kind"] == SINGLE) & table["chosen"]].iloc[
            0
        ]
        parts = {
            concept: adapters[(how.of, concept, of["learning_rate"], int(of["steps"]))]
            for concept in grid.concepts
        }
        rows += trials.merges(name, parts, params.methods[name])
    prompts = pd.concat(rows, ignore_index=True)
    table = marked(products(prompts), about)
    for row in table[table["chosen"]].to_dict("records"):
        words_of = ", ".join(f"{name} {row[name]:g}" for name in SETTING if pd.notna(row[name]))
        print(f"tuning: {row['method']}, {row['kind']}: {words_of}: product {row['product']:.3f}")
    tables = {"prompts": prompts, "trials": table}
    return write_results(folder_of(params, "tuning"), tables, {"tuning": chart(table)})


def marked(table: pd.DataFrame, about: Parameters) -> pd.DataFrame:
    """The table of `products` with the column `chosen`: what the rule takes.

    Of a method that trains compositions only settings at the rate for single concepts can be.
    """
    table = table.assign(chosen=False)
    for _, rows in table[table["method"] != PRETRAINED].groupby("method", sort=False):
        single, composed = (rows[rows["kind"] == kind] for kind in (SINGLE, COMPOSITIONS))
        if len(single):
            taken = choose(single, about.tolerance)
            table.loc[taken, "chosen"] = True
            composed = composed[composed["learning_rate"] == table.loc[taken, "learning_rate"]]
        if len(composed):
            table.loc[choose(composed, about.tolerance), "chosen"] = True
    return table


def chart(table: pd.DataFrame) -> Figure:
    """Text- against image-alignment: a line for each method and rate along its steps."""
    methods = [m for m in dict.fromkeys(table["method"]) if m != PRETRAINED]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        kinds = list(dict.fromkeys(table["kind"]))
        for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
            part = table[table["kind"] == kind]
            for method, colour in zip(methods, COLOURS):
                rows = part[part["method"] == method]
                for rate, line in rows.groupby("learning_rate", dropna=False):
                    ax.plot(
                        line["image_alignment"], line["text_alignment"],
                        color=colour, marker=".", lw=1, alpha=0.6,
                    )  # fmt: skip
                    last = line.iloc[-1]
                    name = "ridge" if pd.isna(rate) else f"{rate:g}"
                    spot = (last["image_alignment"], last["text_alignment"])
                    ax.annotate(name, spot, fontsize=7, color=colour)
                taken = rows[rows["chosen"]]
                ax.scatter(
                    taken["image_alignment"], taken["text_alignment"],
                    color=colour, s=70, label=words(str(method)),
                )  # fmt: skip
            before = part[part["method"] == PRETRAINED]
            ax.scatter(
                before["image_alignment"], before["text_alignment"],
                color="0.5", marker="x", label=PRETRAINED,
            )  # fmt: skip
            ax.set(xlabel=METRICS["image_alignment"].title, title=f"text-alignment, {kind}")
            ax.legend(fontsize=7)
    return figure
