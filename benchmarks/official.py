"""The other sides of the comparisons: the same results in the usual way, and without ours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from pipeline.common.seeds import seed_of
from pipeline.methods import Trained, TrainingSet
from pipeline.models.adapter import Adapter, Provenance
from pipeline.models.base import Base, to_tensor
from pipeline.settings.profile import MethodParams, SamplerParams, TrainParams
from pipeline.train.augment import render_view, view_mask
from pipeline.train.loop import draw_schedule, loss_of_rows


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
    """As `pipeline.train.loop`'s, for methods that train weights and tokens, step by step.

    The last of `checkpoints` alone is kept.

    In each step every image is augmented and goes through the VAE and every caption through the
    text encoder. The optimizer holds the whole embedding table, with the gradient of all rows but
    those of the modifier tokens set to zero; the gradient of the start token's keys and values is
    stopped by multiplying with a mask. The draws are those of the project, so that results are
    comparable.
    """
    steps = checkpoints[-1]
    schedule = draw_schedule(method, sets, references, params, base.resolution, steps)
    weights = {n: w for n, w in base.unet.named_parameters() if n in method.weights(base.unet)}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    table = base.text_encoder.get_input_embeddings()
    whole = torch.cat([table.weight.detach(), torch.stack(list(tokens.values()))])
    embedding = nn.Embedding.from_pretrained(whole, freeze=False)
    base.tokenizer.add_tokens(list(tokens))
    base.text_encoder.set_input_embeddings(embedding)
    trained = [weight.requires_grad_(True) for weight in weights.values()]
    optimizer = torch.optim.AdamW(
        [*trained, embedding.weight], hyper.learning_rate or 0.0, weight_decay=params.weight_decay
    )
    with ExitStack() as stack:
        for name in weights:
            module = base.unet.get_submodule(name.removesuffix(".weight"))
            stack.callback(module.register_forward_hook(_stop_start_token).remove)
        for step, rows in enumerate(schedule):
            pictures, masks = [], []
            for row in rows:
                picture, part = row.picture, sets[row.picture.concept]
                images = part.targets if picture.target else part.regularization
                pictures.append(render_view(picture.view, images, base.resolution))
                masks.append(view_mask(picture.view, base.resolution, base.downsampling))
            generator = torch.Generator().manual_seed(
                seed_of(params.seed, provenance.subject, "step", step)
            )
            shape = (len(rows), *base.latent_shape)
            posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
            timesteps = torch.randint(1000, shape[:1], generator=generator)
            with torch.no_grad():
                latents = base.vae.encode(to_tensor(pictures)).latent_dist
                clean = (latents.mean + latents.std * posterior) * base.scale
            noisy = base.scheduler.add_noise(clean, noise, timesteps)
            context = base.text_encoder(base.tokenize([row.caption for row in rows]))[0]
            predicted = base.unet(noisy, timesteps, context).sample
            losses = loss_of_rows(predicted - noise, torch.stack(masks), method.masked_loss)
            loss = losses.sum() * len(sets) / len(rows)
            loss.backward()
            gradient = embedding.weight.grad
            assert gradient is not None
            others = torch.arange(len(gradient)) < len(table.weight)
            gradient[others, :] = gradient[others, :].fill_(0)
            optimizer.step()
            optimizer.zero_grad()
    rows_after = embedding.weight.detach()[len(table.weight) :]
    deltas: dict[str, Any] = {n: weights[n].detach() - originals[n] for n in weights}
    base.text_encoder.set_input_embeddings(table)
    base.unet.requires_grad_(False)
    with torch.no_grad():
        for name, original in originals.items():
            weights[name].copy_(original)
    return [Adapter(dict(zip(tokens, rows_after)), deltas, provenance)]


def _stop_start_token(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    mask = torch.ones_like(output)
    mask[:, :1, :] *= 0.0
    return mask * output + (1 - mask) * output.detach()


def sample(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], params: SamplerParams
) -> list[Image.Image]:
    """As `pipeline.sample.sampler.sample`, by diffusers' StableDiffusionPipeline."""
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        DDIMScheduler.from_config(base.scheduler.config),
        None,
        None,
        requires_safety_checker=False,
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
