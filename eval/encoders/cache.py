"""The cache of features, so that each image is encoded once for each extractor."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.common.errors import BenchError

CACHE = Path(".cache") / "features"
Features = npt.NDArray[np.float32]
T = TypeVar("T")


class FeatureCache:
    """Rows of features by their image's SHA-256, in one file that several processes may use.

    A damaged file is made anew, and a damaged row counts as missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Features]:
        """The rows that are there."""

        def select(database: sqlite3.Connection) -> list[tuple[bytes, bytes, int]]:
            found = []
            for part in portions(sorted(keys), 999):  # as many as any SQLite takes
                places = ",".join("?" * len(part))
                query = f"SELECT image, row, checksum FROM features WHERE image IN ({places})"
                found += database.execute(query, part).fetchall()
            return found

        return {
            key: np.frombuffer(row, np.float32)
            for key, row, checksum in self._do(select)
            if zlib.crc32(row) == checksum
        }

    def write(self, rows: dict[bytes, Features]) -> None:
        """Adds rows; what another process has added meanwhile is the same."""
        blobs = [(key, row.astype(np.float32).tobytes()) for key, row in rows.items()]
        values = [(key, blob, zlib.crc32(blob)) for key, blob in blobs]
        self._do(
            lambda database: database.executemany(
                "INSERT OR REPLACE INTO features VALUES (?, ?, ?)", values
            )
        )

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._attempt(work)
            except sqlite3.OperationalError:
                raise  # locked, read-only or no space: the file is not at fault
            except sqlite3.DatabaseError:
                for suffix in ("", "-journal"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                return self._attempt(work)
        except (sqlite3.Error, OSError) as error:
            raise BenchError(f"{self.path}: cannot be used: {error}: free or delete it") from error

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        waiting = 60.0  # seconds, for another process to write
        with closing(sqlite3.connect(self.path, timeout=waiting)) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS features "
                "(image BLOB PRIMARY KEY, row BLOB NOT NULL, checksum INTEGER NOT NULL) "
                "WITHOUT ROWID"
            )
            return work(database)


def portions(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in pieces of `size`, the last one of what is left."""
    return (items[i : i + size] for i in range(0, len(items), size))
