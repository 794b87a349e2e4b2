"""Files that are either whole or not there, and reproducible tars of samples."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import uuid
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.common.failures import INSIDE, Failure, refuse_failed
from pipeline.common.places import repro_command_for

RESULTS = (".csv", ".png", ".json")  # kinds of files of an analysis; JSON says that it failed


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file to; renamed if all went well.

    Two writers do not disturb each other: each has a temporary path of its own, and the last
    rename wins. After an error nothing is left. The file gets the mode that new files of this
    user have, whatever mode the library chose that wrote it.

    Raises:
        BenchError: the path is that of a folder, cannot be written, or the disk is full.
    """
    path = Path(path)
    check_file(path)
    with _temporary(path) as (temporary, mode):
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | Path, kinds: Collection[str] = ()) -> Iterator[Path]:
    """An empty folder beside `path` to write to, which takes its place if all went well.

    A folder that is there already is replaced as a whole, and only if all its files are of the
    kinds that are written there: a file of another kind must be somebody's own.

    Args:
        path: the folder to make.
        kinds: suffixes such as ".csv"; without any, only an empty folder is replaced.

    Raises:
        BenchError: the path may not be replaced, cannot be written, or the disk is full.
    """
    path = Path(path)
    check_folder(path, kinds)
    with _temporary(path) as (temporary, mode):
        temporary.mkdir()
        yield temporary
        for file in _files_in(temporary):
            file.chmod(mode)
        check_folder(path, kinds)  # as much may have happened while this one was made
        old = temporary.with_suffix(".old")
        if path.exists():
            path.rename(old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        if old.exists():
            shutil.rmtree(old)


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, int]]:
    """A path beside `path`, where nothing is left in the end, and the mode that new files get."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # tells at once whether one can write here
        mode = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary, mode
    except OSError as error:
        if error.errno is None:
            raise
        other = error.filename and not str(error.filename).startswith(str(temporary))
        raise BenchError(
            f"{path}: could not be written: {error.strerror}"
            + (f" ({error.filename})" if other else "")
        ) from error
    finally:
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():  # on a read-only disk even removing nothing is an error
            temporary.unlink()


def check_file(path: Path) -> None:
    """Finds out, before any work, whether a file may be written or replaced there.

    Raises:
        BenchError: it is a folder, a device or the like, or in no folder that can be written.
    """
    if path.name in ("", "..") or os.path.isdir(path):  # "." and "/" have no name
        raise BenchError(f"{path}: is a folder: name a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise BenchError(f"{path}: is not a regular file: name another")
    _check_parent(path)


def check_new(path: Path) -> None:
    """As `check_file`, for a file that a user names: what exists is never replaced.

    Raises:
        BenchError: something is there, or a file cannot be.
    """
    check_file(path)
    if os.path.lexists(path):
        raise BenchError(f"{path}: exists already: name another file, or remove it first")


def check_folder(path: Path, kinds: Collection[str]) -> None:
    """Finds out, before any work, whether a folder may be made or replaced there.

    Raises:
        BenchError: it is a file, a link or not this project's (see `atomic_folder`), or in no
            folder that can be written.
    """
    if path.name in ("", ".."):
        raise BenchError(f"{path}: would be replaced as a whole: name a folder in it")
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isdir(path)):
        what = "a link" if os.path.islink(path) else "a file"
        raise BenchError(f"{path}: is {what} where a folder is written: move it elsewhere")
    for file in _files_in(path):
        if file.suffix not in kinds:
            raise BenchError(
                f"{file}: was not made by this project, and {path} is replaced as a whole: move "
                "it elsewhere"
            )
    _check_parent(path)


def _check_parent(path: Path) -> None:
    """Finds out whether something can be made in the path's folder, which may yet be made."""
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    if not os.path.isdir(folder):
        raise BenchError(f"{path}: cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BenchError(f"{path}: cannot be written: no permission to write in {folder}")


def _files_in(folder: Path) -> Iterator[Path]:
    """All below a folder that is not a folder, links among it; nothing if it is not there."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(Path(parent, name))]
        yield from (Path(parent, name) for name in [*files, *links])


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_below(folder: Path, files: Mapping[PurePosixPath, bytes]) -> None:
    """Writes files by their paths in a folder; what lies between them and it is made."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    """Writes what JSON can hold, for people to read, in the order given."""
    with atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_failure(path: str | Path, failure: Failure) -> None:
    """Writes a failure in place of what should be there: a file, or the folder of an analysis."""
    path = Path(path)
    if path.suffix:
        write_json(path, failure.record())
        return
    with atomic_folder(path, RESULTS) as temporary:
        write_json(temporary / INSIDE, failure.record())


def write_tar(path: str | Path, samples: list[dict[str, Any]]) -> None:
    """Writes a webdataset shard whose bytes depend on the samples alone.

    Args:
        samples: each has `__key__` and, by extension, bytes (`png`), str (`txt`) or what JSON
            can hold (`json`). They are written in the order of their keys.
    """
    from webdataset import TarWriter  # imports torch

    with atomic(path) as temporary, TarWriter(str(temporary), encoder=False, mtime=0) as tar:
        for sample in sorted(samples, key=lambda s: str(s["__key__"])):
            parts = {name: _encoded(v) for name, v in sample.items() if name != "__key__"}
            tar.write({"__key__": sample["__key__"], **parts})


def _encoded(value: Any) -> bytes:
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    return value.encode() if isinstance(value, str) else bytes(value)


def read_tar(path: str | Path, keys: Container[str] | None = None) -> list[dict[str, Any]]:
    """The samples of a webdataset shard, in its order; `json` decoded, `txt` as str, rest bytes.

    Args:
        keys: only the samples with these keys are read, by default all.

    Raises:
        BenchError: the shard is missing, cannot be read, truncated or not a tar.
        FailureError: it could not be made.
    """
    path = Path(path)
    refuse_failed(path)
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if keys is not None and key not in keys:
                    continue
                content = tar.extractfile(member)
                if content is None:
                    continue
                data: Any = content.read()
                if extension == "txt":
                    data = data.decode()
                elif extension == "json":
                    data = json.loads(data)
                samples.setdefault(key, {"__key__": key})[extension] = data
            # A tar that was cut between two members ends without its block of zeros.
            if tar.fileobj is not None:
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("its end is missing")
    except FileNotFoundError:
        raise BenchError(
            f"{path}: the shard is missing: run `{repro_command_for(path)}` to make it"
        ) from None
    except OSError as error:
        raise BenchError(f"{path}: the shard could not be read: {error.strerror}") from error
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise BenchError(
            f"{path}: the shard is truncated or not a tar ({error}): delete it and run "
            f"`{repro_command_for(path)}`"
        ) from error
    return list(samples.values())
