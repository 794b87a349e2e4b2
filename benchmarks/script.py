"""Custom Diffusion as diffusers' example script trains it, for its time and memory.

What `examples/custom_diffusion/train_custom_diffusion.py` does in each step, with `--with_prior_
preservation`, a modifier token, `--mixed_precision bf16` and TensorFloat-32: workers open, augment
and resize pictures; the VAE, the text encoder and the UNet are stored in the lower precision; keys
and values are processors of their own in float32; the whole embedding table is in the optimizer.
Written anew, without accelerate; weights are not kept.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline.methods import TrainingSet
from pipeline.models.base import Base
from pipeline.settings.profile import TrainParams

WORKERS = 2  # the script's default
TOKEN = "<new1>"


class Pictures(Dataset[dict[str, Any]]):
    """A target and a regularization image in each item, opened from files and augmented."""

    def __init__(self, folder: Path, part: TrainingSet, base: Base, count: int) -> None:
        self.side, self.latent, self.count = base.resolution, base.latent_shape[-1], count
        self.caption = f"photo of a {TOKEN} {part.concept.class_noun}"
        self.captions = part.captions
        self.files: dict[str, list[Path]] = {}
        for kind, images in (("target", part.targets), ("other", part.regularization)):
            self.files[kind] = [folder / f"{kind}-{i}.png" for i in range(len(images))]
            for path, image in zip(self.files[kind], images):
                image.save(path)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        target = self._open("target", index)
        if rng.random() < 0.5:
            target = target.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        side, caption = self.side, self.caption
        near = rng.random() >= 0.66
        size = int(rng.integers(int(1.2 * side), int(1.4 * side)) if near else rng.integers(
            side // 3, side + 1
        ))  # fmt: skip
        pixels = np.zeros((side, side, 3), np.float32)
        mask = np.zeros((self.latent, self.latent), np.float32)
        resized = np.asarray(target.resize((size, size), Image.Resampling.BILINEAR))
        scaled = resized.astype(np.float32) / 127.5 - 1
        if near:
            top, left = rng.integers(0, size - side + 1, 2)
            pixels, mask = scaled[top : top + side, left : left + side], mask + 1
            caption = "zoomed in " + caption
        else:
            top, left = rng.integers(0, side - size + 1, 2)
            pixels[top : top + size, left : left + size] = scaled
            factor = side // self.latent
            first, last = (top // factor + 1, left // factor + 1), size // factor - 1
            mask[first[0] : first[0] + last, first[1] : first[1] + last] = 1
            mask[first[0], first[1]] = 1
            caption = ("a far away " if size < 0.6 * side else "") + caption
        other = np.asarray(self._open("other", index), np.float32) / 127.5 - 1
        return {
            "target": torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1),
            "other": torch.from_numpy(other.copy()).permute(2, 0, 1),
            "mask": torch.from_numpy(mask),
            "captions": (caption, self.captions[index % len(self.captions)]),
        }

    def _open(self, kind: str, index: int) -> Image.Image:
        files = self.files[kind]
        image = Image.open(files[index % len(files)]).convert("RGB")
        return image.resize((self.side, self.side), Image.Resampling.BILINEAR)


@contextmanager
def _processors(base: Base) -> Iterator[list[nn.Parameter]]:
    """Puts the script's attention into the UNet; its keys and values, in float32."""
    before = dict(base.unet.attn_processors)
    weights = dict(base.unet.named_parameters())
    processors: dict[str, nn.Module] = {}
    for name in before:
        layer = name.removesuffix(".processor")
        if not layer.endswith("attn2"):
            processors[name] = CustomDiffusionAttnProcessor2_0(train_kv=False, train_q_out=False)
            continue
        rows, columns = weights[f"{layer}.to_k.weight"].shape
        own = CustomDiffusionAttnProcessor2_0(True, False, rows, columns).to(base.device)
        for kind in ("k", "v"):
            module = getattr(own, f"to_{kind}_custom_diffusion")
            module.weight.data.copy_(weights[f"{layer}.to_{kind}.weight"])
        processors[name] = own
    base.unet.set_attn_processor(processors)
    try:
        yield [parameter for part in processors.values() for parameter in part.parameters()]
    finally:
        base.unet.set_attn_processor(before)


def train(base: Base, part: TrainingSet, params: TrainParams, steps: int) -> list[float]:
    """Trains so many steps.

    Returns:
        The loss of each, which the script asks for in every step.
    """
    device, dtype = base.device, base.stored
    (encoder,), tokenizer = base.texts.models, base.texts.tokenizer
    table = encoder.get_input_embeddings()
    before = table.weight.detach()
    longer = torch.cat([before, before[:1]])
    tokenizer.add_tokens([TOKEN])
    embedding = nn.Embedding.from_pretrained(longer, freeze=False)
    others = torch.arange(len(longer), device=device) != tokenizer.convert_tokens_to_ids(TOKEN)
    losses = []
    with tempfile.TemporaryDirectory() as folder, _processors(base) as trained:
        encoder.set_input_embeddings(embedding)
        half = params.batch_size // 2
        loader = DataLoader(
            Pictures(Path(folder), part, base, steps * half), half, num_workers=WORKERS,
            collate_fn=_collated,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(
            [*embedding.parameters(), *trained], 1e-5, weight_decay=params.weight_decay
        )
        try:
            for batch in loader:
                loss = _loss(base, batch, device, dtype)
                loss.backward()
                gradient = embedding.weight.grad
                assert gradient is not None
                gradient[others] = gradient[others].fill_(0)
                nn.utils.clip_grad_norm_(itertools.chain(embedding.parameters(), trained), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.detach().item())
        finally:
            encoder.set_input_embeddings(table)
    return losses


def _collated(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Targets first, then regularization images."""
    return {
        "pixels": torch.stack([item[kind] for kind in ("target", "other") for item in items]),
        "mask": torch.stack([item["mask"] for item in items])[:, None],
        "captions": [item["captions"][i] for i in (0, 1) for item in items],
    }


def _loss(base: Base, batch: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        pixels = batch["pixels"].to(device).to(dtype)
        latents = base.vae.encode(pixels).latent_dist.sample() * base.scale
    noise = torch.randn_like(latents)
    limit = base.scheduler.config.num_train_timesteps
    timesteps = torch.randint(0, limit, (len(latents),), device=device)
    noisy = base.scheduler.add_noise(latents, noise, timesteps)
    text = base.condition(batch["captions"]).text
    predicted, prior = base.unet(noisy, timesteps, text).sample.chunk(2)
    target, other = noise.chunk(2)
    mask = batch["mask"].to(device)
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none")
    own = ((loss * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()
    return own + F.mse_loss(prior.float(), other.float())
