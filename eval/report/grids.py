"""Pictures of samples side by side: the same prompts and start noise, method by method.

An overview and a *grid* of each subject are for people, with everything written beside the
pictures; a *sheet* has a page's pictures as tiles without a word, which the page labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from eval.scores.pictures import PICTURES, PROMPTS, fitted, read_pictures, spread
from eval.style import words
from pipeline.common.failures import Failure, failure_of
from pipeline.concepts.concept import Subject
from pipeline.concepts.photos import read_photo
from pipeline.settings.profile import Grid, Params

TARGETS = 4  # of a subject's sheet, at most
# Of all sheets of a page, and of one of them, roughly at most: together they are some 4 MB, and
# phones do not show much larger images.
PAGE_PIXELS, PIXELS = 16e6, 6e6
GRID_PROMPTS, OVERVIEW_PROMPTS = 10, 2
CELL, GAP, PAD, LABEL, PROMPT = 128, 4, 10, 118, 168  # pixels
INK, GREY, PAPER = (36, 41, 47), (110, 118, 129), (255, 255, 255)

Shown = Mapping[tuple[int, int], Image.Image]  # by the numbers of prompt and sample


class Row(NamedTuple):
    """What one method made of a subject."""

    method: str
    images: Shown
    failure: Failure | None = None  # why there are none
    seeds: Mapping[tuple[int, int], int] = {}  # of the start noise, where it is known


class Sheet(NamedTuple):
    """All pictures of a subject that a page shows, as tiles of one image.

    Row 0 has the targets, row i the pictures of method i - 1; their column is
    prompt * samples + sample, counted among those shown.
    """

    image: Image.Image
    tile: int  # pixels
    targets: tuple[str, ...]  # the concepts that they show
    methods: tuple[str, ...]
    prompts: tuple[int, ...]  # numbers
    samples: int
    seeds: tuple[tuple[int | None, ...], ...]  # of each method's pictures, by column

    def pictures(self) -> list[tuple[int, int]]:
        """The prompt and the sample of each column."""
        return [(prompt, sample) for prompt in self.prompts for sample in range(self.samples)]

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return self.image.width // self.tile

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return self.image.height // self.tile


def read_rows(params: Params, grid: Grid, subject: str) -> list[Row]:
    """The first pictures of each method that has some of the subject or failed.

    Raises:
        BenchError: pictures are damaged.
    """
    rows = []
    for method in grid.methods:
        path = params.record(method, subject) / PICTURES
        if failure := failure_of(path):
            rows.append(Row(method, {}, failure))
        elif path.is_file():
            images, seeds = read_pictures(path)
            rows.append(Row(method, images, seeds=seeds))
    return rows


def sheet(subject: Subject, rows: Sequence[Row], pixels: float = PIXELS) -> Sheet:
    """The targets, and what methods made of the same prompts from the same start noise.

    Args:
        subject: says what was to be learned.
        rows: as `read_rows` gives them; one at least has images.
        pixels: how large it may be; there are fewer samples of each prompt if need be.
    """
    rows = [row for row in rows if row.images]
    every = sorted(set().union(*(row.images for row in rows)))
    prompts = spread(sorted({prompt for prompt, _ in every}), PROMPTS)
    tile = next(image.width for row in rows for image in row.images.values())
    room = int(pixels / (len(rows) * len(prompts) * tile**2))
    samples = max(1, min(room, 1 + max(sample for _, sample in every)))
    targets = _targets(subject)
    across = max(len(prompts) * samples, len(targets))
    page = Image.new("RGB", (across * tile, (1 + len(rows)) * tile), PAPER)
    for column, (_, path) in enumerate(targets):
        page.paste(fitted(read_photo(path), tile), (column * tile, 0))
    pictures = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    for line, row in enumerate(rows, 1):
        for column, picture in enumerate(pictures):
            if picture in row.images:
                page.paste(fitted(row.images[picture], tile), (column * tile, line * tile))
    return Sheet(
        page,
        tile,
        tuple(name for name, _ in targets),
        tuple(row.method for row in rows),
        tuple(prompts),
        samples,
        tuple(tuple(row.seeds.get(picture) for picture in pictures) for row in rows),
    )


def grid_of(subject: Subject, rows: Sequence[Row]) -> Image.Image:
    """A labelled grid: the targets on top, then a row for each prompt, a column for each method.

    Args:
        subject: says what was to be learned, and with which prompts.
        rows: as `read_rows` gives them, not empty.
    """
    numbers = sorted({prompt for row in rows for prompt, sample in row.images if sample == 0})
    numbers = spread(numbers, GRID_PROMPTS)
    prompts, targets = subject.scored_prompts(), _targets(subject)
    left, methods = PAD + PROMPT, [words(row.method) for row in rows]
    title, names = 40, 24
    head = _height(methods)
    top = PAD + title + CELL + names + head
    across = max(len(rows), len(targets))
    size = left + across * (CELL + GAP) - GAP + PAD, top + len(numbers) * (CELL + GAP) + PAD
    page = Image.new("RGB", size, PAPER)
    nouns = " + ".join(concept.class_noun for concept in subject.concepts)
    heading = words(subject.name)
    heading += f" (a {nouns})" if heading != nouns else ""
    _text(page, heading, (size[0] // 2, PAD + title - 8), size[0] - 2 * PAD, "bottom", 20)
    middle = PAD + title + CELL // 2
    _text(page, "target images", (left - 12, middle), PROMPT - 20, "right", 14)
    for column, (name, path) in enumerate(targets):
        x = left + column * (CELL + GAP)
        page.paste(fitted(read_photo(path), CELL), (x, PAD + title))
        _text(page, words(name), (x + CELL // 2, PAD + title + CELL + names // 2), CELL)
    for column, method in enumerate(methods):
        _text(page, method, (left + column * (CELL + GAP) + CELL // 2, top - 8), CELL, "bottom", 15)
    for line, number in enumerate(numbers):
        y = top + line * (CELL + GAP)
        _text(page, prompts[number], (left - 12, y + CELL // 2), PROMPT - 20, "right", 14)
        for column, row in enumerate(rows):
            _paste(
                page, row.images.get((number, 0)), (left + column * (CELL + GAP), y), row.failure
            )
    return page


Tile = Image.Image | Failure | None  # a picture, why there is none, or a place left empty


def labelled(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """Pictures in rows with a title each, under the titles of their columns.

    Args:
        titles: of the columns.
        rows: title and tiles, as many as there are columns.
    """
    head, left = PAD + _height(titles), PAD + PROMPT
    size = left + len(titles) * (CELL + GAP) + PAD, head + len(rows) * (CELL + GAP) + PAD
    page = Image.new("RGB", size, PAPER)
    for column, title in enumerate(titles):
        at = left + column * (CELL + GAP) + CELL // 2, head - 8
        _text(page, title, at, CELL, "bottom", 14)
    for line, (title, tiles) in enumerate(rows):
        y = head + line * (CELL + GAP)
        _text(page, title, (left - 12, y + CELL // 2), PROMPT - 20, "right", 14)
        for column, tile in enumerate(tiles):
            at = left + column * (CELL + GAP), y
            if isinstance(tile, Image.Image):
                _paste(page, tile, at)
            elif isinstance(tile, Failure):
                _paste(page, None, at, tile)
    return page


def overview(subjects: Sequence[Subject], rows: dict[str, list[Row]]) -> Image.Image:
    """A few prompts of several subjects: targets on top, then a row for each method.

    Args:
        subjects: in the order of columns.
        rows: of each subject, as `read_rows` gives them.
    """
    columns: list[tuple[Subject, int]] = []
    for subject in subjects:
        numbers = sorted({p for row in rows[subject.name] for p, _ in row.images})
        columns += [(subject, number) for number in spread(numbers, OVERVIEW_PROMPTS)]
    methods = list(dict.fromkeys(row.method for s in subjects for row in rows[s.name]))
    texts = [subject.scored_prompts()[number] for subject, number in columns]
    head, title, apart = _height(texts, 14), 30, 10
    left, top = PAD + LABEL, PAD + title + CELL + head
    width = left + len(columns) * (CELL + GAP) + (len(subjects) - 1) * apart - GAP + PAD
    page = Image.new("RGB", (width, top + len(methods) * (CELL + GAP) - GAP + PAD), PAPER)
    _text(page, "target images", (left - 12, PAD + title + CELL // 2), LABEL - 12, "right", 14)
    for line, method in enumerate(methods):
        y = top + line * (CELL + GAP) + CELL // 2
        _text(page, words(method), (left - 12, y), LABEL - 12, "right", 14)
    seen: list[str] = []
    for column, (subject, number) in enumerate(columns):
        first = subject.name not in seen
        seen += [subject.name] * first
        x = left + column * (CELL + GAP) + (len(seen) - 1) * apart
        place = column - [s.name for s, _ in columns].index(subject.name)
        if first:
            span = sum(s is subject for s, _ in columns) * (CELL + GAP) - GAP
            _text(page, words(subject.name), (x + span // 2, PAD + title - 6), span, "bottom", 18)
        page.paste(fitted(_example(subject, place), CELL), (x, PAD + title))
        _text(page, texts[column], (x + CELL // 2, top - 8), CELL, "bottom", 14)
        found = {row.method: row for row in rows[subject.name]}
        for line, method in enumerate(methods):
            row = found.get(method, Row(method, {}))
            at = x, top + line * (CELL + GAP)
            _paste(page, row.images.get((number, 0)), at, row.failure)
    return page


def write_image(image: Image.Image, path: Path) -> None:
    """Writes PNG or JPEG, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=85, optimize=True)


def _targets(subject: Subject) -> list[tuple[str, Path]]:
    """The names of the concepts and their first target images, TARGETS in all at most."""
    each = max(1, TARGETS // len(subject.concepts))
    return [(c.name, path) for c in subject.concepts for path in c.images[:each]]


def _paste(
    page: Image.Image,
    image: Image.Image | None,
    at: tuple[int, int],
    failure: Failure | None = None,
) -> None:
    """Puts a picture into its place, or what failed, or a dash if there is none."""
    if image:
        page.paste(fitted(image, CELL), at)
    else:
        said = failure.kind if failure else "–"
        _text(page, said, (at[0] + CELL // 2, at[1] + CELL // 2), CELL, size=15, colour=GREY)


def _example(subject: Subject, place: int) -> Image.Image:
    """A target image: of the concepts in turn, or other images of the only one."""
    concept = subject.concepts[place % len(subject.concepts)]
    return read_photo(concept.images[place // len(subject.concepts) % len(concept.images)])


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


def _height(texts: Sequence[str], size: int = 15) -> int:
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
