"""Several trainings of each cell: their means, the test of other ones, and what reports say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from scipy import stats

from eval.metrics import jackknife_error
from eval.papers.claims import CLAIMS, check_claims, print_claims, seeds_said
from eval.report.evidence import read_evidence
from eval.report.findings import sureness
from eval.report.missing import missing_cells
from eval.report.stage import write_report
from eval.results import Results, load_results, pooled
from eval.scores.file import SCORES, read_scores
from eval.scores.reading import failed_cells, load_scores, main_training
from eval.scores.stage import score_cell
from eval.statistics import p_value
from eval.tables.building import by_subject, comparison, differences
from eval.tables.rendering import as_csv, as_text
from pipeline.common.failures import DIVERGED, Failure
from pipeline.common.files import read_tar, write_failure, write_tar
from pipeline.settings.profile import load_params
from tests.eval.read import read_csv

SEEDS = (42, 43, 44)
MADE = (("custom_diffusion", "cat"), ("custom_diffusion", "chair"))
MADE += (("custom_diffusion", "cat+chair"), ("custom_diffusion_merge", "cat+chair"))


def folder(method: str, subject: str, seed: int) -> Path:
    return load_params().record(method, subject, seed)


@pytest.fixture
def trained(profile: Path) -> dict[tuple[str, str, int], pd.DataFrame]:
    """The profile with three seeds, whose scores differ by luck; they by method, subject, seed."""
    yaml, path = YAML(), profile / "params.yaml"
    content = yaml.load(path)
    content["train"]["seeds"] = [*SEEDS]
    yaml.dump(content, path)
    rng = np.random.default_rng(8)
    made = {}
    for method, subject in MADE:
        score_cell(method, subject, "toyland", SEEDS[0])
        first = read_scores(folder(method, subject, SEEDS[0]) / SCORES, method, subject)
        for seed in SEEDS:
            frame = first.assign(seed=seed)
            if seed != SEEDS[0]:
                luck = frame["metric"].map({m: rng.normal(0, 0.05) for m in frame["metric"]})
                frame["value"] += luck + rng.normal(0, 0.01, len(frame))
            path = folder(method, subject, seed) / SCORES
            path.parent.mkdir(exist_ok=True)
            frame.to_csv(path, index=False)
            made[method, subject, seed] = frame
    return made


def test_a_training_writes_its_seed_and_reads_its_own_samples(profile: Path, trained) -> None:
    cell = load_params().cell("custom_diffusion", "cat", 42)
    samples = read_tar(cell / "samples.tar")
    for sample in samples:
        sample["json"]["training_seed"] = 43
    (cell / "seed-43/samples.tar").unlink(missing_ok=True)
    write_tar(cell / "seed-43/samples.tar", samples)
    score_cell("custom_diffusion", "cat", "toyland", 43)
    record = folder("custom_diffusion", "cat", 42)
    found = read_scores(record / "seed-43" / SCORES, "custom_diffusion", "cat")
    assert found["seed"].eq(43).all()
    first = read_scores(record / SCORES, "custom_diffusion", "cat")
    assert first["seed"].eq(42).all()
    assert np.array_equal(found["value"], trained["custom_diffusion", "cat", 42]["value"])
    scores = load_scores("toyland")
    assert scores[scores["method"].isin(["oracle", "pretrained"])]["seed"].isna().all()


def test_values_of_images_are_means_over_trainings_clustered_by_prompt(trained) -> None:
    results = load_results()
    for subject in ("cat", "cat+chair"):
        frames = [trained["custom_diffusion", subject, seed] for seed in SEEDS]
        by_prompt = [
            f[f["metric"] == "image_alignment"].groupby("prompt_index")["value"].mean()
            for f in frames
        ]
        cell = results.found["custom_diffusion", subject, "image_alignment"]
        mean = sum(by_prompt) / 3
        assert cell.mean == pytest.approx(mean.mean())
        assert cell.std_error == pytest.approx(stats.sem(mean))
        assert cell.clusters == 3


def test_values_of_sets_are_means_over_trainings_with_the_jackknifes_error(trained) -> None:
    frames = [trained["custom_diffusion", "cat", seed] for seed in SEEDS]
    kids = [f[f["metric"] == "kid"] for f in frames]
    value = np.mean([f["value"].iloc[0] for f in kids])
    without = np.mean([f["value"].iloc[1:].to_numpy() for f in kids], axis=0)
    cell = load_results().found["custom_diffusion", "cat", "kid"]
    assert cell.mean == pytest.approx(value)
    assert cell.std_error == pytest.approx(jackknife_error(without))
    assert (cell.n, cell.clusters) == tuple(kids[0][["n", "clusters"]].iloc[0])


def test_one_training_is_left_as_it_is(profile: Path) -> None:
    scores = load_scores("toyland")
    assert pooled(scores) is scores
    assert load_results().trainings <= 1


def by_seed(made, method: str, subject: str, metric: str) -> np.ndarray:
    """The mean over prompts of each training."""
    found = []
    for seed in SEEDS:
        frame = made[method, subject, seed]
        rows = frame[frame["metric"] == metric]
        means = (
            rows["value"].iloc[:1]
            if metric == "kid"
            else rows.groupby("prompt_index")["value"].mean()
        )
        found.append(means.mean())
    return np.array(found)


def test_other_trainings_are_paired_by_seed(trained) -> None:
    """Against the pretrained model, in which nothing is random, the other's seeds alone vary."""
    results = load_results()
    pair = results.difference(
        "custom_diffusion", "custom_diffusion_merge", "compositions", "text_alignment"
    )
    gaps = [by_seed(trained, m, "cat+chair", "text_alignment") for m, _ in MADE[2:]]
    test = stats.ttest_rel(*gaps)
    assert pair is not None and p_value(pair.trainings) == pytest.approx(test.pvalue)
    assert pair.trainings.mean == pytest.approx(pair.here.mean)
    for metric in ("image_alignment", "kid"):
        alone = results.difference("custom_diffusion", "pretrained", "single", metric)
        x = np.array([by_seed(trained, "custom_diffusion", s, metric) for s in ("cat", "chair")])
        within = np.sum((x - x.mean(1, keepdims=True)) ** 2) / 4
        assert alone is not None
        assert alone.trainings.std_error == pytest.approx(np.sqrt(within / 6))
        assert alone.trainings.clusters == 5
        assert alone.trainings.mean == pytest.approx(alone.here.mean)


def test_the_first_concept_of_a_composition_is_paired_by_seed(trained) -> None:
    found = load_results().difference(
        "custom_diffusion", "custom_diffusion_merge", "compositions", "image_alignment", 1
    )
    gaps = []
    for method, _ in MADE[2:]:
        frames = [trained[method, "cat+chair", seed] for seed in SEEDS]
        rows = [f[(f["metric"] == "image_alignment") & (f["target"] == 1)] for f in frames]
        gaps.append([f.groupby("prompt_index")["value"].mean().mean() for f in rows])
    assert found is not None
    assert p_value(found.trainings) == pytest.approx(stats.ttest_rel(*gaps).pvalue)


def test_a_method_with_one_training_is_tested_against_none(trained) -> None:
    for seed in SEEDS[1:]:
        (folder("custom_diffusion_merge", "cat+chair", seed) / SCORES).unlink()
    results = load_results()
    found = results.difference(
        "custom_diffusion", "custom_diffusion_merge", "compositions", "text_alignment"
    )
    assert found is not None and np.isnan(found.trainings.std_error)
    assert not np.isnan(found.here.std_error)
    claim = next(c for c in CLAIMS if c.second == "custom_diffusion_merge")
    assert seeds_said(results, claim) == "one training seed"
    lacking = {"custom_diffusion_merge": [f"cat+chair (seed {seed})" for seed in SEEDS[1:]]}
    assert missing_cells("toyland") == lacking
    assert missing_cells("toyland", ["cat"]) == {}


def test_a_training_that_failed_leaves_the_others(trained) -> None:
    write_failure(folder("custom_diffusion", "cat", 43) / SCORES, Failure(DIVERGED, "too fast"))
    assert failed_cells("toyland") == {
        ("custom_diffusion", "cat"): Failure(DIVERGED, "seed 43: too fast")
    }
    results = load_results()
    x = by_seed(trained, "custom_diffusion", "cat", "text_alignment")[[0, 2]]
    assert results.found["custom_diffusion", "cat", "text_alignment"].mean == pytest.approx(
        x.mean()
    )
    assert "1 diverged" in as_text(comparison(results))


def test_what_people_see_is_of_the_main_training(trained) -> None:
    shown = main_training(load_scores("toyland"))
    made = shown[shown["method"] == "custom_diffusion"]
    assert made["seed"].eq(42).all()
    assert {*shown["method"]} == {"oracle", "pretrained", *(m for m, _ in MADE)}
    rows = load_results().pictured["custom_diffusion", "cat", "text_alignment"]
    first = trained["custom_diffusion", "cat", 42]
    assert rows["value"].to_numpy() == pytest.approx(
        first[first["metric"] == "text_alignment"]["value"].to_numpy()
    )


def test_tables_say_what_is_decided_for_other_trainings(trained) -> None:
    results = load_results()
    rows = read_csv(as_csv(differences(results, "single")))
    (row,) = rows
    assert {f"{m}_p_trainings" for m in results.metrics("single")} <= row.keys()
    found = results.difference("custom_diffusion", "pretrained", "single", "kid")
    p = {
        m: p_value(results.difference("custom_diffusion", "pretrained", "single", m).trainings)
        for m in results.metrics("single")
    }
    assert found is not None
    least = min(p, key=p.__getitem__)
    assert float(row[f"{least}_p_trainings"]) == pytest.approx(min(1, 3 * p[least]))
    assert "° for other trainings on these subjects, too" in comparison(results).caption
    assert as_csv(by_subject(results, "single"))


def test_a_training_that_failed_says_nothing_of_luck(trained) -> None:
    print_claims(write=True)
    write_report("toyland")
    assert "3 training seeds, so that the luck" in " ".join(read_evidence("toyland").basis)
    for path in Path("reports/cells").glob("*/*/seed-*/scores.csv"):
        write_failure(path, Failure("diverged", "no number"))
    said = " ".join(read_evidence("toyland").basis)
    assert "one training seed, so nothing is known about the luck of a training" in said


def test_tables_of_one_training_say_nothing_of_others(profile: Path) -> None:
    results: Results = load_results()
    text = as_text(comparison(results)) + as_csv(comparison(results))
    assert "°" not in text and "trainings" not in text


def test_the_report_has_the_third_test(trained, capsys: pytest.CaptureFixture[str]) -> None:
    print_claims(write=True)
    write_report("toyland")
    rows = read_csv(Path("reports/claims.csv").read_text())
    results = load_results()
    for row, one in zip(rows, check_claims(results).trainings):
        assert row["verdict_trainings"] == one.verdict.value
    (merging,) = (r for r in rows if r["claim"].startswith("joint") and "text" in r["claim"])
    assert merging["seeds"] == "3 training seeds"
    assert merging["interval_trainings"].startswith("[")
    said = sureness(read_evidence("toyland"))
    assert "3 training seeds, so that the luck of a training is known" in said
    assert "for other trainings on these subjects" in said
    page = Path("reports/index.html").read_text()
    assert '<th scope="col" class="text">other trainings</th>' in page
    assert "the training with the first seed" in page
    summary = json.loads(Path("reports/summary.json").read_text())
    mean = results.mean("custom_diffusion", "single", "kid")
    assert mean is not None and summary["custom_diffusion"]["kid"] == pytest.approx(mean.mean)
    said = capsys.readouterr().out
    assert "reported 17 cells" in said  # two of the oracle, three without seeds, four times three
    assert re.search("these +trainings +any  subjects", said)
