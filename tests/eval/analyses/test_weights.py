from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eval.analyses.weights.stage import analyse_weights, by_group, group_of, relative_changes
from pipeline.common.errors import BenchError
from pipeline.models.adapter import LowRank
from pipeline.models.base import Base
from tests.eval.analyses.conftest import Adapt, Configure

BLOCK = "up_blocks.1.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (f"{BLOCK}.attn2.to_k.weight", "cross-attention"),
        (f"{BLOCK}.attn2.to_out.0.bias", "cross-attention"),
        (f"{BLOCK}.attn1.to_q.weight", "self-attention"),
        (f"{BLOCK}.ff.net.2.weight", "other"),
        (f"{BLOCK}.norm2.weight", "other"),
        ("conv_in.weight", "other"),
    ],
)
def test_groups_are_known_by_names(name: str, group: str) -> None:
    assert group_of(name) == group


def test_changes_are_norms_over_norms() -> None:
    rng = np.random.default_rng(0)
    weight, change, up, down = (rng.normal(size=s) for s in ((4, 3, 2), (4, 3, 2), (4, 1), (1, 5)))
    low = rng.normal(size=(4, 5))
    found = relative_changes(
        {"a": torch.tensor(weight), "b": torch.tensor(low), "zero": torch.zeros(3)},
        {
            "a": torch.tensor(change),
            "b": LowRank(torch.tensor(up), torch.tensor(down)),
            "zero": torch.ones(3),
        },
    )
    assert found == pytest.approx(
        {
            "a": np.sqrt((change**2).sum() / (weight**2).sum()),
            "b": np.sqrt(((up @ down) ** 2).sum() / (low**2).sum()),
        }
    )


def test_groups_have_three_means() -> None:
    tensors = pd.DataFrame(
        {
            "method": "m",
            "subject": "s",
            "group": ["x", "x", "x", "y"],
            "change": [1.0, 2.0, 6.0, 5.0],
            "parameters": [10, 20, 70, 1],
        }
    )
    x, y = by_group(tensors).to_dict("records")
    assert (x["tensors"], x["mean"], x["median"]) == (3, 3, 2)
    assert x["weighted_mean"] == pytest.approx((10 + 40 + 420) / 100)
    assert y["mean"] == y["median"] == y["weighted_mean"] == 5


def test_stage(configure: Configure, base: Base, adapt: Adapt) -> None:
    configure(weights={"methods": ["dreambooth"]})
    for concept in ("cat", "chair"):
        adapt("dreambooth", concept, whole=True)
    folder = analyse_weights()
    assert folder == Path("reports/analyses/weights")
    assert (folder / "weights.png").is_file()
    tensors, groups = (pd.read_csv(folder / f"{name}.csv") for name in ("tensors", "groups"))
    assert len(groups) == 2 * 3
    nonzero = sum(bool(weight.any()) for weight in base.unet.parameters())
    assert len(tensors) == 2 * nonzero
    # A change of 0.5 in every number.
    weight = dict(base.unet.named_parameters())["conv_in.weight"]
    (change,) = tensors.query("tensor == 'conv_in.weight' and subject == 'cat'")["change"]
    assert change == pytest.approx(0.5 * weight.numel() ** 0.5 / float(weight.norm()), rel=0.1)


def test_missing_adapters_are_told(configure: Configure, base: Base) -> None:
    configure(weights={"methods": ["dreambooth"]})
    with pytest.raises(BenchError, match=r"dreambooth/cat/adapter\.safetensors"):
        analyse_weights()
