"""A concept's shard: its images as the base model sees them, and its regularization images."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.common.files import read_tar, write_tar
from pipeline.concepts.concept import load_concept
from pipeline.corpus.shard import shard
from tests.pipeline.conftest import Settings

REGULARIZATION = Path("runs/toyland/regularization/cat.tar")
SHARD = Path("runs/toyland/shards/cat.tar")
ORIENTATION = 0x0112


def image(sample: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample["png"])))


@pytest.fixture
def regularization(project: Path) -> list[dict[str, Any]]:
    parts = [*("regularization" for _ in range(3)), "held_out"]
    samples = [
        {"__key__": f"{part}-{i:04d}", "png": b"%d" % i, "txt": "a cat", "json": {"part": part}}
        for i, part in enumerate(parts)
    ]
    write_tar(REGULARIZATION, samples)
    return samples


def test_targets_and_copies(regularization: list[dict[str, Any]]) -> None:
    shard("cat", "toyland")
    samples = read_tar(SHARD)
    assert [s for s in samples if "txt" in s] == regularization[:3]
    targets = [s for s in samples if s["__key__"].startswith("target-")]
    paths = load_concept("cat").images
    assert [s["__key__"] for s in targets] == [f"target-{i:04d}" for i in range(len(paths))]
    assert len(samples) == len(targets) + 3
    for sample, path in zip(targets, paths):
        np.testing.assert_array_equal(image(sample), Image.open(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert sample["json"]["source"] == path.as_posix()
        assert sample["json"]["sha256"] == digest
    first = SHARD.read_bytes()
    shard("cat", "toyland")
    assert SHARD.read_bytes() == first


def test_targets_are_cropped_turned_and_resized(
    project: Path, regularization: list[dict[str, Any]]
) -> None:
    rng = np.random.default_rng(0)
    for path in (folder := project / "datasets/concepts/cat/images").iterdir():
        path.unlink()
    wide = rng.integers(0, 256, (90, 151, 3), np.uint8)
    Image.fromarray(wide).save(folder / "a.png")
    # A camera that was held upright: stored lying on its side.
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(wide).save(folder / "b.png", exif=exif)
    shard("cat", "toyland")
    first, second = (s for s in read_tar(SHARD) if s["__key__"].startswith("target-"))
    central = Image.fromarray(wide[:, 30:120]).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(image(first), central)
    turned = Image.fromarray(np.rot90(wide, -1)[30:120]).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(image(second), turned)
    assert (first["json"]["width"], first["json"]["height"]) == (151, 90)
    assert (second["json"]["width"], second["json"]["height"]) == (90, 151)


def test_unusable_files_are_named(
    project: Path, settings: Settings, regularization: list[dict[str, Any]]
) -> None:
    REGULARIZATION.write_bytes(REGULARIZATION.read_bytes()[:1500])
    with pytest.raises(BenchError, match=r"cat\.tar: the shard is truncated or not a tar"):
        shard("cat", "toyland")
    REGULARIZATION.unlink()
    with pytest.raises(BenchError, match=r"regularization/cat\.tar: the shard is missing"):
        shard("cat", "toyland")
    broken = project / "datasets/concepts/cat/images/00.png"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(BenchError, match=r"images/00\.png: cannot be decoded"):
        shard("cat", "toyland")
    settings(corpus={"resolution": 32})
    with pytest.raises(BenchError, match=r"corpus\.resolution is 32, but base\.resolution is 64"):
        shard("cat", "toyland")
    assert not SHARD.exists()
