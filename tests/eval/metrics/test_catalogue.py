"""The catalogue against protocols, and what its metrics give for good images and for bad ones."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from eval.metrics.catalogue import METRICS, OfGallery, OfPrompts, OfSets, OfTargets
from eval.metrics.identity import Gallery
from pipeline.settings.protocol import MetricName


def unit(rng: np.random.Generator, count: int, near: np.ndarray, spread: float) -> np.ndarray:
    """Unit vectors [count, d] around a direction."""
    rows = near + spread * rng.normal(size=(count, near.size))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_protocols_can_name_what_the_catalogue_has() -> None:
    assert get_args(MetricName) == tuple(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_the_better_images_have_the_better_value(name: str) -> None:
    """Good images have features near those of what they should show, bad ones near others."""
    rng, metric = np.random.default_rng(4), METRICS[name]
    wanted, other = np.eye(16)[:2]
    asked = unit(rng, 12, wanted, 0.1)
    values = []
    for shown in (wanted, other):
        images = unit(rng, 12, shown, 0.1)
        if isinstance(metric, OfPrompts):
            found = metric.measure(images, asked, 2.5)
        elif isinstance(metric, OfTargets):
            found = metric.measure(images, asked)
        elif isinstance(metric, OfGallery):
            found = metric.measure(images[:, None], Gallery(asked, unit(rng, 12, other, 0.1)))
        else:
            assert isinstance(metric, OfSets)
            values.append(metric.measure(asked, images, range(12), range(12)).value)
            continue
        assert found.shape == (12,)
        values.append(found.mean())
    good, bad = values
    assert (good > bad) == metric.higher_is_better
    assert metric.per_image != isinstance(metric, OfSets)
    assert metric.heading == f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"
