"""Standard errors against their formula, and intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    clustered_mean,
    holm,
    interval,
    mean_over,
    p_value,
    rank_correlation,
    two_way_mean,
)


def test_error_of_balanced_clusters_is_that_of_their_means() -> None:
    values = np.random.default_rng(0).normal(size=(8, 5)) + np.arange(8)[:, None]
    found = clustered_mean(values.ravel(), np.repeat(np.arange(8), 5))
    assert found.mean == pytest.approx(values.mean())
    assert found.std_error == pytest.approx(stats.sem(values.mean(1)))
    assert (found.n, found.clusters) == (40, 8)


def test_single_values_give_the_ordinary_error() -> None:
    values = np.random.default_rng(1).normal(size=30)
    assert mean_over(values).std_error == pytest.approx(stats.sem(values))
    expected = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert interval(mean_over(values)) == pytest.approx(expected)


def test_one_cluster_has_no_error() -> None:
    found = clustered_mean([1.0, 2.0], ["a", "a"])
    assert np.isnan(found.std_error)
    assert np.isnan(interval(found).low)
    with pytest.raises(ValueError, match="nothing"):
        mean_over([])
    with pytest.raises(ValueError, match="2 values need 2 clusters"):
        clustered_mean([1.0, 2.0], ["a"])


def test_intervals_cover_where_images_of_a_prompt_vary_together() -> None:
    rng = np.random.default_rng(2)
    prompts = np.repeat(np.arange(20), 5)
    clustered = naive = 0
    for _ in range(1000):
        values = rng.normal(0, 0.6, 20)[prompts] + rng.normal(0, 0.8, 100)
        low, high = interval(clustered_mean(values, prompts))
        clustered += low < 0 < high
        low, high = interval(mean_over(values))
        naive += low < 0 < high
    assert 0.93 < clustered / 1000 < 0.97
    assert naive / 1000 < 0.85


def test_pairing_takes_out_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.normal(0, 1, 20)
    first = prompts + 0.1 + rng.normal(0, 0.02, 20)
    second = prompts + rng.normal(0, 0.02, 20)
    found = mean_over(first - second)
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))
    assert found.std_error < 0.1 * mean_over(first).std_error
    assert interval(found).low > 0


def answers(rng: np.random.Generator, of_workers: float, of_questions: float) -> np.ndarray:
    """1 or 0 for 80 questions, each answered by 5 of 40 workers, 10 each."""
    leaning = rng.normal(0, of_workers, 40)[WORKERS] + rng.normal(0, of_questions, 80)[QUESTIONS]
    return (leaning + rng.normal(size=400) > 0).astype(float)


QUESTIONS, WORKERS = np.repeat(np.arange(80), 5), np.arange(400) % 40


def test_two_way_error_is_the_sum_over_pairs_that_share_a_worker_or_a_question() -> None:
    """The definition, pair by pair, where all have the same small-sample factor."""
    rng = np.random.default_rng(4)
    values, first, second = rng.normal(size=60), np.arange(60) % 6, np.arange(60) // 10
    values += rng.normal(size=6)[first] + rng.normal(size=6)[second]
    found = two_way_mean(values, first, second)
    r = values - values.mean()
    pairs = [(i, j) for i in range(60) for j in range(60)]

    def variance(same) -> float:
        return sum(r[i] * r[j] for i, j in pairs if same(i, j)) / 60**2

    expected = 6 / 5 * variance(lambda i, j: first[i] == first[j])
    expected += 6 / 5 * variance(lambda i, j: second[i] == second[j])
    both = len(set(zip(first, second)))
    common = variance(lambda i, j: first[i] == first[j] and second[i] == second[j])
    assert found.std_error == pytest.approx(np.sqrt(expected - both / (both - 1) * common))
    assert (found.mean, found.n, found.clusters) == (pytest.approx(values.mean()), 60, 6)
    assert found == pytest.approx(two_way_mean(values, second, first))


def test_two_ways_that_are_the_same_are_one() -> None:
    values, labels = np.random.default_rng(5).normal(size=40), np.arange(40) // 4
    assert two_way_mean(values, labels, labels) == pytest.approx(clustered_mean(values, labels))
    names = np.array([f"worker {i}" for i in labels])
    assert two_way_mean(values, names, labels) == pytest.approx(clustered_mean(values, labels))


def test_one_worker_has_no_two_way_error() -> None:
    found = two_way_mean([1.0, 0.0, 1.0], ["w"] * 3, [1, 2, 3])
    assert (found.mean, found.clusters) == (pytest.approx(2 / 3), 1)
    assert np.isnan(found.std_error)
    with pytest.raises(ValueError, match="nothing"):
        two_way_mean([], [], [])


def test_two_way_error_is_never_the_root_of_nothing() -> None:
    """Rows and columns whose sums are all equal: the formula's variance is negative."""
    found = two_way_mean([1, -1, -1, 1], [0, 0, 1, 1], [0, 1, 0, 1])
    assert found.std_error == 0
    assert two_way_mean([3, 3], [0, 1], [0, 1]).std_error == 0


@pytest.mark.parametrize(("workers", "questions"), [(0, 0), (0.7, 0), (0, 0.7), (0.7, 0.7)])
def test_two_way_intervals_cover_whatever_varies(workers: float, questions: float) -> None:
    rng = np.random.default_rng(6)
    covered = binomial = 0
    for _ in range(600):
        values = answers(rng, workers, questions)
        low, high = interval(two_way_mean(values, WORKERS, QUESTIONS))
        covered += low < 0.5 < high
        low, high = interval(mean_over(values))
        binomial += low < 0.5 < high
    assert 0.92 < covered / 600 < 0.985
    assert binomial / 600 < 0.9 or not (workers or questions)


def test_intervals_of_means_over_few_concepts_cover() -> None:
    rng = np.random.default_rng(7)
    for concepts in (2, 4, 10):
        found = [interval(mean_over(rng.normal(size=concepts))) for _ in range(2000)]
        assert 0.935 < np.mean([low < 0 < high for low, high in found]) < 0.965


def test_paired_intervals_cover() -> None:
    rng, covered = np.random.default_rng(8), 0
    for _ in range(1500):
        prompts = rng.normal(0, 1, 20)
        pair = rng.normal(0, 0.3, (2, 20)) + prompts + np.array([[0.1], [0.0]])
        low, high = interval(mean_over(pair[0] - pair[1]))
        covered += low < 0.1 < high
    assert 0.935 < covered / 1500 < 0.965


def test_among_equal_methods_holm_declares_one_table_in_twenty_different() -> None:
    """All pairs of six methods on twenty prompts: fifteen tests that share their data."""
    rng, declared, uncorrected = np.random.default_rng(9), 0, 0
    for _ in range(600):
        means = rng.normal(0, 1, 20) + rng.normal(0, 0.3, (6, 20))
        pairs = [mean_over(means[i] - means[j]) for i in range(6) for j in range(i)]
        p = np.array([p_value(pair) for pair in pairs])
        declared += (holm(p) <= 0.05).any()
        uncorrected += (p <= 0.05).any()
    assert declared <= stats.binom.ppf(0.999, 600, 0.05)
    assert uncorrected > 100


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(10)
    x = rng.integers(0, 5, 40)
    y = x + rng.integers(0, 4, 40)
    found = rank_correlation(x, y, np.arange(40))
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    assert rank_correlation(-x, y, np.arange(40)).rho == pytest.approx(-found.rho)
    full = rank_correlation(x, 3 * x + 1, np.arange(40))
    assert full.rho == pytest.approx(1)
    assert np.isnan(full.low) or full.low == pytest.approx(1)
    alike = rank_correlation([0, 1, 2] * 3, [1, 0, 2] * 3, np.repeat([0, 1, 2], 3))
    assert np.isnan(alike.low)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3], [0, 1, 2]).rho)
    with pytest.raises(ValueError, match="pairs"):
        rank_correlation([1], [1], [1])


@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_intervals_of_rank_correlations_cover_where_images_of_a_scene_vary_together(
    slope: float,
) -> None:
    scenes, grades = np.repeat(np.arange(20), 5), np.tile(np.arange(5), 20)

    def drawn(rng: np.random.Generator, of: np.ndarray, grade: np.ndarray) -> np.ndarray:
        count = of.max() + 1
        slopes = slope + rng.normal(0, 0.3, count)
        return slopes[of] * grade + rng.normal(0, 1, count)[of] + rng.normal(0, 0.6, len(of))

    rng = np.random.default_rng(11)
    many = np.repeat(np.arange(20000), 5)
    truth = stats.spearmanr(grades_of := np.tile(np.arange(5), 20000), drawn(rng, many, grades_of))
    found = [rank_correlation(grades, drawn(rng, scenes, grades), scenes) for _ in range(200)]
    covered = np.mean([one.low < truth.statistic < one.high for one in found])
    assert 0.91 < covered < 0.985
