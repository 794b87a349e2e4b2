"""Pictures of samples side by side: the same prompts and start noise, one row for each method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.tables import words
from pipeline.concepts import Subject, open_image
from pipeline.files import read_tar
from pipeline.params import Grid, Params

PROMPTS = 8  # columns of a subject's grid, at most
OVERVIEW_CONCEPTS, OVERVIEW_COMPOSITIONS, OVERVIEW_PROMPTS = 4, 2, 2
CELL, GAP, PAD, LABEL = 144, 8, 24, 132  # pixels
INK, GREY, PAPER = (36, 41, 47), (110, 118, 129), (255, 255, 255)

Shown = dict[int, Image.Image]  # sample 0 of each prompt, by the number of the prompt


class Row(NamedTuple):
    """What one method made of a subject."""

    method: str
    images: Shown


def read_rows(params: Params, grid: Grid, subject: str) -> list[Row]:
    """Sample 0 of every prompt, of each method that has samples of the subject.

    Raises:
        BenchError: samples are damaged.
    """
    rows = []
    for method in grid.methods:
        path = params.runs() / "cells" / method / subject / "samples.tar"
        if path.is_file():
            shown = {
                int(s["json"]["prompt_index"]): _opened(s["png"])
                for s in read_tar(path)
                if s["json"]["part"] == "prompt" and s["json"]["sample"] == 0
            }
            rows.append(Row(method, shown))
    return rows


def subject_grid(subject: Subject, rows: Sequence[Row]) -> Image.Image:
    """The target images on the left; then a row for each method, a column for each prompt."""
    prompts = subject.scored_prompts()
    chosen = _spread(sorted(set().union(*(row.images for row in rows))), PROMPTS)
    head = _height([prompts[i] for i in chosen])
    panel = CELL + GAP
    left = PAD + panel + LABEL
    height = PAD + head + max(len(rows), 2) * (CELL + GAP) + PAD
    page = Image.new("RGB", (left + len(chosen) * (CELL + GAP) + PAD, height), PAPER)
    _targets(page, subject, PAD, PAD + head, height - PAD)
    for column, number in enumerate(chosen):
        x = left + column * (CELL + GAP)
        _text(page, prompts[number], (x + CELL // 2, PAD + head - 8), CELL, anchor="bottom")
        for line, row in enumerate(rows):
            y = PAD + head + line * (CELL + GAP)
            if number in row.images:
                page.paste(_fitted(row.images[number], CELL), (x, y))
    for line, row in enumerate(rows):
        y = PAD + head + line * (CELL + GAP) + CELL // 2
        _text(page, words(row.method), (left - 14, y), LABEL - 28, anchor="right", size=15)
    return page


def overview(grid: Grid, subjects: Sequence[Subject], rows: dict[str, list[Row]]) -> Image.Image:
    """A few prompts of several subjects: targets on top, then a row for each method.

    Args:
        grid: says which methods there are.
        subjects: in the order of columns.
        rows: of each subject, as `read_rows` gives them.
    """
    columns: list[tuple[Subject, int]] = []
    for subject in subjects:
        numbers = sorted(set().union(*(row.images for row in rows[subject.name])))
        columns += [(subject, number) for number in _spread(numbers, OVERVIEW_PROMPTS)]
    methods = [
        m for m in grid.methods if any(r.method == m for s in subjects for r in rows[s.name])
    ]
    texts = [subject.scored_prompts()[number] for subject, number in columns]
    head, title, apart = _height(texts), 30, 14
    left, top = PAD + LABEL, PAD + title + CELL + head
    width = left + len(columns) * (CELL + GAP) + (len(subjects) - 1) * apart + PAD
    page = Image.new("RGB", (width, top + len(methods) * (CELL + GAP) + PAD), PAPER)
    _text(page, "target images", (left - 14, PAD + title + CELL // 2), LABEL - 28, "right", 15)
    for line, method in enumerate(methods):
        y = top + line * (CELL + GAP) + CELL // 2
        _text(page, words(method), (left - 14, y), LABEL - 28, anchor="right", size=15)
    seen: list[str] = []
    for column, (subject, number) in enumerate(columns):
        first = subject.name not in seen
        seen += [subject.name] * first
        x = left + column * (CELL + GAP) + (len(seen) - 1) * apart
        if first:
            span = OVERVIEW_PROMPTS * (CELL + GAP) - GAP
            _text(page, words(subject.name), (x + span // 2, PAD + title - 8), span, "bottom", 17)
        place = column - [s.name for s, _ in columns].index(subject.name)
        page.paste(_fitted(_example(subject, place), CELL), (x, PAD + title))
        _text(page, texts[column], (x + CELL // 2, top - 8), CELL, anchor="bottom")
        for line, method in enumerate(methods):
            found = [r.images[number] for r in rows[subject.name]
                     if r.method == method and number in r.images]  # fmt: skip
            y = top + line * (CELL + GAP)
            if found:
                page.paste(_fitted(found[0], CELL), (x, y))
            else:
                _text(page, "–", (x + CELL // 2, y + CELL // 2), CELL, size=15, colour=GREY)
    return page


def write_image(image: Image.Image, path: Path) -> None:
    """Writes PNG or JPEG, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92, subsampling=0, optimize=True)


def _targets(page: Image.Image, subject: Subject, x: int, top: int, bottom: int) -> None:
    """The target images of all concepts below each other, as many as there is room for."""
    _text(page, "target images", (x + CELL // 2, top - 8), CELL, anchor="bottom")
    several = len(subject.concepts) > 1
    share = (bottom - top) // len(subject.concepts)
    for number, concept in enumerate(subject.concepts):
        y = top + number * share
        count = len(concept.images)
        room = share - (22 if several else 0)
        # The fewest columns with which all images fit, but no more than three.
        across = next((n for n in (1, 2) if -(-count // n) * (CELL // n + GAP) <= room), 3)
        size = (CELL - (across - 1) * 4) // across
        fitting = max(1, room // (size + 4)) * across
        for i, path in enumerate(concept.images[:fitting]):
            at = x + i % across * (size + 4), y + i // across * (size + 4)
            page.paste(_fitted(open_image(path), size), at)
        if several:
            rows = -(-min(count, fitting) // across)
            below = y + rows * (size + 4) + 2
            _text(page, words(concept.name), (x + CELL // 2, below + 8), CELL, colour=GREY)


def _example(subject: Subject, place: int) -> Image.Image:
    """A target image: of the concepts in turn, or other images of the only one."""
    concept = subject.concepts[place % len(subject.concepts)]
    return open_image(concept.images[place // len(subject.concepts) % len(concept.images)])


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread, the first and the last among them."""
    at = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [numbers[i] for i in at]


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """The middle square of the image, scaled to size x size pixels."""
    side = min(image.size)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((x, y, x + side, y + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _lines(text: str, width: int, size: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _height(texts: Sequence[str], size: int = 13) -> int:
    """Room for the longest of the texts above a column."""
    return max(len(_lines(text, CELL, size)) for text in texts) * (size + 5) + 14


def _text(
    page: Image.Image,
    text: str,
    at: tuple[int, int],
    width: int,
    anchor: str = "middle",
    size: int = 13,
    colour: tuple[int, int, int] = INK,
) -> None:
    """Writes wrapped text: centred on `at`, with its lower edge there, or ending to its left."""
    draw, lines, step = ImageDraw.Draw(page), _lines(text, width, size), size + 5
    x, y = at
    y -= len(lines) * step if anchor == "bottom" else len(lines) * step // 2
    for i, line in enumerate(lines):
        place = (x, y + i * step + step // 2)
        draw.text(place, line, colour, _font(size), anchor="rm" if anchor == "right" else "mm")
