"""Bad inputs, as a table: each is refused in one line, with status 2, and changes no file."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline import cli
from pipeline.adapters import Adapter, Provenance, save_adapter

ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def place(project: Path) -> Path:
    """A project with things of a user's: an adapter, pictures, notes and a folder of work."""
    (project / "models").symlink_to(ROOT / "models")
    made = Provenance("m", "cat", "models/toyland/base", "0" * 16, ("<new1> cat",))
    save_adapter(Adapter({"<new1>": torch.ones(64)}, {}, made), project / "a.safetensors")
    Path("work/deep").mkdir(parents=True)
    Path("work/deep/thesis.txt").write_text("years of work")
    Path("notes.txt").write_text("mine")
    Path("photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photos/a.png")
    return project


def bad_metadata() -> None:
    save_file({"token.<new1>": torch.ones(64)}, "a.safetensors", {"adapter": "{not json"})


def token_file() -> None:
    save_file({"<new1>": torch.ones(1, 64)}, "token.safetensors")


def pickle_alone() -> None:
    Path("pickles").mkdir()
    Path("pickles/delta.bin").write_bytes(b"\x80\x02}q\x00.")


def nothing() -> None:
    pass


# What is prepared; the command; how its error begins.
Row = tuple[Callable[[], None], str, str]
COMPRESS = "adapter compress a.safetensors"
IMPORT = "adapter import token.safetensors"
ADD = "concept add my_cat photos --class cat"
EXPORT = "adapter export a.safetensors"

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
    (nothing, f"{ADD} --prompts notes.txt", "notes.txt:1: prompt needs the placeholder {} once"),
    (nothing, f"{ADD} --caption cat", "--caption"),
    (nothing, "concept add my_cat photos --class {}", "--class '{}': needs a noun in plain words"),
    (nothing, "concept add my_cat work --class cat", "work: the folder holds no images"),
    (nothing, "concept add my_cat none --class cat", "none: no such file or folder"),
]


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
    monkeypatch.setattr(sys, "argv", ["bench", *shlex.split(command)])
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    before = tree(place.parent)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {said}"), out + err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert tree(place.parent) == before
