"""bfloat16: only where the hardware has it, and within its rounding of float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.arithmetic import arithmetic, computing_in
from pipeline.models.base import Base

CPU = torch.device("cpu")
# Of a number's size: half of the distance to the next one of 8 significant bits.
ROUNDING = 2.0**-9


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_needs_hardware(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert (arithmetic(CPU) == torch.bfloat16) == native
    assert arithmetic(torch.device("cuda")) == torch.bfloat16


def test_float32_is_left_alone() -> None:
    rows = torch.ones(1, 3)
    with computing_in(torch.float32, CPU):
        assert F.linear(rows, rows).dtype == torch.float32


def test_on_a_cpu_products_are_rounded_and_attention_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2, 5, 8, generator=generator) for _ in range(3))
    plain = F.scaled_dot_product_attention(query, key, value)
    with computing_in(torch.bfloat16, CPU):
        assert F.linear(query, key[0, 0]).dtype == torch.bfloat16
        assert torch.equal(F.scaled_dot_product_attention(query, key, value), plain)
        halves = (x.bfloat16() for x in (query, key, value))
        assert F.scaled_dot_product_attention(*halves).dtype == torch.float32


def test_a_base_takes_and_gives_float32_within_bfloat16s_rounding(base: Base) -> None:
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn((2, *base.latent_shape), generator=generator)
    images = torch.rand((2, 3, base.resolution, base.resolution), generator=generator) * 2 - 1
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        base.dtype = dtype
        with torch.no_grad():
            predicted = base.predict(noisy, 500, base.condition(["a cat", "a dog"]))
        results[dtype] = (predicted, *base.encode_images(images), base.decode_latents(noisy))
    base.dtype = torch.float32
    for exact, rounded in zip(results[torch.float32], results[torch.bfloat16]):
        assert exact.dtype == rounded.dtype == torch.float32
        difference = (exact - rounded).pow(2).mean().sqrt() / exact.std()
        # Roundings of some tens of layers add up like random numbers.
        assert 0 < difference < 20 * ROUNDING
