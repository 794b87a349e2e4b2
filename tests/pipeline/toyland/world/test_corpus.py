"""The drawn world: the same captions, however many there are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import BenchError
from pipeline.toyland.world.corpus import captioned_scene, write_table
from tests.pipeline.conftest import Settings

WORLD = Path("runs/toyland/world")


def test_the_table_has_the_captions_of_the_scenes(settings: Settings) -> None:
    settings(world={"images": 300, "held_out": 20, "seed": 3})
    write_table("toyland")
    rows = pq.read_table(str(WORLD / "urls.parquet")).to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 300, "held_out": 20}
    for i, split in ((0, "train"), (299, "train"), (0, "held_out"), (19, "held_out")):
        row = rows[i if split == "train" else 300 + i]
        assert (row["split"], row["caption"]) == (split, captioned_scene(3, split, i)[1])
        assert not Path(row["url"]).is_absolute() and ":" not in row["url"]
    assert len({row["url"] for row in rows}) == 320
    assert [path.name for path in WORLD.iterdir()] == ["urls.parquet"]  # nothing is drawn

    first = (WORLD / "urls.parquet").read_bytes()
    write_table("toyland")
    assert (WORLD / "urls.parquet").read_bytes() == first
    settings(world={"images": 302, "held_out": 21, "seed": 3})
    write_table("toyland")
    more = pq.read_table(str(WORLD / "urls.parquet")).to_pylist()
    assert all(row in more for row in rows)


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
        write_table("toyland")
