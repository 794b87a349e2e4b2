"""Answers of methods that keep the adapters of all concepts, and mix them when they sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pipeline.methods.answers import Trained
from pipeline.methods.method import Context, How, Needs, Session, Step

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.adapter import Adapter, Delta
    from pipeline.models.base import Base

# As CIDM's released code weighs adapters, and as its paper's equation 3 does; for comparison, all
# alike with the same sum as the former, and the adapter of the likest concept alone.
Mix = Literal["released", "paper", "equal", "one-hot", "mean of predictions"]


@dataclass(frozen=True)
class Bundled(How):
    """Another method's adapters of single concepts, side by side."""

    of: str
    mixed: Mix

    def needs(self, concepts: Sequence[str]) -> Needs:
        """The adapter of each concept."""
        return Needs(adapters=tuple((self.of, concept) for concept in concepts))

    def make(self, context: Context) -> Adapter:
        """The bundle."""
        return context.merge(context.parts, "bundle")

    def open(self, base: Base, adapter: Adapter) -> AbstractContextManager[Session]:
        """A session that mixes the parts."""
        from pipeline.models.bundle import Router, composed, routed  # imports diffusers

        if self.mixed == "mean of predictions":
            return composed(base, adapter)
        routers = {
            "released": Router(),
            "paper": Router("dot", "mean_max", 2.0, 2.0, 1.0),
            "equal": Router(power=0.0),
            "one-hot": Router(power=1e6, scale=1.0),
        }
        return routed(base, adapter, routers[self.mixed])


@dataclass(frozen=True)
class Consolidated(Bundled):
    """A task of a sequence: a further part, trained from the base with a look at those before.

    The first task's part is `of`'s adapter.
    """

    how: Trained
    # The terms of the loss: on the factors `up`, and of the subspace that all share.
    consolidation: Literal["released", "published", "orthogonal"] | None
    shares: bool = False

    def needs(self, concepts: Sequence[str]) -> Needs:
        """Of the first task, that adapter; then the concept's images and the bundle before."""
        if len(concepts) == 1:
            return super().needs(concepts)
        found = self.how.needs(concepts[-1:])
        own = (
            *(["consolidation"] if self.consolidation else []),
            *(["sharing", "shared_rank"] if self.shares else []),
        )
        return replace(found, previous=True, hyper=(*found.hyper, *own))

    def guarded(self, context: Context, parts: Sequence[Mapping[str, Delta]]) -> Trained:
        """How a further concept is trained, given the changes of those before."""
        from pipeline.methods.penalties import Consolidation, SharedSubspace, added, shared_rows
        from pipeline.models.adapter import LowRank

        changes = [{n: d for n, d in part.items() if isinstance(d, LowRank)} for part in parts]
        terms: list[Callable[[Step], Tensor]] = []
        if self.consolidation:
            ups = [{name: change.up for name, change in part.items()} for part in changes]
            terms.append(Consolidation(ups, self.consolidation, context.number("consolidation")))
        if self.shares:
            rows = int(context.number("shared_rank"))
            w = {name: shared_rows([part[name] for part in changes], rows) for name in changes[0]}
            terms.append(SharedSubspace(w, context.number("sharing")))
        return replace(self.how, penalty=added(*terms))

    def make(self, context: Context) -> Adapter:
        """The bundle with the new part."""
        from pipeline.models.adapter import Adapter
        from pipeline.models.bundle import unbundled

        before = context.previous
        if before is None:
            return super().make(context)
        parts = unbundled(before)
        place = len(parts)
        more = context.train(self.guarded(context, parts), context.sets, place)
        was, made = before.provenance, more.provenance
        return Adapter(
            before.tokens | more.tokens,
            before.deltas | {f"{place + 1}.{name}": d for name, d in more.deltas.items()},
            replace(
                made,
                references=was.references + made.references,
                initial_ids=was.initial_ids | made.initial_ids,
                steps=was.steps + made.steps,
            ),
        )
