"""Stage `train`: the adapter of a cell, made as its method says."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError
from pipeline.common.files import write_json
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Concept, Subject, load_subject
from pipeline.methods import Continued, How, Merged, Trained, load_method, training_of
from pipeline.models.adapter import (
    Adapter,
    Provenance,
    applied,
    dense,
    load_adapter,
    not_finite,
    save_adapter,
)
from pipeline.models.base import Base, load_base
from pipeline.settings.profile import MethodParams, Params, load_params
from pipeline.train.loop import TrainingSet, load_training_set, train_through
from pipeline.train.merging import average, constrained


def train_cell(method: str, subject: str, profile: str = DEFAULT_PROFILE) -> Path:
    """Stage `train`: the adapter of a cell, trained, merged or empty.

    Raises:
        BenchError: what it is made of is missing or damaged, or the method lacks parameters.
        FailureError: the training diverged, or what it is made of could not be made.
    """
    started = time.perf_counter()
    params, about = load_params(profile), load_subject(subject, profile)
    how = how_of(method, about)
    hyper = params.methods.get(method)
    if hyper is None:
        raise BenchError(f"params.yaml: methods.{method}: missing: give the method's parameters")
    check_hyper(method, how, hyper, about)
    # What is missing is told before the base model is loaded.
    loop = training_of(how)
    runs = params.runs()
    sets = [load_training_set(concept, runs, loop) for concept in about.concepts] if loop else []
    parts = (
        [
            load_adapter(params.cell(how.of, concept.name) / "adapter.safetensors")
            for concept in about.concepts[: 1 if isinstance(how, Continued) else None]
        ]
        if isinstance(how, (Merged, Continued))
        else []
    )
    base = load_base(params.base)
    provenance = Provenance(
        method=method,
        subject=subject,
        base=base.path,
        base_hash=base.hash,
        references=tuple(concept.class_noun for concept in about.concepts),
        seed=params.train.seed,
    )
    if isinstance(how, Trained):
        adapter = trained(base, how, sets, params, hyper, provenance)
    elif isinstance(how, Continued):
        adapter = continued(base, how.how, parts[0], sets, params, hyper, provenance)
    elif isinstance(how, Merged):
        adapter = merged(base, how, parts, about, params, hyper, provenance)
    else:
        adapter = Adapter({}, {}, provenance)
    path = params.cell(method, subject) / "adapter.safetensors"
    save_adapter(adapter, path)
    seconds = time.perf_counter() - started
    write_json(path.with_name("cost.json"), cost(adapter, path, seconds, base.device))
    print(
        f"train: {method} on {subject}, {adapter.provenance.steps} steps, "
        f"{adapter.parameters():,} numbers, {path.stat().st_size / 1e6:.2f} MB in {seconds:.1f} s "
        f"-> {path}"
    )
    return path


def cost(
    adapter: Adapter, path: Path, seconds: float, device: torch.device
) -> dict[str, int | float | str]:
    """What an adapter cost: time, memory, size. Memory is the GPU's, or that of the process."""
    if device.type == "cuda":
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
        "device": device.type,
        "hardware": hardware,
    }


def how_of(method: str, subject: Subject) -> How:
    """How the method makes the adapter of this kind of subject.

    Raises:
        BenchError: it makes none.
    """
    found = load_method(method)
    how = found.single if len(subject.concepts) == 1 else found.composition
    if how is None:
        kind = "single concepts" if len(subject.concepts) == 1 else "compositions"
        raise BenchError(f"method {method!r} makes no adapters of {kind} such as {subject.name}")
    return how


def check_hyper(method: str, how: How, hyper: MethodParams, subject: Subject) -> None:
    """Finds out whether the method has the parameters that it needs for the subject.

    Raises:
        BenchError: names those it lacks.
    """
    loop = training_of(how)
    if loop is None:
        return
    needed = ["learning_rate", "steps" if len(subject.concepts) == 1 else "composition_steps"]
    needed += ["rank"] if loop.low_rank else []
    missing = [name for name in needed if getattr(hyper, name) is None]
    if missing:
        raise BenchError(f"params.yaml: methods.{method}: needs {' and '.join(missing)}")


def first_rows(
    base: Base, method: Trained, concepts: Sequence[Concept], first: int, params: Params
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The rows [d] that the modifier tokens of these concepts start from, by token.

    "rare" takes the embeddings of the profile's rare tokens in their order, "noun" that of the
    class noun's last word, "normal" random numbers with the mean and the deviation of the whole
    table in each dimension (Table 5).

    Args:
        first: the place of the first of these concepts in its subject.

    Returns:
        The rows, and the ids of the tokens they were copied from (none if they were drawn).

    Raises:
        BenchError: more concepts than rare tokens, or an id outside the vocabulary.
    """
    rare = params.base.modifier_token_ids
    if len(rare) < first + len(concepts):
        raise BenchError(
            f"params.yaml: base.modifier_token_ids: {len(rare)} given, {first + len(concepts)} "
            "are needed"
        )
    rows: dict[str, Tensor] = {}
    ids: dict[str, int] = {}
    for place, concept in enumerate(concepts, first):
        token = modifier_token(place)
        if method.token == "normal":
            table = base.embedding_table()
            generator = torch.Generator().manual_seed(
                seed_of(params.train.seed, "token", concept.name)
            )
            drawn = torch.randn(table.shape[1], generator=generator)
            rows[token] = table.mean(0).cpu() + table.std(0).cpu() * drawn
            continue
        if method.token == "rare":
            ids[token] = rare[place]
        else:
            # The last piece of a word that the vocabulary does not have as a whole.
            word = concept.class_noun.split()[-1]
            ids[token] = base.tokenizer(word, add_special_tokens=False).input_ids[-1]
        rows[token] = base.embedding_row(ids[token])
    return rows, ids


def modifier_token(place: int) -> str:
    """The modifier token of a subject's concept at that place, counted from zero: `<new1>`."""
    return f"<new{place + 1}>"


def trained(
    base: Base,
    how: Trained,
    sets: Sequence[TrainingSet],
    params: Params,
    hyper: MethodParams,
    provenance: Provenance,
    first: int = 0,
) -> Adapter:
    """Trains the concepts of `sets` jointly; `first` is the place of the first in its subject."""
    steps = (hyper.steps if len(provenance.references) == 1 else hyper.composition_steps) or 0
    return trained_through(base, how, sets, params, hyper, [steps], provenance, first)[-1]


def trained_through(
    base: Base,
    how: Trained,
    sets: Sequence[TrainingSet],
    params: Params,
    hyper: MethodParams,
    checkpoints: Sequence[int],
    provenance: Provenance,
    first: int = 0,
) -> list[Adapter]:
    """The adapters after so many steps each of one training; see `train_through`."""
    concepts = [part.concept for part in sets]
    rows, ids = first_rows(base, how, concepts, first, params)
    references = [how.reference.format(token=t, noun=c.class_noun) for t, c in zip(rows, concepts)]
    provenance = replace(
        provenance,
        references=(*provenance.references[:first], *references),
        initial_ids=provenance.initial_ids | ids,
        learning_rate=hyper.learning_rate or 0.0,
    )
    return train_through(base, how, sets, rows, params.train, hyper, checkpoints, provenance)


def continued(
    base: Base,
    how: Trained,
    before: Adapter,
    sets: Sequence[TrainingSet],
    params: Params,
    hyper: MethodParams,
    provenance: Provenance,
) -> Adapter:
    """Trains the concepts after the first one by one, each on top of those before it.

    Tokens of earlier concepts are in no caption then, so they are left out of the training.
    """
    known = before.provenance
    provenance = replace(
        provenance,
        references=(known.references[0], *provenance.references[1:]),
        initial_ids=known.initial_ids,
        steps=known.steps,
    )
    adapter = replace(before, provenance=provenance)
    for place, part in enumerate(sets[1:], 1):
        so_far = adapter.provenance
        # As if the subject ended here; `train` wants the references of its own concepts last.
        now = replace(so_far, references=so_far.references[: place + 1])
        with applied(base, replace(adapter, tokens={})):
            more = trained(base, how, [part], params, hyper, now, place)
        adapter = Adapter(
            adapter.tokens | more.tokens,
            {name: dense(d) + dense(adapter.deltas[name]) for name, d in more.deltas.items()},
            replace(
                more.provenance,
                references=(*more.provenance.references, *so_far.references[place + 1 :]),
            ),
        )
    return adapter


def merged(
    base: Base,
    how: Merged,
    parts: Sequence[Adapter],
    subject: Subject,
    params: Params,
    hyper: MethodParams,
    provenance: Provenance,
) -> Adapter:
    """Merges the adapters of the subject's concepts; their tokens are renamed by their places.

    Raises:
        BenchError: the adapters do not fit each other, or the corpus index is missing.
        FailureError: the constrained optimization has no finite solution.
    """
    tokens: dict[str, Tensor] = {}
    ids: dict[str, int] = {}
    references = []
    for place, part in enumerate(parts):
        (old, row), new = next(iter(part.tokens.items())), modifier_token(place)
        tokens[new] = row
        ids |= {new: part.provenance.initial_ids[old]} if part.provenance.initial_ids else {}
        references.append(part.provenance.references[0].replace(old, new))
    provenance = replace(provenance, references=tuple(references), initial_ids=ids)
    if how.rule == "average":
        return average(parts, tokens, provenance)
    captions, ridge = regularization_captions(params), hyper.ridge or 0.0
    try:
        adapter = constrained(
            base, parts, tokens, subject, captions, ridge, hyper.template_words, provenance
        )
        why = not_finite(adapter)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        why = str(error)
    if why:
        method = provenance.method
        raise FailureError(
            DIVERGED,
            f"{method} on {subject.name}: the merge has no finite solution ({why}; ridge "
            f"{ridge:g}): raise methods.{method}.ridge in the profile's params.yaml",
        )
    return adapter


def regularization_captions(params: Params) -> list[str]:
    """The captions of C_reg: a random, repeatable choice from the corpus.

    Raises:
        BenchError: the index is missing.
    """
    path = params.runs() / "index" / "metadata.parquet"
    if not path.is_file():
        raise BenchError(
            f"{path}: the corpus index is missing: run `{repro_command(params.profile)}` to make it"
        )
    table = pq.read_table(str(path), columns=["caption", "split"]).to_pydict()
    captions = sorted(c for c, split in zip(table["caption"], table["split"]) if split == "train")
    rng = np.random.default_rng(seed_of(params.train.seed, "regularization captions"))
    count = min(params.train.regularization_captions, len(captions))
    return [captions[i] for i in sorted(rng.choice(len(captions), count, replace=False))]
