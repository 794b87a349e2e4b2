"""Windows: parts of an image, so that a thing which fills a part of it is seen by itself.

No detector is asked where the thing is: in an image that a model made it may be anywhere, or not
there at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from eval.encoders.cache import Features, portions
from eval.encoders.extractor import Extractor

ACROSS = 3  # and as many down, evenly spread
SHARE = 5 / 8  # of the image's sides
COUNT = ACROSS**2
MIDDLE = COUNT // 2  # the number of the central one
_AT_ONCE = 7  # images whose windows are cut and encoded at a time


def windows(image: Image.Image) -> list[Image.Image]:
    """The COUNT windows of an image, row by row, from corner to corner."""
    width, height = (round(SHARE * side) for side in image.size)
    steps = [i / (ACROSS - 1) for i in range(ACROSS)]
    corners = [
        (round(x * (image.width - width)), round(y * (image.height - height)))
        for y in steps
        for x in steps
    ]
    return [image.crop((x, y, x + width, y + height)) for x, y in corners]


def windows_extractor(extractor: Extractor) -> Extractor:
    """What an extractor sees through each window of an image, side by side: [n, COUNT * d]."""

    def encode(images: Sequence[Image.Image]) -> Features:
        return np.concatenate(
            [
                extractor.encode([window for image in some for window in windows(image)]).reshape(
                    len(some), -1
                )
                for some in portions(images, _AT_ONCE)
            ]
        )

    return Extractor(
        f"{extractor.identity} in {COUNT} windows",
        f"{extractor.transform} of {ACROSS} x {ACROSS} windows of {SHARE:g}",
        False,
        encode,
    )


def by_window(features: Features) -> Features:
    """The features of each window [n, COUNT, d], of what such an extractor gives."""
    return features.reshape(len(features), COUNT, -1)
