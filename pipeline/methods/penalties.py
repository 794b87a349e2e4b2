"""Terms of the loss that guard what was learned before; functions of a `Step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.methods.method import Step

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.adapter import LowRank


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

    As published: the mean modulus of `up` times each earlier one transposed, an [out, out] matrix.
    Only an `up` of zeros makes that zero, so the released code draws `up` to ones as well, which
    the paper does not say. Orthogonal: what the paper's text means, the mean square of the
    [rank, rank] products.
    """

    earlier: Sequence[Mapping[str, Tensor]]  # of each concept, `up` [out, rank] by a weight's name
    kind: Literal["released", "published", "orthogonal"]
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
                if self.kind == "orthogonal":
                    terms.append((old.T @ new).pow(2).mean())
                else:
                    terms.append((new @ old.T).abs().mean())
            ones.append((new - 1).pow(2).mean())
        found = torch.stack(terms).mean()
        if self.kind == "released":
            found = found + torch.stack(ones).mean()
        return self.strength * found


@dataclass(frozen=True)
class SharedSubspace:
    """CIDM's second term, of the paper alone: each concept's change is H_g W, with a W for all.

    The sum over weights of the squared distance of a change to what W can say. The paper takes a
    step on H_g and W after each one on the change; here H_g is the best one, in closed form, and W
    the best one for the changes before, which is not looked at again in the task: with all of them
    and this one to fit, a W of no fewer rows than their ranks together would fit any.
    """

    shared: Mapping[str, Tensor]  # W by a weight's name, orthonormal rows [k, in]
    strength: float

    def __call__(self, step: Step) -> Tensor:
        """The term, a scalar."""
        import torch

        from pipeline.models.adapter import LowRank

        terms = []
        for name, change in step.changes.items():
            assert isinstance(change, LowRank)
            w = self.shared[name].to(change.down)
            terms.append((change.up @ (change.down - change.down @ w.T @ w)).pow(2).sum())
        return self.strength * torch.stack(terms).sum()


def shared_rows(changes: Sequence[LowRank], rows: int) -> Tensor:
    """The W [k, in] for which the sum over changes of their squared distances to H_i W is least.

    Its rows are orthonormal, the first right singular vectors of the changes one above the other
    (Eckart and Young, 1936); fewer than `rows` if the changes have no more directions.
    """
    import torch

    # up = QR with orthonormal Q, so that R down has the singular values of up down, and few rows.
    small = [torch.linalg.qr(c.up.double()).R @ c.down.double() for c in changes]
    _, values, vectors = torch.linalg.svd(torch.cat(small), full_matrices=False)
    there = int((values > values[0] * 1e-6).sum()) if len(values) else 0
    return vectors[: min(rows, there)].float().contiguous()


def added(*terms: Callable[[Step], Tensor]) -> Callable[[Step], Tensor]:
    """Several terms as one."""
    return lambda step: sum((term(step) for term in terms[1:]), terms[0](step))
