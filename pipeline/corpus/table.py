"""The URL table: a .parquet or .csv file with the URL and the caption of many images.

It may have more rows than fit into memory: it is read in partitions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.common.errors import BenchError
from pipeline.settings.profile import Params, profile_folder

SPLITS = TRAIN, HELD_OUT = "train", "held_out"
PARTITION = 100_000  # rows of the table
SOME = 10_000  # rows that are read at once
QUOTED = pyarrow.csv.ParseOptions(newlines_in_values=True)  # captions have lines


def split_of(url: str) -> str:
    """The split of an image if the table does not say: one URL in four is held out."""
    return HELD_OUT if int(hashlib.sha256(url.encode()).hexdigest()[:8], 16) % 4 == 0 else TRAIN


def partitions(params: Params, start: int = 0) -> Iterator[tuple[int, pa.Table]]:
    """The rows of the profile's URL table, PARTITION of them at a time.

    Args:
        params: of the profile, whose section `corpus` names the table and its columns.
        start: the number of the first partition that is wanted.

    Yields:
        The number of a partition and its rows in their order, less those without URL or caption:
        `row` (int64, counted from 0 in the whole table), `url`, `caption` and `split` (TRAIN or
        HELD_OUT; see `split_of`).

    Raises:
        BenchError: the table or one of its columns is missing, it cannot be read, or it has no
            rows or an unknown split.
    """
    path = Path(params.corpus.url_table)
    first = start * PARTITION
    empty = True
    try:
        for row, rows in _cut(_batches(path, first, _columns(path, params)), first):
            empty = False
            yield row // PARTITION, _named(rows, row, path, params)
    except pa.ArrowException as error:
        raise BenchError(f"{path}: not a .parquet or .csv file: {str(error)[:120]}") from error
    if empty and not start:
        raise BenchError(f"{path}: the URL table is empty")


def _columns(path: Path, params: Params) -> list[str]:
    """The columns of the table that are read.

    Raises:
        BenchError: one, or the table, is missing.
    """
    wanted = {"url": params.corpus.url_column, "caption": params.corpus.caption_column}
    settings = profile_folder(params.profile) / "params.yaml"
    if not path.is_file():
        raise BenchError(
            f"{path}: the URL table is missing: put a .parquet or .csv file with the columns "
            f"{', '.join(wanted.values())} there, or name another in {settings}, corpus.url_table"
        )
    if _is_csv(path):
        with pyarrow.csv.open_csv(str(path), parse_options=QUOTED) as reader:
            there = reader.schema.names
    else:
        there = pq.read_schema(str(path)).names
    for name, column in wanted.items():
        if column not in there:
            raise BenchError(
                f"{settings}: corpus.{name}_column: {path} has no column {column!r}: choose one "
                f"of {', '.join(there)}"
            )
    return [*wanted.values(), *(["split"] if "split" in there else [])]


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _batches(path: Path, first: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The number of its first row, and some rows; from row `first` on, or somewhat before it."""
    row = 0
    if _is_csv(path):
        options = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=columns
        )
        with pyarrow.csv.open_csv(
            str(path), parse_options=QUOTED, convert_options=options
        ) as reader:
            for batch in reader:
                yield row, batch
                row += batch.num_rows
        return
    with pq.ParquetFile(str(path)) as file:
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(counts)
        groups = [i for i, end in enumerate(ends) if end > first]
        if not groups:
            return
        row = int(ends[groups[0]]) - counts[groups[0]]
        for batch in file.iter_batches(SOME, groups, columns):
            yield row, batch
            row += batch.num_rows


def _cut(
    batches: Iterator[tuple[int, pa.RecordBatch]], first: int
) -> Iterator[tuple[int, pa.Table]]:
    """The rows from `first` on, as tables of PARTITION rows; the last one may have fewer."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for row, batch in batches:
        batch = batch.slice(max(first + count - row, 0))
        while batch.num_rows:
            some = batch.slice(0, PARTITION - count)
            batch = batch.slice(some.num_rows)
            waiting.append(some)
            count += some.num_rows
            if count == PARTITION:
                yield first, pa.Table.from_batches(waiting)
                first, waiting, count = first + PARTITION, [], 0
    if waiting:
        yield first, pa.Table.from_batches(waiting)


def _named(rows: pa.Table, first: int, path: Path, params: Params) -> pa.Table:
    """These rows as `partitions` gives them; `first` is the number of the first one."""
    table = pa.table(
        {
            "row": pa.array(range(first, first + rows.num_rows), pa.int64()),
            "url": rows[params.corpus.url_column].cast(pa.string()),
            "caption": rows[params.corpus.caption_column].cast(pa.string()),
        }
    )
    if "split" in rows.column_names:
        splits = rows["split"].cast(pa.string())
        unknown = [value for value in pc.unique(splits).to_pylist() if value not in SPLITS]
        if unknown:
            raise BenchError(
                f"{path}: column split: {unknown[0]!r} is unknown: write {TRAIN} or {HELD_OUT}"
            )
    else:
        splits = pa.array((split_of(url or "") for url in table["url"].to_pylist()), pa.string())
    table = table.append_column("split", splits)
    some = pc.and_(*(pc.fill_null(pc.not_equal(table[c], ""), False) for c in ("url", "caption")))
    return table.filter(some)
