"""CLIP models by way of open_clip: local folders and published weights.

A local folder is laid out as open_clip's own releases on the Hugging Face hub are:
`open_clip_config.json` and `open_clip_model.safetensors`, and with it the merges of its tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from PIL import Image
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.files import sha256

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MERGES_FILE = "bpe_simple_vocab.txt.gz"
OWN_VOCABULARY = 49408  # tokens of the tokenizer that open_clip brings
MICRO_BATCH = 64

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A CLIP in full precision that is only read from."""

    model: open_clip.CLIP
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    identity: str  # "<name>@<first 12 hex digits of the weights' SHA-256>"

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit image features, float32 [n, d], each independent of the other images."""
        batches = (torch.stack([self.preprocess(i) for i in part]) for part in _parts(images))
        return self._encoded(self.model.encode_image, batches)

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """Unit text features, float32 [n, d]; longer texts are cut to the model's context."""
        batches = (self.tokenize(list(part)) for part in _parts(texts))
        return self._encoded(self.model.encode_text, batches)

    def _encoded(self, encode: Callable[..., Tensor], batches: Iterator[Tensor]) -> Features:
        device = self.model.logit_scale.device
        # Convolutions round to ten bits (TF32) on recent GPUs unless told not to.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            parts = [encode(batch.to(device), normalize=True).cpu().numpy() for batch in batches]
        if not parts:
            return np.zeros((0, self.model.text_projection.shape[1]), np.float32)
        return np.concatenate(parts).astype(np.float32)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[i : i + MICRO_BATCH] for i in range(0, len(items), MICRO_BATCH))


def register(folder: Path) -> tuple[str, Path]:
    """Makes a local model known to open_clip, in this process, under a name of its own.

    Returns:
        The model name, and the absolute path of its weights: what
        `open_clip.create_model(name, pretrained=path)` and `open_clip.get_tokenizer(name)` take.

    Raises:
        BenchError: a file of the folder is missing, or its configuration cannot be read.
    """
    config = _read_config(folder)["model_cfg"]
    if (folder / MERGES_FILE).is_file():
        merges = str((folder / MERGES_FILE).resolve())
        config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": merges}
    elif config["text_cfg"].get("vocab_size", OWN_VOCABULARY) != OWN_VOCABULARY:
        raise BenchError(f"{folder / MERGES_FILE}: the tokenizer's merges are missing")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise BenchError(f"{weights}: the weights are missing: restore the file or train the model")
    text = json.dumps(config, sort_keys=True)
    name = f"local-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        # open_clip reads the file once; afterwards it lives in the registry.
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{name}.json"
            path.write_text(text)
            open_clip.add_model_config(path)
    return name, weights.resolve()


def load_clip(name: str) -> Clip:
    """The CLIP in a local folder, or published weights as ARCH/TAG, on the GPU if there is one.

    Args:
        name: for example `models/toyland/clip` or `ViT-B-32-quickgelu/openai`. Only the latter
            kind may use the network.

    Raises:
        BenchError: nothing has that name, files are missing or corrupt, the download failed, or
            the architecture's activation is not the one the weights were trained with.
    """
    folder = Path(name)
    if folder.is_dir():
        return _load_local(folder)
    arch, _, tag = name.partition("/")
    if arch not in open_clip.list_models() or not tag:
        raise BenchError(
            f"CLIP {name!r} is neither a folder nor ARCH/TAG: give a folder with {CONFIG_FILE}, "
            "or a name such as ViT-B-32-quickgelu/openai"
        )
    return _load_published(arch, tag)


def _load_local(folder: Path) -> Clip:
    preprocess = _read_config(folder).get("preprocess_cfg", {})
    arch, weights = register(folder)
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            arch,
            pretrained=str(weights),
            device=_device(),
            image_mean=preprocess.get("mean"),
            image_std=preprocess.get("std"),
            image_interpolation=preprocess.get("interpolation"),
            image_resize_mode=preprocess.get("resize_mode"),
        )
    # safetensors' own error is a plain Exception; open_clip's are of many kinds.
    except Exception as error:
        raise BenchError(
            f"{folder / WEIGHTS_FILE}: not the weights of the model in {CONFIG_FILE} "
            f"({_one_line(error)}): restore the file"
        ) from error
    return _frozen(model, transform, arch, f"{folder.resolve().name}@{sha256(weights)[:12]}")


def _load_published(arch: str, tag: str) -> Clip:
    published = get_pretrained_cfg(arch, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        raise BenchError(f"CLIP {arch}/{tag}: no such weights: choose one of {', '.join(tags)}")
    quick = bool((get_model_config(arch) or {}).get("quick_gelu"))
    if bool(published.get("quick_gelu")) != quick:
        other = arch.removesuffix("-quickgelu") if quick else f"{arch}-quickgelu"
        raise BenchError(
            f"CLIP {arch}/{tag}: these weights were trained with the other GELU and would give "
            f"wrong features: write {other}/{tag}"
        )
    try:
        weights = Path(download_pretrained(published))
        model, _, transform = open_clip.create_model_and_transforms(
            arch, pretrained=tag, device=_device()
        )
    # Anything can fail on the way: the network, the hub's offline mode, the disk, the file.
    except Exception as error:
        raise BenchError(
            f"CLIP {arch}/{tag}: could not be downloaded ({_one_line(error)}): go online without "
            f"HF_HUB_OFFLINE once, or name a local folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    return _frozen(model, transform, arch, f"{arch}/{tag}@{sha256(weights)[:12]}")


def _frozen(model: open_clip.CLIP, preprocess: Any, arch: str, identity: str) -> Clip:
    model.eval().requires_grad_(False)
    return Clip(model, preprocess, open_clip.get_tokenizer(arch), identity)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["text_cfg"], config["model_cfg"]["vision_cfg"]
    except FileNotFoundError:
        raise BenchError(f"{path}: the file is missing: not a folder of open_clip") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path}: not a configuration of open_clip: {_one_line(error)}") from error
    return config


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" …")
