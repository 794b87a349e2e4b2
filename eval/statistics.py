"""Means with the standard errors that the way the data was collected asks for.

Images of one prompt resemble each other, so that they count as one observation with many
replicates, not as many observations: errors are clustered by prompt within a subject, and by
subjects that share no concept across subjects (Custom Diffusion prints no errors at all).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import stdtr, stdtrit
from scipy.stats import rankdata


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
    variance, count = _variance(x, _labels(clusters, len(x)))
    return Estimate(float(x.mean()), math.sqrt(variance), len(x), count)


def two_way_mean(
    values: npt.ArrayLike, first_clusters: npt.ArrayLike, second_clusters: npt.ArrayLike
) -> Estimate:
    """The mean of values that vary together in two ways, as answers do by worker and by question.

    The variance of Cameron, Gelbach and Miller (2011): that clustered in the first way, plus that
    clustered in the second way, less that clustered by both at once, which the two have in common.
    Each is as in `clustered_mean`. Where nothing is left, which few clusters can lead to, it is the
    larger of the two.

    Args:
        values: [n] with n >= 1.
        first_clusters: the label of each value, [n].
        second_clusters: its label in the other way, [n].

    Returns:
        `clusters` is the smaller of the two counts, so that `interval` has its degrees of freedom;
        without two clusters in both ways the error is NaN.
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        raise ValueError("the mean of nothing")
    first, second = _labels(first_clusters, len(x)), _labels(second_clusters, len(x))
    both = _labels(first * (second.max() + 1) + second, len(x))
    (one, m), (two, n), (common, _) = (_variance(x, label) for label in (first, second, both))
    variance = one + two - common
    if min(m, n) < 2:
        variance = float("nan")
    elif variance <= 0:
        variance = max(one, two)
    return Estimate(float(x.mean()), math.sqrt(variance), len(x), min(m, n))


def _labels(clusters: npt.ArrayLike, n: int) -> npt.NDArray[np.intp]:
    """The clusters as numbers from 0, [n]."""
    names = np.asarray(clusters)
    if names.shape != (n,):
        raise ValueError(f"{n} values need {n} clusters, not {names.shape}")
    return np.asarray(np.unique(names, return_inverse=True)[1])


def _variance(x: npt.NDArray[np.float64], label: npt.NDArray[np.intp]) -> tuple[float, int]:
    """The cluster-robust variance of the mean, NaN for one cluster; and the number of clusters."""
    sums = np.bincount(label, weights=x - x.mean())
    count = len(sums)
    if count < 2:
        return float("nan"), count
    return float(count / (count - 1) * np.sum(sums**2)) / len(x) ** 2, count


def mean_over(means: npt.ArrayLike) -> Estimate:
    """The mean of independent means, one for each concept; the error is that of the sample."""
    x = np.asarray(means, np.float64)
    return clustered_mean(x, np.arange(len(x)))


class Stratum(NamedTuple):
    """An estimate, and how far each of its clusters pulls it."""

    mean: float
    n: int  # values
    labels: Sequence[str]  # of the clusters
    pulls: npt.NDArray[np.float64]  # [clusters]; sum to zero, their squares to the variance

    def error(self) -> float:
        """The standard error; NaN with fewer than two clusters."""
        return math.sqrt(self.pulls @ self.pulls) if len(self.labels) > 1 else math.nan


def clustered_stratum(values: npt.ArrayLike, clusters: Sequence[str]) -> Stratum:
    """The mean of values that vary together within clusters; its error is `clustered_mean`'s."""
    x, (names, label) = np.asarray(values, np.float64), np.unique(clusters, return_inverse=True)
    count = len(names)
    factor = math.sqrt(count / (count - 1)) / len(x) if count > 1 else math.nan
    return Stratum(
        float(x.mean()), len(x), names.tolist(), factor * np.bincount(label, x - x.mean())
    )


def jackknifed_stratum(value: float, left_out: Mapping[str, float], n: int) -> Stratum:
    """A value of n images with the jackknife's error: what it is without each cluster in turn."""
    without, count = np.array(list(left_out.values())), len(left_out)
    if count < 2:
        return Stratum(value, n, list(left_out), np.full(count, math.nan))
    pulls = math.sqrt((count - 1) / count) * (without.mean() - without)
    return Stratum(value, n, list(left_out), pulls)


def mean_over_strata(strata: Sequence[Stratum]) -> Estimate:
    """The mean over strata, which are all there is: the error is that within them.

    Says how sure the mean is for just these strata, of which other clusters could have been drawn;
    `mean_over_groups` says it for all that they could stand for. Clusters of one label vary
    together in whatever strata they are, as images of one prompt template do across subjects. With
    S strata the error is

        sqrt(sum over labels of (sum over strata of the cluster's pull)^2) / S,

    The degrees of freedom are Satterthwaite's, if the error of a label is as its weight in the
    mean, which is the sum over strata of 1 / clusters: a label that several strata share counts
    for more, so that the others add little. Each set of strata that share labels costs one.
    """
    mean, n = float(np.mean([s.mean for s in strata])), sum(s.n for s in strata)
    least = min(len(stratum.labels) for stratum in strata)
    if least < 2:
        return Estimate(mean, math.nan, n, least)
    labels = [label for stratum in strata for label in stratum.labels]
    names, label = np.unique(labels, return_inverse=True)
    pulls = np.bincount(label, np.concatenate([s.pulls for s in strata]), len(names))
    shares = np.concatenate([np.full(len(s.labels), 1 / len(s.labels)) for s in strata])
    weights = np.bincount(label, shares) ** 2
    effective = weights.sum() ** 2 / (weights**2).sum()
    freedom = int(effective + 1e-9) - len(set(components([s.labels for s in strata])))
    return Estimate(mean, math.sqrt(pulls @ pulls) / len(strata), n, max(freedom, 1) + 1)


def components(parts: Sequence[Sequence[str]]) -> list[int]:
    """For each thing a number, the same for those that share a part, directly or by others.

    Args:
        parts: of each thing, [n].
    """
    owners = [i for i, some in enumerate(parts) for _ in some]
    _, part = np.unique([name for some in parts for name in some], return_inverse=True)
    n = len(parts)
    nodes = n + int(part.max()) + 1
    edges = coo_array((np.ones(len(owners)), (owners, n + part)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:n].tolist()


def mean_over_groups(means: npt.ArrayLike, groups: Sequence[int], least: int = 2) -> Estimate:
    """The mean of the means of subjects, which are independent if of different groups.

    The error is that of the sample of groups: would others show the same? NaN with fewer than
    `least` of them.

    Args:
        means: [n], one for each subject.
        groups: of each subject, [n]; see `components`.
        least: a number of groups.
    """
    found = clustered_mean(means, groups)
    return found if found.clusters >= least else found._replace(std_error=math.nan)


def mean_over_trainings(values: Sequence[Mapping[int, float]], groups: Sequence[int]) -> Estimate:
    """The mean over subjects of the means of their trainings, each of which could be drawn anew.

    Says how sure the mean is for just these subjects and prompts, if others were drawn of what a
    training draws. Subjects of a group are trained with draws in common, or are made of the same
    adapters, so that a seed's values of a group are one. With the mean x of a group's values for
    each of k seeds, its variance is that between its seeds, pooled over the groups of as many
    subjects: independent of the others, which may differ as much as they like. With S subjects
    and m of them in a group the error is

        sqrt(sum over groups of (m / S)^2 * v / k),

    where v is the sum of (x - its mean)^2 over seeds and groups of m, over the sum of (k - 1),
    with that sum of degrees of freedom, or Satterthwaite's where groups have several sizes: with
    two seeds they are so few then that intervals are wider than they have to be.

    Args:
        values: of each subject by the seed of the training; differences of two methods are paired
            by it. Only seeds that all subjects of a group have are used.
        groups: of each subject, [n]; see `components`.

    Returns:
        Without two seeds anywhere the error is NaN.
    """
    mean, n = 0.0, 0
    squares, weights = defaultdict[int, float](float), defaultdict[int, float](float)
    freedoms = Counter[int]()
    for group in dict.fromkeys(groups):
        mine = [some for some, of in zip(values, groups) if of == group]
        seeds = set.intersection(*(set(some) for some in mine))
        if not seeds:
            return Estimate(math.nan, math.nan, 0, 0)
        x = np.mean([[some[seed] for seed in sorted(seeds)] for some in mine], axis=0)
        size, k, share = len(mine), len(seeds), len(mine) / len(values)
        mean, n = mean + share * float(x.mean()), n + size * k
        squares[size] += float(np.sum((x - x.mean()) ** 2))
        freedoms[size] += k - 1
        weights[size] += share**2 / k
    if not all(freedoms[size] for size in squares):
        return Estimate(mean, math.nan, n, 1)
    parts = {size: weights[size] * squares[size] / freedoms[size] for size in squares}
    variance, freedom = sum(parts.values()), float(sum(freedoms.values()))
    if len(parts) > 1 and variance:
        freedom = variance**2 / sum(part**2 / freedoms[size] for size, part in parts.items())
    return Estimate(mean, math.sqrt(variance), n, max(int(freedom + 1e-9), 1) + 1)


def interval(estimate: Estimate, level: float = 0.95) -> Interval:
    """Student's t interval of a mean with clusters - 1 degrees of freedom; NaN without an error."""
    if math.isnan(estimate.std_error):
        return Interval(float("nan"), float("nan"))
    quantile = float(stdtrit(estimate.clusters - 1, (1 + level) / 2))
    reach = quantile * estimate.std_error
    return Interval(estimate.mean - reach, estimate.mean + reach)


def p_value(estimate: Estimate) -> float:
    """Two-sided p of Student's t test that the mean is zero; NaN without an error."""
    if math.isnan(estimate.std_error):
        return float("nan")
    if estimate.std_error == 0:
        return 1.0 if estimate.mean == 0 else 0.0
    t = abs(estimate.mean) / estimate.std_error
    return float(2 * stdtr(estimate.clusters - 1, -t))


def holm(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's (1979) corrected p-values [n] of the tests with p-values `p` [n]; NaN is no test."""
    values = np.asarray(p, np.float64)
    corrected = np.full(values.shape, np.nan)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN comes last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1)
    return corrected


class RankCorrelation(NamedTuple):
    """How far two orders agree: 1 if fully, 0 if not at all, -1 if one is the other's reverse."""

    rho: float  # Spearman's; NaN where all values of one side are equal
    low: float  # of the 95 % interval; NaN without an error
    high: float
    n: int
    clusters: int


def rank_correlation(
    first: npt.ArrayLike, second: npt.ArrayLike, clusters: npt.ArrayLike
) -> RankCorrelation:
    """Spearman's rank correlation of pairs of values that vary together within clusters.

    The interval is that of Fisher's transform, arctanh(rho), with the error of the jackknife that
    leaves out one cluster at a time, and Student's t with clusters - 1 degrees of freedom. Ties
    share the mean of their ranks.

    Args:
        first: [n] with n >= 2.
        second: the other value of each pair, [n].
        clusters: the label of each pair, [n].
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"values {x.shape} and {y.shape} have to be pairs, two at least")
    label = _labels(clusters, len(x))
    count, rho = int(label.max()) + 1, _spearman(x, y)
    low = high = float("nan")
    if count > 2 and abs(rho) < 1:
        left_out = np.array([_spearman(x[label != c], y[label != c]) for c in range(count)])
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.arctanh(left_out)
            error = math.sqrt((count - 1) * np.var(z))
        if error > 0:  # else all clusters are alike, which says nothing about others
            reach = float(stdtrit(count - 1, 0.975)) * error
            low, high = (math.tanh(math.atanh(rho) + side * reach) for side in (-1, 1))
    return RankCorrelation(rho, low, high, len(x), count)


def _spearman(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    a, b = (rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    scale = math.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale else float("nan")
