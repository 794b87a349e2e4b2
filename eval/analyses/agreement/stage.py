"""Whether metrics order methods and images as what they show does.

Nobody has drawn what a method makes, but in Toyland it can be told: the judge, which shares nothing
with the CLIPs that measure, says which of what a prompt asks for is there (*facts*), and a
recogniser of the thing, which learned from drawn scenes, whether it is that very individual
(*thing*). Text-alignment should follow the first, image-alignment and identity the second, from
image to image and from method to method. Beside it stands what a metric pays for something else:
the background of the training images.

The pictures are those that stay in the records of cells, of the main training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from eval.analyses.agreement import DRAWN, FACTS, OTHERS, THING, Parameters
from eval.analyses.agreement.asked import asked, scene_of, shown
from eval.analyses.agreement.recognition import (
    Recogniser,
    features,
    learned,
    pixels,
    reliability,
)
from eval.analyses.common import folder_of, write_results
from eval.metrics.catalogue import METRICS, OfPrompts
from eval.results import KINDS, REFERENCES
from eval.scores.pictures import PICTURES, Place, read_pictures
from eval.scores.reading import load_scores, main_training
from eval.statistics import (
    components,
    interval,
    mean_over,
    mean_over_groups,
    rank_correlation,
)
from eval.style import STYLE, method_style, words
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.common.seeds import seed_of
from pipeline.settings.profile import Grid, load_grid, load_params, profile_folder
from pipeline.toyland.pretrain.judge import Judge, judged, load_judge
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL, personal_scenes

COPIED = "copied"  # the background is one of the training images'
RESAMPLINGS = 2000


def analyse_agreement(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: what is to be seen of each cell, and how metrics agree with it; a chart.

    `cells.csv` has the shares of each method and subject, `images.csv` rank correlations over the
    images of a subject, `methods.csv` how many pairs of methods are in one order, `background.csv`
    what metrics pay for the thing and for the training images' background, and `recognisers.csv`
    how far all that can be trusted.

    Raises:
        BenchError: the profile does not run it, a subject is not of drawn things, nothing was
            scored, or files are missing or damaged.
    """
    params, grid = load_params(profile), load_grid(profile)
    about = Parameters.of(params)
    subjects = _subjects(about, grid, profile)
    scores = main_training(load_scores(profile))
    scores = scores[scores["sample"].notna() & scores["subject"].isin(subjects)]
    scores = scores[scores["method"].isin(grid.methods)]
    if scores.empty:
        raise BenchError(f"profile {profile!r} has no scores yet: run `{repro_command(profile)}`")
    judge = load_judge(Path(*Parameters.files))
    names = sorted({name for subject in subjects for name in grid.concepts_of(subject)})
    recognisers = {
        name: learned(judge, PERSONAL[name], about.portraits)
        for name in tqdm(names, "agreement: recognisers", leave=False)
    }
    trusted = pd.DataFrame(
        {"concept": name, **vars(reliability(judge, PERSONAL[name], recogniser, about.checks))}
        for name, recogniser in recognisers.items()
    )

    cells, references = [], []
    alone = {s: n for n, s in enumerate(subjects) if s in grid.concepts}
    pairs = [subject for subject in subjects if subject not in alone]
    shared = components([grid.concepts_of(subject) for subject in pairs]) if pairs else []
    for subject, group in (alone | dict(zip(pairs, shared))).items():
        look = _Look(judge, recognisers, subject, grid.concepts_of(subject), group)
        of_subject = scores[scores["subject"] == subject]
        for method in of_subject["method"].unique():
            path = params.record(method, subject) / PICTURES
            cells.append(look.cell(method, path, of_subject[of_subject["method"] == method]))
        prompts = [str(prompt) for prompt in of_subject["prompt"].unique()]
        references += [look.drawn(own, prompts, about.drawn) for own in (True, False)]
    values = pd.concat(cells, ignore_index=True)
    tables = {
        "cells": shares_of(pd.concat([*cells, *references], ignore_index=True)),
        "images": of_images(values),
        "methods": of_methods(values),
        "background": paid(values),
        "recognisers": trusted,
    }
    _say(tables)
    return write_results(folder_of(params, "agreement"), tables, {"agreement": chart(values, grid)})


def _say(tables: Mapping[str, pd.DataFrame]) -> None:
    """Prints what was found, a line each."""
    trusted = tables["recognisers"]
    print(
        f"agreement: recognisers tell {len(trusted)} things from others of their "
        f"category: AUC {trusted['auc'].mean():.3f}, of one colour "
        f"{trusted['auc_same_colour'].mean():.3f}"
    )
    for row in tables["methods"].to_dict("records"):
        sure = "" if math.isnan(row["low"]) else f" [{row['low']:.0%}, {row['high']:.0%}]"
        print(
            f"agreement: {row['kind']}, {METRICS[row['metric']].title} by {row['truth']}: "
            f"{row['alike']:.0%}{sure} of {row['pairs']} pairs of methods in one order"
        )
    for row in tables["background"].to_dict("records"):
        thing, copied = (
            f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"
            for name in (THING, COPIED)
        )
        print(
            f"agreement: {METRICS[row['metric']].title} of images with the thing {thing}, on the "
            f"background of a training image {copied}"
        )


def _subjects(about: Parameters, grid: Grid, profile: str) -> list[str]:
    """The subjects all of whose concepts are drawn things.

    Raises:
        BenchError: one that was asked for is not.
    """
    drawn = [s for s in grid.subjects() if all(c in PERSONAL for c in grid.concepts_of(s))]
    for name in about.subjects or ():
        if name not in drawn:
            raise BenchError(
                f"{profile_folder(profile) / 'params.yaml'}: analyses.agreement.subjects: {name!r} "
                f"is not of drawn things: choose from {', '.join(drawn)}"
            )
    if not drawn:
        path = profile_folder(profile) / "params.yaml"
        raise BenchError(
            f"{path}: analyses.agreement: no concept of the grid is a drawn thing: remove it"
        )
    return about.subjects or drawn


class Seen(NamedTuple):
    """What is to be seen in images."""

    facts: npt.NDArray[np.float64]  # [n], the share of what the prompt asks for that is there
    things: npt.NDArray[np.bool_]  # [concepts, n], whether each concept's thing is recognised
    backgrounds: list[str]  # [n]


def looked(
    judge: Judge,
    recognisers: Sequence[Recogniser],
    images: Sequence[Image.Image],
    prompts: Sequence[str],
) -> Seen:
    """What is to be seen in images of prompts.

    Args:
        judge: looks.
        recognisers: of the subject's concepts, in order.
        images: of 64 x 64 pixels, [n].
        prompts: of each, with class nouns.
    """
    tensor = pixels(images)
    choices, present = judged(judge, tensor)
    said = [dict(zip(choices, answer)) for answer in zip(*choices.values())]
    wanted = {prompt: asked(prompt) for prompt in set(prompts)}
    facts = [np.mean(shown(wanted[p], one, there)) for p, one, there in zip(prompts, said, present)]
    maps = features(judge, tensor)
    things = np.array([recogniser.recognises(maps) for recogniser in recognisers])
    return Seen(np.array(facts), things, choices["background"])


@dataclass(frozen=True)
class _Look:
    """Looks at images of a subject: a row for each of them and each concept."""

    judge: Judge
    recognisers: Mapping[str, Recogniser]
    subject: str
    concepts: Sequence[str]
    group: int  # of its kind: those that share a concept are of one

    def cell(self, method: str, path: Path, scores: pd.DataFrame) -> pd.DataFrame:
        """What is to be seen in the pictures of a cell, and what the metrics say of them."""
        pictures = read_pictures(path).images
        prompts = scores.drop_duplicates("prompt_index").set_index("prompt_index")["prompt"]
        rows = self._rows(
            method, [*pictures], [*pictures.values()], [str(prompts[p]) for p, _ in pictures]
        )
        place = ["prompt_index", "sample"]
        parts = []
        for number, part in rows.groupby("target", sort=False):
            values = scores[scores["target"].isna() | scores["target"].eq(number)]
            wide = values.pivot(index=place, columns="metric", values="value")
            parts.append(part.merge(wide.reset_index(), "left", place))
        return pd.concat(parts, ignore_index=True)

    def drawn(self, own: bool, prompts: Sequence[str], count: int) -> pd.DataFrame:
        """The same of so many drawn scenes of each prompt, with the things or with any others."""
        things = {PERSONAL[c].category: PERSONAL[c] for c in self.concepts} if own else {}
        places = [(p, i) for p in range(len(prompts)) for i in range(count)]
        wanted = [asked(prompt) for prompt in prompts]
        images = []
        for p, i in places:
            rng = np.random.default_rng(seed_of("asked", own, self.subject, prompts[p], i))
            images.append(Image.fromarray(draw(scene_of(wanted[p], things, rng))))
        texts = [prompts[p] for p, _ in places]
        return self._rows(DRAWN if own else OTHERS, places, images, texts)

    def _rows(
        self,
        method: str,
        places: Sequence[Place],
        images: Sequence[Image.Image],
        prompts: Sequence[str],
    ) -> pd.DataFrame:
        seen = looked(self.judge, [self.recognisers[c] for c in self.concepts], images, prompts)
        frame = pd.DataFrame(places, columns=["prompt_index", "sample"]).assign(
            method=method,
            kind="single" if len(self.concepts) == 1 else "compositions",
            subject=self.subject,
            group=self.group,
            facts=seen.facts,
        )
        parts = []
        for number, (concept, there) in enumerate(zip(self.concepts, seen.things), 1):
            known = {scene.background for scene in personal_scenes(concept)}
            copied = [float(name in known) for name in seen.backgrounds]
            part = {"target": number, THING: there.astype(np.float64), COPIED: copied}
            parts.append(frame.assign(**part))
        return pd.concat(parts, ignore_index=True)


def shares_of(values: pd.DataFrame) -> pd.DataFrame:
    """What is to be seen of each cell: means of facts, thing and copied over its images.

    Returns:
        Columns method, kind, subject, group, n (images), facts, thing and copied; of a composition
        the means over its concepts.
    """
    keys = ["method", "kind", "subject", "group"]
    groups = values.groupby(keys, sort=False)
    found = groups[[FACTS, THING, COPIED]].mean()
    counts = values[values["target"] == 1].groupby(keys, sort=False).size()
    found.insert(0, "n", counts)
    return found.reset_index()


def pairs_of_truth(values: pd.DataFrame) -> list[tuple[str, str]]:
    """What each metric of images should follow: facts of the prompt, or the thing."""
    return [
        (name, FACTS if isinstance(metric, OfPrompts) else THING)
        for name, metric in METRICS.items()
        if metric.per_image and name in values.columns
    ]


def of_images(values: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations over all images of a subject, whoever made them; and in the mean.

    Returns:
        Columns kind, metric, truth, subject ("all" for the mean), rho, low and high (a 95 %
        interval, of prompts for a subject and for the mean of subjects, those that share a concept
        as one), n and clusters.
    """
    rows = []
    for kind, part in values.groupby("kind", sort=False):
        for metric, truth in pairs_of_truth(part):
            found, groups = [], []
            for subject, one in part.groupby("subject", sort=False):
                both = one[[metric, truth, "prompt_index"]].dropna()
                if len(both) < 2 or both[truth].nunique() < 2:
                    continue  # all images are alike in it: there is no order to find
                result = rank_correlation(both[truth], both[metric], both["prompt_index"])
                about = {"kind": kind, "metric": metric, "truth": truth, "subject": subject}
                rows.append(about | result._asdict())
                found.append(result.rho)
                groups.append(int(one["group"].iloc[0]))
            if found:
                mean = mean_over_groups(found, groups)
                low, high = interval(mean)
                low, high = max(low, -1), min(high, 1)  # NaN stays
                about = {"kind": kind, "metric": metric, "truth": truth, "subject": "all"}
                about |= {"rho": mean.mean, "low": low, "high": high, "n": len(part)}
                rows.append(about | {"clusters": mean.clusters})
    return pd.DataFrame(rows)


def of_methods(values: pd.DataFrame) -> pd.DataFrame:
    """How many pairs of methods a metric orders as what is to be seen does.

    Of each kind of subjects, by means over those that all methods have; references are no methods.
    The interval is that of 2000 draws of subjects with replacement, those that share a concept
    together.

    Returns:
        Columns kind, metric, truth, alike (share of pairs; one that either has equal counts half),
        low, high, pairs, methods and subjects.
    """
    rows = []
    contestants = values[~values["method"].isin(REFERENCES)]
    for kind, part in contestants.groupby("kind", sort=False):
        for metric, truth in pairs_of_truth(part):
            means = [
                part.dropna(subset=[metric])
                .groupby(["subject", "method"], sort=False)[column]
                .mean()
                .unstack()
                .dropna(axis=0)
                for column in (metric, truth)
            ]
            count, methods = means[0].shape
            if not count or methods < 2:
                continue
            measured, true = (frame.to_numpy() for frame in means)
            group = part.groupby("subject", sort=False)["group"].first()[means[0].index].to_numpy()
            members = [np.flatnonzero(group == number) for number in np.unique(group)]
            low = high = math.nan
            if len(members) > 1:
                rng = np.random.default_rng(seed_of("agreement", kind, metric))
                spread = []
                for chosen in rng.integers(len(members), size=(RESAMPLINGS, len(members))):
                    some = np.concatenate([members[i] for i in chosen])
                    spread.append(alike(measured[some].mean(0), true[some].mean(0)))
                low, high = np.quantile(spread, [0.025, 0.975])
            rows.append(
                {"kind": kind, "metric": metric, "truth": truth}
                | {"alike": alike(measured.mean(0), true.mean(0)), "low": low, "high": high}
                | {"pairs": methods * (methods - 1) // 2, "methods": methods, "subjects": count}
            )
    return pd.DataFrame(rows)


def alike(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """The share of pairs that two rows of values [n] order alike; equal values are half."""
    signs = [np.sign(row[:, None] - row[None, :]) for row in (first, second)]
    upper = np.triu_indices(len(first), 1)
    return float(((signs[0] * signs[1])[upper] + 1).mean() / 2)


def paid(values: pd.DataFrame) -> pd.DataFrame:
    """What metrics of likeness pay for the thing, and for a training image's background.

    Of each single concept the least squares of a metric on whether the thing is recognised and
    whether the background is one of the training images', both 0 or 1, with a constant for each
    prompt: images of one prompt are compared, whoever made them. Concepts without both are left
    out.

    Returns:
        Columns metric, then thing and copied, the means over concepts, each with `_low` and
        `_high`, and concepts (how many).
    """
    rows = []
    single = values[values["kind"] == "single"]
    for metric, truth in pairs_of_truth(single):
        if truth != THING:
            continue
        found = []
        for _, part in single.dropna(subset=[metric]).groupby("subject", sort=False):
            columns = [metric, THING, COPIED]
            centred = part[columns] - part.groupby("prompt_index")[columns].transform("mean")
            y, x = centred[metric].to_numpy(), centred[[THING, COPIED]].to_numpy()
            if np.linalg.matrix_rank(x) == 2:
                found.append(np.linalg.lstsq(x, y)[0])
        if not found:
            continue
        row: dict[str, Any] = {"metric": metric}
        for name, column in zip((THING, COPIED), np.array(found).T):
            mean = mean_over(column)
            low, high = interval(mean)
            row |= {name: mean.mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"concepts": len(found)})
    return pd.DataFrame(rows)


def chart(values: pd.DataFrame, grid: Grid) -> Figure:
    """A panel for each kind and metric: methods by what is to be seen and by what is measured."""
    panels = [
        (str(kind), metric, truth)
        for kind, part in values.groupby("kind", sort=False)
        for metric, truth in pairs_of_truth(part)
        if METRICS[metric].headline
    ]
    across = max((sum(p[0] == kind for p in panels) for kind, *_ in panels), default=1)
    down = max(-(-len(panels) // across), 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * across, 3.0 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax, (kind, metric, truth) in zip(axes, panels):
            shown_ones = values[(values["kind"] == kind) & values[metric].notna()]
            for method, x, y in _points(shown_ones, truth, metric):
                colour, marker = method_style(grid, method)
                ax.plot(x, y, marker, color=colour, label=method)
                ax.annotate(
                    words(method), (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
            ax.set(xlabel=f"{truth}, share of what is to be seen", ylabel=METRICS[metric].title)
            ax.set_title(KINDS[kind], fontsize=10)
    return figure


def _points(part: pd.DataFrame, truth: str, metric: str) -> Iterable[tuple[str, float, float]]:
    """The means of each method over its subjects."""
    means = part.groupby(["method", "subject"], sort=False)[[truth, metric]].mean()
    for method, row in means.groupby("method", sort=False).mean().iterrows():
        yield str(method), float(row[truth]), float(row[metric])
