"""Pictures of layouts whose content is known, and how well measures tell right ones from wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy.stats import rankdata

from eval.analyses.regions.looking import LOWER_IS_BETTER
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Subject
from pipeline.regions.layouts import Box, Layout
from pipeline.toyland.world.drawing import Placed, draw_things
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import BACKGROUNDS, TINT_NUMBERS, Thing, random_thing

DRAWN, SWAPPED, MISSING, ANOTHER = "drawn", "swapped", "missing", "another"
WRONG = (SWAPPED, MISSING, ANOTHER)
# What a measure is for: from which wrong pictures it has to tell the right ones.
TELLS = {
    "own": (ANOTHER,),
    "other": (SWAPPED,),
    "bound": (SWAPPED,),
    "present": (MISSING,),
    "leak": (SWAPPED,),
    "all_in": (SWAPPED, MISSING),
    "text_alignment": (MISSING,),
}
VALID = 0.9  # least share of pairs that are told apart


class Drawn(NamedTuple):
    """Pictures of which it is known in what they are right or wrong."""

    kind: str
    regions: list[int]  # in which
    images: list[Image.Image]


def can_draw(subject: Subject, layout: Layout) -> bool:
    """Whether all concepts of a layout are things whose drawing is known."""
    return all(subject.concepts[region.concept].name in PERSONAL for region in layout.regions)


def drawn(subject: Subject, layout: Layout, count: int, size: int) -> Iterator[Drawn]:
    """Layouts as they should be, and wrong in one way each.

    `swapped`: each thing in the next one's box; `missing`: one is not there; `another`: one is
    another individual of its category. All have the same backgrounds.

    Args:
        subject: whose concepts can be drawn.
        layout: the boxes.
        count: pictures of each kind, and of each region that is missing or another.
        size: pixels.
    """
    things = [PERSONAL[subject.concepts[region.concept].name] for region in layout.regions]
    boxes = [region.box for region in layout.regions]
    everywhere = list(range(len(boxes)))

    def pictures(*rows: list[tuple[Thing, Box]]) -> list[Image.Image]:
        return [
            _picture(np.random.default_rng(seed_of("regions", layout.prompt, i)), layout, row, size)
            for i, row in enumerate(rows)
        ]

    right = list(zip(things, boxes))
    yield Drawn(DRAWN, everywhere, pictures(*[right] * count))
    if len(boxes) > 1:
        turned = list(zip(things, [*boxes[1:], boxes[0]]))
        yield Drawn(SWAPPED, everywhere, pictures(*[turned] * count))
    for place, (thing, box) in enumerate(right):
        rest = right[:place] + right[place + 1 :]
        yield Drawn(MISSING, [place], pictures(*[rest] * count))
        rngs = (np.random.default_rng(seed_of("another", layout.prompt, i)) for i in range(count))
        others = [random_thing(rng, thing.category) for rng in rngs]
        yield Drawn(ANOTHER, [place], pictures(*([*rest, (other, box)] for other in others)))


def _picture(
    rng: np.random.Generator, layout: Layout, things: Sequence[tuple[Thing, Box]], size: int
) -> Image.Image:
    """Where the prompt says, or anywhere; each thing stands in its box and nearly fills it."""
    said = [name for name, words in BACKGROUNDS.items() if any(w in layout.prompt for w in words)]
    background = said[0] if said else str(rng.choice(tuple(BACKGROUNDS)))
    tint = tuple(float(t) for t in rng.random(TINT_NUMBERS))
    placed = [
        Placed(
            thing,
            x=(box.left + box.right) / 2,
            ground=box.bottom,
            scale=0.9 * min(box.right - box.left, box.bottom - box.top),
        )
        for thing, box in things
    ]
    return Image.fromarray(draw_things(background, tint, placed, size))


def told_apart(right: npt.ArrayLike, wrong: npt.ArrayLike) -> float:
    """The share of pairs of a right and a wrong value in which the right one is larger (AUC).

    Equal values count half; 1 if all are told apart, 0.5 by chance.
    """
    a, b = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    ranks = rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def validated(values: pd.DataFrame) -> pd.DataFrame:
    """How well each measure tells right pictures from wrong ones.

    Args:
        values: columns mode (the kind of drawn picture), measure and value.

    Returns:
        Columns measure, wrong, auc, for (whether that is what the measure is for) and valid
        (whether the measure tells all apart that it is for).
    """
    rows = []
    for measure, group in values.groupby("measure", sort=False):
        right = group.loc[group["mode"] == DRAWN, "value"]
        sign = -1 if measure in LOWER_IS_BETTER else 1
        for kind in WRONG:
            wrong = group.loc[group["mode"] == kind, "value"]
            if len(right) and len(wrong):
                auc = told_apart(sign * right, sign * wrong)
                purpose = kind in TELLS[str(measure)]
                rows.append({"measure": measure, "wrong": kind, "auc": auc, "for": purpose})
    table = pd.DataFrame(rows, columns=["measure", "wrong", "auc", "for"])
    good = {
        measure: set(TELLS[str(measure)]) <= set(part["wrong"])
        and bool((part.loc[part["for"].astype(bool), "auc"] >= VALID).all())
        for measure, part in table.groupby("measure", sort=False)
    }
    return table.assign(valid=table["measure"].map(good).astype(bool))
