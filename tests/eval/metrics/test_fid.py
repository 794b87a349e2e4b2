"""FID against clean-fid, against leaving out clusters, and against the spread of many sets."""

from __future__ import annotations

import numpy as np
import pytest
from cleanfid.fid import fid_from_feats

from eval.metrics.fid import fid


def features(count: int, shift: float = 0.0, seed: int = 0, width: int = 24) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = 1.5 / np.sqrt(1 + np.arange(width))
    return (shift + scales * rng.normal(size=(count, width))).astype(np.float32)


def alone(x: np.ndarray, y: np.ndarray) -> float:
    return fid(x, y, np.arange(len(x)), np.arange(len(y))).value


@pytest.mark.parametrize(("n", "m", "width"), [(300, 200, 24), (60, 90, 64), (40, 40, 200)])
def test_agrees_with_clean_fid(n: int, m: int, width: int) -> None:
    """Also where there are fewer images than features, so that covariances are singular."""
    x, y = features(n, 0, 1, width), features(m, 0.3, 2, width)
    assert alone(x, y) == pytest.approx(fid_from_feats(x, y), abs=1e-3)


def test_is_the_closed_form_where_covariances_commute() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 51)))[0][:, :8]
    basis = np.linalg.qr(basis - basis.mean(0))[0] * np.sqrt(49)  # covariance: the unit matrix
    a, b = rng.uniform(0.5, 2, 8), rng.uniform(0.5, 2, 8)
    shift = rng.normal(size=8)
    expected = shift @ shift + np.sum((a - b) ** 2)
    assert alone(basis * a, basis[::-1] * b + shift) == pytest.approx(expected, rel=1e-9)


def test_of_equal_sets_is_nothing_and_needs_no_order() -> None:
    x, y = features(30, 0, 1), features(20, 0.4, 2)
    assert alone(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert alone(x, y) == pytest.approx(alone(y, x))
    assert alone(x, y) == pytest.approx(alone(x[::-1], y))


def test_identical_images_have_a_mean_and_nothing_else() -> None:
    x, y = np.zeros((5, 6)), np.ones((4, 6))
    found = fid(x, y, range(5), range(4))
    assert found.value == pytest.approx(6)
    assert found.std_error == pytest.approx(0)


def test_error_is_nearly_that_of_leaving_out_each_cluster_in_turn() -> None:
    x, y = features(400, 0, 3), features(300, 0.3, 4)
    of_x, of_y = np.arange(400) % 50, np.arange(300) % 50
    left_out = np.array([alone(x[of_x != c], y[of_y != c]) for c in range(50)])
    expected = np.sqrt(49 / 50 * np.sum((left_out - left_out.mean()) ** 2))
    assert fid(x, y, of_x, of_y).std_error == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("size", [80, 160])
def test_error_is_the_spread_of_sets_of_captions(size: int) -> None:
    """Images of a caption vary together, so that an error by image would be far too small."""
    values, errors, naive = [], [], []
    captions = np.arange(size) // 5
    for i in range(150):
        rng = np.random.default_rng([size, i])
        x, y = features(size, 0, 2 * i, 12), features(size, 0.4, 2 * i + 1, 12)
        x, y = (z + 0.7 * rng.normal(size=(size // 5, 12))[captions] for z in (x, y))
        found = fid(x, y, captions, captions + 1000)
        values.append(found.value)
        errors.append(found.std_error)
        naive.append(fid(x, y, np.arange(size), np.arange(size) + size).std_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)
    assert np.mean(naive) < 0.75 * np.std(values)


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="two images"):
        fid(features(1), features(5), [0], range(5))
    with pytest.raises(ValueError, match="cluster"):
        fid(features(3), features(5), range(2), range(5))
    with pytest.raises(ValueError, match="image 1 are not finite"):
        fid(np.array([[0.0], [np.nan]]), features(5, width=1), range(2), range(5))
    assert np.isnan(fid(features(3), features(3), [0, 0, 0], [0, 0, 0]).std_error)
