"""Results of sequences: what was learned, kept and forgotten, and how sure that is.

The measures are those of `eval.metrics.continual`. What a concept's own adapter reaches, and what
the base does, is read from the scores of single concepts: of the same prompts and start noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from eval.freshness import Freshness, freshness
from eval.metrics import Values
from eval.metrics.catalogue import METRICS, OfGallery
from eval.metrics.continual import Confusion, Terms, confusion
from eval.results import LEAST_SUBJECTS, Differences, Results
from eval.scores.file import SCORES
from eval.scores.reading import check_comparable, load_scores, load_sequence
from eval.statistics import (
    Estimate,
    Stratum,
    clustered_stratum,
    components,
    mean_over_groups,
    mean_over_strata,
)
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure, failure_of
from pipeline.common.places import repro_command
from pipeline.settings.profile import Params, load_grid, load_params


@dataclass(frozen=True)
class SequenceResults:
    """What was scored of a sequence."""

    name: str
    results: Results  # the grid and the protocol
    singles: pd.DataFrame  # scores of single concepts, as `load_scores` gives
    scores: pd.DataFrame  # as `eval.scores.reading.load_sequence` gives, of tasks
    plain: pd.DataFrame  # the same of the last models, asked for class nouns
    images: int  # for each prompt of a concept, after each task
    fresh: Freshness = field(default_factory=Freshness)
    # Why a task could not be made, by method and its number.
    failed: dict[tuple[str, int], Failure] = field(default_factory=dict)

    @property
    def concepts(self) -> list[str]:
        """In the order of the tasks."""
        return self.results.grid.sequences[self.name].concepts

    @property
    def methods(self) -> list[str]:
        """Those that were scored, in the order of the grid."""
        there = set(self.scores["method"])
        return [m for m in self.results.grid.sequences[self.name].methods if m in there]

    @property
    def metrics(self) -> list[str]:
        """What is measured of an image after each task: no galleries are ranked there."""
        asked = self.results.protocol.score.metrics
        return [
            name
            for name, about in METRICS.items()
            if name in asked and about.per_image and not isinstance(about, OfGallery)
        ]

    @cached_property
    def templates(self) -> list[list[str]]:
        """The prompts of each concept, with {0} for its class noun."""
        found = []
        for concept in self.concepts:
            rows = self.scores[self.scores["subject"] == concept]
            prompts = rows.drop_duplicates("prompt_index").sort_values("prompt_index")["prompt"]
            found.append([self.results.template(concept, prompt) for prompt in prompts])
        return found

    def matrix(self, method: str, metric: str) -> Values:
        """The array that all measures are made of, float64 [tasks, concepts, prompts].

        The mean over images; of image-alignment, that with the targets of the concept that was
        asked for. NaN where there is none.
        """
        count, width = len(self.concepts), max(map(len, self.templates))
        r = np.full((count, count, width), np.nan)
        rows = self._rows(self.scores, method, metric)
        number = rows["subject"].map({c: n for n, c in enumerate(self.concepts, 1)})
        own = rows[rows["target"].isna() | (rows["target"] == number)]
        means = own.groupby(["task", "subject", "prompt_index"], as_index=False)["value"].mean()
        places = means["subject"].map(self.concepts.index)
        r[means["task"].astype(int) - 1, places, means["prompt_index"].astype(int)] = means["value"]
        return r

    def of_singles(self, method: str, metric: str) -> Values | None:
        """The same of cells of single concepts, float64 [concepts, prompts]; None if one lacks.

        Of each prompt the images that a task makes too.
        """
        protocol = self.results.protocol
        if protocol.sequence is None or protocol.sequence.steps != protocol.sample.single.steps:
            return None  # of another sampler: not to be compared
        return self._by_concept(self.singles, method, metric)

    def of_nouns(self, method: str, metric: str) -> Values | None:
        """The same of the last model, asked for class nouns; None if there are no such images."""
        return self._by_concept(self.plain, method, metric)

    def _by_concept(self, scores: pd.DataFrame, method: str, metric: str) -> Values | None:
        rows = self._rows(scores, method, metric)
        rows = rows[rows["sample"] < self.images]
        r = np.full((len(self.concepts), max(map(len, self.templates))), np.nan)
        for place, concept in enumerate(self.concepts):
            own = rows[rows["subject"] == concept].groupby("prompt_index")["value"].mean()
            if len(own) != len(self.templates[place]):
                return None
            r[place, own.index.astype(int)] = own
        return r

    def confusion(self, method: str, metric: str) -> Confusion | None:
        """Which concept the images of each look like after the last task; None without images."""
        rows = self._rows(self.scores, method, metric)
        rows = rows[(rows["task"] == len(self.concepts)) & rows["target"].notna()]
        tables = [
            rows[rows["subject"] == concept].pivot_table(
                "value", ["prompt_index", "sample"], "target"
            )
            for concept in self.concepts
        ]
        if any(table.shape[1] != len(self.concepts) for table in tables):
            return None
        return confusion([table.to_numpy(np.float64) for table in tables])

    def estimate(self, terms: Terms) -> Differences | None:
        """The mean of a measure; None if a value lacks.

        As a difference of methods: `anywhere` has the error of the sample of concepts, `here` that
        of prompts, of which those of one template vary together whatever the concept.
        """
        strata: list[Stratum] = []
        for labels, values in zip(self.templates, terms):
            there = np.isfinite(values[: len(labels)])
            if not len(labels) or not there.all():
                return None
            strata.append(clustered_stratum(values[: len(labels)], labels))
        if not strata:
            return None
        groups = components([[concept] for concept in self.concepts[: len(strata)]])
        means = [stratum.mean for stratum in strata]
        one = Estimate(float(np.mean(means)), math.nan, 1, 1)  # training of each task
        return Differences(
            mean_over_groups(means, groups, LEAST_SUBJECTS), mean_over_strata(strata), one
        )

    @staticmethod
    def _rows(scores: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
        return scores[
            (scores["method"] == method) & (scores["metric"] == metric) & scores["sample"].notna()
        ]


def load_sequences(results: Results) -> list[SequenceResults]:
    """What was scored of each sequence of a profile so far; those without any are left out.

    Raises:
        BenchError: a file is damaged, or scores cannot be compared.
    """
    found, params = [], load_params(results.profile)
    further = load_scores(results.profile, results.grid.sequence_concepts)
    singles = pd.concat([results.scores, further]) if len(further) else results.scores
    check_comparable(singles)
    for name in results.grid.sequences:
        everything = load_sequence(results.profile, name)
        if everything.empty:
            continue
        of_tasks, concepts = everything["task"].notna(), results.grid.sequences[name].concepts
        scores = everything[of_tasks]
        _check_order(params, name, concepts, scores)
        of_singles = singles[singles["subject"].isin(concepts)]
        cells = pd.concat([of_singles, everything.assign(subject=name)])
        check_comparable(cells)
        found.append(
            SequenceResults(
                name,
                results,
                singles,
                scores,
                everything[~of_tasks],
                params.task_sampling().images_per_prompt,
                freshness(results.profile, cells),
                _failures(params, results, name, sorted(set(scores["method"]))),
            )
        )
    return found


def failed_sequences(profile: str) -> dict[tuple[str, str], Failure]:
    """By method and sequence, why no task could be made: of others `SequenceResults` has rows."""
    params, grid = load_params(profile), load_grid(profile)
    return {
        (method, name): failure
        for name, sequence in grid.sequences.items()
        for method in sequence.methods
        if (failure := failure_of(params.record(method, name) / SCORES))
    }


def _check_order(params: Params, name: str, concepts: Sequence[str], scores: pd.DataFrame) -> None:
    """Whether scores are of these concepts, learned in this order.

    Raises:
        BenchError: they are of what the sequence was before the grid was changed.
    """
    found: dict[tuple[str, int], set[str]] = {}
    for method, task, subject in scores[["method", "task", "subject"]].itertuples(index=False):
        found.setdefault((method, int(task)), set()).add(subject)
    for (method, task), subjects in found.items():
        if subjects != {*concepts[:task]} or task > len(concepts):
            raise BenchError(
                f"{params.record(method, name) / SCORES}: of other concepts after task {task} than "
                f"sequence {name!r} has in the grid: run `{repro_command(params.profile)}`"
            )


def _failures(
    params: Params, results: Results, sequence: str, methods: Sequence[str]
) -> dict[tuple[str, int], Failure]:
    return {
        (method, number): failure
        for method in methods
        for number, task in enumerate(results.grid.tasks(sequence), 1)
        if (failure := failure_of(params.record(method, task) / "cost.json"))
    }
