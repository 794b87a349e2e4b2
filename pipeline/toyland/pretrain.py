"""Makes Toyland's models from nothing: drawn scenes are all they ever see."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from pipeline.errors import BenchError
from pipeline.files import atomic_folder
from pipeline.toyland.autoencoder import psnr, reconstruct, train_autoencoder
from pipeline.toyland.budget import BUDGET, Budget
from pipeline.toyland.cards import hardware_of, write_cards
from pipeline.toyland.clip import (
    RETRIEVAL,
    SCORING,
    ClipRecipe,
    HeldOut,
    save_clip,
    tokenizer,
    train_clip,
)
from pipeline.toyland.denoiser import save_base, train_denoiser
from pipeline.toyland.judge import Judge, held_out_hits, save_judge, train_judge
from pipeline.toyland.scorecard import MODELS, scorecard

WORK = Path(".cache/toyland")
MODEL_FILES = (".safetensors", ".json", ".txt", ".gz", ".md")  # a model and its card
# In the order in which they are trained. What comes later rests on what comes before.
PARTS = ("clip", "scorer", "autoencoder", "judge", "denoiser")
# What a model has to reach on held-out scenes before the next one is trained.
GATES: dict[str, dict[str, float]] = {
    "clip": {"zero-shot category accuracy": 0.9},
    "scorer": {"zero-shot category accuracy": 0.9},
    "autoencoder": {"PSNR in dB": 28.0, "share of the zero-shot category accuracy kept": 0.9},
    "judge": {"category accuracy": 0.97, "colour accuracy": 0.95, "background accuracy": 0.99},
}


def gate(part: str, measured: dict[str, float]) -> None:
    """Prints what a model reached, and stops if that is not enough.

    Raises:
        BenchError: a measure of `GATES[part]` is below what is required.
    """
    for name, least in GATES[part].items():
        if not measured[name] >= least:
            raise BenchError(
                f"{part}: {name} is {measured[name]:.3f}, at least {least:g} is required: raise "
                f"Budget.{part} in pipeline/toyland/budget.py and run the same command again, "
                "which trains on"
            )
    words = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    print(f"pretrain: {part} passes: {words}")


@dataclass(frozen=True)
class _Pretraining:
    """The models, each trained (or restored from its checkpoint), gated and saved on first use."""

    work: Path
    out: Path
    device: torch.device
    budget: Budget

    @cached_property
    def held_out(self) -> HeldOut:
        return HeldOut(self.work, tokenizer(self.work), self.device)

    def _clip(self, recipe: ClipRecipe, steps: int) -> open_clip.CLIP:
        budget = self.budget
        net = train_clip(recipe, self.work, self.device, steps, budget.scenes, budget.things)
        reached = self.held_out.measure(net.eval())["category"]
        gate(recipe.name, {"zero-shot category accuracy": reached})
        with atomic_folder(self.out / recipe.name, MODEL_FILES) as folder:
            save_clip(net, recipe, folder)
        return net

    @cached_property
    def clip(self) -> open_clip.CLIP:
        return self._clip(RETRIEVAL, self.budget.clip)

    @cached_property
    def scorer(self) -> open_clip.CLIP:
        return self._clip(SCORING, self.budget.scorer)

    @cached_property
    def autoencoder(self) -> AutoencoderKL:
        clip = self.clip
        steps, scenes = self.budget.autoencoder, self.budget.scenes
        net = train_autoencoder(self.work, self.device, steps, scenes)
        real = self.held_out.images
        again = reconstruct(net, real)
        before = self.held_out.measure(clip)["category"]
        kept = self.held_out.measure(clip, again)["category"] / before
        measured = {"PSNR in dB": psnr(real, again)}
        gate("autoencoder", measured | {"share of the zero-shot category accuracy kept": kept})
        return net

    @cached_property
    def judge(self) -> Judge:
        net = train_judge(self.work, self.device, self.budget.judge, self.budget.scenes)
        right = held_out_hits(net, self.work)
        gate("judge", {f"{name} accuracy": float(hits.mean()) for name, hits in right.items()})
        with atomic_folder(self.out / "judge", MODEL_FILES) as folder:
            save_judge(net, folder)
        return net

    @cached_property
    def denoiser(self) -> UNet2DConditionModel:
        clip, autoencoder, budget = self.clip, self.autoencoder, self.budget
        net = train_denoiser(
            clip,
            autoencoder,
            self.work,
            self.device,
            budget.denoiser,
            budget.denoiser_pairs,
            budget.scenes,
        )
        with atomic_folder(self.out / "base", MODEL_FILES) as folder:
            save_base(clip, autoencoder, net, folder)
        return net


def pretrain(
    work: Path = WORK,
    out: Path = MODELS,
    device: torch.device | None = None,
    only: str | None = None,
    budget: Budget = BUDGET,
) -> None:
    """Trains the models one after the other and writes them, a scorecard and their cards to `out`.

    Stopped and started again, it continues from the checkpoints in `work`.

    Args:
        device: by default the GPU if there is one.
        only: one of PARTS: that model alone, after those it rests on, and no scorecard. The
            autoencoder is written with the denoiser, as parts of the base model.

    Raises:
        BenchError: `only` is none of PARTS, or a model does not reach what the next one needs.
    """
    started = time.perf_counter()
    if only is not None and only not in PARTS:
        raise BenchError(f"--only {only}: no such model: choose one of {', '.join(PARTS)}")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = _Pretraining(work, out, device, budget)
    for part in [only] if only else PARTS:
        getattr(models, part)
    if not only:
        results = scorecard(out, out / "scorecard.json", out / "scorecard.jpg")
        write_cards(results, out, budget, hardware_of(device))
    minutes = (time.perf_counter() - started) / 60
    print(f"pretrain: {only or 'all models'} in {minutes:.1f} min: {out}")
