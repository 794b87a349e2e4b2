"""Styles are reported apart from things: they turn no mean and no claim about these."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from eval.papers.claims import check_claims, print_claims
from eval.report.evidence import read_evidence
from eval.report.findings import answers
from eval.report.stage import write_report
from eval.results import load_results, subjects_of
from eval.scores.file import SCORES, read_scores
from eval.tables.building import comparison, differences
from eval.tables.rendering import as_csv, as_text
from pipeline.bench.pipelines import pipelines
from pipeline.concepts.concept import styles_of
from pipeline.settings.profile import load_grid, load_params
from tests.eval.read import read_csv

CELLS = (("oracle", "cat"), ("pretrained", "cat"), ("custom_diffusion", "cat"))
PAIRS = (("custom_diffusion", "cat+chair"), ("custom_diffusion_merge", "cat+chair"))


@pytest.fixture
def styled(profile: Path) -> Path:
    """The profile with a style and a composition of it, whose scores are far from all others."""
    yaml, path = YAML(), profile / "grid.yaml"
    grid = yaml.load(path)
    grid["concepts"]["neon"] = {"class_noun": "picture"}
    grid["compositions"]["neon+cat"] = {"first": "neon", "second": "cat"}
    yaml.dump(grid, path)
    params = load_params()
    for cells, name in ((CELLS, "neon"), (PAIRS, "neon+cat")):
        for method, subject in cells:
            frame = read_scores(params.record(method, subject) / SCORES, method, subject)
            far = 1000.0 if method == "custom_diffusion" else 500.0
            frame = frame.assign(subject=name, value=frame["value"] + far)
            target = params.record(method, name) / SCORES
            target.parent.mkdir(parents=True)
            frame.to_csv(target, index=False)
    return profile


def test_a_style_is_what_no_class_noun_describes(styled: Path) -> None:
    grid = load_grid()
    assert styles_of(grid) == {"neon"}
    kinds = ("single", "styles", "compositions")
    found = {kind: subjects_of(grid, kind, styles_of(grid)) for kind in kinds}
    assert found == {
        "single": ["cat", "chair"],
        "styles": ["neon", "neon+cat"],
        "compositions": ["cat+chair"],
    }
    grid = grid.model_copy(update={"concepts": {"neon_of_mine": grid.concepts["neon"]}})
    assert styles_of(grid) == frozenset()  # not there yet


def test_means_and_claims_of_things_are_what_they_are_without_styles(styled: Path) -> None:
    results = load_results()
    with_styles, path = read_csv(as_csv(comparison(results))), styled / "grid.yaml"
    claims = check_claims(results)
    yaml = YAML()
    grid = yaml.load(path)
    del grid["concepts"]["neon"], grid["compositions"]["neon+cat"]
    yaml.dump(grid, path)
    without = read_csv(as_csv(comparison(load_results())))
    means = [key for key in without[0] if not key.endswith(("_p", "_p_here"))]  # Holm's differ
    assert [{k: row[k] for k in means} for row in with_styles] == [
        {k: row[k] for k in means} for row in without
    ]
    assert repr(check_claims(load_results())) == repr(claims)  # NaN equals nothing


def test_styles_have_means_and_differences_of_their_own(styled: Path) -> None:
    results = load_results()
    rows = {row["method"]: row for row in read_csv(as_csv(comparison(results)))}
    cells = [
        results.found["custom_diffusion", s, "text_alignment"].mean for s in ("neon", "neon+cat")
    ]
    row = rows["custom_diffusion"]
    assert float(row["styles_text_alignment"]) == pytest.approx(np.mean(cells))
    assert row["styles_subjects"] == "2/2"
    assert rows["custom_diffusion_merge"]["styles_subjects"] == "1/2"
    kid = results.found["custom_diffusion", "neon", "kid"].mean  # a composition has none
    assert float(row["styles_kid"]) == pytest.approx(kid)
    pairs = {row["difference"]: row for row in read_csv(as_csv(differences(results, "styles")))}
    assert float(pairs["custom_diffusion − pretrained"]["text_alignment"]) > 400


def test_profiles_without_styles_say_nothing_of_them(profile: Path) -> None:
    write_report("toyland")
    for path in Path("reports").rglob("*"):
        if path.suffix in (".csv", ".md", ".json"):
            assert "styles" not in path.read_text(), path
    assert "Styles" not in Path("reports/index.html").read_text()
    assert "styles" not in as_text(comparison(load_results()))
    assert "styles" not in pipelines("toyland")[Path("dvc.yaml")]


def test_the_report_has_styles_apart(styled: Path) -> None:
    print_claims(write=True)
    write_report("toyland")
    tables = {path.name for path in Path("reports/tables").iterdir()}
    assert {"styles.md", "differences_styles.csv"} <= tables
    assert "neon" not in Path("reports/tables/single.md").read_text()
    assert Path("reports/figures/scatter_styles.svg").is_file()
    page = Path("reports/index.html").read_text()
    assert "figures/scatter_styles.svg" in page and "<h3>Styles</h3>" in page
    found = {answer.question: answer.text for answer in answers(read_evidence("toyland"))}
    assert "neon" not in "".join(found.values())
    assert found["Who learns styles?"].startswith("Styles, alone or composed, are in no other")
    assert "2 styles, alone or composed, " in found["How sure is this?"]
    summary = json.loads(Path("reports/summary.json").read_text())["custom_diffusion"]
    assert summary["style_text"] > 900 > summary["text"]
    assert "trade-off of styles" in pipelines("toyland")[Path("dvc.yaml")]
