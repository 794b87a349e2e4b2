"""The ready-made answers: what most methods are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.methods.method import Context, How, Needs, Rule, Step, TrainingSet

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
    token: Literal[
        "rare", "noun", "normal", "pair"
    ]  # where modifier tokens start: see `first_rows`
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
    layered: bool = False  # each layer of cross-attention sees rows of its own
    # Of changes of low rank: `down` is a few rows of an orthonormal basis, and does not train.
    orthonormal: bool = False

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
        adapter = context.parts[0]
        for part in context.sets[1:]:
            adapter = one_more(context, self.how, part, adapter)
        return adapter


def one_more(context: Context, how: Trained, part: TrainingSet, before: Adapter) -> Adapter:
    """Trains a concept on top of what was learned before: the same weights go on.

    Their tokens stay as they are, as no caption has them.
    """
    from pipeline.models.adapter import Adapter, applied, dense  # imports diffusers

    was = before.provenance
    with applied(context.base, replace(before, tokens={})):
        more = context.train(how, [part], len(was.references))
    return Adapter(
        before.tokens | more.tokens,
        {name: dense(d) + dense(before.deltas[name]) for name, d in more.deltas.items()},
        replace(
            more.provenance,
            references=was.references + more.provenance.references,
            initial_ids=was.initial_ids | more.provenance.initial_ids,
            steps=was.steps + more.provenance.steps,
        ),
    )


@dataclass(frozen=True)
class Chained(How):
    """A task of a sequence: its concept is trained on top of the adapter of the task before.

    Subclasses say what guards what was learned, and what they keep for that.
    """

    how: Trained
    of: str | None  # the method whose adapter of a single concept the first task has; or this one

    def needs(self, concepts: Sequence[str]) -> Needs:
        """Of the first task, that adapter; then the concept's images and the task before."""
        if len(concepts) == 1 and self.of:
            return Needs(adapters=((self.of, concepts[0]),))
        return replace(self.how.needs(concepts[-1:]), previous=len(concepts) > 1)

    def make(self, context: Context) -> Adapter:
        """All tokens so far, and what all trainings together have changed."""
        if context.previous is not None:
            how = self.guarded(context, context.previous)
            return one_more(context, how, context.sets[0], context.previous)
        if not self.of:
            return context.train(self.how, context.sets)
        made = context.parts[0]
        return replace(
            made,
            provenance=replace(
                made.provenance,
                method=context.provenance.method,
                subject=context.provenance.subject,
            ),
        )

    def guarded(self, context: Context, before: Adapter) -> Trained:
        """How a further concept is trained."""
        return self.how


@dataclass(frozen=True)
class Merged(How):
    """Adapters of single concepts, made by another method or by this one, become one adapter."""

    of: str
    rule: Rule

    def needs(self, concepts: Sequence[str]) -> Needs:
        """The adapter of each concept."""
        return Needs(
            adapters=tuple((self.of, concept) for concept in concepts),
            captions=self.rule == "constrained",
            hyper={"sum": ("merge_scale",), "constrained": ("ridge",)}.get(self.rule, ()),
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
