"""What people answered, as `bench study analyse` left it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.style import words
from pipeline.common.errors import BenchError

SUMMARY, TABLES = "summary.json", "tables.json"  # in the folder of the results


class StudyTable(NamedTuple):
    """A table for people, and the path of its CSV."""

    path: str
    caption: str
    header: list[str]
    rows: list[list[str]]


class Study(NamedTuple):
    """What `bench study analyse` left."""

    responses: int = 0
    raters: int = 0
    excluded: Mapping[str, int] = {}  # by reason
    tables: Sequence[StudyTable] = ()


def read_outcome(folder: Path) -> Study:
    """What people answered, as `bench study analyse` summed it up; empty if it did not run.

    Raises:
        BenchError: its files are damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return Study()
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        responses = int(summary["responses"])
        texts = json.loads((folder / TABLES).read_text(encoding="utf-8")) if responses else {}
        tables = [
            StudyTable(
                f"study/{name}.csv",
                table["caption"],
                table["header"],
                [[words(cell) for cell in row] for row in table["rows"]],
            )
            for name, table in texts.items()
        ]
        return Study(
            responses,
            int(summary.get("raters", 0)),
            {str(reason): int(count) for reason, count in summary.get("excluded", {}).items()},
            tables,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{folder}: not what `bench study analyse` writes ({error}): run it again"
        ) from error
