"""Kernel inception distance (Binkowski et al., 2018), as the whole set's unbiased estimate.

The usual estimate averages over random subsets. Its expectation over subsets is the value
computed here once, from all pairs: the same quantity, without randomness and with less variance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.metrics import (
    FloatArray,
    SetValue,
    by_label,
    cluster_numbers,
    doubles,
    jackknife_error,
)

SCALE = 1e3  # as in Custom Diffusion's tables
BLOCK = 2048

_Array = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.intp]


def kernel(x: _Array, y: _Array) -> _Array:
    """The polynomial kernel (x y / d + 1)^3 of all pairs of rows: [n, d], [m, d] to [n, m]."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cubed = base * base
    cubed *= base  # far faster than a power
    return cubed


def kid(
    reals: FloatArray,
    generated: FloatArray,
    real_clusters: npt.ArrayLike,
    generated_clusters: npt.ArrayLike,
) -> SetValue:
    """The squared maximum mean discrepancy of two sets, times 1000. Around 0 for equal sets.

    Args:
        reals: features [n, d] with n >= 2.
        generated: features [m, d] with m >= 2.
        real_clusters: a label for each real, [n].
        generated_clusters: a label for each generated image, [m]. Images with one label, here
            those of one caption, vary together.

    Returns:
        The value; its standard error is the jackknife's that leaves out one label at a time, in
        both sets; `n` is the number of generated images.
    """
    x, y = doubles(reals), doubles(generated)
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise ValueError(f"KID needs two images on either side, not {n} and {m}")
    of_x, of_y, names = cluster_numbers(real_clusters, generated_clusters, n, m)
    count = len(names)
    xx, yy, xy = _same(x, of_x, count), _same(y, of_y, count), _cross(x, y, of_x, of_y, count)
    value = _mmd(xx.total, yy.total, xy.total, n, m)
    p, q = n - np.bincount(of_x, minlength=count), m - np.bincount(of_y, minlength=count)
    if min(p.min(), q.min()) < 2:
        return SetValue(SCALE * float(value), float("nan"), m, count, {})
    left_out = SCALE * _mmd(xx.without, yy.without, xy.without, p, q)
    error = jackknife_error(left_out)
    return SetValue(SCALE * float(value), error, m, count, by_label(names, left_out))


def kid_by_caption(
    reals: FloatArray, generated: FloatArray, captions: npt.ArrayLike | None = None
) -> SetValue:
    """KID of two sets that show the same captions, row by row. 0 in expectation for equal sets.

    `kid` takes a set's own images as they come, where no two need share a caption, but compares
    each with that of its caption in the other set. With one image a caption on either side that
    pulls it below 0, by twice what a caption says about its image over their number. Here no pair
    shares a caption (the statistic of Gretton et al., 2012, lemma 6).

    Args:
        reals: features [n, d] of three captions or more.
        generated: features [n, d], each of the caption of the real in that row.
        captions: the label of each row, [n]; by default each row has a caption of its own.

    Returns:
        The value; its standard error is the jackknife's that leaves out one caption at a time.
    """
    x, y = doubles(reals), doubles(generated)
    n = len(x)
    if n < 3 or len(y) != n:
        raise ValueError(f"KID by caption needs as many images on either side, not {n}, {len(y)}")
    labels = np.arange(n) if captions is None else captions
    of, _, names = cluster_numbers(labels, labels, n, n)
    if len(names) < 3:
        raise ValueError(f"KID by caption needs three captions, not {len(names)}")
    across = kernel(x, y)
    terms = kernel(x, x) + kernel(y, y) - across - across.T
    terms[of[:, None] == of] = 0
    sums, sizes = np.bincount(of, terms.sum(1)), np.bincount(of)
    pairs = n**2 - (sizes**2).sum()
    # Without a caption: less its rows and its columns, which have no pair in common.
    left_out = SCALE * (sums.sum() - 2 * sums) / (pairs - 2 * sizes * (n - sizes))
    value = SCALE * float(sums.sum() / pairs)
    found = by_label(names, left_out)
    return SetValue(value, jackknife_error(left_out), n, len(names), found)


def kid_subsets(
    reals: FloatArray, generated: FloatArray, seed: int, subsets: int = 100, size: int = 1000
) -> SetValue:
    """KID as clean-fid estimates it: the mean over random subsets, to compare with its numbers.

    After `np.random.seed(seed)` clean-fid's `kernel_distance(reals, generated, subsets, size)`
    draws the same subsets.

    Args:
        reals: features [n, d] with n >= 2.
        generated: features [m, d] with m >= 2.
        seed: of the draws.
        subsets: how many.
        size: images of a subset, on either side; all of the smaller set if there are fewer.

    Returns:
        The value, without an error: subsets overlap, so that the spread of their values is not one.
    """
    x, y = doubles(reals), doubles(generated)
    size = min(size, len(x), len(y))
    if size < 2:
        raise ValueError(f"KID needs two images on either side, not {len(x)} and {len(y)}")
    random, alone = np.random.RandomState(seed), np.zeros(size, np.intp)
    values = []
    for _ in range(subsets):
        b = y[random.choice(len(y), size, replace=False)]
        a = x[random.choice(len(x), size, replace=False)]
        xx, yy, xy = _same(a, alone, 1), _same(b, alone, 1), _cross(a, b, alone, alone, 1)
        # Images of the same number count as a pair across the sets, as they are different images.
        values.append(_mmd(xx.total, yy.total, xy.total, size, size))
    return SetValue(SCALE * float(np.mean(values)), float("nan"), len(y), 0, {})


class _Sums(NamedTuple):
    """Sums of the kernel over pairs of different images."""

    total: float
    without: _Array  # the same without the images of each cluster, [clusters]


def _mmd(
    xx: _Array | float, yy: _Array | float, xy: _Array | float, n: object, m: object
) -> _Array:
    """The unbiased estimate from sums over pairs of n reals and m generated images."""
    n, m = np.asarray(n, np.float64), np.asarray(m, np.float64)
    return np.asarray(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))


def _same(x: _Array, labels: _Labels, clusters: int) -> _Sums:
    """Sums within a set: of each two blocks once, as the kernel is symmetric."""
    rows, within = np.zeros(len(x)), np.zeros(clusters)
    for i in range(0, len(x), BLOCK):
        a = slice(i, i + BLOCK)
        for j in range(i, len(x), BLOCK):
            b = slice(j, j + BLOCK)
            values = kernel(x[a], x[b])
            if i == j:
                np.fill_diagonal(values, 0)
            rows[a] += values.sum(1)
            if i != j:
                rows[b] += values.sum(0)
            within += _within(values, labels[a], labels[b], clusters) * (1 if i == j else 2)
    of_clusters = np.bincount(labels, rows, clusters)
    # Pairs within the cluster are subtracted twice, by their row and by their column.
    return _Sums(float(rows.sum()), rows.sum() - 2 * of_clusters + within)


def _cross(x: _Array, y: _Array, of_x: _Labels, of_y: _Labels, clusters: int) -> _Sums:
    """Sums across two sets."""
    rows, columns, within = np.zeros(len(x)), np.zeros(len(y)), np.zeros(clusters)
    for i in range(0, len(x), BLOCK):
        a = slice(i, i + BLOCK)
        for j in range(0, len(y), BLOCK):
            b = slice(j, j + BLOCK)
            values = kernel(x[a], y[b])
            rows[a] += values.sum(1)
            columns[b] += values.sum(0)
            within += _within(values, of_x[a], of_y[b], clusters)
    of_clusters = np.bincount(of_x, rows, clusters) + np.bincount(of_y, columns, clusters)
    return _Sums(float(rows.sum()), rows.sum() - of_clusters + within)


def _within(values: _Array, of_rows: _Labels, of_columns: _Labels, clusters: int) -> _Array:
    """Sums of the values whose row and column belong to the same cluster, [clusters]."""
    i, j = np.nonzero(of_rows[:, None] == of_columns)
    return np.bincount(of_rows[i], values[i, j], clusters).astype(np.float64)
