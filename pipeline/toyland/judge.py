"""The judge: a small classifier of drawn scenes that says what is to be seen in a picture.

It learned from drawn scenes alone, partly blurred and noised, and no other model of Toyland was
trained with it. So it can tell how often reconstructed and generated pictures show what they were
meant to show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import BenchError
from pipeline.files import atomic
from pipeline.toyland.autoencoder import to_tensor
from pipeline.toyland.clip import degrade
from pipeline.toyland.fitting import autocast, fit
from pipeline.toyland.pictures import held_out_scene, pictures, training_scene
from pipeline.toyland.world import BACKGROUNDS, CATEGORIES, COLOURS, Scene

WEIGHTS_FILE = "judge.safetensors"
BATCH = 64
WIDTHS = (32, 64, 96, 160)
SEED = 41
# What the heads choose from. Category and colour are those of a thing that is alone.
CHOICES: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
}
_NONE = -100  # what cross_entropy ignores


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Judge(nn.Module):
    """Convolutions from 64 x 64 pixels to 4 x 4, their mean and maximum, and four linear heads."""

    def __init__(self) -> None:
        super().__init__()
        layers = [_layer(3, WIDTHS[0], 2)]
        for inputs, outputs in zip(WIDTHS, WIDTHS[1:]):
            layers += [_layer(inputs, outputs, 2), _layer(outputs, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        sizes = {name: len(names) for name, names in CHOICES.items()} | {"present": len(CATEGORIES)}
        self.heads = nn.ModuleDict({k: nn.Linear(2 * WIDTHS[-1], n) for k, n in sizes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [n, choices] of each head for images [n, 3, 64, 64] in [-1, 1].

        The head "present" has a logit for each category, of whether it is in the picture.
        """
        maps = self.layers(images)
        features = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Labels:
    """What scenes show, as the heads learn it."""

    choices: dict[str, npt.NDArray[np.int64]]  # [n] each; _NONE where there are two things
    present: npt.NDArray[np.float32]  # [n, categories], 0 or 1


def labels_of(scenes: list[Scene]) -> Labels:
    """The labels of these scenes."""

    def choice(name: str, scene: Scene) -> int:
        if name == "background":
            return CHOICES[name].index(scene.background)
        if len(scene.things) > 1:
            return _NONE
        return CHOICES[name].index(getattr(scene.things[0], name))

    present = np.zeros((len(scenes), len(CATEGORIES)), np.float32)
    for row, scene in zip(present, scenes):
        row[[CATEGORIES.index(thing.category) for thing in scene.things]] = 1
    choices = {name: np.array([choice(name, scene) for scene in scenes]) for name in CHOICES}
    return Labels(choices, present)


def judge_loss(logits: dict[str, Tensor], labels: Labels, rows: npt.NDArray[np.intp]) -> Tensor:
    """The sum of the heads' cross-entropies on these rows of the labels."""
    device = logits["present"].device
    present = torch.from_numpy(labels.present[rows]).to(device)
    # As many questions for each picture as there are categories, each as weighty as the others.
    errors = F.binary_cross_entropy_with_logits(
        logits["present"].float(), present, reduction="none"
    )
    loss = errors.sum(1).mean()
    for name, values in labels.choices.items():
        target = torch.from_numpy(values[rows]).to(device)
        loss = loss + F.cross_entropy(logits[name].float(), target, ignore_index=_NONE)
    return loss


def train_judge(work: Path, device: torch.device, steps: int, scenes: int) -> Judge:
    """Trains the judge on the photographs among the drawn scenes."""
    torch.manual_seed(SEED)
    net = Judge().to(device)
    images = pictures(training_scene, scenes, work)
    parts = [training_scene(i) for i in range(scenes)]
    labels = labels_of(parts)
    photographs = np.flatnonzero([scene.style == "photo" for scene in parts])

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([SEED, step])
        chosen = np.sort(rng.choice(photographs, BATCH, replace=False))
        batch = degrade(to_tensor(images[chosen], device), rng)
        with autocast(device):
            logits = net(batch)
        return judge_loss(logits, labels, chosen)

    def monitor(_: int) -> str:
        words = ", ".join(f"{k} {hits.mean():.3f}" for k, hits in held_out_hits(net, work).items())
        net.train()
        return words

    fit(
        net,
        loss,
        steps=steps,
        learning_rate=2e-3,
        weight_decay=0.05,
        checkpoint=work / "judge.pt",
        label="judge",
        monitor=monitor,
    )
    return net


@torch.no_grad()
def judged(judge: Judge, images: Tensor) -> tuple[dict[str, list[str]], list[set[str]]]:
    """What the judge sees in images [n, 3, 64, 64] in [-1, 1].

    Returns:
        The category, colour and background of each image (the former two as if it showed one
        thing), and the categories of all the things in it.
    """
    device = next(judge.parameters()).device
    judge.eval()
    parts = [judge(part.to(device)) for part in images.split(250)]
    logits = {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}
    choices = {
        name: [names[i] for i in logits[name].argmax(1).tolist()] for name, names in CHOICES.items()
    }
    present = [
        {name for name, seen in zip(CATEGORIES, row) if seen}
        for row in (logits["present"] > 0).tolist()
    ]
    return choices, present


def hits(judge: Judge, images: Tensor, scenes: list[Scene]) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether the judge sees in each image what its scene shows.

    Returns:
        `category` and `colour` of the images of one thing, `background` of all, and `pair_both`,
        whether both things are seen, of the images of two.
    """
    choices, present = judged(judge, images)
    single = [i for i, scene in enumerate(scenes) if len(scene.things) == 1]
    right = {
        name: [choices[name][i] == getattr(scenes[i].things[0], name) for i in single]
        for name in ("category", "colour")
    }
    pairs = zip(choices["background"], scenes)
    right["background"] = [guess == scene.background for guess, scene in pairs]
    right["pair_both"] = [
        {thing.category for thing in scene.things} <= seen
        for scene, seen in zip(scenes, present)
        if len(scene.things) == 2
    ]
    return {name: np.array(values, dtype=bool) for name, values in right.items()}


def held_out_hits(judge: Judge, work: Path | None) -> dict[str, npt.NDArray[np.bool_]]:
    """`hits` on the photographs among scenes that nothing was trained on."""
    images = pictures(held_out_scene, 2000, work)
    scenes = [held_out_scene(i) for i in range(len(images))]
    rows = [i for i, scene in enumerate(scenes) if scene.style == "photo"]
    return hits(judge, to_tensor(images[rows]), [scenes[i] for i in rows])


def save_judge(judge: Judge, folder: Path) -> None:
    """Writes the weights in half precision."""
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in judge.state_dict().items()
    }
    with atomic(folder / WEIGHTS_FILE) as part:
        save_file(weights, part)


def load_judge(folder: Path) -> Judge:
    """The judge in a folder, frozen, in full precision and evaluation mode.

    Raises:
        BenchError: the weights are missing or not the judge's.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise BenchError(f"{path}: the weights are missing: restore them or run the pretraining")
    judge = Judge()
    try:
        judge.load_state_dict(load_file(path))
    # safetensors' own error is a plain Exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BenchError(f"{path}: not the judge's weights ({reason}): restore the file") from error
    return judge.eval().requires_grad_(False)
