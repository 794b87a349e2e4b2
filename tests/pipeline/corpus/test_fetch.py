"""URL table to shards, by the real img2dataset: what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.corpus import fetch as corpus
from pipeline.corpus.fetch import build_corpus, shard_of
from pipeline.toyland.world.corpus import captioned_scene, draw_world
from pipeline.toyland.world.drawing import draw
from tests.pipeline.conftest import Settings

FOLDER = Path("runs/toyland/corpus")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_drawn_corpus_is_pixel_identical_and_reproducible(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(world={"images": 30, "held_out": 10, "seed": 3})
    draw_world("toyland")
    monkeypatch.setattr(corpus, "SHARD_SIZE", 20)
    build_corpus("toyland")
    samples = list(wds.WebDataset(str(FOLDER / "{00000..00001}.tar"), shardshuffle=False))
    assert len(samples) == 40
    for i, sample in enumerate(samples):
        split, index = ("train", i) if i < 30 else ("held_out", i - 30)
        scene, caption = captioned_scene(3, split, index)
        np.testing.assert_array_equal(pixels(sample["png"]), draw(scene))
        record = json.loads(sample["json"])
        assert sample["txt"].decode() == record["caption"] == caption
        assert record["split"] == split and record["key"] == sample["__key__"]
        assert record["url"].startswith("images/") and str(Path.cwd()) not in str(record)
        assert shard_of(record["key"]) == f"{i // 20:05d}.tar"
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert manifest["splits"] == {"train": 30, "held_out": 10} and not manifest["failures"]
    assert manifest["shards"] == {"00000.tar": 20, "00001.tar": 20}

    first = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert set(first) == {"00000.tar", "00001.tar", "manifest.json"}
    monkeypatch.setattr(corpus, "THREADS", 1)
    build_corpus("toyland")
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == first
    assert [path.name for path in FOLDER.parent.iterdir() if path.name[0] == "."] == []


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a web server on the folder `web`."""
    (tmp_path / "web").mkdir()
    handler = partial(Silent, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_web_table_with_other_columns_and_failures(
    settings: Settings, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # Wide, with a green square in its middle; a broken file; and one that is missing.
    wide = np.full((64, 128, 3), 255, np.uint8)
    wide[:, 32:96] = (10, 200, 30)
    for i in range(12):
        wide[0, 0] = i  # so that files differ, outside of the square
        Image.fromarray(wide).save(f"web/{i}.png")
    Path("web/broken.png").write_bytes(b"not an image")
    names = [*(f"{i}.png" for i in range(12)), "broken.png", "missing.png"]
    lines = "".join(f'{server}/{name},"a square, wide"\n' for name in names)
    Path("web.csv").write_text("link,text\n" + lines)
    table = {"url_table": "web.csv", "url_column": "link", "caption_column": "text"}
    settings(corpus={**table, "resolution": 32, "min_success": 0.8})
    build_corpus("toyland")

    samples = list(wds.WebDataset(str(FOLDER / "00000.tar"), shardshuffle=False))
    records = [json.loads(sample["json"]) for sample in samples]
    assert [record["url"] for record in records] == [f"{server}/{i}.png" for i in range(12)]
    for sample in samples:
        np.testing.assert_array_equal(pixels(sample["png"]), np.full((32, 32, 3), (10, 200, 30)))
        assert sample["txt"] == b"a square, wide"
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert (manifest["rows"], manifest["samples"]) == (14, 12)
    failures = {"HTTP Error 404: File not found": 1, "Image decoding error": 1}
    assert manifest["failures"] == failures
    # Without a column, a quarter is held out, by content.
    expected = ["held_out" if int(r["sha256"][:8], 16) % 4 == 0 else "train" for r in records]
    assert [record["split"] for record in records] == expected


def test_nothing_can_be_had(settings: Settings) -> None:
    table = {"url": [f"images/{i}.png" for i in range(3)], "caption": ["a cat"] * 3}
    pq.write_table(pa.table(table), "urls.parquet")
    settings(corpus={"url_table": "urls.parquet", "min_success": 0.0})
    with pytest.raises(BenchError) as error:
        build_corpus("toyland")
    message = str(error.value)
    assert "urls.parquet: only 0 of 3 images could be had" in message
    assert "No such file or directory: '...'> (3 times)" in message and "\n" not in message
    assert not FOLDER.exists() and not list(FOLDER.parent.glob(".*"))


def test_share_of_images_that_is_too_few() -> None:
    params = corpus.load_params("toyland")
    manifest = {"rows": 100, "samples": 90, "failures": {"HTTP Error 404": 9, "timed out": 1}}
    corpus._check(manifest, params, "toyland")
    with pytest.raises(BenchError, match=r"only 89 of 100 .* 90% .* HTTP Error 404 \(9 times\)"):
        corpus._check({**manifest, "samples": 89}, params, "toyland")


def test_missing_table(settings: Settings) -> None:
    with pytest.raises(BenchError, match=r"urls\.parquet: the URL table is missing: .*url, capt"):
        build_corpus("toyland")


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"url": ["a.png"], "text": ["a"]}, r"caption_column: .* 'caption': choose one of url, t"),
        ({"link": ["a.png"], "caption": ["a"]}, r"corpus\.url_column: .* no column 'url'"),
        ({"url": [], "caption": []}, r"is empty"),
        ({"url": ["a"], "caption": ["a"], "split": ["val"]}, r"split: 'val' is unknown"),
    ],
)
def test_table_that_cannot_be_used(
    settings: Settings, columns: dict[str, list[str]], problem: str
) -> None:
    pq.write_table(pa.table(columns), "urls.parquet")
    settings(corpus={"url_table": "urls.parquet"})
    with pytest.raises(BenchError, match=problem):
        build_corpus("toyland")


def test_table_that_is_none(settings: Settings) -> None:
    Path("urls.parquet").write_text("url,caption\n")
    settings(corpus={"url_table": "urls.parquet"})
    with pytest.raises(BenchError, match=r"urls\.parquet: not a \.parquet or \.csv file"):
        build_corpus("toyland")
