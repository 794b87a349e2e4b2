"""Toyland's two CLIPs: one to retrieve by and to condition the base model, one to score with.

Both have a small residual network for pictures (a small vision transformer learned colours and
backgrounds, but not shapes) and a transformer of four layers for text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipeline.toyland.pretrain.autoencoder import to_tensor
from pipeline.toyland.pretrain.fitting import autocast, fit
from pipeline.toyland.pretrain.pictures import (
    held_out_scene,
    pictures,
    portrait,
    training_scene,
)
from pipeline.toyland.pretrain.vocabulary import CONTEXT_LENGTH, MERGES_FILE, write_open_clip
from pipeline.toyland.world.scenes import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    Scene,
    caption,
    full_caption,
)

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
BATCH = 128


@dataclass(frozen=True)
class ClipRecipe:
    """What one of the CLIPs differs in."""

    name: str
    seed: int
    width: int  # of the picture tower
    instance_weight: float  # of the term that tells individuals of a category apart


RETRIEVAL = ClipRecipe("clip", seed=21, width=24, instance_weight=0.0)
SCORING = ClipRecipe("scorer", seed=22, width=28, instance_weight=0.5)


def model_config(recipe: ClipRecipe, vocab_size: int) -> dict[str, Any]:
    """The model as an open_clip configuration."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": recipe.width,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 4,
        },
    }


def new_clip(recipe: ClipRecipe, vocab_size: int) -> open_clip.CLIP:
    """An untrained CLIP."""
    torch.manual_seed(recipe.seed)
    return open_clip.CLIP(**model_config(recipe, vocab_size))


def tokenizer(folder: Path) -> open_clip.SimpleTokenizer:
    """The tokenizer of the merges in `folder`."""
    return open_clip.SimpleTokenizer(
        bpe_path=str(folder / MERGES_FILE), context_length=CONTEXT_LENGTH
    )


def degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blurs and noises a part of the batch, as autoencoders and diffusion models do."""
    out = images.clone()
    kind = torch.from_numpy(rng.integers(0, 6, len(images))).to(images.device)
    for k, factor in ((0, 2), (1, 4)):
        small = F.avg_pool2d(images[kind == k], factor)
        if len(small):
            out[kind == k] = F.interpolate(small, scale_factor=factor, mode="bilinear")
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    scale = torch.from_numpy(rng.uniform(0, 0.25, len(images)).astype(np.float32))
    noisy = (kind == 1) | (kind == 2)
    return out + noise.to(images.device) * (scale.to(images.device) * noisy)[:, None, None, None]


def matching_loss(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's loss on unit vectors [n, d], where pairs with `same` [n, n] captions all match."""
    logits = scale * images @ texts.T
    target = same.float() / same.sum(1, keepdim=True)
    by_image = -(target * F.log_softmax(logits, 1)).sum(1).mean()
    by_text = -(target * F.log_softmax(logits, 0).T).sum(1).mean()
    return (by_image + by_text) / 2


def instance_loss(pairs: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrastive loss of unit vectors [2 n, d]: rows 2 i and 2 i + 1 show one individual."""
    logits = (pairs @ pairs.T / temperature).fill_diagonal_(-1e4)
    partner = torch.arange(len(pairs), device=pairs.device) ^ 1
    return F.cross_entropy(logits, partner)


def _groups(scenes: list[Scene]) -> list[list[npt.NDArray[np.intp]]]:
    """Indices of scenes with a common background, and of those with a common colour."""
    backgrounds = np.array([scene.background for scene in scenes])
    colours = np.array([scene.things[0].colour for scene in scenes])
    return [
        [np.flatnonzero(backgrounds == name) for name in BACKGROUNDS],
        [np.flatnonzero(colours == name) for name in COLOURS],
    ]


def train_clip(
    recipe: ClipRecipe, work: Path, device: torch.device, steps: int, scenes: int, things: int
) -> open_clip.CLIP:
    """Trains one CLIP on drawn scenes and their captions.

    In most batches all pictures share their background or their colour: then only the category
    and what else there is can tell the pairs apart.
    """
    vocab_size = write_open_clip(work)
    tokenize = tokenizer(work)
    net = new_clip(recipe, vocab_size).to(device)
    images = pictures(training_scene, scenes, work)
    portraits = pictures(portrait, 2 * things, work) if recipe.instance_weight else images
    parts = [training_scene(i) for i in range(scenes)]
    groups = _groups(parts)
    kinds = _things_of_a_kind(things) if recipe.instance_weight else []
    held_out = HeldOut(work, tokenize, device)

    def draw_batch(rng: np.random.Generator) -> npt.NDArray[np.intp]:
        kind = int(rng.choice(3, p=(0.3, 0.4, 0.3)))
        if kind == 0:
            return np.sort(rng.choice(scenes, BATCH, replace=False))
        group = groups[kind - 1][int(rng.integers(len(groups[kind - 1])))]
        return np.sort(rng.choice(group, BATCH, replace=False))

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        chosen = draw_batch(rng)
        captions = [
            caption(parts[i], rng) if rng.random() < 0.6 else full_caption(parts[i]) for i in chosen
        ]
        tokens = tokenize(captions).to(device)
        batch = degrade(to_tensor(images[chosen], device), rng)
        same = (tokens[:, None] == tokens[None]).all(-1)
        with autocast(device):
            features = net.encode_image(batch, normalize=True)
            texts = net.encode_text(tokens, normalize=True)
        scale = net.logit_scale.exp().clamp(max=100)
        value = matching_loss(features.float(), texts.float(), scale, same)
        if recipe.instance_weight and step % 2:
            # Eight individuals of each of four categories, two pictures of each.
            few = [rng.choice(kinds[k], 8, replace=False) for k in rng.choice(len(kinds), 4, False)]
            rows = (2 * np.concatenate(few)[:, None] + np.arange(2)).ravel()
            batch = degrade(to_tensor(portraits[rows], device), rng)
            with autocast(device):
                features = net.encode_image(batch, normalize=True)
            groups_of = features.float().split(16)
            terms = torch.stack([instance_loss(group) for group in groups_of])
            value = value + recipe.instance_weight * terms.mean()
        return value

    def monitor(_: int) -> str:
        words = held_out.words(net.eval())
        net.train()
        return words

    fit(
        net,
        loss,
        steps=steps,
        learning_rate=1e-3,
        weight_decay=0.1,
        checkpoint=work / f"{recipe.name}.pt",
        label=recipe.name,
        monitor=monitor,
    )
    return net


def _things_of_a_kind(things: int) -> list[npt.NDArray[np.intp]]:
    categories = np.array([portrait(2 * i).things[0].category for i in range(things)])
    return [np.flatnonzero(categories == name) for name in CATEGORIES]


class HeldOut:
    """Measures a CLIP on scenes that it was not trained on."""

    def __init__(self, work: Path | None, tokenize: Any, device: torch.device, count: int = 1000):
        self.scenes = [held_out_scene(i) for i in range(count)]
        self.images = to_tensor(pictures(held_out_scene, 2000, work)[:count], device)
        self.tokenize, self.device = tokenize, device

    @torch.no_grad()
    def measure(self, net: open_clip.CLIP, images: Tensor | None = None) -> dict[str, float]:
        """Retrieval of captions (R@1) and zero-shot accuracy of a CLIP in evaluation mode.

        Args:
            images: other pictures of the same scenes, such as reconstructions of them.
        """
        images = self.images if images is None else images
        features = torch.cat([net.encode_image(x, normalize=True) for x in images.split(250)])
        captions = [full_caption(scene) for scene in self.scenes]
        similarity = features @ self.texts(net, captions).T
        best = similarity.argmax(1)
        hits = [captions[i] == captions[j] for i, j in enumerate(best.tolist())]
        out = {"retrieval_r1": float(np.mean(hits))}
        # What a photograph of a single thing shows.
        chosen = [i for i, s in enumerate(self.scenes) if len(s.things) == 1 and s.style == "photo"]
        single = features[chosen]
        things = [self.scenes[i].things[0] for i in chosen]
        for key, names, texts, truth in (
            (
                "category",
                CATEGORIES,
                [f"photo of a {c}" for c in CATEGORIES],
                [t.category for t in things],
            ),
            (
                "background",
                tuple(BACKGROUNDS),
                [f"photo {p[0]}" for p in BACKGROUNDS.values()],
                [self.scenes[i].background for i in chosen],
            ),
        ):
            guesses = (single @ self.texts(net, texts).T).argmax(1).tolist()
            out[key] = float(np.mean([names[g] == t for g, t in zip(guesses, truth)]))
        right = []
        for feature, thing in zip(single, things):
            texts = [f"photo of a {colour} {thing.category}" for colour in COLOURS]
            right.append(self._colour(net, feature, tuple(texts)) == thing.colour)
        out["colour"] = float(np.mean(right))
        return out

    def _colour(self, net: open_clip.CLIP, feature: Tensor, texts: tuple[str, ...]) -> str:
        guess = int((feature @ self.texts(net, list(texts)).T).argmax())
        return tuple(COLOURS)[guess]

    def texts(self, net: open_clip.CLIP, texts: list[str]) -> Tensor:
        """Unit text features [n, d]."""
        tokens = self.tokenize(texts).to(self.device)
        return torch.cat([net.encode_text(part, normalize=True) for part in tokens.split(250)])

    def words(self, net: open_clip.CLIP) -> str:
        """The measures in one line."""
        return ", ".join(f"{name} {value:.3f}" for name, value in self.measure(net).items())


def save_clip(net: open_clip.CLIP, recipe: ClipRecipe, folder: Path) -> None:
    """Writes configuration, merges and half-precision weights as open_clip names them."""
    vocab_size = write_open_clip(folder)
    config = {
        "model_cfg": model_config(recipe, vocab_size),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in net.state_dict().items()
        if name != "attn_mask"
    }
    save_file(weights, folder / WEIGHTS_FILE)
