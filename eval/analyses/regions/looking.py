"""What is to be seen in each box of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from eval.analyses.common import Judge
from eval.metrics.image_alignment import image_alignment
from pipeline.common.files import png_bytes
from pipeline.concepts.concept import Subject
from pipeline.concepts.shards import image_of, targets_of
from pipeline.models.base import to_tensor
from pipeline.regions.layouts import Box, Layout
from pipeline.toyland.pretrain.judge import load_judge
from pipeline.toyland.world.scenes import CATEGORIES

RGB = tuple[int, int, int]
GREY: RGB = (127, 127, 127)
JUDGED = 64  # pixels of what the classifier sees
# By measure, what it is called.
MEASURES = {
    "own": "image-alignment with its own concept",
    "other": "with the nearest other one",
    "bound": "nearer to its own",
    "present": "its category is in the box",
    "leak": "and outside of it",
    "all_in": "all present and bound",
    "text_alignment": "text-alignment of the picture",
}
WHOLE = -1  # the region of a measure that is of the picture
SHARES = ("bound", "present", "leak", "all_in")  # of yes and no
LOWER_IS_BETTER = ("other", "leak")


def enlarged(image: Image.Image, box: Box) -> Image.Image:
    """What is in a box, as large as the picture allows, on grey."""
    part, side = image.crop(box.pixels(image.width)), image.width
    scale = side / max(part.size)
    wide, high = (max(1, round(length * scale)) for length in part.size)
    page = Image.new("RGB", image.size, GREY)
    part = part.resize((wide, high), Image.Resampling.BICUBIC)
    page.paste(part, ((side - wide) // 2, (side - high) // 2))
    return page


def alone(image: Image.Image, box: Box) -> Image.Image:
    """What is in a box, where it is; all around has the mean colour of the box's own border."""
    left, top, right, bottom = pixels = box.pixels(image.width)
    inner = np.asarray(image)[top:bottom, left:right]
    page = Image.new("RGB", image.size, _mean(inner[0], inner[-1], inner[:, 0], inner[:, -1]))
    page.paste(image.crop(pixels), (left, top))
    return page


def without(image: Image.Image, box: Box) -> Image.Image:
    """The picture with a box in the mean colour of what borders on it; grey if it is all."""
    left, top, right, bottom = pixels = box.pixels(image.width)
    whole, page = np.asarray(image), image.copy()
    beside = [
        *whole[max(top - 1, 0) : top, left:right],
        *whole[bottom : bottom + 1, left:right],
        *(whole[top:bottom, x] for x in (left - 1, right) if 0 <= x < image.width),
    ]
    page.paste(_mean(*beside) if beside else GREY, pixels)
    return page


def _mean(*lines: npt.NDArray[np.uint8]) -> RGB:
    """The mean colour of lines of pixels, [n, 3] each."""
    red, green, blue = (round(float(x)) for x in np.concatenate(lines).mean(0))
    return red, green, blue


class Looker:
    """Measures pictures of a subject's layouts."""

    def __init__(self, judge: Judge, subject: Subject, classifier: str | None) -> None:
        self.judge, self.concepts = judge, subject.concepts
        self.classifier = load_judge(Path(classifier)) if classifier else None
        self.targets = [
            judge.extract([image_of(s) for s in targets_of(judge.params, concept.name)])
            for concept in subject.concepts
        ]

    def measured(self, images: Sequence[Image.Image], layout: Layout) -> pd.DataFrame:
        """What each box of pictures shows.

        A measure that cannot be taken is left out: `other` and `bound` where all regions have one
        concept, `leak` where another region has the same category, and what asks the classifier
        where there is none, or it knows none of the noun.

        Args:
            images: of a layout.
            layout: the boxes, and what should be in each.

        Returns:
            Columns image, region (or WHOLE), measure and value.
        """
        rows: list[pd.DataFrame] = []
        count, right = range(len(images)), np.ones(len(images), bool)

        def add(measure: str, values: object, region: int = WHOLE) -> None:
            found = {"image": count, "region": region, "measure": measure}
            rows.append(pd.DataFrame(found | {"value": np.asarray(values, np.float64)}))

        judged = self.classifier is not None
        for place, region in enumerate(layout.regions):
            about = self.concepts[region.concept]
            beside = [r.concept for r in layout.regions if r.concept != region.concept]
            crops = [png_bytes(enlarged(image, region.box)) for image in images]
            features = self.judge.extract(crops)
            own = image_alignment(features, self.targets[region.concept])
            add("own", own, place)
            if beside:
                others = [image_alignment(features, self.targets[other]) for other in beside]
                other = np.max(others, axis=0)
                add("other", other, place)
                add("bound", own > other, place)
                right &= own > other
            if self.classifier is None or about.class_noun not in CATEGORIES:
                judged = False
                continue
            present = self._shows([alone(image, region.box) for image in images], about.class_noun)
            add("present", present, place)
            right &= present
            nouns = [self.concepts[r.concept].class_noun for r in layout.regions]
            if nouns.count(about.class_noun) == 1:
                rest = [without(image, region.box) for image in images]
                add("leak", self._shows(rest, about.class_noun), place)
        if judged:
            add("all_in", right)
        asked = layout.prompt.format(*(concept.class_noun for concept in self.concepts))
        add("text_alignment", self.judge.text_alignment(images, [asked] * len(images)))
        return pd.concat(rows, ignore_index=True)

    @torch.no_grad()
    def _shows(self, images: Sequence[Image.Image], noun: str) -> npt.NDArray[np.bool_]:
        """Whether the classifier sees that category in each picture, bool [n]."""
        assert self.classifier is not None
        seen = to_tensor([image.resize((JUDGED, JUDGED)) for image in images])
        found = self.classifier(seen)["present"][:, CATEGORIES.index(noun)] > 0
        return np.asarray(found.numpy())
