"""Results: the scores of a grid, and their estimates, means and differences.

The rules are the protocol's: which metrics there are, and which concepts a metric's mean leaves
out.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.freshness import Freshness, freshness
from eval.metrics.catalogue import METRICS, OfGallery
from eval.scores.file import ORACLE, left_out
from eval.scores.reading import failed_cells, load_scores, main_training
from eval.statistics import (
    Estimate,
    Stratum,
    clustered_mean,
    clustered_stratum,
    components,
    jackknifed_stratum,
    mean_over_groups,
    mean_over_strata,
    mean_over_trainings,
)
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.concepts.concept import styles_of
from pipeline.settings.external import External, is_external, load_external
from pipeline.settings.profile import Grid, load_grid, load_params
from pipeline.settings.protocol import Protocol

# The groups of subjects. KID and FID need real images of what was asked for, so of one concept.
# Styles, alone or composed with anything, are apart: what is hard for a style is not for a thing,
# and a few of them would turn a mean over things.
KINDS: dict[str, str] = {
    "single": "single concepts",
    "styles": "styles",
    "compositions": "compositions",
}
Key = tuple[str, str, str]  # method, subject and metric
Rows = Mapping[Key, pd.DataFrame]
Estimates = dict[Key, Estimate]
# Rows to compare with, which are no contestants: not to learn is no way to win.
REFERENCES = (ORACLE, "pretrained", "custom_diffusion_frozen_token")
# A difference is tested for any subject with so many independent ones at least.
LEAST_SUBJECTS = 3


class Differences(NamedTuple):
    """The mean difference of two methods, paired by prompt and subject."""

    # With the error of the sample of subjects, of which those that share a concept are one; NaN
    # with fewer than LEAST_SUBJECTS.
    anywhere: Estimate
    here: Estimate  # with the error of the sample of prompts, or of captions for values of sets
    # With the error of the sample of trainings, paired by seed; NaN without two of each method in
    # which anything is random.
    trainings: Estimate


@dataclass(frozen=True)
class Results:
    """The scores of a grid, and the protocol that says how they are averaged.

    The value of a cell is the mean over its trainings.
    """

    scores: pd.DataFrame  # as `eval.scores.reading.load_scores` gives
    grid: Grid
    protocol: Protocol
    profile: str = DEFAULT_PROFILE
    fresh: Freshness = field(default_factory=Freshness)
    # Why cells could not be made, by method and subject.
    failed: Mapping[tuple[str, str], Failure] = field(default_factory=dict)
    # What made the images, by method, if that was not this project.
    external: Mapping[str, External] = field(default_factory=dict)
    styles: Collection[str] = ()  # the concepts that are styles

    def heading(self) -> str:
        """What stands above every table that is printed."""
        return f"Profile {self.profile}, protocol {self.protocol.name}"

    def scored(self, method: str, kind: str, metric: str) -> list[str]:
        """The subjects that the method's mean is over."""
        subjects = self.averaged(kind, metric)
        return [subject for subject in subjects if (method, subject, metric) in self.found]

    @cached_property
    def trainings(self) -> int:
        """With how many seeds methods were trained, those with most."""
        return max((len(seeds) for seeds in self.seeds.values()), default=0)

    @cached_property
    def seeds(self) -> dict[tuple[str, str], list[int]]:
        """The seeds of the trainings of each method and subject, if anything in it is random."""
        cells = self.scores[["method", "subject", "seed"]].drop_duplicates().dropna()
        found: dict[tuple[str, str], list[int]] = {}
        for method, subject, seed in cells.itertuples(index=False):
            found.setdefault((str(method), str(subject)), []).append(int(seed))
        return found

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """The scores, those of each cell's trainings made one; see `pooled`."""
        return pooled(self.scores)

    @cached_property
    def by_metric(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """The rows of each method, subject and metric."""
        return _by_metric(self.pooled)

    @cached_property
    def pictured(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """The same of the main trainings alone, of which the pictures are that people see."""
        return _by_metric(main_training(self.scores))

    @cached_property
    def without_captions(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """Of values of sets, what they are without each caption, by its `template`."""
        rows = self._of_grid(self.pooled, left_out(self.pooled))
        return {
            (str(m), str(s), str(name)): {
                self.template(str(s), caption): value
                for caption, value in zip(part["prompt"], part["value"])
            }
            for (m, s, name), part in rows.groupby(["method", "subject", "metric"], sort=False)
        }

    @cached_property
    def templates(self) -> dict[tuple[str, int], str]:
        """The `template` of each prompt, by subject and number."""
        scores = self.scores
        rows = self._of_grid(scores, scores["sample"].notna() & (scores["method"] != ORACLE))
        rows = rows.drop_duplicates(["subject", "prompt_index"])
        return {
            (subject, int(index)): self.template(subject, prompt)
            for subject, index, prompt in zip(rows["subject"], rows["prompt_index"], rows["prompt"])
        }

    def _of_grid(self, scores: pd.DataFrame, chosen: pd.Series[bool]) -> pd.DataFrame:
        """The chosen rows, of subjects of the grid, which may be narrower than the scores."""
        return scores[chosen & scores["subject"].isin(self.grid.subjects())]

    def template(self, subject: str, text: str) -> str:
        """A prompt or caption with {0}, {1} in place of the class nouns of the subject's concepts.

        By it, what different subjects are asked for in the same words is known to be so.
        """
        nouns = [self.grid.all_concepts()[c].class_noun for c in self.grid.concepts_of(subject)]
        longest = sorted(map(re.escape, nouns), key=len, reverse=True)
        pattern = rf"\b({'|'.join(longest)})\b"
        return re.sub(pattern, lambda match: f"{{{nouns.index(match[1])}}}", text)

    @cached_property
    def found(self) -> Estimates:
        """The mean of every metric in every cell; see `estimates`."""
        return _estimates(self.by_metric)

    @cached_property
    def by_target(self) -> dict[int, dict[Key, pd.DataFrame]]:
        """By the number of a target, the rows of what is measured with that one alone."""
        return _by_target(self.pooled)

    @cached_property
    def found_by_target(self) -> dict[int, Estimates]:
        """By the number of a target, the means of what is measured with that one alone."""
        return {n: _estimates(rows) for n, rows in self.by_target.items()}

    @cached_property
    def by_training(self) -> dict[int | None, dict[int | None, Rows]]:
        """By seed, and by the number of a target or None, the rows of that training alone.

        None is the seed where nothing is random.
        """
        seeds = {seed for some in self.seeds.values() for seed in some}
        parts: dict[int | None, pd.DataFrame] = {
            seed: self.scores[self.scores["seed"].eq(seed).fillna(False).astype(bool)]
            for seed in seeds
        }
        parts[None] = self.scores[self.scores["seed"].isna()]
        found: dict[int | None, dict[int | None, Rows]] = {}
        for seed, part in parts.items():
            targets = _by_target(part)
            found[seed] = {None: _by_metric(part), **{n: targets[n] for n in targets}}
        return found

    def kinds(self) -> list[str]:
        """Those of KINDS that the grid has subjects of."""
        return [kind for kind in KINDS if self.subjects(kind)]

    def subjects(self, kind: str) -> list[str]:
        """The grid's subjects of a kind; see `subjects_of`."""
        return subjects_of(self.grid, kind, self.styles)

    def kind_of(self, subject: str) -> str:
        """The kind of a subject of the grid."""
        return next(kind for kind in KINDS if subject in self.subjects(kind))

    def metrics(self, kind: str) -> list[str]:
        """What the protocol measures of a kind of subjects."""
        asked = self.protocol.score.metrics
        return [
            name
            for name, metric in METRICS.items()
            if name in asked and (kind != "compositions" or metric.per_image)
        ]

    def headline(self, kind: str) -> list[str]:
        """Those of them that tables of all methods show."""
        return [name for name in self.metrics(kind) if METRICS[name].headline]

    def averaged(self, kind: str, metric: str) -> list[str]:
        """The subjects that the protocol's mean of a metric is over."""
        rules = self.protocol.score.leave_out
        left_out = {c for name, concepts in rules.items() if name == metric for c in concepts}
        return [subject for subject in self.subjects(kind) if subject not in left_out]

    def mean(self, method: str, kind: str, metric: str) -> Estimate | None:
        """The mean over subjects; see `over_subjects`."""
        return over_subjects(self.found, self.grid, method, metric, self.averaged(kind, metric))

    def failures(self, method: str, kind: str) -> list[Failure]:
        """Why subjects of a kind have no scores though the method was run on them."""
        subjects = self.subjects(kind)
        return [self.failed[key] for s in subjects if (key := (method, s)) in self.failed]

    def difference(
        self, first: str, second: str, kind: str, metric: str, target: int | None = None
    ) -> Differences | None:
        """The mean of first - second over the subjects that they share; None if there are none.

        Args:
            first: a method,
            second: and another.
            kind: of subjects.
            metric: what is compared, prompt by prompt, or, of sets, caption by caption.
            target: the number of the concept, if it is about one of several.
        """
        rows = self.by_metric if target is None else self.by_target.get(target, {})
        found: dict[str, Stratum] = {}
        for subject in self.averaged(kind, metric):
            a, b = ((method, subject, metric) for method in (first, second))
            if a in rows and b in rows and (stratum := self._paired(rows, a, b)):
                found[subject] = stratum
        if not found:
            return None
        groups = components([self.grid.concepts_of(subject) for subject in found])
        means = [stratum.mean for stratum in found.values()]
        trained = [
            self._by_seed((first, subject, metric), (second, subject, metric), target)
            for subject in found
        ]
        return Differences(
            mean_over_groups(means, groups, LEAST_SUBJECTS),
            mean_over_strata([*found.values()]),
            mean_over_trainings(trained, groups),
        )

    def _by_seed(self, first: Key, second: Key, target: int | None) -> dict[int, float]:
        """The difference of two cells by the seed of both; by that of one if the other has none."""
        one, other = (self.seeds.get(key[:2], []) for key in (first, second))
        found = {}
        for seed in [s for s in one if s in other] if one and other else one or other:
            a, b = (
                self.by_training[seed if seeds else None].get(target, {}).get(key)
                for key, seeds in ((first, one), (second, other))
            )
            gap = _gap(a, b) if a is not None and b is not None else math.nan
            if not math.isnan(gap):
                found[seed] = gap
        return found

    def _paired(self, rows: Rows, first: Key, second: Key) -> Stratum | None:
        """The difference of two cells in a metric; None if they have nothing in common."""
        one, other = rows[first], rows[second]
        if one["prompt_index"].isna().all():
            difference = float(one["value"].iloc[0] - other["value"].iloc[0])
            # Without the same captions there is no way to pair, and so no error.
            a, b = (self.without_captions.get(key, {}) for key in (first, second))
            left_out = {label: a[label] - b[label] for label in a} if a.keys() == b.keys() else {}
            return jackknifed_stratum(difference, left_out, len(left_out))
        pairs = (_by_prompt(one) - _by_prompt(other)).dropna()
        if pairs.empty:
            return None
        subject = first[1]
        labels = [self.templates.get((subject, int(i)), str(i)) for i in pairs.index]
        return clustered_stratum(pairs, labels)

    def refused(
        self, subjects: Collection[str] | None = None, metrics: Collection[str] = tuple(METRICS)
    ) -> list[str]:
        """Says of which metrics and subjects, all or these, there is no value, and why."""
        rows = self.scores[self.scores["value"].isna() & self.scores["metric"].isin(metrics)]
        rows = rows if subjects is None else rows[rows["subject"].isin(subjects)]
        of_oracle = rows.assign(oracle=rows["method"] == ORACLE)
        cells = of_oracle[["oracle", "metric", "subject", "clusters"]].drop_duplicates()
        of_methods = {(metric, name) for oracle, metric, name, _ in cells.to_numpy() if not oracle}
        said = []
        for oracle, metric, subject, count in cells.itertuples(index=False):
            if oracle and (metric, subject) in of_methods:
                continue
            about = METRICS[metric]
            least, what = about.least
            # An oracle compares two halves of the real images, so it has pairs of captions.
            of, pairs = (
                ("the oracle's ", "pairs of " * (not about.per_image)) if oracle else ("", "")
            )
            said.append(
                f"{of}{about.title} of {words(subject)} is –, as it has only {count} {pairs}{what} "
                f"of the {least} it needs"
            )
        return said

    def by_chance(
        self,
        kinds: Iterable[str],
        metrics: Iterable[str],
        subjects: Collection[str] | None = None,
    ) -> list[str]:
        """Says what metrics that rank would be with galleries in random order.

        Args:
            kinds: of subjects.
            metrics: those that rank are told of.
            subjects: those that the means are over; all if not given.
        """
        said = []
        for metric in metrics:
            if not isinstance(METRICS[metric], OfGallery):
                continue
            # Of a method's images: the oracle's gallery is smaller by one.
            rows = self.scores[(self.scores["metric"] == metric) & self.scores["sample"].notna()]
            chances = rows.groupby("subject")["chance"].mean()
            for kind in kinds:
                shown = [s for s in self.averaged(kind, metric) if s in chances.index]
                whole = subjects is None or set(shown) <= {*subjects}
                shown = [s for s in shown if subjects is None or s in subjects]
                if shown:
                    about = METRICS[metric]
                    value = f"{chances[shown].mean():.{about.digits}f}"
                    of = KINDS[kind] if whole else ", ".join(map(words, shown))
                    said.append(f"By chance {about.title} of {of} is {value}")
        return said

    def left_out(self) -> str:
        """Says which concepts of the grid means leave out; empty if none."""
        said = [
            f"{METRICS[metric].title} leaves out {', '.join(map(words, names))}"
            for metric, concepts in self.protocol.score.leave_out.items()
            if (names := [c for c in concepts if c in self.grid.concepts])
        ]
        return "; ".join([*said, f"as protocol {self.protocol.name} asks"]) if said else ""


def load_results(profile: str = DEFAULT_PROFILE) -> Results:
    """What was scored of a profile so far.

    Raises:
        BenchError: nothing was, a file is damaged, or scores cannot be compared.
    """
    params, grid = load_params(profile), load_grid(profile)
    scores, failed = load_scores(profile), failed_cells(profile)
    if scores.empty and not failed:
        raise BenchError(f"profile {profile!r} has no scores yet: run `{repro_command(profile)}`")
    return Results(
        scores,
        grid,
        params.protocol,
        profile,
        freshness(profile, scores, failed),
        failed,
        {method: load_external(method) for method in filter(is_external, grid.methods)},
        styles_of(grid),
    )


def subjects_of(grid: Grid, kind: str, styles: Collection[str] = ()) -> list[str]:
    """The grid's subjects of a kind: things, compositions of them, or what a style has a part in.

    Args:
        grid: has them.
        kind: one of KINDS.
        styles: the concepts that are styles; see `pipeline.concepts.concept.styles_of`.
    """

    def of(subject: str) -> str:
        if not set(styles).isdisjoint(grid.concepts_of(subject)):
            return "styles"
        return "single" if subject in grid.concepts else "compositions"

    return [subject for subject in grid.subjects() if of(subject) == kind]


def reference_method(grid: Grid) -> str:
    """The method that all others are compared with: Custom Diffusion, or the grid's first."""
    return "custom_diffusion" if "custom_diffusion" in grid.methods else grid.methods[0]


def rankable(over: Mapping[str, frozenset[str]]) -> list[str]:
    """The methods whose means can be ranked, as they are over the same subjects.

    A mean over other subjects is no rival. Of the sets with most subjects it is that which most
    methods have.

    Args:
        over: by method, what its mean is over.
    """
    counts = Counter(over.values())
    most = max(counts, key=lambda subjects: (len(subjects), counts[subjects]), default=None)
    return [method for method, subjects in over.items() if subjects == most]


def estimates(scores: pd.DataFrame) -> Estimates:
    """The mean of every metric in every cell, with its error clustered by prompt.

    Image-alignment with a composition is the mean of that with its concepts (Custom Diffusion,
    Table 1), image by image, so that its error takes their correlation into account.

    Args:
        scores: as `eval.scores.reading.load_scores` gives.
    """
    return _estimates(_by_metric(pooled(scores)))


def _estimates(by_metric: Rows) -> Estimates:
    found: Estimates = {}
    for (method, subject, metric), rows in by_metric.items():
        if rows["prompt_index"].isna().all():
            value, error, n, clusters = rows.iloc[0][["value", "std_error", "n", "clusters"]]
            estimate = Estimate(float(value), float(error), int(n), int(clusters))
        else:
            estimate = clustered_mean(rows["value"], rows["prompt_index"].astype(int))
        found[method, subject, metric] = estimate
    return found


def over_subjects(
    found: Estimates, grid: Grid, method: str, metric: str, subjects: Sequence[str]
) -> Estimate | None:
    """The mean over those of the subjects that were scored.

    The error is that of the sample of subjects, of which those that share a concept are one; for a
    single subject it is its own.
    """
    cells = {s: found[key] for s in subjects if (key := (method, s, metric)) in found}
    if not cells:
        return None
    means = [cell.mean for cell in cells.values()]
    if len(means) == 1:
        return next(iter(cells.values()))
    return mean_over_groups(means, components([grid.concepts_of(subject) for subject in cells]))


def pooled(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with the mean over its trainings in place of each cell's values.

    Images of one prompt and number are of the same noise in all trainings. The error of a mean of
    values of sets is the jackknife's over the captions that they have in common.

    Args:
        scores: as `eval.scores.reading.load_scores` gives.
    """
    cells = scores[["method", "subject", "seed"]].drop_duplicates()
    keys = [*zip(scores["method"], scores["subject"])]
    count = Counter(zip(cells["method"], cells["subject"]))
    several = np.array([count[key] > 1 for key in keys], bool)
    if not several.any():
        return scores
    what = [name for name in scores.columns if name not in ("seed", "value", "std_error", "rows")]
    grouped = scores[several].groupby(what, as_index=False, sort=False, dropna=False)
    means: pd.DataFrame = grouped[["value"]].mean()
    captions: dict[Key, dict[str, float]] = defaultdict(dict)
    for row in means[left_out(means)].to_dict("records"):
        captions[row["method"], row["subject"], row["metric"]][row["prompt"]] = row["value"]
    of_sets = means["prompt"].isna() & means["sample"].isna()
    means["std_error"] = [
        jackknifed_stratum(
            row["value"], captions[row["method"], row["subject"], row["metric"]], 0
        ).error()
        if of_set
        else math.nan
        for row, of_set in zip(means.to_dict("records"), of_sets)
    ]
    return pd.concat([scores[~several], means], ignore_index=True)


def _by_target(scores: pd.DataFrame) -> dict[int, dict[Key, pd.DataFrame]]:
    """By the number of a target, the rows of what is measured with that one alone."""
    of_images = scores[scores["sample"].notna()]
    return {int(str(n)): _by_metric(rows) for n, rows in of_images.groupby("target")}


def _gap(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """The difference of two trainings' means over prompts, or values of sets; NaN if none."""
    if one["prompt_index"].isna().all():
        return float(one["value"].iloc[0] - other["value"].iloc[0])
    return float((_by_prompt(one) - _by_prompt(other)).mean())


def _by_metric(scores: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """The rows of each method, subject and metric; those of an image with each target made one."""
    scores = scores[~left_out(scores) & scores["value"].notna()]  # refused: no value
    targeted = scores["target"].notna() & scores["sample"].notna()
    image = ["protocol", "method", "subject", "metric", "extractor"]
    image += ["prompt_index", "prompt", "sample"]
    means = scores[targeted].groupby(image, as_index=False, sort=False)["value"].mean()
    rows = pd.concat([scores[~targeted], means])
    groups = rows.groupby(["method", "subject", "metric"], sort=False)
    return {(str(m), str(s), str(name)): group for (m, s, name), group in groups}


def _by_prompt(rows: pd.DataFrame) -> pd.Series[float]:
    """The mean of each prompt."""
    return rows.groupby("prompt_index")["value"].mean()
