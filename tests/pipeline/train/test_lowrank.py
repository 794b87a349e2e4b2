from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.adapter import LowRank
from pipeline.train.lowrank import low_rank_changes

CPU = torch.device("cpu")


def net(into: int, out: int) -> nn.Module:
    """A network of two layers in float64, of which the second one is for LoRA."""
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(3, into), "b": nn.Linear(into, out)}).double()


@pytest.mark.parametrize("rank", [4, 32])
def test_factors_start_at_zero_and_normal_with_deviation_one_over_the_rank(rank: int) -> None:
    model = net(4000, 50)
    with low_rank_changes(model, ["b.weight"], rank, 7, CPU) as factors:
        (part,) = factors.values()
        assert part.up.shape == (50, rank) and part.down.shape == (rank, 4000)
        assert not part.up.any()
        down = part.down.detach().double().numpy() * rank
    n = down.size
    assert abs(down.mean()) < 4 / np.sqrt(n)
    assert abs(down.std() - 1) < 4 / np.sqrt(2 * n)
    # Normal: its fourth moment is three.
    assert abs((down**4).mean() - 3) < 4 * np.sqrt(96 / n)
    # No two rows are the same draw.
    assert np.abs(np.corrcoef(down) - np.eye(rank)).max() < 6 / np.sqrt(4000)


def test_outputs_and_gradients_are_those_written_by_hand() -> None:
    """y = x (W + up down)^T + b; of a loss with the gradient G at y, in float64 with numpy."""
    model, rng = net(6, 5), np.random.default_rng(0)
    layer = model["b"]
    x, g = rng.normal(size=(9, 6)), rng.normal(size=(9, 5))
    w, b = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy()
    with low_rank_changes(model, ["b.weight"], 2, 7, CPU) as factors:
        part = factors["b.weight"]
        with torch.no_grad():
            part.up.copy_(torch.tensor(rng.normal(size=(5, 2))))
        up, down = (t.detach().double().numpy() for t in (part.up, part.down))
        y = layer(torch.tensor(x))
        np.testing.assert_allclose(y.detach().numpy(), x @ (w + up @ down).T + b, atol=1e-6)
        (y * torch.tensor(g)).sum().backward()
        of_weight = g.T @ x
        assert part.up.grad is not None and part.down.grad is not None
        np.testing.assert_allclose(part.up.grad.numpy(), of_weight @ down.T, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(part.down.grad.numpy(), up.T @ of_weight, rtol=1e-5, atol=1e-6)
        change = LowRank(part.up, part.down).dense().detach().numpy()
        np.testing.assert_allclose(change, up @ down, rtol=1e-5, atol=1e-6)
    # Afterwards the layer is what it was.
    assert np.array_equal(layer.weight.detach().numpy(), w)
    names = {name for name, _ in model.named_parameters()}
    assert names == {"a.weight", "a.bias", "b.weight", "b.bias"}
