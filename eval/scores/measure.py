"""Measuring: images become rows of scores, by the metrics and models of a protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from eval.encoders.cache import Features
from eval.encoders.clip import clip_extractor, too_long
from eval.encoders.dino import dino_extractor
from eval.encoders.distance import distance_extractor, kernel_features
from eval.encoders.extractor import Extractor
from eval.encoders.windows import MIDDLE, by_window, windows_extractor
from eval.metrics import FloatArray, SetValue, Values
from eval.metrics.catalogue import (
    LEAST_CAPTIONS,
    LEAST_LOOKALIKES,
    METRICS,
    Encoder,
    Measured,
    OfGallery,
    OfPrompts,
    OfSets,
    OfTargets,
)
from eval.metrics.identity import Gallery, leave_one_out
from pipeline.clip.openclip import load_clip
from pipeline.common.errors import BenchError
from pipeline.concepts.shards import Pictures, Sample, image_of
from pipeline.settings.profile import Params

M = TypeVar("M", bound=Measured)


class Measure:
    """The models that a protocol measures with, loaded once.

    Raises:
        BenchError: the file of a model is missing or damaged.
    """

    def __init__(self, params: Params) -> None:
        self.how = params.protocol.score
        self.clip = load_clip(self.how.clip)
        clip = clip_extractor(self.clip)
        encoders: dict[Encoder, Extractor] = {"clip": clip}
        self.extractors: dict[str, Extractor] = {}  # by the metric that needs it
        for name in self.how.metrics:
            encoder = METRICS[name].encoder
            if encoder not in encoders:
                encoders[encoder] = (
                    dino_extractor(params.score.dino)
                    if encoder == "dino"
                    else windows_extractor(clip)
                    if encoder == "windows"
                    else distance_extractor(params, clip)
                )
            self.extractors[name] = encoders[encoder]

    def asked(self, kind: type[M]) -> dict[str, M]:
        """The metrics of a kind that the protocol lists."""
        return {
            name: metric
            for name, metric in METRICS.items()
            if name in self.extractors and isinstance(metric, kind)
        }

    def text_rows(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[Sample]:
        """What is measured of each image and its prompt."""
        metrics = self.asked(OfPrompts)
        if not samples or not metrics:
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
        scale = self.how.text_scale
        prefix = f' after "{self.how.text_prefix.strip()}"' if self.how.text_prefix else ""
        defined = {"scale": scale, "text_rule": self.how.text_rule + prefix}
        return [
            row | defined
            for name, metric in metrics.items()
            for row in self._rows(
                name, samples, prompts, metric.measure(self._see(name, samples), features, scale)
            )
        ]

    def target_rows(
        self,
        samples: Sequence[Sample],
        prompts: Sequence[str],
        targets: Sequence[Sample],
        number: int,
    ) -> list[Sample]:
        """What is measured of each image and the target images of the subject's n-th concept."""
        return [
            row | {"target": number}
            for name, metric in self.asked(OfTargets).items()
            for row in self._rows(
                name,
                samples,
                prompts,
                metric.measure(self._see(name, samples), self._see(name, targets)),
            )
        ]

    def among_target_rows(self, targets: Sequence[Sample]) -> list[Sample]:
        """The same of a concept's target images and each other, if there are several."""
        metrics = self.asked(OfTargets) if len(targets) > 1 else {}
        return [
            row | {"target": 1}
            for name, metric in metrics.items()
            for row in self._set_rows(name, metric.among_targets(self._see(name, targets)))
        ]

    def gallery_rows(
        self, samples: Sequence[Sample], prompts: Sequence[str], galleries: Sequence[Pictures]
    ) -> list[Sample]:
        """What is measured of each image and the galleries of the subject's concepts, in order.

        If one of them has too few look-alikes, there is no value of the subject.
        """
        return [
            row
            for name, metric in self.asked(OfGallery).items()
            for row in self._too_few(name, len(samples), galleries)
            or [
                row | {"target": number, "chance": _chance(metric, pictures)}
                for number, pictures in enumerate(galleries, 1)
                for row in self._rows(
                    name,
                    samples,
                    prompts,
                    metric.measure(
                        by_window(self._see(name, samples)), self._gallery(name, pictures)
                    ),
                )
            ]
        ]

    def own_picture_rows(self, pictures: Pictures) -> list[Sample]:
        """The same of a concept's own pictures, each left out of the gallery, if there are two."""
        rest = pictures._replace(own=pictures.own[1:])
        return [
            row
            for name, metric in (self.asked(OfGallery) if rest.own else {}).items()
            for row in self._too_few(name, len(pictures.own), [pictures])
            or [
                row | {"target": 1, "chance": _chance(metric, rest)}
                for row in self._set_rows(
                    name,
                    leave_one_out(
                        metric.measure,
                        by_window(self._see(name, pictures.own)),
                        self._gallery(name, pictures),
                    ),
                )
            ]
        ]

    def set_rows(
        self,
        reals: Sequence[Sample],
        real_captions: Sequence[str],
        generated: Sequence[Sample],
        captions: Sequence[str],
    ) -> list[Sample]:
        """What is measured of two sets of images, clustered by caption.

        Raises:
            BenchError: a set has fewer than two.
        """
        for name in self.asked(OfSets):
            if min(len(reals), len(generated)) < 2:
                raise BenchError(
                    f"{name.upper()} needs two images on either side, not {len(reals)} real and "
                    f"{len(generated)} generated: raise retrieve.held_out_images or the protocol's "
                    "images_per_caption"
                )
        return self._between(
            reals, generated, captions, lambda m, x, y: m.measure(x, y, real_captions, captions)
        )

    def half_rows(
        self, first: Sequence[Sample], second: Sequence[Sample], labels: Sequence[str]
    ) -> list[Sample]:
        """The same of two halves of the real images, row by row of one label."""
        return self._between(first, second, labels, lambda m, x, y: m.of_halves(x, y, labels))

    def _between(
        self,
        first: Sequence[Sample],
        second: Sequence[Sample],
        captions: Sequence[str],
        measured: Callable[[OfSets, FloatArray, FloatArray], SetValue],
    ) -> list[Sample]:
        """The rows of each distance, which says no value where there are too few captions."""
        rows = []
        for name, metric in self.asked(OfSets).items():
            found = SetValue(math.nan, math.nan, len(second), len(set(captions)), {})
            if found.clusters >= LEAST_CAPTIONS:
                x, y = self._kernel_features(name, first), self._kernel_features(name, second)
                found = measured(metric, x, y)
            rows += [row | {"scale": metric.scale} for row in self._set_rows(name, found)]
        return rows

    def _too_few(self, name: str, n: int, galleries: Sequence[Pictures]) -> list[Sample]:
        """The row that says no value, if one of the galleries has too few look-alikes."""
        least = min(pictures.lookalikes() for pictures in galleries)
        none = SetValue(math.nan, math.nan, n, least, {})
        return self._set_rows(name, none) if least < LEAST_LOOKALIKES else []

    def _gallery(self, name: str, pictures: Pictures) -> Gallery:
        """The pictures' middles, where what they are of is."""
        return Gallery(*(by_window(self._see(name, part))[:, MIDDLE] for part in pictures))

    def _kernel_features(self, name: str, samples: Sequence[Sample]) -> Features:
        return kernel_features(self.extractors[name], [image_of(s) for s in samples])

    def _see(self, name: str, samples: Sequence[Sample]) -> Features:
        return self.extractors[name]([image_of(s) for s in samples])

    def _rows(
        self, name: str, samples: Sequence[Sample], prompts: Sequence[str], values: Values
    ) -> list[Sample]:
        """One row for each image."""
        return [
            {
                "metric": name,
                "prompt_index": sample["json"]["prompt_index"],
                "prompt": prompt,
                "sample": sample["json"]["sample"],
                "value": value,
                **self._definition(name),
            }
            for sample, prompt, value in zip(samples, prompts, values.tolist())
        ]

    def _set_rows(self, name: str, found: SetValue) -> list[Sample]:
        """The row of a set, and one for each caption that is left out."""
        about = {"metric": name, **self._definition(name)}
        numbers = {"std_error": found.std_error, "n": found.n, "clusters": found.clusters}
        without = [about | {"prompt": c, "value": v} for c, v in found.left_out.items()]
        return [about | {"value": found.value} | numbers, *without]

    def _definition(self, name: str) -> Sample:
        return {"extractor": self.extractors[name].identity, "scale": 1.0}


def _chance(metric: OfGallery, pictures: Pictures) -> float:
    return metric.by_chance(len(pictures.own), len(pictures.others))
