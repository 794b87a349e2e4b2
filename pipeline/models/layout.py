"""Which components a base model in diffusers' format has: its UNet's configuration tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import BenchError

INDEX = "model_index.json"
ADDED = "addition_embed_type"  # of a UNet: what it is told of a picture beside the text


@dataclass(frozen=True)
class Layout:
    """The parts of a kind of base that encode texts, and what its UNet reads of them."""

    encoders: tuple[str, ...]  # folders; their features lie side by side
    tokenizers: tuple[str, ...]  # of each encoder
    penultimate: bool  # the hidden states before the last layer, or else the last after a norm
    pooled: bool  # also one vector for a whole text, of the last encoder

    @property
    def weights(self) -> tuple[str, ...]:
        """The components that have weights."""
        return ("unet", "vae", *self.encoders)

    @property
    def components(self) -> tuple[str, ...]:
        """All components."""
        return (*self.weights, *self.tokenizers, "scheduler")


LAYOUTS = {
    # Stable Diffusion 1.x and 2.x
    None: Layout(("text_encoder",), ("tokenizer",), penultimate=False, pooled=False),
    # Stable Diffusion XL
    "text_time": Layout(
        ("text_encoder", "text_encoder_2"),
        ("tokenizer", "tokenizer_2"),
        penultimate=True,
        pooled=True,
    ),
}


def layout_of(unet: Mapping[str, Any], path: str) -> Layout:
    """The layout of a base whose UNet has this configuration.

    Raises:
        BenchError: its UNet is told of things that only other kinds of models have.
    """
    found = LAYOUTS.get(unet.get(ADDED))
    if found is None:
        raise BenchError(
            f"{path}/unet/config.json: {ADDED}: {unet[ADDED]!r} is not supported: choose a base in "
            "the format of Stable Diffusion 1.x, 2.x or XL"
        )
    return found


def layout_in(config: Path | None, path: str) -> Layout:
    """The same, of the UNet's configuration file; the plain one if that is not here or damaged.

    What is wrong with the file is not told here.
    """
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config else {}
    except (OSError, ValueError):
        content = {}
    return layout_of(content if isinstance(content, dict) else {}, path)
