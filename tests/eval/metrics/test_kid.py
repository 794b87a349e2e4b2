"""KID against clean-fid, against plain loops, and against leaving out clusters one by one."""

from __future__ import annotations

import numpy as np
import pytest
from cleanfid.fid import kernel_distance

from eval.metrics import kid as module
from eval.metrics.kid import kid


def features(count: int, shift: float = 0.0, seed: int = 0, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, width)).astype(np.float32)


def plain(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, pair by pair, in double precision."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return 1000 * (xx + yy - 2 * xy)


def test_agrees_with_clean_fid_where_its_subsets_are_the_whole_set() -> None:
    x, y = features(60, 0.0, 1), features(60, 0.2, 2)
    expected = 1000 * kernel_distance(x, y, num_subsets=1, max_subset_size=60)
    found = kid(x, y, np.arange(60), np.arange(60))
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.n == 60


def test_is_what_clean_fid_averages_to_over_random_subsets() -> None:
    x, y = features(30, 0.0, 1), features(60, 0.3, 2)
    np.random.seed(0)
    expected = 1000 * kernel_distance(x, y, num_subsets=3000, max_subset_size=20)
    assert kid(x, y, np.arange(30), np.arange(60)).value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 12), (25, 3)])
def test_agrees_with_plain_loops_for_any_sizes(
    n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    x, y = features(n, 0.0, 1, 5), features(m, 0.5, 2, 5)
    assert kid(x, y, np.arange(n), np.arange(m)).value == pytest.approx(plain(x, y), abs=1e-9)


def test_error_is_that_of_leaving_out_each_cluster_in_turn() -> None:
    x, y = features(12, 0.0, 3, 6), features(20, 0.4, 4, 6)
    of_x, of_y = np.arange(12) % 5, np.arange(20) % 6  # one cluster is in one of the sets only
    left_out = np.array([plain(x[of_x != c], y[of_y != c]) for c in range(6)])
    expected = np.sqrt(5 / 6 * np.sum((left_out - left_out.mean()) ** 2))
    assert kid(x, y, of_x, of_y).std_error == pytest.approx(expected, rel=1e-9)


def test_clusters_may_be_captions_and_order_does_not_matter() -> None:
    x, y = features(10, 0, 5), features(10, 0.3, 6)
    captions = np.array([f"a cat {i // 2}" for i in range(10)])
    order = np.random.default_rng(0).permutation(10)
    first = kid(x, y, captions, captions)
    second = kid(x[order], y, captions[order], captions)
    assert first == pytest.approx(second)


def test_is_unbiased_for_equal_distributions() -> None:
    values = [
        kid(features(20, 0, 2 * i, 8), features(30, 0, 2 * i + 1, 8), range(20), range(30)).value
        for i in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="two images"):
        kid(features(1), features(5), [0], range(5))
    with pytest.raises(ValueError, match="cluster"):
        kid(features(3), features(5), range(2), range(5))
    assert np.isnan(kid(features(3), features(3), [0, 0, 0], [0, 0, 0]).std_error)
