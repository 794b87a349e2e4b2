"""Several processes that train one model: each on its share of a batch, with averaged gradients.

On a CPU two processes of one thread each are faster than one of two. In a process that has no
others beside it, all of this does nothing.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process' number; 0 decides, draws scenes and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: Tensor) -> Tensor:
    """This process' rows of a batch that all have drawn alike."""
    return batch[rank() :: processes()]


def spread(*tensors: Tensor) -> None:
    """Overwrites tensors with those of process 0."""
    if dist.is_initialized():
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def agreed(value: float) -> float:
    """The value that process 0 has: for what depends on the clock."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    spread(shared)
    return shared.item()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


@contextmanager
def together(count: int, follow: Callable[..., None], *args: Any) -> Iterator[None]:
    """Has `count` - 1 other processes run `follow(*args)` beside what is done in this context.

    They have to train the same models in the same order. Each process keeps to one thread.

    Args:
        follow: a function of a module, as it is imported anew in the other processes.
    """
    if count == 1:
        yield
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        address = f"file://{folder}/rendezvous"
        context = multiprocessing.get_context("spawn")
        others = [
            context.Process(
                target=_join_and_follow, args=(k, count, address, follow, args), daemon=True
            )
            for k in range(1, count)
        ]
        for other in others:
            other.start()
        try:
            _join(0, count, address)
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for other in others:
                other.terminate()
                other.join()
            torch.set_num_threads(threads)


def _join(number: int, count: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=count)


def _join_and_follow(
    number: int, count: int, address: str, follow: Callable[..., None], args: tuple[Any, ...]
) -> None:
    _join(number, count, address)
    follow(*args)
