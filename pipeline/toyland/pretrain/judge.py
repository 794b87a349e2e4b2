"""The judge: a small classifier of drawn scenes that says what is to be seen in a picture.

It learned from drawn scenes alone, partly blurred and noised, and no other model of Toyland was
trained with it. So it can tell how often reconstructed and generated pictures show what they were
meant to show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.toyland.pretrain.autoencoder import to_tensor
from pipeline.toyland.pretrain.clip import degrade
from pipeline.toyland.pretrain.fitting import autocast, fit
from pipeline.toyland.pretrain.pictures import held_out_scene, pictures
from pipeline.toyland.world.scenes import (
    ACCESSORIES,
    ANIMALS,
    BACKGROUNDS,
    CATEGORIES,
    COLOURED_STYLES,
    COLOURS,
    SIZES,
    STYLES,
    Scene,
    random_scene,
)

WEIGHTS_FILE = "judge.safetensors"
BATCH = 64
WIDTHS = (32, 64, 96, 160)
SIDE = 4  # of the last maps, in their pixels
SEED = 41
BARE = "none"
# What the heads choose from. Of two things, the one to the left or on top is asked for first.
CHOICES: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "colour": tuple(COLOURS),
    "other_category": CATEGORIES,
    "other_colour": tuple(COLOURS),
    "relation": ("alone", "beside", "in", "on"),
    "background": tuple(BACKGROUNDS),
    "size": tuple(SIZES),
    "style": STYLES,
    "accessory": (BARE, *ACCESSORIES),
}
_NONE = -100  # what cross_entropy ignores


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Judge(nn.Module):
    """Convolutions from 64 x 64 pixels to 4 x 4, and a linear head for each question.

    The heads see all of the last maps, as some ask what is where, and their maxima.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = [_layer(3, WIDTHS[0], 2)]
        for inputs, outputs in zip(WIDTHS, WIDTHS[1:]):
            layers += [_layer(inputs, outputs, 2), _layer(outputs, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        sizes = {name: len(names) for name, names in CHOICES.items()} | {"present": len(CATEGORIES)}
        features = WIDTHS[-1] * (SIDE * SIDE + 1)
        self.heads = nn.ModuleDict({name: nn.Linear(features, n) for name, n in sizes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [n, choices] of each head for images [n, 3, 64, 64] in [-1, 1].

        The head "present" has a logit for each category, of whether it is in the picture.
        """
        maps = self.layers(images)
        features = torch.cat([maps.flatten(1), maps.amax((2, 3))], 1)
        return {name: head(features) for name, head in self.heads.items()}


def study_scene(index: int) -> Scene:
    """Scene number `index` of the part that the judge learns from.

    Of ten scenes at least six hold two things, and two an animal that wears something: there is
    more to tell of those, and the world has few of them.
    """
    rng = np.random.default_rng([SEED, index])
    kind = "pair" if index % 10 < 6 else "dressed" if index % 10 < 8 else "any"
    while True:
        scene = random_scene(rng)
        thing, *others = scene.things
        if kind == "any" or (kind == "pair" and others):
            return scene
        if kind == "dressed" and not others and thing.category in ANIMALS:
            worn = str(rng.choice(tuple(ACCESSORIES)))
            return replace(scene, things=(replace(thing, accessory=worn),))


def mirrored(scene: Scene) -> Scene:
    """The scene seen in a mirror."""
    return replace(scene, flip=not scene.flip)


def answers(scene: Scene) -> dict[str, str]:
    """What there is to say about the scene, out of CHOICES; no answer is no question."""
    out = {"background": scene.background, "size": scene.size, "style": scene.style}
    beside = scene.relation in ("and", "next to")
    out["relation"] = "beside" if beside else scene.relation or "alone"
    things = scene.things[::-1] if beside and scene.flip else scene.things
    for prefix, thing in zip(("", "other_"), things):
        out[f"{prefix}category"] = thing.category
        if scene.style in COLOURED_STYLES:
            out[f"{prefix}colour"] = thing.colour
    if len(things) == 1:
        out["accessory"] = things[0].accessory or BARE
    return out


@dataclass(frozen=True)
class Labels:
    """What scenes show, as the heads learn it."""

    choices: dict[str, npt.NDArray[np.int64]]  # [n] each; _NONE where there is no question
    present: npt.NDArray[np.float32]  # [n, categories], 0 or 1


def labels_of(scenes: list[Scene]) -> Labels:
    """The labels of these scenes."""
    present = np.zeros((len(scenes), len(CATEGORIES)), np.float32)
    for row, scene in zip(present, scenes):
        row[[CATEGORIES.index(thing.category) for thing in scene.things]] = 1
    said = [answers(scene) for scene in scenes]
    choices = {
        name: np.array([names.index(s[name]) if name in s else _NONE for s in said])
        for name, names in CHOICES.items()
    }
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
    """Trains the judge on drawn scenes, in a mirror half of the time."""
    torch.manual_seed(SEED)
    net = Judge().to(device)
    images = pictures(study_scene, scenes, work)
    parts = [study_scene(i) for i in range(scenes)]
    labels = labels_of([*parts, *(mirrored(part) for part in parts)])

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([SEED, step])
        chosen = np.sort(rng.choice(scenes, BATCH, replace=False))
        mirror = rng.random(BATCH) < 0.5
        drawn = to_tensor(images[chosen], device)
        drawn[mirror] = drawn[mirror].flip(3)
        batch = degrade(drawn, rng)
        with autocast(device):
            logits = net(batch)
        return judge_loss(logits, labels, chosen + scenes * mirror)

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
        Its answer to each question of CHOICES for each image, and the categories of all the things
        in it. An answer about a second thing means something if there is one.
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


def _things(said: dict[str, str]) -> list[tuple[str, str]]:
    """Category and colour of the first and the second thing, as far as they were answered."""
    return [(said[f"{of}category"], said.get(f"{of}colour", "")) for of in ("", "other_")]


def right_answers(said: dict[str, str], present: set[str], scene: Scene) -> dict[str, bool]:
    """Which of the answers about a picture fit what it was to show.

    Args:
        said: an answer to each question of CHOICES.
        present: the categories seen anywhere in the picture.
        scene: what it was to show. Nobody asked which of two things is to be on the left.

    Returns:
        `background`, `size` and `style`; of one thing `category`, `colour` (unless it is drawn
        without colours) and `accessory`. Of two `pair_both`, whether both are there at all;
        `pair_colours`, whether the two that are seen are they, each in its own colour; `relation`,
        whether both are where one of the ways to draw their relation has them; and if that is side
        by side, `left_first`, whether the one that is named first is on the left.
    """
    wanted = answers(scene)

    def agree(*names: str) -> dict[str, bool]:
        return {name: said[name] == wanted[name] for name in names if name in wanted}

    right = agree("background", "size", "style")
    if len(scene.things) == 1:
        return right | agree("category", "colour", "accessory")
    right["pair_both"] = {thing.category for thing in scene.things} <= present
    seen, asked = _things(said), _things(wanted)
    if "colour" in wanted:
        right["pair_colours"] = sorted(seen) == sorted(asked)
    places, drawn = [category for category, _ in seen], [category for category, _ in asked]
    beside = wanted["relation"] == "beside"
    placed = places == drawn or (beside and places == drawn[::-1])
    right["relation"] = placed and said["relation"] == wanted["relation"]
    if beside and right["relation"]:
        right["left_first"] = places[0] == scene.things[0].category
    return right


def marks(judge: Judge, images: Tensor, scenes: list[Scene]) -> list[dict[str, bool]]:
    """`right_answers` about each of the images [n, 3, 64, 64] in [-1, 1]."""
    choices, present = judged(judge, images)
    said = (dict(zip(choices, answer)) for answer in zip(*choices.values()))
    return [right_answers(*seen) for seen in zip(said, present, scenes)]


def hits(judge: Judge, images: Tensor, scenes: list[Scene]) -> dict[str, npt.NDArray[np.bool_]]:
    """The same by question, over the images that have it."""
    right = marks(judge, images, scenes)
    names = dict.fromkeys(name for answer in right for name in answer)
    return {name: np.array([r[name] for r in right if name in r]) for name in names}


def held_out_hits(judge: Judge, work: Path | None) -> dict[str, npt.NDArray[np.bool_]]:
    """`hits` on scenes that nothing was trained on."""
    images = pictures(held_out_scene, 2000, work)
    scenes = [held_out_scene(i) for i in range(len(images))]
    return hits(judge, to_tensor(images), scenes)


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
