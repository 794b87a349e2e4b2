"""Closed-form merge of fine-tuned K and V matrices (paper, section 3.2 and appendix B).

    minimise || W C_reg^T - W0 C_reg^T ||_F   subject to   W C^T = V

with the solution W = W0 + (V^T - W0 C^T) (D C^T)^-1 D, where D = C (C_reg^T C_reg)^-1.
The rows of C are the text features of the concepts' captions; V holds what each row's own
fine-tuned matrix makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Merged(NamedTuple):
    """A merged matrix [out, d] and how well it meets its constraint."""

    weight: Tensor
    residual: float  # || W C^T - V || / || V ||


@dataclass(frozen=True)
class Merger:
    """What all matrices of one merge share; the factorisation is done once.

    Made by `merger`. All in float64.
    """

    constraints: Tensor  # C: [s, d]
    directions: Tensor  # (D C^T)^-1 D: [s, d]
    condition: float  # condition number of the regularized C_reg^T C_reg

    def merge(self, pretrained: Tensor, values: Tensor) -> Merged:
        """The matrix nearest to `pretrained` [out, d] on C_reg that maps C to `values` [s, out]."""
        weight = pretrained.double()
        goal = values.double().T
        weight = weight + (goal - weight @ self.constraints.T) @ self.directions
        error = torch.linalg.norm(weight @ self.constraints.T - goal)
        return Merged(weight, float(error / torch.linalg.norm(goal)))


def merger(constraints: Tensor, regularization: Tensor, ridge: float) -> Merger:
    """Prepares a merge.

    Args:
        constraints: C [s, d], rows linearly independent.
        regularization: C_reg [n, d].
        ridge: added to the diagonal of C_reg^T C_reg, relative to its mean eigenvalue. Zero is
            the paper's formula; text features lie so near a hyperplane that rounding then
            decides the result. The constraint holds exactly with any ridge.
    """
    c, c_reg = constraints.double(), regularization.double()
    gram = c_reg.T @ c_reg
    gram += (
        ridge
        * gram.trace()
        / len(gram)
        * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    d = (
        torch.linalg.solve(gram, c.T).T
        if ridge == 0
        else torch.cholesky_solve(c.T, torch.linalg.cholesky(gram)).T
    )
    directions = torch.linalg.solve(d @ c.T, d)
    return Merger(c, directions, float(torch.linalg.cond(gram)))


def distinct_rows(features: Sequence[Tensor]) -> list[Tensor]:
    """For each set of rows [n_i, d], the indices of those that no earlier row repeats.

    Words before the first modifier token have equal features in all captions, because the text
    encoder is causal; a constraint may stand only once, and the first concept's counts.
    """
    seen: list[Tensor] = []
    kept: list[Tensor] = []
    for rows in features:
        indices = []
        for i, row in enumerate(rows):
            if not any(torch.allclose(row, other, rtol=1e-4, atol=1e-5) for other in seen):
                seen.append(row)
                indices.append(i)
        kept.append(torch.tensor(indices, dtype=torch.long))
    return kept
