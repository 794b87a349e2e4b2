"""The index holds the captions' embeddings, as open_clip alone gives them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import BenchError
from pipeline.corpus.index import build_index
from tests.pipeline.conftest import Settings
from tests.pipeline.corpora import CORPUS, embed, write_corpus

INDEX = Path("runs/toyland/index")
CAPTIONS = ["photo of a cat", "a red dog in the snow", "wooden pot", "", "cat next to chair"]
SAMPLES = [(CAPTIONS[i % 5], ("train", "held_out")[i % 2], f"{i:064x}") for i in range(250)]


@pytest.fixture
def keys(settings: Settings, clip_folder: Path) -> list[str]:
    settings(retrieve={"clip": str(clip_folder)})
    return write_corpus(SAMPLES)


def test_vectors_are_those_of_the_captions(
    keys: list[str], clip_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_index("toyland")
    index = faiss.read_index(str(INDEX / "text.index"))
    assert isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    vectors = index.reconstruct_n(0, index.ntotal)
    np.testing.assert_allclose(vectors, np.tile(embed(clip_folder, CAPTIONS), (50, 1)), atol=2e-6)
    rows = pq.read_table(str(INDEX / "metadata.parquet")).to_pylist()
    assert [row["key"] for row in rows] == keys
    assert [(row["caption"], row["split"], row["sha256"]) for row in rows] == SAMPLES
    assert all(len(row) == 4 for row in rows)
    printed = capfd.readouterr()
    assert printed.out.startswith("index: 250 captions") and printed.out.count("\n") == 1
    assert "warn" not in printed.err.lower()

    first = {path.name: path.read_bytes() for path in INDEX.iterdir()}
    assert set(first) == {"text.index", "metadata.parquet"}
    build_index("toyland")
    assert {path.name: path.read_bytes() for path in INDEX.iterdir()} == first


@pytest.mark.parametrize("size", [0, 40_000])
def test_truncated_shard_is_named(keys: list[str], size: int) -> None:
    shard = CORPUS / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(BenchError, match=r"00001\.tar: only \d+ of 100 samples could be read: .*"):
        build_index("toyland")
    assert not INDEX.exists()


def test_missing_shard_is_named(keys: list[str]) -> None:
    (CORPUS / "00002.tar").unlink()
    with pytest.raises(BenchError, match=r"00002\.tar: only 0 of 50 samples"):
        build_index("toyland")


def test_missing_corpus(settings: Settings) -> None:
    with pytest.raises(BenchError, match=r"corpus: the corpus is missing: run `dvc repro`"):
        build_index("toyland")
