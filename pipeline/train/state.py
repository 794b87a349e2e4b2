"""The state of a training that is not finished, for one that was killed to go on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.files import atomic
from pipeline.common.unfinished import KEPT_EVERY, Unfinished
from pipeline.train.encoder import Encoder

SHARE = 0.05  # of a training's time, that writing its state may take


@dataclass
class State:
    """A file with all that the rest of a training depends on: what trains, and AdamW's moments.

    Random draws are of their own step, so none has a state. Nothing is written of a short
    training.
    """

    unfinished: Unfinished
    name: str
    last: float = field(default_factory=time.monotonic)
    kept: bool = False  # whether this process has written it

    @property
    def path(self) -> Path:
        """The file."""
        return self.unfinished.folder / f"{self.name}.safetensors"

    def keep(
        self, done: int, steps: int, optimizer: torch.optim.Optimizer, encode: Encoder
    ) -> None:
        """Writes the state after a step, if it is time to; after the last one, if any was written.

        A method may train several times, and the first training is not made again then.
        """
        if not (self.unfinished.due(self.last) or (self.kept and done == steps)):
            return
        began = time.monotonic()
        tensors = {f"latents.{name}": part for name, part in encode.state().items()}
        for i, parameter in enumerate(_parameters(optimizer)):
            tensors[f"trained.{i}"] = parameter.detach()
            tensors |= {
                f"adam.{i}.{name}": part for name, part in optimizer.state[parameter].items()
            }
        # `clone` as well: several names may be of one storage.
        tensors = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        with atomic(self.path) as temporary:
            save_file(tensors, temporary, {"key": self.unfinished.key, "done": str(done)})
        self.kept, self.last = True, time.monotonic()
        # All weights of a large model are gigabytes: of the time a twentieth goes there, at most.
        self.last += max(0.0, (self.last - began) / SHARE - KEPT_EVERY)

    @torch.no_grad()
    def resume(self, optimizer: torch.optim.Optimizer, encode: Encoder) -> int:
        """Sets all as a training of the same key left it, if there is one.

        Returns:
            How many steps it had made.
        """
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.unfinished.key:
                    return 0
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return 0
        done = int(about["done"])
        for i, parameter in enumerate(_parameters(optimizer)):
            parameter.copy_(tensors[f"trained.{i}"])
            for name, part in _within(tensors, f"adam.{i}.").items():
                moment = part.shape == parameter.shape  # it lies in memory as its parameter does
                like = torch.empty_like(parameter) if moment else part
                optimizer.state[parameter][name] = like.copy_(part)
            if optimizer.param_groups[0]["fused"] and (state := optimizer.state[parameter]):
                state["step"] = state["step"].to(parameter.device)  # where a fused AdamW counts
        encode.resume(done, _within(tensors, "latents."))
        self.kept = True
        print(f"train: goes on from step {done}: {self.path}")
        return done


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
