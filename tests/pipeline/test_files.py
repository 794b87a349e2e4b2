"""Files are whole or not there; shards depend on their samples alone."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from pipeline.errors import BenchError
from pipeline.files import atomic, read_tar, write_tar

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
    for text in ("one", "two"):
        with atomic(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]


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
