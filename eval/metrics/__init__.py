"""Metrics as pure functions: feature arrays in, named results out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class PerImage(NamedTuple):
    """One value for each image."""

    values: npt.NDArray[np.float64]  # [n]
    unit: str


class SetValue(NamedTuple):
    """One value for a set of images, with its standard error."""

    value: float
    std_error: float  # NaN where the set is too small to tell
    n: int  # images in the set
    unit: str


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
