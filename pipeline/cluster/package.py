"""What workers get of the project: a snapshot, so that edits during a run do not reach them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.common.errors import BenchError

LIMIT = 500 * 2**20  # bytes; Ray's own is 512 MiB
NEVER = ("__pycache__", ".part")  # endings of what no stage depends on: .dvcignore says so


def package(root: Path, named: Iterable[str]) -> list[Path]:
    """The files that workers need: what git holds or would, and what stages name beside that.

    Args:
        root: the project's folder.
        named: files and folders that stages read and none makes, as absolute paths. Those below
            `root` are taken whether or not git ignores them; all others each machine has to have.

    Returns:
        Paths from the root, in order.

    Raises:
        BenchError: git cannot say, or they are too many bytes to send around.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        raise BenchError(
            f"{root}: git cannot list the project's files, which workers get: "
            f"{listed.stderr.strip()}: clone the project, or run `git init` in it"
        )
    found = {Path(name) for name in listed.stdout.split("\0") if name}
    inside = (Path(name) for name in named if Path(name).is_relative_to(root))
    found |= {file.relative_to(root) for path in inside for file in _files(path)}
    files = sorted(path for path in found if (root / path).is_file())  # not what was deleted
    sizes = {path: (root / path).stat().st_size for path in files}
    if (total := sum(sizes.values())) > LIMIT:
        largest = max(sizes, key=sizes.__getitem__)
        raise BenchError(
            f"{largest}: the project's files are {total / 2**20:.0f} MiB, too many to send to each "
            f"machine ({LIMIT / 2**20:.0f}): keep this one, the largest, where all machines see "
            "it, and name it by its absolute path"
        )
    return files


def copy_to(folder: Path, root: Path, files: Iterable[Path]) -> None:
    """Copies files of a project, with their modes and times, by their paths from its root."""
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, folder / path)


def _files(path: Path) -> Iterator[Path]:
    """A file itself, or what lies below a folder."""
    if path.is_file():
        yield path
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.endswith(NEVER)]
        yield from (Path(parent, name) for name in names if not name.endswith(NEVER))
