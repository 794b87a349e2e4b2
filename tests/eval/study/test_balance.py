"""What is dealt out evenly, by counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from eval.study.balance import dealt, halved


def labels(seed: int) -> tuple[list[int], list[int], np.random.Generator]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 120))
    sizes = rng.integers(1, 25, 2)
    return rng.integers(sizes[0], size=n).tolist(), rng.integers(sizes[1], size=n).tolist(), rng


def spread(group: list[int], hand: list[int], hands: int) -> int:
    counts = Counter(zip(group, hand))
    rows = [[counts[g, h] for h in range(hands)] for g in set(group)]
    return max((max(row) - min(row) for row in rows), default=0)


@pytest.mark.parametrize("seed", range(60))
def test_halves_differ_by_one_at_most(seed: int) -> None:
    first, second, rng = labels(seed)
    heads = halved(first, second, rng).astype(int).tolist()
    assert len(heads) == len(first)
    for group in (first, second, [0] * len(first)):
        assert spread(group, heads, 2) <= 1


@pytest.mark.parametrize("seed", range(60))
def test_hands_differ_by_one_at_most(seed: int) -> None:
    first, second, rng = labels(seed)
    hands = int(rng.integers(1, 14))
    hand = dealt(first, second, hands, rng).tolist()
    assert set(hand) <= set(range(hands))
    for group in (first, second, [0] * len(first)):
        assert spread(group, hand, hands) <= 1


def test_draws_are_seeded_and_vary() -> None:
    first, second = [0, 0, 1, 1, 2, 2] * 5, [0, 1, 2] * 10
    drawn = [
        tuple(halved(first, second, np.random.default_rng(seed)).tolist()) for seed in range(20)
    ]
    assert len(set(drawn)) > 10
    assert drawn[3] == tuple(halved(first, second, np.random.default_rng(3)).tolist())
    # No thing is heads more often than tails.
    many = np.mean([halved(first, second, np.random.default_rng(s)) for s in range(400)], 0)
    assert np.abs(many - 0.5).max() < 0.13
