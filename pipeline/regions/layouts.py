"""Layouts: where in a picture each of several concepts is to be, as `datasets/layouts/` says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse, read_yaml
from pipeline.concepts.concept import DATASETS, Subject, check_caption

MOST_REGIONS = 8
# Which cells of a map are in a box: those whose middle is, or those that are wholly. The second is
# the rule of Mix-of-Show's code.
Rule = Literal["centres", "inner"]


class Box(NamedTuple):
    """A part of a picture, in fractions of its width and height from the top left."""

    left: float
    top: float
    right: float
    bottom: float

    def __str__(self) -> str:
        return f"[{', '.join(f'{side:g}' for side in self)}]"

    def holds(self, other: Box) -> bool:
        """Whether the other box lies in this one."""
        starts = self.left <= other.left and self.top <= other.top
        return starts and other.right <= self.right and other.bottom <= self.bottom

    def pixels(self, side: int) -> tuple[int, int, int, int]:
        """The box in a picture of that many pixels each way, as Pillow crops it."""
        left, top = (math.floor(start * side) for start in self[:2])
        right, bottom = (math.ceil(end * side) for end in self[2:])
        return left, top, right, bottom


class Region(Section):
    """A concept, its box and the text that is seen there."""

    concept: Annotated[int, Field(ge=0, description="its place in the subject")]
    prompt: str = Field(description="{} stands for the concept")
    box: Box


class Layout(Section):
    """A picture: what the text of all of it says, and its regions."""

    prompt: str = Field(description="{0}, {1} stand for concepts, which it need not name")
    regions: Annotated[list[Region], Field(min_length=1, max_length=MOST_REGIONS)]


def layout_path(subject: str) -> Path:
    """The file of a subject's layouts; all tasks of a sequence have the same one."""
    return DATASETS / "layouts" / f"{subject.partition('/')[0]}.yaml"


def load_layouts(subject: Subject) -> list[Layout]:
    """The layouts of a composition, or of a sequence for one of its tasks.

    Of boxes of which one lies in the other, it is told that what is there is a mean.

    Raises:
        BenchError: there is no such file, or something in it is wrong; names the entry.
    """
    path = layout_path(subject.name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "no subject"
        raise BenchError(
            f"{path}: {subject.name} has no layouts: write some (docs/layouts.md); there are those "
            f"of {known}"
        )
    layouts = parse(path, list[Layout], read_yaml(path))
    if not layouts:
        raise BenchError(f"{path}: holds no layouts: write one at least (docs/layouts.md)")
    for number, layout in enumerate(layouts):
        _check(f"{path}: {number}", layout, len(subject.concepts))
    return layouts


def _check(where: str, layout: Layout, concepts: int) -> None:
    places = [str(place) for place in range(concepts)]
    try:
        fields = [name for _, name, *_ in Formatter().parse(layout.prompt) if name is not None]
    except ValueError:
        fields = [layout.prompt]
    if not set(fields) <= set(places):
        raise BenchError(
            f"{where}.prompt: {layout.prompt!r}: of placeholders it may have "
            f"{', '.join(f'{{{place}}}' for place in places)}"
        )
    for number, region in enumerate(layout.regions):
        entry = f"{where}.regions.{number}"
        if region.concept >= concepts:
            raise BenchError(
                f"{entry}.concept: {region.concept}: the subject's concepts are 0 to {concepts - 1}"
            )
        check_caption(region.prompt, f"{entry}.prompt")
        left, top, right, bottom = region.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise BenchError(
                f"{entry}.box: {region.box}: needs left, top, right and bottom as fractions of the "
                "picture, left below right and top below bottom"
            )
    for (one, a), (two, b) in combinations(enumerate(layout.regions), 2):
        if a.box.holds(b.box) or b.box.holds(a.box):
            print(
                f"{where}: of the boxes of regions {one} and {two} one lies in the other: what is "
                "there is the mean of both"
            )


def check_cells(subject: str, layouts: Sequence[Layout], side: int, rule: Rule) -> None:
    """Finds out whether each box holds a cell of the coarsest map of attention, `side` cells wide.

    Raises:
        BenchError: one holds none; names the entry, and a box there that does.
    """
    for number, layout in enumerate(layouts):
        for place, region in enumerate(layout.regions):
            if cells(region.box, side, side, rule).any():
                continue
            left, top, right, bottom = region.box
            i, j = (
                min(int((start + end) / 2 * side), side - 1)
                for start, end in ((left, right), (top, bottom))
            )
            smallest = Box(i / side, j / side, (i + 1) / side, (j + 1) / side)
            raise BenchError(
                f"{layout_path(subject)}: {number}.regions.{place}.box: {region.box} holds no cell "
                f"of the coarsest attention, {side} x {side}: the smallest box there that does is "
                f"{smallest}"
            )


def cells(box: Box, height: int, width: int, rule: Rule = "centres") -> npt.NDArray[np.bool_]:
    """The cells of a map that are in a box, bool [height, width]."""

    def along(start: float, end: float, count: int) -> npt.NDArray[np.bool_]:
        places = np.arange(count)
        if rule == "inner":
            return (math.ceil(start * count) <= places) & (places < math.floor(end * count))
        middles = (places + 0.5) / count
        return (start <= middles) & (middles < end)

    rows = along(box.top, box.bottom, height)
    return np.outer(rows, along(box.left, box.right, width))
