"""The methods under comparison: one file each, which says only what is special about it.

A method is found by the name of its file, which has to define `METHOD`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.concepts import Concept
from pipeline.errors import BenchError

if TYPE_CHECKING:
    from torch import nn


def no_weights(_unet: nn.Module) -> list[str]:
    """No weight of the UNet."""
    return []


def all_weights(unet: nn.Module) -> list[str]:
    """Every weight of the UNet."""
    return [name for name, _ in unet.named_parameters()]


def rare_token(_concept: Concept) -> None:
    """Modifier tokens start from the profile's rare tokens, in their order."""
    return


def last_word(concept: Concept) -> str:
    """Modifier tokens start from the last word of the class noun ("pot")."""
    return concept.class_noun.split()[-1]


@dataclass(frozen=True)
class Trained:
    """A method that fine-tunes: what trains, from where, on which captions, with which loss."""

    weights: Callable[[nn.Module], list[str]]  # names of the UNet's weights that train
    train_token: bool
    initial_word: Callable[[Concept], str | None]
    reference: str  # what stands for the concept in prompts: {token} and {noun}
    captions: tuple[str, ...]  # templates; {} is the reference. Empty: the concept's own caption
    regularization: bool  # half of each batch are retrieved images of the class
    resize: bool  # targets are resized, and their captions say so
    masked_loss: bool  # sum over the mask's squares / size of the mask, else the plain mean
    detach_start_token: bool


@dataclass(frozen=True)
class Merged:
    """A method that combines the adapters which another method made for each concept."""

    of: str


@dataclass(frozen=True)
class Untrained:
    """The base model as it is."""


Method = Trained | Merged | Untrained


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
        BenchError: there is none.
    """
    check_method(name)
    method: Method = importlib.import_module(f"pipeline.methods.{name}").METHOD
    return method
