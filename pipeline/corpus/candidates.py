"""Candidates: the rows of the URL table that may be a concept's images, in the order of choice.

Which of them become images is known once they are fetched: links may be dead, and two of them may
lead to the same image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.errors import BenchError
from pipeline.common.failures import refuse_failed
from pipeline.common.files import atomic
from pipeline.common.places import repro_command_for
from pipeline.settings.profile import Params, RetrieveParams

PARTS = REGULARIZATION, HELD_OUT = "regularization", "held_out"
LEAST_HELD_OUT = 20  # fewer real images say little about a distribution


@dataclass(frozen=True)
class Candidate:
    """A row of the URL table and how near its caption is to the nearest query."""

    similarity: float  # cosine, rounded to four digits
    row: int  # counted from 0
    caption: str
    url: str  # as the table has it


def wanted(params: RetrieveParams) -> dict[str, int]:
    """How many images a concept gets at most, by part."""
    return {REGULARIZATION: params.images, HELD_OUT: params.held_out_images}


def least(params: RetrieveParams) -> dict[str, int]:
    """How many images a concept needs, by part."""
    return {REGULARIZATION: params.images, HELD_OUT: min(LEAST_HELD_OUT, params.held_out_images)}


def candidates_path(params: Params, concept: str) -> Path:
    """Where a concept's candidates lie."""
    return params.runs() / "retrieved" / f"{concept}.parquet"


def save_candidates(path: Path, parts: Mapping[str, Sequence[Candidate]]) -> None:
    """Writes a concept's candidates, by part, each in the order of choice."""
    rows = [{"part": part, **asdict(one)} for part, some in parts.items() for one in some]
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), str(temporary))


def load_candidates(params: Params, concept: str) -> dict[str, list[Candidate]]:
    """What stage `retrieve` found for a concept, by part, each in the order of choice.

    Raises:
        BenchError: it is missing or damaged.
        FailureError: there was too little.
    """
    path = candidates_path(params, concept)
    refuse_failed(path)
    again = f"run `{repro_command_for(path)}`"
    if not path.is_file():
        raise BenchError(f"{path}: the candidates are missing: {again} to make it")
    parts: dict[str, list[Candidate]] = {part: [] for part in PARTS}
    try:
        for row in pq.read_table(str(path)).to_pylist():
            parts[row.pop("part")].append(Candidate(**row))
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise BenchError(f"{path}: cannot be read ({error}): delete it and {again}") from error
    return parts
