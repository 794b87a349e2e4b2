"""`bench toyland concept`: a new individual of the drawn world, as a concept of one's own."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.adding.add import DRAWN, add_concept, concept_folder
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.settings.profile import load_params, profile_folder
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.gallery import gallery_files, portrait
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import (
    CATEGORIES,
    COLOURS,
    PATTERNS,
    Scene,
    Thing,
    article,
    random_thing,
)


def individual(category: str, seed: int) -> Thing:
    """The individual with that number: patterned, and in no colour that a shipped one has."""
    rng = np.random.default_rng(seed_of("individual", category, seed))
    taken = {thing.colour for thing in PERSONAL.values() if thing.category == category}
    colour = str(rng.choice([colour for colour in COLOURS if colour not in taken]))
    thing = random_thing(rng, category, colour)
    return replace(thing, pattern=str(rng.choice([p for p in PATTERNS if p != "plain"])))


def individual_scenes(category: str, seed: int, count: int) -> list[Scene]:
    """Photographs of an individual: it alone, each time somewhere else."""
    thing = individual(category, seed)
    return [portrait(thing, seed_of("portraits", category, seed), i, i) for i in range(count)]


def draw_concept(
    name: str, category: str, seed: int, images: int = 5, profile: str = DEFAULT_PROFILE
) -> None:
    """Draws an individual and adds its pictures as `bench concept add` does, with its gallery.

    Class and seed decide how it looks, its name does not.

    Raises:
        BenchError: the category is unknown, the profile has no drawn world, or as `add_concept`.
    """
    if category not in CATEGORIES:
        raise BenchError(f"--class {category!r}: Toyland draws {', '.join(CATEGORIES)}")
    if load_params(profile).world is None:
        raise BenchError(
            f"{profile_folder(profile) / 'params.yaml'}: the profile has no drawn world, and its "
            "models have seen no drawings: add photographs with `bench concept add`"
        )
    command = f'bench toyland concept --class "{category}" --seed {seed} --images {images}'
    thing = individual(category, seed)
    with tempfile.TemporaryDirectory() as temporary:
        for i, scene in enumerate(individual_scenes(category, seed, images)):
            Image.fromarray(draw(scene)).save(Path(temporary) / f"{i:04d}.png")
        add_concept(
            name,
            [Path(temporary)],
            category,
            profile=profile,
            licence="CC0-1.0",
            source=f"{DRAWN} `{command}`",
            further=gallery_files(thing, images, category, seed),
        )
    marks = "a patch" if thing.pattern == "patch" else thing.pattern
    looks = f"{article(thing.colour)} {thing.colour} {category} with {marks}"
    print(f"{name} is {looks}: see {concept_folder(name) / 'images'}")
