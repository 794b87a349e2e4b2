"""Estimates against means and errors computed by hand from the files of scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from eval.results import estimates
from eval.scores.reading import load_scores
from tests.eval.read import prompt_means


def test_a_cells_error_is_that_of_its_prompts_means(profile: Path) -> None:
    found = estimates(load_scores("toyland"))
    means = prompt_means("custom_diffusion", "cat", ["image_alignment"])
    cell = found["custom_diffusion", "cat", "image_alignment"]
    assert cell.mean == pytest.approx(means.mean())
    assert cell.std_error == pytest.approx(stats.sem(means))
    assert (cell.n, cell.clusters) == (6, 3)


def test_compositions_get_the_mean_over_their_concepts(profile: Path) -> None:
    found = estimates(load_scores("toyland"))
    both = ["image_alignment"]
    means = prompt_means("custom_diffusion_merge", "cat+chair", both)
    cell = found["custom_diffusion_merge", "cat+chair", "image_alignment"]
    assert cell.mean == pytest.approx(means.mean())
    assert cell.std_error == pytest.approx(stats.sem(means))
