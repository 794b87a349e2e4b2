"""Measures Toyland's models as they are shipped: in half precision on disk, loaded in full."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.files import atomic, sha256, write_json
from pipeline.common.seeds import seed_of
from pipeline.models.base import Base, load_base
from pipeline.sample.requests import Request
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import BaseParams, SamplerParams
from pipeline.toyland.pretrain.autoencoder import reconstruct, to_tensor
from pipeline.toyland.pretrain.budget import BUDGET
from pipeline.toyland.pretrain.cards import write_cards
from pipeline.toyland.pretrain.clip import HeldOut
from pipeline.toyland.pretrain.judge import WEIGHTS_FILE, Judge, held_out_hits, load_judge, marks
from pipeline.toyland.pretrain.pictures import held_out_scene
from pipeline.toyland.pretrain.prompts import (
    ALTERED,
    LETTERS,
    Wanted,
    accessory_prompts,
    letter_prompts,
    night_prompts,
    pair_prompts,
    relation_prompts,
    single_prompts,
    size_prompts,
    style_prompts,
)
from pipeline.toyland.world.drawing import draw, sheet
from pipeline.toyland.world.personal import PERSONAL, personal_scenes
from pipeline.toyland.world.scenes import (
    CATEGORIES,
    COLOURS,
    Scene,
    caption,
    random_thing,
    scene_at,
)

MODELS = Path("models/toyland")
CACHE = Path(".cache/toyland")
THRESHOLD = 0.85  # of the retrieval rule (Custom Diffusion, section 3.1)
SEED, CAPTIONS_SEED, AGAIN_SEED = 51, 52, 53
# Deterministic, so that a picture depends on its prompt and its seed alone.
SAMPLING = SamplerParams(steps=25, guidance_scale=3.0, eta=0.0, batch_size=32)
# What the models are meant to reach.
GOALS: dict[str, float] = {
    "autoencoder.psnr": 36.0,
    "autoencoder.zero_shot_kept": 0.9,
    "clip.category": 0.9,
    "scorer.category": 0.9,
    "generated.category": 0.99,
    "generated.colour": 0.99,
    "generated.background": 0.99,
    "generated.pair_both": 0.97,
    "generated.pair_colours": 0.9,
    "generated.relation_beside": 0.85,
    "generated.relation_in": 0.85,
    "generated.relation_on": 0.85,
    "generated.style": 0.9,
    "generated.size": 0.9,
    "generated.accessory": 0.9,
}
_ALONE = ("category", "colour", "background")
_PAIRS = ("pair", "next to", "in", "on")
# Measures of pictures: the kinds of prompts that each is taken over, and the judge's question.
ASKED: dict[str, tuple[tuple[str, ...], str]] = {
    **{name: (("single",), name) for name in _ALONE},
    "pair_both": (("pair",), "pair_both"),
    "pair_colours": (_PAIRS, "pair_colours"),
    "relation_beside": (("pair", "next to"), "relation"),
    "left_first": (("pair", "next to"), "left_first"),
    "relation_in": (("in",), "relation"),
    "relation_on": (("on",), "relation"),
    **{name: ((name,), name) for name in ("style", "size", "accessory")},
    **{f"night_{name}": (("night",), name) for name in _ALONE},
    **{f"letter_{name}": (("letter",), name) for name in _ALONE},
}
# Whose pictures: how often drawn scenes that show something else pass, then drawn scenes that show
# what is asked for (the judge's ceiling), the same through the autoencoder, and the base model's.
PICTURES = ("mistaken", "real", "reconstructed", "generated")
SHOWN, MISSES = 32, 8  # pictures on the sheet: of a kind of prompts, and of those that miss
COLUMNS = 16
Image8 = npt.NDArray[np.uint8]


Features = npt.NDArray[np.float32]
# Of two sets of pictures of the same prompts, such as KID: value, standard error, n and unit.
Distance = Callable[[Features, Features], tuple[Any, ...]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    held_out: int = 1000  # scenes
    captions: int = 8000
    queries: int = 20  # pictures of each personal concept, and as many of others like it
    singles: int = len(CATEGORIES) * len(COLOURS)  # prompts
    pairs: int = 4 * len(CATEGORIES)  # prompts
    relations: int = 2 * len(CATEGORIES)  # prompts of each
    others: int = 3 * len(CATEGORIES)  # prompts of each other kind

    def prompts(self) -> dict[str, list[Wanted]]:
        """The prompts by kind."""
        return {
            "single": single_prompts(self.singles),
            "pair": pair_prompts(self.pairs),
            **{name: relation_prompts(name, self.relations) for name in _PAIRS[1:]},
            "style": style_prompts(self.others),
            "size": size_prompts(self.others),
            "accessory": accessory_prompts(self.others),
            "night": night_prompts(self.others),
            "letter": letter_prompts(self.others),
        }


@dataclass(frozen=True)
class Measure:
    """A value, its standard error and the number of pictures, captions or pairs behind it."""

    value: float
    std_error: float
    n: int


Measures = dict[str, Measure]  # by dotted names


def share(hits: Sequence[bool] | npt.NDArray[np.bool_]) -> Measure:
    """The share of hits.

    The error is the binomial one of (hits + 1) / (n + 2), so that it is not zero when all agree.
    """
    n, right = len(hits), int(np.sum(hits))
    smooth = (right + 1) / (n + 2)
    return Measure(right / n, math.sqrt(smooth * (1 - smooth) / n), n)


def clustered(values: Sequence[float], n: int) -> Measure:
    """The mean of one value for each cluster, and its error from how much the clusters differ."""
    return Measure(float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5), n)


# ------------------------------------------------------------------------------ autoencoder, CLIP


def measure_autoencoder(autoencoder: AutoencoderKL, clip: Clip, held_out: HeldOut) -> Measures:
    """PSNR in dB on held-out scenes, and what the retrieval CLIP still sees after the coding."""
    real = held_out.images
    again = reconstruct(autoencoder, real)
    errors = (real - again).pow(2).mean((1, 2, 3)).cpu().double().numpy()
    error, count = errors.mean(), len(errors)
    decibels = 10 / math.log(10) * errors.std(ddof=1) / error / count**0.5
    before = held_out.measure(clip.model)["category"]
    after = held_out.measure(clip.model, again)["category"]
    singles = _singles(held_out)
    seen = _binomial(after, singles)
    floor = max(before, 1 / singles)  # a CLIP that knows nothing keeps nothing
    return {
        "autoencoder.psnr": Measure(10 * math.log10(4 / error), decibels, count),
        "autoencoder.zero_shot_category": seen,
        "autoencoder.zero_shot_kept": Measure(after / floor, seen.std_error / floor, singles),
    }


def measure_clip(name: str, clip: Clip, held_out: HeldOut, queries: int) -> Measures:
    """Retrieval of captions, zero-shot accuracy, and whether it knows individuals."""
    measured = held_out.measure(clip.model)
    singles = _singles(held_out)
    counts = {"retrieval_r1": len(held_out.scenes)}
    out = {
        f"{name}.{key}": _binomial(value, counts.get(key, singles))
        for key, value in measured.items()
    }
    return out | {f"{name}.{key}": m for key, m in measure_identity(clip, queries).items()}


def _singles(held_out: HeldOut) -> int:
    return sum(len(s.things) == 1 and s.style == "photo" for s in held_out.scenes)


def _binomial(value: float, n: int) -> Measure:
    return share(np.arange(n) < round(value * n))


def measure_identity(clip: Clip, queries: int) -> Measures:
    """Whether pictures of a personal concept are nearer to its targets than those of others are.

    The others are random individuals of its category and colour. No concept is in any training
    scene: they were made by hand, training scenes hold random individuals only.

    Returns:
        `identity_auc`: how often any picture of the concept has a higher image-alignment with the
        targets than any of another individual; `identity_accuracy`: the same where the two are
        shown in the same scene. Errors are clustered by concept.
    """
    areas, accuracies = [], []
    for number, (name, thing) in enumerate(PERSONAL.items()):
        rng = np.random.default_rng([SEED, number])
        scenes = [
            scene_at(SEED, 1000 * number + i, things=(thing,), size="normal", style="photo")
            for i in range(queries)
        ]
        others = [
            replace(scene, things=(random_thing(rng, thing.category, thing.colour),))
            for scene in scenes
        ]
        targets = _features(clip, personal_scenes(name)).mean(0)
        same, other = _features(clip, scenes) @ targets, _features(clip, others) @ targets
        above = (1 + np.sign(same[:, None] - other)) / 2  # a tie is half a success
        areas.append(float(above.mean()))
        accuracies.append(float(above.diagonal().mean()))
    n = queries * len(PERSONAL)
    return {"identity_auc": clustered(areas, n), "identity_accuracy": clustered(accuracies, n)}


def _features(clip: Clip, scenes: list[Scene]) -> npt.NDArray[np.float32]:
    return clip.encode_images([Image.fromarray(draw(scene)) for scene in scenes])


def measure_retrieval(clip: Clip, count: int) -> Measures:
    """Precision and recall of the rule cosine >= 0.85 to "photo of a {category}".

    It is meant to find the captions of photographs whose only thing is that category, among
    `count` captions of scenes that nothing was trained on. Errors are clustered by category.

    Returns:
        Also `retrieval.fewest`: how many captions it finds for the category with the fewest.
    """
    scenes = [held_out_scene(i) for i in range(count)]
    rngs = (np.random.default_rng([CAPTIONS_SEED, i]) for i in range(count))
    captions = [caption(scene, rng) for scene, rng in zip(scenes, rngs)]
    different = sorted(set(captions))
    rows = {text: i for i, text in enumerate(different)}
    nouns = list(dict.fromkeys(thing.category for thing in PERSONAL.values()))
    queries = clip.encode_texts([f"photo of a {noun}" for noun in nouns])
    similarities = (clip.encode_texts(different) @ queries.T)[[rows[text] for text in captions]]
    precisions, recalls, counts = [], [], []
    for noun, column in zip(nouns, similarities.T):
        found = column >= THRESHOLD
        wanted = np.array(
            [
                s.style == "photo" and len(s.things) == 1 and s.things[0].category == noun
                for s in scenes
            ]
        )
        right = int((found & wanted).sum())
        # Nothing found is nothing wrong, but it is no recall either.
        precisions.append(right / max(1, int(found.sum())) if found.any() else 1.0)
        recalls.append(right / max(1, int(wanted.sum())))
        counts.append(int(found.sum()))
    return {
        "retrieval.precision": clustered(precisions, sum(counts)),
        "retrieval.recall": clustered(recalls, count),
        "retrieval.fewest": Measure(min(counts), math.sqrt(min(counts)), count),
    }


# ------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class Pictures:
    """Pictures of one kind of prompts: what they were to show, and which answers fit that."""

    wanted: list[Wanted]
    images: Tensor  # [n, 3, 64, 64] in [-1, 1]
    right: list[dict[str, bool]]


def generate(base: Base, wanted: Sequence[Wanted], sampling: SamplerParams) -> list[Image8]:
    """One image of the base model for each prompt: uint8 [64, 64, 3]."""
    requests = [
        Request(w.prompt, w.prompt, seed_of("toyland-scorecard", w.prompt), {}) for w in wanted
    ]
    return [np.array(image) for image in sample_all(base, requests, sampling)]


def drawn(scenes: Sequence[Scene], device: torch.device | None = None) -> Tensor:
    """The drawn pictures of scenes, [n, 3, 64, 64] in [-1, 1]."""
    return to_tensor(np.stack([draw(scene) for scene in scenes]), device)


def look(judge: Judge, images: Tensor, wanted: list[Wanted]) -> Pictures:
    """What the judge makes of pictures."""
    return Pictures(wanted, images, marks(judge, images, [w.scene for w in wanted]))


def measure_pictures(group: str, pictures: dict[str, Pictures]) -> Measures:
    """How often the judge sees what was wanted: the measures ASKED of pictures by kind of prompt.

    `left_first` is how often, of things side by side, the one that is named first is on the left:
    half of the training scenes are mirrored, so that captions do not say. It has no goal.
    """
    out = {}
    for name, (kinds, question) in ASKED.items():
        right = [r for kind in kinds for r in pictures[kind].right]
        if asked := [r[question] for r in right if question in r]:
            out[f"{group}.{name}"] = share(asked)
    return out


def measure_mistakes(judge: Judge, prompts: dict[str, list[Wanted]]) -> Measures:
    """How often the judge says yes to drawn scenes that show something else.

    Each differs from what was wanted in just what it is asked about.
    """
    out = {}
    for name, (kinds, question) in ASKED.items():
        if question in ALTERED and not name.startswith("letter"):
            wanted = [w for kind in kinds for w in prompts[kind]]
            seen = look(judge, drawn([ALTERED[question](w.scene) for w in wanted]), wanted)
            out[f"mistaken.{name}"] = share([r[question] for r in seen.right])
    return out


@torch.no_grad()
def measure_letters(base: Base) -> Measures:
    """How alike text features are in "photo of a {letter} {noun}" for any two letters.

    Returns:
        The mean cosine at the letter and at the noun (its last word). Near 1 at the letter, a
        letter is no handle for a name; far from 1 at the noun, it changes what is drawn. Errors
        are clustered by letter: what comes before a noun does not depend on it.
    """
    means: dict[str, list[Tensor]] = {"letter": [], "noun": []}  # of each letter to the others
    for noun in CATEGORIES:
        texts = [f"photo of a {letter} {noun}" for letter in LETTERS]
        tokens = base.texts.tokenizer(
            texts[0]
        ).input_ids  # start, photo, of, a, letter, noun ..., end
        features = F.normalize(base.condition(texts).text, dim=-1)
        for name, place in (("letter", 4), ("noun", len(tokens) - 2)):
            at = features[:, place]
            means[name].append(((at @ at.T).sum(1) - 1) / (len(LETTERS) - 1))
    n = len(LETTERS) * len(CATEGORIES)
    return {
        f"letters.cosine_{name}": clustered(torch.stack(values).mean(0).tolist(), n)
        for name, values in means.items()
    }


def measure_distances(
    distance: Distance, scorer: Clip, prompts: Sequence[Wanted], sets: dict[str, Tensor]
) -> Measures:
    """How far sets of pictures are from drawn scenes of the same prompts, as the scorer sees them.

    Args:
        sets: by name, a picture for each prompt, none of them drawn from the prompt's own scene.
    """
    reals = _kernel_features(scorer, drawn([w.scene for w in prompts]))
    return {
        f"kid.{name}": Measure(*distance(reals, _kernel_features(scorer, images))[:3])
        for name, images in sets.items()
    }


def _kernel_features(clip: Clip, images: Tensor) -> Features:
    """Features of length sqrt(d): unit vectors are too short for KID's kernel to be curved."""
    features = clip.encode_images([Image.fromarray(pixels) for pixels in to_pixels(images)])
    return features * np.float32(np.sqrt(features.shape[1]))


def to_pixels(images: Tensor) -> Image8:
    """[n, 3, height, width] in [-1, 1] to uint8 [n, height, width, 3]."""
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


# ------------------------------------------------------------------------------ the sheet


def pictures_sheet(pictures: dict[str, Pictures], measures: Measures) -> Image.Image:
    """Generated pictures for people to look at.

    The first of each kind, a column for the (first) category; below them, for each measure that
    some pictures miss, the first of those at twice the size, with their prompts.
    """
    shown = [image for some in pictures.values() for image in to_pixels(some.images[:SHOWN])]
    parts = [sheet(shown, COLUMNS)]
    for name, missed in misses(pictures).items():
        parts.append(_captioned(f"{name}: {_verdict(f'generated.{name}', measures)}", missed))
    page = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def misses(pictures: dict[str, Pictures]) -> dict[str, list[tuple[str, Image8]]]:
    """By measure, the prompts and the pictures that do not show what they should."""
    out: dict[str, list[tuple[str, Image8]]] = {}
    for name, (kinds, question) in ASKED.items():
        for kind in kinds if name != "left_first" else ():
            some = pictures[kind]
            for wanted, image, right in zip(some.wanted, to_pixels(some.images), some.right):
                if not right.get(question, True):
                    out.setdefault(name, []).append((wanted.prompt, image))
    return out


def _verdict(name: str, measures: Measures) -> str:
    """A measure and its goal in words."""
    measure, goal = measures[name], GOALS.get(name)
    words = f"{measure.value:.3f} of {measure.n}"
    return words if goal is None else f"{words}, goal {goal:g} {_met(measure.value, goal)}"


def _captioned(title: str, missed: list[tuple[str, Image8]]) -> Image.Image:
    """A row of pictures at twice their size, with their prompts below and a title above."""
    cell, font = 132, ImageFont.load_default(10)
    page = Image.new("RGB", (MISSES * cell, 206), "white")
    pen = ImageDraw.Draw(page)
    pen.text((2, 2), title, fill="black", font=font)
    for i, (prompt, image) in enumerate(missed[:MISSES]):
        large = Image.fromarray(image).resize((128, 128), Image.Resampling.NEAREST)
        page.paste(large, (i * cell, 18))
        words = textwrap.fill(prompt.removeprefix("photo of "), 25)
        pen.multiline_text((i * cell, 148), words, fill="black", font=font, spacing=2)
    return page


# ------------------------------------------------------------------------------ the whole


def scorecard(
    models: Path = MODELS,
    json_path: Path | None = None,
    sheet_path: Path | None = None,
    hardware: Mapping[str, str] | None = None,
    sizes: Sizes = Sizes(),
    sampling: SamplerParams = SAMPLING,
    distance: Distance | None = None,
) -> dict[str, Any]:
    """Measures the models in a folder and prints a table.

    Args:
        json_path: where to write what is returned.
        sheet_path: where to write `pictures_sheet`, as JPEG.
        hardware: what each model was trained on, in words; if given, their cards are written.
        distance: KID, which the evaluation knows; if given, it is measured too.

    Returns:
        By group and name the value, such as `generated.category`; below "std_error" and "n" the
        same again with the standard error and the number behind each; below "models" what
        identifies the weights. PICTURES are the groups whose measures are those ASKED of pictures.

    Raises:
        BenchError: a model is missing or not what it should be.
    """
    started = time.perf_counter()
    judge = load_judge(models / "judge")
    base = load_base(BaseParams(path=str(models / "base"), resolution=64, modifier_token_ids=[0]))
    clips = {name: load_clip(str(models / name)) for name in ("clip", "scorer")}

    measures: Measures = {}
    for name, clip in clips.items():
        held_out = HeldOut(CACHE, clip.tokenize, base.device, sizes.held_out)
        measures |= measure_clip(name, clip, held_out, sizes.queries)
        if name == "clip":
            measures |= measure_autoencoder(base.vae, clip, held_out)
            measures |= measure_retrieval(clip, sizes.captions)
    seen = held_out_hits(judge, CACHE)
    measures |= {f"judge.{name}": share(right) for name, right in seen.items()}

    prompts = sizes.prompts()
    generated = {
        kind: look(judge, to_tensor(np.stack(generate(base, wanted, sampling))), wanted)
        for kind, wanted in prompts.items()
    }
    real = {kind: drawn([w.scene for w in wanted]) for kind, wanted in prompts.items()}
    for group, images in (
        ("real", real),
        ("reconstructed", {kind: reconstruct(base.vae, some) for kind, some in real.items()}),
    ):
        looks = {kind: look(judge, images[kind], wanted) for kind, wanted in prompts.items()}
        measures |= measure_pictures(group, looks)
    measures |= measure_pictures("generated", generated)
    measures |= measure_mistakes(judge, prompts)
    measures |= measure_letters(base)
    if distance:
        # Letters are left out: their scenes are those of the same prompts without them.
        worded = {kind: wanted for kind, wanted in prompts.items() if kind != "letter"}
        asked = [w for wanted in worded.values() for w in wanted]
        rngs = (np.random.default_rng([AGAIN_SEED, i]) for i in range(len(asked)))
        others = drawn([w.again(rng) for w, rng in zip(asked, rngs)])
        sets = {
            "drawn": others,
            "reconstructed": reconstruct(base.vae, others),
            "generated": torch.cat([generated[kind].images for kind in worded]),
        }
        measures |= measure_distances(distance, clips["scorer"], asked, sets)
    if sheet_path:
        with atomic(sheet_path) as part:
            pictures_sheet(generated, measures).save(part, "JPEG", quality=80)

    print_measures(measures)
    weights = {name: clip.identity for name, clip in clips.items()}
    weights |= {"base": base.hash, "judge": sha256(models / "judge" / WEIGHTS_FILE)[:12]}
    results = nested(measures) | {"models": weights}
    if json_path:
        write_json(json_path, results)
    if hardware:
        write_cards(results, models, BUDGET, hardware)
    seconds = time.perf_counter() - started
    where = f": {json_path}" if json_path else ""
    print(f"scorecard: {len(measures)} measures of {models} in {seconds:.0f} s{where}")
    return results


def nested(measures: Measures) -> dict[str, Any]:
    """The measures as `scorecard` returns them."""
    out: dict[str, Any] = {}
    for kind in ("value", "std_error", "n"):
        for name, measure in measures.items():
            group, _, key = name.partition(".")
            place = out if kind == "value" else out.setdefault(kind, {})
            number = getattr(measure, kind)
            place.setdefault(group, {})[key] = number if kind == "n" else round(number, 4)
    return out


def print_measures(measures: Measures) -> None:
    """Prints the measures as tables, beside the goals that there are."""
    print(f"{'measure':<32}{'value':>9}{'std.err.':>10}{'n':>7}  goal")
    for name, measure in sorted(measures.items()):
        if name.partition(".")[0] not in PICTURES:
            print(f"{name:<32}{measure.value:>9.3f}{_details(name, measure)}")
    print(f"\n{'of pictures':<16}{''.join(f'{group:>15}' for group in PICTURES)}{'std.err.':>10}")
    for key in ASKED:
        row = [measures.get(f"{group}.{key}") for group in PICTURES]
        cells = "".join(f"{measure.value:>15.3f}" if measure else f"{'':>15}" for measure in row)
        name = f"{PICTURES[-1]}.{key}"
        if name in measures:
            print(f"{key:<16}{cells}{_details(name, measures[name])}")


def _details(name: str, measure: Measure) -> str:
    goal = GOALS.get(name)
    verdict = "" if goal is None else f"  {goal:g} {_met(measure.value, goal)}"
    return f"{measure.std_error:>10.3f}{measure.n:>7}{verdict}"


def _met(value: float, goal: float) -> str:
    return "met" if value >= goal else "MISSED"
