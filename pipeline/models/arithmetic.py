"""In which arithmetic models run: bfloat16 where the hardware has it, float32 elsewhere.

Gradients' sums, what trains and everything outside of the models are float32. On a CPU all weights
are, and autocast rounds what goes into convolutions and matrix products; on a GPU frozen weights
are stored in bfloat16, and nothing is cast between layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def arithmetic(device: torch.device) -> torch.dtype:
    """What models compute with fastest there: bfloat16, or float32 where that is emulated."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


class _AttentionInFloat32(TorchFunctionMode):
    """Keeps attention out of the CPU's autocast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(arg.float() for arg in args), **(kwargs or {}))


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16, if that is the dtype.

    On a CPU attention stays in float32, as its backward pass in bfloat16 is slow.
    """
    if dtype is torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype), attention_for(dtype, torch.float32, device):
        yield


def attention_for(
    dtype: torch.dtype, stored: torch.dtype, device: torch.device
) -> AbstractContextManager[object]:
    """In it, attention runs as `computing_in` has it, for weights that are stored so."""
    cast = dtype is not torch.float32 and stored is torch.float32
    return _AttentionInFloat32() if cast and device.type == "cpu" else nullcontext()


@contextmanager
def full_float32() -> Iterator[None]:
    """In it, a GPU multiplies float32 as such, and not as TensorFloat-32 of ten bits."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    was = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        yield
    finally:
        for flag, value in zip(flags, was):
            flag.allow_tf32 = value
