"""Fréchet inception distance (Heusel et al., 2017) without a square root of a matrix.

FID is |a - b|^2 + tr A + tr B - 2 tr (A B)^(1/2) for two sets with means a, b and covariances A, B.
With the n and m centred features as rows of X and Y,

    tr (A B)^(1/2) = (sum of the singular values of X Y') / sqrt((n - 1) (m - 1)),

as A B and (X Y') (X Y')' / ((n - 1) (m - 1)) have the same eigenvalues besides zero. X Y' has n x m
entries however many features there are, and nothing has to be added to a singular covariance.
"""

from __future__ import annotations

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


def fid(
    reals: FloatArray,
    generated: FloatArray,
    real_clusters: npt.ArrayLike,
    generated_clusters: npt.ArrayLike,
) -> SetValue:
    """The Fréchet distance of normal distributions fitted to two sets. 0 for equal sets.

    It is biased upwards, the more the fewer images there are, so values of sets of different sizes
    cannot be compared.

    Args:
        reals: features [n, d] with n >= 2.
        generated: features [m, d] with m >= 2.
        real_clusters: a label for each real, [n].
        generated_clusters: a label for each generated image, [m]. Images with one label, here
            those of one caption, vary together.

    Returns:
        The value; its standard error is the infinitesimal jackknife's, clustered by label in both
        sets (NaN for one label): how far each image pulls the value is the derivative of FID by the
        image's weight, which the singular vectors of X Y' give. The error does not include the
        bias. `n` is the number of generated images.
    """
    x, y = doubles(reals), doubles(generated)
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise ValueError(f"FID needs two images on either side, not {n} and {m}")
    of_x, of_y, names = cluster_numbers(real_clusters, generated_clusters, n, m)
    count = len(names)
    gap = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    u, s, v = np.linalg.svd(x @ y.T, full_matrices=False)
    spread = (x**2).sum() / (n - 1) + (y**2).sum() / (m - 1)
    shared = s.sum() / np.sqrt((n - 1) * (m - 1))
    value = float(gap @ gap + spread - 2 * shared)

    # Of an image at distance c from its mean: 2 gap c + c c - c T c, where T is the linear map that
    # takes one normal distribution to the other and X T X' is sqrt((n - 1) / (m - 1)) U S U'.
    ratio = np.sqrt((n - 1) / (m - 1))
    pull_x = 2 * x @ gap + (x**2).sum(1) - ratio * (u**2 @ s)
    pull_y = -2 * y @ gap + (y**2).sum(1) - (s @ v**2) / ratio
    pulls = np.bincount(of_x, (pull_x - pull_x.mean()) / n, count)
    pulls += np.bincount(of_y, (pull_y - pull_y.mean()) / m, count)
    if count < 2:
        return SetValue(value, float("nan"), m, count, {})
    # To first order; the pulls sum to zero.
    left_out = value - count / (count - 1) * pulls
    return SetValue(value, jackknife_error(left_out), m, count, by_label(names, left_out))
