"""Results: the scores of a grid, and their estimates, means and differences.

The rules are the protocol's: which metrics there are, and which concepts a metric's mean leaves
out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from eval.freshness import Freshness, freshness
from eval.metrics.catalogue import METRICS, OfGallery
from eval.scores.file import ORACLE, left_out
from eval.scores.reading import failed_cells, load_scores
from eval.statistics import (
    Estimate,
    Stratum,
    clustered_mean,
    clustered_stratum,
    components,
    jackknifed_stratum,
    mean_over_groups,
    mean_over_strata,
)
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.settings.external import External, is_external, load_external
from pipeline.settings.profile import Grid, load_grid, load_params
from pipeline.settings.protocol import Protocol

# The groups of subjects; KID and FID need real images of what was asked for, so of one concept.
KINDS: dict[str, str] = {"single": "single concepts", "compositions": "compositions"}
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


@dataclass(frozen=True)
class Results:
    """The scores of a grid, and the protocol that says how they are averaged."""

    scores: pd.DataFrame  # as `eval.scores.reading.load_scores` gives
    grid: Grid
    protocol: Protocol
    profile: str = DEFAULT_PROFILE
    fresh: Freshness = field(default_factory=Freshness)
    # Why cells could not be made, by method and subject.
    failed: Mapping[tuple[str, str], Failure] = field(default_factory=dict)
    # What made the images, by method, if that was not this project.
    external: Mapping[str, External] = field(default_factory=dict)

    def heading(self) -> str:
        """What stands above every table that is printed."""
        return f"Profile {self.profile}, protocol {self.protocol.name}"

    def scored(self, method: str, kind: str, metric: str) -> list[str]:
        """The subjects that the method's mean is over."""
        subjects = self.averaged(kind, metric)
        return [subject for subject in subjects if (method, subject, metric) in self.found]

    @cached_property
    def by_metric(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """The rows of each method, subject and metric."""
        return _by_metric(self.scores)

    @cached_property
    def without_captions(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """Of values of sets, what they are without each caption, by its `template`."""
        rows = self._of_grid(left_out(self.scores))
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
        rows = self._of_grid(self.scores["sample"].notna() & (self.scores["method"] != ORACLE))
        rows = rows.drop_duplicates(["subject", "prompt_index"])
        return {
            (subject, int(index)): self.template(subject, prompt)
            for subject, index, prompt in zip(rows["subject"], rows["prompt_index"], rows["prompt"])
        }

    def _of_grid(self, chosen: pd.Series[bool]) -> pd.DataFrame:
        """The chosen rows, of subjects of the grid, which may be narrower than the scores."""
        return self.scores[chosen & self.scores["subject"].isin(self.grid.subjects())]

    def template(self, subject: str, text: str) -> str:
        """A prompt or caption with {0}, {1} in place of the class nouns of the subject's concepts.

        By it, what different subjects are asked for in the same words is known to be so.
        """
        nouns = [self.grid.concepts[c].class_noun for c in self.grid.concepts_of(subject)]
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
        of_images = self.scores[self.scores["sample"].notna()]
        return {int(str(n)): _by_metric(rows) for n, rows in of_images.groupby("target")}

    @cached_property
    def found_by_target(self) -> dict[int, Estimates]:
        """By the number of a target, the means of what is measured with that one alone."""
        return {n: _estimates(rows) for n, rows in self.by_target.items()}

    def kinds(self) -> list[str]:
        """Those of KINDS that the grid has subjects of."""
        return [kind for kind in KINDS if subjects_of(self.grid, kind)]

    def metrics(self, kind: str) -> list[str]:
        """What the protocol measures of a kind of subjects."""
        asked = self.protocol.score.metrics
        return [
            name
            for name, metric in METRICS.items()
            if name in asked and (kind == "single" or metric.per_image)
        ]

    def headline(self, kind: str) -> list[str]:
        """Those of them that tables of all methods show."""
        return [name for name in self.metrics(kind) if METRICS[name].headline]

    def averaged(self, kind: str, metric: str) -> list[str]:
        """The subjects that the protocol's mean of a metric is over."""
        rules = self.protocol.score.leave_out
        left_out = {c for name, concepts in rules.items() if name == metric for c in concepts}
        return [subject for subject in subjects_of(self.grid, kind) if subject not in left_out]

    def mean(self, method: str, kind: str, metric: str) -> Estimate | None:
        """The mean over subjects; see `over_subjects`."""
        return over_subjects(self.found, self.grid, method, metric, self.averaged(kind, metric))

    def failures(self, method: str, kind: str) -> list[Failure]:
        """Why subjects of a kind have no scores though the method was run on them."""
        subjects = subjects_of(self.grid, kind)
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
        return Differences(
            mean_over_groups(means, groups, LEAST_SUBJECTS), mean_over_strata([*found.values()])
        )

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

    def refused(self, subjects: Collection[str] | None = None) -> list[str]:
        """Says of which metrics and subjects, all or these, there is no value, and why."""
        rows = self.scores[self.scores["value"].isna()]
        rows = rows if subjects is None else rows[rows["subject"].isin(subjects)]
        said = []
        cells = rows[["metric", "subject", "clusters"]].drop_duplicates()
        for metric, subject, count in cells.itertuples(index=False):
            least, what = METRICS[metric].least
            said.append(
                f"{METRICS[metric].title} of {words(subject)} is –, as it has only {count} {what} "
                f"of the {least} it needs"
            )
        return said

    def by_chance(self, kinds: Iterable[str], metrics: Iterable[str]) -> list[str]:
        """Says what metrics that rank would be with galleries in random order."""
        said = []
        for metric in metrics:
            if not isinstance(METRICS[metric], OfGallery):
                continue
            # Of a method's images: the oracle's gallery is smaller by one.
            rows = self.scores[(self.scores["metric"] == metric) & self.scores["sample"].notna()]
            subjects = rows.groupby("subject")["chance"].mean()
            for kind in kinds:
                shown = [s for s in self.averaged(kind, metric) if s in subjects.index]
                if shown:
                    about = METRICS[metric]
                    value = f"{subjects[shown].mean():.{about.digits}f}"
                    said.append(f"By chance {about.title} of {KINDS[kind]} is {value}")
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
    scores, failed = load_scores(profile), failed_cells(profile)
    if scores.empty and not failed:
        raise BenchError(f"profile {profile!r} has no scores yet: run `{repro_command(profile)}`")
    grid = load_grid(profile)
    return Results(
        scores,
        grid,
        load_params(profile).protocol,
        profile,
        freshness(profile, scores),
        failed,
        {method: load_external(method) for method in filter(is_external, grid.methods)},
    )


def subjects_of(grid: Grid, kind: str) -> list[str]:
    """The grid's concepts or its compositions."""
    return list(grid.concepts if kind == "single" else grid.composed())


def reference_method(grid: Grid) -> str:
    """The method that all others are compared with: Custom Diffusion, or the grid's first."""
    return "custom_diffusion" if "custom_diffusion" in grid.methods else grid.methods[0]


def estimates(scores: pd.DataFrame) -> Estimates:
    """The mean of every metric in every cell, with its error clustered by prompt.

    Image-alignment with a composition is the mean of that with its concepts (Custom Diffusion,
    Table 1), image by image, so that its error takes their correlation into account.

    Args:
        scores: as `eval.scores.reading.load_scores` gives.
    """
    return _estimates(_by_metric(scores))


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
