"""Identity: is an image of the very thing, or of one that looks like it?

Image-alignment rewards any orange cat. Here each image is a query to a gallery of real pictures:
the concept's own, and those of look-alikes, other individuals of its class. The gallery is ranked
by cosine, as in Finer-Personalization Rank (Kilrain et al., 2025, arXiv:2512.19026).

Features of whole images tell backgrounds too, and of two things in one image those of neither. So
an image is seen through several windows, and is as near to a picture as the nearest of them.

Ties never favour: an own picture stands behind every look-alike's with the same cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.metrics import FloatArray, SetValue, Values, doubles


class Gallery(NamedTuple):
    """What images are ranked against."""

    own: FloatArray  # unit features [m, d] of the concept's own pictures
    others: FloatArray  # unit features [k, d] of pictures of look-alikes


def top1(images: FloatArray, gallery: Gallery) -> Values:
    """Whether the picture that is nearest to each image is one of the concept's own.

    Args:
        images: unit features [n, w, d] of w windows of each image.
        gallery: m >= 1 own pictures and k >= 1 others.

    Returns:
        float64 [n] of zeros and ones.
    """
    own, others = _cosines(images, gallery)
    return (own.max(1) > others.max(1)).astype(np.float64)


def average_precision(images: FloatArray, gallery: Gallery) -> Values:
    """The average precision of the concept's own pictures in each image's ranking.

    The mean over the own pictures of the share of own ones among all pictures down to it. The
    mean over images is the mAP.

    Args:
        images: unit features [n, w, d] of w windows of each image.
        gallery: m >= 1 own pictures and k >= 1 others.

    Returns:
        float64 [n], 1 where all own pictures come first.
    """
    own, others = _cosines(images, gallery)
    found = np.sort(own, 1)[:, ::-1]
    place = np.arange(1, own.shape[1] + 1)  # among the own ones
    before = (others[:, None, :] >= found[:, :, None]).sum(2)
    return np.asarray((place / (place + before)).mean(1))


def top1_by_chance(own: int, others: int) -> float:
    """The expectation of `top1` where each order of the gallery is as likely."""
    return own / (own + others)


def average_precision_by_chance(own: int, others: int) -> float:
    """The expectation of `average_precision` where each order of the gallery is as likely.

    Of n pictures the one at place i is an own one with probability m / n, and then 1 + (i - 1)
    (m - 1) / (n - 1) of the first i are, in expectation. The sum over places of the share of own
    ones is, with the harmonic number H = 1 + 1/2 + ... + 1/n,

        H / n + (m - 1) / (n - 1) * (1 - H / n).
    """
    n = own + others
    mean = float(np.mean(1 / np.arange(1, n + 1)))  # H / n
    return mean + (own - 1) / (n - 1) * (1 - mean)


def leave_one_out(
    measure: Callable[[FloatArray, Gallery], Values], images: FloatArray, gallery: Gallery
) -> SetValue:
    """What the concept's own pictures get, each left out of the gallery that it is ranked against.

    So that gallery has one own picture less than that of a method's images.

    Args:
        measure: `top1` or `average_precision`.
        images: unit features [m, w, d] of w windows of each own picture.
        gallery: the same m >= 2 own pictures and k >= 1 others.

    Returns:
        The mean over the own pictures; its error is that of independent images.
    """
    own = doubles(gallery.own)
    m = len(own)
    if m < 2:
        raise ValueError("a picture of the concept needs another one to be found")
    values = [
        measure(images[[i]], gallery._replace(own=own[np.arange(m) != i]))[0] for i in range(m)
    ]
    error = float(np.std(values, ddof=1) / np.sqrt(m))
    return SetValue(float(np.mean(values)), error, m, m, {})


def _cosines(
    images: FloatArray, gallery: Gallery
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Those of images with the own pictures [n, m] and with the others [n, k]."""
    for pictures, whose in zip(gallery, ("of the concept", "of look-alikes")):
        if not len(pictures):
            raise ValueError(f"identity needs a picture {whose} in the gallery")
    n, windows, d = images.shape
    unit = doubles(images.reshape(n * windows, d))
    own, others = (
        (unit @ doubles(pictures).T).reshape(n, windows, -1).max(1) for pictures in gallery
    )
    return own, others
