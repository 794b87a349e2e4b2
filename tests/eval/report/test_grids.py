"""Sheets of samples: each tile is the picture that it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report import grids
from eval.report.grids import CELL, PIXELS, Row, Sheet, grid_of, overview, read_rows, sheet
from eval.scores.pictures import fitted
from eval.style import words
from pipeline.common.files import read_tar
from pipeline.concepts.concept import load_subject
from pipeline.concepts.photos import read_photo
from pipeline.settings.profile import load_grid, load_params


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
                wanted = np.asarray(read_photo(profile / "one.png"), float)
                for other in range(found.columns):
                    away = np.abs(tile(found, other, line) - wanted).mean()
                    assert away < 4 if other == column else away > 8  # of a JPEG


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


def different_rows(subject: str) -> list[Row]:
    """The rows of a subject, of which no two have the same pictures."""
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return [
        Row(row.method, {key: image.transpose(turn) for key, image in row.images.items()})
        for row, turn in zip(read_rows(load_params(), load_grid(), subject), turns)
    ]


def shown_at(page: Image.Image, picture: Image.Image) -> tuple[int, int] | None:
    """Where a picture stands on a page, in cells of the page's size; None if it does not."""
    wanted = np.asarray(picture.resize((CELL, CELL), Image.Resampling.NEAREST))
    content = np.asarray(page)
    ys, xs = np.nonzero((content[: 1 - CELL, : 1 - CELL] == wanted[0, 0]).all(-1))
    found = [(x, y) for x, y in zip(xs.tolist(), ys.tolist())
             if (content[y : y + CELL, x : x + CELL] == wanted).all()]  # fmt: skip
    return found[0] if found else None


def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is written on pages from now on, and where."""
    texts: list[tuple[str, int, int]] = []

    def note(page: Image.Image, text: str, at: tuple[int, int], *_: object, **__: object) -> None:
        texts.append((text, *at))

    monkeypatch.setattr(grids, "_text", note)
    return texts


def test_a_grid_says_concept_prompt_and_method_of_every_picture(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = written(monkeypatch)
    subject, rows = load_subject("cat+chair"), different_rows("cat+chair")
    page = grid_of(subject, rows)
    assert [text for text, *_ in texts if "cat + chair" in text] == ["cat + chair"]
    prompts = subject.scored_prompts()
    for row in rows:
        for (prompt, sample), picture in row.images.items():
            at = shown_at(page, picture)
            assert (at is not None) == (sample == 0)
            if at:
                middle = at[0] + CELL // 2, at[1] + CELL // 2
                (beside,) = {t for t, _, y in texts if y == middle[1] and t != "–"}
                assert beside == prompts[prompt]
                above = [t for t, x, y in texts if x == middle[0] and y < at[1]]
                assert above[-1] == words(row.method)
    for concept in subject.concepts:
        at = shown_at(page, read_photo(concept.images[0]))
        assert at
        assert any(t == concept.name and x == at[0] + CELL // 2 and y > at[1] for t, x, y in texts)


def test_an_overview_says_what_each_picture_is(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = written(monkeypatch)
    subjects = [load_subject(name) for name in ("cat", "chair", "cat+chair")]
    rows = {s.name: different_rows(s.name) for s in subjects}
    page = overview(subjects, rows)
    assert 850 < page.width < 960  # what a README shows without scaling
    for subject in subjects:
        for row in rows[subject.name]:
            for (prompt, sample), picture in row.images.items():
                at = shown_at(page, picture)
                assert (at is not None) == (sample == 0 and prompt in (0, 2))
                if at:
                    assert [t for t, _, y in texts if y == at[1] + CELL // 2 and t != "–"] == [
                        words(row.method)
                    ]
                    (text,) = {t for t, x, y in texts if x == at[0] + CELL // 2 and t != "–"}
                    assert text == subject.scored_prompts()[prompt]
    # The merge has no pictures of single concepts.
    assert [text for text, *_ in texts].count("–") == 4


def test_small_pictures_keep_their_pixels() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    large = np.asarray(fitted(picture, 128))
    assert (large[::2, ::2] == np.asarray(picture)).all()
    assert (large[1::2, 1::2] == np.asarray(picture)).all()
