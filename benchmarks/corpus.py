"""How fast a large URL table is indexed and searched, and in how much memory.

`python -m benchmarks.corpus --rows 10000000 [--json FILE]` makes a table of that many different
captions, and runs on it what stages `index`, `captions` and `retrieve` run, each in a process of
its own, so that peak memory is that of the stage. CLIP is left out: in its place unit vectors are
drawn from a hash of the caption, so that what is measured is all the rest: reading, writing,
building the index, comparing. What CLIP costs is added by `--clip FOLDER`, which times it alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
WIDTH = 64  # of the vectors
ROW_GROUP = 50_000
NOUNS = ("cat", "dog", "barn", "chair", "clock", "pot", "tree", "car", "boat", "lamp")
NEAR = 1000  # one caption in so many is near its noun


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--clip", help="also time this CLIP, on 2000 different captions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name), arguments.rows)
    if arguments.clip:
        results["clip"] = run(clip_speed, arguments.clip)
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds, rows per second and peak memory of each stage on a table of so many rows."""
    shutil.copytree(ROOT / "datasets" / "protocols", folder / "datasets" / "protocols")
    for name in ("params.yaml", "grid.yaml"):
        shutil.copy(ROOT / name, folder)
    with chdir(folder):
        run(write_table, rows)
        results: dict[str, Any] = {"rows": rows, "width": WIDTH}
        for stage in (index, captions, retrieve):
            results[stage.__name__] = run(stage, rows)
    return results


def run(stage: Callable[[Any], dict[str, Any]], argument: Any) -> dict[str, Any]:
    """What a function returns that runs in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(stage, (argument,))


def timed(work: Callable[[], Any], rows: int) -> dict[str, Any]:
    """Seconds of some work, rows per second, and the peak memory of this process.

    Memory includes what importing takes; `imported` is how much that was.
    """
    imported = peak()
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "rows_per_second": round(rows / wall),
        "rows_per_cpu_second": round(rows / cpu),
        "peak_mb": peak(),
        "imported_mb": imported,
        "found": found,
    }


def peak() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def write_table(rows: int) -> dict[str, Any]:
    """Writes captions that all differ, of ten nouns; one in NEAR is made of a noun alone."""
    from pipeline.settings.profile import load_params

    path = Path(load_params().corpus.url_table)
    path.parent.mkdir(parents=True)
    schema = pa.schema({"url": pa.string(), "caption": pa.string()})
    with pq.ParquetWriter(str(path), schema) as writer:
        for start in range(0, rows, ROW_GROUP):
            numbers = range(start, min(start + ROW_GROUP, rows))
            urls = [f"https://host-{i % 997}.example/{i}.jpg" for i in numbers]
            writer.write_table(pa.table({"url": urls, "caption": [caption(i) for i in numbers]}))
    return {}


def caption(number: int) -> str:
    """A caption of some sixty characters, as those of the web have."""
    noun = NOUNS[number % len(NOUNS)]
    if number % NEAR < len(NOUNS):
        return f"{noun} {number}"
    return f"a {noun} beside something else, seen from somewhere, number {number}"


def embed(texts: list[str]) -> npt.NDArray[np.float32]:
    """Unit vectors: of a caption that begins with a noun near that noun, of others random."""
    vectors = np.empty((len(texts), WIDTH), np.float32)
    for row, text in enumerate(texts):
        first, _, _ = text.partition(" ")
        own = _random(text)
        vectors[row] = _random(first) + 0.4 * own if first in NOUNS else own
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _random(text: str) -> npt.NDArray[np.float32]:
    """A random unit vector, by the hash of a text."""
    hashed = np.uint64(zlib.crc32(text.encode()) + 1) * _STEPS  # wraps, as it should
    centred = ((hashed >> np.uint64(40)).astype(np.float32) / 2**24) - np.float32(0.5)
    return centred / np.linalg.norm(centred)


_STEPS = np.random.default_rng(0).integers(1, 2**63, WIDTH, np.uint64) | np.uint64(1)


def index(rows: int) -> dict[str, Any]:
    """Stage `index`, without CLIP."""
    import pipeline.corpus.index as stage
    from pipeline.settings.profile import load_params

    embed(["some"])
    params = load_params()

    def work() -> int:
        return stage.embed_table(params, embed, params.runs() / "index")[0]

    return timed(work, rows) | {"embedding_in_place_of_clip_seconds": _alone(rows)}


def _alone(rows: int) -> float:
    """CPU seconds of what stands in for CLIP alone, extrapolated from some rows."""
    some = [caption(i) for i in range(20_000)]
    start = time.process_time()
    embed(some)
    return round((time.process_time() - start) * rows / len(some), 1)


def captions(rows: int) -> dict[str, Any]:
    """Stage `captions`."""
    from pipeline.corpus.captions import choose_captions

    return timed(lambda: choose_captions("toyland"), rows)


def retrieve(rows: int) -> dict[str, Any]:
    """Stage `retrieve` for one noun, without CLIP."""
    from pipeline.corpus.index import load_index
    from pipeline.corpus.retrieve import Search
    from pipeline.settings.profile import load_params

    params = load_params()

    def work() -> dict[str, int]:
        search = Search(embed(["cat"]), params.retrieve)
        for partition in load_index(params):
            search.add(partition)
        found = search.candidates()
        assert all(one.caption.startswith("cat ") for some in found.values() for one in some)
        return {part: len(some) for part, some in found.items()}

    return timed(work, rows)


def clip_speed(folder: str) -> dict[str, Any]:
    """Captions per second of a CLIP on this machine."""
    from pipeline.clip.openclip import load_clip

    clip = load_clip(str(ROOT / folder) if (ROOT / folder).is_dir() else folder)
    texts = [caption(i) for i in range(2000)]
    clip.encode_texts(texts[:64])
    return timed(lambda: len(clip.encode_texts(texts)), len(texts)) | {"name": folder}


if __name__ == "__main__":
    main()
