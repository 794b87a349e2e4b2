"""How much what was learned hangs on each weight: the diagonal of the empirical Fisher."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError
from pipeline.common.seeds import seed_of
from pipeline.methods import Trained, TrainingSet
from pipeline.models.adapter import Adapter, applied
from pipeline.models.base import Base
from pipeline.models.crossattn import detached_start_token
from pipeline.train.augment import draw_view
from pipeline.train.encoder import Encoder, Picture, Row
from pipeline.train.loop import Noised, draw, loss_of_rows, noised


def fisher(
    base: Base, how: Trained, part: TrainingSet, adapter: Adapter, rows: int, seed: int
) -> dict[str, Tensor]:
    """See `pipeline.methods.Context.fisher`; `part` is of the adapter's last concept.

    A row's draws depend on the seed, the concept and its number alone. In float32: in fewer bits
    the squares would be lost.
    """
    names = how.weights(base.unet)
    total = {name: torch.zeros(0) for name in names}
    drawn = [_drawn(base, how, part, adapter, number, seed) for number in range(rows)]
    with ExitStack() as stack:
        stack.enter_context(base.precise())
        stack.enter_context(applied(base, adapter))
        if how.detach_start_token:
            stack.enter_context(detached_start_token(base.unet))
        weights = [base.unet.get_parameter(name).requires_grad_(True) for name in names]
        stack.callback(base.unet.requires_grad_, False)
        for i, target in enumerate(drawn):
            gradients = torch.autograd.grad(_loss(base, how, target), weights)
            for name, gradient in zip(names, gradients):
                square = gradient.pow(2)
                total[name] = total[name] + square if i else square
    found = {name: (square / rows).cpu() for name, square in total.items()}
    who = f"{adapter.provenance.method} on {adapter.provenance.subject}"
    if not all(bool(square.isfinite().all()) for square in found.values()):
        raise FailureError(DIVERGED, f"{who}: the Fisher information is not finite")
    if not any(bool(square.any()) for square in found.values()):
        raise BenchError(
            f"{who}: the Fisher information of all weights is zero, so that nothing would be "
            "guarded: does the method train weights that the images reach?"
        )
    return found


class _Target(NamedTuple):
    """A target as the UNet sees it."""

    caption: str
    noised: Noised
    mask: Tensor


def _drawn(
    base: Base, how: Trained, part: TrainingSet, adapter: Adapter, number: int, seed: int
) -> _Target:
    """A target with a view, noise and a timestep of its own."""
    own = seed_of(seed, part.concept.name, "fisher", number)
    view, prefix = draw_view(
        np.random.default_rng(own), len(part.targets), base.resolution, how.resize
    )
    reference = adapter.provenance.references[-1]
    row = Row(Picture(0, view, True), prefix + part.concept.caption.format(reference))
    encode = Encoder(base, [part], [[row]])
    latents = encode(0, encode.rendered(0))
    draws = draw(base, 1, torch.Generator().manual_seed(own))
    return _Target(row.caption, noised(base, latents, draws), latents.mask)


def _loss(base: Base, how: Trained, target: _Target) -> Tensor:
    """Its training loss."""
    noisy, timesteps, wanted = target.noised
    with torch.no_grad():
        condition = base.condition([target.caption])
    error = base.predict(noisy, timesteps, condition) - wanted
    return loss_of_rows(error, target.mask, how.masked_loss).sum()
