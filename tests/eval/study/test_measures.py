"""Measures of answers against brute force, other libraries and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from krippendorff import alpha as library_alpha
from scipy import optimize, stats

from eval.metrics import jackknife_error
from eval.statistics import interval, two_way_mean
from eval.study.measures import (
    alpha,
    amt_error,
    answers_needed,
    bradley_terry,
    design_effect,
    others_agree,
    share_of,
)
from tests.eval.study.simulated import drawn


def test_preferences_are_recovered() -> None:
    found = share_of(*drawn(0.7, 60, 60, np.random.default_rng(0), 0.4, 0.4))
    assert found.low < 0.69 < found.high  # 0.7 in log-odds, averaged over effects, is 0.69
    assert 0.05 < found.high - found.low < 0.15


def truth_of(p: float, effect: float) -> float:
    """The share that `drawn` gives on average, by numerical integration."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    odds = np.log(p / (1 - p)) + np.sqrt(2) * effect * nodes
    return float((weights / (1 + np.exp(-odds))).sum() / weights.sum())


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_intervals_cover_what_is_preferred(effect: float) -> None:
    rng, p = np.random.default_rng(1), 0.6
    truth, draws = truth_of(p, effect), 400
    covered = naive = 0
    for _ in range(draws):
        x, raters, trials = drawn(p, 25, 40, rng, effect, effect, 0.4)
        found = share_of(x, raters, trials)
        covered += found.low < truth < found.high
        naive += abs(x.mean() - truth) < 1.96 * np.sqrt(x.mean() * (1 - x.mean()) / len(x))
    assert 0.93 < covered / draws < 0.99
    if effect:
        assert naive / draws < 0.75


@pytest.mark.parametrize("effect", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("raters", "trials"), [(2, 2), (2, 10), (3, 4), (5, 5), (5, 20)])
def test_intervals_cover_strong_preferences_of_few(raters: int, trials: int, effect: float) -> None:
    """Of few raters and questions, most draws are unanimous, where clusters do not differ."""
    rng, draws = np.random.default_rng([2, raters, trials, int(effect)]), 500
    covered = dict.fromkeys((0.8, 0.95, 0.99), 0)
    naive = dict.fromkeys(covered, 0)
    for p in covered:
        truth = truth_of(p, effect)
        for _ in range(draws):
            answers = drawn(p, raters, trials, rng, effect, effect)
            found = share_of(*answers)
            covered[p] += found.low <= truth <= found.high
            low, high = interval(two_way_mean(*answers))
            naive[p] += low <= truth <= high
    assert min(covered.values()) / draws > 0.945
    assert min(naive.values()) / draws < 0.9  # Student's t of the clustered error


def test_no_preference_is_seldom_found_where_there_is_none() -> None:
    """Raters who say the same to everything, so that nobody disagrees with himself or herself."""
    rng = np.random.default_rng(3)
    for raters, trials in ((2, 2), (4, 3), (6, 8), (12, 30)):
        who, what = (each.ravel() for each in np.indices((raters, trials)))
        p = [share_of(rng.integers(2, size=raters)[who], who, what).p for _ in range(400)]
        assert np.mean(np.array(p) <= 0.05) <= 0.07


@pytest.mark.parametrize(("raters", "trials"), [(2, 2), (2, 9), (7, 3), (10, 40)])
@pytest.mark.parametrize("choice", [0.0, 1.0])
def test_unanimity_is_worth_as_many_answers_as_clusters(
    raters: int, trials: int, choice: float
) -> None:
    who, what = (each.ravel() for each in np.indices((raters, trials)))
    found, least = share_of(np.full(len(who), choice), who, what), min(raters, trials)
    exact = stats.binomtest(round(choice) * least, least)
    assert (found.low, found.high) == pytest.approx(exact.proportion_ci(method="exact"))
    assert found.p == pytest.approx(exact.pvalue) == pytest.approx(2 * 0.5**least)
    assert found.mean == choice
    assert np.isnan(found.std_error)


def test_clusters_of_different_size_are_worth_less() -> None:
    who = np.repeat(np.arange(3), (8, 1, 1))
    found = share_of(np.ones(10), who, np.arange(10))
    worth = 10**2 / (8**2 + 1 + 1)
    assert found.low == pytest.approx(0.025 ** (1 / worth))  # of all or nothing: low^worth = 2.5 %
    assert found.p == pytest.approx(2 * 0.5**worth)


def test_independent_answers_have_the_exact_interval() -> None:
    """Many raters and questions, each once: the answers are worth what they are many."""
    n, ones = 400, 290
    found = share_of(np.arange(n) < ones, np.arange(n), np.arange(n))
    exact = stats.binomtest(ones, n)
    assert (found.low, found.high) == pytest.approx(exact.proportion_ci(), abs=1e-3)
    assert found.std_error == pytest.approx(np.sqrt(290 * 110 / 400**3), rel=0.01)


def test_p_and_interval_agree_and_p_is_never_none() -> None:
    rng = np.random.default_rng(4)
    sides = set()
    for _ in range(300):
        p, raters, trials = rng.uniform(0.2, 0.95), *rng.integers(2, 12, 2)
        found = share_of(*drawn(p, raters, trials, rng, 0.5, 0.5))
        assert 0 <= found.low <= found.mean <= found.high <= 1
        assert (found.p < 0.05) == (not found.low <= 0.5 <= found.high)
        sides.add(found.p < 0.05)
    assert sides == {True, False}
    assert share_of(np.ones(5000), np.arange(5000), np.arange(5000)).p > 0


def test_answers_that_cancel_out_are_not_sure() -> None:
    """Each rater and each question is split evenly: the clustered variance is none."""
    found = share_of([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1])
    exact = stats.binomtest(1, 2).proportion_ci()
    assert (found.low, found.high) == pytest.approx(exact)
    assert found.p == 1


def test_answers_are_worth_no_less_than_their_clusters() -> None:
    """Two raters, each of one mind: two answers, however badly two show how raters differ."""
    who, what = (each.ravel() for each in np.indices((2, 10)))
    found = share_of(who, who, what)
    exact = stats.binomtest(1, 2).proportion_ci()
    assert (found.low, found.high) == pytest.approx(exact)
    assert found.std_error == pytest.approx(0.5, abs=0.02)


def test_one_rater_says_nothing_of_others() -> None:
    for found in (share_of([1, 1, 0], [0, 0, 0], [0, 1, 2]), share_of([1, 1], [0, 1], [0, 0])):
        assert np.isnan(found[1:]).all()


def test_the_error_of_amt_is_that_of_drawing_raters_and_then_answers() -> None:
    rng = np.random.default_rng(2)
    x, who, _ = drawn(0.6, 12, 15, rng, rater_effect=1.0, answered=0.7)
    own = [x[who == rater] for rater in np.unique(who)]
    means = []
    for _ in range(2000):
        again = [own[i] for i in rng.integers(len(own), size=len(own))]
        means.append(np.concatenate([d[rng.integers(len(d), size=len(d))] for d in again]).mean())
    found = amt_error(x, who, np.random.default_rng(3))
    assert found == pytest.approx(np.std(means), rel=0.06)
    assert found == amt_error(x, who, np.random.default_rng(3))


def test_the_error_of_amt_is_too_large_where_raters_are_alike() -> None:
    rng = np.random.default_rng(4)
    who = np.repeat(np.arange(40), 20)
    found = [amt_error(rng.integers(2, size=800), who, rng) for _ in range(8)]
    assert np.mean(found) / (0.5 / np.sqrt(800)) == pytest.approx(np.sqrt(2 - 1 / 20), rel=0.1)


def brute_alpha(matrix: np.ndarray) -> float:
    """1 - observed over expected disagreement, counted pair by pair."""
    observed, values = 0.0, []
    for column in matrix.T:
        given = column[~np.isnan(column)]
        if len(given) > 1:
            pairs = list(itertools.permutations(given, 2))
            observed += sum(a != b for a, b in pairs) / (len(given) - 1)
            values += given.tolist()
    everyone = list(itertools.permutations(values, 2))
    expected = sum(a != b for a, b in everyone) / (len(values) - 1)
    return 1 - observed / expected


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_alpha_is_that_of_the_library_and_of_brute_force(p: float) -> None:
    rng = np.random.default_rng(5)
    x, who, what = drawn(p, 6, 25, rng, trial_effect=1.0, answered=0.6)
    matrix = np.full((6, 25), np.nan)
    matrix[who, what] = x
    found = alpha(x, what)
    assert found is not None
    assert found.mean == pytest.approx(brute_alpha(matrix))
    assert found.mean == pytest.approx(library_alpha(matrix, level_of_measurement="nominal"))
    shared = (~np.isnan(matrix)).sum(0) > 1
    assert found.clusters == shared.sum()
    left_out = [brute_alpha(np.delete(matrix, i, 1)) for i in np.flatnonzero(shared)]
    assert found.std_error == pytest.approx(jackknife_error(np.array(left_out)))


def test_the_error_of_alpha_is_what_alpha_varies_by() -> None:
    rng = np.random.default_rng(6)
    found = []
    for _ in range(200):
        x, _, what = drawn(0.6, 5, 60, rng, trial_effect=1.5)
        found.append(alpha(x, what))
    spread = np.std([each.mean for each in found])
    assert np.mean([each.std_error for each in found]) == pytest.approx(spread, rel=0.15)


def test_alpha_needs_two_answers_to_two_questions_that_differ() -> None:
    assert alpha([], []) is None
    assert alpha([0, 1], ["a", "b"]) is None
    assert alpha([1, 1, 1, 1], list("aabb")) is None
    perfect = alpha([1, 1, 0, 0], list("aabb"))
    assert perfect is not None
    assert perfect.mean == 1
    assert np.isnan(perfect.std_error)  # two alike questions say nothing of others


def duels(strengths: np.ndarray, rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    """Everybody against the first, and the second against the third."""
    pairs = np.array([(0, 1), (0, 2), (0, 3), (1, 2)])[rng.integers(4, size=count)]
    gap = strengths[pairs[:, 0]] - strengths[pairs[:, 1]]
    won = rng.random(count) < 1 / (1 + np.exp(-gap))
    return np.where(won, *pairs.T), np.where(won, *pairs.T[::-1])


def test_strengths_are_those_of_maximum_likelihood() -> None:
    rng = np.random.default_rng(8)
    truth = np.array([0.8, 0.1, -0.2, -0.7])
    winners, losers = duels(truth, rng, 1500)
    units = rng.integers(50, size=1500)
    found = bradley_terry(winners, losers, 4, units, np.arange(1500))
    assert found is not None
    assert found.values.mean() == pytest.approx(0, abs=1e-9)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2)]
    prior = np.array([*pairs, *[p[::-1] for p in pairs]]).T

    def loss(free: np.ndarray) -> float:
        s = np.append(free, -free.sum())
        gaps, soft = s[winners] - s[losers], s[prior[0]] - s[prior[1]]
        return float(np.logaddexp(0, -gaps).sum() + 0.5 * np.logaddexp(0, -soft).sum())

    best = optimize.minimize(loss, np.zeros(3), method="BFGS").x
    assert found.values == pytest.approx([*best, -best.sum()], abs=1e-3)
    assert found.values == pytest.approx(truth, abs=0.25)


def test_errors_of_strengths_are_what_strengths_vary_by() -> None:
    rng = np.random.default_rng(9)
    pairs, found = [(0, 1), (0, 2), (0, 3), (1, 2)], []
    for _ in range(150):
        # Raters have tastes of their own, and a trial is the same for all pairs.
        tastes, luck = rng.normal(0, 0.8, (20, 4)), rng.normal(0, 0.8, (30, 4))
        rater, trial, pair = (a.ravel() for a in np.indices((20, 30, 4)))
        first, second = np.array(pairs)[pair].T
        own = tastes[rater] + luck[trial]
        rows = np.arange(len(rater))
        won = rng.random(len(rater)) < 1 / (1 + np.exp(own[rows, second] - own[rows, first]))
        winners, losers = np.where(won, first, second), np.where(won, second, first)
        found.append(bradley_terry(winners, losers, 4, rater, trial))
    spread = np.std([each.values for each in found], 0)
    errors = np.sqrt(np.mean([each.std_errors**2 for each in found], 0))
    assert errors == pytest.approx(spread, rel=0.25)
    assert np.mean(errors / spread) == pytest.approx(1, abs=0.12)


def test_methods_that_never_met_have_no_ranking() -> None:
    assert bradley_terry([0, 2], [1, 3], 4, [0, 1], [0, 1]) is None
    unanimous = bradley_terry([0] * 30, [1] * 30, 2, np.arange(30), np.arange(30))
    assert unanimous is not None
    assert np.isfinite(unanimous.values).all()
    assert unanimous.values[0] > 1.5


@pytest.mark.parametrize(("raters", "trials"), [(2, 2), (30, 40)])
def test_the_strength_of_an_unanimous_choice_is_not_sure(raters: int, trials: int) -> None:
    who, what = (each.ravel() for each in np.indices((raters, trials)))
    n = len(who)
    found = bradley_terry(np.zeros(n, int), np.ones(n, int), 2, who, what)
    assert found is not None
    # A logit of n + 1/2 against 1/2 has the variance 1/(n + 1/2) + 1/(1/2); a strength is half.
    logit = np.log((n + 0.5) / 0.5)
    assert found.values == pytest.approx([logit / 2, -logit / 2], rel=1e-4)
    assert found.std_errors == pytest.approx(np.sqrt(1 / (n + 0.5) + 2) / 2, rel=1e-4)


def test_agreement_with_others_is_counted() -> None:
    rng = np.random.default_rng(11)
    choices, questions = rng.integers(2, size=60), rng.integers(20, size=60)
    expected = []
    for i in range(60):
        others = [choices[j] for j in range(60) if j != i and questions[j] == questions[i]]
        expected.append(np.mean([o == choices[i] for o in others]) if others else np.nan)
    assert others_agree(choices, questions) == pytest.approx(expected, nan_ok=True)


def test_design_effects_are_what_was_planted() -> None:
    rng = np.random.default_rng(12)
    x = rng.integers(2, size=4000).astype(float)
    free = two_way_mean(x, np.arange(4000), np.arange(4000))
    assert design_effect(free) == pytest.approx(1, abs=0.01)
    copied = two_way_mean(np.repeat(x, 5), np.arange(20_000), np.repeat(np.arange(4000), 5))
    assert design_effect(copied) == pytest.approx(5, abs=0.1)


def test_answers_needed_make_the_margin() -> None:
    assert answers_needed(1, 0.05) == pytest.approx(384.1, abs=0.1)
    n = round(answers_needed(1, 0.03))
    low, high = stats.binomtest(n // 2, n).proportion_ci(method="wilson")
    assert (high - low) / 2 == pytest.approx(0.03, abs=2e-4)
    assert answers_needed(2.2, 0.05) == pytest.approx(2.2 * 384.1, abs=0.3)
