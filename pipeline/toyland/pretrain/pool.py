"""Captioned scenes that other processes draw while a model is trained on those that are there."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.toyland.pretrain.pictures import MIXED, mixed_scene
from pipeline.toyland.pretrain.ranks import agreed, rank, spread
from pipeline.toyland.pretrain.vocabulary import CONTEXT_LENGTH, LETTERS, token_ids
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import Scene, caption, full_caption

BLOCK = 256  # scenes that are drawn, sent and encoded at once
CAPTIONS = 6  # of each scene
FIRST = 20_000  # scenes without which no training starts
SIDE = 64
FULL_CAPTIONS, LETTERED_CAPTIONS = 0.45, 0.15  # shares

Block = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16]]


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A full caption or one as the corpus has them; some with a letter that means nothing.

    It stands before the noun of the first thing, as the names of concepts will.
    """
    text = full_caption(scene) if rng.random() < FULL_CAPTIONS else caption(scene, rng)
    if rng.random() >= LETTERED_CAPTIONS:
        return text
    letter, noun = LETTERS[int(rng.integers(len(LETTERS)))], scene.things[0].category
    # Whole words: a "moongate" has a "moon" in it.
    return f" {text} ".replace(f" {noun} ", f" {letter} {noun} ", 1).strip()


def draw_block(number: int) -> Block:
    """Pictures uint8 [BLOCK, 64, 64, 3] and token ids [BLOCK, CAPTIONS, context] of some scenes."""
    indices = range(number * BLOCK, (number + 1) * BLOCK)
    scenes = [mixed_scene(i) for i in indices]
    rngs = [np.random.default_rng([MIXED + 1, i]) for i in indices]
    ids = [
        [token_ids(training_caption(scene, rng)) for _ in range(CAPTIONS)]
        for scene, rng in zip(scenes, rngs)
    ]
    return np.stack([draw(scene) for scene in scenes]), np.array(ids, np.int16)


def _start_worker() -> None:
    """Lets training go first, and ends with the process that trains, however that ends."""
    os.nice(10)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


class Pool:
    """Scenes 0, 1, 2, ... of the part that the base is trained on, as many as are drawn yet.

    Attributes:
        pictures: uint8 [scenes, 64, 64, 3], until `encode` is called.
        latents: float16 [scenes, c, h, w], from then on.
        ids: token ids int16 [scenes, CAPTIONS, context] of each scene's captions.
    """

    pictures: Tensor
    latents: Tensor
    ids: Tensor

    def __init__(self, scenes: int, device: torch.device, by_clock: bool = False):
        """Starts the drawing.

        Args:
            scenes: how many there will be in the end, rounded up to whole blocks.
            by_clock: trainings use whatever is there, instead of what their step demands.
        """
        self._blocks = -(-scenes // BLOCK)
        self._taken, self._asked, self._by_clock = 0, 0, by_clock
        self._encode: Callable[[Tensor], Tensor] | None = None
        size = self._blocks * BLOCK
        self.pictures = torch.empty(size, SIDE, SIDE, 3, dtype=torch.uint8, device=device)
        self.ids = torch.empty(size, CAPTIONS, CONTEXT_LENGTH, dtype=torch.int16, device=device)
        self._drawn: deque[Future[Block]] = deque()
        if rank() == 0:
            workers = max(1, (os.cpu_count() or 1) - 1)
            self._executor = ProcessPoolExecutor(workers, initializer=_start_worker)
            for _ in range(4 * workers):
                self._ask()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if rank() == 0:
            self._executor.shutdown(cancel_futures=True)

    def reach(self, seen: int) -> int:
        """How many scenes, the first ones, a training draws its next batch from.

        By the clock all that are there, else a number that depends on `seen` alone, so that a
        training can be repeated: this waits until they are drawn.

        Args:
            seen: how many examples the model was trained on so far.
        """
        size = self._blocks * BLOCK
        wanted = min(size, FIRST if self._by_clock else FIRST + seen // 4)
        while self._taken * BLOCK < wanted:
            self._take()
        if not self._by_clock:
            return wanted
        while self._taken < self._blocks and agreed(rank() == 0 and self._drawn[0].done()):
            self._take()
        return self._taken * BLOCK

    @torch.no_grad()
    def encode(self, encode: Callable[[Tensor], Tensor]) -> None:
        """Replaces the pictures by latents, of those scenes too that are still to come.

        Args:
            encode: makes latents [n, c, h, w] of pictures uint8 [n, 64, 64, 3].
        """
        sample = encode(self.pictures[:BLOCK])
        shape = (len(self.ids), *sample.shape[1:])
        self.latents = torch.empty(shape, dtype=torch.float16, device=sample.device)
        for start in range(0, self._taken * BLOCK, BLOCK):
            rows = slice(start, start + BLOCK)
            self.latents[rows] = encode(self.pictures[rows])
        del self.pictures
        self._encode = encode

    def _ask(self) -> None:
        if self._asked < self._blocks:
            self._drawn.append(self._executor.submit(draw_block, self._asked))
            self._asked += 1

    @torch.no_grad()
    def _take(self) -> None:
        """Moves the next block here, to all processes, and waits for it if need be."""
        if rank() == 0:
            pictures, ids = map(torch.from_numpy, self._drawn.popleft().result())
            self._ask()
        else:
            pictures = torch.empty(BLOCK, SIDE, SIDE, 3, dtype=torch.uint8)
            ids = torch.empty(BLOCK, CAPTIONS, CONTEXT_LENGTH, dtype=torch.int16)
        spread(pictures, ids.view(torch.uint8))  # gloo knows no int16
        rows = slice(self._taken * BLOCK, (self._taken + 1) * BLOCK)
        self.ids[rows] = ids.to(self.ids.device)
        pictures = pictures.to(self.ids.device)
        if self._encode:
            self.latents[rows] = self._encode(pictures)
        else:
            self.pictures[rows] = pictures
        self._taken += 1
