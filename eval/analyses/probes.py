"""The attention of a UNet while it samples: to look at, or to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from pipeline.models.base import Base

SELF, CROSS = "attn1", "attn2"
Word = tuple[str, list[int]]  # and the places of its tokens in the text


@contextmanager
def attention_through(
    unet: nn.Module, change: Callable[[str, Tensor], Tensor], kinds: Sequence[str] = (SELF, CROSS)
) -> Iterator[None]:
    """While it lasts, the attention of those kinds of layers is what `change` makes of it.

    Args:
        unet: in diffusers' format.
        change: gets a layer's name, which ends in its kind, and its probabilities
            [images, heads, queries, keys], and returns such probabilities.
        kinds: of layers.
    """
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith(tuple(kinds))
    }
    before = {name: layer.processor for name, layer in layers.items()}

    def through(name: str, layer: Any) -> Callable[..., Tensor]:
        compute = layer.get_attention_scores

        def scores(*args: Any, **kwargs: Any) -> Tensor:
            plain: Tensor = compute(*args, **kwargs)  # [images * heads, queries, keys]
            return change(name, plain.unflatten(0, (-1, layer.heads))).flatten(0, 1)

        return scores

    for name, layer in layers.items():
        layer.get_attention_scores = through(name, layer)
        layer.set_processor(AttnProcessor())  # which asks for them; the fused ones do not
    try:
        yield
    finally:
        for name, layer in layers.items():
            del layer.get_attention_scores
            layer.set_processor(before[name])


def words_of(base: Base, prompt: str) -> list[Word]:
    """The words of a prompt between blanks, and where their tokens are in the encoded text."""
    found: list[Word] = []
    place = 1  # after the start token
    for word in prompt.split():
        count = len(base.texts.tokenizer(word, add_special_tokens=False).input_ids)
        found.append((word, list(range(place, place + count))))
        place += count
    return found
