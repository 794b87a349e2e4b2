"""Standard errors against their formula, and intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.statistics import clustered_mean, interval, mean_over, paired_difference


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
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))
    assert found.std_error < 0.1 * mean_over(first).std_error
    assert interval(found).low > 0
