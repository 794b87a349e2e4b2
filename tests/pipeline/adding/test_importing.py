"""Data sets that others published: read from small copies of their layouts, and from themselves."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.adding import add as concept_add
from pipeline.adding import importing as concept_import
from pipeline.adding.importing import Given, import_concepts, read_data_set
from pipeline.bench.doctor import examine
from pipeline.common.errors import BenchError
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import load_concept, load_subject, read_prompts
from pipeline.settings.profile import load_grid
from tests.pipeline.adding.test_add import snapshot

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"
CUSTOM = PUBLISHED / "customconcept101"
DREAMBOOTH = PUBLISHED / "dreambooth" / "dataset"
Said = pytest.CaptureFixture[str]


def draw(folder: Path, count: int = 2, seed: int = 0) -> None:
    """Pictures that differ from each other and from those of another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        values = np.random.default_rng([seed, i]).integers(0, 256, (22, 20 + i, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")


def item(folder: str, noun: str, prompts: str, token: int = 1, **other: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a <new{token}> {noun}",
        "class_prompt": noun,
        "instance_data_dir": f"./benchmark_dataset/{folder}",
        "class_data_dir": f"./regularization/{folder}",
        "prompt_filename": f"prompts/{prompts}.txt",
        **other,
    }


def rewrite(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CustomConcept101 in small, with its peculiarities; images of all but `pet_dog1`."""
    folder = tmp_path_factory.mktemp("copy") / "customconcept101"
    prompts = {
        "plushie": "photo of a {}. \n{} on a café table  \n\nA {} at sea.",
        "dog": "photo of a {}.\na {} in the snow",
        "sofa": "a {} by a window\n",
        "scene_pet": "photo of {0} and the {1}.\n"
        "A photo of {0} at dawn with {0} sleeping peacefully. ",
        "moongate": "photo of a moongate.",
    }
    (folder / "prompts").mkdir(parents=True)
    for name, text in prompts.items():
        (folder / "prompts" / f"{name}.txt").write_bytes(text.encode())
    sunglasses = {"instance_prompt": "photo of <new1> sunglasses"}
    singles = [
        item("plushie_dice", "dice plushie", "plushie", class_prompt="dice"),
        item("wearable_sunglasses2", "sunglasses", "sofa", **sunglasses),
        item("furniture_chair3", "chair", "sofa"),
        item("scene_barn", "barn", "sofa"),
        item("pet_dog1", "dog", "dog"),
    ]
    composed = {"prompt_filename_compose": "prompts/scene_pet.txt"}
    pairs = [
        [item("scene_barn", "barn", "sofa"), item("furniture_chair3", "sofa", "sofa", 2), composed],
        [item("scene_barn", "barn", "sofa"), item("pet_dog1", "dog", "dog", 2), composed],
    ]
    rewrite(folder / "dataset.json", singles)
    rewrite(folder / "dataset_multiconcept.json", pairs)
    for seed, name in enumerate(["plushie_dice", "wearable_sunglasses2", "scene_barn"]):
        draw(folder / "benchmark_dataset" / name, seed=seed)
    draw(folder / "benchmark_dataset" / "furniture_chair3", 3, seed=9)
    return folder


INDEX = """Classes

subject_name,class
teapot,teapot
cat2,cat
can,can

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""
CREDITS = """References

teapot:
(credit: https://unsplash.com/@someone)
00: https://unsplash.com/photos/1

cat2: Photos taken by an author
"""


@pytest.fixture
def dreambooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of DreamBooth's data set; `can` has no images."""
    folder = tmp_path_factory.mktemp("dreambooth")
    (folder / "prompts_and_classes.txt").write_text(INDEX)
    (folder / "references_and_licenses.txt").write_text(CREDITS)
    draw(folder / "teapot", 3)
    draw(folder / "cat2", seed=1)
    return folder


def states(said: str) -> dict[str, str]:
    """By name, the second column of the table that was printed."""
    rows = said.split("\n\n", maxsplit=1)[0].splitlines()[1:]
    return {row.split()[0]: row.split()[1] for row in rows}


def test_customconcept101_with_its_errata(project: Path, custom: Path, capsys: Said) -> None:
    assert import_concepts(custom, profile="smoke") == 1  # one has no images
    said = capsys.readouterr().out
    assert states(said) == {
        "plushie_dice": "imported",
        "wearable_sunglasses2": "imported",
        "furniture_chair3": "imported",
        "scene_barn": "imported",
        "pet_dog1": "missing",
    }
    assert f"put its images in {custom / 'benchmark_dataset/pet_dog1'}" in said
    for erratum in (
        "plushie_dice: class_prompt is 'dice': 'dice plushie' as in instance_prompt",
        "wearable_sunglasses2: instance_prompt has the form 'photo of {}'",
        "furniture_chair3: dataset_multiconcept.json entry 1 calls it 'sofa': stays 'chair'",
        "scene_pet.txt:2: read as 'A photo of {0} at dawn with {1} sleeping peacefully.'",
        "moongate.txt: prompts of no concept",
        "scene_barn: stands in for the paper's barn",
        "the paper's moongate has no counterpart here",
    ):
        assert f"  {erratum}" in said
    assert "compositions: 1 imported, 0 unchanged, 1 lack a concept" in said

    dice = load_concept("plushie_dice")
    assert dice.class_noun == "dice plushie"
    assert dice.prompts == ("photo of a {}.", "{} on a café table", "A {} at sea.")
    assert load_concept("wearable_sunglasses2").caption == "photo of {}"
    about = read_yaml(project / "datasets/concepts/plushie_dice/concept.yaml")
    assert "noncommercial" in about["licence"]
    assert "CustomConcept101" in about["source"]
    pair = load_subject("scene_barn+furniture_chair3", "smoke")
    assert pair.scored_prompts()[1] == "A photo of barn at dawn with chair sleeping peacefully."
    grid = load_grid("smoke")
    assert grid.concepts["furniture_chair3"].class_noun == "chair"
    assert "pet_dog1" not in grid.concepts
    assert "scene_barn+pet_dog1" not in grid.compositions
    assert "plushie_dice" not in load_grid().concepts
    assert not (project / "datasets/concepts/pet_dog1").exists()
    checks = {check.what: check for check in examine("smoke")}
    assert checks["concept plushie_dice"].state == "ready"
    assert checks["prompts of scene_barn+furniture_chair3"].state == "ready"


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


def test_dreambooth(project: Path, dreambooth: Path, capsys: Said) -> None:
    assert import_concepts(dreambooth / "prompts_and_classes.txt", prefix="db-") == 1
    assert states(capsys.readouterr().out) == {
        "db-teapot": "imported",
        "db-cat2": "imported",
        "db-can": "missing",
    }
    teapot, cat = load_concept("db-teapot"), load_concept("db-cat2")
    assert teapot.prompts == ("a {} in the jungle", "a cube shaped {}")
    assert cat.prompts == ("a {} wearing a red hat",)
    assert (cat.class_noun, len(teapot.images)) == ("cat", 3)
    licences = [
        read_yaml(project / f"datasets/concepts/db-{name}/concept.yaml")
        for name in ("teapot", "cat2")
    ]
    assert licences[0]["licence"] == "CC-BY-4.0; photographs: Unsplash License"
    assert "https://unsplash.com/@someone" in licences[0]["source"]
    assert licences[1]["licence"] == "CC-BY-4.0"
    assert "Photos taken by an author" in licences[1]["source"]
    assert "Rubinstein" in licences[1]["source"]


def test_folders(project: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Said) -> None:
    folder = tmp_path_factory.mktemp("mine")
    for seed, name in enumerate(["red_chair2", "Mütze (neu)", "7 dwarfs"]):
        draw(folder / name, seed=seed)
    for name in ("__MACOSX", ".cache"):
        (folder / name).mkdir()
    (folder / "empty").mkdir()
    assert import_concepts(folder, given=Given(licence="CC0-1.0", source="me")) == 1
    said = capsys.readouterr().out
    assert states(said) == {
        "concept_7_dwarfs": "imported",
        "Mutze_neu": "imported",
        "empty": "missing",
        "red_chair2": "imported",
    }
    assert "concept_7_dwarfs: from the folder '7 dwarfs'" in said
    assert load_concept("red_chair2").class_noun == "red chair"
    about = read_yaml(project / "datasets/concepts/red_chair2/concept.yaml")
    assert (about["licence"], about["source"]) == ("CC0-1.0", "me")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "folder,class\na,wooden pot\nb,cat\n"),
        ("c.csv", "\ufeffa, wooden pot\r\nb,cat\r\n"),
        ("c.yaml", "a: wooden pot\nb: cat\n"),
    ],
)
def test_class_nouns_of_folders(
    project: Path, tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    draw(folder / "a")
    draw(folder / "b", seed=1)
    (folder / name).write_text(text, encoding="utf-8")
    data = read_data_set(folder, given=Given(classes=folder / name))
    assert [(e.name, e.class_noun) for e in data.entries] == [("a", "wooden pot"), ("b", "cat")]
    every = read_data_set(folder, given=Given(class_noun="dog"))
    assert {entry.class_noun for entry in every.entries} == {"dog"}
    draw(folder / "c")
    with pytest.raises(BenchError, match="has no class for the folder 'c'"):
        read_data_set(folder, given=Given(classes=folder / name))


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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("instance_data_dir", "../../etc", r"entry 1: '\.\./\.\./etc' leads out of"),
        ("instance_data_dir", "/etc/cat", r"entry 1: '/etc/cat' leads out of"),
        ("instance_data_dir", "..\\..\\etc", r"leads out of"),
        ("instance_data_dir", "C:/etc", r"'C:/etc' leads out of"),
        ("prompt_filename", "../../secret.txt", r"'\.\./\.\./secret\.txt' leads out of"),
        ("prompt_filename", "prompts/none.txt", r"none\.txt: the prompt file is missing"),
        ("prompt_filename", "prompts/scene_pet.txt", r"scene_pet\.txt:1: prompt needs the place"),
        ("instance_prompt", "photo of a dog", r"'photo of a dog' lacks <new1>"),
        ("instance_prompt", "photo of a <new1> {0}", r"instance_prompt: '\{0\}': needs a noun"),
        ("instance_data_dir", "./benchmark_dataset/犬", r"'犬': its name has no letters"),
        ("instance_data_dir", "./x/Scene_Barn", r"'scene_barn' is there 2 times, up to case"),
        ("instance_data_dir", "./x/scene_barn", r"entry 4: 'scene_barn' is there twice"),
        ("instance_data_dir", 7, r"dataset\.json: 0\.instance_data_dir: .*string \(got 7\)"),
    ],
)
def test_a_bad_index(project: Path, custom: Path, field: str, value: object, message: str) -> None:
    index = custom / "dataset.json"
    content = json.loads(index.read_text())
    content[0][field] = value
    rewrite(index, content)
    before = snapshot(project)
    with pytest.raises(BenchError, match=message) as error:
        import_concepts(custom)
    assert "\n" not in str(error.value)
    assert snapshot(project) == before


def test_indexes_that_cannot_be_read(
    project: Path, custom: Path, dreambooth: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def refused(message: str, source: Path, **options: Any) -> None:
        with pytest.raises(BenchError, match=message):
            import_concepts(source, **options)

    empty = tmp_path_factory.mktemp("empty")
    refused("no such file or folder", empty / "nowhere")
    refused("no data set of a known layout", empty)
    refused("--layout 'zip': choose one of customconcept101, ", custom, layout="zip")
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
    data = concept_import.read_data_set(custom)
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


@pytest.mark.skipif(not CUSTOM.is_dir(), reason="CustomConcept101 is not here")
def test_the_real_customconcept101(project: Path, capsys: Said) -> None:
    data = read_data_set(CUSTOM)
    assert (len(data.entries), len(data.pairs)) == (101, 101)
    assert len({name for pair in data.pairs for name in (pair.first, pair.second)}) == 63
    assert {len(entry.prompts) for entry in data.entries} == {20}
    assert {len(pair.prompts) for pair in data.pairs} == {12}
    nouns = {entry.name: entry.class_noun for entry in data.entries}
    assert (nouns["plushie_dice"], nouns["furniture_chair3"]) == ("dice plushie", "chair")
    pair = data.pairs[4]
    assert (pair.first, pair.second) == ("furniture_chair1", "furniture_chair3")
    unusual = {e.name for e in data.entries for r in e.remarks if not r.startswith("stands in")}
    assert unusual == {"plushie_dice", "wearable_sunglasses2", "furniture_chair3"}
    assert sum(r.startswith("stands in") for e in data.entries for r in e.remarks) == 9
    assert len(data.errata) == 4
    before = snapshot(project)
    assert import_concepts(CUSTOM, profile="paper") == 1  # its images are not here
    assert snapshot(project) == before
    assert "concepts: 101 missing" in capsys.readouterr().out


@pytest.mark.skipif(not DREAMBOOTH.is_dir(), reason="DreamBooth's data set is not here")
def test_the_real_dreambooth(project: Path, capsys: Said) -> None:
    data = read_data_set(DREAMBOOTH.parent)
    assert len(data.entries) == 30
    assert {len(entry.prompts) for entry in data.entries} == {25}
    assert sum("a {} wearing a santa hat" in entry.prompts for entry in data.entries) == 9
    here = [path.name for path in DREAMBOOTH.iterdir() if path.is_dir()]
    assert import_concepts(DREAMBOOTH, prefix="db_", only=here) == 0
    assert f"concepts: {len(here)} imported" in capsys.readouterr().out
    for name in here:
        files = sorted((DREAMBOOTH / name).iterdir())
        concept = load_concept(f"db_{name}")
        assert len(concept.images) == len(files)
        with Image.open(concept.images[0]) as copy, Image.open(files[0]) as original:
            assert (np.asarray(copy) == np.asarray(original.convert("RGB"))).all()
        assert read_prompts(project / f"datasets/prompts/db_{name}.txt", 1) == concept.prompts


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
