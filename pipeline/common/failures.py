"""Failures as results: what stands in place of a result that could not be made of the data.

A training that diverges, or a corpus with too few images of a class, is a finding about one cell
or one concept: the others go on. So `bench ... --record-failure`, as DVC runs the stages, writes
why into the stage's outputs, whatever their format is. Every reader then refuses the file with
that message, a stage that reads it hands it on, and tables show the failure in place of numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import BenchError

# The kinds of failures, as tables show them.
DIVERGED = "diverged"
TOO_FEW_IMAGES = "too few images"
NOT_IMPORTED = "not imported"

INSIDE = "failed.json"  # where the record is if a stage writes a folder
# How a record begins as `pipeline.common.files.write_json` writes it; no result begins so.
_BEGINNING = b'{\n  "failed": '


class Failure(NamedTuple):
    """Why something could not be made."""

    kind: str  # a word or two
    message: str  # a line: what, where, and the way out

    def record(self) -> dict[str, str]:
        """What is written in place of the result, as JSON."""
        return {"failed": self.kind, "message": self.message}


class FailureError(BenchError):
    """Something could not be made of the data as they are; what does not need it can go on."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def failure_of(path: Path) -> Failure | None:
    """What was written in place of a result; None if it is one, or is missing."""
    path = path / INSIDE if path.is_dir() else path
    try:
        with open(path, "rb") as file:
            if file.read(len(_BEGINNING)) != _BEGINNING:
                return None
            content = json.loads(_BEGINNING + file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return Failure(str(content["failed"]), str(content.get("message", "")))


def refuse_failed(path: Path) -> None:
    """Finds out whether a file is a result, before it is read as one.

    Raises:
        FailureError: it holds a failure; with the message that the stage which failed gave.
    """
    if failure := failure_of(path):
        raise FailureError(*failure)


@contextmanager
def about(who: str) -> Iterator[None]:
    """While it lasts, failures say who failed: "<who>: <message>"."""
    try:
        yield
    except FailureError as error:
        kind, message = error.failure
        raise FailureError(kind, f"{who}: {message}") from error
