"""The captions of C_reg (paper, section 3.2): some of all in the URL table, at random."""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.common.files import write_json
from pipeline.common.seeds import seed_of
from pipeline.corpus.table import TRAIN, partitions
from pipeline.settings.profile import load_params

SOME = 1000  # captions of each partition that are in memory at once


def choose_captions(profile: str) -> None:
    """Writes the captions of C_reg to `captions.json`, a list in their alphabetical order.

    They are a random choice, without repetition of a row, from the rows of split TRAIN of the
    profile's URL table, by its main seed; the order of the rows does not matter.

    Raises:
        BenchError: the table cannot be used.
    """
    started = time.perf_counter()
    params = load_params(profile)
    path = params.runs() / "captions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".captions.", suffix=".part") as name:
        parts, count = [], 0
        for number, rows in partitions(params):
            captions = sorted(rows.filter(pc.equal(rows["split"], TRAIN))["caption"].to_pylist())
            count += len(captions)
            parts.append(Path(name) / f"{number}.parquet")
            pq.write_table(pa.table({"caption": pa.array(captions, pa.string())}), str(parts[-1]))
        rng = np.random.default_rng(seed_of(params.train.seeds[0], "regularization captions"))
        wanted = min(params.train.regularization_captions, count)
        ranks = np.sort(rng.choice(count, wanted, replace=False))
        merged = heapq.merge(*(_stream(part) for part in parts))
        steps = np.diff(ranks, prepend=-1) - 1  # how many are left out before each
        chosen = [next(islice(merged, int(step), None)) for step in steps]
    write_json(path, chosen)
    seconds = time.perf_counter() - started
    print(f"captions: {len(chosen)} of {count} chosen in {seconds:.0f} s: {path}")


def _stream(path: Path) -> Iterator[str]:
    with pq.ParquetFile(str(path)) as file:
        for batch in file.iter_batches(SOME):
            yield from batch["caption"].to_pylist()
