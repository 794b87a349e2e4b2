"""The adapter: all that training makes and all that sampling needs beside the base model.

An adapter is one safetensors file: the embedding rows of modifier tokens, and changes to named
weights of the UNet, each dense or of low rank. Textual Inversion is one row; Custom Diffusion is
a row and the K and V of cross-attention; DreamBooth is every weight; a merge is one more adapter.
A method that learns one concept after the other may keep tensors there for the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError, refuse_failed
from pipeline.common.files import atomic
from pipeline.common.places import repro_command_for
from pipeline.common.schema import parse
from pipeline.models.base import Base
from pipeline.models.crossattn import cross_attention_layers
from pipeline.models.tokens import natural_order

FORMAT = "concept-bench-adapter-1"
TOKEN = re.compile(r"<[^<>\s]+>")  # a modifier token in a reference


@dataclass(frozen=True)
class LowRank:
    """The change `up @ down` of a matrix: up [out, rank], down [rank, in]."""

    up: Tensor
    down: Tensor

    def dense(self) -> Tensor:
        """The change as a matrix [out, in]."""
        return self.up @ self.down


Delta = Tensor | LowRank


def dense(delta: Delta) -> Tensor:
    """The change as a tensor of the weight's shape."""
    return delta.dense() if isinstance(delta, LowRank) else delta


@dataclass(frozen=True)
class Provenance:
    """What an adapter is and how it was made. Holds nothing that differs between equal runs."""

    method: str
    subject: str
    base: str
    base_hash: str
    references: tuple[str, ...]  # what stands for each concept in a prompt: "<new1> cat"
    initial_ids: dict[str, int] = field(default_factory=dict)  # modifier token: where it started
    steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    notes: dict[str, float] = field(default_factory=dict)  # such as the residual of a merge


@dataclass(frozen=True)
class Adapter:
    """Modifier-token rows by token, changes by UNet parameter name, and where they are from.

    A row is [d], or [layers, d] if each layer of cross-attention sees one of its own. Where a base
    has several text encoders, it is what each of them embeds the token as, one after the other.
    """

    tokens: dict[str, Tensor]
    deltas: dict[str, Delta]
    provenance: Provenance
    kept: dict[str, Tensor] = field(default_factory=dict)  # for the next concept; no part of it

    def parameters(self) -> int:
        """How many numbers sampling needs."""
        return sum(part.numel() for part in replace(self, kept={}).tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by the names in its file."""
        tensors = {f"token.{name}": row for name, row in self.tokens.items()}
        tensors |= {f"kept.{name}": part for name, part in self.kept.items()}
        for name, delta in self.deltas.items():
            if isinstance(delta, LowRank):
                tensors |= {f"up.{name}": delta.up, f"down.{name}": delta.down}
            else:
                tensors[f"delta.{name}"] = delta
        return tensors


def not_finite(adapter: Adapter) -> str | None:
    """The first tensor with a value that is not finite, if there is one, by its name in a file."""
    found = (name for name, t in adapter.tensors().items() if not bool(torch.isfinite(t).all()))
    return next(found, None)


def save_adapter(
    adapter: Adapter, path: str | Path, store: Literal["float32", "bfloat16"] = "float32"
) -> None:
    """Writes the adapter; equal adapters give equal bytes.

    Args:
        adapter: what to write.
        path: of the file.
        store: in which numbers changes of weights are written; tokens are float32.

    Raises:
        FailureError: a value is not finite; nothing is written.
    """
    made = adapter.provenance
    _refuse_not_finite(adapter, f"{made.method} on {made.subject}")
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in adapter.tensors().items()}
    if store == "bfloat16":
        kinds = ("delta.", "up.", "down.")
        tensors = {n: t.bfloat16() if n.startswith(kinds) else t for n, t in tensors.items()}
    content = {"format": FORMAT, "provenance": asdict(adapter.provenance)}
    # One entry alone: safetensors writes several in random order.
    metadata = {"adapter": json.dumps(content, sort_keys=True, ensure_ascii=False)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)


def _refuse_not_finite(adapter: Adapter, who: str) -> None:
    if name := not_finite(adapter):
        raise FailureError(
            DIVERGED,
            f"{who}: {name} has values that are not finite: change the method's parameters in the "
            "profile's params.yaml, such as its learning rate, and train again",
        )


def load_adapter(path: str | Path) -> Adapter:
    """Reads an adapter; its numbers are float32 however they are stored.

    Raises:
        BenchError: the file is missing, corrupt or not an adapter, or its tokens are not those of
            its references.
        FailureError: it could not be made, or holds values that are not finite.
    """
    path = Path(path)
    refuse_failed(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: _full(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise BenchError(
            f"{path}: the adapter is missing: run `{repro_command_for(path)}` to train it"
        ) from None
    except SafetensorError as error:
        raise BenchError(f"{path}: not a readable safetensors file ({error})") from error
    except OSError as error:
        reason = "is a folder" if path.is_dir() else f"could not be read: {error.strerror}"
        raise BenchError(f"{path}: {reason}: name an adapter's file") from error
    provenance = _provenance(path, metadata)
    tokens: dict[str, Tensor] = {}
    deltas: dict[str, Delta] = {}
    kept: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "token":
            tokens[name] = tensor
        elif kind == "kept":
            kept[name] = tensor
        elif kind == "delta":
            deltas[name] = tensor
        elif kind == "up" and (down := tensors.get(f"down.{name}")) is not None:
            if not (tensor.ndim == down.ndim == 2 and tensor.shape[1] == down.shape[0]):
                raise BenchError(
                    f"{path}: up.{name} {list(tensor.shape)} does not fit down.{name} "
                    f"{list(down.shape)}: train it again"
                )
            deltas[name] = LowRank(tensor, down)
        elif kind != "down" or f"up.{name}" not in tensors:
            raise BenchError(f"{path}: {key}: belongs to no change: train the adapter again")
    _check_tokens(path, list(tokens), provenance.references)
    # As the modifier tokens are ordered, whatever order the file has.
    tokens = {name: tokens[name] for name in sorted(tokens, key=natural_order)}
    adapter = Adapter(tokens, deltas, provenance, kept)
    _refuse_not_finite(adapter, str(path))
    return adapter


def _full(tensor: Tensor) -> Tensor:
    """What is stored in bfloat16 is used in float32."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def _provenance(path: Path, metadata: Mapping[str, str]) -> Provenance:
    """What the metadata of an adapter's file says of it."""
    try:
        described = json.loads(metadata.get("adapter", "{}"))
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: its metadata is not valid JSON ({error})") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise BenchError(f"{path}: not an adapter of this project: no {FORMAT} in its metadata")
    return parse(path, Provenance, described.get("provenance"))


def _check_tokens(path: Path, tokens: Sequence[str], references: Sequence[str]) -> None:
    """Finds out whether an adapter's tokens are those that stand for its concepts in prompts."""
    said = " ".join(references)
    for token in [*tokens, *filter(TOKEN.fullmatch, said.split())]:
        if token not in said.split() or token not in tokens:
            raise BenchError(
                f"{path}: has the tokens {', '.join(tokens) or '(none)'}, but its concepts are "
                f"called {', '.join(references)}: {token} is in one of the two alone"
            )


@contextmanager
def applied(base: Base, adapter: Adapter) -> Iterator[Base]:
    """Installs the adapter in the base; afterwards the base's weights are exactly what they were.

    Raises:
        BenchError: the adapter was made for another base, or a token or a weight has
            another shape.
    """
    check_fits(base, adapter)
    weights = dict(base.unet.named_parameters())
    originals = {name: weights[name].detach().clone() for name in adapter.deltas}
    tokens = base.texts.modifier_tokens(adapter.tokens) if adapter.tokens else nullcontext()
    try:
        with torch.no_grad():
            for name, delta in adapter.deltas.items():
                # In float32, as a change may be smaller than what a stored weight resolves.
                changed = weights[name].float() + dense(delta).to(weights[name].device)
                weights[name].copy_(changed)
        with tokens:
            yield base
    finally:
        with torch.no_grad():
            for name, original in originals.items():
                weights[name].copy_(original)


def check_fits(base: Base, adapter: Adapter) -> None:
    """Finds out whether the adapter can be installed in the base.

    Raises:
        BenchError: as `applied`.
    """
    made_for = adapter.provenance
    if made_for.base_hash != base.hash:
        raise BenchError(
            f"adapter {made_for.method}/{made_for.subject} was made for base {made_for.base} "
            f"({made_for.base_hash}), not for {base.path} ({base.hash})"
        )
    width = base.texts.width
    for name, row in adapter.tokens.items():
        if row.shape not in ((width,), (len(cross_attention_layers(base.unet)), width)):
            raise BenchError(
                f"adapter {made_for.method}/{made_for.subject}: token {name} {tuple(row.shape)} "
                f"does not fit the base {base.path}, whose embeddings are ({width},)"
            )
    weights = dict(base.unet.named_parameters())
    for name, delta in adapter.deltas.items():
        shape = dense(delta).shape
        if name not in weights or weights[name].shape != shape:
            raise BenchError(
                f"adapter {made_for.method}/{made_for.subject}: weight {name} {tuple(shape)} does "
                f"not fit the base {base.path}"
            )
