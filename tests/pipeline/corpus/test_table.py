"""The URL table is read in partitions, and what cannot be used of it is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import BenchError
from pipeline.common.seeds import seed_of
from pipeline.corpus import table as module
from pipeline.corpus.captions import choose_captions
from pipeline.corpus.table import partitions
from pipeline.settings.profile import load_params
from pipeline.train.inputs import regularization_captions
from tests.pipeline.conftest import Settings
from tests.pipeline.corpora import write_corpus


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTITION", 10)
    monkeypatch.setattr(module, "SOME", 7)


@pytest.mark.parametrize("name", ["urls.parquet", "urls.csv", "URLS.CSV"])
@pytest.mark.parametrize("start", [0, 2, 3, 9])
def test_partitions_are_the_rows_in_their_order(
    settings: Settings, small: None, name: str, start: int
) -> None:
    urls = [f"http://host/{i}, {i}" for i in range(34)]
    captions = [f"caption {i}" for i in range(34)]
    captions[13], urls[21] = "", ""
    columns = {"TEXT": captions, "similarity": [0.5] * 34, "URL": urls}
    if name.lower().endswith(".csv"):
        pyarrow.csv.write_csv(pa.table(columns), name)
    else:
        columns["TEXT"][14] = None
        pq.write_table(pa.table(columns), name, row_group_size=4)
    settings(corpus={"url_table": name, "url_column": "URL", "caption_column": "TEXT"})
    found = list(partitions(load_params(), start))
    assert [number for number, _ in found] == [0, 1, 2, 3][start:]
    lacking = {13, 21} | ({14} if name.endswith(".parquet") else set())
    expected = [
        {
            "row": i,
            "url": urls[i],
            "caption": captions[i],
            # A quarter is held out, by its URL alone.
            "split": "held_out"
            if hashlib.sha256(urls[i].encode()).digest()[3] % 4 == 0
            else "train",
        }
        for i in range(10 * start, 34)
        if i not in lacking
    ]
    assert [row for _, rows in found for row in rows.to_pylist()] == expected
    for number, rows in found:
        assert set(np.array(rows["row"]) // 10) == {number}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"url": ["a.png"], "text": ["a"]}, r"caption_column: .* 'caption': choose one of url, t"),
        ({"link": ["a.png"], "caption": ["a"]}, r"corpus\.url_column: .* no column 'url'"),
        ({"url": [], "caption": []}, r"urls\.parquet: the URL table is empty"),
        ({"url": ["a"], "caption": ["a"], "split": ["val"]}, r"split: 'val' is unknown"),
        (None, r"urls\.parquet: not a \.parquet or \.csv file"),
    ],
)
def test_table_that_cannot_be_used(
    settings: Settings, columns: dict[str, list[str]] | None, problem: str
) -> None:
    if columns is None:
        Path("urls.parquet").write_text("url,caption\n")
    else:
        pq.write_table(pa.table(columns), "urls.parquet")
    settings(corpus={"url_table": "urls.parquet"})
    with pytest.raises(BenchError, match=problem):
        list(partitions(load_params()))


def test_captions_may_have_lines(settings: Settings) -> None:
    """More than are read in one block."""
    captions = [f'first {i}\n\nand "last", {"x" * 90}' for i in range(20_000)]
    urls = [f"http://host/{i}" for i in range(len(captions))]
    pyarrow.csv.write_csv(pa.table({"url": urls, "caption": captions}), "urls.csv")
    settings(corpus={"url_table": "urls.csv"})
    found = [row for _, rows in partitions(load_params()) for row in rows["caption"].to_pylist()]
    assert found == captions


def test_missing_table(settings: Settings) -> None:
    with pytest.raises(BenchError, match=r"urls\.parquet: the URL table is missing: .*url, capt"):
        choose_captions("toyland")


def test_captions_of_merges_are_a_random_choice_of_the_whole_table(
    settings: Settings, small: None
) -> None:
    """As sorting all in memory gives it; neither partitions nor the order of rows matter."""
    settings(train={"regularization_captions": 20, "seeds": [3]})
    rng = np.random.default_rng(0)
    words = [f"{rng.choice(['a', 'É', 'z'])} {i % 60}" for i in range(90)]  # some of them twice
    rows = [(word, "held_out" if i % 5 == 0 else "train") for i, word in enumerate(words)]
    write_corpus(rows)
    choose_captions("toyland")
    train = sorted(caption for caption, split in rows if split == "train")
    draw = np.random.default_rng(seed_of(3, "regularization captions"))
    chosen = regularization_captions(load_params())
    assert chosen == [train[i] for i in sorted(draw.choice(len(train), 20, replace=False))]
    write_corpus([rows[i] for i in rng.permutation(90)])
    choose_captions("toyland")
    assert regularization_captions(load_params()) == chosen
    settings(train={"regularization_captions": 500, "seeds": [3]})
    choose_captions("toyland")
    assert regularization_captions(load_params()) == train
    assert not list(Path("runs/toyland").glob(".captions*"))


def test_captions_that_are_missing_or_damaged(project: Path) -> None:
    with pytest.raises(BenchError, match=r"captions\.json: the captions of C_reg are missing: run"):
        regularization_captions(load_params())
    path = Path("runs/toyland/captions.json")
    path.parent.mkdir(parents=True)
    path.write_text("[")
    with pytest.raises(BenchError, match=r"captions\.json: cannot be read .*dvc repro"):
        regularization_captions(load_params())
