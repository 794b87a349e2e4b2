"""Makes Toyland's models from nothing: drawn scenes are all they ever see."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from pipeline.clip.openclip import load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic_folder
from pipeline.toyland.pretrain.autoencoder import latents_of, psnr, reconstruct, train_autoencoder
from pipeline.toyland.pretrain.budget import BUDGET, Budget
from pipeline.toyland.pretrain.cards import hardware_of, write_cards
from pipeline.toyland.pretrain.clip import (
    RETRIEVAL,
    SCORING,
    WEIGHTS_FILE,
    ClipRecipe,
    HeldOut,
    new_clip,
    save_clip,
    tokenizer,
    train_clip,
)
from pipeline.toyland.pretrain.denoiser import save_base, text_encoder_of, train_denoiser
from pipeline.toyland.pretrain.judge import Judge, held_out_hits, save_judge, train_judge
from pipeline.toyland.pretrain.pool import Pool
from pipeline.toyland.pretrain.ranks import together
from pipeline.toyland.pretrain.scorecard import MODELS, Distance, scorecard
from pipeline.toyland.pretrain.vocabulary import learn_merges, vocabulary, write_open_clip
from pipeline.toyland.world.scenes import all_words

WORK = Path(".cache/toyland")
MODEL_FILES = (".safetensors", ".json", ".txt", ".gz", ".md")  # a model and its card
PROCESSES = 2  # that train the base together, where there is no GPU
# When the autoencoder's training ends and when the denoiser's, as shares of the time for the base
# by the clock; the rest is for writing it.
AUTOENCODER_UNTIL, DENOISER_UNTIL = 0.3, 0.97
# In the order in which they are trained. What comes later rests on what comes before.
PARTS = ("clip", "scorer", "judge", "base")
# What a model has to reach on held-out scenes before the next one is trained.
GATES: dict[str, dict[str, float]] = {
    "clip": {"zero-shot category accuracy": 0.9},
    "scorer": {"zero-shot category accuracy": 0.9},
    # Of all held-out scenes: sketches, far-away things and dark ones at night are among them.
    "judge": {
        "category accuracy": 0.96,
        "colour accuracy": 0.95,
        "background accuracy": 0.98,
        "pair_both accuracy": 0.93,
        "pair_colours accuracy": 0.92,
        "relation accuracy": 0.96,
        "style accuracy": 0.98,
        "size accuracy": 0.98,
        "accessory accuracy": 0.93,
    },
    "autoencoder": {"PSNR in dB": 35.0, "share of the zero-shot category accuracy kept": 0.9},
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
                f"Budget.{part} in pipeline/toyland/pretrain/budget.py and run the same command "
                "again, which trains on (or give --minutes more)"
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
    minutes: float | None  # for the base, instead of the budget
    reuse: bool  # takes the retrieval CLIP that is there

    @cached_property
    def held_out(self) -> HeldOut:
        write_open_clip(self.work)
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
        folder = self.out / RETRIEVAL.name
        if self.reuse and (folder / WEIGHTS_FILE).is_file():
            return load_clip(str(folder)).model.to(self.device)
        return self._clip(RETRIEVAL, self.budget.clip)

    @cached_property
    def scorer(self) -> open_clip.CLIP:
        return self._clip(SCORING, self.budget.scorer)

    @cached_property
    def judge(self) -> Judge:
        net = train_judge(self.work, self.device, self.budget.judge, self.budget.scenes)
        right = held_out_hits(net, self.work)
        gate("judge", {f"{name} accuracy": float(hits.mean()) for name, hits in right.items()})
        with atomic_folder(self.out / "judge", MODEL_FILES) as folder:
            save_judge(net, folder)
        return net

    @cached_property
    def base(self) -> tuple[CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
        text = text_encoder_of(self.clip)
        alone = self.device.type == "cuda"
        count = 1 if alone else min(PROCESSES, os.cpu_count() or 1)
        with together(count, _follow, self.work, self.budget, self.minutes):
            models = _train_base(
                text, self.work, self.device, self.budget, self.minutes, self._check_autoencoder
            )
        with atomic_folder(self.out / "base", MODEL_FILES) as folder:
            save_base(*models, folder)
        return models

    def _check_autoencoder(self, net: AutoencoderKL) -> None:
        real = self.held_out.images
        again = reconstruct(net, real)
        before = self.held_out.measure(self.clip)["category"]
        kept = self.held_out.measure(self.clip, again)["category"] / before
        measured = {"PSNR in dB": psnr(real, again)}
        gate("autoencoder", measured | {"share of the zero-shot category accuracy kept": kept})


def _train_base(
    text: CLIPTextModel,
    work: Path,
    device: torch.device,
    budget: Budget,
    minutes: float | None,
    check: Callable[[AutoencoderKL], None],
) -> tuple[CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
    """Trains the autoencoder, has it checked, and trains the denoiser on its latents.

    Each of the processes that train together runs this.

    Args:
        text: where the base's text encoder starts from; it is changed.
    """
    started = time.perf_counter()

    def until(share: float) -> float | None:
        """Seconds that are left of the time's first part."""
        left = share * 60 * minutes + started - time.perf_counter() if minutes else None
        return left and max(1.0, left)

    scenes = budget.base_scenes_by_clock if minutes else budget.base_scenes
    with Pool(scenes, device, by_clock=minutes is not None) as pool:
        autoencoder = train_autoencoder(
            pool, work, device, budget.autoencoder, until(AUTOENCODER_UNTIL)
        )
        check(autoencoder)
        pool.encode(partial(latents_of, autoencoder))
        unet = train_denoiser(
            text, autoencoder, pool, work, device, budget.denoiser, until(DENOISER_UNTIL)
        )
    return text, autoencoder, unet


def _follow(work: Path, budget: Budget, minutes: float | None) -> None:
    """What the other processes do. Where training starts from, they learn from the first one."""
    text = text_encoder_of(new_clip(RETRIEVAL, len(vocabulary(learn_merges(all_words())))))
    _train_base(text, work, torch.device("cpu"), budget, minutes, check=lambda _: None)


def pretrain(
    work: Path = WORK,
    out: Path = MODELS,
    device: torch.device | None = None,
    only: str | None = None,
    minutes: float | None = None,
    budget: Budget = BUDGET,
    distance: Distance | None = None,
) -> None:
    """Trains the models one after the other and writes them, a scorecard and their cards to `out`.

    Stopped and started again, it continues from the checkpoints in `work`.

    Args:
        device: by default the GPU if there is one.
        only: one of PARTS: that model alone, after those it rests on, and no scorecard. The base
            rests on the retrieval CLIP, which is taken from `out` if it is there.
        minutes: trains the base by the clock instead of the budget, without checkpoints.
        distance: KID for the scorecard; see `scorecard`.

    Raises:
        BenchError: `only` is none of PARTS, `minutes` are not more than nothing, or a model does
            not reach what the next one needs.
    """
    started = time.perf_counter()
    if only is not None and only not in PARTS:
        raise BenchError(f"--only {only}: no such model: choose one of {', '.join(PARTS)}")
    if minutes is not None and not minutes > 0:
        raise BenchError(f"--minutes {minutes:g}: has to be more than 0")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Convolutions of the same few shapes all along: the fastest way is worth looking for.
    torch.backends.cudnn.benchmark = True
    models = _Pretraining(work, out, device, budget, minutes, reuse=only == "base")
    for part in [only] if only else PARTS:
        getattr(models, part)
    if not only:
        results = scorecard(out, out / "scorecard.json", out / "scorecard.jpg", distance=distance)
        write_cards(results, out, budget, hardware_of(device))
    spent = (time.perf_counter() - started) / 60
    print(f"pretrain: {only or 'all models'} in {spent:.1f} min: {out}")
