"""The sampler: DDIM with classifier-free guidance, where each image has noise of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError, about
from pipeline.common.files import png_bytes, read_tar, write_tar
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import load_subject
from pipeline.methods import Session, load_method
from pipeline.models.adapter import load_adapter
from pipeline.models.base import Base, load_base, to_images
from pipeline.models.crossattn import cached_keys_and_values
from pipeline.settings.profile import SamplerParams, load_grid, load_params


@dataclass(frozen=True)
class Request:
    """One image to make."""

    key: str
    prompt: str
    seed: int
    record: dict[str, str | int]  # kept beside the image


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


def prompt_requests(
    protocol: str,
    subject: str,
    templates: Sequence[str],
    references: Sequence[str],
    nouns: Sequence[str],
    count: int,
) -> list[Request]:
    """`count` images for each prompt template of a subject.

    The seed comes from the template, not from the references put into it, so all methods start
    an image from the same noise.

    Args:
        references: what stands for each concept in the prompt given to the model.
        nouns: what stands for it in the prompt that is scored.

    Raises:
        BenchError: there are not as many references as nouns.
    """
    if len(references) != len(nouns):
        raise BenchError(
            f"{subject}: its adapter is of {', '.join(references)}, not of {', '.join(nouns)}: "
            "train it again"
        )
    return [
        Request(
            key=f"prompt-{p:03d}-{s:03d}",
            prompt=template.format(*references),
            seed=(seed := seed_of(protocol, subject, template, s)),
            record={
                "part": "prompt",
                "prompt_index": p,
                "sample": s,
                "prompt": template.format(*references),
                "scored_prompt": template.format(*nouns),
                "seed": seed,
            },
        )
        for p, template in enumerate(templates)
        for s in range(count)
    ]


def caption_requests(
    protocol: str, subject: str, captions: Sequence[str], count: int
) -> list[Request]:
    """`count` images for each caption of a real held-out image, for KID (paper, Table 7)."""
    return [
        Request(
            key=f"caption-{c:03d}-{s:03d}",
            prompt=caption,
            seed=(seed := seed_of(protocol, subject, "caption", c, caption, s)),
            record={
                "part": "caption",
                "prompt_index": c,
                "sample": s,
                "prompt": caption,
                "scored_prompt": caption,
                "seed": seed,
            },
        )
        for c, caption in enumerate(captions)
        for s in range(count)
    ]


def sample_cell(method: str, subject: str, profile: str = DEFAULT_PROFILE) -> Path:
    """Stage `sample`: all images of a cell, as one shard.

    Raises:
        BenchError: the adapter is missing or damaged, or does not fit the base.
        FailureError: the adapter could not be made, or an image is not finite.
    """
    started = time.perf_counter()
    params = load_params(profile)
    thing = load_subject(subject, profile)
    how = load_method(method, load_grid(profile)).how(thing, method)
    protocol, single = params.protocol, len(thing.concepts) == 1
    protocol.check_prompts(subject, thing.prompts)
    folder = params.cell(method, subject)
    adapter = load_adapter(folder / "adapter.safetensors")
    requests = prompt_requests(
        protocol.name,
        subject,
        thing.prompts,
        adapter.provenance.references,
        [concept.class_noun for concept in thing.concepts],
        protocol.sample.of(len(thing.concepts)).images_per_prompt,
    )
    if single and protocol.sample.images_per_caption:
        real = read_tar(params.runs() / "regularization" / f"{subject}.tar")
        captions = [s["txt"] for s in real if s["json"]["part"] == "held_out"]
        requests += caption_requests(
            protocol.name, subject, captions, protocol.sample.images_per_caption
        )
    base = load_base(params.base)
    with how.open(base, adapter) as session, about(f"{method} on {subject}"):
        images = sample_all(base, requests, params.sampler(len(thing.concepts)), session)
    path, whose = folder / "samples.tar", params.identity(method, subject)
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
