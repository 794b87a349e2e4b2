"""Retrieval is what comparing the query with every caption gives; too few captions are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.corpus import retrieve as module
from pipeline.corpus import table as table_module
from pipeline.corpus.candidates import Candidate, load_candidates
from pipeline.corpus.index import build_index
from pipeline.corpus.retrieve import retrieve, spread
from pipeline.settings.profile import load_params
from pipeline.toyland.world.corpus import captioned_scene
from tests.pipeline.conftest import Settings
from tests.pipeline.corpora import embed, write_corpus

QUERY = "photo of a wooden pot"
OUTPUT = Path("runs/toyland/retrieved/wooden_pot.parquet")
Rows = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "PARTITION", 70)


def rows_of(count: int) -> Rows:
    """Captions of Toyland, every other one about the wooden pot as well; each fourth held out."""
    texts = [captioned_scene(5, "train", i)[1] for i in range(count)]
    texts = [f"wooden pot {text}" if i % 2 else text for i, text in enumerate(texts)]
    return [(text, "held_out" if i % 4 == 3 else "train") for i, text in enumerate(texts)]


def project_with(
    settings: Settings, clip: Path, rows: Rows, urls: list[str] | None = None, **retrieval: object
) -> None:
    settings(retrieve={"clip": str(clip), **retrieval})
    write_corpus(rows, urls)
    build_index("toyland")


def found() -> dict[str, list[Candidate]]:
    return load_candidates(load_params(), "wooden_pot")


def one_in_so_many(near: list[int], caption_of: Any, most: int) -> list[int]:
    """The nearest of each caption, and of these, which are more than are wanted, every n-th."""
    captions = [caption_of(n) for n in near]
    of_each = [n for i, n in enumerate(near) if captions[i] not in captions[:i]]
    assert len(of_each) > most
    return [of_each[int(i * len(of_each) / most)] for i in range(most)]


@pytest.mark.parametrize(
    ("threshold", "queries"),
    [
        (0.45, []),
        (
            0.55,
            ["photo of a cat", "a wooden pot", "a tree in the snow", "wooden pot in the forest"],
        ),
    ],
)
def test_equals_brute_force(
    settings: Settings, clip_folder: Path, threshold: float, queries: list[str]
) -> None:
    rows, wanted = rows_of(200), {"images": 2, "held_out_images": 8}
    urls = [f"images/{i % 176}.png" for i in range(200)]  # some are there twice
    project_with(settings, clip_folder, rows, urls, threshold=threshold, **wanted)
    if queries:
        path = Path("datasets/concepts/wooden_pot/concept.yaml")
        path.write_text(path.read_text() + f"queries: {queries}\n")
    retrieve("wooden_pot", "toyland")

    asked = queries or [QUERY]
    vectors = embed(clip_folder, [*asked, *(caption for caption, _ in rows)])
    every = vectors[len(asked) :] @ vectors[: len(asked)].T
    assert np.abs(every - threshold).min() > 1e-5  # single precision does not decide
    near = every >= threshold
    # The case is not trivial: every query adds something.
    assert all((near[:, i] & (near.sum(1) == 1)).any() for i in range(len(asked)))
    similarity = every.max(1)
    order = sorted(range(200), key=lambda i: (-round(float(similarity[i]), 4), i))
    first: dict[str, list[int]] = {"train": [], "held_out": []}
    for i in order:
        some = first[rows[i][1]]
        if similarity[i] >= threshold and urls[i] not in [urls[j] for j in some]:
            some.append(i)
    parts = found()
    # Ten for each image that is wanted, the nearest first.
    assert len(first["train"]) > 20
    assert [one.row for one in parts["regularization"]] == first["train"][:20]
    # Held-out ones are spread over captions; what is left may replace them.
    chosen = [one.row for one in parts["held_out"]]
    assert chosen[:8] == one_in_so_many(first["held_out"], lambda i: rows[i][0], 8)
    assert sorted(chosen) == sorted(first["held_out"])
    for one in (*parts["regularization"], *parts["held_out"]):
        assert one.similarity == pytest.approx(similarity[one.row], abs=1e-4)
        assert one.similarity == round(one.similarity, 4)
        assert (one.caption, one.url) == (rows[one.row][0], urls[one.row])
    before = OUTPUT.read_bytes()
    retrieve("wooden_pot", "toyland")
    assert OUTPUT.read_bytes() == before


def test_ties_go_by_row(settings: Settings, clip_folder: Path) -> None:
    texts = ["my wooden pot", "photo of a wooden pot", "a cat", "wooden pot"]
    rows = [(texts[i % 4], "held_out" if i > 219 else "train") for i in range(280)]
    project_with(settings, clip_folder, rows, images=10)
    retrieve("wooden_pot", "toyland")
    parts = found()
    assert [one.row for one in parts["regularization"]] == [i for i in range(280) if i % 4 != 2][
        :100
    ]
    assert {one.similarity for one in parts["regularization"]} == {1.0}


def test_held_out_images_are_of_as_many_captions_as_there_are() -> None:
    """Once the nearest were taken: of a caption that many images have, and of few others."""
    counts = {"photo of a wooden pot": 50, "my wooden pot": 3, "wooden pot": 1, "a wooden  pot": 2}
    texts = [text for text, count in counts.items() for _ in range(count)]
    texts += ["a wooden pot"] * 2  # the same caption: space is no difference
    chosen = spread([Candidate(1.0, i, text, str(i)) for i, text in enumerate(texts)], 20)
    captions = [" ".join(one.caption.split()) for one in chosen]
    assert sorted(captions[:4]) == sorted({*captions})  # one of each comes first
    # All of those that are rare, and of the other one what is still wanted.
    assert {c: captions.count(c) for c in captions} == {
        "photo of a wooden pot": 12, "my wooden pot": 3, "wooden pot": 1, "a wooden pot": 4,
    }  # fmt: skip
    assert len({one.row for one in chosen}) == 20


def test_what_is_kept_is_bounded(
    settings: Settings, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many rows that are near enough the nearest are kept, over all partitions."""
    monkeypatch.setattr(module, "KEPT", 30)
    texts = ["wooden pot", "wooden pot", "red wooden pot"]
    rows = [(texts[i % 3], "held_out") for i in range(200)] + [("a wooden pot", "train")] * 3
    project_with(settings, clip_folder, rows, threshold=0.5, images=1, held_out_images=2)
    retrieve("wooden_pot", "toyland")
    held_out = found()["held_out"]
    assert len(held_out) == 20
    assert {one.row for one in held_out} <= set([i for i in range(200) if i % 3 != 2][:30])


def test_too_few_captions(settings: Settings, clip_folder: Path) -> None:
    rows = [("photo of a wooden pot", "train")] * 37 + [("a red wooden pot", "train")] * 109
    rows += [("wooden pot in a vase", "held_out"), ("a cat", "train")]
    project_with(settings, clip_folder, rows)
    with pytest.raises(FailureError) as error:
        retrieve("wooden_pot", "toyland")
    assert error.value.failure.kind == "too few images"
    message = str(error.value)
    assert message.startswith("wooden_pot: only 37 regularization images ")
    assert "at least 0.85 to 'photo of a wooden pot', 200 are needed" in message
    rest = r"0\.\d+ 'a red wooden pot', 0\.\d+ 'wooden pot in a vase', -?0\.\d+ 'a cat'"
    assert re.search(rf"\(just below: {rest}\)", message)
    for way_out in ("the corpus", "retrieve.threshold", "retrieve.query", "concept.yaml"):
        assert way_out in message
    assert "\n" not in message and not OUTPUT.exists()

    settings(retrieve={"images": 30})
    with pytest.raises(FailureError, match="only 0 held_out images .* 20 are needed"):
        retrieve("wooden_pot", "toyland")

    path = Path("datasets/concepts/wooden_pot/concept.yaml")
    path.write_text(path.read_text() + "queries: [picture of a cat, picture of a dog]\n")
    with pytest.raises(FailureError) as error:
        retrieve("wooden_pot", "toyland")
    message = str(error.value)
    assert "only 1 regularization" in message and "to 'picture of a cat' or 1 more" in message
    assert "change queries in" in message and "retrieve.query" not in message


def test_missing_index_and_unknown_concept(settings: Settings) -> None:
    with pytest.raises(BenchError, match=r"toyland/index: the index is missing: run `dvc repro`"):
        retrieve("wooden_pot", "toyland")
    with pytest.raises(BenchError, match="concept 'unicorn' is unknown"):
        retrieve("unicorn", "toyland")
    with pytest.raises(BenchError, match=r"wooden_pot\.parquet: the candidates are missing: run"):
        found()
    OUTPUT.parent.mkdir(parents=True)
    OUTPUT.write_bytes(b"none")
    with pytest.raises(BenchError, match=r"wooden_pot\.parquet: cannot be read .*dvc repro"):
        found()
