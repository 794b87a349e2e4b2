"""Stages `score` and `oracle`: a cell's samples, or real images in their place, become scores."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from eval.metrics.catalogue import OfGallery, OfSets
from eval.scores.file import ORACLE, SEQUENCE_COLUMNS, write_scores
from eval.scores.measure import Measure
from eval.scores.pictures import PICTURES, Place, first_samples, write_pictures
from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.places import repro_command
from pipeline.common.seeds import seed_of
from pipeline.concepts.shards import (
    Sample,
    gallery_of,
    held_out_of,
    one_line,
    samples_of,
    targets_of,
)
from pipeline.settings.profile import load_grid, load_params


def score_cell(method: str, subject: str, profile: str, seed: int | None = None) -> None:
    """Scores the samples of a cell: `samples.tar` to `scores.csv`, and keeps the first pictures.

    Its metrics are those that the protocol lists. Text-alignment is measured with class nouns in
    place of modifier tokens, image-alignment and identity for each target concept by itself, KID
    and FID for single concepts, between images of the captions of held-out real images and these.

    Args:
        method: of the profile's grid,
        subject: and what it learned.
        profile: the name of a profile.
        seed: of the training; None if nothing in it is random.

    Raises:
        BenchError: samples, targets or the models that measure are missing or damaged.
        FailureError: samples or targets could not be made.
    """
    start = time.monotonic()
    params, concepts = load_params(profile), load_grid(profile).concepts_of(subject)
    folder = params.cell(method, subject, seed)
    samples = samples_of(params, method, subject, seed=seed)
    of_prompts = [s for s in samples if s["json"]["part"] == "prompt"]
    of_captions = [s for s in samples if s["json"]["part"] == "caption"]
    if not of_prompts:
        raise BenchError(f"{folder / 'samples.tar'}: holds no images of prompts: sample again")

    measure = Measure(params)
    prompts = [s["json"]["scored_prompt"] for s in of_prompts]
    rows = measure.text_rows(of_prompts, prompts)
    for number, concept in enumerate(concepts, 1):
        targets = targets_of(params, concept)
        rows += measure.target_rows(of_prompts, prompts, targets, number)
    if measure.asked(OfGallery):
        galleries = [gallery_of(params, concept) for concept in concepts]
        rows += measure.gallery_rows(of_prompts, prompts, galleries)
    if of_captions and measure.asked(OfSets):
        (concept,) = concepts
        reals = held_out_of(params, concept)
        captions = [one_line(s["json"]["scored_prompt"]) for s in of_captions]
        known = [s["txt"] for s in reals]
        if not set(captions) <= set(known):
            raise BenchError(
                f"{folder / 'samples.tar'}: its captions are not those of the held-out "
                f"images of {concept!r}: sample again"
            )
        rows += measure.set_rows(reals, known, of_captions, captions)
    record = params.record(method, subject, seed)
    write_pictures(first_samples(of_prompts), record / PICTURES)
    write_scores(record, method, subject, seed, params.protocol.name, rows, start)


def score_sequence(method: str, sequence: str, profile: str) -> None:
    """Scores the samples of all tasks of a sequence, and of its last model: one file for all.

    Image-alignment is measured with the targets of the concept that was asked for, and after the
    last task with those of every other one too. Images of the last model that was asked for class
    nouns are of no task, and compared with the concept's targets. What failed has no rows. Of each
    task and concept (by their numbers) a picture is kept.

    Raises:
        BenchError: samples, targets or the models that measure are missing or damaged.
        FailureError: no task could be made, or targets could not.
    """
    start = time.monotonic()
    params, grid = load_params(profile), load_grid(profile)
    concepts = grid.sequences[sequence].concepts
    made: dict[int, list[Sample]] = {}
    failures: list[FailureError] = []
    for number, task in enumerate(grid.tasks(sequence), 1):
        try:
            made[number] = samples_of(params, method, task)
        except FailureError as error:
            failures.append(error)
    if not made:
        raise failures[0]
    targets = [targets_of(params, concept) for concept in concepts]
    measure, rows = Measure(params), []
    try:
        plain = samples_of(params, method, sequence)
    except FailureError:
        plain = []
    for place, concept in enumerate(concepts, 1):
        own = [s for s in plain if s["json"]["concept"] == concept]
        if own:
            prompts = [s["json"]["scored_prompt"] for s in own]
            found = measure.text_rows(own, prompts)
            found += measure.target_rows(own, prompts, targets[place - 1], place)
            rows += [row | {"subject": concept} for row in found]
    shown: dict[Place, Sample] = {}
    for number, samples in made.items():
        for place, concept in enumerate(concepts[:number], 1):
            own = [s for s in samples if s["json"]["concept"] == concept]
            if not own:
                raise BenchError(
                    f"{params.cell(method, sequence)}: the samples of task {number} hold no images "
                    f"of {concept}: the sequence was another: run `{repro_command(profile)}`"
                )
            shown[number, place] = own[0]
            prompts = [s["json"]["scored_prompt"] for s in own]
            others = range(1, len(concepts) + 1) if number == len(concepts) else [place]
            found = measure.text_rows(own, prompts)
            for other in others:
                found += measure.target_rows(own, prompts, targets[other - 1], other)
            rows += [row | {"task": number, "subject": concept} for row in found]
    record, protocol = params.record(method, sequence), params.protocol.name
    write_pictures(shown, record / PICTURES)
    write_scores(record, method, sequence, None, protocol, rows, start, SEQUENCE_COLUMNS)


def score_oracle(concept: str, profile: str) -> None:
    """Scores real images as if a method had made them, so that there is something to compare with.

    Image-alignment is that of the target images with each other, identity that of the gallery's own
    pictures, text-alignment that of held-out real images with their own captions, KID and FID those
    of two `halves` of the held-out images.

    Raises:
        BenchError: real images or the models that measure are missing or damaged.
        FailureError: there are too few real images.
    """
    start = time.monotonic()
    params = load_params(profile)
    measure = Measure(params)
    targets, reals = targets_of(params, concept), held_out_of(params, concept)

    captions = [s["txt"] for s in reals]
    distinct = sorted(set(captions))
    seen: dict[str, int] = {}
    for real, caption in zip(reals, captions):
        number = seen[caption] = seen.get(caption, -1) + 1
        real["json"] |= {"prompt_index": distinct.index(caption), "sample": number}
    rows = measure.text_rows(reals, captions)
    rows += measure.among_target_rows(targets)
    if measure.asked(OfGallery):
        rows += measure.own_picture_rows(gallery_of(params, concept))
    rows += measure.half_rows(*halves(reals, np.random.default_rng(seed_of("halves", concept))))
    record = params.record(ORACLE, concept)
    write_scores(record, ORACLE, concept, None, params.protocol.name, rows, start)


def halves(
    reals: Sequence[Sample], rng: np.random.Generator
) -> tuple[list[Sample], list[Sample], list[str]]:
    """Two halves of real images that differ by chance alone, in pairs, and a label of each pair.

    A pair is of one caption where that has two images (a third is left out), and of two captions
    that have one image each otherwise. Which image of a pair is in which half is drawn, so that the
    expectation of KID by pairs is zero, whatever the images are.
    """
    by_caption: dict[str, list[Sample]] = {}
    for real in reals:
        by_caption.setdefault(real["txt"], []).append(real)
    alone = [some[0] for some in by_caption.values() if len(some) == 1]
    groups = [*by_caption.items()]
    groups += [(f"{a['txt']} / {b['txt']}", [a, b]) for a, b in zip(alone[::2], alone[1::2])]
    first, second, labels = [], [], []
    for label, some in groups:
        for pair in zip(some[::2], some[1::2]):
            a, b = rng.permutation(2)
            first.append(pair[a])
            second.append(pair[b])
            labels.append(label)
    return first, second, labels
