"""The loop that trains each of Toyland's models: AdamW, a cosine, an average of the weights."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

SAVE_EVERY = 500


def autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where the hardware is faster with it than without."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def fit(
    net: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    label: str,
    weight_decay: float = 0.01,
    warmup: int = 200,
    average: float = 0.999,
    monitor: Callable[[int], str] | None = None,
) -> nn.Module:
    """Minimises `loss(step)` over the parameters of `net` and leaves their average in it.

    `loss` has to draw its batch from `step` alone. Then a run that is stopped and started again
    from its checkpoint is the run that was never stopped.

    Args:
        average: decay of the exponential moving average, slower than 1 - 10 / step never.
        monitor: called now and then; its words go to the progress bar.
    """
    optimizer = torch.optim.AdamW(
        net.parameters(), learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["average"].items():
            state[name].copy_(value)
        first = saved["step"]

    floating = [value for value in net.state_dict().values() if value.is_floating_point()]
    averaged = [value for value in state.values() if value.is_floating_point()]
    progress = tqdm(range(first, steps), label, initial=first, total=steps, mininterval=5)
    for step in progress:
        fraction = min(1.0, step / steps)
        rate = (
            learning_rate * min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * fraction)) / 2
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        decay = min(average, 1 - 10 / (step + 10))
        for name, current in net.state_dict().items():
            if not current.is_floating_point():
                state[name].copy_(current)
        torch._foreach_lerp_(averaged, floating, 1 - decay)
        if step % 50 == 0:
            progress.set_postfix_str(f"loss {value.item():.4f}", refresh=False)
        done = step + 1
        if done % SAVE_EVERY == 0 or done == steps:
            if monitor:
                raw = {name: value.detach().clone() for name, value in net.state_dict().items()}
                net.load_state_dict(state)
                tqdm.write(f"{label} step {done}: {monitor(done)}")
                net.load_state_dict(raw)
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "net": net.state_dict(),
                    "average": state,
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                },
                part,
            )
            os.replace(part, checkpoint)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)
