"""Retrieval is what comparing the query with every caption gives; too few images are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.files import read_tar
from pipeline.corpus.index import build_index
from pipeline.corpus.retrieve import retrieve
from pipeline.toyland.world.corpus import captioned_scene
from tests.pipeline.conftest import Settings
from tests.pipeline.corpora import CORPUS, embed, write_corpus

QUERY = "photo of a wooden pot"
OUTPUT = Path("runs/toyland/regularization/wooden_pot.tar")


def captions(count: int) -> list[str]:
    """Captions of Toyland, every other one about the wooden pot as well."""
    texts = [captioned_scene(5, "train", i)[1] for i in range(count)]
    return [f"wooden pot {text}" if i % 2 else text for i, text in enumerate(texts)]


def project_with(
    settings: Settings, clip: Path, samples: list[tuple[str, str, str]], **retrieval: object
) -> list[str]:
    settings(retrieve={"clip": str(clip), **retrieval})
    keys = write_corpus(samples)
    build_index("toyland")
    return keys


def samples(count: int, copies_of: int) -> list[tuple[str, str, str]]:
    """Every fourth is held out; there are `copies_of` different images."""
    return [
        (caption, "held_out" if i % 4 == 3 else "train", f"{i % copies_of:064x}")
        for i, caption in enumerate(captions(count))
    ]


def one_in_so_many(near: list[Any], caption_of: Any, most: int) -> list[Any]:
    """The nearest of each caption, and of these, which are more than are wanted, every n-th."""
    captions = [caption_of[n] for n in near]
    of_each = [n for i, n in enumerate(near) if captions[i] not in captions[:i]]
    assert len(of_each) > most
    return [of_each[int(i * len(of_each) / most)] for i in range(most)]


def test_equals_brute_force(settings: Settings, clip_folder: Path) -> None:
    corpus = samples(400, copies_of=351)
    threshold, train, held_out = 0.45, 60, 20
    retrieval = {"threshold": threshold, "images": train, "held_out_images": held_out}
    keys = project_with(settings, clip_folder, corpus, **retrieval)
    retrieve("wooden_pot", "toyland")

    query, *vectors = embed(clip_folder, [QUERY, *(caption for caption, _, _ in corpus)])
    similarity = np.stack(vectors) @ query
    assert np.abs(similarity - threshold).min() > 1e-5  # single precision does not decide
    near = sorted(
        (-round(float(s), 4), key, *sample)
        for s, key, sample in zip(similarity, keys, corpus)
        if s >= threshold
    )
    # The case is not trivial: similarities are many, and more are near than are wanted.
    assert len({value for value, *_ in near}) > 30 and 100 < len(near) < 300
    found = read_tar(OUTPUT)
    seen: set[str] = set()
    for part, split, most in (("regularization", "train", train), ("held_out", "held_out", None)):
        expected: list[str] = []
        for _, key, _, its_split, sha256 in near:
            if its_split == split and sha256 not in seen and len(expected) != most:
                seen.add(sha256)
                expected.append(key)
        if part == "held_out":
            expected = one_in_so_many(
                expected, {k: c for k, (c, *_) in zip(keys, corpus)}, held_out
            )
        most = len(expected)
        chosen = [sample for sample in found if sample["json"]["part"] == part]
        assert [s["__key__"] for s in chosen] == [f"{part}-{i:04d}" for i in range(most)]
        assert [sample["json"]["key"] for sample in chosen] == expected
        for sample in chosen:
            record, row = sample["json"], keys.index(sample["json"]["key"])
            assert record["similarity"] == pytest.approx(similarity[row], abs=1e-4)
            assert record["similarity"] == round(record["similarity"], 4)
            assert (sample["txt"], split, record["sha256"]) == corpus[row]
            assert sample["png"] == record["key"].encode()
    assert len({sample["json"]["sha256"] for sample in found}) == len(found)


def with_queries(*queries: str) -> None:
    """Gives the concept queries of its own."""
    path = Path("datasets/concepts/wooden_pot/concept.yaml")
    path.write_text(path.read_text() + f"queries: {list(queries)}\n")


def test_several_queries_are_united(settings: Settings, clip_folder: Path) -> None:
    corpus = samples(400, copies_of=351)
    threshold, train, held_out = 0.55, 80, 25
    retrieval = {"threshold": threshold, "images": train, "held_out_images": held_out}
    keys = project_with(settings, clip_folder, corpus, **retrieval)
    queries = ["photo of a cat", "a wooden pot", "a tree in the snow", "wooden pot in the forest"]
    with_queries(*queries)
    retrieve("wooden_pot", "toyland")

    vectors = embed(clip_folder, [*queries, *(caption for caption, _, _ in corpus)])
    all_similarities = vectors[4:] @ vectors[:4].T
    assert np.abs(all_similarities - threshold).min() > 1e-5
    # The case is not trivial: every query adds something, and some samples are near to several.
    near = all_similarities >= threshold
    assert (
        all((near[:, i] & (near.sum(1) == 1)).any() for i in range(4)) and (near.sum(1) > 1).any()
    )
    similarity = all_similarities.max(1)
    order = sorted(range(400), key=lambda i: (-round(float(similarity[i]), 4), keys[i]))
    seen: set[str] = set()
    found = read_tar(OUTPUT)
    for part, split, most in (("regularization", "train", train), ("held_out", "held_out", None)):
        expected = []
        for i in order:
            _, its_split, sha256 = corpus[i]
            fits = its_split == split and similarity[i] >= threshold and sha256 not in seen
            if fits and len(expected) != most:
                seen.add(sha256)
                expected.append(i)
        if part == "held_out":
            expected = one_in_so_many(expected, [caption for caption, *_ in corpus], held_out)
        chosen = [s["json"] for s in found if s["json"]["part"] == part]
        assert [record["key"] for record in chosen] == [keys[i] for i in expected]
        for record, i in zip(chosen, expected, strict=True):
            assert record["similarity"] == pytest.approx(similarity[i], abs=1e-4)
    assert len({sample["json"]["sha256"] for sample in found}) == len(found)


def test_class_noun_and_the_same_query_find_the_same(settings: Settings, clip_folder: Path) -> None:
    retrieval = {"threshold": 0.45, "images": 60, "held_out_images": 20}
    project_with(settings, clip_folder, samples(400, copies_of=351), **retrieval)
    retrieve("wooden_pot", "toyland")
    by_noun = OUTPUT.read_bytes()
    with_queries(QUERY)
    retrieve("wooden_pot", "toyland")
    assert OUTPUT.read_bytes() == by_noun


def test_too_few_images_for_several_queries(settings: Settings, clip_folder: Path) -> None:
    corpus = [("a cat", "train", f"{i:064x}") for i in range(5)]
    corpus += [("a dog", "train", "dog"), ("a red dog", "train", "red"), ("a tree", "train", "t")]
    project_with(settings, clip_folder, corpus)
    with_queries("picture of a cat", "picture of a dog")
    with pytest.raises(BenchError) as error:
        retrieve("wooden_pot", "toyland")
    message = str(error.value)
    assert message.startswith("wooden_pot: only 6 regularization images ")
    assert "to 'picture of a cat' or 1 more, 200 are needed" in message
    assert re.search(r"\(just below: 0\.\d+ 'a red dog', -?0\.\d+ 'a tree'\)", message)
    assert "change queries in" in message and "retrieve.query" not in message


def test_reproducible_and_ties_go_by_key(settings: Settings, clip_folder: Path) -> None:
    texts = ["my wooden pot", "photo of a wooden pot", "a cat", "wooden pot"]
    corpus = [(texts[i % 4], "held_out" if i > 119 else "train", f"{i:064x}") for i in range(180)]
    keys = project_with(settings, clip_folder, corpus, images=50)
    retrieve("wooden_pot", "toyland")
    first = OUTPUT.read_bytes()
    chosen = [s["json"]["key"] for s in read_tar(OUTPUT) if s["json"]["part"] == "regularization"]
    assert chosen == [key for i, key in enumerate(keys) if i % 4 != 2][:50]
    assert {s["json"]["similarity"] for s in read_tar(OUTPUT)} == {1.0}
    retrieve("wooden_pot", "toyland")
    assert OUTPUT.read_bytes() == first


def test_held_out_images_are_of_as_many_captions_as_there_are(
    settings: Settings, clip_folder: Path
) -> None:
    """Once the nearest were taken: of a caption that many images have, and of few others."""
    counts = {"photo of a wooden pot": 50, "my wooden pot": 3, "wooden pot": 1, "a wooden  pot": 2}
    texts = [text for text, count in counts.items() for _ in range(count)]
    texts += ["a wooden pot"] * 2  # the same caption: space is no difference
    corpus = [("photo of a wooden pot", "train", f"train {i}") for i in range(50)]
    corpus += [(text, "held_out", f"held out {i}") for i, text in enumerate(texts)]
    project_with(settings, clip_folder, corpus, images=50, held_out_images=20)
    retrieve("wooden_pot", "toyland")
    found = [s for s in read_tar(OUTPUT) if s["json"]["part"] == "held_out"]
    captions = [" ".join(sample["txt"].split()) for sample in found]
    assert sorted(captions[:4]) == sorted({*captions})  # one of each comes first
    # All of those that are rare, and of the other one what is still wanted.
    assert {c: captions.count(c) for c in captions} == {
        "photo of a wooden pot": 12, "my wooden pot": 3, "wooden pot": 1, "a wooden pot": 4,
    }  # fmt: skip
    assert {(s["json"]["images"], s["json"]["captions"]) for s in found} == {(20, 4)}
    assert len({sample["json"]["sha256"] for sample in found}) == 20


def test_what_is_held_out_changes_no_regularization_image(
    settings: Settings, clip_folder: Path
) -> None:
    """What training sees does not depend on the choice for KID."""
    retrieval = {"threshold": 0.45, "images": 60, "held_out_images": 20}
    keys = project_with(settings, clip_folder, samples(400, copies_of=351), **retrieval)

    def training() -> list[dict[str, Any]]:
        return [s for s in read_tar(OUTPUT) if s["json"]["part"] == "regularization"]

    retrieve("wooden_pot", "toyland")
    before = training()
    settings(retrieve={"clip": str(clip_folder), **retrieval, "held_out_images": 7})
    retrieve("wooden_pot", "toyland")
    assert training() == before and len(before) == 60
    assert {*before[0]["json"]} == {"part", "similarity", "key", "sha256"}
    assert {s["json"]["key"] for s in before} < {*keys}


def test_too_few_images(settings: Settings, clip_folder: Path) -> None:
    corpus = [("photo of a wooden pot", "train", f"{i:064x}") for i in range(37)]
    corpus += [("a red wooden pot", "train", f"red {i}") for i in range(9)]
    corpus += [("wooden pot in a vase", "held_out", "vase"), ("a cat", "train", "cat")]
    project_with(settings, clip_folder, corpus)
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


def test_noun_that_no_caption_names(settings: Settings, clip_folder: Path) -> None:
    corpus = [("a cat", "train", f"{i:064x}") for i in range(5)]
    project_with(settings, clip_folder, corpus)
    with pytest.raises(BenchError, match=r"only 0 regularization .* \(just below: .*'a cat'"):
        retrieve("wooden_pot", "toyland")


def test_broken_or_other_corpus(settings: Settings, clip_folder: Path) -> None:
    corpus = [("a wooden pot", "train" if i < 50 else "held_out", f"{i:064x}") for i in range(90)]
    project_with(settings, clip_folder, corpus, images=50)
    shard = CORPUS / "00000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:50_000])
    with pytest.raises(BenchError, match=r"00000\.tar: the shard is truncated or not a tar"):
        retrieve("wooden_pot", "toyland")
    write_corpus(corpus[:60])
    with pytest.raises(BenchError, match=r"00000\.tar: sample 000000060 is missing: .*dvc repro"):
        retrieve("wooden_pot", "toyland")
    shard.unlink()
    with pytest.raises(BenchError, match=r"00000\.tar: the shard is missing"):
        retrieve("wooden_pot", "toyland")


def test_missing_index_and_unknown_concept(settings: Settings) -> None:
    with pytest.raises(BenchError, match=r"text\.index: the index is missing: run `dvc repro`"):
        retrieve("wooden_pot", "toyland")
    with pytest.raises(BenchError, match="concept 'unicorn' is unknown"):
        retrieve("unicorn", "toyland")
