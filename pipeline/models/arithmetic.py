"""In which arithmetic models run: bfloat16 where the hardware has it, float32 elsewhere.

Weights, gradients' sums and everything outside of the models stay float32: autocast rounds what
goes into convolutions and matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    mode = nullcontext() if device.type == "cuda" else _AttentionInFloat32()
    with torch.autocast(device.type, dtype), mode:
        yield
