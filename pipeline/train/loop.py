"""The one training loop: what a method says, done to the images of a few concepts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import PHOTO_CAPTION
from pipeline.methods import TOKENS, Batch, Step, Trained, TrainingSet
from pipeline.models.adapter import Adapter, Delta, LowRank, Provenance, not_finite
from pipeline.models.base import Base, Condition, to_tensor
from pipeline.models.crossattn import detached_start_token
from pipeline.settings.profile import MethodParams, TrainParams
from pipeline.train.augment import View, draw_view, render_view, view_mask
from pipeline.train.lowrank import low_rank_changes


@dataclass(frozen=True)
class Picture:
    """A view of a target, or a regularization image and its mirroring; equal ones look equal."""

    concept: int
    view: View
    target: bool


@dataclass(frozen=True)
class Row:
    """One image of one step."""

    picture: Picture
    caption: str


class Latents(NamedTuple):
    """Pictures as the VAE sees them: means and deviations [n, c, h, w], loss masks [n, h, w]."""

    mean: Tensor
    deviation: Tensor
    mask: Tensor


def draw_schedule(
    method: Trained,
    sets: Sequence[TrainingSet],
    references: Sequence[str],
    params: TrainParams,
    resolution: int,
    steps: int,
    seed: int,
) -> list[list[Row]]:
    """Everything that the steps will see, drawn beforehand.

    Each concept has an equal share of every batch (of a batch of eight, three concepts have two
    images each); with regularization half of it are targets and half regularization images. A
    concept's draws depend on the seed and its name alone.

    Raises:
        BenchError: the batch is too small, or there are no regularization images.
    """
    kinds = 2 if method.regularization else 1
    share = params.batch_size // (kinds * len(sets))
    if not share:
        raise BenchError(
            f"params.yaml: train.batch_size: {params.batch_size} is too small for {len(sets)} "
            f"concepts and {kinds} kinds of images: use {kinds * len(sets)} or more"
        )
    schedule: list[list[Row]] = [[] for _ in range(steps)]
    for index, part in enumerate(sets):
        if method.regularization and not part.regularization:
            raise BenchError(
                f"shard of {part.concept.name}: holds no regularization images, which this method "
                "needs: run the profile's pipeline to retrieve them"
            )
        rng = np.random.default_rng(seed_of(seed, "schedule", part.concept.name))
        own = part.concept.caption
        # A method's captions are of photos, which a style is not.
        templates = method.captions if method.captions and own == PHOTO_CAPTION else (own,)
        for rows in schedule:
            for _ in range(share):
                view, prefix = draw_view(rng, len(part.targets), resolution, method.resize)
                template = templates[int(rng.integers(len(templates)))]
                caption = prefix + template.format(references[index])
                rows.append(Row(Picture(index, view, True), caption))
            for _ in range(share if method.regularization else 0):
                view, _ = draw_view(rng, len(part.regularization), resolution, False)
                rows.append(Row(Picture(index, view, False), part.captions[view.image]))
    return schedule


class Noised(NamedTuple):
    """Latents on which a prediction is asked for, and what it should be."""

    noisy: Tensor  # scaled, float32 [n, c, h, w]
    timesteps: Tensor  # int64 [n]
    target: Tensor  # float32 [n, c, h, w]


def noised(base: Base, latents: Latents, generator: torch.Generator) -> Noised:
    """Draws of the latents, noise and timesteps, all from one generator."""
    shape = (len(latents.mean), *base.latent_shape)
    posterior, noise = (torch.randn(shape, generator=generator).to(base.device) for _ in range(2))
    training_steps = base.scheduler.config.num_train_timesteps
    timesteps = torch.randint(training_steps, shape[:1], generator=generator).to(base.device)
    clean = (latents.mean + latents.deviation * posterior) * base.scale
    noisy = base.scheduler.add_noise(clean, noise, timesteps)
    return Noised(noisy, timesteps, base.target(clean, noise, timesteps))


class Encoder:
    """Encodes each picture of a schedule once, when it is first needed.

    What comes again is kept until its last use: never more than a step's pictures go through the
    VAE at once, and few latents are in memory.
    """

    def __init__(
        self, base: Base, sets: Sequence[TrainingSet], schedule: Sequence[Sequence[Row]]
    ) -> None:
        self.base, self.sets = base, sets
        self.uses = Counter(row.picture for rows in schedule for row in rows)
        self.kept: dict[Picture, Latents] = {}

    def __call__(self, rows: Sequence[Row]) -> Latents:
        """The latents of a step of the schedule; steps are asked for in their order."""
        pictures = [row.picture for row in rows]
        self._encode([p for p in dict.fromkeys(pictures) if p not in self.kept])
        found = Latents(*map(torch.stack, zip(*(self.kept[p] for p in pictures))))
        self.uses.subtract(pictures)
        for picture in set(pictures):
            if not self.uses[picture]:
                del self.kept[picture]
        return found

    def _encode(self, pictures: Sequence[Picture]) -> None:
        if not pictures:
            return
        resolution = self.base.resolution
        rendered = []
        for picture in pictures:
            part = self.sets[picture.concept]
            images = part.targets if picture.target else part.regularization
            rendered.append(render_view(picture.view, images, resolution))
        mean, deviation = self.base.encode_images(to_tensor(rendered))
        for picture, m, d in zip(pictures, mean, deviation):
            mask = view_mask(picture.view, resolution, self.base.downsampling)
            # Copies, as a part of a batch would keep all of it in memory.
            self.kept[picture] = Latents(m.clone(), d.clone(), mask.to(mean))


def loss_of_rows(error: Tensor, mask: Tensor, masked: bool) -> Tensor:
    """The loss [n] of each image from its prediction error [n, c, h, w] and mask [n, h, w].

    Masked as in the released code: the sum over channels and unmasked pixels of the squares,
    divided by the number of unmasked pixels; so c times a mean. Otherwise the plain mean.
    """
    squares = error.pow(2)
    if not masked:
        return squares.mean((1, 2, 3))
    return (squares.sum(1) * mask).sum((1, 2)) / mask.sum((1, 2))


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
    noise: str | None = None,
) -> list[Adapter]:
    """Fine-tunes the base on the concepts' images and returns what has changed by then and then.

    The base is left as it was. All noise comes from generators of its own step, so the result
    depends on nothing but the arguments, and the learning rate is constant: what has changed after
    some steps is what a training of so many steps changes.

    Args:
        references: what stands for the concept of each of `sets` in its captions.
        tokens: the modifier token of each of `sets` and the row [d] that it starts from.
        checkpoints: numbers of steps, ascending; the last is that of the whole training.
        provenance: goes into the adapters, with the steps. Draws depend on its seed,
        noise: and on whose they are; the provenance's subject if absent.

    Returns:
        The adapter after each of `checkpoints`.

    Raises:
        FailureError: the loss or what was trained is not finite.
    """
    unet, noise = base.unet, noise or provenance.subject
    steps = checkpoints[-1]
    schedule = draw_schedule(
        method, sets, references, params, base.resolution, steps, provenance.seed
    )
    names = method.weights(unet)
    weights = dict(unet.named_parameters())
    originals = {name: weights[name].detach().clone() for name in names}
    table = base.text_encoder.get_input_embeddings()
    try:
        with ExitStack() as stack:
            embedding = base.add_modifier_tokens(tokens)
            factors: dict[str, LowRank] = {}
            if method.low_rank:
                seed = seed_of(provenance.seed, noise, "low rank")
                basis = seed_of(provenance.seed, "basis") if method.orthonormal else None
                factors = stack.enter_context(
                    low_rank_changes(unet, names, hyper.rank or 0, seed, base.device, basis)
                )
                trained = {
                    n: [p for p in (f.up, f.down) if p.requires_grad] for n, f in factors.items()
                }
            else:
                trained = {name: [weights[name].requires_grad_(True)] for name in names}
            if method.train_token:
                trained[TOKENS] = [embedding.rows.requires_grad_(True)]
            if method.detach_start_token:
                stack.enter_context(detached_start_token(unet))
            groups = _groups(trained, method.rate, hyper.learning_rate or 0.0)

            def change(name: str) -> Delta:
                return factors[name] if method.low_rank else weights[name] - originals[name]

            def penalty(batch: Batch) -> Tensor | None:
                if method.penalty is None:
                    return None
                return method.penalty(
                    Step({name: change(name) for name in names}, embedding.rows, batch)
                )

            def changed(done: int) -> Adapter:
                rows = embedding.rows.detach().cpu()
                with torch.no_grad():
                    deltas = {name: _copied(change(name)) for name in names}
                by_token = {token: row.clone() for token, row in zip(tokens, rows)}
                adapter = Adapter(by_token, deltas, replace(provenance, steps=done))
                # A gradient may be the first that is not finite, and no loss comes after the last.
                if what := not_finite(adapter):
                    raise _diverged(what, done, steps, provenance)
                return adapter

            made = {
                done: changed(done)
                for done in _steps(
                    base, method, sets, schedule, groups, penalty, params, provenance, noise
                )
                if done in checkpoints
            }
    finally:
        base.text_encoder.set_input_embeddings(table)
        unet.requires_grad_(False)
        with torch.no_grad():
            for name, original in originals.items():
                weights[name].copy_(original)
    return [made[done] for done in checkpoints]


def _copied(delta: Delta) -> Delta:
    """A copy of a change on the CPU."""
    if isinstance(delta, LowRank):
        return LowRank(delta.up.detach().cpu().clone(), delta.down.detach().cpu().clone())
    return delta.detach().cpu()


def _groups(
    trained: Mapping[str, list[Tensor]], rate: Callable[[str], float], learning_rate: float
) -> list[dict[str, Any]]:
    """What trains, in groups of one learning rate each, as optimizers take them."""
    groups: dict[float, list[Tensor]] = {}
    for name, tensors in trained.items():
        groups.setdefault(rate(name), []).extend(tensors)
    return [{"params": part, "lr": factor * learning_rate} for factor, part in groups.items()]


def _diverged(what: str, step: int, steps: int, provenance: Provenance) -> FailureError:
    """The error of a training in which something is not finite after that many steps."""
    method = provenance.method
    return FailureError(
        DIVERGED,
        f"{method} on {provenance.subject}: the training diverged: {what} is not finite at step "
        f"{step} of {steps} (learning rate {provenance.learning_rate:g}): lower "
        f"methods.{method}.learning_rate in the profile's params.yaml",
    )


def _steps(
    base: Base,
    method: Trained,
    sets: Sequence[TrainingSet],
    schedule: Sequence[Sequence[Row]],
    groups: list[dict[str, Any]],
    penalty: Callable[[Batch], Tensor | None],
    params: TrainParams,
    provenance: Provenance,
    noise: str,
) -> Iterator[int]:
    """The loop itself: AdamW on the prediction error of the schedule's images.

    Yields:
        How many steps have been made: 0, 1 and so on.

    Raises:
        FailureError: the loss is not finite.
    """
    yield 0
    if not schedule:
        return
    encode = Encoder(base, sets, schedule)
    # Captions that no training can change are encoded once.
    captions = list(
        dict.fromkeys(
            row.caption
            for rows in schedule
            for row in rows
            if not (row.picture.target and method.train_token)
        )
    )
    fixed: dict[str, Condition] = {}
    with torch.no_grad():
        for start in range(0, len(captions), 64):
            part = captions[start : start + 64]
            fixed.update(zip(part, base.condition(part).split()))

    optimizer = torch.optim.AdamW(groups, weight_decay=params.weight_decay)
    progress = tqdm(schedule, f"training {provenance.method}", unit="step", mininterval=1)
    for step, rows in enumerate(progress):
        generator = torch.Generator().manual_seed(seed_of(provenance.seed, noise, "step", step))
        latents = encode(rows)
        noisy, timesteps, target = noised(base, latents, generator)
        learned = list(dict.fromkeys(r.caption for r in rows if r.caption not in fixed))
        with base.autocast():
            known = fixed | dict(zip(learned, base.condition(learned).split() if learned else []))
        condition = Condition.joined([known[row.caption] for row in rows])
        predicted = base.predict(noisy, timesteps, condition)
        losses = loss_of_rows(predicted - target, latents.mask, method.masked_loss)
        # The mean over each concept's images, summed over concepts.
        loss = losses.sum() * len(sets) / len(rows)
        more = penalty(Batch(step, noisy, timesteps, condition, predicted, target, latents.mask))
        loss = loss if more is None else loss + more
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if not math.isfinite(value):
            progress.close()
            raise _diverged("the loss", step + 1, len(schedule), provenance)
        progress.set_postfix_str(f"loss {value:.3f}", refresh=False)
        yield step + 1
