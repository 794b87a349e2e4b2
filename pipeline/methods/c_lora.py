"""C-LoRA (Smith et al., 2023): a low-rank change of K and V for each concept, on top of their sum.

A new change keeps away from what the sum has changed: the penalty is the squared product of both,
element by element, which is that of elastic weight consolidation with twice the sum's square for
the Fisher information. `strength` is in units of the mean of that square. The concept's name is a
token that starts at random, without the class noun, and there are no regularization images.
Re-implemented: its hyper-parameters are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.methods import Chained, Context, Method, Needs, Trained
from pipeline.methods.custom_diffusion import TRAINED
from pipeline.methods.penalties import Quadratic, mean_of

if TYPE_CHECKING:
    from pipeline.models.adapter import Adapter


class SelfRegularized(Chained):
    """A task whose change is kept from what all before have changed."""

    def needs(self, concepts: Sequence[str]) -> Needs:
        """Also how strongly."""
        found = super().needs(concepts)
        return replace(found, hyper=(*found.hyper, *(["strength"] if len(concepts) > 1 else [])))

    def guarded(self, context: Context, before: Adapter) -> Trained:
        """The loss with the penalty."""
        from pipeline.models.adapter import dense

        squares = {name: dense(delta).pow(2) for name, delta in before.deltas.items()}
        raw = 2 * context.number("strength") / (mean_of(squares) or 1.0)
        return replace(
            self.how, penalty=Quadratic({name: raw * part for name, part in squares.items()})
        )


METHOD = Method(
    single=None,
    composition=None,
    sequence=SelfRegularized(
        of=None,
        how=replace(
            TRAINED, low_rank=True, token="normal", reference="{token}", regularization=None
        ),
    ),
)
