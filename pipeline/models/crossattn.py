"""The cross-attention layers of a UNet: the weights that Custom Diffusion trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # methods name weights, and tables ask methods: neither needs it
    from torch import Tensor, nn


def key_value_names(unet: nn.Module) -> list[str]:
    """Names of the K and V matrices of all cross-attention layers, in the UNet's order.

    On Stable Diffusion v1 these are 32 matrices of 16 layers, 2.2 % of the weights.
    """
    return [
        name
        for name, _ in unet.named_parameters()
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    ]


def cross_attention_names(unet: nn.Module) -> list[str]:
    """Names of the four matrices of all cross-attention layers."""
    return [name for name in attention_names(unet) if ".attn2." in name]


def cross_attention_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The layers of cross-attention by name, in the order in which the UNet calls them.

    That is down, middle and up, where its modules are listed as down, up and middle.
    """
    order = ("down_blocks", "mid_block", "up_blocks")
    found = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    return dict(sorted(found, key=lambda layer: order.index(layer[0].partition(".")[0])))


def attention_names(unet: nn.Module) -> list[str]:
    """Names of the four matrices of all attention layers, self and cross: LoRA's usual targets."""
    kinds = ("to_q", "to_k", "to_v", "to_out.0")
    endings = tuple(f".{a}.{kind}.weight" for a in ("attn1", "attn2") for kind in kinds)
    return [name for name, _ in unet.named_parameters() if name.endswith(endings)]


def _projections(unet: nn.Module) -> list[nn.Module]:
    """The modules of those matrices; of low rank, the weights have other names."""
    kinds = (".attn2.to_k", ".attn2.to_v")
    return [module for name, module in unet.named_modules() if name.endswith(kinds)]


@contextmanager
def texts_by_layer(unet: nn.Module, texts: Sequence[Tensor]) -> Iterator[None]:
    """Shows each layer of cross-attention a text of its own, whatever text the UNet is given.

    Args:
        unet: with as many such layers.
        texts: features [n, context, d], in the order in which the UNet calls the layers.
    """

    def shown(text: Tensor) -> Any:
        def replace(_module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
            return inputs, {**named, "encoder_hidden_states": text}

        return replace

    layers = cross_attention_layers(unet).values()
    hooks = [
        layer.register_forward_pre_hook(shown(text), with_kwargs=True)
        for layer, text in zip(layers, texts, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def detached_start_token(unet: nn.Module) -> Iterator[None]:
    """Stops the gradient through keys and values of the start token (paper, appendix E).

    Their values stay as they are: only what they teach is lost.
    """
    import torch

    def detach_first(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    hooks = [module.register_forward_hook(detach_first) for module in _projections(unet)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def cached_keys_and_values(unet: nn.Module) -> Iterator[None]:
    """Computes keys and values once for a text that stays the same over many steps.

    A projection of the very tensor it saw last is not computed again. Not for training.
    """

    def cached(module: nn.Module) -> Any:
        project = module.forward
        last: list[Tensor] = []

        def forward(text: Tensor) -> Tensor:
            if not last or last[0] is not text:
                last[:] = [text, project(text)]
            return last[1]

        return forward

    modules = _projections(unet)
    for module in modules:
        module.forward = cached(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
