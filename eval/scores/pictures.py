"""The first pictures of a cell, side by side in one small image that says which they are.

They stay when samples, which are many, are gone. What each tile shows stands as JSON in the
comment of the JPEG: its place and the seed of its start noise, which is null where images were made
elsewhere.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.common.places import repro_command_for
from pipeline.concepts.shards import Sample, image_of

PICTURES = "samples.jpg"  # in the record of a cell
PROMPTS, SAMPLES = 20, 3  # of a cell, at most
TILE = 128  # pixels, at most

Place = tuple[int, int]  # the numbers of prompt and sample; of sequences, of task and concept


class Pictures(NamedTuple):
    """Squares of one size."""

    images: Mapping[Place, Image.Image]
    seeds: Mapping[Place, int]  # of the start noise, where it is known


def first_samples(samples: Sequence[Sample]) -> dict[Place, Sample]:
    """The first samples of prompts that are evenly spread over all, by prompt and number.

    Args:
        samples: of prompts, as `pipeline.concepts.shards.samples_of` gives them.
    """
    by_place = {(int(s["json"]["prompt_index"]), int(s["json"]["sample"])): s for s in samples}
    prompts = {*spread(sorted({prompt for prompt, _ in by_place}), PROMPTS)}
    return {
        place: by_place[place]
        for place in sorted(by_place)
        if place[0] in prompts and place[1] < SAMPLES
    }


def write_pictures(samples: Mapping[Place, Sample], path: Path) -> None:
    """Writes a strip of samples, one at least, to a JPEG."""
    images = [Image.open(io.BytesIO(image_of(s))).convert("RGB") for s in samples.values()]
    tile = min(TILE, *images[0].size)
    strip = Image.new("RGB", (tile * len(images), tile))
    for column, image in enumerate(images):
        strip.paste(fitted(image, tile), (column * tile, 0))
    pictures = [(*place, sample["json"].get("seed")) for place, sample in samples.items()]
    comment = json.dumps({"pictures": pictures}, separators=(",", ":")).encode()
    with atomic(path) as temporary:
        # Colours at full resolution, so that no tile takes from the next.
        strip.save(temporary, "JPEG", quality=85, subsampling=0, optimize=True, comment=comment)


def read_pictures(path: Path) -> Pictures:
    """What `write_pictures` wrote.

    Raises:
        BenchError: the file is missing, damaged or another image.
    """
    try:
        with Image.open(path) as file:
            strip = file.copy()
        listed = json.loads(strip.info["comment"])["pictures"]
        if strip.width != strip.height * len(listed):
            raise ValueError("the picture has another number of tiles")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BenchError(
            f"{path}: not the pictures of a cell: delete it and run `{repro_command_for(path)}`"
        ) from error
    tile = strip.height
    images = {
        (prompt, sample): strip.crop((column * tile, 0, (column + 1) * tile, tile))
        for column, (prompt, sample, _) in enumerate(listed)
    }
    seeds = {(prompt, sample): seed for prompt, sample, seed in listed if seed is not None}
    return Pictures(images, seeds)


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread, the first and the last among them."""
    at = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [numbers[i] for i in at]


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The middle square of the image, scaled to size x size pixels; sharply by a whole factor."""
    side = min(image.size)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((x, y, x + side, y + side))
    whole = size % side == 0
    return square.resize((size, size), Image.Resampling["NEAREST" if whole else "LANCZOS"])
