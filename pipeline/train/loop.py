"""The one training loop: what a method says, done to the images of a few concepts."""

from __future__ import annotations

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
from pipeline.models.base import Base, moved
from pipeline.models.compiling import compiled
from pipeline.models.crossattn import detached_start_token
from pipeline.models.texts import Condition
from pipeline.settings.profile import MethodParams, TrainParams
from pipeline.train.ahead import made_ahead
from pipeline.train.augment import draw_view
from pipeline.train.encoder import Encoder, Latents, Picture, Rendered, Row
from pipeline.train.lowrank import low_rank_changes
from pipeline.train.masters import Masters
from pipeline.train.state import State

# On a GPU, so that it never waits; none is measured. Pictures that go through the VAE together: at
# 512 pixels the largest layer of sixteen takes a gigabyte.
PICTURES_AT_ONCE = 16
THREADS = 2  # that render pictures: a view of 512 pixels takes some ten milliseconds
LOOKS = {"cuda": 50, "cpu": 1}  # after so many steps, for a loss that is not finite


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


class Draws(NamedTuple):
    """What a step draws; made on the CPU, so that it is the same for each hardware."""

    posterior: Tensor  # float32 [n, c, h, w]
    noise: Tensor  # float32 [n, c, h, w]
    timesteps: Tensor  # int64 [n]


def draw(base: Base, count: int, generator: torch.Generator) -> Draws:
    """The draws of so many images, all from one generator."""
    shape = (count, *base.latent_shape)
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    training_steps = base.scheduler.config.num_train_timesteps
    return Draws(posterior, noise, torch.randint(training_steps, (count,), generator=generator))


class Noised(NamedTuple):
    """Latents on which a prediction is asked for, and what it should be."""

    noisy: Tensor  # scaled, float32 [n, c, h, w]
    timesteps: Tensor  # int64 [n]
    target: Tensor  # float32 [n, c, h, w]


def noised(base: Base, latents: Latents, draws: Draws) -> Noised:
    """Latents with what was drawn for them."""
    posterior, noise, timesteps = (moved(part, base.device) for part in draws)
    clean = (latents.mean + latents.deviation * posterior) * base.scale
    noisy = base.scheduler.add_noise(clean, noise, timesteps)
    return Noised(noisy, timesteps, base.target(clean, noise, timesteps))


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
    state: State | None = None,
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
        state: where a long training keeps its state, and goes on from what it finds.

    Returns:
        The adapter after each of `checkpoints`.

    Raises:
        BenchError: the batch cannot be divided as the parameters say.
        FailureError: the loss or what was trained is not finite.
    """
    if method.penalty and params.micro_batch_size:
        raise BenchError(
            f"params.yaml: train.micro_batch_size: {provenance.method} has a term of its own in "
            "the loss, which needs the whole batch: remove the line, or use "
            "train.gradient_checkpointing"
        )
    unet, noise = base.unet, noise or provenance.subject
    steps = checkpoints[-1]
    schedule = draw_schedule(
        method, sets, references, params, base.resolution, steps, provenance.seed
    )
    names = method.weights(unet)
    weights = {name: unet.get_parameter(name) for name in names}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        base.gradient_checkpointing = params.gradient_checkpointing
        with ExitStack() as stack:
            token_rows = stack.enter_context(base.texts.modifier_tokens(tokens))
            factors: dict[str, LowRank] = {}
            masters = Masters({} if method.low_rank else weights)
            stack.callback(masters.let_go)
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
                trained = {name: [masters[name]] for name in names}
            if method.train_token:
                trained[TOKENS] = [token_rows.requires_grad_(True)]
            if method.detach_start_token:
                stack.enter_context(detached_start_token(unet))
            # Texts of each layer come with hooks of each step, which a compiler would look at anew.
            stack.enter_context(compiled(base, 0 if method.layered else steps))
            groups = _groups(trained, method.rate, hyper.learning_rate or 0.0)

            def change(name: str) -> Delta:
                return factors[name] if method.low_rank else masters[name] - originals[name]

            def penalty(batch: Batch) -> Tensor | None:
                if method.penalty is None:
                    return None
                return method.penalty(
                    Step({name: change(name) for name in names}, token_rows, batch)
                )

            def changed(done: int) -> Adapter:
                rows = token_rows.detach().cpu()
                with torch.no_grad():
                    deltas = {name: _copied(change(name)) for name in names}
                by_token = {token: row.clone() for token, row in zip(tokens, rows)}
                adapter = Adapter(by_token, deltas, replace(provenance, steps=done))
                # A gradient may be the first that is not finite, and no loss comes after the last.
                if what := not_finite(adapter):
                    raise _diverged(what, done, steps, provenance)
                return adapter

            optimizer = torch.optim.AdamW(
                groups,
                weight_decay=params.weight_decay,
                fused=True if base.device.type == "cuda" else None,
            )
            training = _Training(
                base, method, sets, schedule, params, provenance, noise, checkpoints, optimizer,
                masters, penalty,
            )  # fmt: skip
            made = {done: changed(done) for done in training.steps(state) if done in checkpoints}
    finally:
        base.gradient_checkpointing = False
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


class _Prepared(NamedTuple):
    """What a step needs that no model makes: for threads."""

    rendered: Rendered | None
    draws: Draws


class _Watch:
    """The first step whose loss was not finite. A GPU is asked for it now and then only."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.none = steps + 1
        self.first = torch.tensor(self.none, device=device)

    def see(self, loss: Tensor, step: int) -> None:
        """Looks at the loss of a step, counted from one, without waiting for it."""
        self.first = torch.where(loss.isfinite(), self.first, self.first.clamp_max(step))

    def found(self) -> int | None:
        """Waits for what was seen: the first bad step, if there was one."""
        first = int(self.first)
        return None if first == self.none else first


@dataclass
class _Training:
    """The loop itself: AdamW on the prediction error of the schedule's images."""

    base: Base
    method: Trained
    sets: Sequence[TrainingSet]
    schedule: Sequence[Sequence[Row]]
    params: TrainParams
    provenance: Provenance
    noise: str
    checkpoints: Sequence[int]
    optimizer: torch.optim.Optimizer
    masters: Masters
    penalty: Callable[[Batch], Tensor | None]

    def steps(self, state: State | None) -> Iterator[int]:
        """Trains.

        Yields:
            How many steps have been made: 0, 1 and so on, or from where a state goes on.

        Raises:
            FailureError: the loss is not finite.
        """
        steps, device = len(self.schedule), self.base.device
        gpu = device.type == "cuda"
        encode = Encoder(self.base, self.sets, self.schedule, PICTURES_AT_ONCE if gpu else 1)
        start = state.resume(self.optimizer, encode) if state else 0
        self.masters.round()
        yield start
        fixed = self._fixed()
        watch, look = _Watch(device, steps), LOOKS[device.type]

        def prepared(step: int) -> _Prepared:
            seed = seed_of(self.provenance.seed, self.noise, "step", step)
            generator = torch.Generator().manual_seed(seed)
            draws = draw(self.base, len(self.schedule[step]), generator)
            return _Prepared(encode.rendered(step), draws)

        ready = made_ahead(prepared, range(start, steps), THREADS if gpu else 0)
        name = f"training {self.provenance.method}"
        progress = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=1)
        for step, (rendered, draws) in enumerate(ready, start):
            loss = self._backward(step, encode(step, rendered), draws, fixed)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.masters.round()
            done = step + 1
            watch.see(loss, done)
            if done % look == 0 or done == steps or done in self.checkpoints:
                if bad := watch.found():
                    progress.close()
                    raise _diverged("the loss", bad, steps, self.provenance)
                progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
                if state:
                    state.keep(done, steps, self.optimizer, encode)
            progress.update()
            yield done

    def _fixed(self) -> dict[str, Condition]:
        """Captions that no training can change, encoded once."""
        captions = list(
            dict.fromkeys(
                row.caption
                for rows in self.schedule
                for row in rows
                if not (row.picture.target and self.method.train_token)
            )
        )
        fixed: dict[str, Condition] = {}
        with torch.no_grad():
            for start in range(0, len(captions), 64):
                part = captions[start : start + 64]
                fixed.update(zip(part, self.base.condition(part).split()))
        return fixed

    def _backward(
        self, step: int, latents: Latents, draws: Draws, fixed: Mapping[str, Condition]
    ) -> Tensor:
        """Adds a step's gradients; its loss, a scalar without one."""
        rows = self.schedule[step]
        everything, mask = noised(self.base, latents, draws), latents.mask
        size = self.params.micro_batch_size or len(rows)
        total: Tensor | None = None
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            noisy, timesteps, target = (whole[part] for whole in everything)
            condition = self._condition(rows[part], fixed)
            predicted = self.base.predict(noisy, timesteps, condition)
            losses = loss_of_rows(predicted - target, mask[part], self.method.masked_loss)
            # The mean over each concept's images, summed over concepts.
            loss = losses.sum() * len(self.sets) / len(rows)
            more = self.penalty(
                Batch(step, noisy, timesteps, condition, predicted, target, mask[part])
            )
            loss = loss if more is None else loss + more
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _condition(self, rows: Sequence[Row], fixed: Mapping[str, Condition]) -> Condition:
        """What the captions of these rows tell the model; each is encoded once."""
        learned = list(dict.fromkeys(r.caption for r in rows if r.caption not in fixed))
        with self.base.autocast():
            new = self.base.condition(learned).split() if learned else []
        known = {**fixed, **dict(zip(learned, new))}
        return Condition.joined([known[row.caption] for row in rows])
