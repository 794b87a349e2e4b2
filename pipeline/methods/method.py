"""What a method is: what it needs, how it makes an adapter, and how it is sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pipeline.common.errors import BenchError

if TYPE_CHECKING:  # heavy, and all that a name, a table or a template asks of a method is not
    from PIL.Image import Image
    from torch import Tensor

    from pipeline.concepts.concept import Concept, Subject
    from pipeline.methods.answers import Trained
    from pipeline.models.adapter import Adapter, Delta, Provenance
    from pipeline.models.base import Base
    from pipeline.settings.profile import MethodParams, Params

# "sum" is scaled by the hyper-parameter `merge_scale`; "bundle" keeps the parts apart.
Rule = Literal["constrained", "average", "sum", "bundle"]


@dataclass(frozen=True)
class Needs:
    """What has to be there before a method can make an adapter: DVC makes it, or asks for it."""

    shards: tuple[str, ...] = ()  # concepts whose images are read
    generated: tuple[str, ...] = ()  # of these: regularized by the base model's own images
    adapters: tuple[tuple[str, str], ...] = ()  # of other methods: method, concept
    previous: bool = False  # of a task: its own adapter of the task before
    captions: bool = False  # of the corpus, which are kept unchanged
    hyper: tuple[str, ...] = ()  # names of hyper-parameters, fields of MethodParams or in its `own`


@dataclass(frozen=True)
class TrainingSet:
    """The images of one concept's shard, all square and of the base's resolution."""

    concept: Concept
    targets: list[Image]
    regularization: list[Image]
    captions: list[str]  # of the regularization images


@dataclass(frozen=True)
class Batch:
    """The n images of a step of the training, and what is predicted of them."""

    step: int  # counted from zero
    noisy: Tensor  # scaled latents, float32 [n, c, h, w]
    timesteps: Tensor  # int64 [n]
    condition: Any  # of n captions, as `Session.condition` gives it
    predicted: Tensor  # float32 [n, c, h, w]; with a gradient
    target: Tensor  # what it should be, float32 [n, c, h, w]
    mask: Tensor  # where the loss looks, float32 [n, h, w]


@dataclass(frozen=True)
class Step:
    """What a method's own term of the loss is a function of; gradients reach what trains."""

    changes: Mapping[str, Delta]  # of weights by name: less their first value, or two factors
    # Of the modifier tokens in their order, float32 [tokens, d] or [tokens, layers, d].
    rows: Tensor
    batch: Batch


@dataclass(frozen=True)
class Context(ABC):
    """All that a method makes an adapter of, and the project's own loop and merges."""

    base: Base
    subject: Subject
    params: Params
    hyper: MethodParams
    provenance: Provenance  # of the adapter: references are class nouns until the method says more
    sets: tuple[TrainingSet, ...]  # as `Needs.shards`
    parts: tuple[Adapter, ...]  # as `Needs.adapters`
    captions: tuple[str, ...]  # of the corpus, if `Needs.captions`
    previous: Adapter | None  # if `Needs.previous`

    def number(self, name: str) -> float:
        """A hyper-parameter that this method alone has, which `Needs.hyper` names.

        Raises:
            BenchError: it is no number.
        """
        value = self.hyper.own[name]
        if isinstance(value, str):
            where = f"params.yaml: methods.{self.provenance.method}.own.{name}"
            raise BenchError(f"{where}: {value!r} is no number: give one")
        return float(value)

    @abstractmethod
    def train(self, how: Trained, sets: Sequence[TrainingSet], first: int = 0) -> Adapter:
        """Trains the concepts of `sets` jointly, on top of what the base is now.

        In a task, it is as if these concepts were a subject of their own: a single concept has
        that one's number of steps, and its noise.

        Args:
            how: what trains, and on which loss.
            sets: neighbours in the subject.
            first: the place of the first of them in the subject.

        Raises:
            FailureError: the training diverged.
        """

    @abstractmethod
    def fisher(self, how: Trained, adapter: Adapter, rows: int) -> dict[str, Tensor]:
        """How much the loss of the last concept's images hangs on each weight, at the adapter.

        The diagonal of the empirical Fisher information: the mean over `rows` single images of the
        squared gradient of each one's training loss. (The square of a batch's gradient is none.)

        Args:
            how: says which weights, and which loss.
            adapter: of this subject; the last of `sets` is its last concept's.
            rows: how many targets are drawn, each with a view, noise and a timestep of its own.

        Returns:
            By a weight's name, float32 of its shape, on the CPU; none is negative.

        Raises:
            BenchError: it is zero everywhere.
            FailureError: it is not finite.
        """

    @abstractmethod
    def merge(self, parts: Sequence[Adapter], rule: Rule) -> Adapter:
        """Merges adapters, one for each concept of the subject.

        Raises:
            BenchError: the adapters do not fit each other.
            FailureError: the constrained optimization has no finite solution.
        """


class Session(Protocol):
    """What the sampler asks. The base itself is one."""

    def condition(self, texts: Sequence[str]) -> Any:
        """What these n texts tell the model."""

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        """The prediction, float32 [n, c, h, w], for scaled latents [n, c, h, w] of n texts."""


class How(ABC):
    """How a method makes adapters of one kind of subject, and images with them."""

    # Whether another seed makes another adapter: `context.provenance.seed`, or that of its parts.
    random: ClassVar[bool] = True

    def needs(self, concepts: Sequence[str]) -> Needs:
        """What `make` reads, for a subject of these concepts.

        Args:
            concepts: names, or what stands for them in a template: they may only be passed on.
        """
        return Needs()

    @abstractmethod
    def make(self, context: Context) -> Adapter:
        """The adapter of the subject, which is all that sampling has beside the base."""

    def open(self, base: Base, adapter: Adapter) -> AbstractContextManager[Session]:
        """A session for the sampler; afterwards the base is as it was.

        This one installs the adapter in the base.

        Raises:
            BenchError: the adapter does not fit the base.
        """
        from pipeline.models.adapter import applied  # imports diffusers

        return applied(base, adapter)


@dataclass(frozen=True)
class Method:
    """How it makes adapters of single concepts, of compositions and of tasks, or None."""

    single: How | None
    composition: How | None
    # Of a task of a sequence: all concepts learned so far, the last one now. Of the earlier ones
    # there are adapters, but no images.
    sequence: How | None = None

    def of(self, concepts: int) -> How | None:
        """How it makes an adapter of so many concepts at once."""
        return self.single if concepts == 1 else self.composition

    def how(self, subject: Subject, name: str) -> How:
        """How it makes the adapter of this subject; the method's name is for the error.

        Raises:
            BenchError: it makes none.
        """
        found = self.sequence if subject.task else self.of(len(subject.concepts))
        if found is None:
            kind = "single concepts" if len(subject.concepts) == 1 else "compositions"
            kind = "tasks of sequences" if subject.task else kind
            raise BenchError(f"method {name!r} makes no adapters of {kind} such as {subject.name}")
        return found
