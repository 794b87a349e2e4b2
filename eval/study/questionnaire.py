"""The questionnaire: a folder that holds the questions, their images, and what is asked of raters.

    questionnaire.json   title, profile, protocol, seed, kinds, block, minimum_seconds, sha256
    questions.csv        one row for each question: see COLUMNS; `sha256` is that of this file
    images/<id>.png      named by what they show, so that a name does not betray the method
    amt_upload.csv       one row for each HIT, and
    amt.html             the page that Amazon Mechanical Turk fills in with it

A question is two images side by side, one of which has to be chosen (Custom Diffusion, section
4.3). Its name is a hash of what it shows and on which sides: an answer keeps its meaning however
often the questionnaire is built.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, sha256, write_json

Kind = Literal["text", "image"]
Side = Literal["left", "right"]
Gold = Literal["", "left", "right"]
Name = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
ImageName = Annotated[str, Field(pattern=r"^[0-9a-f]{16}\.png$")]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDES: tuple[Side, ...] = get_args(Side)

# What raters are asked, in the words of the paper.
ASKED: dict[Kind, str] = {
    "text": "Which image is more consistent with the text?",
    "image": "Which image better represents the objects shown in the target images?",
}
# The "methods" of an attention check, and the number of its prompt and sample.
RIGHT, WRONG, NO_PROMPT = "asked for", "another", -1


@dataclass(frozen=True)
class Question:
    """Two images of which one has to be chosen. The fields are the columns of `questions.csv`."""

    question: Name
    block: int  # the page set (AMT: the HIT) that it belongs to
    position: int  # in its block, from 0
    kind: Kind
    subject: str
    prompt_index: int  # NO_PROMPT for attention checks, as `sample`
    sample: int
    prompt: str  # as scored, without modifier tokens; shown for kind "text"
    left_method: str
    right_method: str
    left_image: ImageName  # in images/
    right_image: ImageName
    targets: tuple[ImageName, ...]  # shown for kind "image", of all concepts of the subject
    gold: Gold  # the answer that an attention check expects

    def images(self) -> tuple[str, ...]:
        """Every file that its page shows."""
        return (self.left_image, self.right_image, *self.targets)


COLUMNS = tuple(field.name for field in fields(Question))
_PLACE = {"question", "block", "position"}
_QUESTION = TypeAdapter(Question)


@dataclass(frozen=True)
class Questionnaire:
    """A questionnaire that was read and checked, or one to be written."""

    title: str
    profile: str
    protocol: str
    seed: int
    kinds: tuple[Kind, ...]
    block: int  # questions in a block, at most
    minimum_seconds: float
    questions: tuple[Question, ...]  # in the order of blocks and positions
    sha256: str = ""  # of questions.csv

    def blocks(self) -> dict[int, tuple[Question, ...]]:
        """The questions of each block, in the order in which they are asked."""
        found: dict[int, list[Question]] = {}
        for question in self.questions:
            found.setdefault(question.block, []).append(question)
        return {block: tuple(questions) for block, questions in found.items()}

    def by_name(self) -> dict[str, Question]:
        """The questions by their names."""
        return {question.question: question for question in self.questions}


def named(question: Question) -> Question:
    """The question with its name: a hash of all about it but its place."""
    values = {**vars(question), "targets": " ".join(question.targets)}
    texts = [f"{name}={values[name]}" for name in COLUMNS if name not in _PLACE]
    digest = hashlib.sha256("\x1f".join(texts).encode()).hexdigest()
    return replace(question, question=digest[:16])


def method_pairs(methods: Sequence[str], references: Collection[str]) -> list[tuple[str, str]]:
    """The pairs of methods that are compared: those with a reference, which comes first."""
    pairs = [pair for pair in combinations(methods, 2) if set(pair) & set(references)]
    return [pair if pair[0] in references else (pair[1], pair[0]) for pair in pairs]


def image_name_of(png: bytes) -> str:
    """The file name of an image."""
    return f"{hashlib.sha256(png).hexdigest()[:16]}.png"


def write_questionnaire(
    folder: Path, questionnaire: Questionnaire, images: dict[str, bytes]
) -> Questionnaire:
    """Writes questionnaire.json, questions.csv and images/ into a folder.

    Args:
        folder: is made if it is not there.
        questionnaire: its `sha256` is computed.
        images: PNG files by their names; those that no question shows are left out.

    Returns:
        The questionnaire as `load_questionnaire` would give it.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in sorted({name for q in questionnaire.questions for name in q.images()}):
        (folder / "images" / name).write_bytes(images[name])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for question in questionnaire.questions:
        values = {**vars(question), "targets": " ".join(question.targets)}
        writer.writerow(plain(str(values[name])) for name in COLUMNS)
    path = folder / "questions.csv"
    with atomic(path) as temporary:
        temporary.write_text(out.getvalue(), encoding="utf-8")
    about = {**vars(questionnaire), "sha256": sha256(path)}
    del about["questions"]
    write_json(folder / "questionnaire.json", about)
    return Questionnaire(**{**vars(questionnaire), "sha256": about["sha256"]})


def load_questionnaire(folder: Path) -> Questionnaire:
    """The questionnaire in a folder.

    Raises:
        BenchError: a file is missing, was changed or is damaged; names it.
    """
    path, table = folder / "questionnaire.json", folder / "questions.csv"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        content = table.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BenchError(
            f"{error.filename}: there is no questionnaire: run `bench study build` to make one"
        ) from None
    except ValueError as error:
        raise BenchError(f"{path}: damaged ({error}): run `bench study build` again") from None
    if not isinstance(about, dict) or about.get("sha256") != sha256(table):
        raise BenchError(f"{table}: was changed since it was built: run `bench study build` again")
    rows = csv.DictReader(io.StringIO(content, newline=""))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise BenchError(f"{table}: needs the columns {', '.join(COLUMNS)}: build it again")
    questions = tuple(_question(row, f"{table}:{i}") for i, row in enumerate(rows, 2))
    for name in sorted({name for question in questions for name in question.images()}):
        image = folder / "images" / name
        if not image.is_file() or image_name_of(image.read_bytes()) != name:
            raise BenchError(f"{image}: missing or damaged: run `bench study build` again")
    try:
        return TypeAdapter(Questionnaire).validate_python({**about, "questions": questions})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BenchError(f"{path}: {field}: {first['msg'].lower()}: build it again") from None


def _question(row: dict[str, Any], where: str) -> Question:
    values = {name: unplain(value) for name, value in row.items() if isinstance(value, str)}
    try:
        return _QUESTION.validate_python({**values, "targets": values.get("targets", "").split()})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BenchError(f"{where}: {field}: {first['msg'].lower()}: build it again") from None


# What makes a spreadsheet take the text of a cell for a formula.
_FORMULA = re.compile(r"[=+\-@\t\r\n]")


def plain(text: str) -> str:
    """The text as a cell that no spreadsheet runs: an apostrophe before what may be a formula."""
    risky = _FORMULA.match(text.lstrip("'")) and not re.fullmatch(r"-?[0-9.]+", text)
    return f"'{text}" if risky else text


def unplain(cell: str) -> str:
    """The text of which `plain` made the cell."""
    return cell[1:] if cell.startswith("'") and plain(cell[1:]) == cell else cell
