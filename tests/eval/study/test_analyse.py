"""Tables of the human study from simulated answers, which exist in tests alone."""

from __future__ import annotations

import csv
import json
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.scores.file import COLUMNS as SCORES
from eval.statistics import Estimate, interval
from eval.study.analyse import (
    agreement,
    analyse,
    analysed,
    power,
    preferences,
    ranking,
    raters,
)
from eval.study.measures import share_of
from eval.study.questionnaire import Question, load_questionnaire
from eval.study.read import read, responses_folder
from eval.tables.rendering import FORMATS, texts_of
from eval.tables.table import Table
from pipeline.settings.study import StudyParams
from tests.eval.study.conftest import QUESTIONNAIRE
from tests.eval.study.simulated import GRID, drawn, everybody, plain_form, responses, write_amt

STUDY = StudyParams()
FOLDER = Path("reports/study")


def rows(table: Table) -> list[dict[str, object]]:
    keys = [column.key for column in table.columns]
    return [dict(zip(keys, row, strict=True)) for row in table.rows]


def estimate(cell: object) -> Estimate:
    assert isinstance(cell, Estimate)
    return cell


def number(cell: object) -> float:
    assert isinstance(cell, float)
    return cell


def csv_rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_preferences_are_those_that_were_planted() -> None:
    rng = np.random.default_rng(0)
    planted = {
        ("text", "dreambooth", "cat"): 0.75,
        ("text", "pretrained", "cat"): 0.5,
        ("image", "dreambooth", "cat+chair"): 0.2,
    }
    frame = pd.concat(
        responses(drawn(p, 30, 30, rng, 0.3, 0.3), kind, ("custom_diffusion", other), [subject])
        for (kind, other, subject), p in planted.items()
    )
    answers = analysed(frame, GRID, STUDY)
    found = rows(preferences(answers, answers, GRID, STUDY))
    subjects = {"cat": "single concepts", "cat+chair": "compositions"}
    assert [(r["kind"], r["subjects"], r["method"], r["against"]) for r in found] == [
        ("text", "single concepts", "custom_diffusion", "dreambooth"),
        ("text", "single concepts", "custom_diffusion", "pretrained"),
        ("image", "compositions", "custom_diffusion", "dreambooth"),
    ]
    for row in found:
        (p,) = (
            p
            for (kind, other, subject), p in planted.items()
            if (kind, other, subjects[subject]) == (row["kind"], row["against"], row["subjects"])
        )
        error = number(row["preferred_se"])
        assert abs(number(row["preferred"]) - 100 * p) < 3 * error < 15
        assert number(row["preferred_low"]) < row["preferred"] < number(row["preferred_high"])
        assert row["answers"] == 900
        assert row["raters"] == row["questions"] == 30
        # The tail is below 0.001 where there is a preference, whichever way.
        assert (float(str(row["p"])) < 0.001) == (p != 0.5)
        assert 0.5 < number(row["amt_pm"]) / error < 2


def test_the_interval_is_that_of_the_share() -> None:
    data = drawn(0.6, 12, 20, np.random.default_rng(1), 0.5, 0.5, answered=0.6)
    answers = analysed(responses(data), GRID, STUDY)
    (row,) = rows(preferences(answers, answers, GRID, STUDY))
    expected = share_of(data.win, data.raters, data.trials)
    names = ("preferred", "preferred_se", "preferred_low", "preferred_high")
    assert [number(row[name]) for name in names] == pytest.approx(
        [100 * value for value in expected[:4]]
    )
    assert number(row["p"]) == pytest.approx(expected.p)


def test_two_raters_who_agree_on_two_questions_prove_nothing() -> None:
    answers = analysed(responses(drawn(1 - 1e-12, 2, 2, np.random.default_rng(1))), GRID, STUDY)
    table = preferences(answers, answers, GRID, STUDY)
    (row,) = rows(table)
    assert row["preferred"] == 100
    assert row["preferred_se"] is None
    assert number(row["preferred_low"]) == pytest.approx(100 * np.sqrt(0.025))
    assert row["preferred_high"] == 100
    assert row["p"] == pytest.approx(0.5)
    (strong, weak) = rows(ranking(answers, GRID))
    assert interval(estimate(strong["strength"])).low < interval(estimate(weak["strength"])).high


def test_no_p_is_printed_as_none() -> None:
    """Not even where hundreds agree."""
    answers = analysed(responses(drawn(1 - 1e-12, 40, 40, np.random.default_rng(1))), GRID, STUDY)
    table = preferences(answers, answers, GRID, STUDY)
    at = [column.key for column in table.columns].index("p")
    assert texts_of(table).rows[0][at] == "< 0.0001"
    (line,) = csv.DictReader(FORMATS["csv"](table).splitlines())
    assert float(line["p"]) == pytest.approx(2 * 0.5**40)
    assert float(line["preferred_low"]) < 100


def test_raters_that_were_left_out_are_seen_beside() -> None:
    rng = np.random.default_rng(2)
    answers = analysed(responses(drawn(0.9, 10, 20, rng)), GRID, STUDY)
    clickers = analysed(responses(drawn(0.5, 10, 20, rng)), GRID, STUDY)
    (row,) = rows(preferences(answers, pd.concat([answers, clickers]), GRID, STUDY))
    assert number(row["preferred"]) > 85
    assert 60 < float(str(row["preferred_all_raters"])) < 80


def test_methods_are_ranked_as_they_are_preferred() -> None:
    rng = np.random.default_rng(3)
    frame = pd.concat(
        responses(drawn(p, 20, 20, rng), pair=("custom_diffusion", other))
        for other, p in (("dreambooth", 0.4), ("pretrained", 0.8))
    )
    found = rows(ranking(analysed(frame, GRID, STUDY), GRID))
    assert [row["method"] for row in found] == ["dreambooth", "custom_diffusion", "pretrained"]
    strengths = [estimate(row["strength"]) for row in found]
    assert sum(s.mean for s in strengths) == pytest.approx(0, abs=1e-9)
    gap = strengths[1].mean - strengths[2].mean
    assert gap == pytest.approx(np.log(0.8 / 0.2), abs=0.4)
    assert [row["answers"] for row in found] == [400, 800, 400]


def test_side_bias_and_alpha_are_told() -> None:
    rng = np.random.default_rng(4)
    even = analysed(responses(drawn(0.5, 20, 40, rng)), GRID, STUDY)
    biased = even.copy()
    lazy = rng.random(len(biased)) < 0.3
    biased.loc[lazy, "choice"] = "left"
    for answers, bias in ((even, 0), (biased, 15)):
        (row,) = rows(raters(answers, answers))
        assert number(row["left"]) == pytest.approx(50 + bias, abs=5)
        assert (float(str(row["left_p"])) < 0.001) == bool(bias)
        assert row["checks"] is None
        assert row["seconds"] == 3
    agreed = analysed(responses(drawn(0.5, 20, 40, rng, trial_effect=4)), GRID, STUDY)
    (same,) = rows(raters(agreed, agreed))
    assert estimate(same["alpha"]).mean > 0.4
    (free,) = rows(raters(even, even))
    low, high = interval(estimate(free["alpha"]))
    assert low < 0 < high


def test_checks_are_counted() -> None:
    answers = responses(drawn(0.5, 4, 10, np.random.default_rng(5)))
    checks = answers.assign(gold="left")
    passed = float((checks["choice"] == "left").mean())
    everything = pd.concat([answers, checks])
    (row,) = rows(raters(analysed(everything, GRID, STUDY), everything))
    assert number(row["checks"]) == pytest.approx(100 * passed)
    assert row["answers"] == 40


def test_agreement_is_that_of_sign_and_choice() -> None:
    answers = analysed(responses(drawn(0.5, 5, 12, np.random.default_rng(6))), GRID, STUDY)
    left = answers["choice"] == "left"
    found = rows(
        agreement(
            answers.assign(
                **{
                    "metric:same": np.where(left, 0.1, -0.2),
                    "metric:opposite": np.where(left, -3.0, 1.0),
                    "metric:tied": 0.0,
                    "metric:unknown": np.nan,
                    "metric:some": np.where(np.arange(60) < 20, 1.0, np.nan),
                }
            )
        )
    )
    values = {row["metric"]: (number(row["agreement"]), row["answers"]) for row in found}
    assert set(values) == {"another rater", "same", "opposite", "tied", "some"}
    assert values["same"] == (100, 60)
    assert all(0 < number(r["agreement_high"]) - number(r["agreement_low"]) < 100 for r in found)
    assert values["opposite"] == (0, 60)
    assert values["tied"] == (50, 60)
    assert values["some"] == (pytest.approx(100 * left[:20].mean()), 20)
    assert values["another rater"][0] == pytest.approx(50, abs=15)


def test_power_follows_from_the_design_effect() -> None:
    rng = np.random.default_rng(7)
    free = analysed(responses(drawn(0.5, 40, 40, rng, answered=0.5)), GRID, STUDY)
    (row,) = rows(power(free, GRID))
    assert float(str(row["design_effect"])) == pytest.approx(1, abs=0.6)
    assert row["within_5"] == pytest.approx(384.1 * float(str(row["design_effect"])), abs=1)
    clustered = analysed(responses(drawn(0.5, 40, 40, rng, 1.5, 1.5, 0.5)), GRID, STUDY)
    (more,) = rows(power(clustered, GRID))
    assert float(str(more["within_2"])) > 4 * float(str(row["within_2"]))


def test_without_responses_the_folder_says_so(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analyse("toyland")
    assert json.loads((FOLDER / "summary.json").read_text())["responses"] == 0
    assert [path.name for path in FOLDER.iterdir()] == ["summary.json"]
    assert "no responses" in capsys.readouterr().out


def score(values: dict[tuple[str, str, int, int], float]) -> None:
    """Writes text-alignment of every image as scores."""
    frame = pd.DataFrame(
        [
            (method, subject, "text_alignment", prompt, sample, value)
            for (method, subject, prompt, sample), value in values.items()
        ],
        columns=["method", "subject", "metric", "prompt_index", "sample", "value"],
    ).reindex(columns=list(SCORES))
    for (method, subject), own in frame.fillna(
        {"protocol": "toyland-v2", "extractor": "x"}
    ).groupby(["method", "subject"]):
        path = Path(f"reports/cells/{method}/{subject}/scores.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        own.assign(rows=len(own)).to_csv(path, index=False)


def test_a_study_from_answers_to_tables(study: Path) -> None:
    about = load_questionnaire(QUESTIONNAIRE)
    rng, turn = np.random.default_rng(8), count()
    # People who prefer custom_diffusion three times in four, and a metric that always does.
    score(
        {
            (method, q.subject, q.prompt_index, q.sample): float(method == "custom_diffusion")
            for q in about.questions
            for method in (q.left_method, q.right_method)
            if not q.gold
        }
    )

    def choose(question: Question) -> str:
        better = next(turn) % 4 != int(rng.integers(4))
        side = "left" if question.left_method == "custom_diffusion" else "right"
        return question.gold or (side if better else {"left": "right", "right": "left"}[side])

    said = everybody(about, 6, choose)
    said += [s._replace(worker="bot", choices=["left"] * len(s.choices)) for s in said[:12]]
    write_amt(Path("results.csv"), said, plain_form)
    read([Path("results.csv")], "toyland")
    analyse("toyland")

    summary = json.loads((FOLDER / "summary.json").read_text())
    real = sum(not q.gold for q in about.questions)
    assert summary["responses"] == summary["answers_on_present_images"] == 6 * real
    assert summary["raters"] == 6
    assert summary["excluded"] == {"checks": len(about.questions)}
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(
        ["summary.json", "tables.json"]
        + [
            f"{name}{suffix}"
            for name in ("preferences", "ranking", "agreement", "raters", "power")
            for suffix in (".csv", ".md")
        ]
    )
    texts = json.loads((FOLDER / "tables.json").read_text())
    assert list(texts) == ["preferences", "ranking", "agreement", "raters", "power"]
    for name, table in texts.items():
        rows = csv_rows(name)
        assert [row[0] for row in table["rows"]] == [row["kind"] for row in rows]
        assert {len(row) for row in table["rows"]} == {len(table["header"])}
    found = csv_rows("preferences")
    assert len(found) == 8
    assert np.mean([float(row["preferred"]) for row in found]) == pytest.approx(75, abs=6)
    for row in found:
        low, high = float(row["preferred_low"]), float(row["preferred_high"])
        assert low < float(row["preferred"]) < high
        assert float(row["preferred_all_raters"]) < float(row["preferred"])
    agreed = {
        r["metric"]: float(r["agreement"]) for r in csv_rows("agreement") if r["kind"] == "text"
    }
    assert agreed["text_alignment"] == pytest.approx(75, abs=6)
    assert all(row["checks"] == "100" for row in csv_rows("raters"))
    before = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    analyse("toyland")
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == before


def test_answers_about_images_that_are_gone_are_not_scored(study: Path) -> None:
    frame = responses(drawn(0.7, 5, 10, np.random.default_rng(9)))
    responses_folder("toyland").mkdir(parents=True)
    frame.to_csv(responses_folder("toyland") / "responses.csv", index=False)
    score({("dreambooth", "cat", p, 0): 1.0 for p in range(10)})
    analyse("toyland")
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert (summary["responses"], summary["answers_on_present_images"]) == (50, 0)
    assert {row["metric"] for row in csv_rows("agreement")} == {"another rater"}


def test_one_rater_has_no_errors(study: Path) -> None:
    frame = responses(drawn(0.7, 1, 10, np.random.default_rng(10)))
    responses_folder("toyland").mkdir(parents=True)
    frame.to_csv(responses_folder("toyland") / "responses.csv", index=False)
    analyse("toyland")
    (row,) = csv_rows("preferences")
    assert row["preferred_se"] == row["preferred_low"] == row["preferred_high"] == ""
    assert row["p"] == ""
    assert csv_rows("power") == []


def test_methods_that_left_the_grid_are_still_compared() -> None:
    frame = responses(drawn(0.7, 5, 10, np.random.default_rng(11)), pair=("gone", "lost"))
    answers = analysed(frame, GRID, STUDY)
    (row,) = rows(preferences(answers, answers, GRID, STUDY))
    assert (row["method"], row["against"]) == ("gone", "lost")
    assert analysed(frame.assign(subject="moongate"), GRID, STUDY).empty
