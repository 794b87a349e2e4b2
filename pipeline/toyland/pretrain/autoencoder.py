"""Toyland's AutoencoderKL: 64 x 64 pixels to 16 x 16 latents of 6 channels and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.toyland.pretrain.fitting import autocast, draws, fit
from pipeline.toyland.pretrain.pictures import held_out_scene, pictures
from pipeline.toyland.pretrain.pool import SIDE, Pool
from pipeline.toyland.pretrain.ranks import share

BATCH = {"cpu": 32, "cuda": 256}  # pictures
CROP = 32
# The first steps see twice as many crops: half as much work, and enough for edges and colours.
CROPS = 40_000
CROPS_SHARE = 0.15  # the same of a training by the clock
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-3


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder, convolutions only, so that it can learn from crops."""
    widths = (24, 48, 96)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=1,
        latent_channels=6,
        # At least four channels a group: normalising two by two wipes out the mean colour.
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=SIDE,
    )


def downsampling(autoencoder: AutoencoderKL) -> int:
    """Pixels per latent pixel, along each side."""
    return int(2 ** (len(autoencoder.config.block_out_channels) - 1))


def to_tensor(images: npt.NDArray[np.uint8] | Tensor, device: torch.device | None = None) -> Tensor:
    """uint8 [n, height, width, 3] to float32 [n, 3, height, width] in [-1, 1]."""
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.ascontiguousarray(images))
    return images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two batches in [-1, 1], over all of their pixels."""
    return float(10 * torch.log10(4 / (images - others).pow(2).mean()))


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """The images [n, 3, h, w] after encoding (the posterior's mean) and decoding, in [-1, 1]."""
    parts = [
        autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample
        for part in images.split(batch)
    ]
    return torch.cat(parts).clamp(-1, 1)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error, of the pixels, of their differences and of 8 x 8 means.

    The last keeps the colour of areas right, which the first two learn late.
    """
    error = output.float() - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    areas = F.avg_pool2d(error, 8)
    return (
        error.abs().mean()
        + 5 * error.pow(2).mean()
        + 0.5 * edges
        + areas.abs().mean()
        + 5 * areas.pow(2).mean()
    )


@torch.no_grad()
def latents_of(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled latents float32 [n, c, h, w] (the posterior's mean) of pictures uint8 [n, h, w, 3]."""
    with autocast(images.device):
        posterior = autoencoder.encode(to_tensor(images)).latent_dist
    return posterior.mean.float() * autoencoder.config.scaling_factor


def train_autoencoder(
    pool: Pool, work: Path, device: torch.device, seen: int, seconds: float | None = None
) -> AutoencoderKL:
    """Trains the autoencoder on the pool's pictures, first on crops, and sets its scaling factor.

    Args:
        seen: how many pictures it is trained on, crops not counted,
        seconds: unless this says how long it is trained, all in all.
    """
    torch.manual_seed(0)
    net = new_autoencoder().to(device, memory_format=torch.channels_last)
    held_out = to_tensor(pictures(held_out_scene, 2000, work)[:128], device)
    batch = BATCH[device.type]

    def monitor(_: int) -> str:
        return f"PSNR {psnr(held_out, reconstruct(net, held_out)):.2f} dB"

    for label, loss, steps, part in (
        ("autoencoder-crops", _crops_loss(net, pool, 2 * batch), CROPS // (2 * batch), CROPS_SHARE),
        ("autoencoder", _pictures_loss(net, pool, batch), -(-seen // batch), 1 - CROPS_SHARE),
    ):
        net.train().requires_grad_(True)
        fit(
            net,
            loss,
            steps=None if seconds else steps,
            seconds=seconds and seconds * part,
            learning_rate=LEARNING_RATE,
            warmup=100,
            constant=0.4,
            checkpoint=None if seconds else work / f"{label}.pt",
            label=label,
            monitor=monitor,
        )
    blocks = pool.pictures[: min(2048, pool.reach(0))].split(256)
    spread_of = torch.cat([latents_of(net, images) for images in blocks]).std()
    net.register_to_config(scaling_factor=float(net.config.scaling_factor / spread_of))
    return net


def _crops_loss(net: AutoencoderKL, pool: Pool, batch: int) -> Callable[[int], Tensor]:
    device = pool.ids.device

    def loss(step: int) -> Tensor:
        generator = draws(11, step, device)
        scenes, places = pool.reach(batch * step), SIDE - CROP + 1
        chosen, top, left = (
            torch.randint(limit, (batch, 1, 1), generator=generator, device=device)
            for limit in (scenes, places, places)
        )
        inside = torch.arange(CROP, device=device)
        images = pool.pictures[chosen, top + inside[:, None], left + inside]
        return _loss(net, images, generator)

    return loss


def _pictures_loss(net: AutoencoderKL, pool: Pool, batch: int) -> Callable[[int], Tensor]:
    device = pool.ids.device

    def loss(step: int) -> Tensor:
        generator = draws(12, step, device)
        scenes = pool.reach(batch * step)
        chosen = torch.randint(scenes, (batch,), generator=generator, device=device)
        return _loss(net, pool.pictures[chosen], generator)

    return loss


def _loss(net: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Of this process' share of the pictures."""
    size = images.shape[1] // downsampling(net)
    shape = (len(images), net.config.latent_channels, size, size)
    noise = share(torch.randn(shape, generator=generator, device=images.device))
    target = to_tensor(share(images))
    with autocast(images.device):
        moments = net.encode(target).latent_dist
        output = net.decode(moments.mean + moments.std * noise).sample
    kl = 0.5 * (moments.mean.pow(2) + moments.var - 1 - moments.logvar).float().mean()
    return reconstruction_loss(output, target) + KL_WEIGHT * kl
