"""Stages `code_<room>`: what a room of code is, in a file that the stages that run it depend on."""

from __future__ import annotations

from pathlib import Path

from pipeline.bench.closure import PACKAGES, ROOT, files_of
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, sha256
from pipeline.settings.profile import Params, load_params


def digest_path(params: Params, room: str) -> Path:
    """Where a profile keeps the digest of a room, such as "pipeline/models"."""
    return params.runs() / "code" / f"{room.replace('/', '.')}.txt"


def write_digest(room: str, profile: str) -> None:
    """Writes the SHA-256 and the name of each file of a room, a line each.

    Args:
        room: a folder of this project's code, from the root.
        profile: the name of a profile.

    Raises:
        BenchError: there is no such folder.
    """
    if not (ROOT / room).is_dir() or not room.startswith(tuple(f"{name}/" for name in PACKAGES)):
        raise BenchError(f"{room}: no folder of code: run `bench pipelines`, which knows them all")
    files, path = files_of(room), digest_path(load_params(profile), room)
    with atomic(path) as part:
        lines = (f"{sha256(ROOT / file)}  {file}\n" for file in files)
        part.write_text("".join(lines), encoding="utf-8")
    print(f"digest: {len(files)} files of {room} -> {path}")
