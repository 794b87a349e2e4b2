"""Images made elsewhere: what the protocol asks for, all of it and nothing else, is taken."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from eval.analyses.drift import single_methods
from pipeline.adding.samples import Credit, import_samples, print_prompts
from pipeline.bench.cli import app
from pipeline.bench.doctor import examine
from pipeline.common.errors import BenchError
from pipeline.common.failures import NOT_IMPORTED, FailureError
from pipeline.common.files import png_bytes, read_tar, write_tar
from pipeline.common.schema import read_yaml
from pipeline.concepts.shards import samples_of
from pipeline.methods import load_method
from pipeline.sample.external import take_cell
from pipeline.settings.external import External, load_external
from pipeline.settings.profile import load_grid, load_params
from tests.pipeline.adding.test_add import snapshot

CREDIT = Credit("a large model, by me", "CC0-1.0")
MINE = "my-model"
CAPTIONS = ["a cat\n on grass", "a cat", "a cat"]  # as the web has them
Said = pytest.CaptureFixture[str]


def noise(seed: int, side: int = 64) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def held_out(project: Path) -> None:
    """The held-out real images of the concept `cat`, in profile smoke."""
    samples = [
        {
            "__key__": f"{i:03d}",
            "png": png_bytes(noise(99 + i)),
            "txt": text,
            "json": {"part": "held_out"},
        }
        for i, text in enumerate(CAPTIONS)
    ]
    write_tar(load_params("smoke").runs() / "regularization" / "cat.tar", samples)


def listed(capsys: Said, subject: str = "cat", captions: bool = False) -> list[dict[str, str]]:
    """The rows of the table that is printed."""
    capsys.readouterr()
    print_prompts(subject, "smoke", captions)
    return [*csv.DictReader(io.StringIO(capsys.readouterr().out))]


@pytest.fixture
def folder(held_out: None, tmp_path_factory: pytest.TempPathFactory, capsys: Said) -> Path:
    """An image for each row of the table, under the name that it has there."""
    made = tmp_path_factory.mktemp("mine")
    for seed, row in enumerate(listed(capsys, captions=True)):
        noise(seed).save(made / row["file"])
    return made


def taken(method: str = MINE, subject: str = "cat") -> list[dict[str, Any]]:
    take_cell(method, subject, "smoke")
    return samples_of(load_params("smoke"), method, subject)


def refused(message: str, folder: Path, **options: Any) -> None:
    """Nothing is written, and the error is one line."""
    root = Path.cwd()
    before = snapshot(root)
    options = {"profile": "smoke", "credit": CREDIT} | options
    subject = options.pop("subject", "cat")
    with pytest.raises(BenchError, match=message) as error:
        import_samples(options.pop("method", MINE), subject, folder, **options)
    assert "\n" not in str(error.value)
    assert snapshot(root) == before


def test_the_table_of_prompts(held_out: None, capsys: Said) -> None:
    templates = Path("datasets/prompts/cat.txt").read_text().splitlines()
    rows = listed(capsys)
    assert [row["file"] for row in rows] == [f"{i:03d}-00.png" for i in range(len(templates))]
    assert [row["prompt"] for row in rows] == [t.replace("{}", "cat") for t in templates]
    assert [row["template"] for row in rows] == templates
    pair = listed(capsys, "cat+chair")[1]
    assert (pair["prompt"], pair["template"]) == (
        "a chair and a cat on the beach",
        "a {1} and a {0} on the beach",
    )
    more = listed(capsys, captions=True)[len(templates) :]
    assert [(row["file"], row["prompt"], row["template"]) for row in more] == [
        ("caption-000-00.png", "a cat on grass", ""),
        ("caption-001-00.png", "a cat", ""),
        ("caption-002-00.png", "a cat", ""),
    ]
    with pytest.raises(BenchError, match="--captions: protocol 'smoke-v1' asks for no images of"):
        print_prompts("cat+chair", "smoke", captions=True)


def test_images_become_samples_and_the_method_a_row(folder: Path, capsys: Said) -> None:
    grid = Path("profiles/smoke/grid.yaml")
    before = grid.read_text()
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    said = capsys.readouterr().out
    assert "imported: 23 images of my-model on cat -> datasets/external/my-model/cat.tar" in said
    assert "not imported of my-model: chair, cat+chair" in said
    assert grid.read_text() == before + f"  - {MINE}\n"
    about = Path("datasets/external/my-model/method.yaml").read_text()
    assert about == "source: a large model, by me\nlicence: CC0-1.0\n"

    samples = taken()
    assert [s["__key__"] for s in samples] == sorted(
        [f"prompt-{i:03d}-000" for i in range(20)] + [f"caption-{i:03d}-000" for i in range(3)]
    )
    for sample in samples:
        part, index, _ = sample["__key__"].split("-")
        name = f"{'caption-' if part == 'caption' else ''}{index}-00.png"
        with Image.open(folder / name) as original, Image.open(io.BytesIO(sample["png"])) as kept:
            assert (np.asarray(original) == np.asarray(kept)).all()
    record = next(s["json"] for s in samples if s["__key__"] == "prompt-001-000")
    assert record == {
        "part": "prompt",
        "prompt_index": 1,
        "sample": 0,
        "scored_prompt": "a cat on the beach",
        "protocol": "smoke-v1",
        "method": MINE,
        "subject": "cat",
    }


@pytest.mark.parametrize("captions", [False, True])
def test_a_table_of_files_says_the_same_as_names(
    folder: Path, capsys: Said, captions: bool
) -> None:
    rows = listed(capsys, captions=captions)
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    by_name = {s["__key__"]: s["png"] for s in read_tar("datasets/external/my-model/cat.tar")}
    inside = folder / "out"
    inside.mkdir()
    lines = ["prompt,file"]
    for number, row in enumerate(rows):
        shutil.copy(folder / row["file"], inside / f"img{number}.png")
        lines.append(f'"{row["prompt"]}  ",out/img{number}.png')
    table = folder / "table.csv"
    table.write_text("\n".join(lines))
    import_samples("other", "cat", folder, table, profile="smoke", credit=CREDIT)
    by_table = {s["__key__"]: s["png"] for s in read_tar("datasets/external/other/cat.tar")}
    assert by_table == {k: v for k, v in by_name.items() if captions or "caption" not in k}


def test_without_images_of_captions_there_are_none(folder: Path) -> None:
    for path in folder.glob("caption-*"):
        path.unlink()
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    assert {s["json"]["part"] for s in taken()} == {"prompt"}


def test_bytes_depend_on_the_pictures_alone(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    again = tmp_path_factory.mktemp("again")
    text = PngInfo()
    text.add_text("parameters", "steps: 50")
    for path in reversed(sorted(folder.iterdir())):
        with Image.open(path) as image:
            if "-" in path.stem.removeprefix("caption-"):
                image.save(again / f"prompt-{path.name}", pnginfo=text, compress_level=1)
            else:
                image.save(again / f"{path.stem}0.webp", lossless=True)
    for path in again.glob("prompt-caption-*"):
        path.rename(path.with_name(path.name.removeprefix("prompt-")))
    import_samples("other", "cat", again, profile="smoke", credit=CREDIT)
    first, second = (Path(f"datasets/external/{m}/cat.tar").read_bytes() for m in (MINE, "other"))
    assert first == second


def test_a_second_import(folder: Path, capsys: Said) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    before = snapshot(Path.cwd())
    import_samples(MINE, "cat", folder, profile="smoke")  # its source is known
    assert "unchanged: 23 images" in capsys.readouterr().out
    assert snapshot(Path.cwd()) == before

    noise(1000).save(folder / "000-00.png")
    refused(r"my-model/cat\.tar: is there already with other images: .*--replace", folder)
    refused(
        r"--source 'b': datasets/external/my-model/method\.yaml says 'a large model, by me'",
        folder,
        credit=Credit("b"),
    )
    import_samples(MINE, "cat", folder, profile="smoke", credit=Credit("b"), replace=True)
    assert "source: b\nlicence: CC0-1.0\n" in (
        Path("datasets/external/my-model/method.yaml").read_text()
    )
    first = next(s for s in taken() if s["__key__"] == "prompt-000-000")
    assert first["png"] == png_bytes(noise(1000))


def test_images_of_other_sizes_are_resized_for_scoring_only(folder: Path, capsys: Said) -> None:
    large = noise(7, side=80)
    large.save(folder / "003-00.png")
    shutil.copy(folder / "003-00.png", folder / "004-00.png")
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    said = capsys.readouterr().out
    assert "2 are of another size than 64 x 64 pixels" in said
    assert "1 are the same picture as another" in said
    kept = {s["__key__"]: s["png"] for s in read_tar("datasets/external/my-model/cat.tar")}
    assert kept["prompt-003-000"] == png_bytes(large)
    shown = {s["__key__"]: s["png"] for s in taken()}
    assert shown["prompt-003-000"] == png_bytes(large.resize((64, 64), Image.Resampling.BICUBIC))


def test_what_is_missing_extra_repeated_or_no_image_is_refused(folder: Path) -> None:
    def changed(message: str, name: str, content: bytes | None, **options: Any) -> None:
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        refused(message, folder, **options)
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)

    one = png_bytes(noise(5000))
    changed(
        r"1 of the 23 images are missing that protocol 'smoke-v1' asks for, such as 004-00: "
        "sample 0 of 'a cat in front of a mountain'",
        "004-00.png",
        None,
    )
    changed(r"such as caption-001-00: sample 0 of 'a cat'", "caption-001-00.png", None)
    changed(r"020-00\.png: protocol 'smoke-v1' asks for 23 images, number", "020-00.png", one)
    changed(r"000-01\.png: protocol 'smoke-v1' asks for", "000-01.png", one)
    changed(r"000-00\.png: is the same image as 0-0\.png", "0-0.png", one)
    changed(r"cat\.png: name it PROMPT-SAMPLE", "cat.png", one)
    changed(r"000-00\.png: the file is empty", "000-00.png", b"")
    changed(r"000-00\.png: cannot be decoded", "000-00.png", one[:300])
    wide = png_bytes(Image.new("RGB", (64, 48)))
    changed(r"000-00\.png: 64 x 48 pixels are not square", "000-00.png", wide)
    refused(r"nowhere: no such folder", folder / "nowhere")
    refused("--source: say what made the images of 'my-model'", folder, credit=Credit(licence="x"))
    refused("subject 'cow' is unknown", folder, subject="cow")


def test_a_bad_table_is_refused(folder: Path, capsys: Said) -> None:
    table = folder / "t.csv"

    def changed(message: str, *lines: str) -> None:
        table.write_text("\n".join(lines))
        refused(message, folder, table=table)

    beach = "a cat on the beach"
    changed(r"t\.csv: has no column 'file'", "name,prompt", f"000-00.png,{beach}")
    changed(r"t\.csv: has no column 'prompt'", "file,text", f"000-00.png,{beach}")
    changed(r"t\.csv: has no column 'file'", "")
    changed(r"t\.csv:2: .*none\.png: no such file", "file,prompt", f"none.png,{beach}")
    changed(r"t\.csv:2: '\.\./x\.png' leads out of", "file,prompt", f"../x.png,{beach}")
    changed(r"t\.csv:2: prompt '' is none of cat's", "file,prompt", "000-00.png")
    changed(
        r"t\.csv:3: .*000-00\.png: is named twice",
        *("file,prompt", f"000-00.png,{beach}", f"000-00.png,{beach}"),
    )
    changed(
        rf"t\.csv:3: prompt '{beach}' has more than its 1 images",
        *("file,prompt", f"000-00.png,{beach}", f"001-00.png,{beach}"),
    )
    changed(
        r"t\.csv:2: prompt 'a <new1> cat on the beach' is none of cat's: see `bench samples prom",
        *("file,prompt", "000-00.png,a <new1> cat on the beach"),
    )
    changed(r"t\.csv: not CSV", "file,prompt", '000-00.png,"a cat')
    changed(
        r"t\.csv: 19 of the 20 images are missing",
        *("file,prompt", f"000-00.png,{beach}"),
    )


@pytest.mark.parametrize("name", ["pretrained", "Pretrained", "oracle", "a b", "../x", "1st"])
def test_names_that_cannot_be(folder: Path, name: str) -> None:
    refused("name is taken by|is taken by|needs a letter first", folder, method=name)


def test_names_that_differ_in_case_alone(folder: Path) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    refused("differs from 'My-Model' in case alone", folder, method="My-Model")


def test_a_change_of_the_protocol_or_of_prompts_is_told(folder: Path, project: Path) -> None:
    with pytest.raises(FailureError, match="is missing: `bench samples import my-model cat FOLD"):
        take_cell(MINE, "cat", "smoke")
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    assert len(taken()) == 23
    protocol = project / "datasets/protocols/smoke-v1.yaml"
    text = protocol.read_text()
    protocol.write_text(text.replace("images_per_prompt: 1", "images_per_prompt: 2"))
    message = (
        r"lacks 20 of the 40 images that protocol 'smoke-v1' asks for, such as sample 1 of 'photo "
        r"of a cat in the snow': `bench samples import my-model cat FOLDER --replace`"
    )
    with pytest.raises(FailureError, match=message) as error:
        take_cell(MINE, "cat", "smoke")
    assert error.value.failure.kind == NOT_IMPORTED
    protocol.write_text(text)
    prompts = project / "datasets/prompts/cat.txt"
    prompts.write_text(prompts.read_text().replace("on the beach\n", "on a beach\n", 1))
    with pytest.raises(FailureError, match="lacks 1 of the 20 .* sample 0 of 'a cat on a beach'"):
        take_cell(MINE, "cat", "smoke")


def test_a_protocol_that_asks_for_less_is_served(folder: Path, project: Path) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    prompts = project / "datasets/prompts/cat.txt"
    prompts.write_text("\n".join(prompts.read_text().splitlines()[:-2]))
    assert sum(s["json"]["part"] == "prompt" for s in taken()) == 18


def test_other_held_out_images_cost_kid_alone(folder: Path, capsys: Said) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    path = load_params("smoke").runs() / "regularization" / "cat.tar"
    samples = read_tar(path)
    samples[0]["txt"] = "a cat in a tree"
    write_tar(path, samples)
    assert {s["json"]["part"] for s in taken()} == {"prompt"}
    assert "no KID, as it has not the images of all 3 held-out captions" in capsys.readouterr().out


def test_doctor(folder: Path) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    checks = {check.what: check for check in examine("smoke")}
    assert checks["methods"].state == "ready"  # though it has no parameters
    made = checks["images of my-model"]
    assert (made.state, made.note) == (
        "ready",
        "1 of 3 subjects: a large model, by me, licence CC0-1.0",
    )
    Path("datasets/external/my-model/method.yaml").write_text("source: me\n")
    checks = {check.what: check for check in examine("smoke")}
    assert checks["images of my-model"].state == "wrong"
    assert "method.yaml: licence: field required" in checks["images of my-model"].note


@pytest.mark.parametrize("writes", range(3))
def test_a_full_disk_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left, moved = [writes], os.replace

    def filling(source: str, target: str) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        moved(source, target)

    before = {path for path in snapshot(Path.cwd())}
    grid = Path("profiles/smoke/grid.yaml").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", filling)
        with pytest.raises(BenchError, match="No space left on device"):
            import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    folders = {"datasets/external", "datasets/external/my-model"}
    assert {path for path in snapshot(Path.cwd())} - folders == before
    assert Path("profiles/smoke/grid.yaml").read_text() == grid
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    assert len(taken()) == 23


def test_the_command_writes_stages_that_train_nothing(folder: Path, project: Path) -> None:
    options = ("--source", "me", "--url", "https://example.org", "-p", "smoke")
    result = CliRunner().invoke(app, ["samples", "import", MINE, "cat", str(folder), *options])
    assert result.exit_code == 0, result.output
    assert load_external(MINE) == External(
        source="me", licence="unknown", url="https://example.org"
    )
    path = project / "profiles/smoke/cells" / MINE / "dvc.yaml"
    assert "profiles/smoke/cells/my-model/dvc.yaml" in result.output
    stages = read_yaml(path)["stages"]
    assert set(stages) == {"sample", "score", "sample_composition", "score_composition"}
    for name in ("sample", "sample_composition"):
        deps = stages[name]["do"]["deps"]
        assert "../../datasets/external/my-model" in deps
        assert not [dep for dep in deps if "adapter" in dep or "models/" in dep]
        assert "base.resolution" in stages[name]["do"]["params"]


def test_what_needs_adapters_leaves_it_out(folder: Path) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    grid = load_grid("smoke")
    assert MINE in grid.methods and MINE not in single_methods(grid)
    with pytest.raises(BenchError, match="'my-model' is of images made elsewhere: it has no adap"):
        load_method(MINE)


def test_a_damaged_tar(folder: Path, project: Path) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    tar = project / "datasets/external/my-model/cat.tar"
    tar.write_bytes(tar.read_bytes()[:20000])
    with pytest.raises(BenchError, match=r"cat\.tar: is damaged: import the images again with"):
        take_cell(MINE, "cat", "smoke")
    refused(r"my-model/cat\.tar: is there already with other images: .*--replace", folder)
    import_samples(MINE, "cat", folder, profile="smoke", replace=True)
    assert len(taken()) == 23


def test_the_images_are_there_once_for_all_profiles(folder: Path, capsys: Said) -> None:
    import_samples(MINE, "cat", folder, profile="smoke", credit=CREDIT)
    with pytest.raises(BenchError, match=r"toyland/regularization/cat\.tar: the shard is missing"):
        import_samples(MINE, "cat", folder)  # which captions these are of
    for path in folder.glob("caption-*"):
        path.unlink()
    import_samples(MINE, "cat", folder, profile="smoke", replace=True)
    protocol = Path("datasets/protocols") / f"{load_params().protocol.name}.yaml"
    protocol.write_text(
        re.sub("images_per_prompt: .*", "images_per_prompt: 1", protocol.read_text())
    )
    assert MINE not in load_grid().methods
    capsys.readouterr()
    import_samples(MINE, "cat", folder)
    assert "unchanged: 20 images" in capsys.readouterr().out
    assert load_grid().methods[-1] == load_grid("smoke").methods[-1] == MINE
