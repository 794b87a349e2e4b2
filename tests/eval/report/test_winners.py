"""Cards of the best: who is ahead, by how much, and of which subjects."""

from __future__ import annotations

import numpy as np
import pytest

from eval.report.winners import winners
from tests.eval.papers.test_claims import Cells, drawn, results, scores


def shown(values: Cells, metric: str = "text_alignment") -> list[tuple[str, str, float]]:
    """The best, the second and the lead of each card."""
    found = winners(results(scores(values, metric)), "single")
    return [(w.method, w.second, w.lead.estimate.mean if w.lead else np.nan) for w in found]


@pytest.mark.parametrize("best", ["a", "b"])
def test_the_lead_is_that_of_the_paired_test(best: str) -> None:
    """Whichever of the two the differences subtract."""
    values = {cell: x + 3 * (cell[0] == best) for cell, x in drawn().items()}
    second = "b" if best == "a" else "a"
    lead = np.mean([values[best, s] - values[second, s] for s in "xyz"])
    assert shown(values) == [(best, second, pytest.approx(lead))]


def test_methods_of_other_subjects_are_no_rivals() -> None:
    """Equally many would do for a mean that the test of what they share turns round."""
    values = drawn()
    values["b", "y"] = values["a", "y"] + 1
    values["a", "x"] = values["b", "z"] + 9
    both = {("a", "x"), ("a", "y"), ("b", "y"), ("b", "z")}
    assert shown({cell: x for cell, x in values.items() if cell in both}) == []
