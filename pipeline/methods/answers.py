"""The ready-made answers: what most methods are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.methods.method import Context, How, Needs, Rule, Step

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models.adapter import Adapter

TOKENS = "tokens"  # what the rows of modifier tokens are called beside the names of weights


def no_weights(_unet: nn.Module) -> list[str]:
    """No weight of the UNet."""
    return []


def all_weights(unet: nn.Module) -> list[str]:
    """Every weight of the UNet."""
    return [name for name, _ in unet.named_parameters()]


def same_rate(_name: str) -> float:
    """Everything trains at the method's learning rate."""
    return 1.0


@dataclass(frozen=True)
class Trained(How):
    """Fine-tuning: what trains, from where, on which captions, with which loss.

    Several concepts are trained jointly, each with its share of every batch.
    """

    weights: Callable[[nn.Module], list[str]]  # names of the UNet's weights that train
    low_rank: bool  # they change by a product of two factors of the parameter `rank`
    token: Literal["rare", "noun", "normal"]  # where modifier tokens start: see `first_rows`
    train_token: bool
    reference: str  # what stands for the concept in prompts: {token} and {noun}
    # Templates; {} is the reference. Empty, or if the concept is a style: the concept's own.
    captions: tuple[str, ...]
    regularization: Literal["retrieved", "generated"] | None  # of the class: half of each batch
    resize: bool  # targets are resized, and their captions say so
    masked_loss: bool  # sum over the mask's squares / size of the mask, else the plain mean
    detach_start_token: bool
    penalty: Callable[[Step], Tensor] | None = None  # a scalar, added to the loss of each step
    # Of what trains, by a weight's name or TOKENS: a factor of the parameter `learning_rate`.
    rate: Callable[[str], float] = same_rate

    def needs(self, concepts: Sequence[str]) -> Needs:
        """The concepts' images."""
        steps = "steps" if len(concepts) == 1 else "composition_steps"
        return Needs(
            shards=tuple(concepts),
            generated=tuple(concepts) if self.regularization == "generated" else (),
            hyper=("learning_rate", steps, *(["rank"] if self.low_rank else [])),
        )

    def make(self, context: Context) -> Adapter:
        """All concepts at once."""
        return context.train(self, context.sets)


@dataclass(frozen=True)
class Continued(How):
    """Fine-tuning of one concept after the other, the first being that of another method.

    Tokens of earlier concepts are in no caption then, so they are left out of the training.
    """

    of: str
    how: Trained

    def needs(self, concepts: Sequence[str]) -> Needs:
        """What the training needs, and the adapter of the first concept."""
        return replace(self.how.needs(concepts), adapters=((self.of, concepts[0]),))

    def make(self, context: Context) -> Adapter:
        """Each concept after the first on top of those before it."""
        from pipeline.models.adapter import Adapter, applied, dense  # imports diffusers

        adapter = context.parts[0]
        for place, part in enumerate(context.sets[1:], 1):
            before = adapter.provenance
            with applied(context.base, replace(adapter, tokens={})):
                more = context.train(self.how, [part], place)
            adapter = Adapter(
                adapter.tokens | more.tokens,
                {name: dense(d) + dense(adapter.deltas[name]) for name, d in more.deltas.items()},
                replace(
                    more.provenance,
                    references=before.references + more.provenance.references,
                    initial_ids=before.initial_ids | more.provenance.initial_ids,
                    steps=before.steps + more.provenance.steps,
                ),
            )
        return adapter


@dataclass(frozen=True)
class Merged(How):
    """Adapters of single concepts, made by another method or by this one, become one adapter."""

    of: str
    rule: Rule

    def needs(self, concepts: Sequence[str]) -> Needs:
        """The adapter of each concept."""
        return Needs(
            adapters=tuple((self.of, concept) for concept in concepts),
            index=self.rule == "constrained",
        )

    def make(self, context: Context) -> Adapter:
        """The merge."""
        return context.merge(context.parts, self.rule)


@dataclass(frozen=True)
class Untrained(How):
    """The base model as it is."""

    random: ClassVar[bool] = False

    def make(self, context: Context) -> Adapter:
        """An adapter that changes nothing."""
        from pipeline.models.adapter import Adapter  # imports diffusers

        return Adapter({}, {}, context.provenance)
