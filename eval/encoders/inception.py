"""KID's and FID's Inception network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.encoders.cache import Features, portions
from eval.encoders.extractor import Extractor, device, encoded
from eval.encoders.published import INCEPTION_FILE, INCEPTION_SHA256, INCEPTION_URL
from pipeline.clip.openclip import MICRO_BATCH
from pipeline.common.errors import BenchError
from pipeline.common.files import sha256


def inception_extractor(path: str | None) -> Extractor:
    """The features of KID's Inception network, [n, 2048], after clean-fid's exact resizing.

    Args:
        path: a file named inception-2015-12-05.pt.

    Raises:
        BenchError: the file is missing, has another name or is not the published one.
    """
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    if path is None or not Path(path).is_file() or Path(path).name != INCEPTION_FILE:
        raise BenchError(
            f"params.yaml: score.inception: {path or 'nothing'} is not the file {INCEPTION_FILE}: "
            f"download {INCEPTION_URL} and give its path"
        )
    digest = sha256(path)
    if digest != INCEPTION_SHA256:  # before it is opened: a TorchScript is a program
        raise BenchError(
            f"{path}: truncated, corrupt or another file (SHA-256 {digest[:12]}…, not "
            f"{INCEPTION_SHA256[:12]}…): download {INCEPTION_URL} again"
        )
    model = InceptionV3W(str(Path(path).parent), download=False).eval().to(device())
    resize = build_resizer("clean")

    def batch_of(images: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([resize(np.asarray(image)) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def encode(images: Sequence[Image.Image]) -> Features:
        return encoded(model, (batch_of(part) for part in portions(images, MICRO_BATCH)))

    return Extractor(f"inception@{digest[:12]}", "clean-fid", False, encode)
