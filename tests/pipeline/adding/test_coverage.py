"""Captions are counted before a run as retrieval will count them, and as comparing all does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.adding import coverage as module
from pipeline.adding.coverage import Coverage, coverage
from pipeline.clip.openclip import Clip
from pipeline.common.errors import BenchError
from pipeline.corpus.index import build_index
from pipeline.corpus.retrieve import retrieve
from pipeline.settings.profile import load_params
from pipeline.toyland.world.corpus import captioned_scene
from tests.pipeline.conftest import Settings
from tests.pipeline.corpora import bag_of_words, embed, write_corpus

WORLD = {"images": 300, "held_out": 150, "seed": 3}
NOUNS = ("cat", "wooden pot", "clock")


def count(*nouns: str) -> dict[str, Coverage]:
    wanted = {noun: (f"photo of a {noun}",) for noun in nouns}
    return coverage(wanted, ["cat"], load_params())


@pytest.fixture
def world(settings: Settings, clip_folder: Path) -> Iterator[list[tuple[str, str]]]:
    """A small drawn world as (caption, split), and a CLIP to which words are all."""
    retrieval = {"clip": str(clip_folder), "images": 500, "held_out_images": 500}
    settings(world=WORLD, retrieve=retrieval)
    yield [
        (captioned_scene(3, split, i)[1], split)
        for split, images in (("train", 300), ("held_out", 150))
        for i in range(images)
    ]


def test_counts_of_a_world_that_is_not_drawn_yet(
    world: list[tuple[str, str]], clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT", 20)
    found = count(*NOUNS)
    queries = embed(clip_folder, [f"photo of a {noun}" for noun in NOUNS])
    near = embed(clip_folder, [caption for caption, _ in world]) @ queries.T >= 0.85
    train = np.array([split == "train" for _, split in world])
    for i, noun in enumerate(NOUNS):
        expected = {"regularization": near[train, i].sum(), "held_out": near[~train, i].sum()}
        assert found[noun].found == expected
        assert not found[noun].enough
    assert found["cat"].found["regularization"] > 0
    assert sum(found["clock"].found.values()) == 0
    assert found["clock"].needed == {"regularization": 500, "held_out": 20}


def test_short_captions_do_if_they_are_enough(
    world: list[tuple[str, str]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(retrieve={"images": 2, "held_out_images": 2})
    monkeypatch.setattr(module, "SHORT", 60)
    embedded: list[str] = []
    encode = Clip.encode_texts

    def counting(self: Clip, texts: list[str]) -> object:
        embedded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Clip, "encode_texts", counting)
    assert count("cat")["cat"].enough
    captions = {caption for caption, _ in world}
    assert 60 <= len(captions & set(embedded)) < 100 < len(captions)
    assert not count("clock")["clock"].enough
    assert captions <= set(embedded)


def test_an_index_is_asked_in_place_of_the_world(
    world: list[tuple[str, str]], settings: Settings, tmp_path: Path
) -> None:
    corpus = [("a clock", "train")] * 7 + [("my clock", "held_out")] * 4
    urls = [f"{i}.png" for i in (*range(7), 7, 8, 8, 7)]  # two of them again
    write_corpus(corpus, urls)
    build_index("toyland")
    assert count("clock")["clock"].found == {"regularization": 7, "held_out": 2}

    # An index that another CLIP made says nothing: the world does, or one has to make it again.
    other = tmp_path / "other"
    bag_of_words(other)
    weights = other / "open_clip_model.safetensors"
    reversed_words(weights)
    settings(retrieve={"clip": str(other)})
    assert count("clock")["clock"].found == {"regularization": 0, "held_out": 0}
    params = load_params().model_copy(update={"world": None})
    with pytest.raises(
        BenchError, match="was made with another CLIP than .*other: run `dvc repro`"
    ):
        coverage({"clock": ("photo of a clock",)}, [], params)


def reversed_words(weights: Path) -> None:
    """Gives every word of the CLIP in that file the opposite direction of another one."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    words = tensors["token_embedding.weight"]
    tensors["token_embedding.weight"] = -words.roll(1, dims=1)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)


def test_agrees_with_the_stage(world: list[tuple[str, str]], settings: Settings) -> None:
    """The number at which retrieval begins to fail is the one that was counted."""
    drawn = count("wooden pot")["wooden pot"].found
    assert drawn["regularization"] > 1 and drawn["held_out"] > 1
    write_corpus(world)
    build_index("toyland")
    assert count("wooden pot")["wooden pot"].found == drawn
    enough = {"images": drawn["regularization"], "held_out_images": drawn["held_out"]}
    settings(retrieve=enough)
    assert count("wooden pot")["wooden pot"].enough
    retrieve("wooden_pot", "toyland")
    settings(retrieve={**enough, "images": enough["images"] + 1})
    assert not count("wooden pot")["wooden pot"].enough
    with pytest.raises(BenchError, match="wooden_pot: only"):
        retrieve("wooden_pot", "toyland")


def test_nouns_that_have_enough_are_named_nearest_first(
    world: list[tuple[str, str]], settings: Settings
) -> None:
    settings(retrieve={"images": 2, "held_out_images": 2})
    found = count("clock", "wooden clock")
    assert found["wooden clock"].instead[0] == "wooden pot"  # which shares a word
    assert "; nearest class nouns with enough: wooden pot, " in str(found["wooden clock"])
    settings(retrieve={"images": 400})
    assert str(count("clock")["clock"]).endswith("nearest class nouns with enough: none")


def test_what_cannot_be_known(settings: Settings, clip_folder: Path) -> None:
    params = load_params("paper")
    assert not module.can_be_known(params)
    with pytest.raises(
        BenchError, match="paper/runs/index: is missing: `dvc --cd profiles/paper repro`"
    ):
        coverage({"clock": ("photo of a clock",)}, [], params)
    settings(retrieve={"clip": str(clip_folder)})
    write_corpus([("a clock", "train")])
    build_index("toyland")
    Path("runs/toyland/index/00000.index").write_bytes(b"no index")
    with pytest.raises(BenchError, match=r"runs/toyland/index: the index is damaged .*dvc repro"):
        count("clock")
