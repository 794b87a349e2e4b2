"""Elastic weight consolidation (Kirkpatrick et al., 2017) of sequential Custom Diffusion.

What hangs on a weight is its Fisher information, summed over the concepts learned before; a weight
is drawn back to where the task before left it (the online form: one sum, however many tasks).

`strength` is in units of the first task's mean Fisher information, as the masked loss is a multiple
of a mean; `raw_strength` in the adapter's notes is the formula's lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.common.errors import BenchError
from pipeline.methods import Chained, Context, Method, Needs, Trained
from pipeline.methods.custom_diffusion import TRAINED
from pipeline.methods.penalties import Quadratic, mean_of

if TYPE_CHECKING:
    from pipeline.models.adapter import Adapter


class Elastic(Chained):
    """A task that keeps the Fisher information of all concepts so far for the next."""

    def needs(self, concepts: Sequence[str]) -> Needs:
        """Also the images of the first concept, to find out what hangs on what."""
        found = super().needs(concepts)
        return replace(
            found, shards=(concepts[-1],), hyper=(*found.hyper, "strength", "fisher_rows")
        )

    def make(self, context: Context) -> Adapter:
        """As the chain, with what the next task needs."""
        made, before = super().make(context), context.previous
        found = context.fisher(self.how, made, int(context.number("fisher_rows")))
        first = before.provenance.notes["fisher_mean"] if before else mean_of(found)
        notes = {"fisher_mean": first, "raw_strength": context.number("strength") / first}
        kept = {n: part + before.kept[n] if before else part for n, part in found.items()}
        return replace(made, kept=kept, provenance=replace(made.provenance, notes=notes))

    def guarded(self, context: Context, before: Adapter) -> Trained:
        """The loss with the penalty."""
        names = self.how.weights(context.base.unet)
        bad = [n for n in names if n not in before.kept or bool((before.kept[n] < 0).any())]
        if bad or "fisher_mean" not in before.provenance.notes:
            raise BenchError(
                f"{before.provenance.method} on {before.provenance.subject}: its adapter lacks "
                "the Fisher information, or some is negative: delete it and train it again"
            )
        raw = context.number("strength") / before.provenance.notes["fisher_mean"]
        return replace(
            self.how, penalty=Quadratic({name: raw * before.kept[name] for name in names})
        )


METHOD = Method(single=None, composition=None, sequence=Elastic(of="custom_diffusion", how=TRAINED))
