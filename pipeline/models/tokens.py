"""Modifier tokens: embedding rows beside the frozen table, not in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModifierEmbedding(nn.Module):
    """A frozen embedding table with a few rows beside it for modifier tokens.

    Only `rows` can train. So an optimizer neither moves nor decays the table, and there is no
    gradient the size of the vocabulary (the official code masks one instead).
    """

    ids: Tensor

    def __init__(
        self, table: nn.Embedding, ids: Sequence[int], rows: nn.Parameter, own: slice
    ) -> None:
        """`rows` are the embeddings of the token ids `ids`, in any order.

        They are [n, d], or [n, layers, d]: one for each layer of cross-attention, of which that of
        `layer` counts at a time. Of the d numbers this table's are those at `own`.
        """
        super().__init__()
        self.table = table
        self.layer = 0
        self.rows, self.own = rows, own
        self.register_buffer("ids", torch.tensor(ids, device=rows.device), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The table's weight, which transformers asks for its dtype."""
        return self.table.weight

    @property
    def layers(self) -> int:
        """Of how many layers there are rows; 0 if all have the same."""
        return self.rows.shape[1] if self.rows.ndim == 3 else 0

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., d] of token ids [...], for `layer`."""
        rows = (self.rows[:, self.layer] if self.layers else self.rows)[:, self.own]
        same = ids[..., None] == self.ids
        ours, place = same.any(-1), same.int().argmax(-1)
        frozen = self.table(torch.where(ours, 0, ids))
        return torch.where(ours[..., None], F.embedding(place, rows).to(frozen), frozen)


def natural_order(token: str) -> list[str | int]:
    """A key to sort tokens by: numbers in them count as such, so `<new10>` is after `<new2>`."""
    parts = re.split(r"([0-9]+)", token)  # every second one is a number
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
