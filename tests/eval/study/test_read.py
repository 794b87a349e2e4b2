"""Answers from every kind of file become the same table, and nothing is lost without a word."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from eval.study.questionnaire import Question, Questionnaire, load_questionnaire
from eval.study.read import COLUMNS, load_responses, read, read_answers, responses_folder
from pipeline.common.errors import BenchError
from pipeline.settings.study import StudyParams
from tests.eval.study.conftest import QUESTIONNAIRE
from tests.eval.study.simulated import (
    Said,
    attentive,
    everybody,
    label_column,
    option_columns,
    plain_form,
    write_amt,
    write_amt_json,
    write_lab,
)

FILE = Path("Batch_1_batch_results.csv")


@pytest.fixture
def about(study: Path) -> Questionnaire:
    return load_questionnaire(QUESTIONNAIRE)


def picky(question: Question) -> str:
    """Sees through attention checks and prefers custom_diffusion."""
    return question.gold or ("left" if question.left_method == "custom_diffusion" else "right")


def taken(said: Sequence[Said], files: Sequence[Path] = (FILE,)) -> pd.DataFrame:
    """What is kept of answers in plain form."""
    write_amt(FILE, said, plain_form)
    read(files, "toyland")
    return load_responses("toyland").responses


def left_out() -> dict[str, int]:
    counts = pd.read_csv(responses_folder("toyland") / "exclusions.csv")
    return counts.groupby("reason")["count"].sum().to_dict()


def edited(change: Callable[[list[dict[str, str]]], None]) -> None:
    """Rewrites the result file after a change of its rows."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


ENCODINGS: dict[str, Callable[[Path, list[Said]], None]] = {
    "plain": partial(write_amt, encode=plain_form),
    "options": partial(write_amt, encode=option_columns),
    "labels": partial(write_amt, encode=label_column),
    "json": write_amt_json,
    "flat json": partial(write_amt_json, nested=False),
    "lab": write_lab,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_same_answers(about: Questionnaire, encoding: str) -> None:
    ENCODINGS[encoding](FILE, everybody(about, 3, picky))
    read([FILE], "toyland")
    found = load_responses("toyland").responses
    assert list(found) == list(COLUMNS)
    assert len(found) == 3 * len(about.questions)
    assert found["rater"].nunique() == 3
    real = found[found["gold"] == ""]
    assert set(real["chosen_method"]) == {"custom_diffusion"}
    assert set(found.loc[found["gold"] != "", "chosen_method"]) == {"asked for"}
    questions = about.by_name()
    for row in found.head(40).itertuples():
        question = questions[row.question]
        assert row.choice == picky(question)
        assert (row.kind, row.subject, row.prompt_index, row.sample) == (
            question.kind, question.subject, question.prompt_index, question.sample,
        )  # fmt: skip
        assert (row.left_method, row.right_method) == (question.left_method, question.right_method)
    assert set(found["seconds"]) == {4.0}
    assert set(found["submitted"]) == {"2024-03-05T18:20:30Z"}
    assert set(found["source"]) == {"lab" if encoding == "lab" else "amt"}
    assert left_out() == {}


def test_time_is_shared_out_where_the_page_gave_none(about: Questionnaire) -> None:
    write_amt(FILE, everybody(about, 1), plain_form)
    edited(lambda rows: [row.update({"Answer.seconds_1": ""}) for row in rows])
    edited(lambda rows: [row.update({"WorkTimeInSeconds": "70"}) for row in rows])
    read([FILE], "toyland")
    found = load_responses("toyland").responses.set_index("question")["seconds"]
    for questions in about.blocks().values():
        assert found[questions[0].question] == pytest.approx(70 / len(questions))
        assert found[questions[1].question] == 4.0


def test_raters_are_known_by_a_hash_alone(about: Questionnaire) -> None:
    said = [s._replace(worker=f"A1SECRET{s.worker}") for s in everybody(about, 2)]
    said.append(said[0]._replace(status="Rejected", assignment="A9"))
    found = taken(said)
    for path in responses_folder("toyland").iterdir():
        assert "SECRET" not in path.read_text()
    assert found["rater"].str.fullmatch("[0-9a-f]{16}").all()
    before = found["rater"].unique().tolist()
    assert taken(said)["rater"].unique().tolist() == before


def test_workers_cannot_be_found_by_trying_names(about: Questionnaire) -> None:
    """The key is made at the first reading, kept for the next, and missed when it is gone."""
    key = QUESTIONNAIRE.with_name("worker.key")
    said = everybody(about, 3)
    found = set(taken(said)["rater"])
    for worker in ("W0", "W1", "W2"):
        for text in (worker, f"amt:{worker}"):
            assert hashlib.sha256(text.encode()).hexdigest()[:16] not in found
    secret = key.read_bytes()
    assert set(taken(said)["rater"]) == found
    assert key.read_bytes() == secret
    before = (responses_folder("toyland") / "responses.csv").read_bytes()
    key.unlink()
    with pytest.raises(BenchError, match=r"worker\.key: the key is missing .* put it back"):
        taken(said)
    assert (responses_folder("toyland") / "responses.csv").read_bytes() == before
    (responses_folder("toyland") / "responses.csv").unlink()
    assert set(taken(said)["rater"]).isdisjoint(found)


def test_the_lab_page_needs_no_key(about: Questionnaire) -> None:
    write_lab(FILE, everybody(about, 2))
    read([FILE], "toyland")
    assert load_responses("toyland").responses["rater"].str.fullmatch("[0-9a-f]{16}").all()
    assert not QUESTIONNAIRE.with_name("worker.key").exists()


def test_nobody_claims_more_time_than_amazon_measured(about: Questionnaire) -> None:
    """Who presses keys without a look and says that each took four seconds."""
    write_amt(FILE, everybody(about, 2), plain_form)
    edited(lambda rows: [r.update(WorkTimeInSeconds="5") for r in rows if r["WorkerId"] == "W1"])
    read([FILE], "toyland")
    assert left_out() == {"fast": len(about.questions)}
    excluded = load_responses("toyland").excluded
    for questions in about.blocks().values():
        own = excluded["question"].isin([q.question for q in questions])
        assert excluded.loc[own, "seconds"].to_numpy() == pytest.approx(5 / len(questions))


def test_rejected_work_is_dropped(about: Questionnaire) -> None:
    said = everybody(about, 3)
    blocks = about.blocks()
    said[0] = said[0]._replace(status="Rejected")
    write_amt(FILE, said, plain_form)
    # Marked in the file, not yet uploaded.
    edited(lambda rows: rows[1].update({"Reject": "did not read"}))
    read([FILE], "toyland")
    assert left_out() == {"rejected": len(blocks[0]) + len(blocks[1])}
    counts = pd.read_csv(responses_folder("toyland") / "exclusions.csv")
    assert counts["assignment"].tolist() == ["A0-0", "A0-1"]
    assert counts["count"].tolist() == [len(blocks[0]), len(blocks[1])]


def test_of_two_answers_the_earlier_counts(about: Questionnaire) -> None:
    first, *others = everybody(about, 2, picky)
    later = first._replace(
        assignment="A-later",
        choices=["left" if c == "right" else "right" for c in first.choices],
        submitted="Tue Mar 05 11:20:31 PDT 2024",  # a second later, by the clock an hour
    )
    found = taken([later, *others, first])
    assert "A0-0" in set(found["assignment"])
    assert "A-later" not in set(found["assignment"])
    assert left_out() == {"repeated": len(first.questions)}
    # The same file once more changes nothing, except that it is counted.
    again = taken([first, *others], [FILE, FILE])
    assert len(again) == 2 * len(about.questions)
    assert left_out() == {"repeated": 2 * len(about.questions)}


def test_inattentive_raters_are_excluded(about: Questionnaire) -> None:
    good, bad = everybody(about, 1, picky), []
    for said in everybody(about, 2, lambda question: "left"):
        if said.worker == "W1":
            bad.append(said)
    found = taken([*good, *bad])
    assert found["rater"].nunique() == 1
    assert left_out() == {"checks": len(about.questions)}
    excluded = load_responses("toyland").excluded
    assert set(excluded["reason"]) == {"checks"}
    assert len(excluded) == len(about.questions)


def test_the_share_of_checks_is_that_of_each_rater(about: Questionnaire) -> None:
    wrong = next(q for q in about.questions if q.gold)
    said = everybody(about, 1, lambda q: {"left": "right", "right": "left"}[q.gold]
                     if q == wrong else attentive(q))  # fmt: skip
    checks = sum(bool(q.gold) for q in about.questions)
    write_amt(FILE, said, plain_form)
    read([FILE], "toyland", StudyParams(checks_passed=1 - 1 / checks))
    assert left_out() == {}
    read([FILE], "toyland", StudyParams(checks_passed=1))
    assert left_out() == {"checks": len(about.questions)}


def test_raters_who_are_too_fast_are_excluded(about: Questionnaire) -> None:
    said = everybody(about, 2)
    hasty = [s._replace(seconds=0.4) if s.worker == "W1" else s for s in said]
    found = taken(hasty)
    assert found["rater"].nunique() == 1
    assert left_out() == {"fast": len(about.questions)}
    read([FILE], "toyland", StudyParams(minimum_seconds=0.3))
    assert left_out() == {}


def test_unknown_questions_and_missing_choices_are_counted(about: Questionnaire) -> None:
    said = everybody(about, 1)
    write_amt(FILE, said, plain_form)

    def change(rows: list[dict[str, str]]) -> None:
        rows[0]["Input.question_1"] = "=cmd|' /C calc'!A0"
        rows[0]["Answer.choice_2"] = ""
        rows[0]["Answer.choice_3"] = "middle"

    edited(change)
    read([FILE], "toyland")
    assert left_out() == {"unknown": 1, "no choice": 2}
    assert len(load_responses("toyland").responses) == len(about.questions) - 3


def test_both_options_are_no_choice(about: Questionnaire) -> None:
    write_amt(FILE, everybody(about, 1), option_columns)
    both = {f"Answer.choice_1.{side}.on": "true" for side in ("left", "right")}
    edited(lambda rows: rows[0].update(both))
    read([FILE], "toyland")
    assert left_out() == {"no choice": 1}


@pytest.mark.parametrize("sign", "=+-@\t")
def test_formulas_are_not_passed_on(about: Questionnaire, sign: str) -> None:
    formula = f'{sign}HYPERLINK("http://x","click")'
    said = [
        s._replace(assignment=formula + s.assignment, worker=formula + s.worker)
        for s in everybody(about, 2)
    ]
    said.append(said[0]._replace(status="Rejected"))
    taken(said)
    for path in responses_folder("toyland").glob("*.csv"):
        rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
        assert len(rows) > 1 or path.name == "exclusions.csv"
        assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+@\t")]
        assert not [cell for row in rows for cell in row if cell.startswith("-") and cell != "-1"]


def test_several_files_are_read_in_any_order(about: Questionnaire) -> None:
    said = everybody(about, 2)
    paths = [Path("amt.csv"), Path("answers.sqlite"), Path("json.csv")]
    write_amt(paths[0], said, plain_form)
    write_lab(paths[1], said)
    write_amt_json(paths[2], [s._replace(worker=f"X{s.worker}") for s in said])
    read(paths, "toyland")
    before = {p.name: p.read_bytes() for p in responses_folder("toyland").iterdir()}
    # The same name on AMT and in the lab is not the same person.
    assert load_responses("toyland").responses["rater"].nunique() == 6
    read(paths[::-1], "toyland")
    assert {p.name: p.read_bytes() for p in responses_folder("toyland").iterdir()} == before


def test_an_earlier_questionnaire_can_be_named(about: Questionnaire, study: Path) -> None:
    kept = QUESTIONNAIRE.rename(study / "kept")
    write_amt(FILE, everybody(about, 1), plain_form)
    read([FILE], "toyland", questionnaire=kept)
    assert len(load_responses("toyland").responses) == len(about.questions)


def test_a_byte_order_mark_and_empty_lines_do_no_harm(about: Questionnaire) -> None:
    write_amt(FILE, everybody(about, 1), plain_form)
    FILE.write_bytes(b"\xef\xbb\xbf" + FILE.read_bytes() + b"\r\n\r\n")
    read([FILE], "toyland")
    assert left_out() == {}


def without(column: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(f'"{column}"'.encode(), b'"other"')


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "is empty"),
    "UTF-16": (lambda content: content.decode().encode("utf-16"), "not UTF-8"),
    "UTF-16 without a mark": (lambda c: c.decode().encode("utf-16-le"), "UTF-16"),
    "Latin-1": (lambda c: c.replace(b'"x"', '"café"'.encode("latin-1"), 1), r":2: not UTF-8 .*e9"),
    "no worker": (without("WorkerId"), "WorkerId is missing"),
    "no status": (without("AssignmentStatus"), "AssignmentStatus is missing"),
    "other questions": (lambda c: c.replace(b"Input.question_", b"Input.q"), "Input.question_1"),
    "no answers": (lambda c: c.replace(b'"Answer.', b'"Reply.'), "Answer.choice_1 is missing"),
    "semicolons": (lambda c: c.replace(b'"', b"").replace(b",", b";"), "is missing"),
    "twice": (lambda c: c.replace(b'"Title"', b'"WorkerId"'), "'WorkerId' is there twice"),
    "short line": (lambda c: c + b'"a","b"\r\n', "2 cells under"),
    "cut off": (lambda c: c[:-9], "not CSV .*end of data"),
    "status": (lambda c: c.replace(b"Approved", b"Great"), ":2: AssignmentStatus: 'Great'"),
    "time": (lambda c: c.replace(b"PST", b"XYZ"), ":2: SubmitTime"),
    "picture": (lambda c: b"\x89PNG\r\n\x1a\n" + bytes(50), "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_in_one_line(about: Questionnaire, name: str) -> None:
    change, message = BAD[name]
    write_amt(FILE, everybody(about, 2), plain_form)
    FILE.write_bytes(change(FILE.read_bytes()))
    with pytest.raises(BenchError, match=message) as error:
        read([FILE], "toyland")
    assert str(FILE) in str(error.value)
    assert not responses_folder("toyland").exists()


@pytest.mark.parametrize("text", ["[{]", "[" * 100_000])
def test_bad_json_is_told(about: Questionnaire, text: str) -> None:
    write_amt_json(FILE, everybody(about, 1))
    edited(lambda rows: rows[0].update({"Answer.taskAnswers": text}))
    with pytest.raises(BenchError, match=r":2: Answer\.taskAnswers: not JSON"):
        read([FILE], "toyland")


@pytest.mark.parametrize("value", [None, 3, "text", [[1]], {"choice_1": None}, [{"choice_1": {}}]])
def test_json_of_another_shape_has_no_choices(about: Questionnaire, value: object) -> None:
    write_amt_json(FILE, everybody(about, 1)[:1])
    edited(lambda rows: rows[0].update({"Answer.taskAnswers": json.dumps(value)}))
    assert {answer.choice for answer in read_answers(FILE)} == {""}


def test_databases_of_something_else_are_told(about: Questionnaire) -> None:
    with sqlite3.connect(FILE) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(BenchError, match="not answers of the lab page"):
        read([FILE], "toyland")
    FILE.write_bytes(FILE.read_bytes()[:150])
    with pytest.raises(BenchError, match="not answers of the lab page"):
        read([FILE], "toyland")


def test_answers_are_read_while_the_lab_page_runs(about: Questionnaire) -> None:
    write_lab(FILE, [])
    with sqlite3.connect(FILE) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        question = about.questions[0].question
        row = ("r", question, "left", 2.0, "2024-03-05T18:20:30+00:00")
        connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", row)
        connection.commit()  # to the log beside the file, which is left as it was
        assert [answer.question for answer in read_answers(FILE)] == [question]
    connection.close()


def test_answers_to_another_questionnaire_are_told(about: Questionnaire) -> None:
    write_amt(FILE, everybody(about, 1), plain_form)
    edited(lambda rows: [row.update({k: "0" * 16 for k in row if "question" in k}) for row in rows])
    with pytest.raises(BenchError, match="none of .* answers .* --questionnaire"):
        read([FILE], "toyland")


def test_missing_files_are_told(about: Questionnaire) -> None:
    with pytest.raises(BenchError, match="nowhere.csv: cannot be read"):
        read([Path("nowhere.csv")], "toyland")


def test_damaged_responses_are_told(about: Questionnaire) -> None:
    taken(everybody(about, 1))
    path = responses_folder("toyland") / "responses.csv"
    for content in ("", "a,b\n1,2\n", path.read_text().replace(",left,", ",up,")):
        path.write_text(content)
        with pytest.raises(BenchError, match=r"responses\.csv"):
            load_responses("toyland")
