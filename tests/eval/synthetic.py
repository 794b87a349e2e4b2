"""A profile that was run, as far as scoring and reporting can see, with drawn samples.

Each "method" draws the scenes that its prompts ask for in a way of its own.
"""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline.common.files import png_bytes, write_json, write_tar
from pipeline.concepts.concept import Concept, Subject, load_concept, load_subject
from pipeline.settings.profile import load_grid, load_params
from pipeline.settings.protocol import protocol_path
from pipeline.toyland.pretrain.clip import SCORING, new_clip, save_clip
from pipeline.toyland.pretrain.vocabulary import write_open_clip
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import (
    BACKGROUNDS,
    STYLES,
    Thing,
    caption,
    random_scene,
    random_thing,
)
from tests.conftest import GALLERIES

PROJECT = Path(__file__).parents[2]
PROTOCOL = "toyland-v2"  # no identity, which needs galleries
PROTOCOL_SAMPLES = 2


def make_profile(root: Path, concepts: list[str], pairs: list[str], methods: list[str]) -> None:
    """Puts params.yaml, grid.yaml, datasets and a CLIP that was never trained into `root`."""
    yaml = YAML()
    params, grid = yaml.load(PROJECT / "params.yaml"), yaml.load(PROJECT / "grid.yaml")
    params["protocol"] = PROTOCOL
    nouns = {name: PERSONAL[name].category for name in concepts}
    grid["concepts"] = {name: {"class_noun": noun} for name, noun in nouns.items()}
    grid["compositions"] = {name: dict(zip(("first", "second"), name.split("+"))) for name in pairs}
    grid["methods"] = methods
    for group in ("sequences", "sequence_concepts"):
        del grid[group]
    yaml.dump(params, root / "params.yaml")
    yaml.dump(grid, root / "grid.yaml")
    shutil.copytree(PROJECT / "datasets", root / "datasets", ignore=GALLERIES)
    path = protocol_path(params["protocol"])
    protocol = yaml.load(root / path)
    protocol["score"]["clip"] = "models/scorer"
    yaml.dump(protocol, root / path)
    save_scorer(root / "models" / "scorer")


def save_scorer(folder: Path) -> None:
    """Writes a CLIP that was never trained, but to which images look different from each other."""
    clip = new_clip(SCORING, write_open_clip(folder))
    scenes = [random_scene(np.random.default_rng([9, i])) for i in range(24)]
    images = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)
    for module in clip.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of the images
    with torch.no_grad():
        clip.train().encode_image(images / 127.5 - 1)
    save_clip(clip, SCORING, folder)


def make_samples(reals: int = 12, prompts: int | None = None) -> None:
    """Draws the inputs of scoring for every cell of the profile in the working folder."""
    runs, grid = load_params().runs(), load_grid()
    for name in grid.concepts:
        concept = load_concept(name)
        _write_reals(runs, concept, reals)
    for method in grid.methods:
        for name in grid.subjects():
            write_cell(runs, method, load_subject(name), reals, prompts)


def _write_reals(runs: Path, concept: Concept, count: int) -> None:
    held_out = []
    for i in range(count):
        rng = np.random.default_rng([5, zlib.crc32(concept.name.encode()), i])
        scene = random_scene(rng, things=(random_thing(rng, concept.class_noun),))
        sample = {"png": _png(draw(scene)), "txt": caption(scene, rng)}
        held_out.append({"__key__": f"held_out-{i:04d}", **sample, "json": {"part": "held_out"}})
    write_tar(runs / "regularization" / f"{concept.name}.tar", held_out)
    targets = [
        {"__key__": f"target-{i:04d}", "png": path.read_bytes(), "json": {"source": path.name}}
        for i, path in enumerate(concept.images)
    ]
    write_tar(runs / "shards" / f"{concept.name}.tar", targets)


def draw_gallery(name: str, lookalikes: int = 5, datasets: Path = Path("datasets")) -> None:
    """Draws pictures that nothing was trained on of a concept, and of other individuals."""
    rng = np.random.default_rng([11, zlib.crc32(name.encode())])
    category = PERSONAL[name].category
    others = {f"lookalikes/{i:02d}": random_thing(rng, category) for i in range(lookalikes)}
    folder = datasets / "concepts" / name
    for part in ("held_out", "lookalikes"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for part, thing in {"held_out": PERSONAL[name], **others}.items():
        (folder / part).mkdir(parents=True)
        for i in range(3):
            scene = random_scene(rng, things=(thing,), size="normal", style="photo")
            Image.fromarray(draw(scene)).save(folder / part / f"{i}.png")


def write_cell(runs: Path, method: str, subject: Subject, reals: int, prompts: int | None) -> None:
    """Draws samples.tar of a cell."""
    samples = []
    for p, prompt in enumerate(subject.scored_prompts()[:prompts]):
        for s in range(PROTOCOL_SAMPLES):
            samples.append(_sample(method, subject, "prompt", p, s, prompt))
    if len(subject.concepts) == 1:
        for p in range(reals):
            rng = np.random.default_rng([5, zlib.crc32(subject.name.encode()), p])
            scene = random_scene(rng, things=(random_thing(rng, subject.concepts[0].class_noun),))
            text = caption(scene, rng)
            samples.append(_sample(method, subject, "caption", p, 0, text))
    write_tar(runs / "cells" / method / subject.name / "samples.tar", samples)


def write_cost(path: Path, number: int) -> None:
    """Writes what training a cell took, as `train` does, and as many bytes of an adapter."""
    cost = {
        "seconds": 10.5 + number,
        "peak_bytes": 2_000_000_000,
        "parameters": 300_000,
        "bytes": 1_000 * (1 + number),
        "device": "cpu",
        "arithmetic": "float32",
        "hardware": "a processor, 2 cores",
    }
    write_json(path, cost)
    path.with_name("adapter.safetensors").write_bytes(bytes(1_000 * (1 + number)))


def _sample(method: str, subject: Subject, part: str, p: int, s: int, text: str) -> dict[str, Any]:
    rng = np.random.default_rng([7, zlib.crc32(subject.name.encode()), p, s])
    personal = method != "pretrained"
    things: tuple[Thing, ...] = tuple(
        PERSONAL[c.name] if personal else random_thing(rng, c.class_noun) for c in subject.concepts
    )
    if method == "textual_inversion":
        other = random_thing(rng, things[0].category)
        things = (dataclasses.replace(things[0], pattern=other.pattern), *things[1:])
    background = next(
        (b for b, words in BACKGROUNDS.items() if any(w in text for w in words)), None
    )
    style = next((style for style in STYLES[1:] if style in text), "photo")
    scene = random_scene(rng, things=things, background=background, style=style)
    pixels = draw(scene).astype(np.float64)
    if method == "dreambooth":
        pixels += rng.normal(0, 18, pixels.shape)
    return {
        "__key__": f"{part}-{p:03d}-{s:03d}",
        "png": _png(pixels.clip(0, 255).astype(np.uint8)),
        "json": {
            "part": part,
            "prompt_index": p,
            "sample": s,
            "prompt": f"<new1> {text}",
            "scored_prompt": text,
            "seed": p * 1000 + s,
            **load_params().identity(method, subject.name),
        },
    }


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return png_bytes(Image.fromarray(pixels))
