from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.common.errors import BenchError
from pipeline.exchange.compression import compress, compress_file, spectra, to_rank
from pipeline.models.adapter import Adapter, LowRank, Provenance, load_adapter, save_adapter

PROVENANCE = Provenance("m", "s", "base", "hash", ("<new1> cat",), notes={"residual": 0.5})


def adapter_of(**deltas: torch.Tensor | LowRank) -> Adapter:
    return Adapter({"<new1>": torch.randn(6)}, dict(deltas), PROVENANCE)


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(0)
    # Spectra that decay, as those of trained changes do.
    return adapter_of(
        wide=torch.randn(12, 7) @ torch.diag(0.6 ** torch.arange(7.0)) @ torch.randn(7, 20),
        tall=torch.randn(20, 9) @ torch.diag(0.7 ** torch.arange(9.0)),
        low=LowRank(torch.randn(10, 3), torch.randn(3, 8)),
    )


def matrix_of(delta: torch.Tensor | LowRank) -> np.ndarray:
    if isinstance(delta, LowRank):
        return delta.up.numpy().astype(float) @ delta.down.numpy().astype(float)
    return delta.numpy().astype(float)


def kept_by_hand(matrix: np.ndarray, share: float) -> tuple[int, np.ndarray]:
    """The rule, one vector after the other."""
    u, values, vt = np.linalg.svd(matrix)
    rank, total, change = 0, 0.0, np.zeros_like(matrix)
    for i, value in enumerate(values):
        total += value
        if total > share * values.sum():
            break
        rank += 1
        change += value * np.outer(u[:, i], vt[i])
    return rank, change


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_share_keeps_what_the_rule_keeps(adapter, share):
    small = compress(adapter, share)
    for name, delta in adapter.deltas.items():
        rank, change = kept_by_hand(matrix_of(delta), share)
        if rank == 0:
            assert name not in small.deltas
            continue
        kept = small.deltas[name]
        assert isinstance(kept, LowRank) and kept.up.dtype == kept.down.dtype == torch.float32
        assert kept.up.shape == (change.shape[0], rank)
        assert kept.down.shape == (rank, change.shape[1])
        np.testing.assert_allclose(kept.dense().numpy(), change, atol=2e-6)
    assert small.tokens is adapter.tokens
    assert small.provenance.notes == {"residual": 0.5, "compressed_share": share}


def test_it_is_values_not_squares_and_the_crossing_vector_is_left_out():
    # Squares would keep one vector of 0.9 = 81 / 90 and rank would keep half of the vectors.
    values = torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 1]))
    assert "w" not in compress(adapter_of(w=values), 0.55).deltas
    assert compress(adapter_of(w=values), 0.57).deltas["w"].up.shape == (8, 1)
    # Exactly on the share is kept.
    assert compress(adapter_of(w=torch.diag(torch.tensor([3.0, 1.0]))), 0.75).deltas["w"].up[0, 0]


def test_ends_are_exact(adapter):
    assert compress(adapter, 1.0) is adapter
    assert compress(adapter, 0.0).deltas == {}
    assert compress(adapter_of(w=torch.zeros(4, 5)), 0.6).deltas == {}


def test_rank_is_the_nearest_matrix_of_that_rank(adapter):
    small = to_rank(adapter, 2)
    for name, delta in adapter.deltas.items():
        full, kept = matrix_of(delta), small.deltas[name]
        assert kept.down.shape[0] == 2
        # Eckart and Young: the distance is that of the values left out.
        left_out = np.linalg.svd(full, compute_uv=False)[2:]
        distance = np.linalg.norm(full - kept.dense().numpy())
        assert distance == pytest.approx(np.linalg.norm(left_out), rel=1e-5, abs=1e-5)
    assert to_rank(adapter, 0).deltas == {}


def test_what_is_no_matrix_is_kept(adapter):
    bias, conv = torch.randn(4), torch.randn(4, 3, 3, 3)
    both = adapter_of(bias=bias, conv=conv, matrix=torch.randn(4, 4))
    for small in (compress(both, 0.0), to_rank(both, 0)):
        assert small.deltas["bias"] is bias and small.deltas["conv"] is conv
        assert "matrix" not in small.deltas
    assert spectra(both).keys() == {"matrix"}


def test_spectra(adapter):
    for name, values in spectra(adapter).items():
        expected = np.linalg.svd(matrix_of(adapter.deltas[name]), compute_uv=False)
        assert values.dtype == torch.float64
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-12)


def test_compressed_file_reads_back(adapter, tmp_path, capsys):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_adapter(adapter, source)
    compress_file(source, target, share=0.6)
    assert "MB" in capsys.readouterr().out
    back, small = load_adapter(target), compress(adapter, 0.6)
    assert back.provenance == small.provenance and back.deltas.keys() == small.deltas.keys()
    assert all(torch.equal(back.deltas[n].up, small.deltas[n].up) for n in small.deltas)
    compress_file(source, target, rank=0)
    assert load_adapter(target).deltas == {}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_bad_share(adapter, share):
    with pytest.raises(BenchError, match="share: .* is not between 0 and 1"):
        compress(adapter, share)


def test_bad_rank(adapter, tmp_path):
    with pytest.raises(BenchError, match="rank: 9 is more than low can have, .* is 8"):
        to_rank(adapter, 9)
    with pytest.raises(BenchError, match="rank: -1 is negative"):
        to_rank(adapter, -1)
    with pytest.raises(BenchError, match="either a share or a rank"):
        compress_file(tmp_path / "a", tmp_path / "b")
