"""`bench concept add`: what it writes, and that it writes nothing when something is wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.adding import add as concept_add
from pipeline.adding.add import (
    DEFAULT_PROMPTS,
    add_concept,
    add_to_grid,
    new_stages,
    tell_stages,
)
from pipeline.common.errors import BenchError
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import load_concept, load_subject, read_prompts
from pipeline.settings.profile import load_grid
from tests.pipeline.conftest import Settings

ROOT = Path(__file__).parents[3]
PHOTOS = ROOT.parent / "shared" / "data" / "dreambooth" / "dataset"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content; empty folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, among them one on its side and one with transparency."""
    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(noise[..., :3]).save(folder / "a.jpg", exif=exif)
    Image.fromarray(noise).save(folder / "b.png")
    Image.fromarray(noise[..., 0]).save(folder / "C.PNG")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not one either")
    return folder


def test_adds_a_concept(project: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_concept("my_cat", [photos], " cat ")

    concept = load_concept("my_cat")
    assert concept.class_noun == "cat"
    assert concept.caption == "photo of a {}"
    assert concept.prompts == DEFAULT_PROMPTS
    assert [p.name for p in concept.images] == ["00.png", "01.png", "02.png"]
    opened = [Image.open(path) for path in concept.images]
    assert [(i.mode, i.size) for i in opened] == [  # C.PNG, a.jpg turned upright, b.png
        ("RGB", (60, 40)),
        ("RGB", (40, 60)),
        ("RGB", (60, 40)),
    ]
    assert not any(0x0112 in image.getexif() for image in opened)
    assert load_grid().concepts["my_cat"].class_noun == "cat"
    assert load_subject("my_cat").concepts[0].name == "my_cat"

    tell_stages("my_cat", "toyland")
    said = capsys.readouterr().out
    assert "added my_cat: 3 images and 20 prompts" in said
    assert "`dvc repro` will run these 18 stages" in said
    assert "cells/dreambooth/dvc.yaml: train@my_cat sample@my_cat score@my_cat" in said


def test_licence_source_and_a_picture_that_is_there_twice(
    project: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "z.png").write_bytes((photos / "b.png").read_bytes())
    add_concept("my_cat", [photos], "cat", licence="CC0-1.0", source="my garden")
    assert len(load_concept("my_cat").images) == 3
    about = read_yaml(project / "datasets/concepts/my_cat/concept.yaml")
    assert (about["licence"], about["source"]) == ("CC0-1.0", "my garden")
    said = capsys.readouterr().out
    assert f"{photos / 'z.png'}: the same picture as {photos / 'b.png'}: left out" in said


def test_the_rest_of_the_grid_stays(project: Path, photos: Path) -> None:
    path = project / "grid.yaml"
    path.write_text(path.read_text().replace("  dog:\n", "  dog: # a good one\n"))
    before = path.read_text().splitlines()
    add_concept("my_cat", [photos], "cat")
    after = path.read_text().splitlines()
    new = [line for line in after if line not in before]
    assert new == ["  my_cat:"]
    start = after.index("  my_cat:")
    assert after[:start] + after[start + 2 :] == before
    assert list(load_grid().concepts)[-1] == "my_cat"


def test_a_concept_that_sequences_alone_have_is_not_there_twice(
    project: Path, photos: Path
) -> None:
    before = (project / "grid.yaml").read_bytes()
    assert concept_add.add_to_grid("toyland", {"tabby_cat": "cat"}) == 0
    with pytest.raises(BenchError, match="'tabby_cat' is there already: choose another name"):
        add_concept("tabby_cat", [photos], "cat")
    assert (project / "grid.yaml").read_bytes() == before


def test_own_prompts_caption_and_profile(
    project: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = project / "mine.txt"
    prompts.write_text("a  {} on the moon\n\nmy {}\n")
    add_concept("my-cat2", [photos / "b.png"], "cat", prompts, "a picture of {}", "smoke")
    concept = load_concept("my-cat2")
    assert concept.prompts == ("a {} on the moon", "my {}")
    assert concept.caption == "a picture of {}"
    assert "my-cat2" in load_grid("smoke").concepts
    assert "my-cat2" not in load_grid().concepts
    tell_stages("my-cat2", "smoke")
    assert "`dvc --cd profiles/smoke repro`" in capsys.readouterr().out


def test_default_prompts_are_valid_and_all_different(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(DEFAULT_PROMPTS))
    assert len(set(read_prompts(path, 1))) == 20


def test_toyland_knows_the_words_of_the_default_prompts() -> None:
    from pipeline.toyland.world.scenes import all_words

    words = {word for prompt in DEFAULT_PROMPTS for word in prompt.replace("{}", "").split()}
    assert words <= set(all_words())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat", r"grid\.yaml: 'cat' is there already"),
        ("barn", r"datasets/concepts/barn: exists already"),
        ("Barn", r"datasets/concepts/barn: exists already"),
        ("CAT", r"grid\.yaml: 'CAT' is there already"),
        ("toys", r"grid\.yaml: 'toys' is there already"),
        ("cat+chair", "name 'cat\\+chair': needs a letter first"),
        ("101", "name '101': needs a letter first"),
        ("", "name '': needs a letter first"),
        ("a/b", "name 'a/b': needs a letter first"),
        ("my@cat", "name 'my@cat': needs a letter first"),
        ("c" * 300, "name 'c{70}': needs a letter first, .* 64 at most"),
    ],
)
def test_bad_name(project: Path, photos: Path, name: str, message: str) -> None:
    before = snapshot(project)
    with pytest.raises(BenchError, match=message):
        add_concept(name, [photos], "cat")
    assert snapshot(project) == before


def test_same_concept_twice(project: Path, photos: Path) -> None:
    add_concept("my_cat", [photos], "cat")
    before = snapshot(project)
    with pytest.raises(BenchError, match="'my_cat' is there already"):
        add_concept("my_cat", [photos], "cat")
    assert snapshot(project) == before


@pytest.mark.parametrize("case", ["missing", "empty folder", "not an image", "cut short", "twice"])
def test_bad_images(project: Path, photos: Path, case: str) -> None:
    bad = photos / "z.jpg"
    sources, message = [photos], r"z\.jpg: cannot be decoded"
    if case == "missing":
        sources, message = [photos, bad], r"z\.jpg: no such file or folder"
    elif case == "empty folder":
        (photos / "inner").mkdir()
        sources, message = [photos / "inner"], r"inner: the folder holds no images"
    elif case == "not an image":
        bad.write_text("no")
    elif case == "cut short":
        bad.write_bytes((photos / "a.jpg").read_bytes()[:900])
    elif case == "twice":
        sources, message = [photos, photos / "b.png"], r"b\.png: is given twice"
    before = snapshot(project)
    with pytest.raises(BenchError, match=message) as error:
        add_concept("my_cat", sources, "cat")
    assert "\n" not in str(error.value)
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("prompts", "caption", "noun", "message"),
    [
        ("caf\xe9 {}\n", "photo of a {}", "cat", r"p\.txt: not UTF-8"),
        ("a {} here\na cat\n", "photo of a {}", "cat", r"p\.txt:2: prompt needs the placeholder"),
        ("", "photo of a {}", "cat", r"p\.txt: holds no prompts"),
        ("a {}\n", "photo of a cat", "cat", "--caption 'photo of a cat': needs the placeholder"),
        ("a {}\n", "a {} and a {}", "cat", "--caption"),
        ("a {}\n", "a {} and a {0}", "cat", "--caption"),
        ("a {}\n", "photo of a {}", " ", "--class ''"),
        ("a {}\n", "photo of a {}", "{}", "--class"),
    ],
)
def test_bad_words(
    project: Path, photos: Path, prompts: str, caption: str, noun: str, message: str
) -> None:
    path = photos / "p.txt"
    path.write_text(prompts, encoding="latin-1")
    before = snapshot(project)
    with pytest.raises(BenchError, match=message):
        add_concept("my_cat", [photos], noun, path, caption)
    assert snapshot(project) == before


@pytest.mark.parametrize("writes", range(3))
def test_full_disk_undoes_everything(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Concept, prompts and grid are put in place one after the other; each may fail."""
    left, replace = [writes], os.replace

    def filling(source: str, target: str) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        replace(source, target)

    before = snapshot(project)
    monkeypatch.setattr(os, "replace", filling)
    with pytest.raises(BenchError, match="could not be written: No space left on device"):
        add_concept("my_cat", [photos], "cat")
    assert snapshot(project) == before


def test_interrupt_undoes_everything(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(project)
    monkeypatch.setattr(concept_add, "add_to_grid", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_concept("my_cat", [photos], "cat")
    assert snapshot(project) == before


def test_what_another_command_added_meanwhile_stays(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands add one name: the second is refused, and takes nothing of the first away."""
    find = concept_add.distinct_photos

    def overtaken(paths: Any) -> Any:
        monkeypatch.setattr(concept_add, "distinct_photos", find)
        add_concept("my_cat", [photos], "cat")
        return find(paths)

    monkeypatch.setattr(concept_add, "distinct_photos", overtaken)
    with pytest.raises(BenchError, match="my_cat"):
        add_concept("my_cat", [photos / "b.png"], "cat")
    assert len(load_subject("my_cat").concepts[0].images) == 3
    assert "my_cat" in load_grid().concepts


def test_a_grid_that_no_command_reads_is_not_written(project: Path) -> None:
    before = Path("grid.yaml").read_bytes()
    with pytest.raises(BenchError, match="two subjects have the name 'toys'"):
        add_to_grid("toyland", {"toys": "cat"})
    assert Path("grid.yaml").read_bytes() == before


def test_stages_of_a_concept(project: Path) -> None:
    stages = new_stages("x", "smoke")
    assert stages["profiles/smoke/dvc.yaml"] == [
        "retrieve@x", "fetch@x", "shard@x", "gallery@x", "generate@x", "oracle@x",
    ]  # fmt: skip
    assert "profiles/smoke/cells/custom_diffusion_merge/dvc.yaml" not in stages


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not here")
@pytest.mark.parametrize(("folder", "noun"), [("cat2", "cat"), ("backpack_dog", "backpack")])
def test_real_photographs(project: Path, folder: str, noun: str) -> None:
    files = sorted((PHOTOS / folder).glob("*.jpg"))
    add_concept("real", [PHOTOS / folder], noun)
    concept = load_concept("real")
    assert len(concept.images) == len(files) > 0
    for path, source in zip(concept.images, files, strict=True):
        with Image.open(path) as copy, Image.open(source) as original:
            turned = original.getexif().get(0x0112, 1) >= 5
            assert copy.mode == "RGB"
            assert copy.size == (original.size[::-1] if turned else original.size)


def test_a_concept_that_the_grid_names_gets_its_images(project: Path, photos: Path) -> None:
    grid = project / "grid.yaml"
    grid.write_text(
        grid.read_text().replace("concepts:\n", "concepts:\n  tom:\n    class_noun: cat\n", 1)
    )
    before = grid.read_text()
    with pytest.raises(BenchError, match="--class 'dog': grid.yaml says that 'tom' is a 'cat'"):
        add_concept("tom", [photos], "dog")
    add_concept("tom", [photos], "cat")
    assert load_subject("tom").concepts[0].class_noun == "cat"
    assert grid.read_text().count("tom:") == before.count("tom:") == 1
    with pytest.raises(BenchError, match="is there already"):
        add_concept("tom", [photos], "cat")


def test_a_caption_or_a_noun_that_the_text_encoder_cuts(
    project: Path, photos: Path, settings: Settings
) -> None:
    settings(base={"path": str(ROOT / "models/toyland/base")})
    before = snapshot(project)
    long = " ".join(["dog"] * 100)
    with pytest.raises(BenchError, match=r"--caption 'dog .* is cut: 107 tokens, .* sees 32"):
        add_concept("my_cat", [photos], "cat", caption=f"{long} {{}}")
    with pytest.raises(BenchError, match="is cut: .* shorten it"):
        add_concept("my_cat", [photos], long)
    (photos / "p.txt").write_text(f"a {{}}\n{{}} {long}\n")
    with pytest.raises(BenchError, match=r"prompt '{} dog .* is cut: 104 tokens"):
        add_concept("my_cat", [photos], "cat", photos / "p.txt")
    assert snapshot(project) == before


def test_a_noun_that_the_corpus_lacks_is_refused_at_once(
    project: Path,
    photos: Path,
    settings: Settings,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a CLIP that sees words alone, nothing is near a clock."""
    small = {"images": 400, "held_out": 200}
    settings(retrieve={"clip": str(clip_folder), "images": 4, "held_out_images": 2}, world=small)
    before = snapshot(project)
    with pytest.raises(BenchError) as error:
        add_concept("time", [photos], "clock")
    assert snapshot(project) == before
    message = str(error.value)
    assert message.startswith(
        "--class 'clock': the corpus has 0 captions (4 needed) and 0 held-out"
    )
    for part in ("within cosine 0.85 of 'photo of a clock'; nearest", "`paper`", "--anyway"):
        assert part in message
    assert "\n" not in message

    add_concept("time", [photos], "clock", anyway=True)
    assert load_grid().concepts["time"].class_noun == "clock"
    assert "'clock': the corpus has 0 captions" in capsys.readouterr().out
    add_concept("my_cat", [photos], "cat")
    said = capsys.readouterr().out
    assert "added my_cat" in said and "captions" not in said
    assert "the base model knows drawings only: for photographs take a profile such as" in said


def test_a_corpus_that_is_not_indexed_is_no_obstacle(
    project: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_concept("mine", [photos], "clock", profile="paper")
    said = capsys.readouterr().out
    assert "captions were not counted: " in said and "index: is missing" in said
    assert "drawings" not in said


def test_a_read_only_disk_is_told(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On such a disk every change is refused, that of removing what is not there too."""
    before = snapshot(project)

    def refused(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for name in ("mkdir", "unlink", "rmdir", "rename", "replace", "chmod"):
        monkeypatch.setattr(os, name, refused)
    for name in ("write_text", "write_bytes", "touch"):
        monkeypatch.setattr(Path, name, refused)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(BenchError, match="Read-only file system|cannot be written"):
        add_concept("my_cat", [photos], "cat")
    monkeypatch.undo()
    assert snapshot(project) == before
