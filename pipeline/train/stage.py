"""Stage `train`: the adapter of a cell, made as its method says."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import torch

from pipeline.common.errors import BenchError
from pipeline.common.files import write_json
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.unfinished import Unfinished, digest
from pipeline.concepts.concept import load_subject
from pipeline.methods import Needs, TrainingSet, load_method, method_files
from pipeline.models.adapter import Adapter, save_adapter
from pipeline.models.base import Base, load_base, made_by
from pipeline.settings.profile import MethodParams, load_grid, load_params
from pipeline.train.inputs import (
    load_parts,
    load_previous,
    load_training_sets,
    regularization_captions,
)
from pipeline.train.making import Making


def train_cell(
    method: str, subject: str, profile: str = DEFAULT_PROFILE, seed: int | None = None
) -> Path:
    """Stage `train`: the adapter of a cell, trained, merged or empty.

    Args:
        method: of the profile's grid,
        subject: and what it learns.
        profile: the name of a profile.
        seed: of the training, one of the profile's; the main one if absent.

    Raises:
        BenchError: what it is made of is missing or damaged, or the method lacks parameters.
        FailureError: the training diverged, or what it is made of could not be made.
    """
    started = time.perf_counter()
    params, about = load_params(profile), load_subject(subject, profile)
    grid = load_grid(profile)
    how = load_method(method, grid).how(about, method)
    needs = how.needs([concept.name for concept in about.concepts])
    hyper = params.methods.get(method)
    if hyper is None:
        raise BenchError(f"params.yaml: methods.{method}: missing: give the method's parameters")
    check_hyper(method, needs, hyper)
    # What is missing is told before the base model is loaded.
    sets = load_training_sets(about, params.runs(), needs)
    parts = load_parts(params, needs, seed)
    previous = load_previous(params, method, about) if needs.previous else None
    captions = regularization_captions(params) if needs.captions else []
    base = load_base(params.base)

    def key() -> object:
        adapters = [*parts, *([previous] if previous else [])]
        return (
            method, about, seed, hyper, params.base, params.train, captions, base.hash,
            *made_by(base), *map(_digest_of_set, sets), *map(_digest_of_adapter, adapters),
            *(path.read_bytes() for path in method_files(method, grid)),
        )  # fmt: skip

    path = params.cell(method, subject, seed) / "adapter.safetensors"
    unfinished = Unfinished(params.unfinished("train", path.parent), key)
    with unfinished.removed():
        adapter = how.make(
            Making.of(
                base,
                method,
                about,
                params,
                hyper,
                sets,
                parts,
                captions,
                seed,
                previous,
                unfinished,
            )
        )
        save_adapter(adapter, path, hyper.store)
    seconds = time.perf_counter() - started
    record = params.record(method, subject, seed) / "cost.json"
    write_json(record, cost(adapter, path, seconds, base))
    print(
        f"train: {method} on {subject}, {adapter.provenance.steps} steps, "
        f"{adapter.parameters():,} numbers, {path.stat().st_size / 1e6:.2f} MB in {seconds:.1f} s "
        f"-> {path}"
    )
    return path


def _digest_of_set(part: TrainingSet) -> str:
    images = (image.tobytes() for image in (*part.targets, *part.regularization))
    return digest(part.concept, part.captions, *images)


def _digest_of_adapter(adapter: Adapter) -> str:
    tensors = adapter.tensors()
    values = (tensor.contiguous().numpy().tobytes() for tensor in tensors.values())
    return digest(adapter.provenance, list(tensors), *values)


def cost(adapter: Adapter, path: Path, seconds: float, base: Base) -> dict[str, int | float | str]:
    """What an adapter cost: time, memory, size. Memory is the GPU's, or that of the process."""
    if base.device.type == "cuda":
        peak, hardware = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    else:
        # Kilobytes, except on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        hardware = f"{os.cpu_count()} CPU cores"
    return {
        "seconds": round(seconds, 2),
        "peak_bytes": peak,
        "parameters": adapter.parameters(),
        "bytes": path.stat().st_size,
        "device": base.device.type,
        "arithmetic": str(base.dtype).removeprefix("torch."),
        "hardware": hardware,
    }


def check_hyper(method: str, needs: Needs, hyper: MethodParams) -> None:
    """Finds out whether the method has the parameters that it needs for a subject.

    Raises:
        BenchError: names those it lacks.
    """
    missing = [
        name if name in MethodParams.model_fields else f"own.{name}"
        for name in needs.hyper
        if getattr(hyper, name, hyper.own.get(name)) is None
    ]
    if missing:
        raise BenchError(f"params.yaml: methods.{method}: needs {' and '.join(missing)}")
