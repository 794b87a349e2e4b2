"""Image features: the extractors, and a cache so that each image is encoded once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from PIL import Image
from torch import Tensor

from pipeline.errors import BenchError
from pipeline.files import atomic, sha256
from pipeline.openclip import MICRO_BATCH, Clip

CACHE = Path(".cache") / "features"
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION_FILE
)

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Extractor:
    """Turns images into features."""

    identity: str  # "<model>@<first 12 hex digits of the weights' SHA-256>"
    transform: str  # what is done to an image first
    unit: bool  # features have the length 1
    encode: Callable[[Sequence[Image.Image]], Features]  # n RGB images to float32 [n, d]

    def __call__(self, images: Sequence[bytes]) -> Features:
        """The features of encoded images (PNG, JPEG), float32 [n, d], from the cache if there.

        Raises:
            BenchError: an image cannot be decoded.
        """
        path = CACHE / f"{self._key(images)}.npy"
        cached = _read(path)
        if cached is not None and len(cached) == len(images):
            return cached
        features = self.encode([_decoded(image) for image in images])
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.save(file, features)
        return features

    def _key(self, images: Sequence[bytes]) -> str:
        digests = [hashlib.sha256(image).hexdigest() for image in images]
        parts = [self.identity, self.transform, *digests]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def clip_extractor(clip: Clip) -> Extractor:
    """CLIP's image features as unit vectors."""
    transform = json.dumps(clip.model.visual.preprocess_cfg, sort_keys=True)
    return Extractor(clip.identity, transform, True, clip.encode_images)


def inception_extractor(path: str | None) -> Extractor:
    """The features of KID's Inception network, [n, 2048], after clean-fid's exact resizing.

    Args:
        path: a file named inception-2015-12-05.pt.

    Raises:
        BenchError: the file is missing, has another name or is corrupt.
    """
    if path is None or not Path(path).is_file() or Path(path).name != INCEPTION_FILE:
        raise BenchError(
            f"params.yaml: score.inception: {path or 'nothing'} is not the file {INCEPTION_FILE}: "
            f"download {INCEPTION_URL} and give its path"
        )
    try:
        model = InceptionV3W(str(Path(path).parent), download=False)
    except RuntimeError as error:
        raise BenchError(f"{path}: truncated or corrupt: download {INCEPTION_URL} again") from error
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    resize = build_resizer("clean")

    def batch_of(images: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([resize(np.asarray(image)) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def encode(images: Sequence[Image.Image]) -> Features:
        device = next(iter(model.state_dict().values())).device
        parts = []
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for i in range(0, len(images), MICRO_BATCH):
                batch = batch_of(images[i : i + MICRO_BATCH]).to(device)
                parts.append(model(batch).cpu().numpy())
        return np.concatenate(parts).astype(np.float32)

    return Extractor(f"inception@{sha256(path)[:12]}", "clean-fid", False, encode)


def kernel_features(extractor: Extractor, images: Sequence[bytes]) -> Features:
    """Features as KID's polynomial kernel expects them, float32 [n, d]: about one per channel.

    Inception's are so already. With CLIP's unit vectors the kernel would be all but linear and see
    nothing but means, so these get the length sqrt(d); the kernel is then (cosine + 1)^3.
    """
    features = extractor(images)
    return features * np.float32(np.sqrt(features.shape[1])) if extractor.unit else features


def _decoded(image: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise BenchError(f"an image cannot be decoded ({error}): sample it again") from error


def _read(path: Path) -> Features | None:
    """The cached features; None if there are none or the file is damaged."""
    try:
        features: Features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features
