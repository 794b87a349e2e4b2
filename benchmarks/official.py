"""The other sides of the comparisons: the same results in the usual way, and without ours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn

from pipeline.common.seeds import seed_of
from pipeline.methods import Trained, TrainingSet
from pipeline.models.adapter import Adapter, Provenance
from pipeline.models.base import Base, to_tensor
from pipeline.settings.profile import MethodParams, SamplerParams, TrainParams
from pipeline.train.augment import View, draw_view, render_view


def train_through(
    base: Base,
    method: Trained,
    sets: Sequence[TrainingSet],
    references: Sequence[str],
    tokens: dict[str, Tensor],
    params: TrainParams,
    hyper: MethodParams,
    checkpoints: Sequence[int],
    provenance: Provenance,
) -> list[Adapter]:
    """As `pipeline.train.loop`'s, for Custom Diffusion, step by step; keeps the last adapter alone.

    In each step every image is augmented and goes through the VAE and every caption through the
    text encoder. The optimizer holds the whole embedding table, with the gradient of all rows but
    those of the modifier tokens set to zero; the gradient of the start token's keys and values is
    stopped by multiplying with a mask. Seeds and the order of draws are the project's, so that
    results are comparable; batches, masks and losses are put together here.
    """
    generators = [
        np.random.default_rng(seed_of(provenance.seed, "schedule", part.concept.name))
        for part in sets
    ]
    weights = {n: w for n, w in base.unet.named_parameters() if n in method.weights(base.unet)}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    (encoder,), tokenizer = base.texts.models, base.texts.tokenizer
    table = encoder.get_input_embeddings()
    whole = torch.cat([table.weight.detach(), torch.stack(list(tokens.values()))])
    embedding = nn.Embedding.from_pretrained(whole, freeze=False)
    tokenizer.add_tokens(list(tokens))
    encoder.set_input_embeddings(embedding)
    trained = [weight.requires_grad_(True) for weight in weights.values()]
    optimizer = torch.optim.AdamW(
        [*trained, embedding.weight], hyper.learning_rate or 0.0, weight_decay=params.weight_decay
    )
    with ExitStack() as stack:
        for name in weights:
            module = base.unet.get_submodule(name.removesuffix(".weight"))
            stack.callback(module.register_forward_hook(_stop_start_token).remove)
        for step in range(checkpoints[-1]):
            pictures, captions, masks = [], [], []
            for part, reference, rng in zip(sets, references, generators):
                for place in range(params.batch_size // len(sets)):
                    own = place < params.batch_size // (2 * len(sets))  # the first half
                    images = part.targets if own else part.regularization
                    view, prefix = draw_view(rng, len(images), base.resolution, own)
                    caption = prefix + part.concept.caption.format(reference)
                    pictures.append(render_view(view, images, base.resolution))
                    captions.append(caption if own else part.captions[view.image])
                    masks.append(mask_of(view, base))
            generator = torch.Generator().manual_seed(
                seed_of(provenance.seed, provenance.subject, "step", step)
            )
            shape = (len(pictures), *base.latent_shape)
            posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
            timesteps = torch.randint(1000, shape[:1], generator=generator)
            with torch.no_grad():
                latents = base.vae.encode(to_tensor(pictures)).latent_dist
                clean = (latents.mean + latents.std * posterior) * base.scale
            noisy = base.scheduler.add_noise(clean, noise, timesteps)
            context = encoder(base.texts.tokenize(captions))[0]
            predicted = base.unet(noisy, timesteps, context).sample
            losses = loss_of_rows(predicted - noise, torch.stack(masks))
            # Each concept's mean, and the sum of these.
            loss = losses.view(len(sets), -1).mean(1).sum()
            loss.backward()
            gradient = embedding.weight.grad
            assert gradient is not None
            others = torch.arange(len(gradient)) < len(table.weight)
            gradient[others, :] = gradient[others, :].fill_(0)
            optimizer.step()
            optimizer.zero_grad()
    rows_after = embedding.weight.detach()[len(table.weight) :]
    deltas: dict[str, Any] = {n: weights[n].detach() - originals[n] for n in weights}
    encoder.set_input_embeddings(table)
    base.unet.requires_grad_(False)
    with torch.no_grad():
        for name, original in originals.items():
            weights[name].copy_(original)
    return [Adapter(dict(zip(tokens, rows_after)), deltas, provenance)]


def mask_of(view: View, base: Base) -> Tensor:
    """Which latent pixels [h, w] show nothing but the picture: zeros and ones.

    All do unless the picture lies on a canvas: then those whose neighbours, too, lie within the
    box that it covers, rounded down to latent pixels; if none does, the one in the middle.
    """
    _, height, width = base.latent_shape
    mask = torch.zeros(height, width)
    box = []  # first row, row behind the last, first column, column behind the last
    for start in (view.y, view.x):
        box += [start // base.downsampling, (start + view.size) // base.downsampling]
    for row in range(height):
        for column in range(width):
            inside = box[0] < row < box[1] - 1 and box[2] < column < box[3] - 1
            mask[row, column] = inside or view.size >= base.resolution
    if not mask.any():
        mask[(sum(box[:2]) - 1) // 2, (sum(box[2:]) - 1) // 2] = 1
    return mask


def loss_of_rows(error: Tensor, masks: Tensor) -> Tensor:
    """The losses [n] of the masked parts: squares summed, per pixel that the mask leaves."""
    return torch.stack(
        [(e * e * m[None]).sum() / torch.count_nonzero(m) for e, m in zip(error, masks)]
    )


def _stop_start_token(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    mask = torch.ones_like(output)
    mask[:, :1, :] *= 0.0
    return mask * output + (1 - mask) * output.detach()


def sample(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], params: SamplerParams
) -> list[Image.Image]:
    """As `pipeline.sample.sampler.sample`, by diffusers' pipeline for the kind of base."""
    steps = DDIMScheduler.from_config(base.scheduler.config)
    parts = (base.vae, *base.texts.models, *base.texts.tokenizers, base.unet, steps)
    pipeline = (
        StableDiffusionXLPipeline(*parts, add_watermarker=False)
        if base.texts.pooled
        else StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)
    )
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipeline(
        list(prompts),
        num_inference_steps=params.steps,
        guidance_scale=params.guidance_scale,
        eta=params.eta,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
    return images
