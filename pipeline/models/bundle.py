"""Adapters that are kept apart in one file, and models that mix them anew for each prompt.

A bundle is an adapter whose changes are named `1.<weight>`, `2.<weight>` and so on, by the places
of their concepts. It cannot be installed in the base as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.common.errors import BenchError
from pipeline.models.adapter import (
    TOKEN,
    Adapter,
    Delta,
    LowRank,
    Provenance,
    applied,
    check_fits,
)
from pipeline.models.base import Base
from pipeline.models.crossattn import cross_attention_layers
from pipeline.models.texts import Condition


def bundled(parts: Sequence[Adapter], tokens: dict[str, Tensor], provenance: Provenance) -> Adapter:
    """The parts side by side, with the modifier tokens of all of them.

    Raises:
        BenchError: tokens of some parts differ by layer, and those of others do not.
    """
    if len({row.ndim for row in tokens.values()}) > 1:
        raise BenchError(
            f"{provenance.method} on {provenance.subject}: tokens of some of its adapters differ "
            "by layer, those of others do not: make all with one method"
        )
    deltas = {
        f"{place}.{name}": delta
        for place, part in enumerate(parts, 1)
        for name, delta in part.deltas.items()
    }
    return Adapter(tokens, deltas, provenance)


def unbundled(adapter: Adapter) -> list[dict[str, Delta]]:
    """The changes of each part of a bundle, by the names of weights."""
    parts: list[dict[str, Delta]] = [{} for _ in adapter.provenance.references]
    for key, delta in adapter.deltas.items():
        place, _, name = key.partition(".")
        parts[int(place) - 1][name] = delta
    return parts


@dataclass(frozen=True)
class Router:
    """How much each concept's change counts for a prompt, layer by layer.

    By how like the prompt's text is to the concept's own tokens, encoded alone. Elastic weight
    aggregation of CIDM: its released code has these defaults, its equation 3 others.
    """

    similarity: Literal["cosine", "dot"] = "cosine"
    # Of a concept's several tokens: the mean of what each finds in the prompt, or what their mean
    # finds there.
    order: Literal["max_mean", "mean_max"] = "max_mean"
    power: float = 4.0
    norm: float = 1.0  # weights are divided by their norm of this order
    scale: float = 0.8  # of the whole change

    def weights(self, text: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """The weights float32 [n, layers, concepts] of n prompts, `scale` left out.

        A similarity below zero counts as none, whose sign an even power would hide.

        Args:
            text: features of the prompts, all their positions, [n, layers, context, d].
            tokens: of each concept the features of its tokens, [count, layers, d].
        """
        found = []
        for own in tokens:
            own = own.mean(0, keepdim=True) if self.order == "mean_max" else own
            a, b = own, text
            if self.similarity == "cosine":
                a, b = (nn.functional.normalize(features, dim=-1) for features in (own, text))
            alike = torch.einsum("kld,nlcd->nlkc", a, b)
            found.append(alike.amax(-1).mean(-1))
        likeness = torch.stack(found, -1).clamp_min(0)
        most = likeness.amax(-1, keepdim=True)
        # In units of the largest, so that no power is too large; if nothing is alike, nothing tells
        # the concepts apart.
        strength = torch.where(most > 0, likeness / most, 1).pow(self.power)
        return strength / torch.linalg.vector_norm(strength, self.norm, dim=-1, keepdim=True)


@dataclass(frozen=True)
class Routed:
    """What texts tell the model, and how it mixes the parts for each of them."""

    condition: Condition
    weights: Tensor  # [n, layers, concepts]


class RoutedSession:
    """The base with all parts of a bundle, mixed for each prompt by a router."""

    def __init__(self, base: Base, adapter: Adapter, router: Router) -> None:
        self.base, self.router = base, router
        self.weights = torch.zeros(0)
        self.tokens = [self._own(reference) for reference in adapter.provenance.references]

    @torch.no_grad()
    def _own(self, reference: str) -> Tensor:
        """Features [count, layers, d] of a concept's tokens, encoded alone."""
        words = [word for word in reference.split() if TOKEN.fullmatch(word)]
        (features,) = _by_layer(self.base.condition([" ".join(words)]))
        return features[:, 1 : 1 + len(words)].transpose(0, 1)

    def condition(self, texts: Sequence[str]) -> Routed:
        """Of these n texts.

        Guidance asks the same model for a prompt and for nothing: if the first half of the texts is
        empty, they have the weights of the second.
        """
        condition, half = self.base.condition(texts), len(texts) // 2
        weights = self.router.weights(_by_layer(condition), self.tokens)
        if half and not any(texts[:half]) and 2 * half == len(texts):
            weights = torch.cat([weights[half:], weights[half:]])
        return Routed(condition, weights)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Routed) -> Tensor:
        """See `Base.predict`."""
        self.weights = condition.weights
        return self.base.predict(noisy, timesteps, condition.condition)

    def mixed(self, parts: Sequence[LowRank], layer: int) -> Any:
        """A hook that adds the mix of low-rank changes to what a projection gives."""
        up = torch.cat([part.up for part in parts], 1).to(self.base.device)
        down = torch.cat([part.down for part in parts]).to(self.base.device)
        ranks = torch.tensor([part.up.shape[1] for part in parts], device=self.base.device)

        def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            weights = self.weights[:, min(layer, self.weights.shape[1] - 1)]
            shares = weights.repeat_interleave(ranks, dim=1)[:, None]
            change = ((inputs[0] @ down.to(inputs[0]).T) * shares) @ up.T
            return output + (self.router.scale * change).to(output)

        return hook


def _by_layer(condition: Condition) -> Tensor:
    """Features float32 [n, layers, context, d]; of a single layer if all see the same."""
    text = condition.text.float()
    return text if text.ndim == 4 else text[:, None]


@contextmanager
def routed(base: Base, adapter: Adapter, router: Router) -> Iterator[RoutedSession]:
    """A session in which a bundle's parts are mixed by a router; then the base is as it was.

    Raises:
        BenchError: a part does not fit the base, or changes other weights than projections of
            cross-attention by a low rank.
    """
    parts, modules = unbundled(adapter), dict(base.unet.named_modules())
    layers = {name: number for number, name in enumerate(cross_attention_layers(base.unet))}
    made = adapter.provenance
    for part in parts:
        check_fits(base, Adapter(adapter.tokens, part, made))
        for name, delta in part.items():
            if (
                not isinstance(delta, LowRank)
                or name.partition(".attn2")[0] + ".attn2" not in layers
            ):
                raise BenchError(
                    f"{made.method} on {made.subject}: {name} is no low-rank change of "
                    "cross-attention, which alone can be mixed by prompt"
                )
    with ExitStack() as stack:
        stack.enter_context(base.texts.modifier_tokens(adapter.tokens))
        session = RoutedSession(base, adapter, router)
        for name in dict.fromkeys(name for part in parts for name in part):
            layer = layers[name.partition(".attn2")[0] + ".attn2"]
            there = [part[name] for part in parts]
            hook = session.mixed([d for d in there if isinstance(d, LowRank)], layer)
            module = modules[name.removesuffix(".weight")]
            stack.callback(module.register_forward_hook(hook).remove)
        yield session


class ComposedSession:
    """The mean of what the base predicts with each part of a bundle by itself (LoRA-composite)."""

    def __init__(self, base: Base, parts: Sequence[Adapter]) -> None:
        self.base, self.parts = base, parts

    def condition(self, texts: Sequence[str]) -> Condition:
        """Of these texts; all parts have all tokens."""
        with applied(self.base, Adapter(self.parts[0].tokens, {}, self.parts[0].provenance)):
            return self.base.condition(texts)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """See `Base.predict`. As guidance is linear, this is the mean of guided predictions."""
        found = []
        for part in self.parts:
            with applied(self.base, part):
                found.append(self.base.predict(noisy, timesteps, condition))
        return torch.stack(found).mean(0)


@contextmanager
def composed(base: Base, adapter: Adapter) -> Iterator[ComposedSession]:
    """A session of the mean of a bundle's parts' predictions.

    Raises:
        BenchError: a part does not fit the base.
    """
    parts = [Adapter(adapter.tokens, part, adapter.provenance) for part in unbundled(adapter)]
    for part in parts:
        check_fits(base, part)
    yield ComposedSession(base, parts)
