from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from eval.analyses.spectra.stage import analyse_spectra, kind_of, normalised
from pipeline.common.errors import BenchError
from tests.eval.analyses.conftest import Adapt, Configure


def test_values_are_over_the_largest_and_the_sum() -> None:
    values = np.array([5.0, 3.0, 1.5, 0.5])
    relative, cumulative = normalised(torch.tensor(values))
    assert relative.numpy() == pytest.approx(values / 5)
    assert cumulative.numpy() == pytest.approx([0.5, 0.8, 0.95, 1])


def test_no_change_has_no_spectrum() -> None:
    relative, cumulative = normalised(torch.zeros(3))
    assert not relative.any()
    assert not cumulative.any()


def test_kinds_are_known_by_names() -> None:
    names = ("a.attn2.to_k.weight", "a.attn2.to_v.weight", "a.attn2.to_q.weight")
    assert [kind_of(name) for name in names] == ["keys", "values", "other"]


def test_stage(configure: Configure, adapt: Adapt) -> None:
    configure(spectra={"concepts": ["cat", "chair"]})
    adapter = adapt("custom_diffusion", "cat")
    adapt("custom_diffusion", "chair")
    folder = analyse_spectra()
    table = pd.read_csv(folder / "spectra.csv")
    assert set(table["matrix"]) == set(adapter.deltas)
    name = next(iter(adapter.deltas))
    part = table[(table["matrix"] == name) & (table["subject"] == "cat")]
    expected = np.linalg.svd(adapter.deltas[name].double().numpy(), compute_uv=False)
    assert part["value"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert list(part["rank"]) == list(range(1, len(expected) + 1))
    assert (folder / "spectra.png").is_file()


def test_adapters_without_matrices_are_told(configure: Configure, adapt: Adapt) -> None:
    configure(spectra={"concepts": ["cat"], "method": "pretrained"})
    adapt("pretrained", "cat", size=0)
    with pytest.raises(BenchError, match="changes no matrix"):
        analyse_spectra()
