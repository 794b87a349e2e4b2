"""Several concepts, each in its place: sessions that show parts of a picture texts of their own.

They wrap the session of any method, whatever it does between layers: what a text gives a layer to
look at (keys and values) is recorded while that session predicts once with it, and is what parts
of later predictions attend to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from pipeline.methods import Session
from pipeline.models.base import Base
from pipeline.models.crossattn import cross_attention_layers
from pipeline.regions.layouts import Box, Rule, cells

# The prompt alone; boxes in attention, as in Mix-of-Show; a prediction for each box, as in CIDM.
Mode = Literal["none", "mix_of_show", "cidm"]
Inside = Callable[[int, int], Tensor]  # of a map of so many rows and columns: which cells, bool


def overlaid(plain: Tensor, parts: Tensor, inside: Tensor, kept: float = 0.0) -> Tensor:
    """What is plain outside of all regions, and inside the mean of those that are there.

    Inside it is kept * plain + (1 - kept) * sum_u m_u parts_u / sum_u m_u. CIDM (equation 5) has
    no denominator and scales what is outside by `kept` as well, so that equal parts would not give
    themselves.

    Args:
        plain: [...].
        parts: [regions, ...], of each region.
        inside: bool, of as many axes as `parts`, whose sizes are theirs or 1.
        kept: the share of what is plain, inside.
    """
    there = inside.to(plain.dtype)
    count = there.sum(0)
    mean = (parts * there).sum(0) / count.clamp_min(1)
    return torch.where(count > 0, kept * plain + (1 - kept) * mean, plain)


@dataclass
class Seen:
    """Keys and values of a text: by layer, of each call in a prediction, [n or 1, context, d]."""

    keys: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


@torch.no_grad()
def seen(base: Base, session: Session, texts: Sequence[str]) -> Seen:
    """What cross-attention sees of texts in a session.

    It depends on neither latents nor timestep, so any will do.
    """
    found = Seen()

    def kept(calls: list[Tensor]) -> Any:
        return lambda _module, _inputs, output: calls.append(output)

    hooks = [
        module.register_forward_hook(kept(calls))
        for name, layer in _layers(base.unet)
        for module, calls in ((layer.to_k, found.keys[name]), (layer.to_v, found.values[name]))
    ]
    try:
        latents = torch.zeros((len(texts), *base.latent_shape), device=base.device)
        timestep = torch.zeros((), dtype=torch.long, device=base.device)
        session.predict(latents, timestep, session.condition(texts))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def showing(unet: nn.Module, parts: Sequence[tuple[Seen, Inside]], count: int) -> Iterator[None]:
    """Lets parts of pictures see other texts than a prediction is given; for one prediction.

    What a layer attends to is replaced before its last projection; where parts overlap, it is the
    mean of theirs. Maps are square, as all images here are.

    Args:
        unet: in diffusers' format.
        parts: texts, and where they are seen.
        count: how many of the last images of the batch; guidance has those without a text first.
    """
    hooks = []
    for name, layer in _layers(unet):
        mixed = _Mixed(name, layer.heads, parts, count)
        hooks += [
            layer.to_q.register_forward_hook(mixed.ask),
            layer.to_out[0].register_forward_pre_hook(mixed.replace),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Mixed:
    """What a layer of cross-attention gives, call by call of a prediction."""

    def __init__(
        self, name: str, heads: int, parts: Sequence[tuple[Seen, Inside]], count: int
    ) -> None:
        self.name, self.heads, self.parts, self.count = name, heads, parts, count
        self.calls = 0
        self.query = torch.zeros(0)

    def ask(self, _module: nn.Module, _inputs: Any, query: Tensor) -> None:
        """Hooked to the projection of queries."""
        self.query = query[-self.count :]

    def replace(self, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Hooked before the last projection."""
        (own,) = inputs
        name, call, side = self.name, self.calls, math.isqrt(own.shape[1])
        self.calls += 1
        others = [
            attended(self.query, text.keys[name][call], text.values[name][call], self.heads)
            for text, _ in self.parts
        ]
        where = torch.stack([inside(side, side).flatten() for _, inside in self.parts])
        whole, shown = own[: -self.count], own[-self.count :]
        shown = overlaid(shown, torch.stack(others), where[:, None, :, None])
        return (torch.cat([whole, shown]),)


def attended(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q k' / sqrt(d / heads)) v of each head, [n, cells, d].

    Args:
        query: [n, cells, d].
        keys: [n, context, d], or the same for all, [1, context, d].
        values: alike.
        heads: how many.
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, keys, values))
    k, v = (t.expand(len(q), -1, -1, -1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Place:
    """A box and the text that is seen in it."""

    text: str
    box: Box


class RegionalAttention:
    """All boxes at once, in each layer of cross-attention: regionally controllable sampling.

    Mix-of-Show's (Gu et al., 2023); a step takes as many predictions as without boxes.
    """

    def __init__(self, base: Base, session: Session, places: Sequence[Place], rule: Rule) -> None:
        self.base, self.session = base, session
        self.parts = [
            (seen(base, session, [place.text]), _inside(base, place.box, rule)) for place in places
        ]

    def condition(self, texts: Sequence[str]) -> Any:
        """Of these n texts; boxes are in the second half of the images."""
        return self.session.condition(texts)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        """See `Session`."""
        with showing(self.base.unet, self.parts, len(noisy) // 2):
            return self.session.predict(noisy, timesteps, condition)


@dataclass(frozen=True)
class Regional:
    """What a prompt tells the model, and what the text of each box does."""

    whole: Any  # with and without the prompt, as the sampler asks
    seen: Seen  # of the prompt
    places: list[Any]


class RegionalNoise:
    """Boxes in attention, one by one, and the mean of what is predicted for each within it.

    Context-controllable synthesis of CIDM (Dong et al., 2024), whose code has none of it. A step
    takes a prediction more for each box. As guidance is linear, and what is predicted without a
    text is the same for all, it is the prompted half alone that boxes change. In the pass of a box
    the whole model is that of its text, which matters where a method mixes adapters by text.
    """

    def __init__(
        self, base: Base, session: Session, places: Sequence[Place], rule: Rule, kept: float
    ) -> None:
        self.base, self.session, self.kept = base, session, kept
        self.places = [(place.text, _inside(base, place.box, rule)) for place in places]

    def condition(self, texts: Sequence[str]) -> Regional:
        """Of n texts, of which the first half is empty."""
        prompts = texts[len(texts) // 2 :]
        return Regional(
            self.session.condition(texts),
            seen(self.base, self.session, prompts),
            [self.session.condition([text] * len(prompts)) for text, _ in self.places],
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Regional) -> Tensor:
        """See `Session`."""
        unprompted, plain = self.session.predict(noisy, timesteps, condition.whole).chunk(2)
        count, parts = len(plain), []
        for own, (_, inside) in zip(condition.places, self.places):
            # The box's text is that of the pass, and the prompt is seen around it.
            with showing(self.base.unet, [(condition.seen, _not(inside))], count):
                parts.append(self.session.predict(noisy[-count:], timesteps, own))
        where = torch.stack([inside(*plain.shape[-2:]) for _, inside in self.places])
        mixed = overlaid(plain, torch.stack(parts), where[:, None, None], self.kept)
        return torch.cat([unprompted, mixed])


def regional(
    base: Base,
    session: Session,
    mode: Mode,
    places: Sequence[Place],
    rule: Rule = "centres",
    kept: float = 0.1,
) -> Session:
    """A session of the same model in which boxes of each picture have texts of their own.

    Args:
        base: of which the session is.
        session: a method's.
        mode: how.
        places: texts, as the session's model understands them, and their boxes.
        rule: which cells of a map are in a box.
        kept: with "cidm", the share of the prompt's own prediction within boxes (alpha).
    """
    if mode == "mix_of_show":
        return RegionalAttention(base, session, places, rule)
    if mode == "cidm":
        return RegionalNoise(base, session, places, rule, kept)
    return session


def coarsest(base: Base) -> int:
    """How many cells wide the smallest map of cross-attention is: the middle of the UNet has it."""
    levels: int = len(base.unet.config.block_out_channels)
    return base.latent_shape[1] // 2 ** (levels - 1)


def _layers(unet: nn.Module) -> list[tuple[str, Attention]]:
    """The layers of cross-attention, by name."""
    found = cross_attention_layers(unet).items()
    return [(name, layer) for name, layer in found if isinstance(layer, Attention)]


def _inside(base: Base, box: Box, rule: Rule) -> Inside:
    return lambda h, w: torch.from_numpy(cells(box, h, w, rule)).to(base.device)


def _not(inside: Inside) -> Inside:
    return lambda h, w: ~inside(h, w)
