"""The index: the captions of the URL table as unit vectors that can be searched exactly.

clip-retrieval's runner embeds them straight from the table and collects the vectors, autofaiss
makes an index of each partition. Its kind is Flat with inner products: all similarities are exact,
and the same table gives the same bytes. What is in memory is one partition, however large the
table is. Partitions that are finished survive if the stage is killed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.clip.openclip import load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, check_folder, sha256
from pipeline.common.places import repro_command_for
from pipeline.corpus.table import PARTITION, partitions
from pipeline.settings.profile import Params, load_params

INDEX_FILES = (".index", ".parquet")
BATCH = 2000  # captions

Embed = Callable[[list[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Captions:
    """A partition of the captions of a table, to be searched."""

    index: faiss.Index  # inner products with unit vectors, float32
    metadata: pa.Table  # row, url, caption, split; row i belongs to vector i


def build_index(profile: str) -> None:
    """Embeds the captions of the profile's URL table with the CLIP `retrieve.clip`.

    Writes, for each partition of the table, `index/<number>.index`, a faiss index of float32 unit
    vectors, and `index/<number>.parquet` with the columns that `partitions` gives; row i belongs
    to vector i.

    Raises:
        BenchError: the table or the CLIP is missing or cannot be used.
    """
    started = time.perf_counter()
    params = load_params(profile)
    path = Path(params.corpus.url_table)
    next(partitions(params))  # tells at once whether it can be read
    clip = load_clip(params.retrieve.clip)
    columns = (params.corpus.url_column, params.corpus.caption_column)
    made_of = "\n".join((sha256(path), clip.identity, *columns, str(PARTITION)))
    target = params.runs() / "index"
    check_folder(target, INDEX_FILES)
    unfinished = params.unfinished("index", params.runs())
    folder = unfinished / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    for other in unfinished.iterdir() if unfinished.is_dir() else ():
        if other != folder:  # of another table or CLIP
            shutil.rmtree(other)
    count, known = embed_table(params, clip.encode_texts, folder)
    if target.exists():
        shutil.rmtree(target)
    os.replace(folder, target)
    seconds = time.perf_counter() - started
    again = f", {known} of them before" if known else ""
    print(f"index: {count} captions embedded{again}, {seconds:.0f} s: {target}")


def embed_table(params: Params, embed: Embed, folder: Path) -> tuple[int, int]:
    """Writes the index of a URL table to a folder, less the partitions that are there already.

    Args:
        params: of the profile, whose section `corpus` names the table and its columns.
        embed: from texts to float32 unit vectors [n, d], each independent of the others.
        folder: see `build_index`.

    Returns:
        How many captions the index has, and how many of them it had before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*.part"):  # of a run that was killed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = _metadata_files(folder)
    known = sum(pq.read_metadata(str(path)).num_rows for path in done)
    count = known
    with tqdm(desc="index", unit=" captions", initial=known, leave=False) as bar:
        for number, rows in partitions(params, len(done)):
            if rows.num_rows:
                _build(rows, embed, folder, f"{number:05d}", bar)
            # Tells that this partition is finished.
            with atomic(folder / f"{number:05d}.parquet") as temporary:
                pq.write_table(rows, str(temporary))
            count += rows.num_rows
    return count, known


def _metadata_files(folder: Path) -> list[Path]:
    """Of all partitions that are finished, which are the first ones of the table."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def has_index(params: Params) -> bool:
    """Whether stage `index` ran."""
    return (params.runs() / "index").is_dir()


def load_index(params: Params) -> Iterator[Captions]:
    """The partitions that stage `index` made, one at a time, less those without captions.

    Raises:
        BenchError: it is missing; or, once one gets there, damaged.
    """
    folder = params.runs() / "index"
    again = f"run `{repro_command_for(folder)}`"
    if not has_index(params):
        raise BenchError(f"{folder}: the index is missing: {again} to make it")
    return _partitions(folder, again)


def _partitions(folder: Path, again: str) -> Iterator[Captions]:
    try:
        for path in _metadata_files(folder):
            metadata = pq.read_table(str(path))
            if metadata.num_rows:
                index = faiss.read_index(str(path.with_suffix(".index")))
                if index.ntotal != metadata.num_rows:
                    raise RuntimeError(f"{path.name} has another number of rows")
                yield Captions(index, metadata)
    except (RuntimeError, OSError, pa.ArrowException) as error:
        raise BenchError(
            f"{folder}: the index is damaged ({error}): delete it and {again}"
        ) from error


class _Reader:
    """What clip-retrieval's runner reads: the rows of a partition in batches."""

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.captions), BATCH):
            texts = self.captions[start : start + BATCH]
            # The runner counts tokens; the mapper makes them.
            yield {"text": texts, "text_tokens": np.empty((len(texts), 0))}


class _Mapper:
    """Embeds the captions of a batch in full precision (clip-retrieval's own mapper halves it)."""

    def __init__(self, embed: Embed, bar: tqdm[Any]) -> None:
        self.embed, self.bar = embed, bar

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        texts = batch["text"]
        rows = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        features = self.embed(list(rows))
        self.bar.update(len(texts))
        return {**batch, "text_embs": features[[rows[text] for text in texts]]}


class _Silence:
    """A logger for clip-retrieval; its own is a process that outlives errors and hangs."""

    def start(self) -> None: ...

    def __call__(self, stats: dict[str, Any]) -> None: ...

    def end(self) -> None: ...


def _build(rows: pa.Table, embed: Embed, folder: Path, name: str, bar: tqdm[Any]) -> None:
    """Writes the index of a partition."""
    with _quietly():
        import autofaiss
        from clip_retrieval.clip_inference.runner import Runner
        from clip_retrieval.clip_inference.writer import NumpyWriter

    embedded = folder / f".{name}.embedded.part"
    kinds = {"enable_text": True, "enable_image": False, "enable_metadata": False}
    with _quietly(), atomic(folder / f"{name}.index") as temporary:
        Runner(
            reader_builder=lambda sampler: _Reader(rows["caption"].to_pylist()),
            mapper_builder=lambda: _Mapper(embed, bar),
            writer_builder=lambda part: NumpyWriter(
                part, str(embedded), output_partition_count=1, **kinds
            ),
            logger_builder=lambda part: _Silence(),
            output_partition_count=1,
        )(0)
        index, _ = autofaiss.build_index(
            str(embedded / "text_emb"),
            index_path=str(temporary),
            index_infos_path=str(embedded / "infos.json"),
            index_key="Flat",
            metric_type="ip",
            nb_cores=1,
            verbose=logging.ERROR,
        )
        if index is None or index.ntotal != rows.num_rows:
            raise BenchError(f"{folder}: autofaiss could not build the index: too little memory")
    shutil.rmtree(embedded)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps chatter and warnings of libraries from the terminal."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
