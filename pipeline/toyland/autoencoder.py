"""Toyland's AutoencoderKL: 64 x 64 pixels to 8 x 8 latents of 24 channels and back.

A linear code of that size (PCA of 8 x 8 patches) reaches 28 dB on Toyland, which is why it has so
many channels: a convolutional one has to be better before shapes survive it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.toyland.fitting import autocast, fit
from pipeline.toyland.pictures import held_out_scene, pictures, training_scene

LATENT_CHANNELS = 24
BATCH = 16


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder, convolutions only, so that it can learn from crops."""
    widths = (16, 32, 64, 128)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # At least four channels a group: normalising two by two wipes out the mean colour.
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )


def to_tensor(images: npt.NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """uint8 [n, height, width, 3] to float32 [n, 3, height, width] in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


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


def train_autoencoder(
    work: Path, device: torch.device, steps: int, scenes: int, kl_weight: float = 1e-3
) -> AutoencoderKL:
    """Trains the autoencoder on drawn scenes and sets its scaling factor.

    Three quarters of the steps see random crops of 32 pixels, the rest whole pictures.
    """
    torch.manual_seed(0)
    net = new_autoencoder().to(device)
    images = pictures(training_scene, scenes, work)
    held_out = to_tensor(pictures(held_out_scene, 2000, work)[:128], device)

    def forward(batch: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        moments = net.encode(batch).latent_dist
        latents = moments.mean + moments.std * noise
        kl = 0.5 * (moments.mean.pow(2) + moments.var - 1 - moments.logvar).mean()
        return net.decode(latents).sample, kl

    # Fusing normalisation and activation makes a step about 1.5 times faster on a CPU.
    step_forward = torch.compile(forward) if shutil.which("c++") else forward
    crops_until = int(0.75 * steps)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([11, step])
        if step < crops_until:
            chosen = images[np.sort(rng.choice(len(images), 2 * BATCH, replace=False))]
            x, y = rng.integers(0, 33, (2, len(chosen)))
            batch = np.stack([im[b : b + 32, a : a + 32] for im, a, b in zip(chosen, x, y)])
        else:
            batch = images[np.sort(rng.choice(len(images), BATCH, replace=False))]
        target = to_tensor(batch, device)
        side = target.shape[-1] // 8
        noise = torch.randn(
            (len(target), LATENT_CHANNELS, side, side),
            generator=torch.Generator().manual_seed(step),
        ).to(device)
        with autocast(device):
            output, kl = step_forward(target, noise)
        return reconstruction_loss(output, target) + kl_weight * kl.float()

    def monitor(_: int) -> str:
        return f"PSNR {psnr(held_out, reconstruct(net, held_out)):.2f} dB"

    fit(
        net,
        loss,
        steps=steps,
        learning_rate=2e-3,
        checkpoint=work / "autoencoder.pt",
        label="autoencoder",
        monitor=monitor,
    )
    with torch.no_grad():
        latents = net.encode(to_tensor(images[:512], device)).latent_dist.mode()
    net.register_to_config(scaling_factor=float(1 / latents.std()))
    return net
