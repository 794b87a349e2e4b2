"""Claims against scores that were made up, scipy's tests and simulation."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.papers.claims import (
    CLAIMS,
    DIRECTIONS,
    Claim,
    Relation,
    Verdict,
    claims_table,
    differences,
    findings,
    holm,
    p_value,
    print_claims,
)
from eval.results import KINDS, load_results
from eval.statistics import Estimate, mean_over
from pipeline.common.errors import BenchError
from pipeline.methods import load_method, method_names

ABOVE = Claim("name", "says", "where", "single", "text_alignment", "a", Relation.GREATER, "b")


def scores(values: dict[tuple[str, str], np.ndarray], metric: str) -> pd.DataFrame:
    """A row for each of the values [prompts, images] of a method and subject."""
    rows = [
        {"method": m, "subject": s, "metric": metric, "prompt_index": p, "value": value}
        for (m, s), x in values.items()
        for (p, _), value in np.ndenumerate(x)
    ]
    return pd.DataFrame(rows).astype({"prompt_index": "Int64"})


def anywhere(frame: pd.DataFrame, claim: Claim, subjects: list[str]) -> Estimate | None:
    found = differences(frame, claim, subjects)
    return found and found.anywhere


def drawn(methods: str = "ab", subjects: str = "xyz") -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(1)
    return {(m, s): rng.normal(size=(4, 3)) for m in methods for s in subjects}


def test_differences_are_paired_by_subject() -> None:
    values = drawn()
    found = anywhere(scores(values, "text_alignment"), ABOVE, ["x", "y", "z"])
    expected = stats.ttest_rel(
        [values["a", s].mean() for s in "xyz"], [values["b", s].mean() for s in "xyz"]
    )
    assert found is not None
    assert found.mean == pytest.approx(np.mean([values["a", s] - values["b", s] for s in "xyz"]))
    assert p_value(found) == pytest.approx(expected.pvalue)


def test_for_the_subjects_at_hand_prompts_are_the_sample() -> None:
    values = drawn()
    found = differences(scores(values, "text_alignment"), ABOVE, ["x", "y", "z"])
    assert found is not None
    gaps = np.stack([(values["a", s] - values["b", s]).mean(1) for s in "xyz"])
    assert found.here.mean == pytest.approx(found.anywhere.mean)
    assert found.here.std_error == pytest.approx(np.sqrt((gaps.var(1, ddof=1) / 4).sum()) / 3)
    assert found.here.clusters - 1 == 3 * 3


def test_one_subject_is_paired_by_prompt() -> None:
    values = drawn()
    found = anywhere(scores(values, "text_alignment"), ABOVE, ["y"])
    expected = stats.ttest_rel(values["a", "y"].mean(1), values["b", "y"].mean(1))
    assert found is not None
    assert p_value(found) == pytest.approx(expected.pvalue)
    assert found.clusters == 4


def test_values_of_sets_are_paired_by_subject_and_one_has_no_error() -> None:
    kid = replace(ABOVE, metric="kid")
    frame = scores({key: x[:1, :1] for key, x in drawn().items()}, "kid")
    frame["prompt_index"] = pd.NA
    found = anywhere(frame, kid, ["x", "y", "z"])
    a, b = (frame.loc[frame["method"] == m, "value"].to_numpy() for m in "ab")
    assert found is not None
    assert p_value(found) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    alone = anywhere(frame, kid, ["x"])
    assert alone is not None
    assert findings([kid], [alone])[0].verdict is Verdict.UNDECIDED


def test_compositions_have_the_mean_over_their_concepts_or_one_of_them() -> None:
    by_target = {1: drawn(), 2: {key: x**2 for key, x in drawn().items()}}
    parts = [scores(x, "image_alignment").assign(target=n) for n, x in by_target.items()]
    gaps = {n: [(x["a", s] - x["b", s]).mean() for s in "xyz"] for n, x in by_target.items()}
    about = replace(ABOVE, metric="image_alignment")
    both = anywhere(pd.concat(parts), about, ["x", "y", "z"])
    assert both == pytest.approx(mean_over(np.mean([gaps[1], gaps[2]], axis=0)))
    for n in (1, 2):
        one = anywhere(pd.concat(parts), replace(about, target=n), ["x", "y", "z"])
        assert one == pytest.approx(mean_over(gaps[n]))


def test_what_was_not_scored_is_not_run() -> None:
    frame = scores(drawn("a"), "text_alignment")
    assert differences(frame, ABOVE, ["x", "y", "z"]) is None
    assert differences(scores(drawn(), "kid"), ABOVE, ["x"]) is None
    assert findings([ABOVE], [None])[0].verdict is Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("relation", "mean", "error", "verdict"),
    [
        (Relation.GREATER, 0.1, 0.01, Verdict.HOLDS),
        (Relation.GREATER, -0.1, 0.01, Verdict.FAILS),
        (Relation.GREATER, 0.1, 0.1, Verdict.UNDECIDED),
        (Relation.GREATER, 0.0, 0.0, Verdict.UNDECIDED),
        (Relation.LESS, -0.1, 0.01, Verdict.HOLDS),
        (Relation.LESS, 0.1, 0.01, Verdict.FAILS),
        (Relation.AT_LEAST, 0.0, 0.002, Verdict.HOLDS),
        (Relation.AT_LEAST, 0.5, 0.002, Verdict.HOLDS),
        (Relation.AT_LEAST, 0.0, 0.02, Verdict.UNDECIDED),
        (Relation.AT_LEAST, -0.1, 0.01, Verdict.FAILS),
        (Relation.ON_A_PAR, 0.0, 0.002, Verdict.HOLDS),
        (Relation.ON_A_PAR, 0.5, 0.002, Verdict.FAILS),
        (Relation.ON_A_PAR, -0.5, 0.002, Verdict.FAILS),
        (Relation.ON_A_PAR, 0.0, 0.02, Verdict.UNDECIDED),
    ],
)
def test_verdicts_follow_the_interval(
    relation: Relation, mean: float, error: float, verdict: Verdict
) -> None:
    (found,) = findings([replace(ABOVE, relation=relation)], [Estimate(mean, error, 10, 10)])
    assert found.verdict is verdict
    assert np.isnan(found.p) == (relation not in DIRECTIONS)


def test_directions_are_corrected_for_each_other_only() -> None:
    just = Estimate(2.5, 1, 10, 10)  # p = 0.034
    assert findings([ABOVE], [just])[0].verdict is Verdict.HOLDS
    margin = replace(ABOVE, relation=Relation.AT_LEAST)
    assert findings([ABOVE, margin, ABOVE], [just, just, None])[0].verdict is Verdict.HOLDS
    assert findings([ABOVE, ABOVE], [just, just])[0].verdict is Verdict.UNDECIDED


def test_holms_correction_is_the_closed_test_of_bonferroni() -> None:
    p = np.random.default_rng(2).uniform(0, 0.2, 6)
    subsets = list(chain.from_iterable(combinations(range(6), n) for n in range(1, 7)))
    expected = [max(min(1, len(s) * p[list(s)].min()) for s in subsets if i in s) for i in range(6)]
    assert holm(p) == pytest.approx(expected)
    with_gap = holm([p[0], np.nan, p[1]])
    assert np.isnan(with_gap[1])
    assert with_gap[[0, 2]] == pytest.approx(holm(p[:2]))
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("subjects", [4, 10])
def test_where_methods_do_not_differ_one_family_in_twenty_declares_one_to(subjects: int) -> None:
    rng = np.random.default_rng(subjects)
    claims = [c for c in CLAIMS if c.relation in DIRECTIONS]
    names = sorted({n for c in claims for n in (c.first, c.second)})
    metrics = sorted({c.metric for c in claims})
    declared = uncorrected = 0
    for _ in range(1000):
        # What subjects have in common, and noise of each method on each of them.
        values = rng.normal(size=(1, len(metrics), subjects)) + 0.3 * rng.normal(
            size=(len(names), len(metrics), subjects)
        )
        found = findings(
            claims,
            [
                mean_over(
                    values[names.index(c.first), metrics.index(c.metric)]
                    - values[names.index(c.second), metrics.index(c.metric)]
                )
                for c in claims
            ],
        )
        declared += any(f.verdict in (Verdict.HOLDS, Verdict.FAILS) for f in found)
        uncorrected += any(p_value(f.difference) <= 0.05 for f in found if f.difference)
    # At most 5 %, as far as 1000 families can tell (a binomial's 99.9 % quantile).
    assert declared <= stats.binom.ppf(0.999, 1000, 0.05)
    assert uncorrected > 250


def test_claims_are_about_what_there_is() -> None:
    others = {"cross-attention", "self-attention", "other", "compressed to 0.6", "compressed to 1"}
    for claim in CLAIMS:
        assert {claim.first, claim.second} <= {*method_names(), *others}
        assert claim.kind in KINDS
        for name in {claim.first, claim.second} - others:
            method = load_method(name)
            assert method.single if claim.kind == "single" else method.composition
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_verdicts_are_written(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analyses = Path("reports/analyses")
    (analyses / "weights").mkdir(parents=True)
    (analyses / "weights" / "groups.csv").write_text(
        "method,subject,group,mean\n"
        + "".join(
            f"dreambooth,{s},{g},{v}\n"
            for s, most in (("cat", 0.5), ("chair", 0.502))
            for g, v in (("cross-attention", most), ("self-attention", 0.1), ("other", 0.1))
        )
    )
    print_claims("toyland", write=True)
    out = capsys.readouterr().out
    assert "holds  cross-attention changes most: other" in out
    assert "not run        not run  keys and values suffice" in out
    p = 2 * stats.ttest_1samp([0.4, 0.402], 0).pvalue  # of two claims that could be tested
    with open("reports/claims.csv", newline="") as file:
        rows = {row["claim"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(CLAIMS)
    row = rows["cross-attention changes most: other"]
    assert row["comparison"] == "weight change: cross-attention > other"
    assert float(row["difference"]) == pytest.approx(0.401)
    assert float(row["difference_se"]) == pytest.approx(0.001)
    assert float(row["p"]) == pytest.approx(p)
    assert (row["pairs"], row["p_here"]) == ("2", "")
    assert (row["verdict_here"], row["verdict"]) == ("undecided", "holds")
    missing = rows["one after the other forgets"]
    assert missing["comparison"] == (
        "image-alignment, first: custom diffusion sequential < custom diffusion"
    )
    assert (missing["difference"], missing["verdict"]) == ("", "not run")
    lines = Path("reports/claims.md").read_text().splitlines()
    assert (
        "| cross-attention changes most: other | When all weights train, those of cross-attention "
        "change most, relative to their size. | section 3.1, Fig. 3 | weight change: "
        "cross-attention > other | 0.401 ± 0.001 | [0.388, 0.414] | 2 | 0.003 | – | – | undecided "
        "| holds |"
    ) in lines
    assert sum(line.startswith("| ") for line in lines) == len(CLAIMS) + 2


def test_without_scores_there_is_nothing_to_claim(project: Path) -> None:
    with pytest.raises(BenchError, match="no scores yet"):
        print_claims()


def test_damaged_analyses_are_told(profile: Path) -> None:
    folder = Path("reports/analyses/compression")
    folder.mkdir(parents=True)
    (folder / "prompts.csv").write_text("nothing\n")
    with pytest.raises(BenchError, match=r"compression/prompts\.csv"):
        claims_table(load_results())


def test_printing_leaves_the_report_as_it_is(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("reports").mkdir()
    Path("reports/claims.csv").write_text("committed")
    print_claims("toyland")
    assert "joint training is no worse" in capsys.readouterr().out
    assert {p.name: p.read_text() for p in Path("reports").iterdir()} == {"claims.csv": "committed"}
