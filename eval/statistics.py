"""Means with the standard errors that the way the data was collected asks for.

Images of one prompt resemble each other, so that they count as one observation with many
replicates, not as many observations: errors are clustered by prompt within a subject, and by
concept across subjects (Custom Diffusion prints no errors at all).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit


class Estimate(NamedTuple):
    """A mean and how sure it is."""

    mean: float
    std_error: float  # NaN where there are fewer than two clusters
    n: int  # values
    clusters: int  # independent groups of values; degrees of freedom plus one


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def clustered_mean(values: npt.ArrayLike, clusters: npt.ArrayLike) -> Estimate:
    """The mean of values that vary together within clusters.

    With residuals r, n values and c clusters the error is

        sqrt(c / (c - 1) * sum over clusters of (sum of r within the cluster)^2) / n,

    the cluster-robust (CR1) error of a mean. With clusters of equal size it is the standard
    deviation of the cluster means over sqrt(c).

    Args:
        values: [n] with n >= 1.
        clusters: the label of each value, [n].
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        raise ValueError("the mean of nothing")
    _, label = np.unique(np.asarray(clusters), return_inverse=True)
    mean = float(x.mean())
    sums = np.bincount(label, weights=x - mean)
    count = len(sums)
    error = float("nan")
    if count > 1:
        error = float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(x))
    return Estimate(mean, error, len(x), count)


def mean_over(means: npt.ArrayLike) -> Estimate:
    """The mean of independent means, one for each concept; the error is that of the sample."""
    x = np.asarray(means, np.float64)
    return clustered_mean(x, np.arange(len(x)))


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Estimate:
    """The mean of first - second, of which each pair of values belongs to one prompt.

    How hard a prompt is cancels out, so the error is far smaller than that of two separate means.

    Args:
        first: means by prompt, [prompts], of one method.
        second: means of the same prompts, [prompts], of another one.
    """
    return mean_over(np.asarray(first, np.float64) - np.asarray(second, np.float64))


def interval(estimate: Estimate, level: float = 0.95) -> Interval:
    """Student's t interval of a mean with clusters - 1 degrees of freedom; NaN without an error."""
    if estimate.clusters < 2:
        return Interval(float("nan"), float("nan"))
    quantile = float(stdtrit(estimate.clusters - 1, (1 + level) / 2))
    reach = quantile * estimate.std_error
    return Interval(estimate.mean - reach, estimate.mean + reach)
