"""The methods under comparison: one file each, which says only what is special about it.

A method is found by the name of its file, which has to define `METHOD`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.common.errors import BenchError
from pipeline.settings.external import is_external

if TYPE_CHECKING:
    from torch import nn


def no_weights(_unet: nn.Module) -> list[str]:
    """No weight of the UNet."""
    return []


def all_weights(unet: nn.Module) -> list[str]:
    """Every weight of the UNet."""
    return [name for name, _ in unet.named_parameters()]


@dataclass(frozen=True)
class Trained:
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


@dataclass(frozen=True)
class Continued:
    """Fine-tuning of one concept after the other, the first being that of another method."""

    of: str
    how: Trained


@dataclass(frozen=True)
class Merged:
    """Adapters of single concepts, made by another method or by this one, become one adapter."""

    of: str
    rule: Literal["constrained", "average"]


@dataclass(frozen=True)
class Untrained:
    """The base model as it is."""


How = Trained | Continued | Merged | Untrained


@dataclass(frozen=True)
class Method:
    """How it makes adapters of single concepts and of compositions, or None."""

    single: Trained | Untrained | None
    composition: How | None


def training_of(how: How | None) -> Trained | None:
    """The training that making an adapter so comes with, if any."""
    if isinstance(how, Continued):
        return how.how
    return how if isinstance(how, Trained) else None


def method_names() -> list[str]:
    """All methods there are."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def check_method(name: str) -> None:
    """Finds out whether there is such a method, without importing it.

    Raises:
        BenchError: there is none.
    """
    if name not in method_names():
        raise BenchError(f"method {name!r} is unknown: choose one of {', '.join(method_names())}")


def load_method(name: str) -> Method:
    """The method of that name.

    Raises:
        BenchError: there is none, or its images were made elsewhere.
    """
    if is_external(name):
        raise BenchError(f"method {name!r} is of images made elsewhere: it has no adapters")
    check_method(name)
    method: Method = importlib.import_module(f"pipeline.methods.{name}").METHOD
    return method
