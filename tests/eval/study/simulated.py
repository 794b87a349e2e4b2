"""A profile with drawn samples, its questionnaire, and people who answer it. For tests only."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.study.questionnaire import Question, Questionnaire
from eval.study.read import COLUMNS
from pipeline.settings.profile import Grid, GridComposition, GridConcept

METHODS = ["pretrained", "dreambooth", "custom_diffusion"]
AMT_HEADER = (
    "HITId HITTypeId Title Description Keywords Reward CreationTime MaxAssignments "
    "RequesterAnnotation AssignmentDurationInSeconds AutoApprovalDelayInSeconds Expiration "
    "NumberOfSimilarHITs LifetimeInSeconds AssignmentId WorkerId AssignmentStatus AcceptTime "
    "SubmitTime AutoApprovalTime ApprovalTime RejectionTime RequesterFeedback WorkTimeInSeconds "
    "LifetimeApprovalRate Last30DaysApprovalRate Last7DaysApprovalRate"
).split()
GRID = Grid(
    concepts={"cat": GridConcept(class_noun="cat"), "chair": GridConcept(class_noun="chair")},
    compositions={"cat+chair": GridComposition(first="cat", second="chair")},
    methods=METHODS,
)


class Said(NamedTuple):
    """What a worker answers to the questions of one block."""

    worker: str
    assignment: str
    questions: Sequence[Question]
    choices: Sequence[str]
    seconds: float = 4.0
    status: str = "Approved"
    submitted: str = "Tue Mar 05 10:20:30 PST 2024"


def attentive(question: Question) -> str:
    """Left, and what is expected of an attention check."""
    return question.gold or "left"


def everybody(
    about: Questionnaire, workers: int, choose: Callable[[Question], str] = attentive
) -> list[Said]:
    """Every worker answers every block."""
    return [
        Said(f"W{w}", f"A{w}-{block}", questions, [choose(q) for q in questions])
        for w in range(workers)
        for block, questions in about.blocks().items()
    ]


def plain_form(i: int, choice: str) -> dict[str, str]:
    """Inputs of plain HTML."""
    return {f"Answer.choice_{i}": choice}


def option_columns(i: int, choice: str) -> dict[str, str]:
    """A column for each option."""
    return {f"Answer.choice_{i}.{side}.on": str(side == choice).lower() for side in SIDES}


def label_column(i: int, choice: str) -> dict[str, str]:
    """As a crowd-classifier writes it."""
    return {f"Answer.choice_{i}.label": choice}


SIDES = ("left", "right")


def write_amt(
    path: Path, said: Iterable[Said], encode: Callable[[int, str], dict[str, str]]
) -> None:
    """A batch result file of AMT, with a column for each answer."""
    _write(
        path,
        [
            _row(s)
            | {k: v for i, c in enumerate(s.choices, 1) for k, v in encode(i, c).items()}
            | {f"Answer.seconds_{i}": str(s.seconds) for i in range(1, len(s.choices) + 1)}
            for s in said
        ],
    )


def write_amt_json(path: Path, said: Iterable[Said], nested: bool = True) -> None:
    """A batch result file of AMT with all answers in one column."""
    rows = []
    for s in said:
        given: dict[str, object] = {}
        for i, choice in enumerate(s.choices, 1):
            options = {side: side == choice for side in SIDES}
            if nested:
                given[f"choice_{i}"] = options
            else:
                given |= {f"choice_{i}.{side}": value for side, value in options.items()}
            given[f"seconds_{i}"] = str(s.seconds)
        rows.append(_row(s) | {"Answer.taskAnswers": json.dumps([given])})
    _write(path, rows)


def write_lab(path: Path, said: Iterable[Said]) -> None:
    """The answers of the lab page."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE answers (rater TEXT, question TEXT, choice TEXT, seconds REAL, "
            "submitted TEXT, PRIMARY KEY (rater, question))"
        )
        connection.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
            [
                (s.worker, q.question, c, s.seconds, "2024-03-05T18:20:30+00:00")
                for s in said
                for q, c in zip(s.questions, s.choices)
            ],
        )
    connection.close()


class Drawn(NamedTuple):
    """Answers as numbers, [n] each."""

    win: np.ndarray  # 1.0 or 0.0
    raters: np.ndarray
    trials: np.ndarray


def drawn(
    p: float,
    raters: int,
    trials: int,
    rng: np.random.Generator,
    rater_effect: float = 0.0,
    trial_effect: float = 0.0,
    answered: float = 1.0,
) -> Drawn:
    """Whether the first method is preferred, which it is with the probability `p`.

    Raters and trials move the log-odds by normal numbers of these standard deviations.
    """
    who, what = (each.ravel() for each in np.meshgrid(np.arange(raters), np.arange(trials)))
    taken = rng.random(len(who)) < answered
    who, what = who[taken], what[taken]
    odds = np.log(p / (1 - p)) + rng.normal(0, 1, raters)[who] * rater_effect
    odds = odds + rng.normal(0, 1, trials)[what] * trial_effect
    return Drawn((rng.random(len(who)) < 1 / (1 + np.exp(-odds))).astype(float), who, what)


def responses(
    answers: Drawn,
    kind: str = "text",
    pair: tuple[str, str] = ("custom_diffusion", "dreambooth"),
    subjects: Sequence[str] = ("cat", "chair"),
) -> pd.DataFrame:
    """The answers as tidy responses; the first method is on the left in every other trial."""
    win, who, what = answers
    names, first_left = np.array(pair), what // len(subjects) % 2 == 0
    return pd.DataFrame(
        {
            "source": "amt",
            "rater": [f"r{i}" for i in who],
            "question": [f"{kind}-{'-'.join(pair)}-{i}" for i in what],
            "kind": kind,
            "subject": np.array(subjects)[what % len(subjects)],
            "prompt_index": what,
            "sample": 0,
            "left_method": names[np.where(first_left, 0, 1)],
            "right_method": names[np.where(first_left, 1, 0)],
            "gold": "",
            "choice": np.where((win == 1) == first_left, "left", "right"),
            "chosen_method": names[np.where(win == 1, 0, 1)],
            "seconds": 3.0,
            "submitted": "2024-03-05T18:20:30Z",
            "assignment": "",
        }
    ).astype(COLUMNS)


def _row(said: Said) -> dict[str, str]:
    row = dict.fromkeys(AMT_HEADER, "x")
    row |= {
        "AssignmentId": said.assignment,
        "WorkerId": said.worker,
        "AssignmentStatus": said.status,
        "SubmitTime": said.submitted,
        "WorkTimeInSeconds": str(round(said.seconds * len(said.questions))),
    }
    row |= {f"Input.question_{i}": q.question for i, q in enumerate(said.questions, 1)}
    return row | {f"Input.prompt_{i}": q.prompt for i, q in enumerate(said.questions, 1)}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    header = [*dict.fromkeys(name for row in rows for name in row), "Approve", "Reject"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, restval="", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
