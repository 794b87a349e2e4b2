"""Files are whole or not there; shards depend on their samples alone."""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import webdataset as wds
from safetensors.torch import save_file

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, atomic_folder, check_new, read_tar, write_tar

SAMPLES = [
    {"__key__": "b-0001", "png": b"\x89PNG", "txt": "é", "json": {"z": 1, "a": [2]}},
    {"__key__": "a-0000", "txt": "first"},
]


def test_round_trip_in_the_order_of_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    assert read_tar(tmp_path / "a.tar") == sorted(SAMPLES, key=lambda s: s["__key__"])


def test_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    first, second = wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    assert (first["__key__"], first["txt"]) == ("a-0000", "first")
    assert (second["__key__"], second["json"]) == ("b-0001", {"z": 1, "a": [2]})


def test_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    write_tar(tmp_path / "b.tar", SAMPLES[::-1])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {member.mtime for member in tar} == {0}


@pytest.mark.parametrize("part", [0.1, 0.5, 0.6])
def test_truncated_shard(tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [{"__key__": f"k-{i}", "png": bytes(3000)} for i in range(8)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(BenchError, match=r"a\.tar: the shard is truncated.*dvc repro"):
        read_tar(path)


def test_shard_cut_between_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [{"__key__": f"k-{i}", "png": bytes(512)} for i in range(8)])
    path.write_bytes(path.read_bytes()[: 4 * 1024])
    with pytest.raises(BenchError, match=r"a\.tar: the shard is truncated"):
        read_tar(path)


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\0" * 100])
def test_not_a_shard(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(BenchError, match=r"a\.tar: the shard is truncated or not a tar"):
        read_tar(tmp_path / "a.tar")


def test_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"a\.tar: the shard is missing"):
        read_tar(tmp_path / "a.tar")


def test_a_folder_in_place_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(BenchError, match=r"a\.tar: the shard could not be read: Is a directory"):
        read_tar(tmp_path / "a.tar")


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError), atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as first, atomic(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"  # the last rename wins
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_replaces_folder(tmp_path: Path) -> None:
    for text in ("one.csv", "two.csv"):
        with atomic_folder(tmp_path / "folder", [".csv"]) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / text).touch()
    assert tree(tmp_path) == {"folder", "folder/below", "folder/below/two.csv"}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, as the working folder, and one beside it with a link to a third."""
    for name in ("home", "home/work", "disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    (tmp_path / "home" / "work" / "notes.txt").write_text("days")
    (tmp_path / "disk" / "a.csv").write_text("1")
    (tmp_path / "home" / "work" / "link").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "home" / "work")
    return tmp_path


@pytest.mark.parametrize("writer", [atomic, atomic_folder])
@pytest.mark.parametrize(
    "path",
    [
        ".",
        "..",
        "../..",
        "../work",
        "/",
        "link",
        "link/..",
        "notes.txt/a",
        "/dev/null",
        "../../home",
    ],
)
def test_nothing_else_is_ever_replaced(
    home: Path, path: str, writer: Callable[[str], AbstractContextManager[Path]]
) -> None:
    before = tree(home)
    with pytest.raises(BenchError, match=f"^{re.escape(str(Path(path)))}.*: "), writer(path):
        pytest.fail("told only after the work")
    assert tree(home) == before
    assert Path("/dev/null").is_char_device()


def test_a_folder_with_a_file_of_somebody_is_kept(home: Path) -> None:
    folder = home / "tables"
    folder.mkdir()
    (folder / "a.csv").touch()
    refused = pytest.raises(BenchError, match=r"mine\.txt: was not made by this project")
    with refused, atomic_folder(folder, [".csv"]) as temporary:
        (temporary / "b.csv").touch()
        (folder / "mine.txt").touch()  # while the work goes on
    assert tree(folder) == {"a.csv", "mine.txt"}
    with refused, atomic_folder(folder, [".csv"]):
        pytest.fail("told only after the work")
    assert tree(home) >= {"tables/a.csv", "tables/mine.txt", "disk/a.csv"}
    (folder / "mine.txt").unlink()
    (folder / "link").symlink_to(home / "disk")
    with (
        pytest.raises(BenchError, match="tables/link: was not made"),
        atomic_folder(folder, [".csv"]),
    ):
        pytest.fail("told only after the work")


def test_a_folder_that_cannot_be_replaced_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.csv").touch()

    def fails(*_: object) -> None:
        assert not folder.exists()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", fails)
    refused = pytest.raises(BenchError, match="could not be written: Input/output error")
    with refused, atomic_folder(folder, [".csv"]) as temporary:
        (temporary / "new.csv").touch()
    assert tree(tmp_path) == {"folder", "folder/old.csv"}


def test_what_a_user_names_is_never_replaced(home: Path) -> None:
    for path in (home / "home" / "thesis.txt", home, home / "home" / "work" / "link"):
        with pytest.raises(BenchError, match=r"exists already: name another|is a folder"):
            check_new(path)
    check_new(home / "new" / "folders" / "a.txt")
    assert not (home / "new").exists()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_of_the_users_other_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)  # for its owner alone
        with atomic_folder(tmp_path / "model") as temporary:
            save_file({"x": torch.zeros(1)}, temporary / "a.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "a.safetensors", tmp_path / "model" / "a.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BenchError, match=r"a\.tar: could not be written: No space left on device"):
        write_tar(tmp_path / "a.tar", SAMPLES)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_while_writing() -> None:
    """The kernel's own full device in place of a disk."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(BenchError, match="could not be written: No space left on device"),
        atomic(Path("/dev/shm") / "never-there") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        with open(temporary, "wb", buffering=0) as file:
            file.write(b"x")
    assert not (Path("/dev/shm") / "never-there").exists()
