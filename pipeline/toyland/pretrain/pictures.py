"""Many scenes at once: rendered pictures of the world as arrays, kept on disk between runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.toyland.world import drawing, scenes
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import Scene, Thing, random_scene, random_thing, scene_at

# Seeds of disjoint parts of the world.
TRAINING, HELD_OUT, THINGS, MIXED = 1, 2, 3, 5  # THINGS takes 4 as well, MIXED 6
# Of the scenes of MIXED: what two things look like takes longer to learn than one.
PAIRS_SHARE = 0.55

SceneOf = Callable[[int], Scene]


def training_scene(index: int) -> Scene:
    """Scene number `index` of the part that models are trained on."""
    return scene_at(TRAINING, index)


def mixed_scene(index: int) -> Scene:
    """Scene number `index` of the part that the base is trained on: PAIRS_SHARE hold two things."""
    rng = np.random.default_rng([MIXED, index])
    things = 2 if rng.random() < PAIRS_SHARE else 1
    while True:
        scene = random_scene(rng)
        if len(scene.things) == things:
            return scene


def held_out_scene(index: int) -> Scene:
    """Scene number `index` of the part that nothing is trained on."""
    return scene_at(HELD_OUT, index)


def thing_at(index: int) -> Thing:
    """Individual number `index`; its category depends on the index alone, its marks on both."""
    return random_thing(np.random.default_rng([THINGS, index]))


def portrait(index: int) -> Scene:
    """Picture number `index % 2` of individual `index // 2`, alone in a photograph."""
    thing = thing_at(index // 2)
    return scene_at(THINGS + 1, index, things=(thing,), style="photo")


def _draw_many(scene_of: SceneOf, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
    return np.stack([draw(scene_of(i)) for i in indices])


def _world_version() -> str:
    """Changes whenever the world or its drawing does, so that no old picture is taken for new."""
    sources = (Path(module.__file__ or "").read_bytes() for module in (scenes, drawing))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:8]


def pictures(scene_of: SceneOf, count: int, cache: Path | None = None) -> npt.NDArray[np.uint8]:
    """The first `count` pictures of a part of the world: uint8 [count, 64, 64, 3].

    With a `cache` folder they are drawn once and mapped into memory afterwards.
    """
    path = cache / f"{scene_of.__name__}-{count}-{_world_version()}.npy" if cache else None
    if path and path.exists():
        return np.load(path, mmap_mode="c")
    chunks = np.array_split(np.arange(count), max(1, count // 500))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(_draw_many, [scene_of] * len(chunks), chunks)
        images = np.concatenate(list(tqdm(drawn, "drawing", len(chunks), leave=False)))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".part"), "wb") as file:
            np.save(file, images)
        os.replace(path.with_suffix(".part"), path)
    return images
