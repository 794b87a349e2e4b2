"""Toyland's scenes, captions, drawings and personal concepts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.toyland.world.drawing import draw, sheet
from pipeline.toyland.world.personal import IMAGES, PERSONAL, personal_scenes, write_concept
from pipeline.toyland.world.scenes import (
    ACCESSORIES,
    ANIMALS,
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    PATTERNS,
    SIZES,
    STYLES,
    Scene,
    Thing,
    all_words,
    caption,
    full_caption,
    random_scene,
    random_thing,
    relations_between,
    scene_at,
)
from pipeline.toyland.world.styles import FILTERS

DATASETS = Path(__file__).parents[4] / "datasets"
# Pairs of things; those with a style are in test_styles.py.
PAIRS = sorted(
    path.stem
    for path in (DATASETS / "prompts").glob("*+*.txt")
    if not set(path.stem.split("+")) & set(FILTERS)
)


def _nearest(rgb: npt.NDArray[np.int_]) -> list[str]:
    """The name of the nearest colour of each row of a [n, 3] array."""
    names, colours = list(COLOURS), np.array(list(COLOURS.values()), np.float32)
    distances = np.linalg.norm(rgb[:, None].astype(np.float32) - colours, axis=2)
    return [names[i] for i in distances.argmin(axis=1)]


def _lone(thing: Thing, background: str = "plain", **fixed: str) -> Scene:
    fixed = {"size": "normal", "style": "photo", **fixed}
    return scene_at(7, 3, things=(thing,), background=background, **fixed)


def test_scenes_and_drawings_are_deterministic_and_independent_of_other_indices() -> None:
    forwards = [scene_at(1, i) for i in range(20)]
    assert forwards == [scene_at(1, i) for i in reversed(range(20))][::-1]
    assert len(set(forwards)) == 20
    assert scene_at(2, 0) != forwards[0]
    for scene in forwards:
        np.testing.assert_array_equal(draw(scene), draw(scene))


def test_drawings_have_the_size_asked_for() -> None:
    for size in (32, 64, 96):
        image = draw(scene_at(0, 0), size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert sheet([draw(scene_at(0, i)) for i in range(5)], 2).size == (132, 198)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_thing_shows_its_colour_everywhere(category: str) -> None:
    rng = np.random.default_rng(4)
    for colour, background in product(COLOURS, BACKGROUNDS):
        thing = replace(random_thing(rng, category, colour), pattern="plain")
        scene = _lone(thing, background)
        image, bare = draw(scene), draw(replace(scene, things=()))
        changed = np.any(image != bare, axis=2)
        assert changed.sum() > 0.08 * 64 * 64
        # Soft edges mix it with the outline. So: where another body colour would be seen, and that
        # is in a good part of the thing, the picture is nearer to this one than it would be then.
        rgb = tuple(0 if c > 127 else 255 for c in thing.rgb)
        other = draw(replace(scene, things=(replace(thing, rgb=rgb),)))
        matters = np.abs(image.astype(int) - other).max(2) > 30
        assert matters.sum() > 0.25 * changed.sum(), (colour, background)
        distance, theirs = (np.abs(x.astype(int) - thing.rgb).sum(2) for x in (image, other))
        assert (distance < theirs)[matters].mean() > 0.75, (colour, background)


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_of_things_bear_their_name(colour: str) -> None:
    rng = np.random.default_rng(5)
    things = [random_thing(rng, colour=colour) for _ in range(40)]
    assert set(_nearest(np.array([thing.rgb for thing in things]))) == {colour}


@pytest.mark.parametrize("category", CATEGORIES)
def test_identity_is_visible(category: str) -> None:
    thing = Thing(category, COLOURS["white"], "white", (0.3,) * 5)
    plain = draw(_lone(thing)).astype(int)
    for pattern in PATTERNS[1:]:
        marked = draw(_lone(replace(thing, pattern=pattern, pattern_rgb=COLOURS["blue"])))
        different = np.abs(marked.astype(int) - plain).max(axis=2) > 60
        assert different.sum() > 40, pattern
    for shape in ((0.9,) * 5, (0.3, 0.9, 0.9, 0.3, 0.3)):
        other = draw(_lone(replace(thing, shape=shape))).astype(int)
        assert (np.abs(other - plain).max(axis=2) > 30).sum() > 40


@pytest.mark.parametrize("accessory", ACCESSORIES)
def test_accessories_are_visible(accessory: str) -> None:
    for category in ANIMALS:
        thing = Thing(category, COLOURS["white"], "white", (0.3,) * 5)
        dressed = draw(_lone(replace(thing, accessory=accessory))).astype(int)
        assert (np.abs(dressed - draw(_lone(thing))) > 30).any(axis=2).sum() > 20


def test_styles_sizes_and_flips_change_the_picture() -> None:
    scene = _lone(random_thing(np.random.default_rng(0), "cat", "red"), "beach")
    variants = [replace(scene, style=style) for style in STYLES[1:]]
    variants += [replace(scene, size=size) for size in ("small", "large")]
    for variant in variants:
        assert np.abs(draw(variant).astype(int) - draw(scene)).mean() > 4
    np.testing.assert_array_equal(draw(replace(scene, flip=not scene.flip)), draw(scene)[:, ::-1])
    sketch = draw(replace(scene, style="pencil sketch"))
    assert (sketch == sketch[..., :1]).all() and sketch.mean() > 170


def test_two_things_are_both_drawn() -> None:
    rng = np.random.default_rng(6)
    for first, second in product(CATEGORIES, repeat=2):
        for relation in relations_between(first, second):
            things = (random_thing(rng, first), random_thing(rng, second))
            fixed = {"relation": relation, "style": "photo", "size": "normal"}
            scene = random_scene(rng, things=things, **fixed)
            image = draw(scene)
            for one in things:
                other = replace(one, rgb=(1, 254, 3))
                changed = replace(scene, things=tuple(other if t is one else t for t in things))
                assert (draw(changed) != image).any(axis=2).sum() > 40, (first, relation, second)


def test_random_scenes_have_the_intended_mix() -> None:
    scenes = [scene_at(11, i) for i in range(3000)]
    singles = sum(len(s.things) == 1 for s in scenes) / 3000
    styles, sizes = Counter(s.style for s in scenes), Counter(s.size for s in scenes)
    animals = [t for s in scenes for t in s.things if t.category in ANIMALS]
    assert 0.67 < singles < 0.73
    assert 0.86 < styles["photo"] / 3000 < 0.9
    assert 0.77 < sizes["normal"] / 3000 < 0.84
    assert 0.08 < sum(t.accessory is not None for t in animals) / len(animals) < 0.16
    assert {t.category for s in scenes for t in s.things} == set(CATEGORIES)
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    potted = {s.things[0].colour for s in scenes if s.things[0].category == "wooden pot"}
    assert potted == set(COLOURS)
    for scene in scenes:
        assert (scene.relation is None) == (len(scene.things) == 1)
        for thing in scene.things:
            assert thing.accessory is None or thing.category in ANIMALS


def _mentions(text: str, phrase: str) -> bool:
    return re.search(rf"\b{phrase}\b", text) is not None


def test_captions_say_only_what_is_in_the_scene() -> None:
    words = set(all_words())
    rng = np.random.default_rng(8)
    for i in range(3000):
        scene = scene_at(12, i)
        present = {thing.category for thing in scene.things}
        for text in (caption(scene, rng), full_caption(scene)):
            assert set(text.split()) <= words and text == text.lower().strip()
            assert not set(text.split()) & {"stripes", "spots", "patch", "striped", "eyes", "eyed"}
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
            assert not re.search(r"[^a-z ]|  ", text), text
            for category in present:
                assert _mentions(text, category)
            named = {c for c in CATEGORIES if _mentions(text, c)}
            assert named == present, text
            colours = {c for c in COLOURS if _mentions(text, c)}
            assert colours <= {thing.colour for thing in scene.things}
            for accessory in ACCESSORIES:
                worn = accessory in {thing.accessory for thing in scene.things}
                assert worn or not _mentions(text, accessory)
            for name, phrases in BACKGROUNDS.items():
                said = any(_mentions(text, phrase) for phrase in phrases)
                assert name == scene.background or not said, text
            for size, phrases in SIZES.items():
                assert size == scene.size or not any(_mentions(text, p) for p in phrases)
            for style in STYLES[1:]:
                assert (style == scene.style) == _mentions(text, style)


def test_full_captions_are_canonical() -> None:
    cat = replace(random_thing(np.random.default_rng(0), "cat", "orange"), accessory="hat")
    chair = random_thing(np.random.default_rng(0), "chair", "blue")
    scene = _lone(cat, "snow", size="small")
    assert full_caption(scene) == "very small photo of an orange cat wearing a hat in the snow"
    pair = replace(scene, things=(cat, chair), relation="on", size="normal", style=STYLES[1])
    assert full_caption(pair) == (
        "a watercolor painting of an orange cat wearing a hat on a blue chair in the snow"
    )


def test_short_captions_are_frequent() -> None:
    rng = np.random.default_rng(9)
    cat = random_thing(rng, "cat", "red")
    texts = [caption(_lone(cat, "beach"), rng) for _ in range(1000)]
    full = [text for text in texts if "red" in text or "beach" in text]
    assert 400 < len(full) < 600
    assert 0.62 < sum("red" in text for text in full) / len(full) < 0.84
    assert {"cat", "my cat", "photo of a cat", "cute cat photo"} <= set(texts)


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_scenes_show_the_concept_alone(name: str) -> None:
    scenes = personal_scenes(name)
    assert scenes == personal_scenes(name)
    assert 4 <= len(scenes) == IMAGES[name] <= 7
    assert len({scene.background for scene in scenes}) == len(scenes)
    for scene in scenes:
        assert scene.things == (PERSONAL[name],) and PERSONAL[name].accessory is None
        assert (scene.style, scene.size) == ("photo", "normal")
    assert _nearest(np.array([PERSONAL[name].rgb])) == [PERSONAL[name].colour]


@pytest.mark.parametrize("name", PERSONAL)
def test_shipped_concepts_are_what_is_drawn(name: str, tmp_path: Path) -> None:
    write_concept(name, tmp_path)
    shipped = DATASETS / "concepts" / name
    assert (tmp_path / "concept.yaml").read_text() == (shipped / "concept.yaml").read_text()
    assert len(list((shipped / "images").iterdir())) == IMAGES[name]
    inside = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert inside == sorted(path.relative_to(shipped) for path in shipped.rglob("*.png"))
    for path in inside:
        with Image.open(tmp_path / path) as drawn, Image.open(shipped / path) as stored:
            assert drawn.size == (64, 64) and drawn.mode == "RGB"
            # Rasterisers may round the odd pixel differently.
            difference = np.abs(np.asarray(drawn, int) - np.asarray(stored, int))
        assert difference.mean() < 1


def _prompts(name: str) -> list[str]:
    text = (DATASETS / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    assert text.endswith("\n") and not text.endswith("\n\n")
    lines = text.splitlines()
    assert all(line == line.strip() and line for line in lines) and len(set(lines)) == len(lines)
    return lines


@pytest.mark.parametrize("name", [*PERSONAL, *PAIRS])
def test_prompts_are_well_formed(name: str) -> None:
    places = ("{0}", "{1}") if "+" in name else ("{}",)
    lines = _prompts(name)
    assert len(lines) == (8 if "+" in name else 20)
    for line in lines:
        assert all(line.count(place) == 1 for place in places), line
        assert line.count("{") == len(places)
        plain = re.sub(r"\{\d?\}", "", line)
        assert set(plain.split()) <= set(all_words()), line
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", plain), line


def test_pairs_can_stand_as_their_prompts_say() -> None:
    for name in PAIRS:
        first, second = (PERSONAL[part].category for part in name.split("+"))
        for line in _prompts(name):
            for a, b, here, there in ((first, second, "{0}", "{1}"), (second, first, "{1}", "{0}")):
                if said := re.search(rf"{here} (in|on) a {there}".replace("{", r"\{"), line):
                    assert said[1] in relations_between(a, b), line


def test_no_prompt_is_one_of_more_than_ten_concepts_or_six_pairs() -> None:
    """Errors for the subjects at hand count prompts in the same words once."""
    for names, most in ((PERSONAL, 10), (PAIRS, 6)):
        shared = Counter(line for name in names for line in _prompts(name))
        assert max(shared.values()) == most
