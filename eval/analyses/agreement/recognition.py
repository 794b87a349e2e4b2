"""Recognisers: is the thing in a picture that very individual, or another one of its category?

Toyland can draw any individual as often as one likes. So each thing gets a linear classifier of
what the judge's convolutions make of a picture, which learned from drawn scenes with the thing and
with others of its category, half of them in its colour. It shares nothing with the CLIPs that
measure, and is tested on other drawn scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from eval.metrics import FloatArray
from eval.scores.pictures import fitted
from pipeline.common.seeds import seed_of
from pipeline.toyland.pretrain.autoencoder import to_tensor
from pipeline.toyland.pretrain.clip import degrade
from pipeline.toyland.pretrain.judge import Judge
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import (
    CATEGORIES,
    STYLES,
    Scene,
    Thing,
    random_scene,
    random_thing,
)

Flags = npt.NDArray[np.bool_]

SIDE = 64  # pixels, of Toyland's pictures
RIDGE = 0.3  # by trial, times the number of pictures
PHOTOS, ALONE = 0.7, 0.6  # shares of the scenes: in that style, and without another thing


@dataclass(frozen=True)
class Recogniser:
    """Says of each picture whether it shows the thing: where features @ weights + bias > 0."""

    weights: npt.NDArray[np.float64]
    bias: float

    def scores(self, features: FloatArray) -> npt.NDArray[np.float64]:
        """How sure it is [n], from the `features` [n, d] of pictures."""
        return np.asarray(features, np.float64) @ self.weights + self.bias

    def recognises(self, features: FloatArray) -> Flags:
        """Whether the thing is there, [n]."""
        return self.scores(features) > 0


@dataclass(frozen=True)
class Reliability:
    """How good a recogniser is on drawn scenes that it did not learn from."""

    auc: float  # of the thing against others
    auc_same_colour: float  # against those in its colour
    found: float  # share of the scenes with the thing in which it is recognised
    mistaken: float  # and of those with another


@torch.no_grad()
def features(judge: Judge, images: Tensor) -> npt.NDArray[np.float32]:
    """What the judge's convolutions make of images [n, 3, 64, 64] in [-1, 1]: float32 [n, d].

    Its last maps, which know where things are, and of each layer's maps the maxima and the means,
    which know patterns and colours.
    """
    parts = []
    for part in images.split(250):
        maps, found = part, []
        for layer in judge.layers:
            maps = layer(maps)
            found += [maps.amax((2, 3)), maps.mean((2, 3))]
        parts.append(torch.cat([maps.flatten(1), *found], 1).float())
    return torch.cat(parts).numpy()


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the judge takes them: [n, 3, 64, 64] in [-1, 1]."""
    return to_tensor(np.stack([np.asarray(fitted(picture, SIDE)) for picture in pictures]))


def lessons(thing: Thing, purpose: str, count: int) -> tuple[list[Scene], Flags, Flags]:
    """Scenes with the thing, and with others of its category.

    Args:
        thing: the individual.
        purpose: what they are for; others have other scenes.
        count: how many.

    Returns:
        The scenes; whether each shows the thing, which every second one does; and whether what it
        shows has the thing's colour.
    """
    scenes, own, same = [], np.arange(count) % 2 == 0, np.arange(count) % 4 != 3
    for i in range(count):
        rng = np.random.default_rng(seed_of("lesson", purpose, repr(thing), i))
        shown = thing
        if not own[i]:
            shown = random_thing(rng, thing.category, thing.colour if same[i] else None)
        things = [shown]
        if rng.random() >= ALONE:
            beside = [name for name in CATEGORIES if name != thing.category]
            things.insert(int(rng.integers(2)), random_thing(rng, str(rng.choice(beside))))
        style = STYLES[0] if rng.random() < PHOTOS else str(rng.choice(STYLES[1:]))
        scenes.append(random_scene(rng, things=tuple(things), style=style))
    return scenes, own, same


def learned(judge: Judge, thing: Thing, portraits: int) -> Recogniser:
    """The recogniser of a thing, which learned from so many drawn scenes, a part of them degraded.

    Ridge regression of 1 and -1 on standardised features, in closed form.
    """
    scenes, own, _ = lessons(thing, "learn", portraits)
    rng = np.random.default_rng(seed_of("degrade", repr(thing)))
    seen = features(judge, degrade(_drawn(scenes), rng)).astype(np.float64)
    mean, scale = seen.mean(0), seen.std(0) + 1e-3
    x = (seen - mean) / scale
    # In the space of the pictures, which are fewer than features.
    kernel = x @ x.T + RIDGE * portraits * np.eye(portraits)
    weights = x.T @ np.linalg.solve(kernel, np.where(own, 1.0, -1.0)) / scale
    return Recogniser(weights, float(-mean @ weights))


def reliability(judge: Judge, thing: Thing, recogniser: Recogniser, checks: int) -> Reliability:
    """How good the thing's recogniser is, on so many other drawn scenes."""
    scenes, own, same = lessons(thing, "check", checks)
    scores = recogniser.scores(features(judge, _drawn(scenes)))
    yes = scores > 0
    return Reliability(
        auc(scores[own], scores[~own]),
        auc(scores[own], scores[~own & same]),
        float(yes[own].mean()),
        float(yes[~own].mean()),
    )


def auc(high: npt.NDArray[np.float64], low: npt.NDArray[np.float64]) -> float:
    """How often a value of the first is above one of the second; ties are half."""
    n, m = len(high), len(low)
    ranks = rankdata(np.concatenate([high, low]))[:n].sum()
    return float((ranks - n * (n + 1) / 2) / (n * m))


def _drawn(scenes: Sequence[Scene]) -> Tensor:
    return to_tensor(np.stack([draw(scene) for scene in scenes]))
