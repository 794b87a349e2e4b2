"""Where image-alignment and identity disagree: what is found of scores made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from eval.report.disagreement import ALIKE, SAME, disagreement, odds, orders
from eval.report.grids import Sheet, read_rows, sheet
from eval.report.stage import write_report
from eval.results import Results, load_results
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import load_grid, load_params
from tests.eval.conftest import Score

METHODS = ["textual_inversion", "dreambooth", "custom_diffusion"]


def scored(results: Results, values: dict[tuple[str, str, str], float]) -> Results:
    """The results with other values, by method, subject and metric, of methods that were not run.

    Those have the rows of Custom Diffusion.
    """
    rows = results.scores[results.scores["method"] == "custom_diffusion"]
    parts = [
        rows[(rows["subject"] == subject) & (rows["metric"] == metric)].assign(
            method=method, value=value
        )
        for (method, subject, metric), value in values.items()
    ]
    grid = results.grid.model_copy(update={"rows": METHODS})
    return dataclasses.replace(results, scores=pd.concat(parts), grid=grid)


def both(method: str, subject: str, alike: float, same: float) -> dict:
    return {(method, subject, ALIKE): alike, (method, subject, SAME): same}


def test_orders_that_are_turned_round_are_found(score: Score) -> None:
    score("custom_diffusion", "cat", cat=5, chair=5)
    results = scored(
        load_results(),
        {
            **both("textual_inversion", "cat", 0.3, 0.8),
            **both("dreambooth", "cat", 0.5, 0.4),
            **both("custom_diffusion", "cat", 0.7, 0.6),
            **both("textual_inversion", "chair", 0.3, 0.1),
            **both("dreambooth", "chair", 0.5, 0.2),
        },
    )
    table = orders(results, "single")
    assert table.rows == (
        (
            "cat", "custom diffusion", "textual inversion", "2 of 3",
            "dreambooth before textual inversion; custom diffusion before textual inversion",
        ),
    )  # fmt: skip
    assert orders(results, "compositions").rows == ()


def test_references_are_not_ordered(score: Score) -> None:
    """The pretrained model is nearer by one and farther by the other: it is no contestant."""
    score("custom_diffusion", "cat", cat=5, chair=5)
    results = load_results()
    assert {"pretrained", "custom_diffusion"} <= {m for m, _, _ in results.found}
    assert orders(results, "single").rows == ()


def sheet_of(subject: str) -> Sheet:
    rows = read_rows(load_params(), load_grid(), subject)
    return sheet(load_subject(subject, "toyland"), rows, 10**7)


def test_odd_pictures_are_those_whose_ranks_differ_most(score: Score) -> None:
    score("custom_diffusion", "cat", cat=5, chair=5)
    results, about = load_results(), sheet_of("cat")
    prompts = {"cat": load_subject("cat", "toyland").scored_prompts()}
    scores, n = results.scores.copy(), len(about.pictures())
    mine = (scores["method"] == "custom_diffusion") & (scores["subject"] == "cat")
    for metric in (ALIKE, SAME):  # both fall from picture to picture, so that they agree
        for method in ("pretrained", "custom_diffusion"):
            chosen = (scores["method"] == method) & (scores["subject"] == "cat")
            chosen &= scores["metric"] == metric
            start = 0.9 if method == "custom_diffusion" else 0.5
            scores.loc[chosen, "value"] = [start - 0.01 * i for i in range(n)]
    agreed = dataclasses.replace(results, scores=scores)
    assert odds(agreed, "cat", about, prompts) == []
    # But one that is the most alike is the least of all by identity.
    index = scores.index[mine & (scores["metric"] == SAME)][2]
    scores.loc[index, "value"] = 0.0
    turned = dataclasses.replace(results, scores=scores)
    (odd,) = odds(turned, "cat", about, prompts)
    assert (odd.method, odd.alike, odd.same) == ("custom_diffusion", pytest.approx(0.88), 0)
    assert odd.gap == pytest.approx((2 * n - 2) / (2 * n) - 1 / (2 * n))
    assert about.methods[odd.row - 1] == "custom_diffusion"
    prompt, sample = about.pictures()[odd.column]
    assert odd.text == prompts["cat"][prompt]
    assert (prompt, sample) == tuple(scores.loc[index, ["prompt_index", "sample"]])
    found = disagreement(turned, {"cat": about}, prompts)
    assert found is not None
    assert (found.alike, found.same) == ([odd], [])


def test_the_page_has_a_section_if_the_protocol_asks_for_both(score: Score) -> None:
    assert disagreement(load_results(), {}, {}) is None
    write_report("toyland")
    page = Path("reports/index.html")
    assert 'id="identity"' not in page.read_text(encoding="utf-8")
    score("custom_diffusion", "cat", cat=5, chair=5)
    write_report("toyland")
    text = page.read_text(encoding="utf-8")
    assert 'id="identity"' in text
    assert "By chance identity mAP of single concepts is" in text
    assert 'id="define-identity_map"' in text
    assert "None" not in text
