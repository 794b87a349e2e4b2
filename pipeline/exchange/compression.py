"""Smaller adapters: each change of a matrix cut to the directions that carry most of it.

Custom Diffusion, section 3.1 and appendix C: the change of a fine-tuned matrix has few large
singular values, and keeping these makes the file several times smaller at the same quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.models.adapter import Adapter, Delta, LowRank, load_adapter, save_adapter


def compress(adapter: Adapter, share: float) -> Adapter:
    """Keeps a share of each matrix change, counted in singular values (paper, appendix C).

    A change U S V^T keeps its largest rank whose singular values, not squared, add up to at most
    `share` of the sum of all. So the vector that would cross the share is left out, and where the
    first one does, nothing is left. Tokens and what is not a matrix are kept in full.

    Args:
        share: 0 keeps no change of a matrix, 1 gives back the adapter as it is.

    Raises:
        BenchError: `share` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise BenchError(f"share: {share} is not between 0 and 1")
    if share == 1:
        return adapter  # all of them would be as large or larger, and rounded

    def rank_of(_name: str, values: Tensor) -> int:
        kept = values.cumsum(0) <= share * values.sum()
        return int((kept & (values > 0)).sum())

    return _truncated(adapter, rank_of, {"compressed_share": share})


def to_rank(adapter: Adapter, rank: int) -> Adapter:
    """Cuts each matrix change to one rank: the nearest such matrix in the Frobenius norm.

    Args:
        rank: 0 keeps no change of a matrix.

    Raises:
        BenchError: `rank` is negative, or larger than the smaller side of a matrix.
    """
    if rank < 0:
        raise BenchError(f"rank: {rank} is negative")

    def rank_of(name: str, values: Tensor) -> int:
        if rank > len(values):
            raise BenchError(
                f"rank: {rank} is more than {name} can have, whose smaller side is {len(values)}"
            )
        return rank

    return _truncated(adapter, rank_of, {"compressed_rank": float(rank)})


def spectra(adapter: Adapter) -> dict[str, Tensor]:
    """The singular values of each matrix change, float64 [min(out, in)], descending (Fig. 14)."""
    return {
        name: torch.linalg.svdvals(matrix)
        for name, delta in adapter.deltas.items()
        if (matrix := _matrix(delta)) is not None
    }


def compress_file(
    source: str | Path,
    target: str | Path,
    *,
    share: float | None = None,
    rank: int | None = None,
) -> None:
    """Writes a smaller copy of an adapter's file, by share or by rank, and prints both sizes.

    Raises:
        BenchError: not exactly one of `share` and `rank` is given, or one is out of range.
    """
    if (share is None) == (rank is None):
        raise BenchError("give either a share or a rank to compress to")
    adapter = load_adapter(source)
    small = compress(adapter, share) if share is not None else to_rank(adapter, rank or 0)
    save_adapter(small, target)
    before, after = (Path(path).stat().st_size / 1e6 for path in (source, target))
    print(f"compress: {before:.3f} MB -> {after:.3f} MB -> {target}")


def _matrix(delta: Delta) -> Tensor | None:
    """The change as a float64 matrix [out, in], or None if it has not two dimensions."""
    if isinstance(delta, LowRank):
        return delta.up.double() @ delta.down.double()
    return delta.double() if delta.ndim == 2 else None


def _truncated(
    adapter: Adapter, rank_of: Callable[[str, Tensor], int], notes: dict[str, float]
) -> Adapter:
    deltas: dict[str, Delta] = {}
    for name, delta in adapter.deltas.items():
        matrix = _matrix(delta)
        if matrix is None:
            deltas[name] = delta
            continue
        u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
        rank = rank_of(name, values)
        if rank:
            up = u[:, :rank] * values[:rank]
            deltas[name] = LowRank(up.float().contiguous(), vt[:rank].float().contiguous())
    made = replace(adapter.provenance, notes=adapter.provenance.notes | notes)
    return Adapter(adapter.tokens, deltas, made)
