"""Measures Toyland's models as they are shipped: in half precision on disk, loaded in full."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from pipeline.base import Base, load_base
from pipeline.files import atomic, sha256, write_json
from pipeline.openclip import Clip, load_clip
from pipeline.params import BaseParams, SamplerParams
from pipeline.sampling import Request, sample_all
from pipeline.seeds import seed_of
from pipeline.toyland.autoencoder import reconstruct, to_tensor
from pipeline.toyland.budget import BUDGET
from pipeline.toyland.cards import write_cards
from pipeline.toyland.clip import HeldOut
from pipeline.toyland.drawing import draw, sheet
from pipeline.toyland.judge import WEIGHTS_FILE, Judge, held_out_hits, hits, load_judge
from pipeline.toyland.personal import PERSONAL, personal_scenes
from pipeline.toyland.pictures import held_out_scene
from pipeline.toyland.world import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    Scene,
    article,
    caption,
    random_scene,
    random_thing,
    scene_at,
)

MODELS = Path("models/toyland")
CACHE = Path(".cache/toyland")
SEED = 51
THRESHOLD = 0.85  # of the retrieval rule (Custom Diffusion, section 3.1)
CAPTIONS_SEED = 52
# What the models are meant to reach.
GOALS: dict[str, float] = {
    "autoencoder.psnr": 28.0,
    "autoencoder.zero_shot_kept": 0.9,
    "clip.category": 0.9,
    "scorer.category": 0.9,
    "generated.category": 0.8,
    "generated.colour": 0.8,
    "generated.background": 0.9,
    "generated.pair_both": 0.5,
}
SAMPLING = SamplerParams(steps=50, guidance_scale=6.0, eta=1.0, batch_size=44)
Image8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    held_out: int = 1000  # scenes
    captions: int = 8000
    queries: int = 20  # pictures of each personal concept, and as many of others like it
    singles: int = len(CATEGORIES) * len(COLOURS)  # prompts
    pairs: int = 4 * len(CATEGORIES)  # prompts


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
    nouns = [thing.category for thing in PERSONAL.values()]
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


# ------------------------------------------------------------------------------ base


@dataclass(frozen=True)
class Wanted:
    """A prompt, and a scene that shows what it asks for."""

    prompt: str
    scene: Scene


def single_prompts(count: int) -> list[Wanted]:
    """Prompts "photo of a {colour} {category} {background}", each category with each colour once.

    Backgrounds rotate. The first n are balanced as well as n prompts can be.
    """
    out = []
    for k in range(count):
        number = k % len(CATEGORIES)
        category = CATEGORIES[number]
        colour = tuple(COLOURS)[(k // len(CATEGORIES) + number) % len(COLOURS)]
        background, phrases = list(BACKGROUNDS.items())[k % len(BACKGROUNDS)]
        rng = np.random.default_rng([SEED, k])
        scene = random_scene(
            rng,
            things=(random_thing(rng, category, colour),),
            background=background,
            size="normal",
            style="photo",
        )
        out.append(Wanted(f"photo of {article(colour)} {colour} {category} {phrases[0]}", scene))
    return out


def pair_prompts(count: int) -> list[Wanted]:
    """Prompts "photo of a {colour} {category} and a {colour} {category}", no two things alike."""
    out = []
    for k in range(count):
        turn, number = divmod(k, len(CATEGORIES))
        categories = (CATEGORIES[number], CATEGORIES[(number + 3 + 2 * turn) % len(CATEGORIES)])
        first = 3 * k % len(COLOURS)
        colours = [tuple(COLOURS)[i % len(COLOURS)] for i in (first, first + 4 + turn)]
        rng = np.random.default_rng([SEED + 1, k])
        scene = random_scene(
            rng,
            things=tuple(random_thing(rng, a, b) for a, b in zip(categories, colours)),
            relation="and",
            size="normal",
            style="photo",
        )
        named = [f"{article(b)} {b} {a}" for a, b in zip(categories, colours)]
        out.append(Wanted(f"photo of {' and '.join(named)}", scene))
    return out


def generate(base: Base, wanted: Sequence[Wanted], sampling: SamplerParams) -> list[Image8]:
    """One image of the base model for each prompt: uint8 [64, 64, 3]."""
    requests = [
        Request(w.prompt, w.prompt, seed_of("toyland-scorecard", w.prompt), {}) for w in wanted
    ]
    return [np.array(image) for image in sample_all(base, requests, sampling)]


def measure_pictures(
    judge: Judge, group: str, images: Tensor, wanted: Sequence[Wanted]
) -> Measures:
    """How often the judge sees what was wanted in images [n, 3, 64, 64] in [-1, 1].

    Returns:
        `category`, `colour` and `background` over the single things, `pair_both`, whether both
        categories are seen, over the pairs.
    """
    single = [len(w.scene.things) == 1 for w in wanted]
    rows = {True: np.flatnonzero(single), False: np.flatnonzero(np.logical_not(single))}
    out: Measures = {}
    for kind, names in ((True, ("category", "colour", "background")), (False, ("pair_both",))):
        right = hits(judge, images[rows[kind]], [wanted[i].scene for i in rows[kind]])
        out |= {f"{group}.{name}": share(right[name]) for name in names}
    return out


# ------------------------------------------------------------------------------ the whole


def scorecard(
    models: Path = MODELS,
    json_path: Path | None = None,
    sheet_path: Path | None = None,
    hardware: str | None = None,
    sizes: Sizes = Sizes(),
    sampling: SamplerParams = SAMPLING,
) -> dict[str, Any]:
    """Measures the models in a folder and prints a table.

    Args:
        json_path: where to write what is returned.
        sheet_path: where to write the generated pictures for people to look at: a column for
            the (first) category, first the single things, then the pairs.
        hardware: what the models were trained on, in words; if given, their cards are written.

    Returns:
        By group and name the value, such as `generated.category`; below "std_error" and "n" the
        same again with the standard error and the number behind each; below "models" what
        identifies the weights.

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

    wanted = [*single_prompts(sizes.singles), *pair_prompts(sizes.pairs)]
    real = to_tensor(np.stack([draw(w.scene) for w in wanted]), base.device)
    generated = generate(base, wanted, sampling)
    for group, images in (
        ("real", real),
        ("reconstructed", reconstruct(base.vae, real)),
        ("generated", to_tensor(np.stack(generated), base.device)),
    ):
        measures |= measure_pictures(judge, group, images, wanted)
    if sheet_path:
        with atomic(sheet_path) as part:
            sheet(generated, len(CATEGORIES)).save(part, "JPEG", quality=88)

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
    """Prints the measures as a table, beside the goals that there are."""
    print(f"{'measure':<32}{'value':>9}{'std.err.':>10}{'n':>7}  goal")
    for name, measure in sorted(measures.items()):
        goal = GOALS.get(name)
        verdict = "" if goal is None else f"  {goal:g} {_met(measure.value, goal)}"
        numbers = f"{measure.value:>9.3f}{measure.std_error:>10.3f}{measure.n:>7}"
        print(f"{name:<32}{numbers}{verdict}")


def _met(value: float, goal: float) -> str:
    return "met" if value >= goal else "MISSED"
