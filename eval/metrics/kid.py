"""Kernel inception distance (Binkowski et al., 2018), as the whole set's unbiased estimate.

The usual estimate averages over random subsets. Its expectation over subsets is the value
computed here once, from all pairs: the same quantity, without randomness and with less variance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eval.metrics import FloatArray, SetValue, jackknife_error

SCALE = 1e3  # as in Custom Diffusion's tables
UNIT = "squared MMD * 1000"
BLOCK = 2048

_Array = npt.NDArray[np.float64]


def kernel(x: _Array, y: _Array) -> _Array:
    """The polynomial kernel (x y / d + 1)^3 of all pairs of rows: [n, d], [m, d] to [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


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
    x, y = reals.astype(np.float64), generated.astype(np.float64)
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise ValueError(f"KID needs two images on either side, not {n} and {m}")
    of_x, of_y = np.asarray(real_clusters), np.asarray(generated_clusters)
    if of_x.shape != (n,) or of_y.shape != (m,):
        raise ValueError("each image needs a cluster")
    xx = _row_sums(x, x) - _diagonal(x)
    yy = _row_sums(y, y) - _diagonal(y)
    xy, yx = _row_sums(x, y), _row_sums(y, x)
    value = _mmd(xx.sum(), yy.sum(), xy.sum(), n, m)

    left_out = []
    for label in np.union1d(of_x, of_y):
        a, b = of_x == label, of_y == label
        p, q = int(n - a.sum()), int(m - b.sum())
        if p < 2 or q < 2:
            return SetValue(SCALE * value, float("nan"), m, UNIT)
        # What is left of the three sums: pairs within the cluster are subtracted twice, by their
        # row and by their column, and added once.
        left_out.append(
            _mmd(
                xx.sum() - 2 * xx[a].sum() + kernel(x[a], x[a]).sum() - _diagonal(x[a]).sum(),
                yy.sum() - 2 * yy[b].sum() + kernel(y[b], y[b]).sum() - _diagonal(y[b]).sum(),
                xy.sum() - xy[a].sum() - yx[b].sum() + kernel(x[a], y[b]).sum(),
                p,
                q,
            )
        )
    return SetValue(SCALE * value, SCALE * jackknife_error(np.array(left_out)), m, UNIT)


def _mmd(xx: float, yy: float, xy: float, n: int, m: int) -> float:
    """The unbiased estimate from sums over pairs; those of xx and yy are of distinct images."""
    return float(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))


def _row_sums(x: _Array, y: _Array) -> _Array:
    """Sums of the kernel over all rows of y, for each row of x: [n]. Takes BLOCK^2 of memory."""
    sums = np.zeros(len(x))
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            sums[i : i + BLOCK] += kernel(x[i : i + BLOCK], y[j : j + BLOCK]).sum(1)
    return sums


def _diagonal(x: _Array) -> _Array:
    """The kernel of each row with itself: [n]."""
    return (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1) ** 3
