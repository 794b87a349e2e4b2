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
    findings,
    holm,
    margin,
    p_value,
    print_claims,
)
from eval.papers.reference import printed_tables
from eval.results import KINDS, Differences, Results, load_results
from eval.statistics import Estimate, mean_over
from pipeline.common.errors import BenchError
from pipeline.methods import load_method, method_names
from pipeline.settings.profile import Grid, GridComposition, GridConcept
from pipeline.settings.protocol import load_protocol

ABOVE = Claim("name", "says", "where", "single", "text_alignment", "a", Relation.GREATER, "b")


Cells = dict[tuple[str, str], np.ndarray]  # [prompts, images] by method and subject


def scores(values: Cells, metric: str) -> pd.DataFrame:
    """A row for each of the values; no two subjects are asked for the same."""
    rows = [
        {
            "method": m, "subject": s, "seed": pd.NA, "metric": metric, "target": pd.NA,
            "prompt_index": p, "prompt": f"prompt {p} of {s}{s}", "sample": i, "value": value,
            "std_error": np.nan,
            "n": pd.NA, "clusters": pd.NA, "extractor": "e", "protocol": "toyland-v2",
        }
        for (m, s), x in values.items()
        for (p, i), value in np.ndenumerate(x)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"prompt_index": "Int64", "target": "Int64"})


def results(
    frame: pd.DataFrame, subjects: str = "xyz", pairs: tuple[tuple[str, str, str], ...] = ()
) -> Results:
    """Of single concepts, or of compositions of them."""
    grid = Grid(
        concepts={c: GridConcept(class_noun=c) for c in subjects},
        compositions={
            name: GridComposition(first=first, second=second) for name, first, second in pairs
        },
        methods=["a", "b"],
    )
    return Results(frame, grid, load_protocol("toyland-v2"))


def single(frame: pd.DataFrame) -> Differences | None:
    return results(frame).difference("a", "b", "single", "text_alignment")


def drawn(methods: str = "ab", subjects: str = "xyz") -> Cells:
    rng = np.random.default_rng(1)
    return {(m, s): rng.normal(size=(4, 3)) for m in methods for s in subjects}


def test_differences_are_paired_by_subject() -> None:
    values = drawn()
    found = results(scores(values, "text_alignment")).difference(
        "a", "b", "single", "text_alignment"
    )
    expected = stats.ttest_rel(
        [values["a", s].mean() for s in "xyz"], [values["b", s].mean() for s in "xyz"]
    )
    assert found is not None
    mean = np.mean([values["a", s] - values["b", s] for s in "xyz"])
    assert found.anywhere.mean == pytest.approx(mean)
    assert p_value(found.anywhere) == pytest.approx(expected.pvalue)


def test_for_the_subjects_at_hand_prompts_are_the_sample() -> None:
    values = drawn()
    found = results(scores(values, "text_alignment")).difference(
        "a", "b", "single", "text_alignment"
    )
    assert found is not None
    gaps = np.stack([(values["a", s] - values["b", s]).mean(1) for s in "xyz"])
    assert found.here.mean == pytest.approx(found.anywhere.mean)
    assert found.here.std_error == pytest.approx(np.sqrt((gaps.var(1, ddof=1) / 4).sum()) / 3)
    assert found.here.clusters - 1 == 3 * 3


def test_prompts_that_subjects_share_are_one_cluster() -> None:
    """The same words with another class noun."""
    values = drawn()
    frame = scores(values, "text_alignment")
    frame["prompt"] = [f"a {s} at {i}" for s, i in zip(frame["subject"], frame["prompt_index"])]
    found = single(frame)
    assert found is not None
    gaps = np.stack([(values["a", s] - values["b", s]).mean(1) for s in "xyz"])
    assert found.here.std_error == pytest.approx(stats.sem(gaps.mean(0)))
    assert found.here.clusters == 4


def test_one_subject_says_nothing_of_others() -> None:
    values = drawn()
    frame = scores({key: x for key, x in values.items() if "y" in key}, "text_alignment")
    found = results(frame, "y").difference("a", "b", "single", "text_alignment")
    expected = stats.ttest_rel(values["a", "y"].mean(1), values["b", "y"].mean(1))
    assert found is not None
    assert p_value(found.here) == pytest.approx(expected.pvalue)
    assert found.here.clusters == 4
    assert np.isnan(found.anywhere.std_error)
    assert findings([ABOVE], [found.anywhere], [0.1])[0].verdict is Verdict.UNDECIDED


def test_compositions_of_the_same_concept_are_one_subject() -> None:
    pairs = (("p", "x", "y"), ("q", "y", "z"), ("r", "u", "v"), ("s", "w", "t"))
    values = drawn(subjects="pqrs")
    frame = scores(values, "text_alignment")
    found = results(frame, "xyzuvwt", pairs).difference("a", "b", "compositions", "text_alignment")
    assert found is not None
    gaps = {s: (values["a", s] - values["b", s]).mean() for s in "pqrs"}
    mean = np.mean(list(gaps.values()))
    sums = np.array([gaps["p"] + gaps["q"] - 2 * mean, gaps["r"] - mean, gaps["s"] - mean])
    assert found.anywhere.std_error == pytest.approx(np.sqrt(3 / 2 * (sums**2).sum()) / 4)
    assert found.anywhere.clusters == 3
    frame = frame[frame["subject"] != "s"]
    fewer = results(frame, "xyzuv", pairs[:3]).difference(
        "a", "b", "compositions", "text_alignment"
    )
    assert fewer is not None
    assert fewer.anywhere.clusters == 2
    assert np.isnan(fewer.anywhere.std_error)


def of_sets(values: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """KID and what it is without each caption: the first of the values, and the others."""
    frame = scores({key: x[None, :] for key, x in values.items()}, "kid")
    frame["prompt"] = [
        f"photo {i} of a {s}" if i else pd.NA for s, i in zip(frame["subject"], frame["sample"])
    ]
    return frame.assign(
        prompt_index=pd.NA,
        sample=pd.NA,
        clusters=[5 if pd.isna(p) else pd.NA for p in frame["prompt"]],
    )


def test_values_of_sets_are_paired_by_caption() -> None:
    rng = np.random.default_rng(5)
    values = {(m, s): rng.normal(size=6) for m in "ab" for s in "xyz"}
    frame = of_sets(values)
    found = results(frame).difference("a", "b", "single", "kid")
    a, b = (np.array([values[m, s] for s in "xyz"]) for m in "ab")
    assert found is not None
    assert p_value(found.anywhere) == pytest.approx(stats.ttest_rel(a[:, 0], b[:, 0]).pvalue)
    # The jackknife of the mean: "photo 1" is left out of all three subjects at once.
    without = (a - b)[:, 1:].mean(0)
    assert found.here.mean == pytest.approx((a - b)[:, 0].mean())
    assert found.here.std_error == pytest.approx(np.sqrt(4 * without.var()))
    assert found.here.clusters == 5
    # Without the same captions nothing is paired.
    other = frame[(frame["method"] != "a") | (frame["prompt"] != "photo 1 of a x")]
    fewer = results(other).difference("a", "b", "single", "kid")
    assert fewer is not None
    assert fewer.here.mean == found.here.mean
    assert np.isnan(fewer.here.std_error)


def test_compositions_have_the_mean_over_their_concepts_or_one_of_them() -> None:
    by_target = {1: drawn(), 2: {key: x**2 for key, x in drawn().items()}}
    parts = [scores(x, "image_alignment").assign(target=n) for n, x in by_target.items()]
    gaps = {n: [(x["a", s] - x["b", s]).mean() for s in "xyz"] for n, x in by_target.items()}
    found = results(pd.concat(parts))
    both = found.difference("a", "b", "single", "image_alignment")
    assert both is not None
    assert both.anywhere == pytest.approx(mean_over(np.mean([gaps[1], gaps[2]], axis=0)))
    for n in (1, 2):
        one = found.difference("a", "b", "single", "image_alignment", target=n)
        assert one is not None
        assert one.anywhere == pytest.approx(mean_over(gaps[n]))


def test_what_was_not_scored_is_not_run() -> None:
    frame = scores(drawn("a"), "text_alignment")
    assert single(frame) is None
    assert results(frame).difference("a", "b", "single", "kid") is None
    assert findings([ABOVE], [None], [np.nan])[0].verdict is Verdict.NOT_RUN


def test_a_margin_is_a_share_of_the_range() -> None:
    values = {("pretrained", "x"): np.full((2, 1), 0.3), ("oracle", "x"): np.full((2, 1), 0.9)}
    of = results(scores(values, "image_alignment"), "x")
    assert margin(of, "image_alignment") == pytest.approx(0.05 * 0.6)
    assert np.isnan(margin(of, "text_alignment"))  # neither was scored
    assert np.isnan(margin(of, "weight_change"))
    at_least = replace(ABOVE, relation=Relation.AT_LEAST)
    far = Estimate(1.0, 0.01, 9, 9)
    assert findings([at_least], [far], [np.nan])[0].verdict is Verdict.UNDECIDED


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
    claim, difference = replace(ABOVE, relation=relation), Estimate(mean, error, 10, 10)
    (found,) = findings([claim], [difference], [0.02])
    assert found.verdict is verdict
    assert np.isnan(found.p) == (relation not in DIRECTIONS)


def test_directions_are_corrected_for_each_other_only() -> None:
    just = Estimate(2.5, 1, 10, 10)  # p = 0.034
    at_least = replace(ABOVE, relation=Relation.AT_LEAST)
    for claims, found, verdict in (
        ([ABOVE], [just], Verdict.HOLDS),
        ([ABOVE, at_least, ABOVE], [just, just, None], Verdict.HOLDS),
        ([ABOVE, ABOVE], [just, just], Verdict.UNDECIDED),
    ):
        assert findings(claims, found, [0.02] * len(claims))[0].verdict is verdict


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
            [np.nan] * len(claims),
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
        "method,subject,group,mean,weighted_mean\n"
        + "".join(
            f"dreambooth,{s},{g},{v},{0.3 - v}\n"
            for s, most in (("cat", 0.5), ("dog", 0.501), ("chair", 0.502))
            for g, v in (("cross-attention", most), ("self-attention", 0.1), ("other", 0.1))
        )
    )
    grid = Path("grid.yaml").read_text()
    dog = "concepts:\n  dog:\n    class_noun: dog\n"
    Path("grid.yaml").write_text(grid.replace("concepts:\n", dog, 1))
    print_claims("toyland", write=True)
    out = capsys.readouterr().out
    # As the paper plots it, and with each weight counting alike: the sign may differ.
    assert "holds  cross-attention changes most (mean over layers): other" in out
    assert "does not hold  cross-attention changes most (mean over weights): other" in out
    assert "not run        not run  keys and values suffice" in out
    p = 4 * stats.ttest_1samp([0.4, 0.401, 0.402], 0).pvalue  # of four that could be tested
    with open("reports/claims.csv", newline="") as file:
        rows = {row["claim"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(CLAIMS)
    row = rows["cross-attention changes most (mean over layers): other"]
    assert row["comparison"] == "weight change (mean over layers): cross-attention > other"
    assert float(row["difference"]) == pytest.approx(0.401)
    assert float(row["difference_se"]) == pytest.approx(0.001 / np.sqrt(3))
    assert float(row["p"]) == pytest.approx(p)
    assert (row["subjects"], row["p_here"], row["seeds"]) == ("3", "", "one training seed")
    # There are no prompts of which to ask for others.
    assert (row["verdict_here"], row["verdict"]) == ("–", "holds")
    missing = rows["one after the other forgets"]
    assert missing["comparison"] == (
        "image-alignment, first: custom diffusion sequential < custom diffusion"
    )
    assert (missing["difference"], missing["verdict"], missing["seeds"]) == ("", "not run", "")
    joint = rows["joint training is no worse than merging: image-alignment"]
    expected = margin(load_results(), "image_alignment")
    assert float(joint["margin"]) == pytest.approx(expected)
    assert (joint["subjects"], joint["verdict"]) == ("1", "undecided")
    lines = Path("reports/claims.md").read_text().splitlines()
    assert (
        "| cross-attention changes most (mean over layers): other | When all weights train, those "
        "of cross-attention change most, relative to their size. | section 3.1, Fig. 3 | weight "
        "change (mean over layers): cross-attention > other | 0.401 ± 0.001 | – | [0.399, 0.403] | "
        "3 | < 0.001 | – | – | one training seed | – | holds |"
    ) in lines
    assert sum(line.startswith("| ") for line in lines) == len(CLAIMS) + 2


def test_the_papers_own_numbers_bear_out_its_headlines() -> None:
    """What Table 1 prints has the sign that claims state, where both methods are in it."""
    printed: dict[tuple[str, str, str], float] = {}
    for _, table in printed_tables("1"):
        for row in table.rows:
            for metric, value in row.means.items() if row.target is None else ():
                printed.setdefault((table.kind, row.method, metric), value)
    checked = set()
    for claim in CLAIMS:
        ends = [printed.get((claim.kind, m, claim.metric)) for m in (claim.first, claim.second)]
        if claim.target is None and None not in ends:
            gap = float(np.subtract(*ends))
            checked.add(claim.name)
            if claim.relation in DIRECTIONS:
                assert (gap > 0) == (claim.relation is Relation.GREATER) and gap != 0, claim.name
            elif claim.relation is Relation.ON_A_PAR:
                assert abs(gap) < 0.001, claim.name
    assert {"keys and values forget less", "merging is as near as DreamBooth"} <= checked


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
    Path("reports/claims.csv").write_text("committed")
    before = {path: path.read_bytes() for path in Path("reports").rglob("*.*") if path.is_file()}
    print_claims("toyland")
    assert "joint training is no worse" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in Path("reports").rglob("*.*") if path.is_file()}
    assert after == before
