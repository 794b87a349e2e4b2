"""Candidates to images, by the real img2dataset: dead links are replaced, and what came is kept."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.files import read_tar
from pipeline.corpus import fetch as module
from pipeline.corpus.candidates import Candidate, candidates_path, save_candidates
from pipeline.corpus.fetch import fetch
from pipeline.settings.profile import load_params
from pipeline.toyland.world.corpus import captioned_scene, write_table
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.pictures import draw_pictures
from tests.pipeline.conftest import Settings

OUTPUT = Path("runs/toyland/regularization/cat.tar")
KEPT = Path("runs/toyland/unfinished/fetch/cat-32")


def candidates(**parts: list[str]) -> None:
    """Writes the candidates of the cat, by part, from their URLs."""
    save_candidates(
        candidates_path(load_params(), "cat"),
        {
            part: [
                Candidate(round(1 - i / 1e4, 4), i, f"cat {i % 3}", u) for i, u in enumerate(urls)
            ]
            for part, urls in parts.items()
        },
    )


def images(part: str) -> list[dict[str, Any]]:
    return [sample for sample in read_tar(OUTPUT) if sample["json"]["part"] == part]


def rows(part: str) -> list[int]:
    return [int(sample["json"]["key"]) for sample in images(part)]


class Handler(SimpleHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path[1:]] += 1
        super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server of pictures: wide, with a green square in their middle."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "web").mkdir()
    wide = np.full((64, 128, 3), 255, np.uint8)
    wide[:, 32:96] = (10, 200, 30)
    for i in range(40):
        wide[0, 0] = i  # so that files differ, outside of the square
        Image.fromarray(wide).save(tmp_path / "web" / f"{i}.png")
    Handler.asked.clear()
    handler = partial(Handler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def small(settings: Settings) -> None:
    settings(retrieve={"images": 8, "held_out_images": 3}, corpus={"resolution": 32})


def test_the_first_links_that_work_are_taken(server: str, small: None) -> None:
    """Dead links, files that are no images and copies are replaced; the order stays."""
    Path("web/broken.png").write_bytes(b"not an image")
    Path("web/copy.png").write_bytes(Path("web/2.png").read_bytes())
    names = ["0.png", "gone.png", "1.png", "2.png", "broken.png", "copy.png", "lost.png"]
    names += [f"{i}.png" for i in range(3, 20)]
    held_out = ["copy.png", *(f"{i}.png" for i in range(30, 40))]
    candidates(
        regularization=[f"{server}/{name}" for name in names],
        held_out=[f"{server}/{name}" for name in held_out],
    )
    fetch("cat", "toyland")
    assert rows("regularization") == [0, 2, 3, 7, 8, 9, 10, 11]
    assert rows("held_out") == [1, 2, 3]
    assert len(Handler.asked) < 30  # not all of the candidates
    for part in ("regularization", "held_out"):
        assert [s["__key__"] for s in images(part)] == [
            f"{part}-{i:04d}" for i in range(len(rows(part)))
        ]
        for sample, row in zip(images(part), rows(part)):
            name = (names if part == "regularization" else held_out)[row]
            record = {
                "part": part,
                "similarity": round(1 - row / 1e4, 4),
                "key": f"{row:09d}",
                "sha256": hashlib.sha256(Path("web", name).read_bytes()).hexdigest(),
            }
            if part == "held_out":
                record |= {"images": 3, "captions": 3}
            assert sample["json"] == record and sample["txt"] == f"cat {row % 3}"
            pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
            np.testing.assert_array_equal(pixels, np.full((32, 32, 3), (10, 200, 30)))
    assert not KEPT.exists()
    before = OUTPUT.read_bytes()
    fetch("cat", "toyland")
    assert OUTPUT.read_bytes() == before


def test_what_came_is_kept_and_not_fetched_again(
    server: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUND", 4)
    gone = [f"{server}/gone{i}.png" for i in range(6)]
    there = [f"{server}/{i}.png" for i in range(6)]
    candidates(regularization=[*there, *gone], held_out=[f"{server}/{i}.png" for i in (30, 31, 32)])
    with pytest.raises(FailureError) as error:
        fetch("cat", "toyland")
    message = str(error.value)
    assert error.value.failure.kind == "too few images" and "\n" not in message
    assert message.startswith(
        "cat: only 6 regularization images of 12 candidates could be had, 8 a"
    )
    assert "most often: HTTP Error 404: File not found (6 times)" in message
    assert not OUTPUT.exists()

    # The others come back; the stage is killed once, and only asks for what it does not have.
    for i in range(6):
        Path("web", f"gone{i}.png").write_bytes(Path("web", f"{i + 10}.png").read_bytes())
    download, calls = module.download, []

    def killed(urls: list[str], resolution: int) -> Any:
        calls.append(urls)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return download(urls, resolution)

    Handler.asked.clear()
    monkeypatch.setattr(module, "download", killed)
    monkeypatch.setattr(module, "ROUND", 7)  # one of the six that come back, and then the next
    with pytest.raises(KeyboardInterrupt):
        fetch("cat", "toyland")
    fetch("cat", "toyland")
    assert rows("regularization") == list(range(8)) and rows("held_out") == [0, 1, 2]
    assert Handler.asked == {"gone0.png": 1, "gone1.png": 1}
    assert not KEPT.exists()


@pytest.mark.parametrize("why", ["<urlopen error timed out>", "HTTP Error 503: Busy"])
def test_a_network_that_goes_down_is_no_finding(
    server: str, small: None, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """DVC would take the stage as done, and never try again."""
    candidates(
        regularization=[f"{server}/{i}.png" for i in range(6)]
        + ["https://down/a", "https://down/b"],
        held_out=[f"{server}/{i}.png" for i in (30, 31, 32)],
    )
    download = module.download

    def half(urls: list[str], resolution: int) -> Any:
        there, failures = download([u for u in urls if "down" not in u], resolution)
        return there, failures + Counter({why: sum("down" in u for u in urls)})

    monkeypatch.setattr(module, "download", half)
    with pytest.raises(
        BenchError, match="2 images could not be had for reasons that may pass"
    ) as e:
        fetch("cat", "toyland")
    assert not isinstance(e.value, FailureError) and why in str(e.value)
    assert not OUTPUT.exists() and KEPT.exists()


def test_nothing_can_be_had(small: None) -> None:
    candidates(regularization=["a.png", "b.png"], held_out=["c.png"])
    with pytest.raises(BenchError) as error:
        fetch("cat", "toyland")
    assert not isinstance(error.value, FailureError)  # it is the network, and no finding
    message = str(error.value)
    assert message.startswith("cat: none of 3 images could be had; most often: ")
    assert "No such file or directory: '...'> (3 times)" in message and "\n" not in message
    assert not OUTPUT.exists()


def test_toyland_draws_what_is_fetched_and_nothing_else(settings: Settings) -> None:
    settings(
        retrieve={"images": 3, "held_out_images": 2}, world={"images": 30, "held_out": 5, "seed": 3}
    )
    write_table("toyland")
    chosen = {"regularization": [7, 29, 0, 3], "held_out": [4, 1]}
    splits = {"regularization": "train", "held_out": "held_out"}
    candidates(
        **{p: [f"images/{splits[p]}/000/{i:06d}.png" for i in some] for p, some in chosen.items()}
    )
    draw_pictures("cat", "toyland")
    drawn = Path("runs/toyland/world").rglob("*.png")
    assert sorted(int(path.stem) for path in drawn) == sorted(
        i for some in chosen.values() for i in some
    )
    fetch("cat", "toyland")
    for part, some in chosen.items():
        for sample, i in zip(images(part), some):
            scene, _ = captioned_scene(3, splits[part], i)
            pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
            np.testing.assert_array_equal(pixels, draw(scene))
