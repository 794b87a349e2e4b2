"""Scores: one small CSV file for each cell, one row for each measured value.

Columns: see COLUMNS. A row is either about one image (`prompt_index`, `prompt` and `sample` say
which) or about a set of images (`std_error` and `n` are given). All tables are made of these rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.metrics import SetValue
from eval.metrics.image_alignment import image_alignment, leave_one_out
from eval.metrics.kid import kid
from eval.metrics.text_alignment import text_alignment
from pipeline.concepts import Concept, load_concept, load_subject
from pipeline.errors import BenchError
from pipeline.files import atomic, read_tar
from pipeline.params import Params, load_grid, load_params

if TYPE_CHECKING:
    from eval.features import Extractor

ORACLE = "oracle"
COLUMNS: dict[str, str] = {
    "protocol": "string",
    "method": "string",
    "subject": "string",
    "metric": "string",
    "prompt_index": "Int64",
    "prompt": "string",
    "sample": "Int64",
    "value": "float64",
    "std_error": "float64",
    "n": "Int64",
    "extractor": "string",
}

Sample = dict[str, Any]


def scores_path(params: Params, method: str, subject: str) -> Path:
    """Where the scores of a cell lie."""
    return params.runs() / "cells" / method / subject / "scores.csv"


def score_cell(method: str, subject: str, profile: str) -> None:
    """Scores the samples of a cell: `samples.tar` to `scores.csv`.

    Text-alignment is measured with class nouns in place of modifier tokens, image-alignment for
    each target concept by itself, KID for single concepts, between images of the captions of
    held-out real images and these.

    Raises:
        BenchError: samples, targets or the models that measure are missing or damaged.
    """
    start = time.monotonic()
    params, concepts = load_params(profile), load_subject(subject, profile).concepts
    path = scores_path(params, method, subject)
    samples = read_tar(path.with_name("samples.tar"))
    of_prompts = [s for s in samples if s["json"]["part"] == "prompt"]
    of_captions = [s for s in samples if s["json"]["part"] == "caption"]
    if not of_prompts:
        raise BenchError(
            f"{path.with_name('samples.tar')}: holds no images of prompts: sample again"
        )

    measure = _Measure(params)
    features = measure.images(of_prompts)
    prompts = [s["json"]["scored_prompt"] for s in of_prompts]
    rows = measure.text_rows(of_prompts, prompts)
    for number, concept in enumerate(concepts, 1):
        values = image_alignment(features, measure.images(_targets(params, concept))).values
        name = "image_alignment" if len(concepts) == 1 else f"image_alignment_{number}"
        rows += measure.image_rows(name, of_prompts, prompts, values)
    if of_captions:
        (concept,) = concepts
        reals = _held_out(params, concept)
        captions = [_normal(s["json"]["scored_prompt"]) for s in of_captions]
        known = [_normal(s["txt"]) for s in reals]
        if not set(captions) <= set(known):
            raise BenchError(
                f"{path.with_name('samples.tar')}: its captions are not those of the held-out "
                f"images of {concept.name!r}: sample again"
            )
        rows.append(measure.kid_row(reals, known, of_captions, captions))
    _write(path, params.protocol.name, rows, start)


def score_oracle(concept: str, profile: str) -> None:
    """Scores real images as if a method had made them, so that there is something to compare with.

    Image-alignment is that of the target images with each other, text-alignment that of held-out
    real images with their own captions, KID that of two halves of the held-out images.

    Raises:
        BenchError: real images or the models that measure are missing or damaged.
    """
    start = time.monotonic()
    params, loaded = load_params(profile), load_concept(concept)
    path = scores_path(params, ORACLE, concept)
    measure = _Measure(params)
    targets, reals = _targets(params, loaded), _held_out(params, loaded)

    captions = [_normal(s["txt"]) for s in reals]
    distinct = sorted(set(captions))
    seen: dict[str, int] = {}
    for real, caption in zip(reals, captions):
        number = seen[caption] = seen.get(caption, -1) + 1
        real["json"] |= {"prompt_index": distinct.index(caption), "sample": number}
    rows = measure.text_rows(reals, captions)
    if len(targets) > 1:
        value = leave_one_out(measure.images(targets))
        rows.append(_set_row("image_alignment", value, measure.clip.identity))
    # Every other caption, so that images of one caption are on one side.
    halves: tuple[list[Sample], list[Sample]] = ([], [])
    for real in reals:
        halves[real["json"]["prompt_index"] % 2].append(real)
    if min(map(len, halves)) > 1:
        labels = [[_normal(s["txt"]) for s in half] for half in halves]
        rows.append(measure.kid_row(halves[0], labels[0], halves[1], labels[1]))
    _write(path, params.protocol.name, rows, start)


def load_scores(profile: str) -> pd.DataFrame:
    """All scores of the profile's grid that are there, oracle first, then in the grid's order.

    Returns:
        A frame with COLUMNS; empty if nothing was scored yet.

    Raises:
        BenchError: a file is damaged, or scores were measured in ways that cannot be compared.
    """
    params, grid = load_params(profile), load_grid(profile)
    frames = []
    for method in (ORACLE, *grid.methods):
        for subject in grid.subjects():
            path = scores_path(params, method, subject)
            if path.is_file():
                frames.append(_read(path))
    if not frames:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    scores = pd.concat(frames, ignore_index=True)
    _check_comparable(scores)
    return scores


def missing_cells(profile: str, scores: pd.DataFrame) -> dict[str, list[str]]:
    """By method, the subjects without scores that it makes adapters of, if there are any."""
    from pipeline.methods import load_method  # imports torch

    grid = load_grid(profile)
    there = set(zip(scores["method"], scores["subject"]))
    asked = {ORACLE: list(grid.concepts)}
    for method in grid.methods:
        how = load_method(method)
        asked[method] = [*grid.concepts] if how.single else []
        asked[method] += [*grid.composed()] if how.composition else []
    missing = {m: [s for s in subjects if (m, s) not in there] for m, subjects in asked.items()}
    return {method: subjects for method, subjects in missing.items() if subjects}


def _check_comparable(scores: pd.DataFrame) -> None:
    kind = scores["metric"].str.startswith("kid").map({True: "KID", False: "alignment"})
    for what, column in (("protocol", "protocol"), ("extractor", "extractor")):
        groups = [("scores", scores)] if column == "protocol" else list(scores.groupby(kind))
        for name, group in groups:
            examples = group.drop_duplicates(column)
            if len(examples) > 1:
                said = " and ".join(
                    f"{row[column]} ({row['method']}/{row['subject']})"
                    for _, row in examples.head(2).iterrows()
                )
                raise BenchError(
                    f"{name} of different {what}s cannot be compared: {said}: run `dvc repro` so "
                    "that all cells are scored alike"
                )


class _Measure:
    """The models that measure, loaded once."""

    def __init__(self, params: Params) -> None:
        # Here, as reading scores does not need torch, which takes seconds to import.
        from eval.features import clip_extractor, inception_extractor
        from pipeline.openclip import load_clip

        self.clip = load_clip(params.protocol.score.clip)
        self.extractor = clip_extractor(self.clip)
        self.kid_extractor: Extractor = self.extractor
        if params.protocol.score.kid_features == "inception":
            self.kid_extractor = inception_extractor(params.score.inception)

    def images(self, samples: Sequence[Sample]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Unit CLIP features [n, d]."""
        return self.extractor([_image(s) for s in samples])

    def text_rows(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[Sample]:
        """Text-alignment of each image with its prompt."""
        distinct = sorted(set(prompts))
        texts = self.clip.encode_texts(distinct)[[distinct.index(p) for p in prompts]]
        values = text_alignment(self.images(samples), texts).values
        return self.image_rows("text_alignment", samples, prompts, values)

    def image_rows(
        self,
        metric: str,
        samples: Sequence[Sample],
        prompts: Sequence[str],
        values: np.ndarray[Any, np.dtype[np.float64]],
    ) -> list[Sample]:
        """One row for each image."""
        return [
            {
                "metric": metric,
                "prompt_index": sample["json"]["prompt_index"],
                "prompt": prompt,
                "sample": sample["json"]["sample"],
                "value": value,
                "extractor": self.clip.identity,
            }
            for sample, prompt, value in zip(samples, prompts, values.tolist())
        ]

    def kid_row(
        self,
        reals: Sequence[Sample],
        real_captions: Sequence[str],
        generated: Sequence[Sample],
        captions: Sequence[str],
    ) -> Sample:
        """KID of two sets of images, clustered by caption."""
        from eval.features import kernel_features

        if min(len(reals), len(generated)) < 2:
            raise BenchError(
                f"KID needs two images on either side, not {len(reals)} real and {len(generated)} "
                "generated: raise retrieve.held_out_images and sample.images_per_caption"
            )
        x = kernel_features(self.kid_extractor, [_image(s) for s in reals])
        y = kernel_features(self.kid_extractor, [_image(s) for s in generated])
        value = kid(x, y, real_captions, captions)
        return _set_row("kid", value, self.kid_extractor.identity)


def _set_row(metric: str, value: SetValue, extractor: str) -> Sample:
    return {
        "metric": metric,
        "value": value.value,
        "std_error": value.std_error,
        "n": value.n,
        "extractor": extractor,
    }


def _image(sample: Sample) -> bytes:
    image = sample.get("png", sample.get("jpg"))
    if not isinstance(image, bytes):
        raise BenchError(f"sample {sample['__key__']!r} holds no image: make its shard again")
    return image


def _targets(params: Params, concept: Concept) -> list[Sample]:
    path = params.runs() / "shards" / f"{concept.name}.tar"
    targets = [s for s in read_tar(path) if s["__key__"].startswith("target-")]
    if not targets:
        raise BenchError(f"{path}: holds no target images: delete it and run `dvc repro`")
    return targets


def _held_out(params: Params, concept: Concept) -> list[Sample]:
    path = params.runs() / "regularization" / f"{concept.name}.tar"
    return [s for s in read_tar(path) if s["json"]["part"] == "held_out"]


def _normal(caption: str) -> str:
    return " ".join(caption.split())


def _write(path: Path, protocol: str, rows: list[Sample], start: float) -> None:
    method, subject = path.parts[-3:-1]
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    frame["protocol"], frame["method"], frame["subject"] = protocol, method, subject
    frame = frame.astype(COLUMNS)
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
    means = frame.groupby("metric", sort=False)["value"].mean()
    said = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    seconds = time.monotonic() - start
    print(f"scored {method}/{subject}: {said}; {len(frame)} rows in {seconds:.1f} s -> {path}")


def _read(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=COLUMNS)
        if list(frame.columns) == list(COLUMNS):
            return frame
    except (ValueError, OSError):
        pass
    raise BenchError(f"{path}: not a file of scores: delete it and run `dvc repro`")
