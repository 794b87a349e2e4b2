"""The index: the captions of the corpus as unit vectors that can be searched exactly.

clip-retrieval reads the shards and collects the embeddings, autofaiss builds the index. Its kind
is Flat with inner products: all similarities are exact, and the same corpus gives the same bytes.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic_folder
from pipeline.common.places import repro_command_for
from pipeline.corpus.fetch import MANIFEST, shard_of
from pipeline.settings.profile import load_params

INDEX, METADATA = "text.index", "metadata.parquet"
INDEX_FILES = (".index", ".parquet")
BATCH = 2000  # captions


def build_index(profile: str) -> None:
    """Embeds the captions of the profile's corpus with the CLIP `retrieve.clip`.

    Writes `index/text.index`, a faiss index of float32 unit vectors, and `index/metadata.parquet`
    with the columns `key`, `caption`, `split` and `sha256`; row i belongs to vector i.

    Raises:
        BenchError: the corpus or the CLIP is missing, or a shard cannot be read to its end.
    """
    started = time.perf_counter()
    params = load_params(profile)
    corpus, target = params.runs() / "corpus", params.runs() / "index"
    shards = _shards(corpus / MANIFEST)
    clip = load_clip(params.retrieve.clip)
    with atomic_folder(target, INDEX_FILES) as folder:
        embedded = folder / "embedded"
        _embed([corpus / name for name in shards], sum(shards.values()), clip, embedded)
        rows = pq.read_table(str(embedded / "metadata" / "metadata_0.parquet"))
        _check(rows["key"].to_pylist(), shards, corpus)
        _build(embedded / "text_emb", folder / INDEX)
        columns = rows.select(["key", "caption", "split", "sha256"]).replace_schema_metadata()
        pq.write_table(columns, str(folder / METADATA))
        shutil.rmtree(embedded)
    seconds = time.perf_counter() - started
    print(f"index: {rows.num_rows} captions embedded in {seconds:.0f} s: {target}")


def _shards(manifest: Path) -> dict[str, int]:
    """How many samples each shard of a corpus has."""
    try:
        shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
        return {str(name): int(count) for name, count in shards.items()}
    except FileNotFoundError:
        raise BenchError(
            f"{manifest.parent}: the corpus is missing: "
            f"run `{repro_command_for(manifest)}` to make it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{manifest}: not the manifest of a corpus ({error}): delete the corpus and run "
            f"`{repro_command_for(manifest)}`"
        ) from error


class _Mapper:
    """Embeds the captions of a batch in full precision (clip-retrieval's own mapper halves it)."""

    def __init__(self, clip: Clip, bar: tqdm[Any]) -> None:
        self.clip, self.bar = clip, bar

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        texts = batch["text"]
        rows = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        features = self.clip.encode_texts(list(rows))
        self.bar.update(len(texts))
        return {**batch, "text_embs": features[[rows[text] for text in texts]]}


class _Silence:
    """A logger for clip-retrieval; its own is a process that outlives errors and hangs."""

    def start(self) -> None: ...

    def __call__(self, stats: dict[str, Any]) -> None: ...

    def end(self) -> None: ...


def _embed(shards: list[Path], total: int, clip: Clip, folder: Path) -> None:
    """Writes text_emb/*.npy, float32 unit vectors, and metadata/*.parquet to the folder."""
    with _quietly():
        from clip_retrieval.clip_inference.reader import WebdatasetReader
        from clip_retrieval.clip_inference.runner import Runner
        from clip_retrieval.clip_inference.writer import NumpyWriter

    kinds = {"enable_text": True, "enable_image": False, "enable_metadata": True}
    with tqdm(desc="index", total=total, leave=False) as bar, _quietly():
        Runner(
            reader_builder=lambda sampler: WebdatasetReader(
                sampler,
                preprocess=None,
                tokenizer=lambda texts: np.zeros((len(texts), 1)),  # the mapper encodes texts
                input_dataset=[str(path) for path in shards],
                batch_size=BATCH,
                num_prepro_workers=0,
                **kinds,
            ),
            mapper_builder=lambda: _Mapper(clip, bar),
            writer_builder=lambda part: NumpyWriter(
                part, str(folder), output_partition_count=1, **kinds
            ),
            logger_builder=lambda part: _Silence(),
            output_partition_count=1,
        )(0)


def _check(keys: list[str], shards: dict[str, int], corpus: Path) -> None:
    """clip-retrieval skips what it cannot read, with nothing but a warning."""
    counts = Counter(shard_of(key) for key in keys)
    for name, count in shards.items():
        if counts[name] != count:
            raise BenchError(
                f"{corpus / name}: only {counts[name]} of {count} samples could be read: the shard "
                f"is missing or truncated: delete it and run `{repro_command_for(corpus)}`"
            )


def _build(embeddings: Path, path: Path) -> None:
    import autofaiss

    with _quietly():
        index, _ = autofaiss.build_index(
            str(embeddings),
            index_path=str(path),
            index_infos_path=str(embeddings / "infos.json"),
            index_key="Flat",
            metric_type="ip",
            nb_cores=1,
            verbose=logging.ERROR,
        )
    if index is None:
        raise BenchError(f"{path}: autofaiss could not build the index: too little memory")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps chatter and warnings of libraries from the terminal."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
