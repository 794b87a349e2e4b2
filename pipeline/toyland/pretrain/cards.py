"""The model cards: every number in them comes from the scorecard or the budget."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.toyland.pretrain import autoencoder, clip, denoiser, judge
from pipeline.toyland.pretrain.budget import Budget
from pipeline.toyland.pretrain.pictures import PAIRS_SHARE

MODELS = ("base", "clip", "scorer", "judge")
_HEAD = """\
---
license: apache-2.0
tags: [toyland]
---
# {title}

{what}

## How it was trained

{how}

Hardware: {hardware}. Everything it has seen was drawn by this project; no photograph, no
download and no pretrained weight is in it. `bench toyland pretrain` makes it again.

## How good it is

On scenes that nothing was trained on, `bench toyland scorecard`:

{table}

## Limits

{limits}

## Licence

Apache-2.0, weights and training code.
"""
# What the code does not tell of certain weights, by their identity.
_HISTORY = {
    "0ae86dd3391dc6a7": (
        "\n\nThese weights were made by an earlier script with this recipe, on one H100 in seven "
        "minutes: the autoencoder by 1,130 steps of 256 pictures from a checkpoint of 35.1 dB "
        "that half an hour of a CPU core had made and that is not kept; UNet and text encoder by "
        "4,926 steps of 512 on 900,000 scenes. There, captions with a meaningless letter taught "
        "the text encoder too, which made the letters' embeddings alike: afterwards, each letter "
        "was given a random one of norm 0.5. `bench toyland pretrain` has not made a base of this "
        "quality yet."
    ),
}
_ROW = "| {name} | {value:.3f} | {error:.3f} | {n} |"


def hardware_of(device: torch.device) -> dict[str, str]:
    """The machine in words, as far as it can be asked, for each of the models."""
    if device.type == "cuda":
        return dict.fromkeys(MODELS, f"one {torch.cuda.get_device_name(device)}")
    return dict.fromkeys(MODELS, f"{os.cpu_count()} CPU cores, no GPU")


def hardware_named(options: Sequence[str]) -> dict[str, str]:
    """What each model was trained on, from "MODEL=WORDS" and "WORDS" for all others.

    Raises:
        BenchError: there is no such model, or one is left out.
    """
    parts = [option.partition("=") for option in options]
    named = {name: words for name, equals, words in parts if equals}
    others = [words for words, equals, _ in parts if not equals]
    if unknown := set(named) - set(MODELS):
        raise BenchError(
            f"--hardware: no model {min(unknown)!r}: write MODEL=WORDS, where MODEL is one of "
            f"{', '.join(MODELS)}"
        )
    if len(others) > 1 or (not others and set(named) < set(MODELS)):
        raise BenchError(
            "--hardware: give MODEL=WORDS for each model, or once WORDS for all of the others"
        )
    return {name: named[name] if name in named else others[0] for name in MODELS}


def write_cards(
    results: dict[str, Any], models: Path, budget: Budget, hardware: Mapping[str, str]
) -> None:
    """Writes `<model>.md` beside the folder of each model.

    Not into it: stages depend on the folders, and a word changed in a card makes nothing stale.

    Args:
        results: what `scorecard` returned for these models.
        budget: what they were trained with.
        hardware: what each of them was trained on, in words.
    """
    for name, parts in _cards(results, budget).items():
        groups = parts.pop("groups").split()
        table = _table(results, groups)
        with atomic(models / f"{name}.md") as part:
            part.write_text(_HEAD.format(table=table, hardware=hardware[name], **parts), "utf-8")


def _table(results: dict[str, Any], groups: list[str]) -> str:
    """The measures of these groups as a Markdown table."""
    lines = ["| measure | value | standard error | n |", "|---|---|---|---|"]
    for group in filter(results.__contains__, groups):  # KID is not always measured
        for key, value in results[group].items():
            error, n = results["std_error"][group][key], results["n"][group][key]
            lines.append(_ROW.format(name=f"{group}.{key}", value=value, error=error, n=n))
    return "\n".join(lines)


def _cards(results: dict[str, Any], budget: Budget) -> dict[str, dict[str, str]]:
    generated, scorer = results["generated"], results["scorer"]
    scenes = f"{budget.scenes:,} drawn scenes of 64 x 64 pixels with captions"
    return {
        "base": {
            "title": "Toyland's base model",
            "what": (
                "A latent diffusion model in Stable Diffusion's format (AutoencoderKL, "
                "CLIPTextModel, CLIPTokenizer, UNet2DConditionModel, DDIMScheduler) that draws "
                "scenes of Toyland, the small world that this benchmark is tried on: 64 x 64 "
                "pixels, latents of 16 x 16 with 6 channels. "
                '`StableDiffusionPipeline.from_pretrained("models/toyland/base")` loads it.'
            ),
            "how": _base_training(budget) + _HISTORY.get(results["models"]["base"], ""),
            "groups": "generated reconstructed real mistaken letters kid autoencoder",
            "limits": (
                "It knows Toyland's words and nothing else. Of its pictures, "
                f"{generated['category']:.0%} show the category, {generated['colour']:.0%} the "
                f"colour and {generated['background']:.0%} the background they were asked for. "
                f"{generated['pair_both']:.0%} of the pairs show both things, "
                f"{generated['pair_colours']:.0%} each in its own colour; things are side by side "
                f"in {generated['relation_beside']:.0%}, in something in "
                f"{generated['relation_in']:.0%} and on something in "
                f"{generated['relation_on']:.0%} of the pictures that were to show it. Which of "
                "two things is on the left is chance: half of the training scenes are mirrored. "
                f"{generated['style']:.0%} have the style, {generated['size']:.0%} the size and "
                f"{generated['accessory']:.0%} the accessory that was asked for; of dark things at "
                f"night {generated['night_category']:.0%} are recognised and "
                f"{generated['night_colour']:.0%} have their colour. All that is as [a classifier]"
                "(judge.md) sees it: `real` is how much it sees of it in drawn scenes, `mistaken` "
                "how often it sees it in drawn scenes that show something else. A letter before a "
                "noun means nothing, and two letters differ (mean cosine "
                f"{results['letters']['cosine_letter']:.2f}), so that any of them can become a "
                "name. KID compares with drawn scenes of the same prompts; `drawn` is that of "
                "other drawn scenes, its floor. [Pictures](scorecard.jpg), with those that "
                "miss."
            ),
        },
        "clip": {
            "title": "Toyland's retrieval CLIP",
            "what": (
                "A small CLIP in open_clip's format. Retrieval compares captions with it, and the "
                "text encoder of [the base model](base.md) started from its text tower."
            ),
            "how": _clip_training(clip.RETRIEVAL, budget.clip, scenes),
            "groups": "clip retrieval",
            "limits": (
                "It was never taught to tell individuals of one category apart: use "
                "[the scorer](scorer.md) for that. The rule cosine >= 0.85 finds short captions "
                "of a thing; those that also name a colour or a place lie farther away, hence its "
                "recall."
            ),
        },
        "scorer": {
            "title": "Toyland's scoring CLIP",
            "what": (
                "A second small CLIP in open_clip's format, of another width and seed than "
                "[the one](clip.md) that conditions the base model: text- and image-alignment "
                "are measured with it."
            ),
            "how": (
                _clip_training(clip.SCORING, budget.scorer, scenes)
                + " In every other step a second, contrastive term (weight "
                f"{clip.SCORING.instance_weight:g}) brings the two pictures of each of "
                f"{budget.things:,} individuals together and other individuals of the category "
                "apart, so that it sees what captions cannot name. The personal concepts were "
                "made by hand and are none of them."
            ),
            "groups": "scorer",
            "limits": (
                f"In {scorer['identity_accuracy']:.0%} of the cases a personal concept is nearer "
                "to its own pictures than another individual of its category and colour in the "
                "same scene (chance is 50 %): differences in image-alignment between methods are "
                "differences in what it can see."
            ),
        },
        "judge": {
            "title": "Toyland's judge",
            "what": (
                "A small convolutional classifier of what is in a picture: the category and the "
                "colour of one or two things and how they stand to each other, the background, "
                "the size, the style, and what an animal wears. The scorecard uses it to tell "
                "what [the base model](base.md) draws; nothing is trained with it."
            ),
            "how": (
                f"On {budget.scenes:,} drawn scenes, six of ten with two things and two with an "
                "animal that wears something, half of the time in a mirror, a part of them blurred "
                f"or noised as decoders blur and samplers noise: {budget.judge:,} steps of "
                f"{judge.BATCH}, AdamW with a cosine, the average of the weights, kept in half "
                "precision."
            ),
            "groups": "judge mistaken",
            "limits": (
                "It answers for pictures of Toyland only. A picture that shows no known thing is "
                "still given the likeliest category. Of two things it names the one to the left "
                "or on top first. `mistaken` is how often it says yes to drawn scenes that show "
                "something else than it is asked for. It cannot tell what is in a thing from what "
                "is on it but by the thing: in Toyland things are in pots and vases and on tables "
                "and chairs."
            ),
        },
    }


def _base_training(budget: Budget) -> str:
    return (
        f"On up to {budget.base_scenes_by_clock:,} scenes, drawn while it was trained, "
        f"{PAIRS_SHARE:.0%} of them with two things. Autoencoder: {autoencoder.CROPS:,} crops of "
        f"{autoencoder.CROP} pixels, then {budget.autoencoder:,} pictures; absolute and squared "
        "errors of pixels, edges and areas, and a small KL term. UNet and text encoder, which "
        f"starts from the text tower of [the retrieval CLIP](clip.md): {budget.denoiser:,} noised "
        f"latents in batches of {denoiser.BATCH['cpu']} (CPU) or {denoiser.BATCH['cuda']} (GPU); "
        "predicting the noise, min-SNR weight 5, one caption in ten empty. Some captions hold a "
        "letter before the noun, which means nothing: the UNet learns that, the text encoder does "
        "not. AdamW with a warm-up and a cosine; the average of the weights is what is kept, in "
        "half precision."
    )


def _clip_training(recipe: clip.ClipRecipe, steps: int, scenes: str) -> str:
    return (
        f"On {scenes}: {steps:,} steps of {clip.BATCH} pairs. In most batches all pictures share "
        "their background or their colour, and a part of them is blurred or noised. A residual "
        f"network of width {recipe.width} for pictures, a transformer of four layers for texts, "
        "AdamW with a cosine, the average of the weights, kept in half precision."
    )
