from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.continual import (
    averages,
    confusion,
    damage,
    forgetting,
    intransigence,
    known,
    learned,
    mean_of,
    share_left,
    transfer,
)

# By hand: task by concept, two prompts each; a prompt is 0.1 above the mean and one 0.1 below.
MEANS = np.array([[0.5, np.nan, np.nan], [0.8, 0.6, np.nan], [0.4, 0.3, 0.9]])
R = MEANS[:, :, None] + np.array([0.1, -0.1])
PRETRAINED = np.array([0.2, 0.1, 0.3])[:, None] + np.array([0.1, -0.1])
SEPARATE = np.array([0.6, 0.7, 0.95])[:, None] + np.array([0.1, -0.1])
# The expected maximum of n standard normals (tables of order statistics).
EXPECTED_MAXIMUM = {2: 0.5642, 3: 0.8463, 4: 1.0294, 9: 1.4850}


def test_a_matrix_by_hand():
    np.testing.assert_allclose(averages(R), [0.5, 0.7, 1.6 / 3])
    assert mean_of(learned(R)) == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert mean_of(transfer(R)) == pytest.approx(((0.4 - 0.5) + (0.3 - 0.6)) / 2)
    # The first was best after the second task: that is no transfer from when it was learned.
    assert mean_of(forgetting(R)) == pytest.approx(((0.8 - 0.4) + (0.6 - 0.3)) / 2)
    assert mean_of(intransigence(R, SEPARATE)) == pytest.approx((0.1 + 0.1 + 0.05) / 3)
    share = share_left(R, PRETRAINED)
    assert share.value == pytest.approx(((0.4 - 0.2) + (0.3 - 0.1)) / ((0.5 - 0.2) + (0.6 - 0.1)))
    assert mean_of(share.learned) == pytest.approx((0.3 + 0.5) / 2)
    assert mean_of(damage(PRETRAINED - 0.25, PRETRAINED)) == pytest.approx(0.25)
    assert [len(known(R, g)) for g in range(3)] == [1, 2, 3]


def test_columns_that_stay_are_forgotten_by_nothing():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 6))
    r = np.full((4, 4, 6), np.nan)
    for g in range(4):
        r[g, : g + 1] = rows[: g + 1]
    for terms in (transfer(r), forgetting(r)):
        assert len(terms) == 3
        assert all((values == 0).all() for values in terms)
    assert share_left(r, np.zeros((4, 6))).value == pytest.approx(1)
    r[-1, :3] = 7.0  # whatever: what the base has is what is left
    assert share_left(r, np.full((4, 6), 7.0)).value == 0


@pytest.mark.parametrize("seed", range(5))
def test_forgetting_is_never_less_than_what_transfer_says_is_lost(seed):
    r = np.random.default_rng(seed).normal(size=(5, 5, 3))
    assert mean_of(forgetting(r)) >= -mean_of(transfer(r)) - 1e-12


def test_prompts_that_a_concept_lacks_count_for_nothing():
    wider = np.concatenate([R, np.full((3, 3, 1), np.nan)], axis=2)
    for measure in (learned, transfer, forgetting):
        assert mean_of(measure(wider)) == pytest.approx(mean_of(measure(R)))


def test_a_cell_that_is_missing_makes_no_mean_over_fewer():
    holed = R.copy()
    holed[1, 0] = np.nan
    assert np.isnan(averages(holed)[1])
    assert np.isfinite(averages(holed)[[0, 2]]).all()
    assert np.isnan(mean_of(forgetting(holed)))
    assert mean_of(transfer(holed)) == pytest.approx(mean_of(transfer(R)))
    holed[0, 0] = np.nan
    assert np.isnan(mean_of(transfer(holed)))
    assert np.isnan(mean_of(transfer(R[:1, :1])))  # one task: there is nothing before


def simulated(tasks: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Nothing is forgotten, and each value has an error of its own; of one prompt."""
    r = np.full((tasks, tasks, 1), np.nan)
    for g in range(tasks):
        r[g, : g + 1, 0] = 0.5 + sigma * rng.normal(size=g + 1)
    return r


def test_noise_is_no_transfer_but_looks_like_forgetting():
    rng, sigma, tasks = np.random.default_rng(3), 0.1, 5
    draws = [simulated(tasks, sigma, rng) for _ in range(3000)]
    bwt = np.array([mean_of(transfer(r)) for r in draws])
    assert abs(bwt.mean()) < 3 * bwt.std() / np.sqrt(len(bwt))
    # Concept j has tasks - 1 - j values before the last.
    counts = [tasks - 1 - j for j in range(tasks - 1)]
    expected = sigma * np.mean([EXPECTED_MAXIMUM.get(n, 0.0) for n in counts])
    worst = np.array([mean_of(forgetting(r)) for r in draws])
    assert worst.mean() == pytest.approx(expected, abs=4 * worst.std() / np.sqrt(len(worst)))


def test_the_best_of_one_half_of_the_prompts_is_not_best_by_noise_on_the_other():
    """What chooses the best and what measures it are independent: no bias is left."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(3000):
        even, odd = (simulated(4, 0.1, rng) for _ in range(2))
        best = even[0:3, 0, 0].argmax()
        found.append(odd[best, 0, 0] - odd[3, 0, 0])
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_other_names_of_the_concepts_leave_what_needs_no_order_alone():
    last = np.random.default_rng(5).normal(size=(4, 7))
    r = np.full((4, 4, 7), np.nan)
    r[-1] = last
    other = r.copy()
    other[-1] = last[[2, 0, 3, 1]]
    assert averages(r)[-1] == pytest.approx(averages(other)[-1])
    assert averages(r)[-1] == pytest.approx(last.mean())


def test_confusion_tells_whom_images_look_like():
    cat = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.5, 0.4]])  # one of four looks like a dog
    dog = np.array([[0.1, 0.3], [0.2, 0.5]])
    found = confusion([cat, dog])
    np.testing.assert_allclose(found.alignment, [cat.mean(0), dog.mean(0)])
    np.testing.assert_allclose(found.accuracy, [0.75, 1.0])
