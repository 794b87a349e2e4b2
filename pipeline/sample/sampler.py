"""The sampler: DDIM with classifier-free guidance, where each image has noise of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError, about
from pipeline.common.files import png_bytes, read_tar, sha256, write_tar
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.unfinished import Unfinished
from pipeline.concepts.concept import Subject, load_subject
from pipeline.methods import Session, load_method, method_files
from pipeline.models.adapter import load_adapter
from pipeline.models.base import Base, load_base, made_by, moved, to_images
from pipeline.models.compiling import compiled
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
        # Its weights stay as they are over the steps; a compiler would have to look into a cache.
        if session is base and not base.compiled:
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
    shape = (1, *base.latent_shape)
    drawn = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return moved(drawn, base.device)


def sample_all(
    base: Base,
    requests: Sequence[Request],
    params: SamplerParams,
    session: Session | None = None,
) -> list[Image.Image]:
    """The images of all requests, in batches; see `sample`."""
    images: list[Image.Image] = []
    batches = _batches([requests], params.batch_size)
    with _long_run(base, batches, params, session) as progress:
        for batch in batches:
            images += _sampled(base, batch, params, session)
            progress.update(len(batch))
    return images


def sample_pngs(
    base: Base,
    groups: Sequence[Sequence[Request]],
    params: SamplerParams,
    session: Session | None,
    unfinished: Unfinished,
) -> list[bytes]:
    """The images of all requests as PNG; a long run keeps its batches, to go on from.

    They are encoded and kept while the model works on the next batch.

    Args:
        base: see `sample`.
        groups: of requests, whose batches are apart: rounding depends on what else is in one.
        params: see `sample`.
        session: see `sample`.
        unfinished: where batches are kept. Those of the same key are not made again.
    """
    encoded: list[bytes] = []
    batches = _batches(groups, params.batch_size)
    begun, waiting = time.monotonic(), dict[int, list[dict[str, Any]]]()
    kept: dict[int, list[bytes]] = {}
    if unfinished.folder.is_dir():
        kept = {i: found for i, b in enumerate(batches) if (found := _kept(unfinished, i, b))}
        print(f"sample: {len(kept)} of {len(batches)} batches are done: {unfinished.folder}")

    def encode(number: int, images: Sequence[Image.Image]) -> list[bytes]:
        if number in kept:
            return kept[number]
        pngs = [png_bytes(image) for image in images]
        waiting[number] = [{"__key__": r.key, "png": png} for r, png in zip(batches[number], pngs)]
        if kept or unfinished.due(begun):
            for done, samples in waiting.items():
                write_tar(_file(unfinished, done), samples)
            waiting.clear()
        return pngs

    with ThreadPoolExecutor(1) as pool, _long_run(base, batches, params, session) as progress:
        before: Future[list[bytes]] | None = None
        for number, batch in enumerate(batches):
            images = [] if number in kept else _sampled(base, batch, params, session)
            encoded += before.result() if before else []
            before = pool.submit(encode, number, images)
            progress.update(len(batch))
        encoded += before.result() if before else []
    return encoded


def _batches(groups: Sequence[Sequence[Request]], size: int) -> list[Sequence[Request]]:
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def _sampled(
    base: Base, batch: Sequence[Request], params: SamplerParams, session: Session | None
) -> list[Image.Image]:
    return sample(base, [r.prompt for r in batch], [r.seed for r in batch], params, session)


@contextmanager
def _long_run(
    base: Base,
    batches: Sequence[Sequence[Request]],
    params: SamplerParams,
    session: Session | None,
) -> Iterator[tqdm[NoReturn]]:
    """Progress over all batches, for which the model is compiled if that pays."""
    # What other sessions do between layers differs from batch to batch.
    runs = len(batches) * params.steps if session in (None, base) else 0
    images = sum(len(batch) for batch in batches)
    with compiled(base, runs), tqdm(total=images, desc="sampling", unit="image") as progress:
        yield progress


def _file(unfinished: Unfinished, number: int) -> Path:
    return unfinished.folder / unfinished.key[:16] / f"batch-{number:04d}.tar"


def _kept(unfinished: Unfinished, number: int, batch: Sequence[Request]) -> list[bytes] | None:
    """The PNGs of a batch that was made already; None if it was not, or not wholly."""
    path = _file(unfinished, number)
    if not path.is_file():
        return None
    try:
        found = {sample["__key__"]: sample["png"] for sample in read_tar(path)}
        return [found[request.key] for request in batch]
    except (BenchError, KeyError):
        return None


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
    made = params.cell(method, of, seed) / "adapter.safetensors"
    adapter = load_adapter(made)
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
    folder, whose = params.cell(method, subject, seed), params.identity(method, subject, seed)
    path = folder / "samples.tar"

    def key() -> object:
        files = (file.read_bytes() for file in method_files(method, grid))
        return (sha256(made), sampler, requests, base.hash, *made_by(base), *files)

    unfinished = Unfinished(params.unfinished("sample", folder), key)
    with unfinished.removed():
        with how.open(base, adapter) as session, about(f"{method} on {subject}"):
            pngs = sample_pngs(base, groups, sampler, session, unfinished)
        write_tar(
            path,
            [
                {"__key__": request.key, "png": png, "json": request.record | whose}
                for request, png in zip(requests, pngs)
            ],
        )
    seconds = time.perf_counter() - started
    print(f"sample: {len(pngs)} images of {method} on {subject} in {seconds:.1f} s -> {path}")
    return path


def _prompts(subject: Subject) -> dict[str, tuple[str, ...]]:
    """The prompts of a subject, by the name under which a protocol fixes them."""
    if subject.task:
        return {concept.name: concept.prompts for concept in subject.concepts}
    return {subject.name: subject.prompts}
