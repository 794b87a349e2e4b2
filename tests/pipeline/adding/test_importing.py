"""Data sets that others published become concepts: compared, written, told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.adding import add as concept_add
from pipeline.adding import layouts
from pipeline.adding.dataset import Given
from pipeline.adding.importing import import_concepts
from pipeline.adding.layouts import read_data_set
from pipeline.common.errors import BenchError
from pipeline.concepts.concept import load_concept, load_subject
from tests.pipeline.adding.copies import INDEX, draw, states
from tests.pipeline.adding.test_add import snapshot

Said = pytest.CaptureFixture[str]


def test_a_second_run_changes_nothing_and_later_images_complete_it(
    project: Path, custom: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Said
) -> None:
    import_concepts(custom, profile="smoke")
    before = snapshot(project)
    capsys.readouterr()
    assert import_concepts(custom, profile="smoke") == 1
    assert snapshot(project) == before
    said = capsys.readouterr().out
    assert "concepts: 4 unchanged, 1 missing" in said
    assert "compositions: 0 imported, 1 unchanged, 1 lack a concept" in said
    assert "grid.yaml: 0 subjects added" in said

    elsewhere = tmp_path_factory.mktemp("photos")  # the dog alone, and not below benchmark_dataset
    draw(elsewhere / "pet_dog1", seed=7)
    assert import_concepts(custom, elsewhere, profile="smoke") == 0
    said = capsys.readouterr().out
    assert "concepts: 4 unchanged, 1 imported" in said
    assert "grid.yaml: 2 subjects added" in said
    assert load_subject("scene_barn+pet_dog1", "smoke").concepts[1].class_noun == "dog"


def test_dry_run_writes_nothing(project: Path, custom: Path, capsys: Said) -> None:
    before = snapshot(project)
    assert import_concepts(custom, profile="smoke", dry_run=True) == 1
    assert snapshot(project) == before
    said = capsys.readouterr().out
    assert states(said)["scene_barn"] == "new"
    assert "compositions: 1 new" in said


def test_only_some(project: Path, custom: Path) -> None:
    assert import_concepts(custom, only=["scene_barn", "furniture_chair3"]) == 0
    assert not (project / "datasets/concepts/plushie_dice").exists()
    assert (project / "datasets/prompts/scene_barn+furniture_chair3.txt").exists()
    with pytest.raises(BenchError, match="--only 'barn': the data set has furniture_chair3, pet"):
        import_concepts(custom, only=["barn"])


def test_bad_images_are_told_by_name_and_the_others_imported(
    project: Path, custom: Path, capsys: Said
) -> None:
    images = custom / "benchmark_dataset"
    (images / "plushie_dice" / "1.png").write_bytes(b"")
    (images / "scene_barn" / "IMG.HEIC").touch()
    (images / "furniture_chair3" / "3.png").write_bytes(
        (images / "furniture_chair3" / "0.png").read_bytes()
    )
    assert import_concepts(custom) == 1
    said = capsys.readouterr().out
    found = states(said)
    assert (found["plushie_dice"], found["scene_barn"]) == ("wrong", "wrong")
    assert f"{images / 'plushie_dice' / '1.png'}: the file is empty" in said
    assert f"{images / 'scene_barn' / 'IMG.HEIC'}: this format cannot be read" in said
    assert "3.png is the same picture as 0.png: left out" in said
    assert len(load_concept("furniture_chair3").images) == 3
    assert not (project / "datasets/concepts/plushie_dice").exists()


@pytest.mark.parametrize("what", ["images", "prompts", "noun", "case", "pair", "grid"])
def test_a_name_that_is_taken_stops_all_before_anything_is_written(
    project: Path, custom: Path, what: str
) -> None:
    message = r"datasets/concepts/scene_barn: is there already"
    import_concepts(custom, only=["scene_barn"])
    concept = project / "datasets/concepts/scene_barn"
    if what == "images":
        Image.new("RGB", (20, 20)).save(concept / "images" / "00.png")
        message += " with other images"
    elif what == "prompts":
        (project / "datasets/prompts/scene_barn.txt").write_text("my {}\n")
        message += ": its prompts are others"
    elif what == "noun":
        about = concept / "concept.yaml"
        about.write_text(about.read_text().replace("class_noun: barn", "class_noun: shed"))
        message += ": its class_noun is 'shed', not 'barn'"
    elif what == "case":
        concept.rename(concept.with_name("Scene_Barn"))
        message = r"concepts/Scene_Barn: differs from 'scene_barn' in case alone"
    elif what == "pair":
        path = project / "datasets/prompts/scene_barn+furniture_chair3.txt"
        path.write_text("{0} by {1}\n")
        message = r"scene_barn\+furniture_chair3\.txt: is there already with other prompts"
    elif what == "grid":
        grid = project / "profiles/smoke/grid.yaml"
        grid.write_text(
            grid.read_text().replace(
                "concepts:\n", "concepts:\n  scene_barn:\n    class_noun: shed\n", 1
            )
        )
        message = "grid.yaml: has 'scene_barn' as a 'shed', the data set as a 'barn'"
    before = snapshot(project)
    with pytest.raises(BenchError, match=message) as error:
        import_concepts(custom, profile="smoke")
    assert "nothing was imported" in str(error.value)
    assert snapshot(project) == before
    assert import_concepts(custom, prefix="cc_", only=["scene_barn"]) == 0


def test_names_of_the_drawn_concepts_are_not_taken_over(project: Path, dreambooth: Path) -> None:
    index = dreambooth / "prompts_and_classes.txt"
    index.write_text(INDEX.replace("cat2,cat", "cat,cat"))
    (dreambooth / "cat2").rename(dreambooth / "cat")
    with pytest.raises(BenchError, match="datasets/concepts/cat: is there already"):
        import_concepts(dreambooth)


def test_indexes_that_cannot_be_read(
    project: Path, custom: Path, dreambooth: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def refused(message: str, source: Path, **options: Any) -> None:
        with pytest.raises(BenchError, match=message):
            import_concepts(source, **options)

    empty = tmp_path_factory.mktemp("empty")
    refused("no such file or folder", empty / "nowhere")
    refused("no data set of a known layout", empty)
    refused("--layout 'zip': choose one of cifc, ", custom, layout="zip")
    refused("no data set of dreambooth", custom, layout="dreambooth")
    refused("--images .*: no such folder", custom, images=empty / "nowhere")
    refused("leave out --class", custom, given=Given(class_noun="cat"))
    refused("name '1-': needs a letter first", custom, prefix="1-")
    (custom / "dataset.json").write_text("[{]")
    refused(r"dataset\.json: not valid JSON", custom)
    (custom / "dataset.json").write_bytes("é".encode("latin-1"))
    refused(r"dataset\.json: not valid JSON", custom)
    index = dreambooth / "prompts_and_classes.txt"
    for old, new, message in (
        ("can,can", "can", r":6: 'can' needs the form NAME,CLASS"),
        ("can,can", "cat2,can", r":6: 'cat2,can' is there twice"),
        ("can,can", "../can,can", r"'\.\./can' leads out of"),
        ("a {0} {1} in", "a {0} in", r":13: no prompt with '\{0\} \{1\}'"),
        ("'a cube", "exec('", r":14: no prompt with"),
    ):
        index.write_text(INDEX.replace(old, new))
        refused(message, dreambooth)


NEW_LAYOUT = """
from pipeline.adding.dataset import DataSet, Entry, Layout

LAYOUT = Layout(
    what="index.tsv",
    folders=(".",),
    recognised=lambda folder: (folder / "index.tsv").is_file(),
    read=lambda folder, images, given: DataSet(
        tuple(
            Entry(name, noun, ("my {}",), images / name, "CC0-1.0", "a test")
            for name, noun in (
                line.split() for line in (folder / "index.tsv").read_text().splitlines()
            )
        )
    ),
)
"""


def test_a_new_layout_is_one_file(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "zeta.py").write_text(NEW_LAYOUT)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "index.tsv").write_text("tom cat\nrex dog\n")
    draw(tmp_path / "set" / "tom")
    draw(tmp_path / "set" / "rex", seed=1)
    nouns = {entry.name: entry.class_noun for entry in read_data_set(tmp_path / "set").entries}
    assert nouns == {"tom": "tom", "rex": "rex"}  # folders that nothing says more of
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "more")])
    # Tried before folders without an index, whatever its name.
    assert [*layouts.layouts()] == ["cifc", "customconcept101", "dreambooth", "zeta", "folders"]
    assert import_concepts(tmp_path / "set") == 0
    assert [load_concept(name).class_noun for name in ("tom", "rex")] == ["cat", "dog"]


def test_a_layout_can_be_insisted_on(project: Path, custom: Path) -> None:
    draw(custom / "extra")
    data = read_data_set(custom, layout="folders")
    assert [entry.name for entry in data.entries] == ["benchmark_dataset", "extra", "prompts"]
    assert read_data_set(custom.parent).entries == read_data_set(custom).entries


@pytest.mark.parametrize("writes", range(6))
def test_a_full_disk_leaves_no_half_concept(
    project: Path, custom: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left, replace = [writes], os.replace

    def filling(source: str, target: str) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", filling)
        with pytest.raises(BenchError, match="No space left on device"):
            import_concepts(custom, profile="smoke")
    assert_whole(project, imported=writes // 2)
    assert import_concepts(custom, profile="smoke") == 1
    assert_whole(project, imported=4)


@pytest.mark.parametrize("images", range(9))
def test_an_interrupt_leaves_no_half_concept(
    project: Path, custom: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    left, read = [images], concept_add.read_photo

    def interrupted(path: Path) -> Image.Image:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(concept_add, "read_photo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_concepts(custom, profile="smoke")
    assert_whole(project)
    assert import_concepts(custom, profile="smoke") == 1
    assert_whole(project, imported=4)


def test_a_killed_import_is_continued(project: Path, custom: Path) -> None:
    """Prompts come first, so that a folder is never without them."""
    data = read_data_set(custom)
    concept_add.write_prompts("scene_barn", data.entries[3].prompts)
    assert import_concepts(custom, only=["scene_barn"]) == 0
    assert len(load_concept("scene_barn").images) == 2


def assert_whole(project: Path, imported: int | None = None) -> None:
    """Of the data set there are concepts with all their images and prompts, and nothing else."""
    datasets = project / "datasets"
    ours = ("plushie", "wearable", "furniture", "scene", "pet")

    def found(paths: Iterable[Path]) -> set[str]:
        return {p.name.removesuffix(".txt") for p in paths if p.name.lstrip(".").startswith(ours)}

    names = found((datasets / "concepts").iterdir())
    assert not {name for name in names if name.startswith(".")}
    assert imported is None or len(names) == imported
    for name in names:
        assert len(load_concept(name).images) == (3 if name == "furniture_chair3" else 2)
    prompts = found((datasets / "prompts").iterdir())
    assert {name for name in prompts if "+" not in name} == names


def test_the_command(project: Path, dreambooth: Path) -> None:
    from typer.testing import CliRunner

    from pipeline.bench.cli import app

    def run(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["concept", "import", str(dreambooth), *options])
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        return result.exit_code, result.output

    status, said = run("--dry-run", "--prefix", "db_", "-p", "smoke")
    assert (status, states(said)["db_teapot"]) == (1, "new")
    status, said = run("--only", "teapot", "--only", "cat2", "-p", "smoke")
    assert status == 0
    assert "profiles/smoke/grid.yaml: 2 subjects added" in said
    folders = ("--layout", "folders", "--class", "pot", "--licence", "CC0-1.0", "--source", "me")
    assert run(*folders, "--only", "teapot", "--prefix", "my_")[0] == 0
    assert load_concept("my_teapot").class_noun == "pot"
