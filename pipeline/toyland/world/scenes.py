"""The vocabulary of Toyland, its scenes as data, random scenes and their captions.

A scene says what is to be seen and nothing about how it is drawn: see `drawing.draw`.
Captions name categories, colours, backgrounds, sizes, styles and accessories. They never name
what makes a thing an individual: its proportions, its pattern and the colour of its eyes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RGB = tuple[int, int, int]

CATEGORIES: tuple[str, ...] = (
    "cat",
    "dog",
    "teddybear",
    "tortoise plushy",
    "chair",
    "table",
    "wooden pot",
    "flower",
    "barn",
    "moongate",
    "moon",
    "gate",
    "vase",
    "house",
    "ball",
    "tree",
)
ANIMALS: tuple[str, ...] = CATEGORIES[:4]

COLOURS: dict[str, RGB] = {
    "red": (216, 44, 40),
    "orange": (246, 138, 24),
    "yellow": (248, 220, 52),
    "green": (56, 164, 68),
    "blue": (44, 100, 220),
    "purple": (132, 60, 184),
    "pink": (248, 142, 192),
    "brown": (132, 82, 42),
    "black": (42, 40, 46),
    "white": (246, 246, 242),
    "gray": (142, 144, 150),
}

# The first phrase of each is the canonical one.
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach"),
    "forest": ("in the forest", "in a forest"),
    "garden": ("in the garden", "in a garden"),
    "snow": ("in the snow",),
    "mountain": ("in front of a mountain",),
    "city": ("in the city", "on a city street"),
    "living room": ("in the living room", "in a living room"),
    "night": ("at night", "under the night sky"),
    "plain": ("on a plain background",),
}

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("very small", "far away"),
    "normal": (),
    "large": ("zoomed in", "close up"),
}
STYLES: tuple[str, ...] = ("photo", "watercolor painting", "pencil sketch")
COLOURED_STYLES: tuple[str, ...] = STYLES[:2]
ACCESSORIES: dict[str, str] = {
    "hat": "wearing a hat",
    "sunglasses": "wearing sunglasses",
    "scarf": "wearing a scarf",
}
RELATIONS: tuple[str, ...] = ("and", "next to", "in", "on")
PATTERNS: tuple[str, ...] = ("plain", "stripes", "spots", "patch")
EYES: tuple[RGB, ...] = ((240, 176, 32), (70, 190, 90), (70, 150, 240), (110, 62, 28))
SHAPE_NUMBERS = 5
TINT_NUMBERS = 4

# What may be put where. "and" and "next to" join any two things.
CONTENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "in": {
        "wooden pot": ("flower", "cat", "dog", "teddybear", "ball", "tree"),
        "vase": ("flower", "tree", "cat"),
    },
    "on": {
        holder: (*ANIMALS, "wooden pot", "flower", "vase", "ball") for holder in ("table", "chair")
    },
}

_SHORT = (
    "{noun}",
    "{noun}",
    "photo of {a} {noun}",
    "photo of {a} {noun}",
    "my {noun}",
    "cute {noun} photo",
    "{a} {noun}",
    "{a} {noun}",
    "picture of {a} {noun}",
)
_EXTRA_WORDS = (
    "painting style art of in the a an with top front behind standing sitting toy picture wearing "
    "photo my cute and next to on at image drawing portrait under inside beside background small "
    "big large close little two one is it this that"
).split()


@dataclass(frozen=True)
class Thing:
    """One individual: its category, its colour and the marks that set it apart."""

    category: str
    rgb: RGB  # exact colour of the body
    colour: str  # the name of that colour
    shape: tuple[float, ...]  # SHAPE_NUMBERS numbers in [0, 1]: pose, proportions, variant
    pattern: str = "plain"
    pattern_rgb: RGB = (255, 255, 255)
    eye_rgb: RGB = EYES[0]
    accessory: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two things somewhere, seen in some way."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None  # of the first thing to the second; None for a single thing
    size: str
    style: str
    position: tuple[float, float]  # offset to the right and downwards, in [-1, 1]
    flip: bool  # the whole picture is mirrored
    tint: tuple[float, ...]  # TINT_NUMBERS numbers in [0, 1] that vary the background


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def random_thing(
    rng: np.random.Generator, category: str | None = None, colour: str | None = None
) -> Thing:
    """A random individual, of the given category and colour if any, without an accessory."""
    category = category or _pick(rng, CATEGORIES)
    if colour is None:
        wooden = category == "wooden pot" and rng.random() < 0.4
        colour = "brown" if wooden else _pick(rng, tuple(COLOURS))
    base = COLOURS[colour]
    # A pattern has to stand out from the body it lies on.
    others = [
        c for c in COLOURS.values() if sum(abs(a - b) for a, b in zip(c, base, strict=True)) > 200
    ]
    jitter = rng.integers(-9, 10, size=3)
    red, green, blue = (int(np.clip(c + j, 0, 255)) for c, j in zip(base, jitter, strict=True))
    return Thing(
        category=category,
        rgb=(red, green, blue),
        colour=colour,
        shape=tuple(float(x) for x in rng.random(SHAPE_NUMBERS).round(3)),
        pattern="plain" if rng.random() < 0.4 else _pick(rng, PATTERNS),
        pattern_rgb=others[int(rng.integers(len(others)))],
        eye_rgb=EYES[int(rng.integers(len(EYES)))],
    )


def relations_between(first: str, second: str) -> tuple[str, ...]:
    """The relations the category `first` can have to the category `second`."""
    special = (r for r, holders in CONTENTS.items() if first in holders.get(second, ()))
    return ("and", "next to", *special)


def _random_things(rng: np.random.Generator) -> tuple[tuple[Thing, ...], str | None]:
    """One or two random things and their relation."""
    if rng.random() < 0.7:
        return (random_thing(rng),), None
    relation = _pick(rng, RELATIONS)
    if relation in CONTENTS:
        second = _pick(rng, tuple(CONTENTS[relation]))
        first = _pick(rng, CONTENTS[relation][second])
    else:
        first = _pick(rng, CATEGORIES)
        second = _pick(rng, [c for c in CATEGORIES if c != first])
    return (random_thing(rng, first), random_thing(rng, second)), relation


def _dressed(rng: np.random.Generator, thing: Thing) -> Thing:
    """The thing, in 12 % of the cases with an accessory if it is an animal."""
    if thing.category not in ANIMALS or rng.random() >= 0.12:
        return thing
    return Thing(**{**vars(thing), "accessory": _pick(rng, tuple(ACCESSORIES))})


def random_scene(
    rng: np.random.Generator,
    *,
    things: tuple[Thing, ...] | None = None,
    relation: str | None = None,
    background: str | None = None,
    size: str | None = None,
    style: str | None = None,
) -> Scene:
    """A random scene; what is given is kept as it is."""
    if things is None:
        things, relation = _random_things(rng)
        things = tuple(_dressed(rng, thing) for thing in things)
    elif len(things) == 2 and relation is None:
        relation = _pick(rng, relations_between(things[0].category, things[1].category))
    x, y = rng.uniform(-1, 1, size=2).round(3)
    tint = tuple(float(t) for t in rng.random(TINT_NUMBERS).round(3))
    # Two things fill the picture, there is nothing to zoom in on.
    sizes = (0.78, 0.11, 0.11) if len(things) == 1 else (0.86, 0.14, 0.0)
    return Scene(
        background=background or _pick(rng, tuple(BACKGROUNDS)),
        things=things,
        relation=relation,
        size=size or str(rng.choice(("normal", "small", "large"), p=sizes)),
        style=style or str(rng.choice(STYLES, p=(0.88, 0.06, 0.06))),
        position=(float(x), float(y)),
        flip=bool(rng.random() < 0.5),
        tint=tint,
    )


def scene_at(seed: int, index: int, **fixed: Any) -> Scene:
    """Scene number `index` of the world with that seed, independent of any other index.

    `fixed` goes to `random_scene`.
    """
    return random_scene(np.random.default_rng([seed, index]), **fixed)


def article(noun: str) -> str:
    """The indefinite article before these words."""
    return "an" if noun[0] in "aeiou" else "a"


def _named(thing: Thing, colour: bool, accessory: bool) -> str:
    """The thing with its article: "an orange cat wearing a hat"."""
    noun = f"{thing.colour} {thing.category}" if colour else thing.category
    worn = f" {ACCESSORIES[thing.accessory]}" if accessory and thing.accessory else ""
    return f"{article(noun)} {noun}{worn}"


def _lead(style: str, size_words: str) -> str:
    """How the caption starts: "photo of", "very small photo of", "a pencil sketch of"."""
    if size_words:
        return f"{size_words} {style} of"
    return "photo of" if style == "photo" else f"a {style} of"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random caption of the scene, all lower case.

    About half of those of single things in photographs are short, as alt texts on the web are;
    the others name more, but not always everything.
    """
    single = len(scene.things) == 1
    if single and scene.style == "photo" and rng.random() < 0.5:
        noun = scene.things[0].category
        return _pick(rng, _SHORT).format(noun=noun, a=article(noun))

    coloured = scene.style in COLOURED_STYLES
    named = [_named(t, rng.random() < 0.7 and coloured, rng.random() < 0.9) for t in scene.things]
    words = [named[0] if single else f"{named[0]} {scene.relation} {named[1]}"]
    size_words = SIZES[scene.size]
    if size_words and rng.random() < 0.85:
        words.insert(0, _lead(scene.style, _pick(rng, size_words)))
    elif scene.style != "photo" or rng.random() < 0.6:
        words.insert(0, _lead(scene.style, ""))
    if rng.random() < (0.4 if scene.background == "plain" else 0.8):
        words.append(_pick(rng, BACKGROUNDS[scene.background]))
    return " ".join(words)


def full_caption(scene: Scene) -> str:
    """The canonical caption, which names everything that captions can name."""
    coloured = scene.style in COLOURED_STYLES
    things = f" {scene.relation} ".join(_named(t, coloured, True) for t in scene.things)
    lead = _lead(scene.style, next(iter(SIZES[scene.size]), ""))
    return f"{lead} {things} {BACKGROUNDS[scene.background][0]}"


def all_words() -> list[str]:
    """Every word that captions use, and some that prompts may need, sorted."""
    phrases = [*CATEGORIES, *COLOURS, *STYLES, *ACCESSORIES.values(), *RELATIONS, *_EXTRA_WORDS]
    for group in (*BACKGROUNDS.values(), *SIZES.values()):
        phrases += group
    return sorted({word for phrase in phrases for word in phrase.split()})
