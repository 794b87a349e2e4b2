"""Terms of the loss that guard what was learned before; functions of a `Step`."""

from __future__ import annotations

from collections.abc import Mapping
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
