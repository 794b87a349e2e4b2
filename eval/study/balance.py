"""Dealing out things that have two labels each, so that no label gets more than its share.

A thing with two labels is an edge of a bipartite graph. De Werra (1971) proved that its edges can
be given k colours so that at each vertex, and over all, any two colours are used equally often or
differ by one. For two colours this is an Eulerian orientation; for more, pairs of colours are
evened out until all are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


def halved(
    first: Sequence[Hashable], second: Sequence[Hashable], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Says heads or tails of each of n things.

    Args:
        first: the first label of each, [n].
        second: the second one, [n]; may be equal to a first label without meaning the same.
        rng: chooses among the ways in which this can be done.

    Returns:
        Bool [n]: among the things that share a first or a second label, and among all, heads and
        tails are equal in number or differ by one.
    """
    edges = [(("first", a), ("second", b)) for a, b in zip(first, second, strict=True)]
    order = rng.permutation(len(edges))
    edges = [edges[i] for i in order]
    degree: dict[tuple[str, Hashable], int] = defaultdict(int)
    for edge in edges:
        for vertex in edge:
            degree[vertex] += 1
    # One more vertex on either side makes all degrees even.
    spare = ("first", object()), ("second", object())
    odd = [vertex for vertex, count in degree.items() if count % 2]
    lone = [(v, spare[1]) if v[0] == "first" else (spare[0], v) for v in odd]
    lone += [spare] * (sum(v[0] == "first" for v in odd) % 2)

    # Along closed trails each vertex is entered as often as it is left. An edge is heads if it is
    # walked from its first vertex to its second.
    ends, heads = [*edges, *lone], np.zeros(len(edges) + len(lone), bool)
    at: dict[tuple[str, Hashable], list[int]] = defaultdict(list)
    for i, edge in enumerate(ends):
        for vertex in edge:
            at[vertex].append(i)
    walked = np.zeros(len(ends), bool)
    side = int(rng.integers(2))
    for start in [edge[side] for edge in ends]:
        vertex = start
        while at[vertex]:
            i = at[vertex].pop()
            if not walked[i]:
                walked[i], heads[i] = True, vertex == ends[i][0]
                vertex = ends[i][1] if heads[i] else ends[i][0]
    found = np.zeros(len(edges), bool)
    found[order] = heads[: len(edges)]
    return found


def dealt(
    first: Sequence[Hashable], second: Sequence[Hashable], hands: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Deals n things into hands.

    Args:
        first: the first label of each, [n].
        second: the second one, [n].
        hands: how many, at least 1.
        rng: chooses among the ways in which this can be done.

    Returns:
        The hand of each, int [n] in [0, hands): of the things that share a label, and of all, any
        two hands hold equally many or one more; so a label that no more than `hands` things share
        is at most once in a hand.
    """
    n = len(first)
    labels = [np.unique(_numbers(each), return_inverse=True)[1] for each in (first, second)]
    groups = [*labels, np.zeros(n, np.intp)]
    # Like first labels are neighbours, so these and all are even already.
    order = np.lexsort((rng.random(n), labels[0]))
    hand = np.empty(n, np.intp)
    hand[order] = np.arange(n) % hands
    while (uneven := _uneven(groups, hand, hands)) is not None:
        both = np.flatnonzero(np.isin(hand, uneven))
        heads = halved(labels[0][both].tolist(), labels[1][both].tolist(), rng)
        hand[both] = np.where(heads, *uneven)
    return hand


def _uneven(
    groups: Sequence[npt.NDArray[np.intp]], hand: npt.NDArray[np.intp], hands: int
) -> tuple[int, int] | None:
    """Two hands that differ by more than one in a group; each evening lowers the sum of squares."""
    for group in groups:
        if len(group):
            counts = np.zeros((group.max() + 1, hands), np.intp)
            np.add.at(counts, (group, hand), 1)
            spread = counts.max(1) - counts.min(1)
            if spread.max() > 1:
                row = counts[spread.argmax()]
                return int(row.argmax()), int(row.argmin())
    return None


def _numbers(labels: Sequence[Hashable]) -> list[int]:
    known: dict[Hashable, int] = {}
    return [known.setdefault(label, len(known)) for label in labels]
