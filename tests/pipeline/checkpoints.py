"""Checkpoints as they were published: random weights and small widths, in the very layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from pipeline.toyland.pretrain.vocabulary import END, START, learn_merges, vocabulary

RESOLUTION, CONTEXT = 64, 77
WORDS = "photo of a cat wooden pot in the snow and very small far away zoomed in close up".split()
FOLDERS = frozenset(("scheduler", "text_encoder", "tokenizer", "unet", "vae"))
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FOUR_LEVELS = {
    "block_out_channels": (8, 16, 32, 32),  # 320, 640, 1280 and 1280 in the published ones
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


@dataclass(frozen=True)
class Text:
    """A text encoder and its tokenizer."""

    width: int
    padding: str  # the token that texts are padded with
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """What tells a published checkpoint from others, and how many layers and weights it has."""

    texts: tuple[Text, ...]
    predicts: str
    unet: Mapping[str, Any]
    scheduler: type
    noise: Mapping[str, Any]  # what its configuration says beside the betas
    folders: frozenset[str]
    scale: float = 0.18215  # of latents
    layers: int = 16  # of cross-attention
    weights: int = 686  # tensors of the UNet

    @property
    def width(self) -> int:
        """Numbers of a text feature: 768, 1024 and 2048 in the published ones."""
        return sum(text.width for text in self.texts)


LAYOUTS = {
    "v1-4": Layout(
        texts=(Text(16, END, {"hidden_act": "quick_gelu", "num_attention_heads": 2}),),
        predicts="epsilon",
        unet={**FOUR_LEVELS, "attention_head_dim": 8},  # the number of heads, in spite of its name
        scheduler=PNDMScheduler,
        noise={"skip_prk_steps": True},
        folders=FOLDERS | {"feature_extractor", "safety_checker"},
    ),
    "2.1": Layout(
        texts=(
            Text(32, "!", {"hidden_act": "gelu", "num_attention_heads": 4, "projection_dim": 16}),
        ),
        predicts="v_prediction",
        unet={
            **FOUR_LEVELS,
            "attention_head_dim": [1, 2, 4, 4],  # 5, 10, 20 and 20: numbers of heads, too
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        scheduler=DDIMScheduler,
        noise={"clip_sample": False},
        folders=FOLDERS | {"feature_extractor"},
    ),
    "XL": Layout(
        # Both have the wrong number for the end token, as the published configurations do.
        texts=(
            Text(
                16,
                END,
                {"hidden_act": "quick_gelu", "num_attention_heads": 2, "eos_token_id": 2},
            ),
            Text(
                24,
                "!",
                {
                    "hidden_act": "gelu",
                    "num_attention_heads": 4,
                    "projection_dim": 24,
                    "eos_token_id": 2,
                },
            ),
        ),
        predicts="epsilon",
        unet={
            "block_out_channels": (8, 16, 32),
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [1, 2, 4],  # 5, 10 and 20
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,  # 256
            "projection_class_embeddings_input_dim": 6 * 8 + 24,  # 2816
        },
        scheduler=EulerDiscreteScheduler,
        noise={"clip_sample": False, "skip_prk_steps": True, "timestep_spacing": "leading"},
        folders=FOLDERS | {"text_encoder_2", "tokenizer_2"},
        scale=0.13025,
        layers=70,
        weights=1680,
    ),
}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's two files, with far fewer merges; 77 tokens, padded with the end token."""
    merges = learn_merges(WORDS)
    folder.mkdir(parents=True)
    ids = {token: i for i, token in enumerate(vocabulary(merges))}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    (folder / "merges.txt").write_text(lines + "\n", encoding="utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=CONTEXT,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )


def write_checkpoint(folder: Path, layout: Layout) -> None:
    """Writes all components as the published checkpoint has them."""
    torch.manual_seed(0)
    words = tokenizer(folder.with_name("words"))
    size = len(words)
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    configs = [
        {"hidden_size": t.width, "intermediate_size": 4 * t.width, **ends, **t.config}
        for t in layout.texts
    ]
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=layout.scale,
    )
    first, *others = (
        CLIPTextConfig(
            vocab_size=size, num_hidden_layers=2, max_position_embeddings=CONTEXT, **config
        )
        for config in configs
    )
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        layers_per_block=2,
        cross_attention_dim=layout.width,
        norm_num_groups=8,
        **layout.unet,
    )
    noise = {**BETAS, **layout.noise, "prediction_type": layout.predicts}
    parts = {
        "vae": vae,
        "text_encoder": CLIPTextModel(first),
        "tokenizer": words,
        "unet": unet,
        "scheduler": layout.scheduler.from_config(noise),
    }
    if others:
        more = {"text_encoder_2": CLIPTextModelWithProjection(*others), "tokenizer_2": words}
        StableDiffusionXLPipeline(**parts, **more).save_pretrained(folder)
    else:
        checked = "safety_checker" in layout.folders
        StableDiffusionPipeline(
            **parts,
            safety_checker=safety_checker(size, configs[0]) if checked else None,
            feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
            requires_safety_checker=checked,
        ).save_pretrained(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | noise))
    for text, name in zip(layout.texts, ("tokenizer", "tokenizer_2")):
        write_old_tokenizer(folder / name, text.padding)


def safety_checker(size: int, text: Mapping[str, Any]) -> StableDiffusionSafetyChecker:
    """What looks at images in the published ones, and is not used here."""
    kinds = ("hidden_size", "intermediate_size", "num_attention_heads")
    vision = {key: text[key] for key in kinds}
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=size, num_hidden_layers=1, **text).to_dict(),
        vision_config=CLIPVisionConfig(num_hidden_layers=1, patch_size=32, **vision).to_dict(),
        projection_dim=text["hidden_size"],
    )
    return StableDiffusionSafetyChecker(config)


def write_old_tokenizer(folder: Path, padding: str) -> None:
    """Writes the configuration as it was when the models were published.

    Two files name the padding, and that of the special tokens has the last word.
    """
    special = {"bos_token": START, "eos_token": END, "unk_token": END}
    config = {"model_max_length": CONTEXT, "pad_token": END, "tokenizer_class": "CLIPTokenizer"}
    config |= {"special_tokens_map_file": "./special_tokens_map.json", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": padding, **special}))
