"""Results: the scores of a grid, and their estimates, means and differences.

The rules are the protocol's: which metrics there are, and which concepts a metric's mean leaves
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from eval.freshness import Freshness, freshness
from eval.metrics.catalogue import METRICS
from eval.scores.reading import failed_cells, load_scores
from eval.statistics import Estimate, clustered_mean, mean_over, mean_over_strata
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.settings.external import External, is_external, load_external
from pipeline.settings.profile import Grid, load_grid, load_params
from pipeline.settings.protocol import Protocol

# The groups of subjects; KID and FID need real images of what was asked for, so of one concept.
KINDS: dict[str, str] = {"single": "single concepts", "compositions": "compositions"}
Estimates = dict[tuple[str, str, str], Estimate]  # by method, subject and metric


class Differences(NamedTuple):
    """The mean difference of two methods, paired by prompt and subject."""

    anywhere: Estimate  # with the error of the sample of subjects
    here: Estimate  # with the error of the sample of prompts; NaN for values of sets


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
    def found(self) -> Estimates:
        """The mean of every metric in every cell; see `estimates`."""
        return estimates(self.scores)

    @cached_property
    def found_by_target(self) -> dict[int, Estimates]:
        """By the number of a target, the means of what is measured with that one alone."""
        of_images = self.scores[self.scores["sample"].notna()]
        return {int(str(n)): estimates(rows) for n, rows in of_images.groupby("target")}

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

    def averaged(self, kind: str, metric: str) -> list[str]:
        """The subjects that the protocol's mean of a metric is over."""
        rules = self.protocol.score.leave_out
        left_out = {c for name, concepts in rules.items() if name == metric for c in concepts}
        return [subject for subject in subjects_of(self.grid, kind) if subject not in left_out]

    def mean(self, method: str, kind: str, metric: str) -> Estimate | None:
        """The mean over subjects; see `over_subjects`."""
        return over_subjects(self.found, method, metric, self.averaged(kind, metric))

    def failures(self, method: str, kind: str) -> list[Failure]:
        """Why subjects of a kind have no scores though the method was run on them."""
        subjects = subjects_of(self.grid, kind)
        return [self.failed[key] for s in subjects if (key := (method, s)) in self.failed]

    def difference(self, first: str, second: str, kind: str, metric: str) -> Differences | None:
        """The mean of first - second over the subjects that they share; None if there are none.

        Both errors are over prompts where the two share one subject only.
        """
        found = {
            subject: _by_prompt(a) - _by_prompt(b)
            for subject in self.averaged(kind, metric)
            if (a := self.by_metric.get((first, subject, metric))) is not None
            and (b := self.by_metric.get((second, subject, metric))) is not None
        }
        if not found:
            return None
        return mean_difference(pd.concat(found).dropna())

    def left_out(self) -> str:
        """Says which concepts of the grid means leave out; empty if none."""
        said = [
            f"{METRICS[metric].title} leaves out {', '.join(map(words, names))}"
            for metric, concepts in self.protocol.score.leave_out.items()
            if (names := [c for c in concepts if c in self.grid.concepts])
        ]
        return "; ".join([*said, f"as protocol {self.protocol.name} asks"]) if said else ""


def mean_difference(pairs: pd.Series[float]) -> Differences:
    """The mean over subjects of paired differences, of which there is one at least.

    Args:
        pairs: first - second, indexed by subject and prompt. Both errors are over prompts where
            there is one subject only.
    """
    subjects, prompts = (pairs.index.get_level_values(i) for i in (0, 1))
    here = mean_over_strata(pairs, prompts, subjects)
    means = pairs.groupby(level=0, sort=False).mean()
    return Differences(here if len(means) == 1 else mean_over(means), here)


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
    found: Estimates = {}
    for (method, subject, metric), rows in _by_metric(scores).items():
        if rows["prompt_index"].isna().all():
            value, error, n = rows.iloc[0][["value", "std_error", "n"]]
            estimate = Estimate(float(value), float(error), int(n), int(n))
        else:
            estimate = clustered_mean(rows["value"], rows["prompt_index"].astype(int))
        found[method, subject, metric] = estimate
    return found


def over_subjects(
    found: Estimates, method: str, metric: str, subjects: Sequence[str]
) -> Estimate | None:
    """The mean over those of the subjects that were scored.

    The error is that of the sample of subjects; for a single one it is its own.
    """
    cells = [found[key] for s in subjects if (key := (method, s, metric)) in found]
    if not cells:
        return None
    return cells[0] if len(cells) == 1 else mean_over([cell.mean for cell in cells])


def _by_metric(scores: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """The rows of each method, subject and metric; those of an image with each target made one."""
    targeted = scores["target"].notna() & scores["sample"].notna()
    image = ["protocol", "method", "subject", "metric", "extractor"]
    image += ["prompt_index", "prompt", "sample"]
    means = scores[targeted].groupby(image, as_index=False, sort=False)["value"].mean()
    rows = pd.concat([scores[~targeted], means])
    groups = rows.groupby(["method", "subject", "metric"], sort=False)
    return {(str(m), str(s), str(name)): group for (m, s, name), group in groups}


def _by_prompt(rows: pd.DataFrame) -> pd.Series[float]:
    """The mean of each prompt; a set's only value has none."""
    return rows.fillna({"prompt_index": -1}).groupby("prompt_index")["value"].mean()
