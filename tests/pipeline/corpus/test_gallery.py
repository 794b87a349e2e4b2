"""Galleries: whose pictures they hold, and what is said of folders that cannot be used."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline.common.errors import BenchError
from pipeline.common.files import read_tar
from pipeline.concepts.concept import load_concept
from pipeline.concepts.shards import gallery_of
from pipeline.corpus.gallery import make_gallery, stand_ins
from pipeline.settings.profile import load_grid, load_params

CAT = Path("datasets/concepts/cat")


def picture(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def bare(project: Path) -> Path:
    """A project without galleries."""
    for gallery in CAT.parent.glob("*/lookalikes"):
        gallery.rmdir()
    return project


def sources(part: list[dict]) -> list[str]:
    return [sample["json"]["source"] for sample in part]


def test_folders_say_whose_pictures_there_are(bare: Path) -> None:
    own = picture(CAT / "held_out" / "00.png", 0)
    wide = picture(CAT / "lookalikes" / "07" / "b.png", 1, (151, 90))
    picture(CAT / "lookalikes" / "tom" / "a.png", 2)
    picture(CAT / "lookalikes" / "tom" / "c.png", 3)
    make_gallery("cat", "toyland")
    found = gallery_of(load_params(), "cat")
    assert sources(found.own) == ["datasets/concepts/cat/held_out/00.png"]
    assert [s["json"]["individual"] for s in found.others] == ["07", "tom", "tom"]
    assert found.lookalikes() == 2
    first, second = (
        np.asarray(Image.open(io.BytesIO(s["png"]))) for s in (found.own[0], found.others[0])
    )
    np.testing.assert_array_equal(first, own)
    central = Image.fromarray(wide[:, 30:120]).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(second, central)
    digest = hashlib.sha256((CAT / "lookalikes/07/b.png").read_bytes()).hexdigest()
    assert found.others[0]["json"]["sha256"] == digest
    path = Path("runs/toyland/galleries/cat.tar")
    before = path.read_bytes()
    make_gallery("cat", "toyland")
    assert path.read_bytes() == before


def test_without_folders_targets_of_the_same_noun_are_there(bare: Path) -> None:
    """As of concepts that were imported: dogs are look-alikes of dogs, and no chair is."""
    yaml = YAML()
    grid = yaml.load(bare / "grid.yaml")
    grid["concepts"] = {"cat": {"class_noun": "cat"}, "chair": {"class_noun": "chair"}}
    for i in range(3):
        name = f"cat{i}"
        shutil.copytree(CAT, CAT.parent / name)
        file = CAT.parent / name / "concept.yaml"
        file.write_text(file.read_text().replace("name: cat", f"name: {name}"))
        picture(CAT.parent / name / "images" / "00.png", 10 + i)
        grid["concepts"][name] = {"class_noun": "cat"}
    for group in ("compositions", "triples", "sequences", "sequence_concepts"):
        grid[group] = {}
    yaml.dump(grid, bare / "grid.yaml")
    alike = [name for name in load_grid().concepts if load_concept(name).class_noun == "cat"]
    assert {*alike} <= {*stand_ins(load_grid())}  # each of another one
    make_gallery("cat", "toyland")
    found = gallery_of(load_params(), "cat")
    assert sources(found.own) == [path.as_posix() for path in load_concept("cat").images]
    assert {s["json"]["individual"] for s in found.others} == {"cat0", "cat1", "cat2"}
    assert sources(found.others) == [
        path.as_posix() for i in range(3) for path in load_concept(f"cat{i}").images
    ]
    # Held-out pictures of its own are taken, whoever the others are.
    picture(CAT / "held_out" / "x.jpg", 5)
    make_gallery("cat", "toyland")
    assert sources(gallery_of(load_params(), "cat").own) == [f"{CAT.as_posix()}/held_out/x.jpg"]
    make_gallery("chair", "toyland")
    lonely = gallery_of(load_params(), "chair")
    if not (CAT.parent / "chair" / "lookalikes").is_dir():
        assert lonely.lookalikes() == 0
    assert "chair" not in stand_ins(load_grid())


def test_what_cannot_be_used_is_named(bare: Path) -> None:
    (CAT / "held_out").mkdir()
    with pytest.raises(BenchError, match=r"cat/held_out: holds no pictures: put some there, or re"):
        make_gallery("cat", "toyland")
    picture(CAT / "held_out" / "00.png", 0)
    (CAT / "lookalikes" / "01").mkdir(parents=True)
    with pytest.raises(BenchError, match=r"cat/lookalikes/01: holds no pictures"):
        make_gallery("cat", "toyland")
    picture(CAT / "lookalikes" / "01" / "00.png", 1)
    picture(CAT / "lookalikes" / "02.png", 2)
    with pytest.raises(BenchError, match=r"lookalikes/02\.png: each look-alike has a folder of it"):
        make_gallery("cat", "toyland")
    (CAT / "lookalikes" / "02.png").unlink()
    broken = CAT / "lookalikes" / "01" / "00.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(BenchError, match=r"lookalikes/01/00\.png: cannot be decoded"):
        make_gallery("cat", "toyland")
    assert not Path("runs/toyland/galleries/cat.tar").exists()


def test_a_missing_gallery_is_told(bare: Path) -> None:
    with pytest.raises(BenchError, match=r"galleries/cat\.tar: the shard is missing: run `dvc rep"):
        gallery_of(load_params(), "cat")


def test_keys_keep_the_order_of_many_pictures(bare: Path) -> None:
    for i in range(12):
        picture(CAT / "held_out" / f"{i:02d}.png", i, (16, 16))
    make_gallery("cat", "toyland")
    keys = [s["__key__"] for s in read_tar(Path("runs/toyland/galleries/cat.tar"))]
    assert keys == sorted(keys)
    found = sources(gallery_of(load_params(), "cat").own)
    assert found == [f"{CAT.as_posix()}/held_out/{i:02d}.png" for i in range(12)]
