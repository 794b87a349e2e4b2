"""Stage `code`: what each room of code is, in a file that the stages that run it depend on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.freshness import digest_of
from pipeline.bench.closure import PACKAGES, ROOT
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.settings.profile import Params, load_params

FOLDER = "code"  # in runs/<profile>/


def digest_path(params: Params, room: str) -> Path:
    """Where a profile keeps the digest of a room, such as "pipeline/models"."""
    return params.runs() / FOLDER / f"{room.replace('/', '.')}.txt"


def write_digests(rooms: Sequence[str], profile: str) -> None:
    """Writes the SHA-256 and the name of each file of a room, a line each, for all rooms.

    Args:
        rooms: folders of this project's code, from the root.
        profile: the name of a profile.

    Raises:
        BenchError: there is no such folder.
    """
    for room in rooms:
        if not (ROOT / room).is_dir() or not room.startswith(tuple(f"{p}/" for p in PACKAGES)):
            raise BenchError(
                f"{room}: no folder of code: run `bench pipelines`, which knows them all"
            )
    params = load_params(profile)
    for room in rooms:
        with atomic(digest_path(params, room)) as part:
            part.write_text(digest_of(room, ROOT), encoding="utf-8")
    print(f"code: {len(rooms)} rooms -> {params.runs() / FOLDER}")
