"""Text- and image-alignment against sums in double precision, and against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.metrics.image_alignment import image_alignment, leave_one_out
from eval.metrics.text_alignment import text_alignment


def unit(count: int, seed: int, width: int = 16) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_text_alignment_is_clipped_before_it_is_averaged() -> None:
    images, texts = unit(50, 0), unit(50, 1)
    cosines = F.cosine_similarity(torch.from_numpy(images).double(), torch.from_numpy(texts))
    found = text_alignment(images, texts)
    assert found == pytest.approx(2.5 * cosines.clamp(min=0).numpy(), abs=1e-6)
    assert (found == 0).any()


def test_text_alignment_of_equal_directions_is_two_and_a_half() -> None:
    assert text_alignment(unit(3, 0), unit(3, 0)) == pytest.approx(2.5)
    found = text_alignment(unit(3, 0), unit(3, 1), scale=1)
    assert found == pytest.approx(text_alignment(unit(3, 0), unit(3, 1)) / 2.5)
    with pytest.raises(ValueError, match="correspond"):
        text_alignment(unit(3, 0), unit(2, 0))


def test_image_alignment_is_the_mean_over_all_pairs() -> None:
    images, targets = unit(20, 2), unit(7, 3)
    pairs = np.array([[float(np.dot(x.astype(float), y)) for y in targets] for x in images])
    found = image_alignment(images, targets)
    assert found == pytest.approx(pairs.mean(1), abs=1e-7)
    assert found.mean() == pytest.approx(pairs.mean())


def test_leave_one_out_is_the_mean_over_distinct_targets_with_the_jackknifes_error() -> None:
    targets = unit(6, 4)

    def mean(rows: np.ndarray) -> float:
        n = len(rows)
        return float(np.mean([rows[i] @ rows[j] for i in range(n) for j in range(n) if i != j]))

    left_out = np.array([mean(np.delete(targets, i, 0)) for i in range(6)])
    found = leave_one_out(targets)
    assert found.value == pytest.approx(mean(targets), abs=1e-6)
    expected = np.sqrt(5 / 6 * np.sum((left_out - left_out.mean()) ** 2))
    assert found.std_error == pytest.approx(expected, rel=1e-4)
    assert np.isnan(leave_one_out(targets[:2]).std_error)
    with pytest.raises(ValueError, match="another"):
        leave_one_out(targets[:1])


def test_features_that_are_not_finite_are_refused() -> None:
    broken = unit(3, 0)
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match="image 1 are not finite"):
        text_alignment(broken, unit(3, 1))
    with pytest.raises(ValueError, match="image 1 are not finite"):
        image_alignment(broken, unit(3, 1))
    with pytest.raises(ValueError, match="target"):
        image_alignment(unit(3, 0), unit(0, 1))
    assert image_alignment(unit(0, 0), unit(2, 1)).shape == (0,)
