"""`bench toyland concept`: individuals that one can tell apart, and whole concepts of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.adding.individual import draw_concept, individual, individual_scenes
from pipeline.common.errors import BenchError
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import load_concept
from pipeline.settings.profile import load_grid
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.gallery import gallery
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import CATEGORIES, COLOURS


@pytest.mark.parametrize("category", CATEGORIES)
def test_individuals_are_unlike_those_that_ship_and_each_other(category: str) -> None:
    some = [individual(category, seed) for seed in range(40)]
    shipped = [thing.colour for thing in PERSONAL.values() if thing.category == category]
    for thing in some:
        assert thing.category == category
        assert thing.pattern in ("stripes", "spots", "patch")
        assert thing.colour not in shipped
        assert thing.accessory is None
        # Its pattern can be seen on its body.
        assert sum(abs(a - b) for a, b in zip(thing.rgb, thing.pattern_rgb)) > 150
    assert len(set(some)) == 40
    assert len({thing.colour for thing in some}) > len(COLOURS) / 2
    assert some == [individual(category, seed) for seed in range(40)]


def test_pictures_show_it_alone_in_several_places() -> None:
    scenes = individual_scenes("dog", 5, 7)
    assert {scene.things for scene in scenes} == {(individual("dog", 5),)}
    assert len({scene.background for scene in scenes}) == 7
    assert {(scene.style, scene.size) for scene in scenes} == {("photo", "normal")}
    assert scenes[:3] == individual_scenes("dog", 5, 3)
    assert scenes[0].position != individual_scenes("dog", 6, 1)[0].position


def test_it_becomes_a_concept(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_concept("my_cat", "cat", 5, 4, "smoke")
    concept = load_concept("my_cat")
    assert (concept.class_noun, len(concept.images), len(concept.prompts)) == ("cat", 4, 20)
    for path, scene in zip(concept.images, individual_scenes("cat", 5, 4), strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), draw(scene))
    assert load_grid("smoke").concepts["my_cat"].class_noun == "cat"
    about = read_yaml(project / "datasets/concepts/my_cat/concept.yaml")
    command = 'bench toyland concept --class "cat" --seed 5 --images 4'
    assert (about["licence"], about["source"]) == ("CC0-1.0", f"Toyland, drawn by `{command}`")
    said = capsys.readouterr().out
    assert "my_cat is a red cat with a patch: see datasets/concepts/my_cat/images" in said
    assert "drawings only" not in said

    draw_concept("other", "cat", 5, 4, "smoke")
    again = load_concept("other").images
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in concept.images]


def test_it_brings_its_gallery(project: Path) -> None:
    draw_concept("my_cat", "cat", 5, 4, "smoke")
    draw_concept("other", "cat", 5, 4, "smoke")
    draw_concept("third", "cat", 6, 4, "smoke")
    folders = [project / "datasets/concepts" / name for name in ("my_cat", "other", "third")]
    shown = [
        {path.relative_to(f): path.read_bytes() for path in f.rglob("*/*.png")} for f in folders
    ]
    kinds = Counter(path.parts[0] for path in shown[0])
    assert kinds == {"images": 4, "held_out": 4, "lookalikes": 12 * 4}
    assert len(set(shown[0].values())) == 56
    assert shown[0] == shown[1] and not set(shown[0].values()) & set(shown[2].values())
    for path, scene in gallery(individual("cat", 5), 4, "cat", 5).items():
        with Image.open(folders[0] / path) as image:
            assert np.array_equal(np.asarray(image), draw(scene))
    assert {path.parent.name for path in load_concept("my_cat").images} == {"images"}


def test_what_cannot_be_drawn(project: Path) -> None:
    with pytest.raises(BenchError, match="--class 'clock': Toyland draws cat, dog, teddybear"):
        draw_concept("x", "clock", 0)
    with pytest.raises(BenchError, match=r"profiles/paper/params\.yaml: the profile has no drawn"):
        draw_concept("x", "cat", 0, profile="paper")
    with pytest.raises(BenchError, match="'cat' is there already"):
        draw_concept("cat", "cat", 0)
