"""Weights that train, in float32, beside those that a model computes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Masters:
    """A float32 master of each weight that trains.

    Weights that are float32 are their own masters. Others, which are stored in fewer bits, would
    round a learning rate's steps away: of these a master takes the gradients and the steps, and
    the weight is the master rounded.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Makes the weights, leaves by name, require gradients."""
        self.weights = weights
        self.masters = {
            name: w if w.dtype is torch.float32 else w.detach().float()
            for name, w in weights.items()
        }
        self.hooks = []
        for name, weight in weights.items():
            weight.requires_grad_(True)
            if (master := self.masters[name]) is not weight:
                master.requires_grad_(True)
                self.hooks.append(weight.register_post_accumulate_grad_hook(_hand_to(master)))

    def __getitem__(self, name: str) -> Tensor:
        return self.masters[name]

    @torch.no_grad()
    def round(self) -> None:
        """After the masters have moved: the weights follow."""
        pairs = [(w, self.masters[n]) for n, w in self.weights.items() if self.masters[n] is not w]
        if pairs:
            torch._foreach_copy_([w for w, _ in pairs], [master for _, master in pairs])

    def let_go(self) -> None:
        """Ends the training of the weights."""
        for hook in self.hooks:
            hook.remove()
        for weight in self.weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def _hand_to(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a weight's gradient to that of its master."""

    def hand(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float()
        master.grad = gradient if master.grad is None else master.grad + gradient
        weight.grad = None

    return hand
