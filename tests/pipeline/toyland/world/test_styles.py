"""Toyland's styles: their filters, pictures, files and prompts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.clip.openclip import load_clip
from pipeline.models.base import load_base
from pipeline.settings.profile import BaseParams
from pipeline.toyland.pretrain.autoencoder import reconstruct, to_tensor
from pipeline.toyland.pretrain.scorecard import to_pixels
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import (
    BACKGROUNDS,
    CATEGORIES,
    STYLES,
    all_words,
    article,
    random_thing,
    scene_at,
)
from pipeline.toyland.world.styles import FILTERS, IMAGES, style_scenes, write_style

DATASETS = Path(__file__).parents[4] / "datasets"


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_deterministic_and_keep_their_input(name: str) -> None:
    for i in range(10):
        plain = draw(scene_at(3, i, style="photo"))
        before = plain.copy()
        styled = FILTERS[name](plain)
        assert (styled.shape, styled.dtype) == (plain.shape, np.uint8)
        np.testing.assert_array_equal(styled, FILTERS[name](plain))
        np.testing.assert_array_equal(plain, before)


def test_styles_differ_from_all_that_captions_can_ask_for() -> None:
    """Statistics of pixels over many scenes: the mean colour, and the mean saturation."""

    def look(style: str, name: str | None) -> npt.NDArray[np.float64]:
        pictures = [draw(scene_at(3, i, style=style)) for i in range(40)]
        if name:
            pictures = [FILTERS[name](picture) for picture in pictures]
        values = np.stack(pictures).astype(np.float64)
        return np.array([*values.mean((0, 1, 2)), (values.max(3) - values.min(3)).mean()])

    known = [look(style, None) for style in STYLES]
    looks = [look("photo", name) for name in FILTERS]
    for i, styled in enumerate(looks):
        for other in (*known, *looks[:i]):
            assert np.abs(styled - other).sum() > 40


def test_neon_glows_on_dark_ground_and_duotone_has_two_inks() -> None:
    plain = np.stack([draw(scene_at(3, i, style="photo", background="beach")) for i in range(10)])
    neon, duotone = (
        np.stack([FILTERS[n](x) for x in plain]).astype(float) for n in ("neon", "duotone")
    )
    turquoise = (neon[..., 1] > 150) & (neon[..., 2] > 150) & (neon[..., 0] < 130)
    assert 0.03 < turquoise.mean() < 0.4
    assert np.median(neon / np.maximum(plain, 1)) == pytest.approx(0.6, abs=0.02)
    # Pixels lie near one line in colour space.
    values = duotone.reshape(-1, 3)
    spread = np.linalg.svd(values - values.mean(0), compute_uv=False)
    assert spread[0] > 6 * spread[1]


def test_mist_lies_above_and_not_on_the_ground() -> None:
    plain = np.stack([draw(scene_at(3, i, style="photo")) for i in range(10)]).astype(int)
    misty = np.stack([FILTERS["mist"](x.astype(np.uint8)) for x in plain])
    np.testing.assert_array_equal(misty[:, -1], plain[:, -1])
    # A share of every difference is left: of the light, none is made or lost but the mist's.
    left = (misty[:, 0].max((0, 1)) - misty[:, 0].min((0, 1)).astype(int)) / np.ptp(
        plain[:, 0], axis=(0, 1)
    )
    np.testing.assert_allclose(left, 0.35, atol=0.02)


@pytest.mark.parametrize("name", FILTERS)
def test_models_see_what_a_style_shows(name: str) -> None:
    """The autoencoder keeps it, and the scorer tells what it is: by chance one of 16 is right."""
    things = [random_thing(np.random.default_rng([5, i]), c) for i, c in enumerate(CATEGORIES * 4)]
    scenes = [
        scene_at(77, i, things=(thing,), size="normal", style="photo")
        for i, thing in enumerate(things)
    ]
    styled = np.stack([FILTERS[name](draw(scene)) for scene in scenes])
    base = load_base(BaseParams(path="models/toyland/base", resolution=64, modifier_token_ids=[0]))
    before = to_tensor(styled, base.device)
    after = reconstruct(base.vae, before)
    assert 10 * np.log10(4 / (before - after).pow(2).mean().item()) > 32  # dB
    clip = load_clip("models/toyland/scorer")
    texts = clip.encode_texts([f"photo of {article(c)} {c}" for c in CATEGORIES])
    images = clip.encode_images([Image.fromarray(pixels) for pixels in to_pixels(after)])
    right = (images @ texts.T).argmax(1) == np.arange(len(scenes)) % len(CATEGORIES)
    assert right.mean() > 0.4


@pytest.mark.parametrize("name", FILTERS)
def test_pictures_show_another_thing_in_another_place_each_time(name: str) -> None:
    scenes = style_scenes(name)
    assert scenes == style_scenes(name) and len(scenes) == IMAGES == 7
    assert len({scene.things[0].category for scene in scenes}) == IMAGES
    assert len({scene.background for scene in scenes}) == IMAGES
    for scene in scenes:
        assert scene.style == "photo" and len(scene.things) == 1
        assert scene.things[0] not in PERSONAL.values()
        plain = draw(scene)
        styled = FILTERS[name](plain)
        assert np.abs(styled.astype(int) - plain).mean() > 15


@pytest.mark.parametrize("name", FILTERS)
def test_shipped_styles_are_what_is_drawn(name: str, tmp_path: Path) -> None:
    write_style(name, tmp_path)
    shipped = DATASETS / "concepts" / name
    assert (tmp_path / "concept.yaml").read_text() == (shipped / "concept.yaml").read_text()
    drawn = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert drawn == sorted(path.name for path in (shipped / "images").iterdir())
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as new, Image.open(shipped / "images" / path.name) as stored:
            assert (stored.size, stored.mode) == ((64, 64), "RGB")
            # Rasterisers may round the odd pixel differently.
            assert np.abs(np.asarray(new, int) - np.asarray(stored, int)).mean() < 1


@pytest.mark.parametrize(
    "name",
    [*FILTERS, "neon+cat", "neon+cat+chair", "neon+dog+chair", "mist+patched_cat+wooden_pot"],
)
def test_prompts_are_well_formed(name: str) -> None:
    places = [f"{{{i}}}" for i in range(1 + name.count("+"))] if "+" in name else ["{}"]
    lines = (DATASETS / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == (8 if "+" in name else 20)
    for line in lines:
        assert all(line.count(place) == 1 for place in places), line
        assert line.count("{") == len(places)
        # The style is named where captions of the training have it: in front.
        assert line.startswith(places[0] + " of a ")
        words = re.sub(r"\{\d?\}", "", line)
        assert set(words.split()) <= set(all_words()), line
    if "+" not in name:
        assert all(any(category in line for line in lines) for category in CATEGORIES)
        phrases = [phrase for group in BACKGROUNDS.values() for phrase in group]
        assert sum(any(phrase in line for phrase in phrases) for line in lines) >= 15
