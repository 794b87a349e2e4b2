"""KID against clean-fid, against plain loops, and against leaving out clusters one by one."""

from __future__ import annotations

import numpy as np
import pytest
from cleanfid.fid import kernel_distance
from scipy import stats

from eval.metrics import SetValue, jackknife_error
from eval.metrics import kid as module
from eval.metrics.kid import kid, kid_by_caption, kid_subsets


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


def same(found: SetValue, expected: SetValue) -> None:
    assert found[:4] == pytest.approx(expected[:4])
    assert found.left_out == pytest.approx(dict(expected.left_out))


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


@pytest.mark.parametrize(("n", "m", "size"), [(30, 60, 20), (30, 60, 1000), (50, 50, 50)])
def test_subsets_are_those_that_clean_fid_draws(n: int, m: int, size: int) -> None:
    x, y = features(n, 0.0, 1), features(m, 0.3, 2)
    np.random.seed(7)
    expected = 1000 * kernel_distance(x, y, num_subsets=20, max_subset_size=size)
    found = kid_subsets(x, y, 7, 20, size)
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert np.isnan(found.std_error)
    if size == 50:
        assert found.value == pytest.approx(kid(x, y, range(n), range(m)).value)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(40, 0.0, 1), features(33, 0.3, 2)
    whole = kid(x, y, np.arange(40) % 7, np.arange(33) % 9)
    monkeypatch.setattr(module, "BLOCK", 8)
    same(kid(x, y, np.arange(40) % 7, np.arange(33) % 9), whole)


def test_intervals_cover_where_images_of_a_caption_vary_together() -> None:
    """The error is that of reals and generated images together; t has captions - 1 degrees."""
    shift, captions, width = 0.25, np.arange(60) // 3, 6
    covered = naive = 0
    truth = np.mean(
        [kid(features(400, 0, i, width), features(400, shift, i + 100, width),
             range(400), range(400)).value for i in range(10)]
    )  # fmt: skip
    for i in range(300):
        rng = np.random.default_rng([3, i])

        def drawn(mean: float, rng: np.random.Generator = rng) -> np.ndarray:
            # Variance 1 in all, six tenths of it shared by the images of a caption.
            shared = np.sqrt(0.6) * rng.normal(size=(20, width))[captions]
            return mean + shared + np.sqrt(0.4) * rng.normal(size=(60, width))

        x, y = drawn(0), drawn(shift)
        found = kid(x, y, captions, captions)
        reach = stats.t.ppf(0.975, 19)
        covered += abs(found.value - truth) < reach * found.std_error
        naive += abs(found.value - truth) < reach * kid(x, y, range(60), range(60)).std_error
    assert 0.9 < covered / 300 <= 1
    assert naive < covered - 15


def test_error_is_that_of_leaving_out_each_cluster_in_turn() -> None:
    x, y = features(12, 0.0, 3, 6), features(20, 0.4, 4, 6)
    of_x, of_y = np.arange(12) % 5, np.arange(20) % 6  # one cluster is in one of the sets only
    left_out = np.array([plain(x[of_x != c], y[of_y != c]) for c in range(6)])
    expected = np.sqrt(5 / 6 * np.sum((left_out - left_out.mean()) ** 2))
    found = kid(x, y, of_x, of_y)
    assert found.std_error == pytest.approx(expected, rel=1e-9)
    assert (found.n, found.clusters) == (20, 6)
    assert found.left_out == pytest.approx({str(c): left_out[c] for c in range(6)})


def test_clusters_may_be_captions_and_order_does_not_matter() -> None:
    x, y = features(10, 0, 5), features(10, 0.3, 6)
    captions = np.array([f"a cat {i // 2}" for i in range(10)])
    order = np.random.default_rng(0).permutation(10)
    first = kid(x, y, captions, captions)
    second = kid(x[order], y, captions[order], captions)
    same(first, second)


def test_is_unbiased_for_equal_distributions() -> None:
    values = [
        kid(features(20, 0, 2 * i, 8), features(30, 0, 2 * i + 1, 8), range(20), range(30)).value
        for i in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


@pytest.mark.parametrize("captions", [5, 6])
def test_few_captions_need_their_own_degrees_of_freedom(captions: int) -> None:
    """Forty images: t with captions - 1 covers, t with images - 1 does not."""
    width, images, runs = 6, 40, 500
    of = np.arange(images) % captions
    rng = np.random.default_rng(captions)
    found = []
    for _ in range(runs):
        asked = rng.normal(size=(captions, width))[of]  # what a caption asks for is in both sets
        x, y = (0.8 * asked + 0.6 * rng.normal(size=(images, width)) for _ in range(2))
        found.append(kid(x, y + 0.5, of, of))
    error = np.array([one.std_error for one in found])
    away = np.abs([one.value for one in found] - np.mean([one.value for one in found]))
    by_captions, by_images = (
        np.mean(away < stats.t.ppf(0.975, count - 1) * error) for count in (captions, images)
    )
    assert all(one.clusters == captions for one in found)
    assert by_captions > 0.9
    assert by_images < by_captions - 0.03


@pytest.mark.parametrize("captions", [5, 12])
def test_two_methods_are_compared_caption_by_caption(captions: int) -> None:
    """What captions have in common cancels out: the paired interval covers, and is far shorter."""
    width, images, runs = 6, 36, 300
    of = np.arange(images) % captions
    rng = np.random.default_rng(captions)
    differences, errors, alone = [], [], []
    for _ in range(runs):
        asked = rng.normal(size=(captions, width))[of]
        x, y, z = (0.8 * asked + 0.6 * rng.normal(size=(images, width)) for _ in range(3))
        one, other = kid(x, y + 0.5, of, of), kid(x, z + 0.5, of, of)
        differences.append(one.value - other.value)
        a, b = (np.array(list(kid_of.left_out.values())) for kid_of in (one, other))
        errors.append(jackknife_error(a - b))
        alone.append(np.hypot(one.std_error, other.std_error))
    covered = np.abs(differences) < stats.t.ppf(0.975, captions - 1) * np.array(errors)
    assert 0.93 < covered.mean() < 0.995
    assert np.mean(errors) < 0.8 * np.mean(alone)


def test_by_caption_no_pair_shares_one() -> None:
    x, y = features(12, 0.0, 3, 6).astype(float), features(12, 0.4, 4, 6).astype(float)
    of = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 6 + 1) ** 3)

    def pairs(left_out: int) -> float:
        terms = [
            k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
            for i in range(12)
            for j in range(12)
            if of[i] != of[j] and left_out not in (of[i], of[j])
        ]
        return 1000 * float(np.mean(terms))

    found = kid_by_caption(x, y, of)
    assert found.value == pytest.approx(pairs(-1))
    assert found.left_out == pytest.approx({str(c): pairs(c) for c in range(5)})
    assert found.std_error == pytest.approx(jackknife_error(np.array([pairs(c) for c in range(5)])))
    assert (found.n, found.clusters) == (12, 5)
    with pytest.raises(ValueError, match="three captions, not 2"):
        kid_by_caption(x, y, np.arange(12) % 2)


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="two images"):
        kid(features(1), features(5), [0], range(5))
    with pytest.raises(ValueError, match="cluster"):
        kid(features(3), features(5), range(2), range(5))
    with pytest.raises(ValueError, match="two images"):
        kid_subsets(features(1), features(5), 0)
    with pytest.raises(ValueError, match="image 2 are not finite"):
        kid(features(3) + np.array([[0], [0], [np.inf]]), features(5), range(3), range(5))
    assert np.isnan(kid(features(3), features(3), [0, 0, 0], [0, 0, 0]).std_error)


def test_identical_images_are_at_their_distance_without_an_error() -> None:
    x, y = np.ones((4, 3)), np.zeros((5, 3))
    found = kid(x, y, range(4), range(5))
    assert found.value == pytest.approx(1000 * (8 + 1 - 2))
    assert found.std_error == pytest.approx(0, abs=1e-9)
