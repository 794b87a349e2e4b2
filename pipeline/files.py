"""Files that are either whole or not there, and reproducible tars of samples."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import BenchError
from pipeline.params import repro_command_for


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or a folder to; renamed if all went well.

    Two writers do not disturb each other: each has a temporary path of its own, and the last
    rename wins. After an error nothing is left.

    Raises:
        BenchError: the disk is full, or the path cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise BenchError(f"{path}: could not be written: {error.strerror}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_json(path: str | Path, content: Any) -> None:
    """Writes what JSON can hold, for people to read, in the order given."""
    with atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


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
        BenchError: the shard is missing, truncated or not a tar.
    """
    path = Path(path)
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as tar:
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
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BenchError(
            f"{path}: the shard is truncated or not a tar ({error}): delete it and run "
            f"`{repro_command_for(path)}`"
        ) from error
    return list(samples.values())
