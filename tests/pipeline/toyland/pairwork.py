"""A small training that two processes can share: a module that other processes can import."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.toyland.pretrain.fitting import fit
from pipeline.toyland.pretrain.ranks import agreed, rank, share


def train(seconds: float | None = None) -> tuple[dict[str, Tensor], int]:
    """The weights after some steps, and how many there were."""
    torch.manual_seed(rank())  # where training starts from, the first process decides
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    steps = 0

    def loss(step: int) -> Tensor:
        nonlocal steps
        steps += 1
        batch = share(torch.randn(8, 3, generator=torch.Generator().manual_seed(step)))
        return (net(batch) - batch.sum(1, keepdim=True)).pow(2).mean()

    fit(
        net,
        loss,
        steps=None if seconds else 12,
        seconds=seconds,
        learning_rate=0.05,
        checkpoint=None,
        label="",
        warmup=3,
    )
    return net.state_dict(), steps


def follow() -> None:
    """Trains twice; the second time by a clock that only the first process looks at."""
    train()
    _, steps = train(seconds=1e-9)
    assert agreed(-1.0) == steps
