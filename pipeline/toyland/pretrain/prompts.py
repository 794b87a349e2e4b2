"""What the scorecard asks the base model for: prompts, each with scenes that show it and not."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.toyland.world.scenes import (
    ACCESSORIES,
    ANIMALS,
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    CONTENTS,
    SIZES,
    STYLES,
    Scene,
    Thing,
    article,
    full_caption,
    random_scene,
    random_thing,
)

SEED = 51
# What is hard to see in front of a night sky.
DARK: tuple[str, ...] = ("black", "brown", "purple")
LETTERS = string.ascii_lowercase.replace("a", "")  # which mean nothing; "a" is a word

_Name = TypeVar("_Name", str, str | None)


@dataclass(frozen=True)
class Wanted:
    """A prompt, and a scene that shows what it asks for."""

    prompt: str
    scene: Scene

    def again(self, rng: np.random.Generator) -> Scene:
        """Another scene that the prompt describes as well: other individuals, drawn otherwise."""
        old = self.scene
        things = [random_thing(rng, thing.category, thing.colour) for thing in old.things]
        named = BACKGROUNDS[old.background][0] in self.prompt
        return random_scene(
            rng,
            things=tuple(
                replace(new, accessory=thing.accessory) for new, thing in zip(things, old.things)
            ),
            relation=old.relation,
            background=old.background if named else None,
            size=old.size,
            style=old.style,
        )


def _turn(names: Sequence[str], k: int) -> str:
    """Name number k, round and round."""
    return names[k % len(names)]


_COLOURS, _PLACES = tuple(COLOURS), tuple(BACKGROUNDS)


def _single(
    kind: int,
    k: int,
    *,
    categories: Sequence[str] = CATEGORIES,
    colour: str | None = None,
    background: str | None = None,
    size: str = "normal",
    style: str = "photo",
    accessory: str | None = None,
) -> Wanted:
    """Prompt number k of a kind, about one thing; categories, colours and backgrounds rotate."""
    rng = np.random.default_rng([SEED, kind, k])
    colour = colour or _turn(_COLOURS, k // len(categories) + k % len(categories))
    thing = random_thing(rng, _turn(categories, k), colour)
    scene = random_scene(
        rng,
        things=(replace(thing, accessory=accessory),),
        background=background or _turn(_PLACES, k),
        size=size,
        style=style,
    )
    return Wanted(full_caption(scene), scene)


def single_prompts(count: int) -> list[Wanted]:
    """Prompts "photo of a {colour} {category} {background}", each category with each colour once.

    The first n are balanced as well as n prompts can be.
    """
    return [_single(0, k) for k in range(count)]


def night_prompts(count: int) -> list[Wanted]:
    """Dark things at night."""
    turns = (_turn(DARK, k // len(CATEGORIES)) for k in range(count))
    return [_single(1, k, colour=colour, background="night") for k, colour in enumerate(turns)]


def style_prompts(count: int) -> list[Wanted]:
    """Paintings and sketches by turns."""
    return [_single(2, k, style=_turn(STYLES[1:], k // len(CATEGORIES))) for k in range(count)]


def size_prompts(count: int) -> list[Wanted]:
    """Very small and zoomed in, by turns."""
    sizes = [size for size, words in SIZES.items() if words]
    return [_single(3, k, size=_turn(sizes, k // len(CATEGORIES))) for k in range(count)]


def accessory_prompts(count: int) -> list[Wanted]:
    """Animals that wear something."""
    worn = (_turn(tuple(ACCESSORIES), k // len(ANIMALS)) for k in range(count))
    return [_single(4, k, categories=ANIMALS, accessory=name) for k, name in enumerate(worn)]


def letter_prompts(count: int) -> list[Wanted]:
    """Those for single things, with a letter that means nothing before the noun."""
    out = []
    for k, wanted in enumerate(single_prompts(count)):
        noun = wanted.scene.things[0].category
        prompt = wanted.prompt.replace(noun, f"{_turn(LETTERS, k)} {noun}")
        out.append(replace(wanted, prompt=prompt))
    return out


def _pair(
    kind: int, k: int, categories: Sequence[str], relation: str, background: str | None
) -> Scene:
    first, apart = 3 * k, 4 + k // len(CATEGORIES)
    colours = (_turn(_COLOURS, first), _turn(_COLOURS, first + apart))
    rng = np.random.default_rng([SEED, kind, k])
    return random_scene(
        rng,
        things=tuple(random_thing(rng, a, b) for a, b in zip(categories, colours)),
        relation=relation,
        background=background,
        size="normal",
        style="photo",
    )


def _different(k: int, apart: int) -> tuple[str, str]:
    turn, number = divmod(k, len(CATEGORIES))
    return CATEGORIES[number], _turn(CATEGORIES, number + apart + 2 * turn)


def pair_prompts(count: int) -> list[Wanted]:
    """Prompts "photo of a {colour} {category} and a {colour} {category}", no two things alike."""
    out = []
    for k in range(count):
        scene = _pair(5, k, _different(k, 3), "and", None)
        named = [f"{article(t.colour)} {t.colour} {t.category}" for t in scene.things]
        out.append(Wanted(f"photo of {' and '.join(named)}", scene))
    return out


def relation_prompts(relation: str, count: int) -> list[Wanted]:
    """Prompts "photo of a {colour} {category} {relation} a {colour} {category} {background}"."""
    fitting = [(a, b) for b, contents in CONTENTS.get(relation, {}).items() for a in contents]
    out = []
    for k in range(count):
        categories = fitting[k % len(fitting)] if fitting else _different(k, 4)
        kind = 6 + ("next to", "in", "on").index(relation)
        scene = _pair(kind, k, categories, relation, _turn(_PLACES, k))
        out.append(Wanted(full_caption(scene), scene))
    return out


# ------------------------------------------------------------------------------ something else


def _next(names: Sequence[_Name], name: _Name) -> _Name:
    return names[(names.index(name) + 1) % len(names)]


def _first(scene: Scene, **changes: Any) -> Scene:
    """The scene with a change to its first thing."""
    return replace(scene, things=(replace(scene.things[0], **changes), *scene.things[1:]))


def _coloured(thing: Thing, other: Thing) -> Thing:
    """The thing in the other's colour."""
    return replace(thing, rgb=other.rgb, colour=other.colour)


def _elsewhere(scene: Scene) -> Scene:
    """Two things side by side if they were not, otherwise the first one upon a holder."""
    if scene.relation in CONTENTS:
        return replace(scene, relation="and")
    first, second = scene.things
    holder = "chair" if first.category == "table" else "table"
    return replace(scene, relation="on", things=(first, replace(second, category=holder)))


# For each question a scene that differs from what was wanted in just what is asked for.
ALTERED: dict[str, Callable[[Scene], Scene]] = {
    "category": lambda s: _first(s, category=_next(CATEGORIES, s.things[0].category)),
    "colour": lambda s: _first(
        s,
        colour=(name := _next(_COLOURS, s.things[0].colour)),
        rgb=COLOURS[name],
    ),
    "background": lambda s: replace(s, background=_next(_PLACES, s.background)),
    "size": lambda s: replace(s, size=_next(tuple(SIZES), s.size)),
    "style": lambda s: replace(s, style=_next(STYLES, s.style)),
    "accessory": lambda s: _first(s, accessory=_next((None, *ACCESSORIES), s.things[0].accessory)),
    "pair_both": lambda s: replace(s, things=s.things[:1], relation=None),
    "pair_colours": lambda s: replace(
        s, things=(_coloured(s.things[0], s.things[1]), _coloured(s.things[1], s.things[0]))
    ),
    "relation": _elsewhere,
}
