"""The published models' sizes, with random weights: time and memory are those of the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from pipeline.models.base import Base
from pipeline.models.layout import LAYOUTS
from pipeline.models.texts import TextEncoders
from pipeline.toyland.pretrain.denoiser import scheduler

# Any words will do; the embedding table has its true size.
WORDS, CONTEXT, VOCABULARY = "models/toyland/base/tokenizer", 77, 49408
WIDTH = 320  # channels of the UNet's first layer


@dataclass(frozen=True)
class TextSize:
    """A CLIP text encoder."""

    width: int
    layers: int
    heads: int
    projection: int | None = None  # of its one vector for a text, if the UNet reads that


@dataclass(frozen=True)
class Size:
    """What a published model is made of; its VAE is the same in all."""

    title: str
    resolution: int  # pixels
    widths: tuple[int, ...]  # of the UNet's levels, in those of the first
    attention: tuple[bool, ...]  # whether a level has it
    unet: dict[str, Any]  # further configuration
    texts: tuple[TextSize, ...]
    # Heads of each level, or channels of a head; diffusers calls either `attention_head_dim`.
    heads: int | None = None
    of_a_head: int | None = None


CLIP_L = TextSize(768, 12, 12)
SIZES = {
    "v1-4": Size(
        "Stable Diffusion v1-4",
        512,
        (1, 2, 4, 4),
        (True, True, True, False),
        {},
        (CLIP_L,),
        heads=8,
    ),
    "sdxl": Size(
        "Stable Diffusion XL",
        1024,
        (1, 2, 4),
        (False, True, True),
        {
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        },
        (CLIP_L, TextSize(1280, 32, 20, projection=1280)),
        of_a_head=64,
    ),
}


def random_base(
    size: Size, device: torch.device, resolution: int | None = None, width: int = WIDTH
) -> Base:
    """A model with the published one's layers and random weights, stored as `load_base` has it.

    Args:
        size: which one.
        device: of the weights.
        resolution: pixels; by default the published one's.
        width: channels of the UNet's first layer; of its others and the VAE's in proportion.
    """
    torch.manual_seed(0)
    resolution = resolution or size.resolution
    widths = [width * factor for factor in size.widths]
    part = 2 * width // 5  # the VAE's are 128 to the UNet's 320
    kinds = {True: "CrossAttn", False: ""}
    heads = [size.heads or max(1, channels // (size.of_a_head or 1)) for channels in widths]
    with device:
        unet = UNet2DConditionModel(
            sample_size=resolution // 8,
            block_out_channels=widths,
            down_block_types=[f"{kinds[there]}DownBlock2D" for there in size.attention],
            up_block_types=[f"{kinds[there]}UpBlock2D" for there in reversed(size.attention)],
            layers_per_block=2,
            norm_num_groups=width // 10,
            attention_head_dim=heads,
            cross_attention_dim=sum(text.width for text in size.texts),
            **size.unet,
        )
        vae = AutoencoderKL(
            block_out_channels=(part, 2 * part, 4 * part, 4 * part),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            norm_num_groups=width // 10,
            latent_channels=4,
            sample_size=resolution,
        )
        texts = [_text_encoder(text) for text in size.texts]
    for model in (unet, vae, *texts):
        model.eval().requires_grad_(False)
        if device.type == "cuda":
            model.to(memory_format=torch.channels_last)
    words = CLIPTokenizer.from_pretrained(WORDS, model_max_length=CONTEXT)
    layout = LAYOUTS[size.unet.get("addition_embed_type")]
    encoders = TextEncoders(
        tuple(texts),
        (words,) * len(texts),
        penultimate=layout.penultimate,
        pooled=layout.pooled,
        empty_is_zero=layout.pooled,
    )
    base = Base(f"random/{size.title}", unet, vae, encoders, scheduler(), resolution, device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        base.store(torch.bfloat16)
    return base


def _text_encoder(size: TextSize) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        projection_dim=size.projection or 512,
    )
    return CLIPTextModel(config) if size.projection is None else CLIPTextModelWithProjection(config)
