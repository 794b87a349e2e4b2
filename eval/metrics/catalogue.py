"""The catalogue: every metric there is, how it is computed, called, printed and read.

Nothing else knows which metrics there are, which way is better or how many digits are printed:
scores, tables, charts, the page and the papers' numbers all ask here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy.typing as npt

from eval.metrics import FloatArray, SetValue, Values
from eval.metrics.fid import fid
from eval.metrics.identity import (
    Gallery,
    average_precision,
    average_precision_by_chance,
    top1,
    top1_by_chance,
)
from eval.metrics.image_alignment import image_alignment, leave_one_out
from eval.metrics.kid import SCALE as KID_SCALE
from eval.metrics.kid import kid, kid_by_caption
from eval.metrics.text_alignment import text_alignment

# With fewer captions the value of a set is refused: images have in common what their caption asks
# for, so that its error rests on captions, not on images.
LEAST_CAPTIONS = 5
# With fewer other individuals a gallery says little about who is meant.
LEAST_LOOKALIKES = 4
# "distance": what the protocol's `kid_features` names; "windows": CLIP, through windows.
Encoder = Literal["clip", "dino", "distance", "windows"]


@dataclass(frozen=True)
class Metric:
    """How a metric is called, printed and read."""

    title: str
    unit: str
    digits: int
    higher_is_better: bool

    @property
    def heading(self) -> str:
        """The title, with an arrow in the direction that is better: "text-alignment ↑"."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Measured(Metric):
    """A metric that is measured here; the subclasses say what images are compared with."""

    encoder: Encoder
    per_image: ClassVar[bool] = True  # a value for each image, or one for all of a subject's
    # What there have to be so many of for a value.
    least: ClassVar[tuple[int, str]] = (0, "")
    # Whether tables of all methods show it. One that says less of the same as another would widen
    # them, and cost tests of the others their power.
    headline: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class OfPrompts(Measured):
    """Compares each image with its prompt: `measure(images, texts, scale)`; features [n, d]."""

    measure: Callable[[FloatArray, FloatArray, float], Values]


@dataclass(frozen=True)
class OfTargets(Measured):
    """Compares each image with a concept's target images: `measure(images, targets)`."""

    measure: Callable[[FloatArray, FloatArray], Values]
    among_targets: Callable[[FloatArray], SetValue]  # of the targets with each other: the oracle's


@dataclass(frozen=True)
class OfGallery(Measured):
    """Ranks a concept's own pictures and those of look-alikes by their likeness to each image."""

    measure: Callable[[FloatArray, Gallery], Values]
    by_chance: Callable[[int, int], float]  # of so many own pictures and others
    least: ClassVar[tuple[int, str]] = (LEAST_LOOKALIKES, "look-alikes")


@dataclass(frozen=True)
class OfSets(Measured):
    """Compares all images of captions with held-out real images, each with its caption's label.

    Real images of what was asked for exist for single concepts only, and so does the metric.
    """

    measure: Callable[[FloatArray, FloatArray, npt.ArrayLike, npt.ArrayLike], SetValue]
    # Of two halves of the real images, row by row of one label: the oracle's.
    of_halves: Callable[[FloatArray, FloatArray, npt.ArrayLike], SetValue]
    scale: float  # what the distance is multiplied by
    per_image: ClassVar[bool] = False
    least: ClassVar[tuple[int, str]] = (LEAST_CAPTIONS, "distinct held-out captions")


# In the order of a table's columns. A protocol lists those that it measures.
METRICS: dict[str, Measured] = {
    "text_alignment": OfPrompts(
        "text-alignment", "scaled cosine, 0 at least", 3, True, "clip", text_alignment
    ),
    "image_alignment": OfTargets(
        "image-alignment", "cosine", 3, True, "clip", image_alignment, leave_one_out
    ),
    "dino_image_alignment": OfTargets(
        "DINO image-alignment", "cosine", 3, True, "dino", image_alignment, leave_one_out
    ),
    "identity_map": OfGallery(
        "identity mAP",
        "mean average precision",
        3,
        True,
        "windows",
        average_precision,
        average_precision_by_chance,
    ),
    "identity_top1": OfGallery(
        "identity top-1",
        "share of images",
        3,
        True,
        "windows",
        top1,
        top1_by_chance,
        headline=False,
    ),
    "kid": OfSets(
        "KID × 10³", "squared MMD × 10³", 2, False, "distance", kid, kid_by_caption, KID_SCALE
    ),
    "fid": OfSets(
        "FID",
        "squared Fréchet distance",
        2,
        False,
        "distance",
        fid,
        lambda x, y, labels: fid(x, y, labels, labels),
        1.0,
    ),
}
