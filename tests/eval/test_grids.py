"""Sheets of samples: each tile is the picture that it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.grids import CELL, PIXELS, Row, Sheet, overview, read_rows, sheet
from pipeline.concepts import load_subject
from pipeline.files import read_tar
from pipeline.params import load_grid, load_params
from pipeline.photos import read_photo


def tile(found: Sheet, column: int, row: int) -> np.ndarray:
    x, y = column * found.tile, row * found.tile
    return np.asarray(found.image.crop((x, y, x + found.tile, y + found.tile)))


def flat(value: int, size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), (value, 0, 0))


def test_tiles_are_the_samples(profile: Path) -> None:
    subject = load_subject("cat")
    found = sheet(subject, read_rows(load_params(), load_grid(), "cat"))
    assert found.methods == ("pretrained", "custom_diffusion")
    assert (found.tile, found.prompts, found.samples) == (64, (0, 1, 2), 2)
    assert (found.columns, found.rows) == (6, 3)
    for line, method in enumerate(found.methods, 1):
        for sample in read_tar(f"runs/toyland/cells/{method}/cat/samples.tar"):
            about = sample["json"]
            if about["part"] == "prompt":
                column = about["prompt_index"] * found.samples + about["sample"]
                (profile / "one.png").write_bytes(sample["png"])
                wanted = np.asarray(read_photo(profile / "one.png"))
                assert (tile(found, column, line) == wanted).all()


def test_the_first_row_has_the_targets(profile: Path) -> None:
    subject = load_subject("cat+chair")
    found = sheet(subject, read_rows(load_params(), load_grid(), "cat+chair"))
    assert found.targets == ("cat", "cat", "chair", "chair")
    second = np.asarray(read_photo(subject.concepts[1].images[0]))
    assert (tile(found, 2, 0) == second).all()


def test_gaps_stay_white(profile: Path) -> None:
    rows = [Row("a", {(0, 0): flat(10), (1, 0): flat(20)}), Row("b", {(1, 0): flat(30)})]
    found = sheet(load_subject("cat"), rows)
    assert (tile(found, 0, 2) == 255).all()
    assert (tile(found, 1, 2)[..., 0] == 30).all()
    assert found.samples == 1


@pytest.mark.parametrize(("size", "samples"), [(64, 3), (CELL, 1)])
def test_large_pictures_are_shown_once_a_prompt(profile: Path, size: int, samples: int) -> None:
    images = {(p, s): flat(p, size) for p in range(30) for s in range(3)}
    found = sheet(load_subject("cat"), [Row(str(m), images) for m in range(12)])
    assert found.samples == samples
    assert len(found.prompts) == 20
    assert (found.prompts[0], found.prompts[-1]) == (0, 29)
    assert found.image.width * found.image.height < 1.2 * PIXELS


def test_overview_shows_every_method_once(profile: Path) -> None:
    grid, params = load_grid(), load_params()
    subjects = [load_subject(name) for name in ("cat", "chair")]
    rows = {s.name: read_rows(params, grid, s.name) for s in subjects}
    page = overview(grid, subjects, rows)
    fewer = overview(grid, subjects, {name: found[:1] for name, found in rows.items()})
    assert page.height - fewer.height == CELL + 8
    assert page.width == fewer.width
