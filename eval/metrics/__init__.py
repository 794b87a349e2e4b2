"""Metrics as pure functions of features, and their catalogue; no file is opened here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]  # [n], one for each image


class SetValue(NamedTuple):
    """One value for a set of images, with its standard error."""

    value: float
    std_error: float  # NaN where the set is too small to tell
    n: int  # images in the set
    clusters: int  # what the error rests on; degrees of freedom plus one
    # The value without each cluster in turn, by label, so that two sets can be compared pairwise.
    left_out: Mapping[str, float]


def doubles(features: FloatArray) -> npt.NDArray[np.float64]:
    """Features [n, d] in double precision.

    Raises:
        ValueError: they are not a table, or one is not finite, as then every result would be NaN.
    """
    found = np.asarray(features, np.float64)
    if found.ndim != 2:
        raise ValueError(f"features have the shape [n, d], not {list(found.shape)}")
    broken = ~np.isfinite(found).all(1)
    if broken.any():
        raise ValueError(f"the features of image {int(broken.argmax())} are not finite")
    return found


def cluster_numbers(
    first: npt.ArrayLike, second: npt.ArrayLike, n: int, m: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], list[str]]:
    """The labels of two sets as numbers from 0, the same for the same label; and the labels.

    Args:
        first: a label for each image of one set, [n].
        second: a label for each of the other, [m].
        n: images of the first set.
        m: images of the second set.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != (n,) or b.shape != (m,):
        raise ValueError("each image needs a cluster")
    names, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    return numbers[:n], numbers[n:], [str(name) for name in names]


def by_label(names: Sequence[str], left_out: npt.NDArray[np.float64]) -> dict[str, float]:
    """The values without each cluster in turn [c], by the labels of the clusters."""
    return dict(zip(names, left_out.tolist(), strict=True))


def jackknife_error(left_out: npt.NDArray[np.float64]) -> float:
    """The jackknife's standard error.

    Args:
        left_out: float64 [c], the estimate without each of the c clusters in turn.

    Returns:
        sqrt((c - 1) / c * sum of squared deviations from their mean); NaN for c < 2.
    """
    clusters = len(left_out)
    if clusters < 2:
        return float("nan")
    return float(np.sqrt((clusters - 1) * np.var(left_out)))
