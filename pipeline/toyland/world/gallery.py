"""Portraits of a drawn thing, and its gallery: pictures to compare with, which nothing trains on.

The gallery of a concept has further portraits of it, and such of its look-alikes: random
individuals of its category. Whether a method learned the one or only the kind shows in which of
them its images are nearer to. Half of the look-alikes have the colour of the concept, so that
colour alone is not enough.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from pipeline.common.files import png_bytes
from pipeline.common.seeds import seed_of
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import COLOURS, Scene, Thing, random_thing, scene_at

LOOKALIKES = 12
PICTURES = 4  # of the thing, and of each look-alike
HELD_OUT, OTHERS = "held_out", "lookalikes"  # folders, the second with one for each look-alike

_PLACES = ("living room", "garden", "plain", "beach", "city", "snow", "mountain")


def portrait(thing: Thing, seed: int, index: int, place: int) -> Scene:
    """Photograph number `index` of a series: the thing alone, at one of the places."""
    return scene_at(
        seed,
        index,
        things=(thing,),
        background=_PLACES[place % len(_PLACES)],
        size="normal",
        style="photo",
    )


def lookalikes(thing: Thing, *purpose: object) -> list[Thing]:
    """LOOKALIKES random individuals of the thing's category, the first half in its colour.

    Args:
        thing: what they are like.
        purpose: what they are drawn for; another purpose has others.
    """
    others = [colour for colour in COLOURS if colour != thing.colour]
    found = []
    for i in range(LOOKALIKES):
        rng = np.random.default_rng(seed_of("lookalike", *purpose, i))
        colour = thing.colour if i < LOOKALIKES // 2 else str(rng.choice(others))
        found.append(random_thing(rng, thing.category, colour))
    return found


def gallery(thing: Thing, place: int, *purpose: object) -> dict[PurePosixPath, Scene]:
    """The scenes of a gallery, by the paths that their pictures have in the concept's folder.

    Args:
        thing: the concept.
        place: number of the place of its first picture; the next is at the next place.
        purpose: as of `lookalikes`.
    """
    scenes = {}
    shown = [(HELD_OUT, thing, seed_of("portraits", "held out", *purpose), place)]
    for i, other in enumerate(lookalikes(thing, *purpose)):
        seed = seed_of("portraits", "lookalike", *purpose, i)
        shown.append((f"{OTHERS}/{i + 1:02d}", other, seed, place + i))
    for folder, one, seed, first in shown:
        for i in range(PICTURES):
            scenes[PurePosixPath(folder) / f"{i:02d}.png"] = portrait(one, seed, i, first + i)
    return scenes


def gallery_files(thing: Thing, place: int, *purpose: object) -> dict[PurePosixPath, bytes]:
    """The pictures of a gallery as PNG, by their paths; see `gallery`."""
    scenes = gallery(thing, place, *purpose)
    return {path: png_bytes(Image.fromarray(draw(scene))) for path, scene in scenes.items()}
