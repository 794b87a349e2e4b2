"""Ours beside printed numbers: what is compared, and what is honestly not."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.papers.compare import Line, agreement, compare, lines, print_comparison, tolerance
from eval.papers.reference import PrintedRow, PrintedTable, printed_tables
from eval.results import Results, load_results
from eval.statistics import Estimate
from pipeline.common.errors import BenchError
from pipeline.settings.profile import GridConcept, Params, load_grid, load_params
from pipeline.settings.protocol import load_protocol

CONCEPTS = "moongate barn tortoise_plushy teddybear wooden_pot dog cat flower table chair".split()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def the_papers_run(shift: float = 0.0, concepts: list[str] | None = None) -> tuple[Results, Params]:
    """Scores as if the paper's images had been scored here: its per-concept values, with noise."""
    (_, table) = printed_tables("7")[0]
    rng = np.random.default_rng(5)
    rows = []
    for row in table.rows:
        for metric, values in row.values.items():
            for subject, value in zip(table.subjects, values):
                if subject not in (concepts or CONCEPTS):
                    continue
                known = {
                    "protocol": "paper-v1", "method": row.method, "subject": f"{subject}_photo",
                    "seed": pd.NA, "metric": metric, "target": pd.NA, "std_error": 1.0, "n": 500,
                    "clusters": 40, "scale": 1.0, "text_rule": "class_noun",
                    "extractor": "ViT-B-32-quickgelu/openai@0123",
                }  # fmt: skip
                if metric == "kid":
                    empty = {"prompt_index": pd.NA, "prompt": pd.NA, "sample": pd.NA}
                    rows.append({**known, **empty, "value": value})
                    continue
                noise = rng.normal(0, 0.02, 20)
                for prompt, error in enumerate(noise - noise.mean()):
                    about = {"prompt_index": prompt, "prompt": str(prompt), "sample": 0}
                    about["target"] = 1 if metric == "image_alignment" else pd.NA
                    rows.append({**known, **about, "value": value + shift + error})
    methods = [row.method for row in table.rows]
    grid = load_grid().model_copy(
        update={
            "concepts": {f"{c}_photo": GridConcept(class_noun=c) for c in CONCEPTS},
            "compositions": {},
            "methods": list(dict.fromkeys(methods)),
        }
    )
    protocol = load_protocol("paper-v1")
    params = load_params()
    base = params.base.model_copy(update={"path": "CompVis/stable-diffusion-v1-4"})
    params = params.model_copy(update={"protocol": protocol, "base": base})
    return Results(pd.DataFrame(rows), grid, protocol), params


def of_table(number: str, results: Results, params: Params) -> list[Line]:
    return [
        line for source, printed in printed_tables(number)
        for line in lines(results, params, source, printed)
    ]  # fmt: skip


def test_the_papers_own_values_are_within_tolerance(project: Path) -> None:
    results, params = the_papers_run()
    found = [line for line in of_table("7", results, params) if line.metric != "kid"]
    assert len(found) == 4 * 2 * 11  # methods, metrics, concepts and their mean
    assert {line.verdict() for line in found} == {"within"}
    main = [line for line in of_table("1", results, params) if line.ours and line.metric != "kid"]
    assert {line.verdict() for line in main} == {"within"}
    # The mean leaves out the moongate, as the paper's does.
    mean = next(m for m in main if (m.method, m.metric) == ("custom_diffusion", "image_alignment"))
    assert mean.ours is not None
    assert mean.ours.mean == pytest.approx(0.775, abs=1e-6)


def test_other_values_are_beyond(project: Path) -> None:
    results, params = the_papers_run(shift=0.06)
    found = [line for line in of_table("7", results, params) if line.metric != "kid"]
    assert {line.verdict() for line in found} == {"beyond"}


def test_kid_can_never_be_compared(project: Path) -> None:
    results, params = the_papers_run()
    verdicts = {line.verdict() for line in of_table("7", results, params) if line.metric == "kid"}
    assert verdicts == {
        "not comparable: the 500 real images behind each printed KID were never released"
    }


def test_means_over_other_subjects_are_not_compared(project: Path) -> None:
    results, params = the_papers_run(concepts=["cat", "dog"])
    found = {line.subject: line for line in of_table("7", results, params) if line.ours
             and line.method == "dreambooth" and line.metric == "text_alignment"}  # fmt: skip
    assert found[None].verdict() == "not comparable: other subjects (2 of 9)"
    assert found["cat"].verdict() == "within"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": load_protocol}, "other protocol"),
        ({"base": "models/toyland/base"}, "other base model"),
        ({"extractor": "scorer@1234"}, "other extractor"),
    ],
)
def test_what_differs_is_said(project: Path, change: dict, said: str) -> None:
    results, params = the_papers_run()
    if "protocol" in change:
        params = params.model_copy(update={"protocol": load_protocol("toyland-v2")})
    elif "base" in change:
        base = params.base.model_copy(update={"path": change["base"]})
        params = params.model_copy(update={"base": base})
    else:
        scores = results.scores.assign(extractor=change["extractor"])
        results = Results(scores, results.grid, results.protocol)
    verdicts = {line.verdict() for line in of_table("7", results, params) if line.metric != "kid"}
    assert verdicts == {f"not comparable: {said}"}


def test_a_track_of_other_steps_is_not_compared(profile: Path) -> None:
    """CustomConcept101 prints 50 and 200 steps; a run has one of them."""
    results, params = load_results(), load_params()
    verdicts = [line.verdict() for line in of_table("4", results, params) if line.ours]
    assert verdicts
    assert all("steps" in verdict for verdict in verdicts)  # Toyland's protocol has 20


def test_tolerance_covers_two_honest_runs() -> None:
    """Two runs of equal truth differ by more than the tolerance one time in twenty."""
    rng = np.random.default_rng(0)
    errors = [0.01, 0.02, 0.015]
    runs = rng.normal(0, errors, (2, 20_000, 3)).mean(axis=2)
    inside = np.mean(np.abs(runs[0] - runs[1]) <= tolerance(errors, 0))
    assert inside == pytest.approx(0.95, abs=0.006)
    assert tolerance([0.0], 0.001) == 0.001


def test_order_agrees_as_counted_by_hand() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=6), rng.normal(size=6)
    found = [
        Line(str(i), None, "kid", Estimate(a, 0.1, 4, 4), b, 0.1, "")
        for i, (a, b) in enumerate(zip(ours, theirs))
    ]
    agreed = agreement([*found, Line("x", None, "kid", None, 1.0, 0.1, "")])
    assert agreed.rho == pytest.approx(stats.spearmanr(ours, theirs).statistic)
    tau = stats.kendalltau(ours, theirs).statistic
    assert agreed.pairs == 15
    assert (2 * agreed.same - agreed.pairs) / agreed.pairs == pytest.approx(tau)
    # The mean that a table prints beside its subjects is none of them.
    mean = Line("0", None, "kid", Estimate(9, 0.1, 4, 4), -9.0, 0.1, "")
    subjects = [line._replace(subject="cat") for line in found]
    whole = [*subjects, mean, mean._replace(method="1", printed=9.0)]
    assert agreement(whole) == agreement(subjects)
    reverse = [line._replace(printed=-line.ours.mean) for line in found if line.ours]
    assert agreement(reverse)[1:] == (pytest.approx(-1), 0, 15)


def test_two_methods_have_a_direction_but_no_rank_correlation() -> None:
    found = [Line(m, None, "kid", Estimate(v, 0, 2, 2), v, 0, "") for m, v in (("a", 1), ("b", 2))]
    agreed = agreement(found)
    assert np.isnan(agreed.rho)
    assert (agreed.same, agreed.pairs) == (1, 1)


def test_toyland_is_told_to_be_another_world(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(table="1", format="csv")
    rows = rows_of(capsys.readouterr().out.split("\n\n")[0])
    shown = {row["method"]: row for row in rows if row["metric"] == "image-alignment"}
    scores = pd.read_csv(profile / "reports/cells/custom_diffusion/cat/scores.csv")
    assert shown["dreambooth"]["verdict"] == "not run"
    ours = shown["custom_diffusion"]
    assert "other protocol, base model, extractor" in ours["verdict"]
    assert ours["printed"] == "0.775"
    assert ours["difference"] == ours["tolerance"] == ""
    assert float(ours["ours"]) != scores["value"].mean()  # over both concepts
    print_comparison()
    out = capsys.readouterr().out
    assert "Table 7 (CVPR: 6)" in out
    assert "custom_diffusion_all" not in out  # only what was run


@pytest.mark.parametrize(("pretrained", "ours", "said"), [(30.0, 20.0, "1/1"), (20.0, 30.0, "0/1")])
def test_the_order_is_the_papers_where_the_same_one_is_better(
    profile: Path, capsys: pytest.CaptureFixture[str], pretrained: float, ours: float, said: str
) -> None:
    """The paper prints a KID of 22.27 for the pretrained model and of 20.96 for its own."""
    for method, value in (("pretrained", pretrained), ("custom_diffusion", ours)):
        for concept in ("cat", "chair"):
            path = profile / f"reports/cells/{method}/{concept}/scores.csv"
            scores = pd.read_csv(path)
            scores.loc[scores["metric"] == "kid", "value"] = value
            scores.to_csv(path, index=False)
    print_comparison(table="1")
    order = capsys.readouterr().out.split("order of methods in")[1]
    (line,) = [line for line in order.splitlines() if "KID" in line]
    assert line.split("KID × 10³")[1].split() == ["2", "–", said]


def test_a_target_is_compared_with_that_target(profile: Path) -> None:
    """Table 8 prints image-alignment with each concept of a pair; ours has cat + chair."""
    found = [
        line
        for line in of_table("8", load_results(), load_params())
        if (line.method, line.subject) == ("custom_diffusion", "cat+chair") and line.ours
    ]
    path = profile / "reports/cells/custom_diffusion/cat+chair/scores.csv"
    means = pd.read_csv(path).groupby("target")["value"].mean()
    shown = {line.target: line for line in found if line.metric == "image_alignment"}
    assert {n: line.printed for n, line in shown.items()} == {1: 0.674, 2: 0.767}
    for number, line in shown.items():
        assert line.ours is not None
        assert line.ours.mean == pytest.approx(means[number])
    assert {line.target for line in found if line.metric == "text_alignment"} == {None}


def test_tables_say_what_is_wrong_with_print(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(table="1", format="markdown")
    out = capsys.readouterr().out
    assert "are over nine concepts" in out
    assert ".6938" in out
    assert out.count("cut off, not rounded") == 1


def test_people_are_shown_where_they_answered(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(table="2", format="csv")
    first = capsys.readouterr().out.split("\n\n")[0]
    assert {row["verdict"] for row in rows_of(first)} == {"no responses"}
    folder = Path("reports/study")
    folder.mkdir(parents=True)
    header = "kind,subjects,method,against,preferred,preferred_se,answers,raters,questions"
    line = "text,single concepts,custom_diffusion,dreambooth,56.5,1.5,200,10,40"
    (folder / "preferences.csv").write_text(f"{header}\n{line}\n")
    print_comparison(table="2", format="csv")
    rows = rows_of(capsys.readouterr().out.split("\n\n")[0])
    row = next(r for r in rows if r["ours"])
    assert (row["against"], row["printed"], row["ours"]) == ("dreambooth", "53.5", "56.5")
    assert row["verdict"] == "not comparable: other protocol, base model"
    (folder / "preferences.csv").write_text("kind,subjects\ntext,single concepts\n")
    with pytest.raises(BenchError, match="not what `bench study analyse` writes"):
        print_comparison(table="2")


def test_unknown_names_are_refused_at_once(project: Path) -> None:
    with pytest.raises(BenchError, match="table '12' is unknown"):
        print_comparison(table="12")
    with pytest.raises(BenchError, match="format 'xml' is unknown"):
        print_comparison(format="xml")
    with pytest.raises(BenchError, match="no scores yet"):
        print_comparison()


def test_a_table_checks_its_own_means() -> None:
    row = PrintedRow(method="a", values={"kid": [1.0, 2.0]}, means={"kid": 1.5})
    table = {"table": "1", "title": "t", "kind": "single", "subjects": ["x", "y"]}
    assert PrintedTable(**table, rows=[row]).mean_of_values(row, "kid") == 1.5
    with pytest.raises(ValueError, match="is 1.50000, not 1.6"):
        PrintedTable(**table, rows=[row.model_copy(update={"means": {"kid": 1.6}})])


def test_nothing_is_compared_twice(profile: Path) -> None:
    tables, order, _ = compare(load_results(), load_params())
    assert len({table.caption for table in tables}) == len(tables)
    assert len(set(order.rows)) == len(order.rows)
