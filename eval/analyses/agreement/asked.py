"""What a prompt of Toyland asks for, and which of it a picture shows.

Prompts name things, and of each its colour and what it wears if they want to, how two of them stand
to each other, a background, a size and a style. What is not named was not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.common.errors import BenchError
from pipeline.toyland.world.scenes import (
    ACCESSORIES,
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    CONTENTS,
    SIZES,
    STYLES,
    Scene,
    Thing,
    random_scene,
    random_thing,
)

BESIDE = "beside"
# The longest names first: what a "tortoise plushy" is begins with no other name, but may.
_NAMES = "|".join(sorted(CATEGORIES, key=len, reverse=True))
_THING = re.compile(
    rf"\b(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<category>{_NAMES})\b"
    rf"(?: (?P<worn>{'|'.join(ACCESSORIES.values())}))?"
)


@dataclass(frozen=True)
class Named:
    """A thing as a prompt names it."""

    category: str
    colour: str | None = None
    accessory: str | None = None


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for; None is what it does not say."""

    things: tuple[Named, ...]  # one or two, in the prompt's order
    relation: str | None  # of two: BESIDE, "in" or "on"
    background: str | None
    size: str | None
    style: str | None


def asked(prompt: str) -> Asked:
    """Reads a prompt, with class nouns in place of modifier tokens.

    Raises:
        BenchError: it names no thing of Toyland, or more than two.
    """
    found = list(_THING.finditer(prompt))
    if len(found) not in (1, 2):
        raise BenchError(
            f"analyses.agreement: the prompt {prompt!r} names {len(found)} things of Toyland, not "
            "one or two: list the other subjects in `subjects`, or change the prompt"
        )
    worn = {words: name for name, words in ACCESSORIES.items()}
    things = tuple(Named(m["category"], m["colour"], worn.get(m["worn"] or "")) for m in found)
    relation = None
    if len(found) == 2:
        between = prompt[found[0].end() : found[1].start()].split()
        relation = between[0] if between and between[0] in CONTENTS else BESIDE
    return Asked(
        things,
        relation,
        _named(BACKGROUNDS, prompt),
        _named(SIZES, prompt),
        next((style for style in STYLES if re.search(rf"\b{style} of\b", prompt)), None),
    )


def _named(phrases: Mapping[str, Collection[str]], prompt: str) -> str | None:
    return next((name for name, some in phrases.items() if any(p in prompt for p in some)), None)


def shown(wanted: Asked, said: Mapping[str, str], present: Collection[str]) -> list[bool]:
    """Which of what was asked for is there, in no order that matters.

    Args:
        wanted: by the prompt.
        said: the judge's answer to each of its questions.
        present: the categories that it sees anywhere in the picture.
    """
    facts = [said[key] == value for key in ("background", "size", "style")
             if (value := getattr(wanted, key))]  # fmt: skip
    seen = {(said[f"{of}category"], said[f"{of}colour"]) for of in ("", "other_")}
    for thing in wanted.things:
        facts.append(thing.category in present)
        if thing.colour:
            facts.append((thing.category, thing.colour) in seen)
        if thing.accessory:
            facts.append(said["accessory"] == thing.accessory)
    if wanted.relation:
        there = all(thing.category in present for thing in wanted.things)
        facts.append(there and said["relation"] == wanted.relation)
    return facts


def scene_of(wanted: Asked, own: Mapping[str, Thing], rng: np.random.Generator) -> Scene:
    """A drawn scene that shows all that was asked for.

    Args:
        wanted: by the prompt.
        own: by category, the individual that the first thing of it is to be; others are random,
            as is all else that was not asked for.
        rng: draws it.
    """
    things, left = [], dict(own)
    for named in wanted.things:
        # A colour is named of what stands beside the concept, never of the concept.
        individual = None if named.colour else left.pop(named.category, None)
        thing = individual or random_thing(rng, named.category, named.colour)
        things.append(replace(thing, accessory=named.accessory))
    relation = "and" if wanted.relation == BESIDE else wanted.relation
    return random_scene(
        rng,
        things=tuple(things),
        relation=relation,
        background=wanted.background,
        size=wanted.size or "normal",
        style=wanted.style or "photo",
    )
