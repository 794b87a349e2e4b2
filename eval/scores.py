"""Scores: one small CSV file for each cell, one row for each measured value.

Columns: see COLUMNS. A row is either about one image (`prompt_index`, `prompt` and `sample` say
which) or about a set of images (`std_error` and `n` are given). All tables are made of these rows.

Each row says how many rows the file has, so that any row tells whether the file was cut off. It
carries its definition: the protocol, the extractor as `<model>@<hash of its weights>`, the scale
(the number that the cosine or the distance is multiplied by) and, where texts are measured, how
they were made of prompts. Rows with other definitions are never put into one table.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.metrics import SetValue
from eval.metrics.fid import fid
from eval.metrics.image_alignment import image_alignment, leave_one_out
from eval.metrics.kid import SCALE as KID_SCALE
from eval.metrics.kid import kid
from eval.metrics.text_alignment import text_alignment
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure, failure_of
from pipeline.common.files import atomic
from pipeline.common.places import repro_command_for
from pipeline.concepts.shards import Sample, held_out_of, image_of, one_line, samples_of, targets_of
from pipeline.settings.external import is_external
from pipeline.settings.profile import Params, load_grid, load_params

if TYPE_CHECKING:
    from eval.features import Extractor

ORACLE = "oracle"
SCORES = "scores.csv"  # in the folder of a cell
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
    "scale": "float64",
    "text_rule": "string",
    "rows": "Int64",
}
# What has to be alike in the rows of a metric, and why.
DEFINITION: dict[str, str] = {
    "protocol": "protocols differ in which images are made and in how they are measured",
    "extractor": "features of other models or weights give other values",
    "scale": "the same cosine or distance was multiplied by different numbers",
    "text_rule": "images were compared with texts made in different ways",
}


def score_cell(method: str, subject: str, profile: str) -> None:
    """Scores the samples of a cell: `samples.tar` to `scores.csv`.

    Its metrics are those that the protocol lists. Text-alignment is measured with class nouns in
    place of modifier tokens, image-alignment for each target concept by itself, KID and FID for
    single concepts, between images of the captions of held-out real images and these.

    Raises:
        BenchError: samples, targets or the models that measure are missing or damaged.
        FailureError: samples or targets could not be made.
    """
    start = time.monotonic()
    params, concepts = load_params(profile), load_grid(profile).concepts_of(subject)
    folder = params.cell(method, subject)
    samples = samples_of(params, method, subject)
    of_prompts = [s for s in samples if s["json"]["part"] == "prompt"]
    of_captions = [s for s in samples if s["json"]["part"] == "caption"]
    if not of_prompts:
        raise BenchError(f"{folder / 'samples.tar'}: holds no images of prompts: sample again")

    measure = _Measure(params)
    prompts = [s["json"]["scored_prompt"] for s in of_prompts]
    rows = measure.text_rows(of_prompts, prompts)
    for number, concept in enumerate(concepts, 1):
        suffix = "" if len(concepts) == 1 else f"_{number}"
        rows += measure.image_rows(of_prompts, prompts, targets_of(params, concept), suffix)
    if of_captions and measure.asked("kid", "fid"):
        (concept,) = concepts
        reals = held_out_of(params, concept)
        captions = [one_line(s["json"]["scored_prompt"]) for s in of_captions]
        known = [s["txt"] for s in reals]
        if not set(captions) <= set(known):
            raise BenchError(
                f"{folder / 'samples.tar'}: its captions are not those of the held-out "
                f"images of {concept!r}: sample again"
            )
        rows += measure.distance_rows(reals, known, of_captions, captions)
    _write(folder, params.protocol.name, rows, start)


def score_oracle(concept: str, profile: str) -> None:
    """Scores real images as if a method had made them, so that there is something to compare with.

    Image-alignment is that of the target images with each other, text-alignment that of held-out
    real images with their own captions, KID and FID those of two halves of the held-out images.

    Raises:
        BenchError: real images or the models that measure are missing or damaged.
        FailureError: there are too few real images.
    """
    start = time.monotonic()
    params = load_params(profile)
    measure = _Measure(params)
    targets, reals = targets_of(params, concept), held_out_of(params, concept)

    captions = [s["txt"] for s in reals]
    distinct = sorted(set(captions))
    seen: dict[str, int] = {}
    for real, caption in zip(reals, captions):
        number = seen[caption] = seen.get(caption, -1) + 1
        real["json"] |= {"prompt_index": distinct.index(caption), "sample": number}
    rows = measure.text_rows(reals, captions)
    rows += measure.likeness_rows(targets)
    # Every other caption, so that images of one caption are on one side.
    halves: tuple[list[Sample], list[Sample]] = ([], [])
    for real in reals:
        halves[real["json"]["prompt_index"] % 2].append(real)
    if min(map(len, halves)) > 1:
        labels = [[s["txt"] for s in half] for half in halves]
        rows += measure.distance_rows(halves[0], labels[0], halves[1], labels[1])
    _write(params.cell(ORACLE, concept), params.protocol.name, rows, start)


def load_scores(profile: str) -> pd.DataFrame:
    """All scores of the profile's grid that are there, oracle first, then in the grid's order.

    Cells that failed have none; see `failed_cells`.

    Returns:
        A frame with COLUMNS; empty if nothing was scored yet.

    Raises:
        BenchError: a file is damaged, or scores were measured in ways that cannot be compared.
    """
    params, grid = load_params(profile), load_grid(profile)
    frames = []
    for method in (ORACLE, *grid.methods):
        for subject in grid.subjects():
            path = params.cell(method, subject) / SCORES
            if path.is_file() and not failure_of(path):
                frames.append(_read(path, method, subject))
    if not frames:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    scores = pd.concat(frames, ignore_index=True)
    check_comparable(scores)
    return scores


def failed_cells(profile: str) -> dict[tuple[str, str], Failure]:
    """By method and subject, why cells of the profile's grid could not be made, in its order."""
    params, grid = load_params(profile), load_grid(profile)
    return {
        (method, subject): failure
        for method in (ORACLE, *grid.methods)
        for subject in grid.subjects()
        if (failure := failure_of(params.cell(method, subject) / SCORES))
    }


def missing_cells(profile: str, scores: pd.DataFrame) -> dict[str, list[str]]:
    """By method, the subjects that it makes adapters of and that were not run, if there are any.

    A cell that failed was run.
    """
    from pipeline.methods import load_method  # imports torch

    grid = load_grid(profile)
    there = {*zip(scores["method"], scores["subject"]), *failed_cells(profile)}
    asked = {ORACLE: list(grid.concepts)}
    for method in grid.methods:
        how = None if is_external(method) else load_method(method)
        asked[method] = [*grid.concepts] if how is None or how.single else []
        asked[method] += [*grid.composed()] if how is None or how.composition else []
    missing = {m: [s for s in subjects if (m, s) not in there] for m, subjects in asked.items()}
    return {method: subjects for method, subjects in missing.items() if subjects}


def check_comparable(scores: pd.DataFrame) -> None:
    """Finds out whether all rows of each metric are defined alike, and all are of one protocol.

    Raises:
        BenchError: says which two are not, and why that matters.
    """
    # Each target of a composition has an image-alignment of its own.
    metrics = scores["metric"].str.replace(r"_\d+$", "", regex=True)
    for column, why in DEFINITION.items():
        groups = (
            scores.groupby(metrics, sort=False) if column != "protocol" else [("scores", scores)]
        )
        for name, group in groups:
            examples = group.drop_duplicates(column).head(2).to_dict("records")
            if len(examples) > 1:
                said = " and ".join(f"{r[column]} ({r['method']}/{r['subject']})" for r in examples)
                what = column.replace("_", " ")
                raise BenchError(
                    f"{str(name).replace('_', '-')} of different {what}s cannot be compared, as "
                    f"{why}: {said}: run the profile's pipeline so that all are scored alike"
                )


class _Measure:
    """The models that a protocol measures with, loaded once."""

    def __init__(self, params: Params) -> None:
        # Here, as reading scores does not need torch, which takes seconds to import.
        from eval.features import clip_extractor, dino_extractor, distance_extractor
        from pipeline.clip.openclip import load_clip

        self.how = params.protocol.score
        self.clip = load_clip(self.how.clip)
        clip = clip_extractor(self.clip)
        self.extractors: dict[str, Extractor] = {}  # by the metric that needs it
        distance: Extractor | None = None
        for metric in self.how.metrics:
            if metric == "dino_image_alignment":
                self.extractors[metric] = dino_extractor(params.score.dino)
            elif metric in ("kid", "fid"):
                distance = distance or distance_extractor(params, clip)
                self.extractors[metric] = distance
            else:
                self.extractors[metric] = clip

    def asked(self, *metrics: str) -> list[str]:
        """Those of the metrics that the protocol lists."""
        return [metric for metric in metrics if metric in self.extractors]

    def text_rows(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[Sample]:
        """Text-alignment of each image with its prompt."""
        from eval.features import too_long

        if not samples or not self.asked("text_alignment"):
            return []
        distinct = sorted(set(prompts))
        texts = [self.how.text_prefix + prompt for prompt in distinct]
        if cut := too_long(self.clip, texts):
            context = self.clip.model.context_length
            print(
                f"{cut} of {len(texts)} prompts are longer than the {context} tokens that "
                f"{self.clip.identity} reads: text-alignment ignores their ends"
            )
        features = self.clip.encode_texts(texts)[[distinct.index(p) for p in prompts]]
        values = text_alignment(
            self._features("text_alignment", samples), features, self.how.text_scale
        ).values
        prefix = f' after "{self.how.text_prefix.strip()}"' if self.how.text_prefix else ""
        return [
            row | {"text_rule": self.how.text_rule + prefix}
            for row in self._rows("text_alignment", "", samples, prompts, values)
        ]

    def image_rows(
        self,
        samples: Sequence[Sample],
        prompts: Sequence[str],
        targets: Sequence[Sample],
        suffix: str,
    ) -> list[Sample]:
        """Image-alignment of each image with the target images, by CLIP and by DINO."""
        rows = []
        for metric in self.asked("image_alignment", "dino_image_alignment"):
            features = self._features(metric, samples)
            values = image_alignment(features, self._features(metric, targets)).values
            rows += self._rows(metric, suffix, samples, prompts, values)
        return rows

    def likeness_rows(self, targets: Sequence[Sample]) -> list[Sample]:
        """Image-alignment of the target images with each other, if there are several."""
        metrics = self.asked("image_alignment", "dino_image_alignment") if len(targets) > 1 else []
        return [self._set_row(m, leave_one_out(self._features(m, targets))) for m in metrics]

    def distance_rows(
        self,
        reals: Sequence[Sample],
        real_captions: Sequence[str],
        generated: Sequence[Sample],
        captions: Sequence[str],
    ) -> list[Sample]:
        """KID and FID of two sets of images, clustered by caption."""
        from eval.features import kernel_features

        rows = []
        for metric in self.asked("kid", "fid"):
            if min(len(reals), len(generated)) < 2:
                raise BenchError(
                    f"{metric.upper()} needs two images on either side, not {len(reals)} real and "
                    f"{len(generated)} generated: raise retrieve.held_out_images or the protocol's "
                    "images_per_caption"
                )
            x, y = (
                kernel_features(self.extractors[metric], [image_of(s) for s in samples])
                for samples in (reals, generated)
            )
            distance = kid if metric == "kid" else fid
            rows.append(self._set_row(metric, distance(x, y, real_captions, captions)))
        return rows

    def _features(
        self, metric: str, samples: Sequence[Sample]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self.extractors[metric]([image_of(s) for s in samples])

    def _rows(
        self,
        metric: str,
        suffix: str,
        samples: Sequence[Sample],
        prompts: Sequence[str],
        values: np.ndarray[Any, np.dtype[np.float64]],
    ) -> list[Sample]:
        """One row for each image."""
        return [
            {
                "metric": metric + suffix,
                "prompt_index": sample["json"]["prompt_index"],
                "prompt": prompt,
                "sample": sample["json"]["sample"],
                "value": value,
                **self._definition(metric),
            }
            for sample, prompt, value in zip(samples, prompts, values.tolist())
        ]

    def _set_row(self, metric: str, found: SetValue) -> Sample:
        return {
            "metric": metric,
            "value": found.value,
            "std_error": found.std_error,
            "n": found.n,
            **self._definition(metric),
        }

    def _definition(self, metric: str) -> Sample:
        scales = {"text_alignment": self.how.text_scale, "kid": KID_SCALE}
        return {
            "extractor": self.extractors[metric].identity,
            "scale": scales.get(metric, 1.0),
        }


def _write(folder: Path, protocol: str, rows: list[Sample], start: float) -> None:
    method, subject = folder.parts[-2:]
    path = folder / SCORES
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    frame["protocol"], frame["method"], frame["subject"] = protocol, method, subject
    frame["rows"] = len(frame)
    frame = frame.astype(COLUMNS)
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
    means = frame.groupby("metric", sort=False)["value"].mean()
    said = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    seconds = time.monotonic() - start
    print(f"scored {method}/{subject}: {said}; {len(frame)} rows in {seconds:.1f} s -> {path}")


def _read(path: Path, method: str, subject: str) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8")
        frame = pd.read_csv(io.StringIO(text), dtype=COLUMNS)
    except (ValueError, OSError):
        frame = pd.DataFrame()
    if list(frame) != list(COLUMNS):
        fault = "not a file of scores"
    elif not text.endswith("\n") or not frame["rows"].eq(len(frame)).fillna(False).all():
        fault = "the file was cut off"
    elif frame[["method", "subject"]].drop_duplicates().to_numpy().tolist() != [[method, subject]]:
        fault = f"not the scores of {method}/{subject}"
    else:
        return frame
    raise BenchError(f"{path}: {fault}: delete it and run `{repro_command_for(path)}`")
