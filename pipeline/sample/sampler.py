"""The sampler: DDIM with classifier-free guidance, where each image has noise of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.common.failures import DIVERGED, FailureError, about
from pipeline.common.files import png_bytes, write_tar
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import Subject, load_subject
from pipeline.methods import Session, load_method
from pipeline.models.adapter import load_adapter
from pipeline.models.base import Base, load_base, to_images
from pipeline.models.crossattn import cached_keys_and_values
from pipeline.sample.requests import Request, cell_requests, held_out_captions, task_requests
from pipeline.settings.profile import SamplerParams, load_grid, load_params


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    params: SamplerParams,
    session: Session | None = None,
) -> list[Image.Image]:
    """One image for each prompt and seed.

    All noise of an image, that of the start and that of each step, comes from its own generator:
    the image does not depend on what else is in the batch.

    Args:
        base: of which the images are.
        prompts: of the images.
        seeds: of their noise.
        params: of the sampler.
        session: who is asked for conditioning and predictions; the base itself if absent.

    Raises:
        FailureError: an image has values that are not finite.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler = base.scheduler
    scheduler.set_timesteps(params.steps)
    session = session or base
    latents = _noise(generators, base)
    with ExitStack() as stack:
        if session is base:  # whose weights stay as they are over the steps
            stack.enter_context(cached_keys_and_values(base.unet))
        # Unconditional first, as diffusers orders them.
        condition = session.condition([*[""] * len(prompts), *prompts])
        for timestep in scheduler.timesteps:
            both = session.predict(torch.cat([latents, latents]), timestep, condition)
            unconditional, conditional = both.chunk(2)
            guided = unconditional + params.guidance_scale * (conditional - unconditional)
            noise = _noise(generators, base) if params.eta > 0 else None
            latents = scheduler.step(
                guided, timestep, latents, eta=params.eta, variance_noise=noise
            ).prev_sample
    pictures = base.decode_latents(latents)
    finite = pictures.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise FailureError(
            DIVERGED,
            f"the image of {prompts[finite.index(False)]!r} has values that are not finite: the "
            "weights are too large for the model, or damaged",
        )
    return to_images(pictures)


def _noise(generators: Sequence[torch.Generator], base: Base) -> Tensor:
    return torch.cat(
        [torch.randn((1, *base.latent_shape), generator=generator) for generator in generators]
    ).to(base.device)


def sample_all(
    base: Base,
    requests: Sequence[Request],
    params: SamplerParams,
    session: Session | None = None,
) -> list[Image.Image]:
    """The images of all requests, in batches; see `sample`."""
    images: list[Image.Image] = []
    with tqdm(total=len(requests), desc="sampling", unit="image") as progress:
        for start in range(0, len(requests), params.batch_size):
            batch = requests[start : start + params.batch_size]
            prompts, seeds = [r.prompt for r in batch], [r.seed for r in batch]
            images += sample(base, prompts, seeds, params, session)
            progress.update(len(batch))
    return images


def sample_cell(
    method: str, subject: str, profile: str = DEFAULT_PROFILE, seed: int | None = None
) -> Path:
    """Stage `sample`: all images of a cell, as one shard.

    Their noise is the same whatever the seed of the training was. A sequence itself is its last
    model, asked for class nouns in place of what it learned: what is left of the base.

    Args:
        method: of the profile's grid,
        subject: and what it learned, or a sequence.
        profile: the name of a profile.
        seed: of the training; the main one if absent.

    Raises:
        BenchError: the adapter is missing or damaged, or does not fit the base.
        FailureError: the adapter could not be made, or an image is not finite.
    """
    started = time.perf_counter()
    params, grid = load_params(profile), load_grid(profile)
    of = [*grid.tasks(subject)][-1] if subject in grid.sequences else subject
    thing = load_subject(of, profile)
    how = load_method(method, grid).how(thing, method)
    for name, prompts in _prompts(thing).items():
        params.protocol.check_prompts(name, prompts)
    sampler = params.task_sampler() if thing.task else params.sampler(len(thing.concepts))
    adapter = load_adapter(params.cell(method, of, seed) / "adapter.safetensors")
    nouns = [concept.class_noun for concept in thing.concepts]
    references = adapter.provenance.references if of == subject else nouns
    # Concepts of a task are in batches of their own: rounding depends on what else is in one.
    groups = (
        task_requests(params, thing, references)
        if thing.task
        else [cell_requests(params, thing, references, held_out_captions(params, thing))]
    )
    requests = [request for group in groups for request in group]
    base = load_base(params.base)
    with how.open(base, adapter) as session, about(f"{method} on {subject}"):
        images = [i for group in groups for i in sample_all(base, group, sampler, session)]
    path = params.cell(method, subject, seed) / "samples.tar"
    whose = params.identity(method, subject, seed)
    write_tar(
        path,
        [
            {"__key__": request.key, "png": png_bytes(image), "json": request.record | whose}
            for request, image in zip(requests, images)
        ],
    )
    seconds = time.perf_counter() - started
    print(f"sample: {len(images)} images of {method} on {subject} in {seconds:.1f} s -> {path}")
    return path


def _prompts(subject: Subject) -> dict[str, tuple[str, ...]]:
    """The prompts of a subject, by the name under which a protocol fixes them."""
    if subject.task:
        return {concept.name: concept.prompts for concept in subject.concepts}
    return {subject.name: subject.prompts}
