"""What is learned, kept and forgotten when concepts are learned one after the other.

All of these are made of one array `r` [tasks, concepts, prompts]: `r[g, j, p]` is a metric after
task g of the images that concept j's prompt p asks for, higher is better. Concepts are in the order
of their tasks, so that what stands above the diagonal is not there: NaN, as is everything that was
not measured. A measure that lacks a value is NaN too, and never a mean over fewer.

Most measures are a mean over concepts of a mean over prompts. They are given as their `Terms`, the
values of each concept's prompts, so that whoever averages them can say how sure the mean is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eval.metrics import FloatArray, Values

# By concept, its values by prompt, float64 [prompts]; NaN where the concept has no such prompt.
Terms = list[Values]


def mean_of(terms: Terms) -> float:
    """The mean over concepts of the means over prompts; NaN without concepts, or where one is."""
    return float(np.mean([_mean(values) for values in terms])) if terms else math.nan


def _mean(values: Values) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan


def averages(r: FloatArray) -> Values:
    """A_g, float64 [tasks]: the mean over the concepts that are learned after each task."""
    return np.array([mean_of(known(r, task)) for task in range(len(r))])


def known(r: FloatArray, task: int) -> Terms:
    """The terms of A_g: how well each concept that is learned after a task is known."""
    return [_doubles(r[task, concept]) for concept in range(task + 1)]


def learned(r: FloatArray) -> Terms:
    """How well each concept is known when it was just learned: the diagonal (plasticity)."""
    return [_doubles(r[j, j]) for j in range(len(r))]


def transfer(r: FloatArray) -> Terms:
    """Backward transfer (Lopez-Paz and Ranzato, 2017): what each concept but the last gained.

    After the last task less when it was just learned, prompt by prompt. Below zero: forgetting. The
    mean is unbiased.
    """
    return [_doubles(r[-1, j]) - _doubles(r[j, j]) for j in range(len(r) - 1)]


def forgetting(r: FloatArray) -> Terms:
    """Forgetting as papers have it (Chaudhry et al., 2018): the best before, less the last.

    The best is by the mean over prompts, of the tasks before the last. It is the largest of noisy
    numbers: of n of them with independent errors s, with nothing forgotten, it is too large by
    c_n s, the expected maximum of n standard normals (0.56 for two, 1.16 for five).
    """
    terms = []
    for j in range(len(r) - 1):
        means = [_mean(_doubles(r[task, j])) for task in range(j, len(r) - 1)]
        best = j + int(np.argmax(means)) if not np.isnan(means).any() else None
        last = _doubles(r[-1, j])
        terms.append(np.full_like(last, np.nan) if best is None else _doubles(r[best, j]) - last)
    return terms


def intransigence(r: FloatArray, separate: FloatArray) -> Terms:
    """What learning in sequence costs the new concept: less than an adapter of its own has.

    Args:
        r: see above.
        separate: [concepts, prompts], of adapters of single concepts.
    """
    return [_doubles(separate[j]) - _doubles(r[j, j]) for j in range(len(r))]


class Share(NamedTuple):
    """The share of what was learned that is left, a ratio of sums."""

    value: float
    learned: Terms  # of the denominator: with an interval that holds zero there is no such share


def share_left(r: FloatArray, pretrained: FloatArray) -> Share:
    """How much of what all concepts but the last gained over the base is left after the last task.

    Args:
        r: see above.
        pretrained: [concepts, prompts], of the base asked for the class nouns.
    """
    before = [_doubles(row) for row in pretrained[: len(r) - 1]]
    left = sum(_mean(_doubles(r[-1, j]) - row) for j, row in enumerate(before))
    gained = [_doubles(r[j, j]) - row for j, row in enumerate(before)]
    whole = sum(_mean(values) for values in gained)
    return Share(left / whole if whole else math.nan, gained)


class Confusion(NamedTuple):
    """Which concept the images of each look like."""

    alignment: Values  # [concepts, concepts]: of images of one with the targets of another
    accuracy: Values  # [concepts]: the share of images nearest to the targets of their own


def confusion(alignments: Sequence[FloatArray]) -> Confusion:
    """Of the images after one task, how like they are to the targets of every concept.

    Args:
        alignments: for each concept [images, concepts], of images that it was asked for.
    """
    found = [_doubles(part) for part in alignments]
    return Confusion(
        np.array([part.mean(0) for part in found]),
        np.array([float(np.mean(part.argmax(1) == j)) for j, part in enumerate(found)]),
    )


def damage(now: FloatArray, pretrained: FloatArray) -> Terms:
    """What the last model loses where no token is asked for: the base's values less its own.

    Args:
        now: [concepts, prompts], of the model after the last task, asked for class nouns.
        pretrained: the same of the base.
    """
    return [_doubles(b) - _doubles(a) for a, b in zip(now, pretrained, strict=True)]


def _doubles(values: FloatArray) -> Values:
    return np.asarray(values, np.float64)
