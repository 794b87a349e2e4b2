"""The file of a cell's scores: one small CSV, one row for each measured value.

Columns: see COLUMNS. A row is either about one image (`prompt_index`, `prompt` and `sample` say
which) or about a set of images (`std_error`, `n` and `clusters` are given: its error, how many
images there are, and of how many captions). The value of a set of too few captions is empty. Else
a row for each caption follows, with the value without its images: it names the caption as
`prompt`, but no `sample`. By these rows two methods are compared pairwise.

Where images are compared with a concept's images, `target` is the number of the subject's concept
that these show, from 1: a row for each image and each concept of a composition. Where they are
ranked by their likeness to an image, `chance` is what a random order has in expectation. If there
are too few look-alikes to rank, there is one row of the set with an empty value, and `clusters` is
how many there are. All tables are made of these rows.

`seed` is that of the training; it is empty where nothing in the method is random.

Each row says how many rows the file has, so that any row tells whether the file was cut off. It
carries its definition: the protocol, the extractor as `<model>@<hash of its weights>`, the scale
(the number that the cosine or the distance is multiplied by) and, where texts are measured, how
they were made of prompts. Rows with other definitions are never put into one table.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.common.places import repro_command_for
from pipeline.concepts.shards import Sample

ORACLE = "oracle"
SCORES = "scores.csv"  # in the record of a cell
COLUMNS: dict[str, str] = {
    "protocol": "string",
    "method": "string",
    "subject": "string",
    "seed": "Int64",
    "metric": "string",
    "target": "Int64",
    "prompt_index": "Int64",
    "prompt": "string",
    "sample": "Int64",
    "value": "float64",
    "std_error": "float64",
    "n": "Int64",
    "clusters": "Int64",
    "chance": "float64",
    "extractor": "string",
    "scale": "float64",
    "text_rule": "string",
    "rows": "Int64",
}
# Of a sequence: the task after which an image was made, and as subject the concept that it was
# asked for; no task if it was asked for the class noun alone, after the last. After the last task
# images are compared with the targets of every concept: `target` is the concept's number in the
# sequence.
SEQUENCE_COLUMNS: dict[str, str] = {"sequence": "string", "task": "Int64", **COLUMNS}


def write_scores(
    folder: Path,
    method: str,
    subject: str,
    seed: int | None,
    protocol: str,
    rows: list[Sample],
    start: float,
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Writes the scores of a cell, or of a sequence, and prints their means.

    Args:
        folder: of the cell or the sequence.
        method: of the cell,
        subject: and what it is about; or the sequence.
        seed: of the training; None if nothing in the method is random.
        protocol: its name.
        rows: with the columns that they have of `columns`; the folder's own are added.
        start: `time.monotonic()` when measuring began.
        columns: COLUMNS, or SEQUENCE_COLUMNS.
    """
    path = folder / SCORES
    frame = pd.DataFrame(rows).reindex(columns=list(columns))
    frame["protocol"], frame["method"], frame[_whose(columns)] = protocol, method, subject
    if "seed" in columns:
        frame["seed"] = seed
    frame["rows"] = len(frame)
    frame = frame.astype(dict(columns))
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
    means = frame[~left_out(frame)].groupby("metric", sort=False)["value"].mean()
    said = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    seconds = time.monotonic() - start
    print(f"scored {method}/{subject}: {said}; {len(frame)} rows in {seconds:.1f} s -> {path}")


def left_out(scores: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are the value of a set without the images of the caption `prompt`."""
    return scores["prompt"].notna() & scores["sample"].isna()


def _whose(columns: Mapping[str, str]) -> str:
    """The column that names the folder: of a sequence, subjects are its concepts."""
    return "sequence" if "sequence" in columns else "subject"


def read_scores(
    path: Path, method: str, subject: str, columns: Mapping[str, str] = COLUMNS
) -> pd.DataFrame:
    """The scores of a training of a cell, with COLUMNS, or of a sequence, with SEQUENCE_COLUMNS.

    Raises:
        BenchError: it is another file, of another cell, cut off or of an earlier version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        frame = pd.read_csv(io.StringIO(text), dtype=dict(columns))
    except (ValueError, OSError):
        frame = pd.DataFrame()
    lacking = [name for name in columns if name not in frame]
    if lacking and not frame.empty and list(frame) == [n for n in columns if n not in lacking]:
        names = ", ".join(f"`{name}`" for name in lacking)
        fault = f"scores of an earlier version, without {names}, so score it again"
    elif list(frame) != list(columns):
        fault = "not a file of scores"
    elif not text.endswith("\n") or not frame["rows"].eq(len(frame)).fillna(False).all():
        fault = "the file was cut off"
    elif frame[["method", _whose(columns)]].drop_duplicates().to_numpy().tolist() != [
        [method, subject]
    ]:
        fault = f"not the scores of {method}/{subject}"
    else:
        return frame
    raise BenchError(f"{path}: {fault}: delete it and run `{repro_command_for(path)}`")
