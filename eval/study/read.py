"""Answers as one tidy table: results of Amazon Mechanical Turk, and answers of the lab page.

Results of AMT come in three encodings, as the page's elements and the way of exporting decide:

    Answer.choice_1 = left                        inputs of plain HTML
    Answer.choice_1.left.on = true                a column for each option; or .left, or .label
    Answer.taskAnswers = [{"choice_1": ...}]      all in JSON, options nested or flat

Who answered is known by a hash alone, workers of AMT by one that needs a key (`private`). What is
left out is counted and listed with the reason: nothing disappears.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from itertools import filterfalse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd

from eval.study.build import questionnaire_folder
from eval.study.private import KEY, hashed_worker, worker_key
from eval.study.questionnaire import (
    SIDES,
    Question,
    Questionnaire,
    load_questionnaire,
    plain,
)
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.concepts.concept import DATASETS
from pipeline.settings.profile import load_params
from pipeline.settings.study import StudyParams

COLUMNS: dict[str, str] = {
    "source": "string",  # amt or lab
    "rater": "string",  # a hash
    "question": "string",
    "kind": "string",
    "subject": "string",
    "prompt_index": "Int64",
    "sample": "Int64",
    "left_method": "string",
    "right_method": "string",
    "gold": "string",  # the answer that an attention check expects
    "choice": "string",  # left or right
    "chosen_method": "string",
    "seconds": "float64",
    "submitted": "string",  # in UTC
    "assignment": "string",  # AMT's
}
EXCLUDED: dict[str, str] = {"reason": "string", **COLUMNS}
REASONS = {
    "rejected": "the work was rejected",
    "unknown": "not a question of this questionnaire",
    "no choice": "neither left nor right",
    "repeated": "the same rater and question as before",
    "checks": "the rater failed attention checks",
    "fast": "the rater was too fast",
}

_AMT_COLUMNS = ("AssignmentId", "WorkerId", "AssignmentStatus", "SubmitTime", "WorkTimeInSeconds")
_STATUSES = {"submitted", "approved", "rejected"}
# AMT says when in Pacific time and in words: Tue Mar 05 10:20:30 PST 2024
_ZONES = {"PST": -8, "PDT": -7, "UTC": 0, "GMT": 0}


class Answer(NamedTuple):
    """One answer as it was given."""

    source: str
    rater: str  # as the file has it
    question: str
    choice: str  # empty if it is neither left nor right
    seconds: float  # NaN if not known
    submitted: str
    assignment: str
    rejected: bool


class Sifted(NamedTuple):
    """Answers to use, and the others with a reason each."""

    responses: pd.DataFrame  # COLUMNS
    excluded: pd.DataFrame  # EXCLUDED


def responses_folder(profile: str) -> Path:
    """Where the answers to a profile's questionnaire lie."""
    return DATASETS / "responses" / profile


def read(
    files: Sequence[Path],
    profile: str,
    study: StudyParams | None = None,
    questionnaire: Path | None = None,
) -> None:
    """Writes responses.csv, excluded.csv and exclusions.csv of all files together.

    Args:
        files: batch results of AMT as CSV, answers.sqlite of the lab page, in any number.
        profile: the name of a profile.
        study: `minimum_seconds` and `checks_passed` say whom to exclude; the profile's if none.
        questionnaire: the folder of the one that was answered; the profile's if not given.

    Raises:
        BenchError: a file cannot be read as what it is, or has no answer to this questionnaire; or
            the key is missing by which workers were hashed.
    """
    params = load_params(profile)
    study = study or params.study
    asked = questionnaire or questionnaire_folder(params)
    about = load_questionnaire(asked)
    answers = [answer for file in files for answer in read_answers(file)]
    if not set(about.by_name()) & {answer.question for answer in answers}:
        raise BenchError(
            f"{', '.join(map(str, files))}: none of {len(answers)} answers is to a question of "
            f"{asked}: name the questionnaire that was answered with --questionnaire"
        )
    folder = responses_folder(profile)
    key_file = questionnaire_folder(params).with_name(KEY)
    answers = _hashed(answers, key_file, folder / "responses.csv")
    responses, excluded = sift(answers, about, study)
    counts = exclusions(excluded)
    for name, frame in (
        ("responses", responses),
        ("excluded", excluded),
        ("exclusions", counts),
    ):
        with atomic(folder / f"{name}.csv") as temporary:
            _safe(frame).to_csv(temporary, index=False, lineterminator="\n")
    print(
        f"read {len(answers)} answers: {len(responses)} of {responses['rater'].nunique()} raters "
        f"-> {folder / 'responses.csv'}"
    )
    for reason, said in REASONS.items():
        if count := int((excluded["reason"] == reason).sum()):
            raters = excluded.loc[excluded["reason"] == reason, "rater"].nunique()
            print(f"left out {count} of {raters} raters: {said}")


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file, in its order, with raters by the names that they have there.

    Raises:
        BenchError: it is missing, or neither results of AMT nor answers of the lab page.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from None
    if content.startswith(b"SQLite format 3\x00"):
        return list(_lab_answers(path))
    return list(_amt_answers(path, content))


def sift(answers: Sequence[Answer], about: Questionnaire, study: StudyParams) -> Sifted:
    """Separates the answers to use from the others, each of which gets the first reason that fits.

    A rater is excluded who passed less than `study.checks_passed` of the attention checks that he
    or she answered, or whose median time is below `study.minimum_seconds`.

    Args:
        answers: of two by one rater to one question the earlier is kept, or the first of these.
        about: says which questions there are.
        study: the thresholds.
    """
    questions = about.by_name()
    rows = [
        {"reason": _reason(a, questions), **_row(a, questions.get(a.question))} for a in answers
    ]
    frame = pd.DataFrame(rows, columns=list(EXCLUDED)).astype(EXCLUDED)
    frame = frame.sort_values(["submitted", "source", "rater", "question"], kind="stable")
    usable = frame["reason"] == ""
    again = frame[usable].duplicated(["rater", "question"])
    frame.loc[again.index[again], "reason"] = "repeated"

    usable = frame["reason"] == ""
    checks = frame[usable & (frame["gold"] != "")]
    passed = (checks["choice"] == checks["gold"]).astype(float).groupby(checks["rater"]).mean()
    median = frame[usable].groupby("rater")["seconds"].median()
    for reason, raters in (
        ("checks", passed.index[passed < study.checks_passed]),
        ("fast", median.index[median < study.minimum_seconds]),
    ):
        frame.loc[(frame["reason"] == "") & frame["rater"].isin(raters), "reason"] = reason
    kept = frame["reason"] == ""
    return Sifted(
        frame.loc[kept, list(COLUMNS)].reset_index(drop=True),
        frame[~kept].reset_index(drop=True),
    )


def exclusions(excluded: pd.DataFrame) -> pd.DataFrame:
    """How many answers of each rater and assignment were left out for each reason."""
    by = ["reason", "source", "rater", "assignment"]
    counts = excluded.groupby(by, as_index=False).size().rename(columns={"size": "count"})
    order = counts["reason"].map({reason: i for i, reason in enumerate(REASONS)})
    return counts.assign(order=order).sort_values(["order", *by[1:]]).drop(columns="order")


def load_responses(profile: str) -> Sifted:
    """The answers that were read for a profile; empty tables if there are none.

    Raises:
        BenchError: a file is damaged.
    """
    folder = responses_folder(profile)
    return Sifted(
        _load(folder / "responses.csv", COLUMNS), _load(folder / "excluded.csv", EXCLUDED)
    )


def _load(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    try:
        frame = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values={"seconds": ""})
        if list(frame.columns) == list(columns) and frame["choice"].isin(["", *SIDES]).all():
            return frame
    except (ValueError, OSError):
        pass
    raise BenchError(f"{path}: not a file of responses: make it with `bench study read`")


def _safe(frame: pd.DataFrame) -> pd.DataFrame:
    """The same with texts that no spreadsheet runs."""
    texts: list[str] = frame.select_dtypes("string").columns.tolist()
    return frame.assign(**{name: frame[name].map(plain, na_action="ignore") for name in texts})


def _reason(answer: Answer, questions: Mapping[str, Question]) -> str:
    if answer.rejected:
        return "rejected"
    if answer.question not in questions:
        return "unknown"
    return "" if answer.choice else "no choice"


def _row(answer: Answer, question: Question | None) -> dict[str, Any]:
    """An answer as a row; of a question that is not known nothing is passed on."""
    row = {k: v for k, v in answer._asdict().items() if k in COLUMNS}
    if question is None:
        empty = ("question", "kind", "subject", "left_method", "right_method", "gold")
        return {**row, **dict.fromkeys((*empty, "chosen_method"), "")}
    row |= {k: v for k, v in vars(question).items() if k in COLUMNS}
    chosen = {"": "", "left": question.left_method, "right": question.right_method}
    return {**row, "chosen_method": chosen[answer.choice]}


def _hashed(answers: Sequence[Answer], key_file: Path, before: Path) -> list[Answer]:
    """The answers with raters by their hashes.

    Workers of AMT have short names, which somebody could try one by one: theirs needs a key. Raters
    of the lab page are hashes of random codes already.
    """
    amt = any(answer.source == "amt" for answer in answers)
    key = worker_key(key_file, before) if amt else b""

    @cache
    def name(source: str, rater: str) -> str:
        if source == "amt":
            return hashed_worker(rater, key)
        return hashlib.sha256(f"{source}:{rater}".encode()).hexdigest()[:16]

    return [answer._replace(rater=name(answer.source, answer.rater)) for answer in answers]


def _lab_answers(path: Path) -> Iterator[Answer]:
    query = "SELECT rater, question, choice, seconds, submitted FROM answers ORDER BY rowid"
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            rows = connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise BenchError(f"{path}: not answers of the lab page ({error})") from None
    for i, (rater, question, choice, seconds, submitted) in enumerate(rows, 1):
        when = _time(str(submitted), f"{path}: answer {i}: submitted")
        side = choice if choice in SIDES else ""
        yield Answer("lab", str(rater), str(question), side, _seconds(seconds), when, "", False)


def _amt_answers(path: Path, content: bytes) -> Iterator[Answer]:
    rows = _csv_rows(path, content)
    header = next(rows)[1]
    missing = [name for name in _AMT_COLUMNS if name not in header]
    slots = [m[1] for name in header if (m := re.fullmatch(r"Input\.question_(\d+)", name))]
    missing += [] if slots else ["Input.question_1"]
    missing += [] if any(name.startswith("Answer.") for name in header) else ["Answer.choice_1"]
    if missing:
        raise BenchError(
            f"{path}: not results of AMT for this questionnaire: column {missing[0]} is missing "
            f"(has {', '.join(header)[:80]})"
        )
    for line, cells in rows:
        row = dict(zip(header, cells))
        where = f"{path}:{line}"
        status = row["AssignmentStatus"].strip().lower()
        if status not in _STATUSES:
            raise BenchError(
                f"{where}: AssignmentStatus: {row['AssignmentStatus'][:40]!r} is none of "
                "Submitted, Approved and Rejected"
            )
        rejected = status == "rejected" or bool(row.get("Reject", "").strip())
        when = _time(row["SubmitTime"], f"{where}: SubmitTime")
        given = _given(row, where)
        asked = {i: row[f"Input.question_{i}"] for i in slots if row[f"Input.question_{i}"]}
        work = _seconds(row["WorkTimeInSeconds"])
        share = work / max(len(asked), 1)
        said = {i: _seconds(given.get(f"seconds_{i}")) for i in asked}
        # The page says how long each took, and Amazon all of it, in whole seconds: who claims more
        # did not say the truth.
        if sum(filterfalse(math.isnan, said.values())) > work + 1:
            said = dict.fromkeys(said, math.nan)
        for i, question in asked.items():
            seconds = said[i]
            yield Answer(
                "amt",
                row["WorkerId"],
                question,
                _choice(given, f"choice_{i}"),
                share if math.isnan(seconds) else seconds,
                when,
                row["AssignmentId"],
                rejected,
            )


def _csv_rows(path: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV with their line numbers, the header first; all equally long."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BenchError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}): save it as CSV in UTF-8"
        ) from None
    if "\0" in text:
        raise BenchError(f"{path}: not UTF-8 but perhaps UTF-16: save it as CSV in UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in filter(None, reader):
            if header is None:
                header = cells
                if repeated := {name for name in cells if cells.count(name) > 1}:
                    raise BenchError(f"{path}: column {min(repeated)!r} is there twice")
            if len(cells) != len(header):
                raise BenchError(
                    f"{path}:{reader.line_num}: {len(cells)} cells under {len(header)} columns"
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise BenchError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    if header is None:
        raise BenchError(f"{path}: is empty")


def _given(row: Mapping[str, str], where: str) -> dict[str, str]:
    """What the page's inputs hold, by names with dots, whatever the encoding."""
    given: dict[str, str] = {}
    for column, value in row.items():
        name = column.removeprefix("Answer.")
        if name == "taskAnswers" and value.strip():
            try:
                given |= dict(_flat("", json.loads(value)))
            except (ValueError, RecursionError):
                raise BenchError(f"{where}: Answer.taskAnswers: not JSON") from None
        elif name != column:
            given[name] = value
    return given


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested objects as names with dots; the objects of a list as one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _flat(name, inner)
    else:
        yield name, json.dumps(value) if isinstance(value, bool) else str(value)


def _choice(given: Mapping[str, str], name: str) -> str:
    """The side that was chosen; empty if none was, or both."""
    said = {given.get(name, ""), given.get(f"{name}.label", "")}
    for side in SIDES:
        options = (given.get(f"{name}.{side}", ""), given.get(f"{name}.{side}.on", ""))
        said |= {side for option in options if option.strip().lower() == "true"}
    chosen = {text.strip().lower() for text in said} & set(SIDES)
    return chosen.pop() if len(chosen) == 1 else ""


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        return math.nan
    return seconds if 0 <= seconds < math.inf else math.nan


def _time(text: str, where: str) -> str:
    """When it was, in UTC."""
    words = text.split()
    try:
        if len(words) == 6:
            zone = timezone(timedelta(hours=_ZONES[words.pop(4)]))
            when = datetime.strptime(" ".join(words), "%a %b %d %H:%M:%S %Y").replace(tzinfo=zone)
        else:
            when = datetime.fromisoformat(text.strip())
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, KeyError):
        raise BenchError(
            f"{where}: {text[:40]!r} is not a time such as 'Tue Mar 05 10:20:30 PST 2024' or "
            "'2024-03-05T18:20:30Z'"
        ) from None
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
