"""The drawn world: the same pictures and captions, whatever else is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.toyland.world.corpus import captioned_scene, draw_world
from pipeline.toyland.world.drawing import draw
from tests.pipeline.conftest import Settings

WORLD = Path("runs/toyland/world")


def files() -> dict[str, bytes]:
    return {p.as_posix(): p.read_bytes() for p in WORLD.rglob("*") if p.is_file()}


def test_pictures_and_captions_are_those_of_the_scenes(settings: Settings) -> None:
    settings(world={"images": 300, "held_out": 20, "seed": 3})
    draw_world("toyland")
    table = pq.read_table(str(WORLD / "urls.parquet")).to_pylist()
    assert Counter(row["split"] for row in table) == {"train": 300, "held_out": 20}
    for i, split in ((0, "train"), (299, "train"), (0, "held_out"), (19, "held_out")):
        row = table[i if split == "train" else 300 + i]
        scene, caption = captioned_scene(3, split, i)
        assert (row["split"], row["caption"]) == (split, caption)
        assert not Path(row["url"]).is_absolute() and ":" not in row["url"]
        np.testing.assert_array_equal(Image.open(WORLD / row["url"]), draw(scene))


def test_bytes_are_reproducible_and_more_pictures_change_none(settings: Settings) -> None:
    settings(world={"images": 12, "held_out": 5, "seed": 3})
    draw_world("toyland")
    first = files()
    assert len(first) == 18
    draw_world("toyland")
    assert files() == first
    settings(world={"images": 15, "held_out": 6})
    draw_world("toyland")
    table = (WORLD / "urls.parquet").as_posix()
    assert {k: v for k, v in files().items() if k in first and k != table} == {
        k: v for k, v in first.items() if k != table
    }


def test_splits_and_seeds_share_no_scene() -> None:
    scenes = [
        captioned_scene(seed, split, i)[0]
        for seed in (3, 4)
        for split in ("train", "held_out")
        for i in range(50)
    ]
    assert len(set(scenes)) == len(scenes)


def test_captions_are_as_short_for_all_scenes() -> None:
    # Half of the captions of single things in photographs are short; were they drawn from the
    # numbers that the scene was drawn from, it would be five of seven.
    chosen = [
        caption
        for scene, caption in (captioned_scene(7, "train", i) for i in range(4000))
        if len(scene.things) == 1 and scene.style == "photo" and scene.background == "night"
    ]
    short = sum("night" not in c and len(c.split()) < 5 for c in chosen) / len(chosen)
    assert 0.4 < short < 0.65


def test_profile_without_a_world(project: Path) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    start, end = text.index("\nworld:"), text.index("\ncorpus:")
    path.write_text(text[:start] + text[end:])
    with pytest.raises(BenchError, match=r"params\.yaml: world: .* add it"):
        draw_world("toyland")
