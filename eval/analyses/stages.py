"""The analyses as stages: which there are, what they need, and how they are run.

Imports nothing heavy, so that a typing error costs a moment.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.settings.analyses import (
    AttentionParams,
    CompressionParams,
    DriftParams,
    EditingParams,
    StepsParams,
    TuningParams,
)
from pipeline.settings.profile import Grid, Params, is_hub_id

SAMPLING = (
    "pipeline/sample/sampler.py",
    "pipeline/models/crossattn.py",
    "pipeline/models/tokens.py",
)
SCORING = (
    "eval/features.py",
    "pipeline/concepts/shards.py",
    "eval/metrics",
    "pipeline/clip/openclip.py",
)
BASE = ("pipeline/models/base.py", "pipeline/models/adapter.py")


@dataclass(frozen=True)
class Stage:
    """What DVC has to know of an analysis, beside its own file and its own parameters."""

    desc: str
    sources: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # "base", "scorer"
    params: tuple[str, ...] = ()  # sections of params.yaml
    protocol: tuple[str, ...] = ()  # sections of the protocol


STAGES: dict[str, Stage] = {
    "weights": Stage("compare how much layers change", BASE, ("base",), ("base",)),
    "spectra": Stage(
        "take the singular values of changes",
        ("pipeline/exchange/compression.py", "pipeline/models/adapter.py"),
    ),
    "compression": Stage(
        "score adapters that were made smaller",
        (*BASE, *SAMPLING, *SCORING, "pipeline/exchange/compression.py"),
        ("base", "scorer"),
        ("base", "protocol"),
        ("sample", "score"),
    ),
    "drift": Stage(
        "see what is left of the class",
        (*BASE, *SAMPLING, *SCORING),
        ("base", "scorer"),
        ("base", "protocol"),
        ("sample", "score"),
    ),
    "steps": Stage(
        "score a method along its training",
        (*BASE, *SAMPLING, *SCORING, "pipeline/train/stage.py", "pipeline/train/loop.py"),
        ("base", "scorer"),
        ("base", "protocol", "train"),
        ("sample", "score"),
    ),
    "tuning": Stage(
        "try learning rates, steps and ridges on held-out concepts",
        (
            *BASE,
            *SAMPLING,
            *SCORING,
            "eval/analyses/steps.py",
            "pipeline/train/augment.py",
            "pipeline/train/stage.py",
            "pipeline/train/lowrank.py",
            "pipeline/train/merging.py",
            "pipeline/methods",
            "pipeline/train/loop.py",
        ),
        ("base", "scorer"),
        ("base", "protocol", "train"),
        ("sample", "score"),
    ),
    "sampler": Stage(
        "try guidance, steps and eta on the base model",
        (
            *BASE,
            *SAMPLING,
            *SCORING,
            "models/toyland/judge",
            "pipeline/toyland/pretrain/autoencoder.py",
            "pipeline/toyland/world/drawing.py",
            "pipeline/toyland/pretrain/judge.py",
            "pipeline/toyland/pretrain/prompts.py",
            "pipeline/toyland/pretrain/scorecard.py",
            "pipeline/toyland/world/scenes.py",
        ),
        ("base", "scorer"),
        ("base", "protocol"),
        ("score",),
    ),
    "attention": Stage(
        "see where the words of compositions look",
        (*BASE, *SAMPLING, "eval/analyses/probes.py", "eval/scores.py", "eval/tables.py"),
        ("base",),
        ("base", "protocol"),
        ("sample",),
    ),
    "editing": Stage(
        "edit images by their prompts",
        (*BASE, *SAMPLING, *SCORING, "eval/analyses/probes.py"),
        ("base", "scorer"),
        ("base", "protocol"),
        ("sample", "score"),
    ),
    "truth": Stage(
        "see how metrics rank images whose content is known",
        (
            *SCORING,
            "pipeline/toyland/world/drawing.py",
            "pipeline/toyland/world/personal.py",
            "pipeline/toyland/world/scenes.py",
        ),
        ("scorer",),
        ("protocol",),
        ("score",),
    ),
    "cost": Stage(
        "compare time, memory and storage",
        ("pipeline/models/adapter.py", "pipeline/common/schema.py"),
    ),
}


def chosen(params: Params) -> list[str]:
    """The analyses that a profile runs."""
    return [name for name in STAGES if getattr(params.analyses, name) is not None]


def run(name: str, profile: str = DEFAULT_PROFILE) -> None:
    """Runs an analysis.

    Raises:
        BenchError: there is none of that name, the profile does not run it, or what it needs is
            missing.
    """
    if name not in STAGES:
        raise BenchError(f"analysis {name!r} is unknown: choose one of {', '.join(STAGES)}")
    module = importlib.import_module(f"eval.analyses.{name}")
    folder: Path = getattr(module, f"analyse_{name}")(profile)
    print(f"{name} -> {folder}")


def sources(name: str) -> list[str]:
    """The code that an analysis depends on."""
    shared = [f"eval/analyses/{file}.py" for file in (name, "common")]
    return [*shared, "eval/statistics.py", *STAGES[name].sources]


def inputs(name: str, params: Params, grid: Grid) -> list[str]:
    """The files and folders in `runs/` that an analysis reads, as the profile runs it."""
    runs = params.runs().as_posix()
    return [f"{runs}/{path}" for path in getattr(params.analyses, name).reads(grid)]


def deps(name: str, params: Params, grid: Grid) -> list[str]:
    """All that an analysis depends on: code, local models, and what the profile made."""
    paths = {"base": params.base.path, "scorer": params.protocol.score.clip}
    models = [paths[model] for model in STAGES[name].models if not is_hub_id(paths[model])]
    return [*models, *datasets(name, params, grid), *inputs(name, params, grid)]


def datasets(name: str, params: Params, grid: Grid) -> list[str]:
    """The concepts' files that say what an analysis samples."""
    about = getattr(params.analyses, name)
    if isinstance(about, AttentionParams):
        pairs = grid.compositions
        names = sorted({c for pair in pairs.values() for c in pair.concepts()})
        texts = list(pairs)
    elif isinstance(about, (CompressionParams, DriftParams, StepsParams)):
        names = texts = about.concepts
    elif isinstance(about, TuningParams):
        names, texts = list(grid.concepts), grid.subjects()
    elif isinstance(about, EditingParams):
        names = texts = [about.concept]
    else:
        return []
    return [
        *(f"datasets/concepts/{name}/concept.yaml" for name in names),
        *(f"datasets/prompts/{name}.txt" for name in texts),
    ]


def settings(name: str, params: Params) -> list[str]:
    """The keys of `params.yaml` that an analysis depends on."""
    keys = [f"analyses.{name}", *STAGES[name].params]
    trained = params.analyses.steps if name == "steps" else None
    return [*keys, f"methods.{trained.method}"] if trained else keys
