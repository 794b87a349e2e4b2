"""Bad inputs, as a table: each is refused in one line, with status 2, and changes no file."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.bench import cli
from pipeline.common.failures import Failure
from pipeline.common.files import png_bytes, write_failure, write_tar
from pipeline.models.adapter import Adapter, Provenance, save_adapter
from tests.conftest import ROOT, copy_definitions
from tests.pipeline.tiny import RESOLUTION, training_set, write_base


def tree(folder: Path) -> dict[str, str]:
    """What every path below a folder is: the hash of a file, where a link leads, or a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {path.readlink()}"
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = what
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with things of a user's: an adapter, pictures, notes and a folder of work."""
    folder = tmp_path_factory.mktemp("kept")
    copy_definitions(folder)
    (folder / "models").symlink_to(ROOT / "models")
    made = Provenance("m", "cat", "models/toyland/base", "0" * 16, ("<new1> cat",))
    save_adapter(Adapter({"<new1>": torch.ones(64)}, {}, made), folder / "a.safetensors")
    (folder / "work/deep").mkdir(parents=True)
    (folder / "work/deep/thesis.txt").write_text("years of work")
    (folder / "notes.txt").write_text("mine")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photos/a.png")
    return folder


@pytest.fixture(scope="module")
def copied(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that all rows share."""
    return shutil.copytree(kept, tmp_path_factory.mktemp("around") / "project", symlinks=True)


@pytest.fixture(scope="module")
def as_kept(kept: Path) -> dict[str, str]:
    return tree(kept)


@pytest.fixture
def place(
    kept: Path, copied: Path, as_kept: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The copy as the current folder; what rows prepared there is taken back after them."""
    monkeypatch.chdir(copied)
    yield copied
    now = tree(copied)
    for path in sorted((p for p in now if now[p] != as_kept.get(p)), reverse=True):
        folder = (copied / path).is_dir() and not (copied / path).is_symlink()
        (copied / path).rmdir() if folder else (copied / path).unlink()
    for path in (p for p in as_kept if now.get(p) != as_kept[p]):  # folders before what they hold
        if as_kept[path] == "folder":
            (copied / path).mkdir()
        else:
            shutil.copy2(kept / path, copied / path, follow_symlinks=False)
    assert tree(copied) == as_kept


def bad_metadata() -> None:
    save_file({"token.<new1>": torch.ones(64)}, "a.safetensors", {"adapter": "{not json"})


def no_token() -> None:
    about = {"method": "m", "subject": "s", "base": "b", "base_hash": "h"}
    content = {"format": "concept-bench-adapter-1", "provenance": about | {"references": ["<n> x"]}}
    save_file({"delta.x": torch.ones(1)}, "a.safetensors", {"adapter": json.dumps(content)})


def truncated() -> None:
    Path("a.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:200])


def token_file() -> None:
    save_file({"<new1>": torch.ones(1, 64)}, "token.safetensors")


def pickle_alone() -> None:
    Path("pickles").mkdir()
    Path("pickles/delta.bin").write_bytes(b"\x80\x02}q\x00.")


def picture(width: int, height: int) -> Callable[[], None]:
    return lambda: Image.new("RGB", (width, height)).save("photos/b.png")


def folder(path: str) -> Callable[[], None]:
    return lambda: Path(path).mkdir(parents=True)


def file(path: str, content: str = "") -> Callable[[], None]:
    def write() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(content)

    return write


def set_of_toys() -> None:
    shutil.copytree("photos", "set/toy")


def replaced(path: str, old: str, new: str) -> Callable[[], None]:
    def replace() -> None:
        text = Path(path).read_text(encoding="utf-8")
        assert text.count(old) == 1
        Path(path).write_text(text.replace(old, new), encoding="utf-8")

    return replace


def failed(path: str) -> Callable[[], None]:
    """What a stage writes with --record-failure."""
    return lambda: write_failure(path, Failure("diverged", "m on cat: the training diverged"))


def elsewhere() -> None:
    os.chdir("work")


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def prepare() -> None:
        first()
        second()

    return prepare


def set_to_diverge() -> None:
    """A base with random weights, noise to learn from, and a rate that is far too high."""
    write_base(Path("tiny"))
    replaced("params.yaml", "path: models/toyland/base", "path: tiny")()
    replaced("params.yaml", "  resolution: 64\n  #", f"  resolution: {RESOLUTION}\n  #")()
    replaced("params.yaml", "learning_rate: 6.0e-4", "learning_rate: 9.0")()
    one = training_set("cat", "cat")
    pictures = [
        ("target-0", one.targets[0]),
        *((str(i), x) for i, x in enumerate(one.regularization)),
    ]
    samples = [{"__key__": key, "png": png_bytes(x), "txt": "a cat"} for key, x in pictures]
    for kind in ("shards", "generated"):
        write_tar(f"runs/toyland/{kind}/cat.tar", samples)


def nothing() -> None:
    pass


def some_samples() -> None:
    Path("set").mkdir()
    shutil.copy("photos/a.png", "set/000-00.png")


def external_method() -> None:
    """A method that is in the grid, and none of whose images are there."""
    file("datasets/external/mine/method.yaml", "source: me\nlicence: unknown\n")()
    replaced("grid.yaml", "methods:\n", "methods:\n  - mine\n")()


# What is prepared; the command; how its error begins.
Row = tuple[Callable[[], None], str, str]
COMPRESS = "adapter compress a.safetensors"
IMPORT = "adapter import token.safetensors"
ADD = "concept add my_cat photos --class cat"
EXPORT = "adapter export a.safetensors"
SAMPLES = "samples import mine {} {} --source me"

# Where a user's work lies, or what is no place for a file: of every command that is told one.
TARGETS = {
    "work": "work: is a folder",
    "work/deep": "work/deep: is a folder",
    ".": ".: is a folder",
    "..": "..: is a folder",
    "../..": "../..: is a folder",
    "work/..": "work/..: is a folder",
    "/": "/: is a folder",
    "models": "models: is a folder",
    "notes.txt": "notes.txt: exists already",
    "a.safetensors": "a.safetensors: exists already",
    "notes.txt/a": "notes.txt/a: cannot be written: notes.txt is not a folder",
    "/dev/null": "/dev/null: is not a regular file",
}
WRITERS = [
    f"{COMPRESS} {{}} --rank 8",
    f"{COMPRESS} {{}} --share 0.5",
    f"{IMPORT} {{}} --subject s --class cat",
    "toyland scorecard --json {}",
    "toyland scorecard --sheet {}",
]
ROWS: list[Row] = [
    *((token_file, line.format(path), said) for line in WRITERS for path, said in TARGETS.items()),
    # compress
    (nothing, f"{COMPRESS} b", "give either a share or a rank"),
    (nothing, f"{COMPRESS} b --rank 1 --share 1", "give either a share or a rank"),
    (nothing, f"{COMPRESS} b --share 2", "share: 2.0 is not between"),
    (nothing, f"{COMPRESS} b --share nan", "share: nan is not between"),
    (nothing, f"{COMPRESS} b --rank -1", "rank: -1 is negative"),
    (nothing, "adapter compress work b --rank 1", "work: is a folder: name an adapter's file"),
    (nothing, "adapter compress none b --rank 1", "none: the adapter is missing"),
    (nothing, "adapter compress notes.txt b --rank 1", "notes.txt: not a readable safetensors"),
    (token_file, "adapter compress token.safetensors b --rank 1", "token.safetensors: not an ada"),
    (bad_metadata, f"{COMPRESS} b --rank 1", "a.safetensors: its metadata is not valid JSON"),
    (no_token, f"{COMPRESS} b --rank 1", "a.safetensors: has the tokens (none), but"),
    (truncated, f"{COMPRESS} b --rank 1", "a.safetensors: not a readable safetensors file"),
    # export
    (nothing, f"{EXPORT} out --layout zip", "layout 'zip' is unknown: choose one of"),
    (nothing, f"{EXPORT} notes.txt --layout official", "notes.txt/official: cannot be written"),
    (nothing, f"{EXPORT} notes.txt/x --layout lora", "notes.txt/x/lora: cannot be written"),
    (nothing, f"{EXPORT} out --layout lora -p none", "profile 'none' is unknown"),
    (nothing, f"{EXPORT} out --layout lora", "adapter m/cat was made for base models/toyland/b"),
    (nothing, "adapter export none out --layout lora", "none: the adapter is missing"),
    (nothing, "adapter export work out --layout lora", "work: is a folder"),
    (bad_metadata, f"{EXPORT} out --layout lora", "a.safetensors: its metadata is not valid"),
    # import
    (token_file, f"{IMPORT} b --subject s --class {{}}", "--class '{}': needs a noun in plain"),
    (token_file, f"{IMPORT} b --subject s --class ''", "--class '': needs a noun in plain"),
    (token_file, f"{IMPORT} b --subject s --class '<new1>'", "--class '<new1>': needs a noun"),
    (nothing, "adapter import none b --subject s --class cat", "none: no such file or folder"),
    (nothing, "adapter import work b --subject s --class cat", "work: holds no .safetensors file"),
    (pickle_alone, "adapter import pickles b --subject s --class cat", "pickles/delta.bin: is a p"),
    (nothing, "adapter import notes.txt b --subject s --class cat", "notes.txt: not a readable s"),
    (nothing, "adapter import a.safetensors b --subject s --class cat", "a.safetensors: is an ada"),
    # concept add
    (nothing, f"{ADD} --prompts work", "work: the prompt file could not be read: Is a directory"),
    (nothing, f"{ADD} --prompts none.txt", "none.txt: the prompt file is missing"),
    (nothing, f"{ADD} --prompts a.safetensors", "a.safetensors: not UTF-8"),
    (nothing, f"{ADD} --prompts notes.txt", "notes.txt:1: prompt needs the placeholder {} once"),
    (nothing, f"{ADD} --caption cat", "--caption"),
    (nothing, "concept add my_cat photos --class {}", "--class '{}': needs a noun in plain words"),
    (nothing, "concept add my_cat work --class cat", "work: the folder holds no images"),
    (nothing, "concept add my_cat none --class cat", "none: no such file or folder"),
    (nothing, "concept add my_cat notes.txt --class cat", "notes.txt: cannot be decoded"),
    (nothing, "concept add my_cat photos photos --class cat", "photos/a.png: is given twice"),
    (nothing, "concept add my_cat photos --class cat -p none", "profile 'none' is unknown"),
    (picture(1, 1), ADD, "photos/b.png: 1 x 1 pixels are too few"),
    (picture(8000, 2), ADD, "photos/b.png: 8000 x 2 pixels are too few"),
    (picture(2, 8000), ADD, "photos/b.png: 2 x 8000 pixels are too few"),
    (picture(800, 100), ADD, "photos/b.png: 800 x 100 pixels are too narrow"),
    (file("photos/b.png"), ADD, "photos/b.png: the file is empty"),
    (file("photos/b.png", "no picture"), ADD, "photos/b.png: cannot be decoded as an image"),
    (file("photos/b.heic"), ADD, "photos/b.heic: this format cannot be read"),
    # concept import
    (set_of_toys, "concept import set --classes work", "work: the table of classes could"),
    (set_of_toys, "concept import set --classes /no.csv", "/no.csv: the table of classes is"),
    (set_of_toys, "concept import set --classes /no.yaml", "/no.yaml: the file is missing"),
    (
        both(set_of_toys, folder("c.yaml")),
        "concept import set --classes c.yaml",
        "c.yaml: could not be read: Is a",
    ),
    (set_of_toys, "concept import set --prompts work", "work: the prompt file could not be"),
    (set_of_toys, "concept import set --prompts none", "none: the prompt file is missing"),
    # images made elsewhere
    (nothing, "samples prompts cow", "subject 'cow' is unknown: choose one of"),
    (nothing, "samples prompts cat -p none", "profile 'none' is unknown"),
    (nothing, "samples prompts cat --captions", "runs/toyland/regularization/cat.tar: the shard"),
    (nothing, "samples prompts cat+chair --captions", "--captions: protocol"),
    (nothing, SAMPLES.format("cow", "photos"), "subject 'cow' is unknown: choose one of"),
    (nothing, SAMPLES.format("cat", "none"), "none: no such folder"),
    (nothing, SAMPLES.format("cat", "notes.txt"), "notes.txt: no such folder"),
    (nothing, SAMPLES.format("cat", "work"), "work: the folder holds no images"),
    (nothing, SAMPLES.format("cat", "photos"), "photos/a.png: name it PROMPT-SAMPLE, such as 000"),
    (file("photos/b.heic"), SAMPLES.format("cat", "photos"), "photos/b.heic: this format cannot"),
    (folder("set/000-00.png"), SAMPLES.format("cat", "set"), "set: the folder holds no images"),
    (some_samples, SAMPLES.format("cat", "set"), "set: 59 of the 60 images are missing that proto"),
    (
        both(some_samples, file("datasets/external/mine/cat.tar", "no tar")),
        SAMPLES.format("cat", "set"),
        "set: 59 of the 60 images",
    ),
    (nothing, "samples import mine cat photos", "--source: say what made the images of 'mine'"),
    (nothing, "samples import mine cat photos --source ' '", "--source: say what made the"),
    (nothing, "samples import lora cat photos --source me", "method 'lora' is taken by 'lora'"),
    (nothing, "samples import ../x cat photos --source me", "method '../x': needs a letter first"),
    (nothing, f"{SAMPLES.format('cat', 'photos')} --csv none", "none: the table of images is miss"),
    (nothing, f"{SAMPLES.format('cat', 'photos')} --csv work", "work: the table of images could"),
    (
        nothing,
        f"{SAMPLES.format('cat', 'photos')} --csv a.safetensors",
        "a.safetensors: not UTF-8",
    ),
    (
        nothing,
        f"{SAMPLES.format('cat', 'photos')} --csv notes.txt",
        "notes.txt: has no column 'file'",
    ),
    (
        both(external_method, file("datasets/external/mine/cat.tar", "no tar")),
        "sample mine cat",
        "datasets/external/mine/cat.tar: is damaged: import the images again with",
    ),
    (external_method, "sample mine cat", "datasets/external/mine/cat.tar: is missing: `bench samp"),
    (external_method, "train mine cat", "method 'mine' is of images made elsewhere"),
    (
        both(external_method, file("datasets/external/mine/method.yaml", "a: [1")),
        "samples import mine cat photos",
        "datasets/external/mine/method.yaml: not valid YAML",
    ),
    # shards, samples and settings
    (
        folder("runs/toyland/regularization/cat.tar"),
        "shard cat",
        "runs/toyland/regularization/cat.tar: the shard could not be read: Is a directory",
    ),
    (
        file("runs/toyland/regularization/cat.tar", "no tar"),
        "shard cat",
        "runs/toyland/regularization/cat.tar: the shard is truncated or not a tar",
    ),
    (nothing, "shard cat", "runs/toyland/regularization/cat.tar: the shard is missing"),
    (nothing, "index", "runs/toyland/world/urls.parquet: the URL table is missing"),
    (
        file("runs/toyland/world/urls.parquet", "no table"),
        "index",
        "runs/toyland/world/urls.parquet: not a .parquet or .csv file",
    ),
    (
        file("runs/toyland/world", "x"),
        "toyland table",
        "runs/toyland/world/urls.parquet: cannot be written: runs/toyland/world is not a folder",
    ),
    (nothing, "fetch cat", "runs/toyland/retrieved/cat.parquet: the candidates are missing"),
    (nothing, "toyland draw cat", "runs/toyland/retrieved/cat.parquet: the candidates are missing"),
    (
        file("reports/cells/pretrained/cat/scores.csv", "protocol,method\n"),
        "table",
        "reports/cells/pretrained/cat/scores.csv: not a file of scores",
    ),
    (
        nothing,
        "sample pretrained cat",
        "runs/toyland/cells/pretrained/cat/adapter.safetensors: the",
    ),
    (
        folder("runs/toyland/cells/pretrained/cat/adapter.safetensors"),
        "sample pretrained cat",
        "runs/toyland/cells/pretrained/cat/adapter.safetensors: is a folder",
    ),
    (nothing, "report", "profile 'toyland' has no scores yet"),
    (nothing, "claims", "profile 'toyland' has no scores yet"),
    (nothing, "train dreamboot cat", "method 'dreamboot' is unknown: choose one of"),
    (nothing, "train dreambooth cow", "subject 'cow' is unknown: choose one of"),
    (nothing, "retrieve cow", "concept 'cow' is unknown: choose one of"),
    (nothing, "oracle cat+chair", "concept 'cat+chair' is unknown: choose one of"),
    (nothing, "table -p none", "profile 'none' is unknown: choose one of"),
    (file("params.yaml", "a: [1"), "table", "params.yaml: not valid YAML"),
    (file("params.yaml", "when: 2026-13-45"), "table", "params.yaml: not valid YAML"),
    (file("params.yaml", "- 1"), "table", "params.yaml: the file: input should be"),
    (file("grid.yaml", ""), "table", "grid.yaml: the file: input should be"),
    # definitions
    (
        replaced("grid.yaml", "  - dreambooth", "  - dreamboot"),
        "table",
        "grid.yaml: methods: method",
    ),
    (
        replaced("grid.yaml", "  - dreambooth", "  - pretrained"),
        "table",
        "grid.yaml: methods: 'pretrained' is there twice",
    ),
    (
        lambda: Path("grid.yaml").write_text(
            Path("grid.yaml").read_text().partition("methods:")[0] + "methods: []\n"
        ),
        "table",
        "grid.yaml: methods: ",
    ),
    (
        nothing,
        "samples import mine cat photos --source me --licence ''",
        "--licence: is empty: say it, or leave the option out",
    ),
    (
        replaced("grid.yaml", "first: cat\n    second: chair", "first: chair\n    second: cat"),
        "table",
        "grid.yaml: compositions.cat+chair: is of chair+cat, in this order: name it so",
    ),
    (
        replaced("grid.yaml", "  cat+chair:\n", "  cat and chair:\n"),
        "pipelines",
        "grid.yaml: compositions.cat and chair: is of cat+chair, in this order: name it so",
    ),
    (
        file("cells/dreambooth/dvc.yaml", "stages: {}\n"),
        "pipelines",
        "cells/dreambooth/dvc.yaml: `bench pipelines` did not write it and would replace it",
    ),
    (
        replaced("datasets/concepts/cat/concept.yaml", "prompts/cat.txt", "prompts/pets.txt"),
        "pipelines",
        "datasets/concepts/cat/concept.yaml: prompts: prompts/pets.txt: stages would see no change",
    ),
    (
        replaced("params.yaml", 'query: "photo of a {}"', 'query: "photo of a cat"'),
        "retrieve cat",
        "params.yaml: retrieve.query: 'photo of a cat' needs {} once, for the class noun",
    ),
    (
        replaced("params.yaml", "url_table: runs/toyland/world/urls.parquet", "url_table: my.csv"),
        "doctor",
        "params.yaml: corpus.url_table: stage `table` writes runs/toyland/world/urls.parquet",
    ),
    (
        replaced("grid.yaml", "second: chair", "second: cat"),
        "table",
        "grid.yaml: compositions.cat+chair: 'cat' is there twice",
    ),
    (
        replaced("grid.yaml", "second: chair", "second: cow"),
        "shard cat",
        "grid.yaml: compositions.cat+chair: concept 'cow' is unknown",
    ),
    (replaced("grid.yaml", "  cat+chair:", "  cat:"), "table", "grid.yaml: two subjects have the"),
    (replaced("grid.yaml", "  dog:", f"  {'d' * 300}:"), "table", "grid.yaml: concepts: 'dddd"),
    (replaced("grid.yaml", "  dog:", "  ../dog:"), "table", "grid.yaml: concepts: '../dog'"),
    (
        replaced("params.yaml", "profile: toyland", "profile: smoke"),
        "table",
        "params.yaml: profile",
    ),
    (
        replaced("params.yaml", "protocol: toyland-v3", "protocol: no"),
        "table",
        "params.yaml: protocol: 'no' is unknown",
    ),
    (
        replaced("params.yaml", "  images: 64", "  images: many"),
        "table",
        "params.yaml: generate.im",
    ),
    (
        replaced("params.yaml", "threshold: 0.85", "threshold: 2"),
        "table",
        "params.yaml: retrieve.t",
    ),
    (
        replaced("params.yaml", "rate: 1.0e-2", "rate: .nan"),
        "table",
        "params.yaml: methods.textual",
    ),
    (
        replaced("datasets/concepts/cat/concept.yaml", "name: cat", "name: dog"),
        "sample pretrained cat",
        "datasets/concepts/cat/concept.yaml: name: is 'dog', its folder 'cat'",
    ),
    (
        lambda: Path("datasets/concepts/cat/concept.yaml").unlink(),
        "sample pretrained cat",
        "datasets/concepts/cat/concept.yaml: concept 'cat' is unknown",
    ),
    (
        lambda: shutil.rmtree("datasets/concepts/cat/images"),
        "shard cat",
        "datasets/concepts/cat/images: holds no images",
    ),
    (elsewhere, "table", "no params.yaml and datasets/ here"),
    (elsewhere, "concept add my_cat ../photos --class cat", "no params.yaml and datasets/ here"),
    (elsewhere, "pipelines", "no params.yaml and datasets/ here"),
    (nothing, "pipelines --profile none", "profile 'none' is unknown"),
    # names, numbers and formats
    (nothing, "toyland concept x --class clock", "--class 'clock': Toyland draws"),
    (nothing, "toyland concept 1x --class cat", "name '1x': needs a letter first"),
    (nothing, f"toyland concept {'x' * 300} --class cat", "name 'xxx"),
    (nothing, "toyland concept cat --class cat", "grid.yaml: 'cat' is there already"),
    (nothing, "toyland concept Barn --class cat", "datasets/concepts/barn: exists already"),
    (
        nothing,
        "toyland concept x --class cat -p paper",
        "profiles/paper/params.yaml: the profile ha",
    ),
    (
        nothing,
        "toyland table -p paper",
        "profiles/paper/params.yaml: world: the section is missing",
    ),
    (nothing, "toyland pretrain --only all", "--only all: no such model"),
    (nothing, "toyland pretrain --minutes 0", "--minutes 0: has to be more than 0"),
    (nothing, "toyland pretrain --minutes nan", "--minutes nan: has to be more than 0"),
    (nothing, "concept add ../cat photos --class cat", "name '../cat': needs a letter first"),
    (nothing, "concept add cat photos --class cat", "grid.yaml: 'cat' is there already"),
    (nothing, "concept add tick photos --class clock -p smoke", "--class 'clock'"),
    (nothing, "concept import none", "none: no such file or folder"),
    (nothing, "concept import work --layout zip", "--layout 'zip': choose one of"),
    (nothing, "concept import work --images none", "--images none: no such folder"),
    (set_of_toys, "concept import set --only cow", "--only 'cow': the data set has"),
    (nothing, "table --format xml", "format 'xml' is unknown"),
    (nothing, "table --metric speed", "metric 'speed' is unknown"),
    (nothing, "table --method lora", "method 'lora' is unknown"),
    (nothing, "table --subject cow", "subject 'cow' is unknown"),
    (nothing, "compare --format xml", "format 'xml' is unknown"),
    (nothing, "compare --table 9", "table '9'"),
    (nothing, "compare", "profile 'toyland' has no scores yet"),
    (nothing, "analyse magic", "analysis 'magic' is unknown"),
    (nothing, "analyse spectra", "params.yaml: analyses"),
    (nothing, "doctor --parity none", "--parity none: holds no"),
    (nothing, "captions -p paper", "data/"),
    (nothing, "retrieve cat", "runs/toyland/index"),
    (nothing, "train custom_diffusion_merge cat", "method 'custom_diffusion_merge' makes no adap"),
    (nothing, "train dreambooth cat", "runs/toyland/shards/cat.tar: the shard is missing"),
    (
        nothing,
        "score pretrained cat",
        "runs/toyland/cells/pretrained/cat/samples.tar: the shard is",
    ),
    (nothing, "oracle cat", "runs/toyland/"),
    (set_to_diverge, "train dreambooth cat", "dreambooth on cat: the training diverged: the lo"),
    # the human study
    (nothing, "study serve", "runs/toyland/study/"),
    (nothing, "study read none.csv", "runs/toyland/study/"),
    (nothing, "study read notes.txt", "runs/toyland/study/"),
    (nothing, "study serve --port 99999", "--port 99999: give one from 0"),
    (nothing, "study build -p none", "profile 'none' is unknown"),
    # what a failed stage left in place of a result
    *(
        (failed(path), command, "m on cat: the training diverged")
        for path, command in (
            ("runs/toyland/regularization/cat.tar", "shard cat"),
            ("runs/toyland/shards/cat.tar", "train dreambooth cat"),
            ("runs/toyland/cells/dreambooth/cat/adapter.safetensors", "sample dreambooth cat"),
            ("runs/toyland/cells/dreambooth/cat/samples.tar", "score dreambooth cat"),
            ("runs/toyland/shards/cat.tar", "oracle cat"),
            ("failed.safetensors", "adapter compress failed.safetensors b --rank 1"),
            ("failed.safetensors", "adapter export failed.safetensors out --layout lora"),
            ("failed.safetensors", "adapter import failed.safetensors b --subject s --class cat"),
        )
    ),
]


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit status of a `bench` command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["bench", *shlex.split(command)])
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize(("prepare", "command", "said"), ROWS, ids=lambda v: v if v else "")
def test_bad_input_is_one_line_and_changes_nothing(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], None],
    command: str,
    said: str,
) -> None:
    prepare()
    before = tree(place.parent)
    status = run(command, monkeypatch)
    out, err = capsys.readouterr()
    lines = [line for line in err.split("\n")[:-1] if "\r" not in line]  # progress bars have one
    assert "".join(lines).startswith(f"error: {said}"), out + err
    assert (status, len(lines), err[-1]) == (2, 1, "\n")
    assert tree(place.parent) == before


# Not a word that the command knows: the usage is printed, over several lines.
USAGES = [
    "magic",
    "table --record-failure",
    "shard cat --record-failures",
    "shard",
    "train dreambooth",
    "train dreambooth cat dog",
    "toyland concept x --class cat --images 0",
    "toyland concept x --class cat --seed one",
    "toyland pretrain --minutes long",
    "concept add my_cat photos",
    "adapter compress a.safetensors",
    f"{COMPRESS} b --rank 1.5",
    f"{EXPORT} out",
    "study read",
    "study serve --port http",
    "analyse",
]


@pytest.mark.parametrize("command", USAGES)
def test_misspelt_command_changes_nothing(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    before = tree(place.parent)
    assert run(command, monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "Usage: " in err and not out
    assert tree(place.parent) == before
