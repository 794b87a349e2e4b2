"""The one training loop, and the stage that makes a cell's adapter."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.adapters import Adapter, LowRank, Provenance, load_adapter, save_adapter
from pipeline.augment import View, draw_view, render_view, view_mask
from pipeline.base import Base, load_base, to_tensor
from pipeline.concepts import Concept, Subject, load_subject
from pipeline.crossattn import detached_start_token
from pipeline.errors import BenchError
from pipeline.files import read_tar
from pipeline.merging import distinct_rows, merger
from pipeline.methods import Merged, Trained, load_method
from pipeline.params import DEFAULT_PROFILE, MethodParams, Params, TrainParams, load_params
from pipeline.seeds import seed_of


@dataclass(frozen=True)
class TrainingSet:
    """The images of one concept's shard, all square and of the base's resolution."""

    concept: Concept
    targets: list[Image.Image]
    regularization: list[Image.Image]
    captions: list[str]  # of the regularization images


@dataclass(frozen=True)
class Row:
    """One image of one step: a view of a target, or a regularization image and its mirroring."""

    concept: int
    view: View
    target: bool
    caption: str


def load_training_set(concept: Concept, runs: Path) -> TrainingSet:
    """Reads the concept's shard.

    Raises:
        BenchError: the shard is missing, truncated or holds no targets.
    """
    path = runs / "shards" / f"{concept.name}.tar"
    targets, regularization, captions = [], [], []
    for sample in read_tar(path):
        try:
            image = Image.open(io.BytesIO(sample["png"])).convert("RGB")
        except (KeyError, OSError) as error:
            raise BenchError(
                f"{path}: sample {sample['__key__']} has no readable image: delete the shard and "
                "run `dvc repro`"
            ) from error
        if sample["__key__"].startswith("target-"):
            targets.append(image)
        else:
            regularization.append(image)
            captions.append(sample["txt"])
    if not targets:
        raise BenchError(f"{path}: holds no target images: delete the shard and run `dvc repro`")
    return TrainingSet(concept, targets, regularization, captions)


def draw_schedule(
    method: Trained, sets: Sequence[TrainingSet], params: TrainParams, resolution: int, steps: int
) -> list[list[Row]]:
    """Everything that the steps will see, drawn beforehand.

    Each concept has an equal share of every batch; with regularization half of it are targets
    and half regularization images. A concept's draws depend on the seed and its name alone.

    Raises:
        BenchError: the batch cannot be shared out, or there are no regularization images.
    """
    kinds = 2 if method.regularization else 1
    share, rest = divmod(params.batch_size, kinds * len(sets))
    if rest or not share:
        raise BenchError(
            f"params.yaml: train.batch_size: {params.batch_size} cannot be shared out among "
            f"{len(sets)} concepts and {kinds} kinds of images: use a multiple of "
            f"{kinds * len(sets)}"
        )
    schedule: list[list[Row]] = [[] for _ in range(steps)]
    for index, part in enumerate(sets):
        if method.regularization and not part.regularization:
            raise BenchError(
                f"shard of {part.concept.name}: holds no regularization images, which this method "
                "needs: run `dvc repro` to retrieve them"
            )
        rng = np.random.default_rng(seed_of(params.seed, "schedule", part.concept.name))
        templates = method.captions or (part.concept.caption,)
        reference = _reference(method, part.concept, index)
        for rows in schedule:
            for _ in range(share):
                view, prefix = draw_view(rng, len(part.targets), resolution, method.resize)
                template = templates[int(rng.integers(len(templates)))]
                rows.append(Row(index, view, True, prefix + template.format(reference)))
            for _ in range(share if method.regularization else 0):
                view, _ = draw_view(rng, len(part.regularization), resolution, False)
                rows.append(Row(index, view, False, part.captions[view.image]))
    return schedule


def _reference(method: Trained, concept: Concept, index: int) -> str:
    return method.reference.format(token=f"<new{index + 1}>", noun=concept.class_noun)


@torch.no_grad()
def encode_pictures(
    base: Base, sets: Sequence[TrainingSet], rows: Sequence[Row], batch: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """Latent mean and standard deviation [n, c, h, w] and loss mask [n, h, w] of each row."""
    means, deviations, masks = [], [], []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        pictures = [
            render_view(
                row.view,
                sets[row.concept].targets if row.target else sets[row.concept].regularization,
                base.resolution,
            )
            for row in part
        ]
        mean, deviation = base.encode_images(to_tensor(pictures), batch)
        means.append(mean)
        deviations.append(deviation)
        masks += [view_mask(row.view, base.resolution, base.downsampling) for row in part]
    return torch.cat(means), torch.cat(deviations), torch.stack(masks).to(base.device)


def loss_of_rows(error: Tensor, mask: Tensor, masked: bool) -> Tensor:
    """The loss [n] of each image from its noise error [n, c, h, w] and mask [n, h, w].

    Masked as in the released code: the sum over channels and unmasked pixels of the squares,
    divided by the number of unmasked pixels; so c times a mean. Otherwise the plain mean.
    """
    squares = error.pow(2)
    if not masked:
        return squares.mean((1, 2, 3))
    return (squares.sum(1) * mask).sum((1, 2)) / mask.sum((1, 2))


def train(
    base: Base,
    method: Trained,
    sets: Sequence[TrainingSet],
    params: Params,
    hyper: MethodParams,
    steps: int,
    provenance: Provenance,
) -> Adapter:
    """Fine-tunes the base on the concepts' images and returns what changed.

    The base is left as it was. All noise comes from generators of its own step, so the result
    depends on nothing but the arguments.
    """
    device, unet = base.device, base.unet
    tokens = {
        f"<new{i + 1}>": base.embedding_row(token_id)
        for i, token_id in enumerate(provenance.initial_ids.values())
    }
    table = base.text_encoder.get_input_embeddings()
    embedding = base.add_modifier_tokens(tokens)
    schedule = draw_schedule(method, sets, params.train, base.resolution, steps)

    # Equal pictures are encoded once, and so are captions that no training can change.
    pictures = list(
        dict.fromkeys((row.concept, row.view, row.target) for r in schedule for row in r)
    )
    index = {picture: i for i, picture in enumerate(pictures)}
    mean, deviation, mask = encode_pictures(
        base, sets, [Row(concept, view, target, "") for concept, view, target in pictures]
    )
    frozen_text = {
        row.caption: None
        for rows in schedule
        for row in rows
        if not (row.target and method.train_token)
    }
    features: dict[str, Tensor] = {}
    with torch.no_grad():
        captions = list(frozen_text)
        for start in range(0, len(captions), 64):
            part = captions[start : start + 64]
            features.update(zip(part, base.encode_text(part)))

    weights = dict(unet.named_parameters())
    names = method.weights(unet)
    originals = {name: weights[name].detach().clone() for name in names}
    trained = [weights[name].requires_grad_(True) for name in names]
    if method.train_token:
        trained.append(embedding.rows.requires_grad_(True))
    optimizer = torch.optim.AdamW(
        trained, hyper.learning_rate or 0.0, weight_decay=params.train.weight_decay
    )
    training_steps = base.scheduler.config.num_train_timesteps
    start_token = detached_start_token(unet) if method.detach_start_token else nullcontext()
    try:
        with start_token:
            progress = tqdm(schedule, f"training {provenance.method}", unit="step", mininterval=1)
            for step, rows in enumerate(progress):
                generator = torch.Generator().manual_seed(
                    seed_of(params.train.seed, provenance.subject, "step", step)
                )
                shape = (len(rows), *base.latent_shape)
                posterior, noise = (
                    torch.randn(shape, generator=generator).to(device) for _ in range(2)
                )
                timesteps = torch.randint(training_steps, shape[:1], generator=generator).to(device)
                chosen = [index[row.concept, row.view, row.target] for row in rows]
                clean = (mean[chosen] + deviation[chosen] * posterior) * base.scale
                noisy = base.scheduler.add_noise(clean, noise, timesteps)
                with base.autocast():
                    learned = list(
                        dict.fromkeys(r.caption for r in rows if r.caption not in features)
                    )
                    now = dict(zip(learned, base.encode_text(learned))) if learned else {}
                    context = torch.stack([(features | now)[row.caption] for row in rows])
                    predicted = unet(noisy, timesteps, context).sample
                losses = loss_of_rows(predicted.float() - noise, mask[chosen], method.masked_loss)
                # The mean over each concept's images, summed over concepts.
                loss = losses.sum() * len(sets) / len(rows)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        deltas = {name: (weights[name] - originals[name]).detach().cpu() for name in names}
        rows_now = embedding.rows.detach().cpu()
    finally:
        base.text_encoder.set_input_embeddings(table)
        unet.requires_grad_(False)
        with torch.no_grad():
            for name, original in originals.items():
                weights[name].copy_(original)
    return Adapter(
        {token: row.clone() for token, row in zip(tokens, rows_now)}, dict(deltas), provenance
    )


def merge(
    base: Base,
    parts: Sequence[Adapter],
    subject: Subject,
    captions: Sequence[str],
    ridge: float,
    provenance: Provenance,
) -> Adapter:
    """One adapter from the adapters of single concepts (paper, section 3.2).

    Args:
        parts: one for each concept of the subject, with one modifier token each.
        captions: C_reg, what the merged model should treat as the pretrained one does.
    """
    tokens = {
        token: next(iter(part.tokens.values()))
        for token, part in zip(subject.modifier_tokens, parts)
    }
    table = base.text_encoder.get_input_embeddings()
    base.add_modifier_tokens(tokens)
    try:
        features = []
        for token, concept in zip(subject.modifier_tokens, subject.concepts):
            reference = f"{token} {concept.class_noun}"
            features.append(_word_features(base, [reference, f"a photo of {reference}"]))
        regularization = _word_features(base, captions)
    finally:
        base.text_encoder.set_input_embeddings(table)
    kept = distinct_rows(features)
    constraints = torch.cat([rows[k] for rows, k in zip(features, kept)])
    prepared = merger(constraints, regularization, ridge)

    weights = dict(base.unet.named_parameters())
    deltas, residuals = {}, []
    for name in parts[0].deltas:
        pretrained = weights[name].detach().double().cpu()
        values = []
        for part, rows, k in zip(parts, features, kept):
            delta = part.deltas[name]
            change = delta.dense() if isinstance(delta, LowRank) else delta
            values.append(rows[k].double() @ (pretrained + change.double()).T)
        merged = prepared.merge(pretrained, torch.cat(values))
        deltas[name] = (merged.weight - pretrained).float()
        residuals.append(merged.residual)
    notes = {
        "constraints": float(len(constraints)),
        "condition": prepared.condition,
        "residual": max(residuals),
    }
    return Adapter(tokens, deltas, Provenance(**{**vars(provenance), "notes": notes}))


@torch.no_grad()
def _word_features(base: Base, texts: Sequence[str]) -> Tensor:
    """Text features [n, d] of all words and the first end token of the texts, on the CPU."""
    end = base.tokenizer.eos_token_id
    rows = []
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        ids = base.tokenize(part)
        for features, words in zip(base.encode_text(part), ids):
            length = int((words == end).nonzero()[0]) if bool((words == end).any()) else len(words)
            rows.append(features[1 : length + 1].cpu())
    return torch.cat(rows)


def regularization_captions(params: Params) -> list[str]:
    """The captions of C_reg: a random, repeatable choice from the corpus.

    Raises:
        BenchError: the index is missing.
    """
    path = params.runs() / "index" / "metadata.parquet"
    if not path.is_file():
        raise BenchError(f"{path}: the corpus index is missing: run `dvc repro` to make it")
    table = pq.read_table(str(path), columns=["caption", "split"]).to_pydict()
    captions = sorted(c for c, split in zip(table["caption"], table["split"]) if split == "train")
    rng = np.random.default_rng(seed_of(params.train.seed, "regularization captions"))
    count = min(params.train.regularization_captions, len(captions))
    return [captions[i] for i in sorted(rng.choice(len(captions), count, replace=False))]


def train_cell(method: str, subject: str, profile: str = DEFAULT_PROFILE) -> Path:
    """Stage `train`: the adapter of a cell, trained, merged or empty."""
    started = time.perf_counter()
    params, about, how = load_params(profile), load_subject(subject, profile), load_method(method)
    hyper = params.methods.get(method)
    if hyper is None:
        raise BenchError(f"params.yaml: methods.{method}: missing: give the method's parameters")
    single = len(about.concepts) == 1
    steps = hyper.steps if single else hyper.composition_steps
    if isinstance(how, Trained) and (steps is None or hyper.learning_rate is None):
        field = "steps" if single else "composition_steps"
        raise BenchError(f"params.yaml: methods.{method}: needs learning_rate and {field}")
    runs = params.runs()
    sets = [load_training_set(c, runs) for c in about.concepts] if isinstance(how, Trained) else []
    parts = (
        [
            load_adapter(runs / "cells" / how.of / c.name / "adapter.safetensors")
            for c in about.concepts
        ]
        if isinstance(how, Merged)
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
    known = vars(provenance)
    if isinstance(how, Trained):
        provenance = Provenance(
            **{
                **known,
                "references": tuple(
                    _reference(how, concept, i) for i, concept in enumerate(about.concepts)
                ),
                "initial_ids": _initial_ids(base, how, about, params),
                "steps": steps,
                "learning_rate": hyper.learning_rate,
            }
        )
        adapter = train(base, how, sets, params, hyper, steps or 0, provenance)
    elif isinstance(how, Merged):
        references = tuple(
            f"{token} {concept.class_noun}"
            for token, concept in zip(about.modifier_tokens, about.concepts)
        )
        initial = {
            token: next(iter(part.provenance.initial_ids.values()))
            for token, part in zip(about.modifier_tokens, parts)
        }
        provenance = Provenance(**{**known, "references": references, "initial_ids": initial})
        captions = regularization_captions(params)
        adapter = merge(base, parts, about, captions, hyper.ridge or 0.0, provenance)
    else:
        adapter = Adapter({}, {}, provenance)
    path = runs / "cells" / method / subject / "adapter.safetensors"
    save_adapter(adapter, path)
    seconds = time.perf_counter() - started
    print(
        f"train: {method} on {subject}, {provenance.steps} steps, {adapter.parameters():,} "
        f"numbers, {path.stat().st_size / 1e6:.2f} MB in {seconds:.1f} s -> {path}"
    )
    return path


def _initial_ids(base: Base, method: Trained, subject: Subject, params: Params) -> dict[str, int]:
    """Which token each modifier token starts from."""
    rare = params.base.modifier_token_ids
    if len(rare) < len(subject.concepts):
        raise BenchError(
            f"params.yaml: base.modifier_token_ids: {len(rare)} given, {subject.name} needs "
            f"{len(subject.concepts)}"
        )
    ids = {}
    for token, concept, rare_id in zip(subject.modifier_tokens, subject.concepts, rare):
        word = method.initial_word(concept)
        if word is None:
            ids[token] = rare_id
        else:
            # The last piece of a word that the vocabulary does not have as a whole.
            ids[token] = base.tokenizer(word, add_special_tokens=False).input_ids[-1]
    return ids
