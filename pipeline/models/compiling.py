"""Compiling the UNet where a run is long enough to pay for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.models.base import Base

# How often a UNet has to run. An estimate, not measured: compiling the one block that repeats takes
# some ten seconds, and saves some ten milliseconds of a pass of v1-4 at 512 pixels.
COMPILED_FROM = 1000
OPTIONS: dict[str, Any] = {}  # of torch.compile


def pays(device: torch.device, runs: int) -> bool:
    """Whether compiling pays for a UNet that runs so often. On a CPU it never has."""
    return device.type == "cuda" and runs >= COMPILED_FROM


@contextmanager
def compiled(base: Base, runs: int) -> Iterator[None]:
    """In it, the blocks of which the UNet has many are compiled, if that pays.

    They are compiled one by one (regional compilation), so that hooks around them go on as they do,
    and as they are equal, the compiler works once for each size. What it cannot compile runs as it
    is.

    Args:
        base: has the UNet.
        runs: how often it is going to run.
    """
    if not pays(base.device, runs):
        yield
        return
    from torch._dynamo import config  # takes seconds to import

    with config.patch(suppress_errors=True):
        base.unet.compile_repeated_blocks(**OPTIONS)
        base.compiled = True
        try:
            yield
        finally:
            base.compiled = False
            for module in base.unet.modules():
                module._compiled_call_impl = None
