"""DINO's ViT-S/16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

from eval.encoders.cache import Features, portions
from eval.encoders.extractor import Extractor, device, encoded
from eval.encoders.published import DINO_ARCHITECTURE, DINO_URL
from pipeline.clip.openclip import MICRO_BATCH
from pipeline.common.errors import BenchError
from pipeline.common.files import sha256


def dino_extractor(path: str | None) -> Extractor:
    """DINO's ViT-S/16: its class token as a unit vector, float32 [n, 384].

    Args:
        path: a safetensors file with the names of DINO's authors and of timm.

    Raises:
        BenchError: the file is missing, or holds other weights.
    """
    network, digest = dino_network(path)
    return vit_extractor(network, f"dino_vits16@{digest[:12]}")


def dino_network(path: str | None) -> tuple[nn.Module, str]:
    """DINO's ViT-S/16, which gives the class token, and its SHA-256; see `dino_extractor`."""
    from safetensors.torch import load_file
    from timm import create_model  # takes a second

    if path is None or not Path(path).is_file():
        raise BenchError(
            f"params.yaml: score.dino: {path or 'nothing'} is not a file: download {DINO_URL} and "
            "give its path"
        )
    model: nn.Module = create_model(DINO_ARCHITECTURE, num_classes=0)
    try:
        model.load_state_dict(load_file(path))
    # safetensors' own error is a plain Exception.
    except Exception as error:
        raise BenchError(
            f"{path}: truncated, or not DINO's ViT-S/16: download {DINO_URL} again"
        ) from error
    return model, sha256(path)


def vit_extractor(model: nn.Module, identity: str) -> Extractor:
    """The unit features of a model that sees images as DINO's authors show them to theirs.

    The shorter side is resized to 256 pixels, of which the central 224 x 224 are seen.
    """
    model = model.eval().requires_grad_(False).to(device())
    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def encode(images: Sequence[Image.Image]) -> Features:
        batches = (torch.stack([transform(i) for i in p]) for p in portions(images, MICRO_BATCH))
        return encoded(lambda batch: F.normalize(model(batch), dim=1), batches)

    return Extractor(identity, "resize 256 bicubic, central 224, ImageNet", True, encode)
