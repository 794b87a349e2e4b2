"""Identity against scikit-learn, against every order of small galleries, and by simulation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from eval.metrics.identity import (
    Gallery,
    average_precision,
    average_precision_by_chance,
    leave_one_out,
    top1,
    top1_by_chance,
)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def ranked(own: list[float], others: list[float]) -> tuple[np.ndarray, Gallery]:
    """An image, and a gallery whose pictures have these cosines with it."""

    def at(cosines: list[float]) -> np.ndarray:
        return np.array([(c, np.sqrt(1 - c * c)) for c in cosines])

    return np.array([[[1.0, 0.0]]]), Gallery(at(own), at(others))


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k = int(rng.integers(1, 6)), int(rng.integers(1, 20))
    images, gallery = unit(rng, 30, 3, 8), Gallery(unit(rng, m, 8), unit(rng, k, 8))
    cosines = (images @ np.concatenate(gallery).T).max(1)  # the nearest of three windows
    relevant = [1] * m + [0] * k
    expected = [average_precision_score(relevant, row) for row in cosines]
    assert average_precision(images, gallery) == pytest.approx(expected)
    assert top1(images, gallery).tolist() == [float(row.argmax() < m) for row in cosines]


@pytest.mark.parametrize(
    ("own", "others", "nearest", "precision"),
    [
        ([0.9, 0.8], [0.7, 0.1], 1, 1),
        ([0.2, 0.1], [0.7, 0.6], 0, (1 / 3 + 2 / 4) / 2),
        ([0.9, 0.1], [0.7, 0.6], 1, (1 / 1 + 2 / 4) / 2),
    ],
)
def test_by_hand(own: list[float], others: list[float], nearest: int, precision: float) -> None:
    image, gallery = ranked(own, others)
    assert top1(image, gallery).tolist() == [nearest]
    assert average_precision(image, gallery) == pytest.approx([precision])


@pytest.mark.parametrize(
    ("own", "others"),
    [([0.5], [0.5]), ([0.9, 0.5], [0.5, 0.2]), ([0.5, 0.5, 0.1], [0.5, 0.5]), ([0.3], [0.3] * 4)],
)
def test_ties_never_favour(own: list[float], others: list[float]) -> None:
    """The value is the worst of all orders that the cosines allow."""
    image, gallery = ranked(own, others)
    marked = [(c, True) for c in own] + [(c, False) for c in others]
    orders = [
        [is_own for _, is_own in order]
        for order in permutations(marked)
        if all(a[0] >= b[0] for a, b in zip(order, order[1:]))
    ]
    assert top1(image, gallery).item() == min(order[0] for order in orders)
    worst = min(map(precision_of, orders))
    assert average_precision(image, gallery).item() == pytest.approx(worst)
    assert max(map(precision_of, orders)) > worst


def precision_of(order: list[bool]) -> float:
    """Average precision as it is defined: the mean precision at the places of own pictures."""
    places = [place for place, is_own in enumerate(order, 1) if is_own]
    return float(np.mean([sum(order[:place]) / place for place in places]))


@pytest.mark.parametrize(("own", "others"), [(1, 1), (1, 5), (2, 3), (3, 3), (4, 2), (5, 1)])
def test_chance_is_the_mean_over_all_orders(own: int, others: int) -> None:
    orders = {*permutations([True] * own + [False] * others)}
    assert top1_by_chance(own, others) == pytest.approx(np.mean([order[0] for order in orders]))
    expected = np.mean([precision_of([*order]) for order in orders])
    assert average_precision_by_chance(own, others) == pytest.approx(expected)


def test_images_that_know_nothing_get_the_chance_level() -> None:
    """Features without a direction: the gallery of the default world, 4 own of 52."""
    rng = np.random.default_rng(3)
    found = [
        (top1(image, gallery).item(), average_precision(image, gallery).item())
        for _ in range(4000)
        for image, gallery in [(unit(rng, 1, 1, 16), Gallery(unit(rng, 4, 16), unit(rng, 48, 16)))]
    ]
    for values, chance in zip(zip(*found), (top1_by_chance, average_precision_by_chance)):
        assert abs(np.mean(values) - chance(4, 48)) < 3.5 * stats.sem(values)
    assert top1_by_chance(4, 48) == 1 / 13
    assert average_precision_by_chance(4, 48) == pytest.approx(0.141, abs=5e-4)


@pytest.mark.parametrize("measure", [top1, average_precision])
def test_the_order_of_gallery_and_windows_does_not_matter(measure) -> None:
    rng = np.random.default_rng(5)
    images, gallery = unit(rng, 40, 2, 6), Gallery(unit(rng, 4, 6), unit(rng, 20, 6))
    shuffled = Gallery(*(rng.permutation(part) for part in gallery))
    np.testing.assert_array_equal(measure(images, gallery), measure(images, shuffled))
    np.testing.assert_array_equal(measure(images[:, ::-1], gallery), measure(images, gallery))
    # Nor does the number of images: each is ranked by itself.
    alone = np.concatenate([measure(image[None], gallery) for image in images])
    np.testing.assert_allclose(measure(images, gallery), alone)


@pytest.mark.parametrize("measure", [top1, average_precision])
def test_likeness_to_look_alikes_costs(measure) -> None:
    """Moving an image from the concept towards a look-alike never raises the value."""
    own, others = np.eye(8)[:2], np.eye(8)[2:]
    rows = [(1 - t) * own.sum(0) + 2 * t * others[0] for t in np.linspace(0, 1, 9)]
    images = np.stack([row / np.linalg.norm(row) for row in rows])[:, None]
    values = measure(images, Gallery(own, others))
    assert values[0] == 1 > values[-1]
    assert (np.diff(values) <= 0).all()


def test_the_oracle_of_features_that_separate_is_one() -> None:
    rng, (one, other) = np.random.default_rng(7), np.eye(12)[:2]
    near = [way + 0.05 * rng.normal(size=(n, 12)) for way, n in ((one, 4), (other, 40))]
    gallery = Gallery(*(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in near))
    for measure in (top1, average_precision):
        assert leave_one_out(measure, gallery.own[:, None], gallery) == (1, 0, 4, 4, {})


def test_the_oracle_is_the_mean_over_pictures_without_themselves() -> None:
    rng = np.random.default_rng(8)
    images, gallery = unit(rng, 5, 2, 4), Gallery(unit(rng, 5, 4), unit(rng, 12, 4))
    for measure in (top1, average_precision):
        values = [
            measure(images[[i]], gallery._replace(own=gallery.own[np.arange(5) != i]))[0]
            for i in range(5)
        ]
        found = leave_one_out(measure, images, gallery)
        assert found.value == pytest.approx(np.mean(values))
        assert found.std_error == pytest.approx(stats.sem(values))
        assert (found.n, found.clusters) == (5, 5)


def test_galleries_that_lack_something_are_refused() -> None:
    rng = np.random.default_rng(9)
    images, some, none = unit(rng, 3, 1, 4), unit(rng, 2, 4), np.zeros((0, 4))
    for measure in (top1, average_precision):
        with pytest.raises(ValueError, match="a picture of the concept"):
            measure(images, Gallery(none, some))
        with pytest.raises(ValueError, match="a picture of look-alikes"):
            measure(images, Gallery(some, none))
        with pytest.raises(ValueError, match="another one"):
            leave_one_out(measure, images[:1], Gallery(some[:1], some))
        with pytest.raises(ValueError, match="not finite"):
            measure(np.full((1, 1, 4), np.nan), Gallery(some, some))
