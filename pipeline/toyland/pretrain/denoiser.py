"""Toyland's text encoder and UNet: what turns the two CLIPs' world into a diffusion model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.toyland.pretrain.autoencoder import downsampling
from pipeline.toyland.pretrain.fitting import draws, fit, mixed_precision, replay
from pipeline.toyland.pretrain.pool import CAPTIONS, Pool
from pipeline.toyland.pretrain.ranks import share
from pipeline.toyland.pretrain.vocabulary import CONTEXT_LENGTH, LETTERS, clip_tokenizer, token_ids

BATCH = {"cpu": 64, "cuda": 512}
LEARNING_RATE = {"cpu": 1e-3, "cuda": 1.5e-3}
TEXT_LEARNING_RATE = 2e-4
WARMUP = 500
CAPTION_DROPOUT = 0.1
SNR_CLIP = 5.0
MAX_FILE = "15MB"


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


def new_unet(autoencoder: AutoencoderKL, text: CLIPTextModel) -> UNet2DConditionModel:
    """An untrained UNet for the latents of one and the features of the other.

    Its outermost blocks have no attention: with it, a step takes twice as long and is no better.
    """
    config = autoencoder.config
    return UNet2DConditionModel(
        sample_size=config.sample_size // downsampling(autoencoder),
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=(48, 96, 192),
        layers_per_block=1,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        cross_attention_dim=text.config.hidden_size,
        # The numbers of heads, in spite of its name.
        attention_head_dim=(2, 3, 6),
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


class Denoising(nn.Module):
    """The loss of a UNet, and of a text encoder that is trained along."""

    letters: Tensor
    alphas: Tensor

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel):
        super().__init__()
        self.unet, self.text = unet, text
        letters = torch.tensor([token_ids(letter)[1] for letter in LETTERS])
        self.register_buffer("letters", letters, persistent=False)
        self.register_buffer("alphas", scheduler().alphas_cumprod, persistent=False)

    def forward(self, clean: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Mean error of the predicted noise; each noise level counts as min(SNR, 5) / SNR.

        The weights are those of Hang et al. (2023). Captions with one of LETTERS teach the UNet
        that a letter means nothing, but not the text encoder: it would learn to ignore letters,
        and no identifier could be learned with it.

        Args:
            clean: scaled latents float32 [n, c, h, w]; `noise` is of that shape too.
            timesteps: int64 [n].
            ids: token ids int64 [n, context].
        """
        signal = self.alphas[timesteps]
        part = signal[:, None, None, None]
        noisy = part.sqrt() * clean + (1 - part).sqrt() * noise
        with mixed_precision(clean.device):
            features = self.text(ids)[0]
            lettered = torch.eq(ids[:, :, None], self.letters).any(2).any(1)
            features = torch.where(lettered[:, None, None], features.detach(), features)
            predicted = self.unet(noisy, timesteps, features).sample
        snr = signal / (1 - signal)
        errors = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        return (snr.clamp(max=SNR_CLIP) / snr * errors).mean()


def train_denoiser(
    text: CLIPTextModel,
    autoencoder: AutoencoderKL,
    pool: Pool,
    work: Path,
    device: torch.device,
    seen: int,
    seconds: float | None = None,
) -> UNet2DConditionModel:
    """Trains a UNet to predict the noise in the pool's latents, and the text encoder with it.

    Args:
        text: where the text encoder starts from; it is changed.
        pool: holds latents already.
        seen: how many latents they are trained on,
        seconds: unless this says how long.
    """
    torch.manual_seed(31)
    unet = new_unet(autoencoder, text).to(device, memory_format=torch.channels_last)
    text = text.to(device).train().requires_grad_(True)
    net = Denoising(unet, text).to(device)
    batch = BATCH[device.type]
    empty = torch.tensor(token_ids(""), device=device)

    def examples(step: int) -> list[Tensor]:
        """This process' share of a batch: what `Denoising` takes."""
        rng = draws(31, step, device)
        scenes = pool.reach(batch * step)
        chosen = torch.randint(scenes, (batch,), generator=rng, device=device)
        which = torch.randint(CAPTIONS, (batch,), generator=rng, device=device)
        dropped, jitter = torch.rand((2, batch), generator=rng, device=device)
        clean = pool.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=rng, device=device)
        # Stratified: each batch has all noise levels in it.
        times = (torch.arange(batch, device=device) + jitter) / batch
        timesteps = (times * len(net.alphas)).long().clamp(max=len(net.alphas) - 1)
        ids = pool.ids[chosen, which].long()
        ids = torch.where(dropped[:, None] < CAPTION_DROPOUT, empty, ids)
        return [share(part) for part in (clean, noise, timesteps, ids)]

    replay(net, *examples(0))
    fit(
        net,
        lambda step: net(*examples(step)),
        steps=None if seconds else -(-seen // batch),
        seconds=seconds,
        learning_rate=LEARNING_RATE[device.type],
        groups=[
            {"params": list(unet.parameters())},
            # No decay: nothing but captions moves it, rows of words that none holds stay apart.
            {"params": list(text.parameters()), "lr": TEXT_LEARNING_RATE, "weight_decay": 0.0},
        ],
        warmup=WARMUP,
        constant=0.35,
        average=0.9997,
        checkpoint=None if seconds else work / "denoiser.pt",
        label="denoiser",
    )
    return unet


def save_base(
    text: CLIPTextModel,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    folder: Path,
) -> None:
    """Writes the base model in Stable Diffusion's format, in half precision.

    The UNet's weights come in several files, none of which is too large for a repository.
    """
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.cpu(),
        text_encoder=text.cpu(),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        unet=unet.cpu(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(
        folder, safe_serialization=True, max_shard_size=MAX_FILE
    )
