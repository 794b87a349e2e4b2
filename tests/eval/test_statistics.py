"""Standard errors against their formula, and intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    Stratum,
    clustered_mean,
    clustered_stratum,
    components,
    holm,
    interval,
    jackknifed_stratum,
    mean_over,
    mean_over_groups,
    mean_over_strata,
    mean_over_trainings,
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


def test_one_stratum_has_its_own_error() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=40), rng.integers(0, 7, 40).astype(str)
    alone = mean_over_strata([clustered_stratum(values, clusters.tolist())])
    assert alone == pytest.approx(clustered_mean(values, clusters))
    left_out = {str(i): float(np.delete(values, i).mean()) for i in range(40)}
    jackknifed = mean_over_strata([jackknifed_stratum(float(values.mean()), left_out, 40)])
    assert jackknifed.std_error == pytest.approx(stats.sem(values))
    assert jackknifed.clusters == 40


def test_strata_without_common_labels_are_independent() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=n) for n in (4, 6, 9)]
    freedom = (1 / 4 + 1 / 6 + 1 / 9) ** 2 / (1 / 4**3 + 1 / 6**3 + 1 / 9**3) - 3
    found = mean_over_strata(
        [clustered_stratum(x, [f"{i} {j}" for j in range(len(x))]) for i, x in enumerate(parts)]
    )
    assert found.std_error == pytest.approx(np.sqrt(sum(stats.sem(x) ** 2 for x in parts)) / 3)
    assert found.clusters - 1 == int(freedom) < 3 + 5 + 8
    equal = mean_over_strata(
        [clustered_stratum(rng.normal(size=5), [f"{i} {j}" for j in range(5)]) for i in range(3)]
    )
    assert equal.clusters - 1 == 3 * 4


def test_strata_with_the_same_labels_are_one_sample_of_their_means() -> None:
    values = np.random.default_rng(2).normal(size=(5, 12))
    labels = [f"prompt {i}" for i in range(12)]
    found = mean_over_strata([clustered_stratum(x, labels) for x in values])
    assert found.std_error == pytest.approx(stats.sem(values.mean(0)))
    assert found.clusters == 12
    # The jackknife's pulls add up with the mean's: both are of the same sign.
    means = [
        {label: float(np.delete(x, i).mean()) for i, label in enumerate(labels)} for x in values
    ]
    mixed = [jackknifed_stratum(float(x.mean()), m, 12) for x, m in zip(values, means)][:3]
    mixed += [clustered_stratum(x, labels) for x in values[3:]]
    assert mean_over_strata(mixed) == pytest.approx(found)


def test_a_stratum_of_one_cluster_leaves_no_error() -> None:
    pair = clustered_stratum([1.0, 2.0], ["a", "b"])
    for other in (clustered_stratum([3.0], ["a"]), jackknifed_stratum(3.0, {}, 0)):
        found = mean_over_strata([pair, other])
        assert found.mean == pytest.approx(2.25)
        assert np.isnan(found.std_error)
        assert np.isnan(interval(found)).all()


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.5])
def test_templates_that_subjects_share_are_clusters_across_them(shared: float) -> None:
    """Four subjects with 14 of 20 templates in common, as in the default profile.

    What a template does to both methods' difference is the same for all subjects.
    """
    subjects, prompts, runs = 4, 20, 1500
    rng = np.random.default_rng(int(10 * shared))
    labels = [
        [f"template {p}" if p < 14 else f"own {s} {p}" for p in range(prompts)]
        for s in range(subjects)
    ]
    effects = np.repeat(rng.normal(size=(runs, 1, prompts)), subjects, 1)
    effects[:, :, 14:] = rng.normal(size=(runs, subjects, prompts - 14))
    values = 0.3 + shared * effects + rng.normal(size=(runs, subjects, prompts))
    covered = naive = 0
    for one in values:
        strata = [clustered_stratum(x, names) for x, names in zip(one, labels)]
        alone = [Stratum(s.mean, s.n, [f"{i}{n}" for n in s.labels], s.pulls)
                 for i, s in enumerate(strata)]  # fmt: skip
        (low, high), (low_alone, high_alone) = (
            interval(mean_over_strata(some)) for some in (strata, alone)
        )
        covered += low < 0.3 < high
        naive += low_alone < 0.3 < high_alone
    assert covered / runs == pytest.approx(0.95, abs=0.015)
    if shared > 1:
        assert naive / runs < 0.87


def test_components_are_what_is_linked_by_parts() -> None:
    pairs = ["moon dog", "cat chair", "pot cat", "pot flower", "table chair"]
    assert len(set(components([pair.split() for pair in pairs]))) == 2
    groups = components([pair.split() for pair in pairs])
    assert groups.count(groups[0]) == 1
    assert len(set(groups[1:])) == 1
    assert len(set(components([["a"], ["b"], ["c"]]))) == 3
    assert len(set(components([["a", "b", "c"], ["c", "d"], ["e"]]))) == 2


def test_compositions_that_share_a_concept_are_one_observation() -> None:
    """Nine groups of a concept with three others each: what the first does is in all three."""
    runs, groups = 2000, 9
    rng = np.random.default_rng(4)
    subjects = [[f"hub {g}", f"{g} {i}"] for g in range(groups) for i in range(3)]
    of = components(subjects)
    hubs = np.repeat(rng.normal(size=(runs, groups)), 3, 1)
    values = 0.2 + hubs + 0.5 * rng.normal(size=(runs, 3 * groups))
    covered = naive = 0
    for means in values:
        low, high = interval(mean_over_groups(means, of, 3))
        covered += low < 0.2 < high
        low, high = interval(mean_over(means))
        naive += low < 0.2 < high
    assert covered / runs == pytest.approx(0.95, abs=0.015)
    assert naive / runs < 0.85


def test_too_few_independent_subjects_have_no_error() -> None:
    two = mean_over_groups([1.0, 2.0, 4.0], components([["a", "b"], ["b", "c"], ["d", "e"]]), 3)
    assert (two.mean, two.clusters) == (pytest.approx(7 / 3), 2)
    assert np.isnan(two.std_error)
    assert np.isnan(interval(two)).all()
    assert np.isnan(p_value(two))


def test_trainings_of_independent_subjects_have_the_variance_within_subjects() -> None:
    """That of an analysis of variance, subjects having unequal numbers of trainings."""
    rng = np.random.default_rng(6)
    values = [{s: rng.normal() for s in seeds} for seeds in ((1, 2), (1, 2, 3, 5), (2, 4, 7))]
    found = mean_over_trainings(values, [0, 1, 2])
    x = np.concatenate([[*some.values()] for some in values])
    subject = np.repeat([0, 1, 2], [2, 4, 3])
    design = np.eye(3)[subject]
    effects, squares, *_ = np.linalg.lstsq(design, x, rcond=None)
    contrast = np.full(3, 1 / 3)
    variance = squares[0] / (9 - 3) * contrast @ np.linalg.inv(design.T @ design) @ contrast
    assert found.mean == pytest.approx(effects.mean())
    assert found.std_error == pytest.approx(np.sqrt(variance))
    assert (found.n, found.clusters) == (9, 6 + 1)


def test_subjects_of_one_group_are_one_sample_of_their_seeds_means() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(3, 5))
    values = [dict(enumerate(row)) | {99: 1e3} for row in x]
    del values[0][99]  # a seed that not all have says nothing
    found, plain = mean_over_trainings(values, [4, 4, 4]), stats.ttest_1samp(x.mean(0), 0)
    assert found.mean == pytest.approx(x.mean())
    assert p_value(found) == pytest.approx(plain.pvalue)
    assert interval(found) == pytest.approx(plain.confidence_interval())


def test_one_training_has_no_error() -> None:
    found = mean_over_trainings([{1: 0.5}, {1: 1.5}], [0, 1])
    assert (found.mean, found.n) == (1, 2)
    assert np.isnan(found.std_error) and np.isnan(p_value(found))
    assert np.isnan(mean_over_trainings([{1: 0.5, 2: 0.1}, {}], [0, 1]).std_error)
    # A subject with one is as sure as the others say.
    assert mean_over_trainings([{1: 0.5, 2: 0.1}, {1: 0.5}], [0, 1]).clusters == 2


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_for_other_trainings_cover(seeds: int, equal: bool) -> None:
    """Subjects differ, which is no error, and a group's trainings vary together or do not.

    The groups of profile toyland-full: ten concepts alone, or five pairs, of which four are linked.
    """
    groups = [*range(10)] if equal else [0, 1, 1, 1, 1]
    runs, count = 4000, len(groups)
    rng = np.random.default_rng(seeds)
    subjects = rng.normal(0, 3, count)
    luck = rng.normal(size=(runs, count, seeds))
    if not equal:  # what a shared concept's training does to all that are made of it
        luck[:, 1:] = 0.5 * luck[:, 1:] + rng.normal(size=(runs, 1, seeds))
    covered = naive = 0
    for one in subjects[:, None] + luck:
        values = [dict(enumerate(row)) for row in one]
        low, high = interval(mean_over_trainings(values, groups))
        covered += low < subjects.mean() < high
        low, high = interval(mean_over_trainings(values, range(count)))
        naive += low < subjects.mean() < high
    if equal or seeds > 2:
        assert covered / runs == pytest.approx(0.95, abs=0.015)
    else:  # one degree of freedom for each size: Satterthwaite's are more than one, and cut to it
        assert 0.95 < covered / runs < 0.995
    if not equal:
        assert naive / runs < 0.85
