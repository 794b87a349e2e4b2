"""The loop that trains each of Toyland's models: AdamW, a cosine, an average of the weights."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.models.arithmetic import arithmetic, computing_in
from pipeline.toyland.pretrain.ranks import agreed, average_gradients, rank, spread

SAVE_EVERY = 500


def autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where the hardware is faster with it than without."""
    return torch.autocast(device.type, torch.bfloat16, enabled=arithmetic(device) != torch.float32)


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """`autocast`, but on a CPU with attention in float32, whose bfloat16 backward pass is slow."""
    return computing_in(arithmetic(device), device)


def draws(seed: int, step: int, device: torch.device) -> torch.Generator:
    """What a step draws its randomness from: depends on the seed and the step alone."""
    state = np.random.SeedSequence([seed, step]).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def replay(module: nn.Module, *sample: Tensor) -> None:
    """Has a module on a GPU run from CUDA graphs of its forward and backward pass from now on.

    Launching the kernels of so small a model takes longer than they do. A module that cannot be
    captured stays as it is.

    Args:
        sample: arguments of the shapes and types that all later ones have.
    """
    if sample[0].device.type != "cuda":
        return
    try:
        torch.cuda.make_graphed_callables(module, sample, allow_unused_input=True)
    except RuntimeError as error:
        print(f"pretrain: without CUDA graphs: {' '.join(str(error).split())[:160]}")


def fit(
    net: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    learning_rate: float,
    checkpoint: Path | None,
    label: str,
    groups: Sequence[dict[str, Any]] = (),
    weight_decay: float = 0.01,
    warmup: int = 200,
    constant: float = 0.0,
    average: float = 0.999,
    monitor: Callable[[int], str] | None = None,
) -> nn.Module:
    """Minimises `loss(step)` over the parameters of `net` and leaves their average in it.

    `loss` has to draw its batch from `step` alone. Then a run that is stopped and started again
    from its checkpoint is the run that was never stopped. Of several processes (see `ranks`) each
    has the loss of its share of the batch.

    Args:
        steps: how long it lasts; or else
        seconds: how long it lasts by the clock. Such a run cannot be repeated exactly.
        checkpoint: where to continue from, and where to write to now and then.
        groups: parameters of `net` with settings of their own, as AdamW takes them; by default
            all of them with those below.
        constant: the share of the training before the cosine that takes the learning rate to 0.
        average: decay of the exponential moving average, slower than 1 - 10 / step never.
        monitor: called now and then; its words go to the progress bar.
    """
    optimizer = torch.optim.AdamW(
        list(groups) or net.parameters(),
        learning_rate,
        weight_decay=weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    first = 0
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["average"].items():
            state[name].copy_(value)
        first = saved["step"]
    spread(*net.state_dict().values(), *state.values())

    parameters = list(net.parameters())
    current = net.state_dict()
    floating = [name for name, value in current.items() if value.is_floating_point()]
    fixed = [name for name in current if name not in floating]
    values, averaged = [current[name] for name in floating], [state[name] for name in floating]
    progress = tqdm(None, label, initial=first, total=steps, mininterval=5, disable=rank() > 0)
    started = time.perf_counter()
    for step in itertools.count(first):
        done = (time.perf_counter() - started) / seconds if seconds else step / (steps or 1)
        fraction = agreed(done)
        if fraction >= 1:
            break
        falling = max(0.0, fraction - constant) / (1 - constant)
        rate = min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * falling)) / 2
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * rate
        value = loss(step)
        value.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        decay = min(average, 1 - 10 / (step + 10))
        for name in fixed:
            state[name].copy_(current[name])
        torch._foreach_lerp_(averaged, values, 1 - decay)
        progress.update()
        if step % 50 == 0:
            progress.set_postfix_str(f"loss {value.item():.4f}", refresh=False)
        if ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps) and rank() == 0:
            if monitor:
                raw = {name: value.detach().clone() for name, value in net.state_dict().items()}
                net.load_state_dict(state)
                tqdm.write(f"{label} step {step + 1}: {monitor(step + 1)}")
                net.load_state_dict(raw)
            if checkpoint:
                _save(checkpoint, net, state, optimizer, step + 1)
    progress.close()
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def _save(
    checkpoint: Path,
    net: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    torch.save(
        {
            "net": net.state_dict(),
            "average": average,
            "optimizer": optimizer.state_dict(),
            "step": step,
        },
        part,
    )
    os.replace(part, checkpoint)
