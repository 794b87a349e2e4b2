"""A base model with random weights and small widths, in Stable Diffusion's format."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.concepts.concept import Concept, Subject
from pipeline.methods import TrainingSet
from pipeline.models.base import Base, load_base
from pipeline.settings.profile import BaseParams
from pipeline.toyland.pretrain.denoiser import scheduler
from pipeline.toyland.pretrain.vocabulary import CONTEXT_LENGTH, clip_tokenizer

RARE_TOKENS = [336, 343, 345]
RESOLUTION = 32


def write_base(folder: Path, **scheduler_config: object) -> BaseParams:
    """Writes the model; two levels, four latent channels, 8 x 8 latents of 32 x 32 pixels.

    Args:
        scheduler_config: what its scheduler's configuration says other than Toyland's.
    """
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    size = len(tokenizer)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    widths = (8, 8, 16)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
    )
    noise = DDIMScheduler.from_config(scheduler().config, **scheduler_config)
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, noise, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return BaseParams(path=str(folder), resolution=RESOLUTION, modifier_token_ids=RARE_TOKENS)


def new_base(**scheduler_config: object) -> Base:
    """The model, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(write_base(Path(folder), **scheduler_config), torch.device("cpu"))
        _ = base.hash  # while the files are there
        return base


def concept(name: str, noun: str) -> Concept:
    """A concept without files."""
    return Concept(name, noun, "photo of a {}", Path(f"{name}.txt"), ())


def training_set(name: str, noun: str, seed: int = 0) -> TrainingSet:
    """Three random targets and five random regularization images."""
    rng = np.random.default_rng(seed)

    def image() -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8))

    return TrainingSet(
        concept(name, noun),
        [image() for _ in range(3)],
        [image() for _ in range(5)],
        [f"{noun} {i}" for i in range(5)],
    )


def subject(*sets: TrainingSet) -> Subject:
    """The subject of these concepts."""
    concepts = tuple(part.concept for part in sets)
    name = "+".join(c.name for c in concepts)
    return Subject(name, concepts, Path(f"{name}.txt"))


def task(sequence: str, *sets: TrainingSet) -> Subject:
    """The task of a sequence after which these concepts are learned."""
    concepts = tuple(part.concept for part in sets)
    return Subject(f"{sequence}/task-{len(sets)}", concepts, Path("none.txt"), task=True)
