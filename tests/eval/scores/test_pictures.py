"""The first pictures of a cell, and what is known of each."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.scores.pictures import (
    PROMPTS,
    SAMPLES,
    TILE,
    first_samples,
    read_pictures,
    write_pictures,
)
from pipeline.common.errors import BenchError
from pipeline.concepts.shards import Sample


def drawn(colour: tuple[int, int, int], size: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(data, "PNG")
    return data.getvalue()


def samples(prompts: int, each: int, size: int = 64, seeds: bool = True) -> list[Sample]:
    found = []
    for prompt in range(prompts):
        for number in range(each):
            about = {"prompt_index": prompt, "sample": number}
            about |= {"seed": 2**63 + 100 * prompt + number} if seeds else {}
            colour = (8 * prompt, 60 * number, 128)
            found.append({"__key__": "x", "png": drawn(colour, size), "json": about})
    return found


@pytest.mark.parametrize("size", [64, TILE, 2 * TILE])
def test_pictures_are_the_first_samples_of_spread_prompts(tmp_path: Path, size: int) -> None:
    path = tmp_path / "samples.jpg"
    write_pictures(first_samples(samples(30, 5, size)), path)
    images, seeds = read_pictures(path)
    prompts = sorted({prompt for prompt, _ in images})
    assert len(prompts) == PROMPTS and (prompts[0], prompts[-1]) == (0, 29)
    assert set(images) == {(p, s) for p in prompts for s in range(SAMPLES)}
    for (prompt, number), image in images.items():
        assert image.size == (min(size, TILE),) * 2
        wanted = (8 * prompt, 60 * number, 128)
        assert np.abs(np.asarray(image, float) - wanted).max() < 4  # JPEG
        assert seeds[prompt, number] == 2**63 + 100 * prompt + number


def test_images_made_elsewhere_have_no_seeds(tmp_path: Path) -> None:
    write_pictures(first_samples(samples(1, 2, seeds=False)), tmp_path / "samples.jpg")
    images, seeds = read_pictures(tmp_path / "samples.jpg")
    assert (len(images), seeds) == (2, {})


@pytest.mark.parametrize("fault", ["missing", "cut", "another image"])
def test_other_files_are_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "samples.jpg"
    write_pictures(first_samples(samples(2, 2)), path)
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(BenchError, match=r"samples\.jpg: not the pictures of a cell: delete it"):
        read_pictures(path)
