"""Toyland's corpus: captioned pictures in files, and the table of their URLs.

What they are to Toyland is what the web is to the paper: `pipeline.corpus.fetch` fetches them.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic_folder
from pipeline.settings.profile import load_params, profile_folder
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import Scene, caption, scene_at

FOLDER_SIZE = 1000  # pictures
CHUNK = 250  # pictures that a process draws at once


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


def _picture_path(split: str, index: int) -> Path:
    return Path("images") / split / f"{index // FOLDER_SIZE:03d}" / f"{index:06d}.png"


def _draw_some(folder: Path, seed: int, split: str, indices: range) -> list[tuple[str, str]]:
    """Draws the pictures with these indices; returns their URLs and captions."""
    rows = []
    for i in indices:
        scene, text = captioned_scene(seed, split, i)
        path = _picture_path(split, i)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(scene)).save(folder / path)
        rows.append((path.as_posix(), text))
    return rows


def draw_world(profile: str) -> None:
    """Draws the profile's pictures to `world/images` and writes the table `world/urls.parquet`.

    The table's columns are `url` (relative to its folder), `caption` and `split` ("train" or
    "held_out"). The same parameters give the same bytes.

    Raises:
        BenchError: the profile has no drawn world.
    """
    started = time.perf_counter()
    params = load_params(profile)
    if params.world is None:
        raise BenchError(
            f"{profile_folder(profile) / 'params.yaml'}: world: the section is missing: add it, "
            "or use a profile with a drawn corpus"
        )
    counts = {"train": params.world.images, "held_out": params.world.held_out}
    splits, chunks = [], []
    for split, count in counts.items():
        some = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        splits += [split] * len(some)
        chunks += some
    rows: list[tuple[str, str, str]] = []
    with (
        atomic_folder(params.runs() / "world", (".png", ".parquet")) as folder,
        ProcessPoolExecutor(os.cpu_count()) as pool,
    ):
        drawn = pool.map(_draw_some, repeat(folder), repeat(params.world.seed), splits, chunks)
        for split, part in zip(splits, tqdm(drawn, "world", len(chunks), leave=False)):
            rows += [(url, text, split) for url, text in part]
        columns = (list(column) for column in zip(*rows))
        table = pa.table(dict(zip(("url", "caption", "split"), columns)))
        pq.write_table(table, str(folder / "urls.parquet"))
    seconds = time.perf_counter() - started
    print(f"world: {len(rows)} pictures drawn in {seconds:.0f} s: {params.runs() / 'world'}")
