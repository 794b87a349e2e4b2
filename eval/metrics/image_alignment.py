"""Image-alignment: similarity to the target images (Custom Diffusion, section 4.1).

The same for CLIP's features and for DINO's, which CustomConcept101 adds.
"""

from __future__ import annotations

import numpy as np

from eval.metrics import FloatArray, SetValue, Values, doubles, jackknife_error


def image_alignment(images: FloatArray, targets: FloatArray) -> Values:
    """The mean cosine of each image with all target images, in [-1, 1].

    The mean over all pairs of an image and a target is the mean of these values. The cosines
    with m targets average to the product with the mean of the m unit vectors, so that no
    [n, m] matrix is needed.

    Args:
        images: unit features [n, d].
        targets: unit features [m, d].

    Returns:
        float64 [n].
    """
    if not len(targets):
        raise ValueError("image-alignment needs a target image")
    return doubles(images) @ doubles(targets).mean(0)


def leave_one_out(targets: FloatArray) -> SetValue:
    """Image-alignment of the target images with each other: the mean cosine of distinct images.

    What a method would reach whose images are as alike to the targets as these are to each
    other. A method can exceed it by copying them.

    Args:
        targets: unit features [m, d] with m >= 2.

    Returns:
        The mean over pairs; its error is the jackknife's over images, as an image takes part in
        many pairs. It needs three images.
    """
    m = len(targets)
    if m < 2:
        raise ValueError("a target image needs another one to be compared with")
    unit = doubles(targets)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    sums, total = cosines.sum(1), float(cosines.sum())
    error = float("nan")
    if m > 2:
        error = jackknife_error((total - 2 * sums) / ((m - 1) * (m - 2)))
    return SetValue(total / (m * (m - 1)), error, m, m, {})
