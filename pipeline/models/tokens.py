"""Modifier tokens: embedding rows beside the frozen table, not in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModifierEmbedding(nn.Module):
    """A frozen embedding table with a few rows of its own for modifier tokens.

    Only `rows` can train. So an optimizer neither moves nor decays the table, and there is no
    gradient the size of the vocabulary (the official code masks one instead).
    """

    def __init__(self, table: nn.Embedding, ids: Sequence[int], rows: Tensor) -> None:
        """`rows` [n, d] are the embeddings of the token ids `ids`, which lie behind the table."""
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.detach().clone().float(), requires_grad=False)
        self.first = min(ids)
        if sorted(ids) != list(range(self.first, self.first + len(ids))):
            raise ValueError(f"modifier tokens need consecutive ids, got {list(ids)}")

    @property
    def weight(self) -> Tensor:
        """The table's weight, which transformers asks for its dtype."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., d] of token ids [...]."""
        index = ids - self.first
        ours = (index >= 0)[..., None]
        frozen = self.table(torch.where(index >= 0, 0, ids))
        return torch.where(ours, F.embedding(index.clamp(min=0), self.rows), frozen)
