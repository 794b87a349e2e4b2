"""Toyland's corpus: captioned scenes, and the table of their URLs.

It is to Toyland what the web is to the paper. A picture is drawn (`pictures.py`) once a concept
may get it, before `pipeline.corpus.fetch` fetches it.
"""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.settings.profile import Params, WorldParams, load_params, profile_folder
from pipeline.toyland.world.scenes import Scene, caption, scene_at

FOLDER_SIZE = 1000  # pictures


def _stream(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, far from any small number that something else uses."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8])


def captioned_scene(seed: int, split: str, index: int) -> tuple[Scene, str]:
    """Scene number `index` of a split of the world with that seed, and its caption.

    Scene and caption are drawn independently of each other, of other indices and other splits.
    """
    scene = scene_at(_stream(seed, f"{split} scene"), index)
    rng = np.random.default_rng([_stream(seed, f"{split} caption"), index])
    return scene, caption(scene, rng)


def _picture_url(split: str, index: int) -> str:
    return f"images/{split}/{index // FOLDER_SIZE:03d}/{index:06d}.png"


def write_table(profile: str) -> None:
    """Writes the captions of the profile's world to the table `world/urls.parquet`; draws nothing.

    The table's columns are `url` (relative to its folder), `caption` and `split` ("train" or
    "held_out"). The same parameters give the same bytes.

    Raises:
        BenchError: the profile has no drawn world.
    """
    started = time.perf_counter()
    params = load_params(profile)
    world = world_of(params)
    scenes = [("train", i) for i in range(world.images)]
    scenes += [("held_out", i) for i in range(world.held_out)]
    columns = {
        "url": [_picture_url(split, i) for split, i in scenes],
        "caption": [
            captioned_scene(world.seed, split, i)[1]
            for split, i in tqdm(scenes, "table", leave=False)
        ],
        "split": [split for split, _ in scenes],
    }
    path = params.runs() / "world" / "urls.parquet"
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns), str(temporary))
    print(f"table: {len(scenes)} captions in {time.perf_counter() - started:.0f} s: {path}")


def world_of(params: Params) -> WorldParams:
    """The world of a profile.

    Raises:
        BenchError: it has none.
    """
    if params.world is None:
        raise BenchError(
            f"{profile_folder(params.profile) / 'params.yaml'}: world: the section is missing: add "
            "it, or use a profile with a drawn corpus"
        )
    return params.world
