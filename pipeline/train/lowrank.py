"""LoRA (Hu et al., 2021): matrices that change by a product of two small factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.common.errors import BenchError
from pipeline.common.seeds import seed_of
from pipeline.models.adapter import LowRank


class _Change(nn.Module):
    """Maps a weight [out, in] to itself plus `up @ down`."""

    def __init__(self, factors: LowRank) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + self.factors.dense()).to(weight.dtype)


@contextmanager
def low_rank_changes(
    unet: nn.Module,
    names: Sequence[str],
    rank: int,
    seed: int,
    device: torch.device,
    basis: int | None = None,
) -> Iterator[dict[str, LowRank]]:
    """Gives the weights of those names trainable factors while it lasts; they start as no change.

    `down` starts normal with deviation 1 / rank and `up` at zero, as in peft with Gaussian
    initialisation and alpha = rank.

    Args:
        unet: whose weights change.
        names: of the weights.
        rank: of their changes.
        seed: of what is drawn.
        device: of the factors.
        basis: if given, the seed of an orthonormal basis for each matrix. Then `down` is some of
            its rows, which `seed` chooses, and does not train (Orthogonal Adaptation).

    Yields:
        The factors by name: up [out, rank] and down [rank, in], which require gradients.

    Raises:
        BenchError: the rank is none, or larger than a matrix has.
    """
    modules = dict(unet.named_modules())
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, LowRank] = {}
    for name in names:
        out, into = modules[name.removesuffix(".weight")].weight.shape
        if not 1 <= rank <= min(out, into):
            raise BenchError(
                f"params.yaml: methods: rank {rank} does not fit {name}, a matrix of "
                f"{out} x {into}: choose a rank from 1 to {min(out, into)}"
            )
        if basis is None:
            down = torch.randn((rank, into), generator=generator) / rank
        else:
            chosen = torch.randperm(into, generator=generator)[:rank]
            down = orthonormal_basis(into, seed_of(basis, name))[chosen]
        factors[name] = LowRank(
            torch.zeros((out, rank), device=device, requires_grad=True),
            down.to(device).requires_grad_(basis is None),
        )
    for name, part in factors.items():
        module = modules[name.removesuffix(".weight")]
        parametrize.register_parametrization(module, "weight", _Change(part))
    try:
        yield factors
    finally:
        for name in factors:
            module = modules[name.removesuffix(".weight")]
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def orthonormal_basis(size: int, seed: int) -> Tensor:
    """A random orthonormal basis, float32 [size, size], a vector a row."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((size, size), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float().contiguous()
