"""What answers to forced choices say, as pure functions of arrays.

Answers vary together by rater and by question, so that errors are clustered both ways.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import choix
import krippendorff
import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.special import betainc, betaincinv, expit, ndtri, stdtrit

from eval.metrics import jackknife_error
from eval.statistics import Estimate, two_way_mean

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

AMT_DRAWS = 10_000
# Half an answer each way for every pair that was compared keeps strengths finite where all agree.
PRIOR = 0.5
LEVEL = 0.95


class Share(NamedTuple):
    """A share of answers, and how sure it is. All but the mean is NaN where nothing can be said."""

    mean: float
    std_error: float  # clustered both ways; NaN too where it would come out as none at all
    low: float  # of the interval at LEVEL, in [0, 1]
    high: float
    p: float  # two-sided, that the share is one half; above 0


class Strengths(NamedTuple):
    """The Bradley–Terry model: i is preferred to j with odds exp(values[i] - values[j])."""

    values: Floats  # [k], of mean zero
    std_errors: Floats  # [k], clustered


def share_of(values: npt.ArrayLike, raters: npt.ArrayLike, questions: npt.ArrayLike) -> Share:
    """The mean of answers between 0 and 1, with an interval that holds where all agree, too.

    It is the exact interval of a binomial share (Clopper and Pearson 1934) of as many independent
    answers as these are worth (Korn and Graubard 1998). With the share s, its variance V of
    `two_way_mean` and its degrees of freedom f, n answers are worth

        s (1 - s) / V * (t(n - 1) / t(f))^2,

    where t are Student's quantiles: a variance of few clusters is not well known. Never more than
    n; nor less than the effective clusters, n^2 / sum of n_c^2, of raters or of questions if
    those are fewer, which is what is left if all answers of a cluster are one and the same. That is
    what they are worth where V is none, as it is if everybody agrees.

    Args:
        values: [n] in [0, 1], n >= 1.
        raters: who answered, [n].
        questions: what, [n].

    Returns:
        The p is below 1 - LEVEL where the interval leaves out one half, and only there. Without two
        raters and two questions nothing is said but the mean.
    """
    found = two_way_mean(values, raters, questions)
    if math.isnan(found.std_error):
        return Share(found.mean, *[math.nan] * 4)
    least = min(_effective(raters), _effective(questions))
    error, worth = found.std_error, least
    if error < 1e-9:  # none but for rounding
        error = math.nan
    else:
        known, guessed = stdtrit([found.n - 1, found.clusters - 1], (1 + LEVEL) / 2)
        worth = found.mean * (1 - found.mean) / error**2 * (known / guessed) ** 2
        worth = min(max(worth, least), found.n)
    ones, tail = worth * found.mean, (1 - LEVEL) / 2
    zeros = worth - ones
    low = float(betaincinv(ones, zeros + 1, tail)) if ones > 0 else 0.0
    high = float(betaincinv(ones + 1, zeros, 1 - tail)) if zeros > 0 else 1.0
    p = 2 * min(_at_least(ones, zeros), _at_least(zeros, ones))
    return Share(found.mean, error, low, high, min(max(p, sys.float_info.min), 1.0))


def _at_least(ones: float, zeros: float) -> float:
    """The probability of so many heads or more in ones + zeros throws of a coin."""
    return float(betainc(ones, zeros + 1, 0.5)) if ones > 0 else 1.0


def _effective(clusters: npt.ArrayLike) -> float:
    """How many clusters of equal size would tell as much."""
    counts = np.bincount(_labels(clusters))
    return float(counts.sum() ** 2 / np.sum(counts**2))


def amt_error(wins: npt.ArrayLike, raters: npt.ArrayLike, rng: np.random.Generator) -> float:
    """The ± of Custom Diffusion's Table 2, as far as can be told from its size.

    The standard deviation of the mean when raters are drawn anew and then the answers of each. It
    takes no account of questions, and is too large by up to √2 where raters are alike.

    Args:
        wins: 0 or 1 for each answer, [n] with n >= 1.
        raters: who gave it, [n].
        rng: draws.
    """
    values = np.asarray(wins, np.float64)
    label = _labels(raters)
    counts = np.bincount(label)
    shares = np.bincount(label, weights=values) / counts
    drawn = rng.integers(len(counts), size=(AMT_DRAWS, len(counts)))
    # Answers of one rater that are 0 or 1, drawn with replacement, add up to a binomial.
    sums = rng.binomial(counts[drawn], np.clip(shares[drawn], 0, 1)).sum(1)
    return float((sums / counts[drawn].sum(1)).std())


def alpha(choices: npt.ArrayLike, questions: npt.ArrayLike) -> Estimate | None:
    """Krippendorff's alpha of two choices: agreement beyond chance, 1 at most.

    Args:
        choices: 0 or 1 for each answer, [n].
        questions: what was answered, [n].

    Returns:
        Its error is the jackknife's over questions, NaN where all questions are alike, which says
        nothing of others. `n` are the answers to questions that two raters answered at least; None
        if there are no two such questions, or if all answers are the same.
    """
    values, label = np.asarray(choices, np.intp), _labels(questions)
    counts = np.zeros((label.max(initial=-1) + 1, 2), np.intp)
    np.add.at(counts, (label, values), 1)
    counts = counts[counts.sum(1) > 1]
    if len(counts) < 2 or not counts.sum(0).all():
        return None
    value = float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
    # The same without each question in turn: 1 - observed over expected disagreement.
    apart = counts.prod(1) / (counts.sum(1) - 1)
    rest = counts.sum(0) - counts
    with np.errstate(invalid="ignore", divide="ignore"):
        left_out = 1 - (apart.sum() - apart) * (rest.sum(1) - 1) / rest.prod(1)
    return Estimate(value, jackknife_error(left_out) or math.nan, int(counts.sum()), len(counts))


def bradley_terry(
    winners: npt.ArrayLike,
    losers: npt.ArrayLike,
    methods: int,
    raters: npt.ArrayLike,
    questions: npt.ArrayLike,
) -> Strengths | None:
    """How strong methods are, whichever they were compared with.

    Args:
        winners: the number of the method that was preferred in each answer, [n], below `methods`.
        losers: that of the other, [n].
        methods: how many there are, k.
        raters: who answered, [n].
        questions: what, [n].

    Returns:
        Errors are those of maximum likelihood that hold for clusters (a sandwich), which are two
        ways here, but never less than those of independent answers: where all agree there is
        nothing by which clusters could differ. They are NaN without two raters and two questions.
        None if some methods were compared with none of the others, not even by way of others.
    """
    won, lost = np.asarray(winners, np.intp), np.asarray(losers, np.intp)
    wins = np.zeros((methods, methods))
    np.add.at(wins, (won, lost), 1)
    compared = wins + wins.T > 0
    if connected_components(compared, directed=False)[0] > 1:
        return None
    wins += PRIOR * compared
    values = choix.ilsr_pairwise_dense(wins, max_iter=1000)
    values = np.asarray(values - values.mean())

    surprise = expit(values[lost] - values[won])  # the probability of the other answer
    scores = np.zeros((len(won), methods))
    rows = np.arange(len(won))
    scores[rows, won], scores[rows, lost] = surprise, -surprise
    gaps = values[:, None] - values
    weights = (wins + wins.T) * expit(gaps) * expit(-gaps)
    information = np.diag(weights.sum(1)) - weights
    independent = np.linalg.pinv(information)
    influence = len(won) * scores @ independent
    errors = [two_way_mean(column, raters, questions).std_error for column in influence.T]
    return Strengths(values, np.maximum(errors, np.sqrt(np.diag(independent))))


def others_agree(choices: npt.ArrayLike, questions: npt.ArrayLike) -> Floats:
    """For each answer, the share of the others to the same question that are the same; or NaN.

    Args:
        choices: 0 or 1 for each answer, [n].
        questions: what was answered, [n].
    """
    values, label = np.asarray(choices, np.float64), _labels(questions)
    count = np.bincount(label)[label]
    ones = np.bincount(label, weights=values)[label]
    same = np.where(values == 1, ones, count - ones)
    with np.errstate(invalid="ignore"):
        return np.asarray((same - 1) / (count - 1))


def design_effect(share: Estimate) -> float:
    """By how much the variance of a share is larger than if all answers were independent."""
    binomial = share.mean * (1 - share.mean) / share.n
    return share.std_error**2 / binomial if binomial else math.nan


def answers_needed(effect: float, margin: float, level: float = 0.95) -> float:
    """How many answers to one pair of methods make the interval of an even share ± `margin`.

    More raters and more questions, in the same proportions as those that `effect` is from.
    """
    return effect * 0.25 * (float(ndtri((1 + level) / 2)) / margin) ** 2


def _labels(names: npt.ArrayLike) -> Ints:
    return np.asarray(np.unique(np.asarray(names), return_inverse=True)[1])
