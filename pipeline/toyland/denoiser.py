"""Toyland's text encoder and UNet: what turns the two CLIPs' world into a diffusion model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.toyland.autoencoder import LATENT_CHANNELS, to_tensor
from pipeline.toyland.fitting import autocast, fit
from pipeline.toyland.pictures import SceneOf, paired_scene, pictures, training_scene
from pipeline.toyland.vocabulary import CONTEXT_LENGTH, clip_tokenizer
from pipeline.toyland.world import caption, full_caption

BATCH = 32
CAPTION_DROPOUT = 0.1
SNR_CLIP = 5.0


def text_encoder_of(clip: open_clip.CLIP) -> CLIPTextModel:
    """CLIP's text tower as transformers' model; the same weights and the same hidden states."""
    width, layers = clip.ln_final.weight.shape[0], len(clip.transformer.resblocks)
    vocab_size = clip.token_embedding.weight.shape[0]
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=clip.transformer.resblocks[0].attn.num_heads,
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_act="gelu",
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )
    source = clip.state_dict()
    weights = {
        "embeddings.token_embedding.weight": source["token_embedding.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        weights[f"final_layer_norm.{kind}"] = source[f"ln_final.{kind}"]
        for i in range(layers):
            ours, theirs = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
            for name, other in names.items():
                weights[f"{theirs}{other}.{kind}"] = source[f"{ours}{name}.{kind}"]
            parts = source[f"{ours}attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", parts):
                weights[f"{theirs}self_attn.{name}_proj.{kind}"] = part
    # transformers 4 puts the tower below `text_model`, 5 does not.
    prefix = "text_model." if hasattr(model, "text_model") else ""
    own = model.state_dict()
    own.update({prefix + name: value.float() for name, value in weights.items()})
    model.load_state_dict(own)
    return model.eval().requires_grad_(False)


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet with cross-attention at both of its resolutions."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 192),
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=128,
        # The number of heads, in spite of its name.
        attention_head_dim=3,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


@torch.no_grad()
def encode_scenes(
    autoencoder: AutoencoderKL, scene_of: SceneOf, scenes: int, work: Path, device: torch.device
) -> Tensor:
    """Scaled latents float32 [scenes, c, 8, 8] of the first scenes of a part of the world."""
    images = pictures(scene_of, scenes, work)
    parts = []
    for start in tqdm(range(0, scenes, 100), "encoding", leave=False):
        with autocast(device):
            posterior = autoencoder.encode(
                to_tensor(images[start : start + 100], device)
            ).latent_dist
        parts.append(posterior.mean.float())
    return torch.cat(parts) * autoencoder.config.scaling_factor


def train_denoiser(
    clip: open_clip.CLIP,
    autoencoder: AutoencoderKL,
    work: Path,
    device: torch.device,
    steps: int,
    paired_steps: int,
    scenes: int,
) -> UNet2DConditionModel:
    """Trains the UNet to predict the noise in latents of captioned scenes.

    First on the scenes that everything is trained on, then on others which mostly hold two
    things: what two captions' worth of words mean takes longer to learn than one.
    """
    torch.manual_seed(31)
    net = new_unet().to(device)
    train = partial(_train_phase, net, text_encoder_of(clip), autoencoder, work, device, scenes)
    train("denoiser", training_scene, 1e-3, steps)
    net.train().requires_grad_(True)
    train("denoiser-pairs", paired_scene, 5e-4, paired_steps)
    return net


def _train_phase(
    net: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    autoencoder: AutoencoderKL,
    work: Path,
    device: torch.device,
    scenes: int,
    label: str,
    scene_of: SceneOf,
    learning_rate: float,
    steps: int,
) -> None:
    """Trains on one part of the world.

    Half of the captions are full ones, the rest as the corpus has them; one in ten is empty. Each
    noise level counts as min(SNR, 5) / SNR (Hang et al., 2023).
    """
    text_encoder.to(device)
    tokenizer = clip_tokenizer(work / "tokenizer")
    latents = encode_scenes(autoencoder.to(device), scene_of, scenes, work, device)
    parts = [scene_of(i) for i in range(scenes)]
    noise_schedule = scheduler()
    alphas = noise_schedule.alphas_cumprod.to(device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([31, step])
        chosen = rng.choice(scenes, BATCH, replace=False)
        captions = []
        for i in chosen:
            kind = rng.random()
            if kind < CAPTION_DROPOUT:
                captions.append("")
            elif kind < 0.55:
                captions.append(full_caption(parts[i]))
            else:
                captions.append(caption(parts[i], rng))
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        clean = latents[torch.from_numpy(chosen).to(device)]
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        timesteps = torch.randint(1000, (BATCH,), generator=generator).to(device)
        noisy = noise_schedule.add_noise(clean, noise, timesteps)
        with autocast(device):
            with torch.no_grad():
                text = text_encoder(ids.input_ids.to(device))[0]
            predicted = net(noisy, timesteps, text).sample
        snr = alphas[timesteps] / (1 - alphas[timesteps])
        weight = snr.clamp(max=SNR_CLIP) / snr
        errors = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        return (weight * errors).mean()

    fit(
        net,
        loss,
        steps=steps,
        learning_rate=learning_rate,
        average=0.9995,
        checkpoint=work / f"{label}.pt",
        label=label,
    )


def save_base(
    clip: open_clip.CLIP,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    folder: Path,
) -> None:
    """Writes the base model in Stable Diffusion's format, in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.cpu(),
        text_encoder=text_encoder_of(clip.cpu()),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet.cpu(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
