"""Terms of the loss that guard what was learned before; functions of a `Step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.methods.method import Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """Draws each weight back to where the training began: half the sum of `stiffness` * change^2.

    Elastic weight consolidation (Kirkpatrick et al., 2017) has the Fisher information of what was
    learned before for the stiffness; C-LoRA (Smith et al., 2023) the squared change, twice.
    """

    stiffness: Mapping[str, Tensor]  # by a weight's name, of its shape, none negative

    def __call__(self, step: Step) -> Tensor:
        """The term, a scalar."""
        import torch  # tables ask methods, and need no torch

        from pipeline.models.adapter import dense

        terms = [
            (self.stiffness[name].to(change) * change.pow(2)).sum()
            for name, change in ((name, dense(delta)) for name, delta in step.changes.items())
        ]
        return 0.5 * torch.stack(terms).sum()


def mean_of(parts: Mapping[str, Tensor]) -> float:
    """The mean over all numbers of all tensors, in double precision."""
    count = sum(part.numel() for part in parts.values())
    return sum(float(part.double().sum()) for part in parts.values()) / count


@dataclass(frozen=True)
class Consolidation:
    """CIDM's term on the factors `up` of a new change, given those of the concepts before.

    As released: the mean modulus of `up` times each earlier one transposed, an [out, out] matrix.
    Only an `up` of zeros makes that zero, so the released code draws `up` to ones as well, which
    the paper does not say. Orthogonal: what the paper's text means, the mean square of the
    [rank, rank] products.
    """

    earlier: Sequence[Mapping[str, Tensor]]  # of each concept, `up` [out, rank] by a weight's name
    orthogonal: bool
    strength: float

    def __call__(self, step: Step) -> Tensor:
        """The term, a scalar: a mean over concepts and weights."""
        import torch

        from pipeline.models.adapter import LowRank

        terms, ones = [], []
        for name, change in step.changes.items():
            assert isinstance(change, LowRank)
            new = change.up
            for ups in self.earlier:  # one at a time, as the product of large matrices is larger
                old = ups[name].to(new)
                if self.orthogonal:
                    terms.append((old.T @ new).pow(2).mean())
                else:
                    terms.append((new @ old.T).abs().mean())
            ones.append((new - 1).pow(2).mean())
        found = torch.stack(terms).mean()
        if not self.orthogonal:
            found = found + torch.stack(ones).mean()
        return self.strength * found
