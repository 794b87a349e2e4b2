"""Galleries: what they hold, that nothing trains on it, and that look-alikes can be told apart."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.clip.openclip import load_clip
from pipeline.concepts.concept import load_concept
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.gallery import gallery, lookalikes, portrait
from pipeline.toyland.world.personal import PERSONAL, personal_gallery, personal_scenes
from pipeline.toyland.world.scenes import Scene

CONCEPTS = Path(__file__).parents[4] / "datasets" / "concepts"


def _things(name: str) -> list[set[object]]:
    """The individuals that each folder of look-alikes shows."""
    folders: dict[PurePosixPath, set[object]] = {}
    for path, scene in personal_gallery(name).items():
        if path.parts[0] == "lookalikes":
            folders.setdefault(path.parent, set()).update(scene.things)
    return [folders[PurePosixPath(f"lookalikes/{i:02d}")] for i in range(1, 13)]


@pytest.mark.parametrize("name", PERSONAL)
def test_a_gallery_has_the_concept_and_twelve_others_in_four_places(name: str) -> None:
    scenes = personal_gallery(name)
    folders = ["held_out", *(f"lookalikes/{i:02d}" for i in range(1, 13))]
    assert [str(p) for p in scenes] == [f"{f}/{i:02d}.png" for f in folders for i in range(4)]
    for folder in folders:
        some = [scene for path, scene in scenes.items() if str(path.parent) == folder]
        assert len({scene.background for scene in some}) == 4
        assert {(scene.style, scene.size) for scene in some} == {("photo", "normal")}
        assert len({scene.things for scene in some}) == len(some[0].things) == 1
        assert (some[0].things == (PERSONAL[name],)) == (folder == "held_out")


@pytest.mark.parametrize("name", PERSONAL)
def test_half_of_the_lookalikes_have_its_colour_and_none_is_a_concept(name: str) -> None:
    thing, others = PERSONAL[name], lookalikes(PERSONAL[name], "a test")
    for twelve in (others, [one for (one,) in _things(name)]):
        assert len(set(twelve)) == 12
        assert {other.category for other in twelve} == {thing.category}
        assert [other.colour == thing.colour for other in twelve] == [True] * 6 + [False] * 6
    kin = [other for other in PERSONAL.values() if other.category == thing.category]
    scene = portrait(thing, 0, 0, 2)
    concepts = [draw(replace(scene, things=(one,))).astype(int) for one in kin]
    for (other,) in _things(name):
        drawn = draw(replace(scene, things=(other,)))
        assert min(np.abs(drawn - concept).mean() for concept in concepts) > 3


def test_galleries_depend_on_what_they_are_for_alone() -> None:
    thing = PERSONAL["cat"]
    assert gallery(thing, 3, "cat", 0) == gallery(thing, 3, "cat", 0)
    assert not set(lookalikes(thing, "cat", 0)) & set(lookalikes(thing, "cat", 1))


def test_a_third_of_the_concepts_share_category_and_colour_with_another() -> None:
    looks = Counter((thing.category, thing.colour) for thing in PERSONAL.values())
    assert len(PERSONAL) == 24 and 3 * sum(n for n in looks.values() if n > 1) >= 24
    individuals = Counter(thing.category for thing in PERSONAL.values())
    assert individuals["cat"] > 1 and individuals["dog"] > 1


def test_nothing_trains_on_a_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONCEPTS.parents[1])
    for name in PERSONAL:
        images = load_concept(name).images
        assert {path.parent for path in images} == {Path(f"datasets/concepts/{name}/images")}
        shown = [
            hashlib.sha256(path.read_bytes()).digest() for path in CONCEPTS.glob(f"{name}/**/*.png")
        ]
        assert len(set(shown)) == len(shown) == len(images) + 4 + 12 * 4


Features = npt.NDArray[np.float32]


def _seen(
    folder: Path, scenes: dict[PurePosixPath, Scene]
) -> tuple[Features, npt.NDArray[np.str_]]:
    """Unit features of pictures [n, d] as the scorer sees them, and the places that they show."""
    images = [Image.open(folder / path) for path in scenes]
    places = np.array([scene.background for scene in scenes.values()])
    return load_clip("models/toyland/scorer").encode_images(images), places


def _auc(own: Features, other: Features) -> float:
    """How often one of `own` is above one of `other`: the area under the ROC curve."""
    return float(((1 + np.sign(own[:, None] - other)) / 2).mean())


@pytest.mark.parametrize("name", PERSONAL)
def test_the_scorer_tells_each_concept_from_its_lookalikes_and_its_kin(name: str) -> None:
    """Two pictures of it in different places are more alike than one of it and one of another."""
    own = {PurePosixPath(f"images/{i:02d}.png"): s for i, s in enumerate(personal_scenes(name))}
    others = {}
    for path, scene in personal_gallery(name).items():
        (own if path.parts[0] == "held_out" else others)[path] = scene
    features, places = _seen(CONCEPTS / name, own)
    elsewhere = np.triu(places[:, None] != places, 1)
    alike = (features @ features.T)[elsewhere]

    def told(folder: Path, scenes: dict[PurePosixPath, Scene]) -> float:
        theirs, there = _seen(folder, scenes)
        return _auc(alike, (features @ theirs.T)[places[:, None] != there])

    assert told(CONCEPTS / name, others) >= 0.95
    for kin, thing in PERSONAL.items():
        if kin != name and thing.category == PERSONAL[name].category:
            scenes = personal_scenes(kin)
            shown = {PurePosixPath(f"images/{i:02d}.png"): s for i, s in enumerate(scenes)}
            assert told(CONCEPTS / kin, shown) >= 0.95
