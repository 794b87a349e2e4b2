"""The feature cache and the extractors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from PIL import Image

from eval import features
from eval.features import Extractor, inception_extractor, kernel_features
from pipeline.errors import BenchError
from pipeline.files import png_bytes, sha256


def images(count: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 16, 20, 3), dtype=np.uint8)
    return [png_bytes(Image.fromarray(image)) for image in pixels]


class Counting:
    """Encodes images as mean colours and counts them."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, batch: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(batch)
        return np.stack([np.asarray(image).mean((0, 1)) for image in batch]).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_are_encoded_once() -> None:
    encode = Counting()
    first = Extractor("a@1", "none", False, encode)(images(3))
    again = Extractor("a@1", "none", False, encode)(images(3))
    assert encode.seen == 3
    assert (first == again).all()


@pytest.mark.parametrize(("identity", "transform"), [("a@2", "none"), ("a@1", "crop")])
def test_other_weights_and_transforms_are_other_features(identity: str, transform: str) -> None:
    encode = Counting()
    Extractor("a@1", "none", False, encode)(images(3))
    Extractor(identity, transform, False, encode)(images(3))
    assert encode.seen == 6


def test_order_of_images_is_kept() -> None:
    extract = Extractor("a@1", "none", False, Counting())
    assert (extract(images(3)[::-1]) == extract(images(3))[::-1]).all()


def test_damaged_cache_files_are_made_again(here: Path) -> None:
    encode = Counting()
    first = Extractor("a@1", "none", False, encode)(images(3))
    (path,) = (here / ".cache" / "features").glob("*.npy")
    for damage in (b"", path.read_bytes()[:-5], b"nothing"):
        path.write_bytes(damage)
        assert (Extractor("a@1", "none", False, encode)(images(3)) == first).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_damaged_images_are_told() -> None:
    with pytest.raises(BenchError, match="cannot be decoded"):
        Extractor("a@1", "none", False, Counting())([images(1)[0][:50]])


def test_unit_features_are_scaled_for_the_kernel() -> None:
    plain = Extractor("a@1", "none", False, Counting())
    unit = Extractor("a@1", "none", True, Counting())
    assert kernel_features(unit, images(2)) == pytest.approx(np.sqrt(3) * plain(images(2)))
    assert (kernel_features(plain, images(2)) == plain(images(2))).all()


class Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the right size, which tell where an image is bright."""
        return torch.nn.functional.adaptive_avg_pool2d(x, (32, 64)).mean(1).reshape(-1, 2048)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.register_buffer("nothing", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_inception_sees_images_as_clean_fid_resizes_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = here / features.INCEPTION_FILE
    torch.jit.script(Network()).save(str(path))
    monkeypatch.setattr(features, "MICRO_BATCH", 2)
    extractor = inception_extractor(str(path))
    assert extractor.identity == f"inception@{sha256(path)[:12]}"
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    resized = np.stack([build_resizer("clean")(image) for image in pixels]).transpose(0, 3, 1, 2)
    expected = Layers()((torch.from_numpy(resized) - 128) / 128).numpy()
    assert extractor(images(3)) == pytest.approx(expected, abs=1e-5)


def test_missing_or_corrupt_inception_says_where_to_get_it(here: Path) -> None:
    for path in (None, "nowhere.pt", "inception-2015-12-05.pt"):
        with pytest.raises(BenchError, match=r"download https://\S+/inception-2015-12-05.pt"):
            inception_extractor(path)
    (here / features.INCEPTION_FILE).write_bytes(b"half a file")
    with pytest.raises(BenchError, match="corrupt"):
        inception_extractor(features.INCEPTION_FILE)
