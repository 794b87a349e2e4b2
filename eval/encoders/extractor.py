"""What an extractor of image features is."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.encoders.cache import CACHE, FeatureCache, Features, portions
from pipeline.common.errors import BenchError
from pipeline.concepts.photos import to_rgb

PORTION = 512  # images that are decoded, encoded and stored at a time


@dataclass(frozen=True)
class Extractor:
    """Turns images into features."""

    identity: str  # "<model>@<first 12 hex digits of the weights' SHA-256>"
    transform: str  # what is done to an image first
    unit: bool  # features have the length 1
    encode: Callable[[Sequence[Image.Image]], Features]  # n >= 1 RGB images to float32 [n, d]

    def __call__(self, images: Sequence[bytes]) -> Features:
        """The features of encoded images (PNG, JPEG), float32 [n, d], those known from the cache.

        The last bits of a new image's features may depend on which others are new.

        Raises:
            BenchError: there are no images, one cannot be decoded, or one has no finite features.
        """
        if not images:
            raise BenchError(f"{self.identity}: no images to measure: sample again")
        keys = [hashlib.sha256(image).digest() for image in images]
        cache = FeatureCache(self._path())
        known = cache.read(set(keys))
        new = {key: i for i, key in enumerate(keys) if key not in known}
        for part in portions(sorted(new.values()), PORTION):
            found = dict(zip((keys[i] for i in part), self.fresh({i: images[i] for i in part})))
            cache.write(found)
            known |= found
        return np.stack([known[key] for key in keys])

    def fresh(self, images: Mapping[int, bytes]) -> Features:
        """The features of images, float32 [n, d], whatever the cache holds.

        Raises:
            BenchError: one cannot be decoded or has no finite features; says its number, from 1.
        """
        rows = self.encode([_decoded(image, i) for i, image in images.items()])
        for i, row in zip(images, rows, strict=True):
            if not np.isfinite(row).all():
                raise BenchError(f"image {i + 1}: {self.identity} gives no finite features")
        return rows

    def _path(self) -> Path:
        name = hashlib.sha256(f"{self.identity}\n{self.transform}".encode()).hexdigest()[:24]
        return CACHE / f"{name}.sqlite"


def encoded(model: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Features:
    """What a model gives for batches of images, float32 [n, d], computed in single precision."""
    # Convolutions round to ten bits (TF32) on recent GPUs unless told not to.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        parts = [model(batch.to(device())).cpu().numpy() for batch in batches]
    return np.concatenate(parts).astype(np.float32)


def device() -> str:
    """Where extractors run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _decoded(data: bytes, number: int) -> Image.Image:
    """The image as eight-bit RGB: what is transparent is white, sixteen bits are scaled.

    It is RGB before it is resized. CustomConcept101's script resizes first, which is the same for
    images that are RGB already; a palette would be resized without smoothing.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return to_rgb(opened)
    # Pillow's decoders raise what they like; a broken PNG, for one, is a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BenchError(
            f"image {number + 1} cannot be decoded ({error}): sample it again"
        ) from error
