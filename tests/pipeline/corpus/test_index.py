"""The index holds the captions' embeddings, as open_clip alone gives them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.clip.openclip import Clip
from pipeline.common.errors import BenchError
from pipeline.corpus import table as table_module
from pipeline.corpus.index import build_index, load_index
from pipeline.settings.profile import load_params
from tests.pipeline.conftest import Settings
from tests.pipeline.corpora import TABLE, embed, write_corpus

INDEX = Path("runs/toyland/index")
CAPTIONS = ["photo of a cat", "a red dog in the snow", "wooden pot", "tree", "cat next to chair"]
ROWS = [(CAPTIONS[i % 5], ("train", "held_out")[i % 2]) for i in range(250)]


@pytest.fixture
def corpus(settings: Settings, clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three partitions."""
    monkeypatch.setattr(table_module, "PARTITION", 100)
    settings(retrieve={"clip": str(clip_folder)})
    write_corpus(ROWS)


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in INDEX.iterdir()}


def test_vectors_are_those_of_the_captions(
    corpus: None, clip_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_index("toyland")
    names = [f"{i:05d}" for i in range(3)]
    assert set(files()) == {f"{n}.{kind}" for n in names for kind in ("index", "parquet")}
    indices = [faiss.read_index(str(INDEX / f"{name}.index")) for name in names]
    for index in indices:
        assert (
            isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
        )
    vectors = np.concatenate([index.reconstruct_n(0, index.ntotal) for index in indices])
    np.testing.assert_allclose(vectors, np.tile(embed(clip_folder, CAPTIONS), (50, 1)), atol=2e-6)
    rows = [row for n in names for row in pq.read_table(str(INDEX / f"{n}.parquet")).to_pylist()]
    assert [(row["caption"], row["split"]) for row in rows] == ROWS
    assert [(row["row"], row["url"]) for row in rows] == [
        (i, f"images/{i}.png") for i in range(250)
    ]
    printed = capfd.readouterr()
    assert printed.out.startswith("index: 250 captions") and printed.out.count("\n") == 1
    assert "warn" not in printed.err.lower()

    first = files()
    build_index("toyland")
    assert files() == first
    assert not list(Path("runs/toyland/unfinished/index").iterdir())


def test_finished_partitions_survive_a_kill(
    corpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index("toyland")
    whole = files()
    encode, embedded = Clip.encode_texts, []

    def killed(self: Clip, texts: list[str]) -> object:
        embedded.append(len(texts))
        if len(embedded) == 3:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(Clip, "encode_texts", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index("toyland")
    # What a hard kill would leave.
    (folder,) = Path("runs/toyland/unfinished/index").iterdir()
    (folder / ".00002.index.0123.part").write_bytes(b"half")
    (folder / ".00002.embedded.part").mkdir(exist_ok=True)
    capsys.readouterr()
    build_index("toyland")
    assert "index: 250 captions embedded, 200 of them before" in capsys.readouterr().out
    assert len(embedded) == 4  # the third partition, once more
    assert files() == whole


def test_what_is_left_of_another_table_is_not_used(
    corpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Clip, texts: list[str]) -> object:
        if "tree" not in texts:
            return encode(self, texts)
        raise KeyboardInterrupt

    encode = Clip.encode_texts
    write_corpus([("a cat", "train")] * 100 + [("tree", "train")])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Clip, "encode_texts", killed)
        build_index("toyland")
    write_corpus([("a dog", "train")] * 101)
    build_index("toyland")
    captions = [
        c for part in load_index(load_params()) for c in part.metadata["caption"].to_pylist()
    ]
    assert captions == ["a dog"] * 101
    assert not list(Path("runs/toyland/unfinished/index").iterdir())


def test_partition_without_captions(corpus: None) -> None:
    write_corpus([("", "train")] * 100 + [("a cat", "train")])
    build_index("toyland")
    (part,) = load_index(load_params())
    assert part.metadata["row"].to_pylist() == [100]


def test_missing_table_and_damaged_index(corpus: None) -> None:
    build_index("toyland")
    (INDEX / "00001.index").write_bytes(b"no index")
    with pytest.raises(BenchError, match=r"runs/toyland/index: the index is damaged .*dvc repro"):
        list(load_index(load_params()))
    TABLE.unlink()
    with pytest.raises(BenchError, match=r"urls\.parquet: the URL table is missing"):
        build_index("toyland")
