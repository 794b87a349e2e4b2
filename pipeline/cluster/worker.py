"""What runs on a worker: one stage, by DVC itself, in a copy of the project that is its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.config import Config

from pipeline.cluster.locks import Entry, read_lock, write_lock
from pipeline.cluster.planning import Stage, located
from pipeline.cluster.supervisor import supervised
from pipeline.common.places import DEFAULT_PROFILE

TAIL = 20_000  # characters of a log that go to the driver
# Several commands of DVC in one process: importing it costs more than most of them.
DVC = (
    "import json, sys\n"
    "from dvc.cli import main\n"
    "for command in json.loads(sys.argv[1]):\n"
    "    if status := main(command): sys.exit(status)\n"
)
FEATURES = ".cache"  # what stages keep of images they have encoded; a node's stages share it
UNFINISHED = "unfinished"  # in a profile's runs: what a stage keeps until it is done


@dataclass(frozen=True)
class Place:
    """Where and how workers run stages."""

    folder: str  # of the profile, from the project's root
    cache: str  # of DVC, the same folder on all machines; unless there is a remote
    remote: str | None  # the name of DVC's remote that results go to instead
    remotes: dict[str, dict[str, Any]]  # DVC's options of remotes
    scratch: str | None  # where to work, on the machine's own disk; None: its temporary folder
    threads: int  # that a stage computes with

    def workshop(self) -> Path:
        """This user's folder for such work on this machine.

        Raises:
            PermissionError: it is somebody else's.
        """
        folder = Path(self.scratch or tempfile.gettempdir()) / f"concept-bench-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} is another user's: choose another --scratch")
        return folder

    def unfinished(self) -> Path:
        """What this project's stages have half done on this machine, to go on from."""
        project = hashlib.sha256(self.cache.encode()).hexdigest()[:16]
        folder = self.workshop() / UNFINISHED / project
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def runs(self) -> Path:
        """The folder of what the profile makes, from the project's root; see `Params.runs`."""
        folder = Path(self.folder)
        return folder / "runs" / (DEFAULT_PROFILE if folder == Path() else "")


@dataclass(frozen=True)
class Result:
    """What became of a stage."""

    address: str
    entry: Entry | None = None  # DVC's record of it; None: there is none
    records: dict[str, bytes] = field(default_factory=dict)  # outputs that DVC does not keep
    log: str = ""  # the end of what it printed
    skipped: bool = False  # as something that it reads could not be made
    seconds: float = 0.0
    node: str = ""


def run_stage(
    stage: Stage, place: Place, gpu: bool, before: Result | None, *upstream: Result
) -> Result:
    """Runs a stage, unless DVC finds that it made the same of the same inputs before.

    The project is taken from the current folder, which is not written to.

    Args:
        stage: what to run.
        place: where and how.
        gpu: whether it may use one; without, it sees none.
        before: what is recorded of it from an earlier run.
        upstream: of the stages whose outputs it reads, in any order.

    Returns:
        What became of it. A stage that fails is no exception: it would fail again.
    """
    if any(result.entry is None for result in upstream):
        return Result(stage.address, skipped=True)
    start, node = time.monotonic(), socket.gethostname()
    with _copy(place) as copy:
        folder = copy / place.folder
        _configure(folder, place, copy)
        locks: dict[str, dict[str, Entry]] = {}
        given = [*upstream, *([before] if before else [])]
        for result in given:
            lock, name = located(result.address)
            locks.setdefault(lock, {})[name] = result.entry or {}
            _write(folder, result.records)
        for lock, entries in locks.items():
            write_lock(folder / lock, entries)
        log = copy / "log.txt"
        commands = _commands(stage, place, [result.address for result in given])
        status = supervised(
            [sys.executable, "-c", DVC, json.dumps(commands)],
            folder,
            _environment(place.threads, gpu),
            log,
        )
        text = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        entry = read_lock(folder / stage.lock).get(stage.name)
        records = {path: (folder / path).read_bytes() for path in stage.records} if entry else {}
    return Result(
        stage.address,
        entry if status == 0 else None,
        records,
        text,
        seconds=time.monotonic() - start,
        node=node,
    )


def _commands(stage: Stage, place: Place, given: list[str]) -> list[list[str]]:
    """What DVC is asked for: what was made before, the stage, and to keep what that made.

    By address, as by path DVC would read the files of all stages.
    """
    remote = ["--remote", place.remote] if place.remote else []
    fetch = ["pull", *remote] if remote else ["checkout"]
    return [
        *([[*fetch, "--quiet", "--force", "--allow-missing", *given]] if given else []),
        ["repro", "--single-item", stage.address],
        *([["push", "--quiet", "--run-cache", *remote, stage.address]] if remote else []),
    ]


@contextmanager
def _copy(place: Place) -> Iterator[Path]:
    """A copy of the current folder, which is removed in the end; also those of dead workers."""
    workshop, host = place.workshop(), socket.gethostname()
    for old in workshop.glob(f"copy-{host}-*"):
        if not _alive(int(old.name.rsplit("-", 2)[1])):
            shutil.rmtree(old, ignore_errors=True)
    copy = workshop / f"copy-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(Path.cwd(), copy)
        (workshop / FEATURES).mkdir(exist_ok=True)
        (copy / FEATURES).symlink_to(workshop / FEATURES)
        (copy / place.runs()).mkdir(parents=True, exist_ok=True)
        (copy / place.runs() / UNFINISHED).symlink_to(place.unfinished())
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _configure(folder: Path, place: Place, copy: Path) -> None:
    """Has DVC use the common cache or the remote, and forget what it has recorded."""
    for lock in folder.rglob("dvc.lock"):
        lock.unlink()
    cache = str(place.workshop() / "cache") if place.remote else place.cache
    with Config(dvc_dir=str(folder / ".dvc")).edit("local") as config:
        config["core"] |= {"no_scm": True, "site_cache_dir": str(copy / "dvc")}
        # Links, as the cache may be on another disk than the copy.
        config["cache"] |= {"dir": cache, "type": ["reflink", "hardlink", "symlink"]}
        config["remote"] |= place.remotes


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _environment(threads: int, gpu: bool) -> dict[str, str]:
    """What a stage sees: the code of its copy, this Python's programs, and so many threads."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environ |= stage_environment(threads)
    environ["PYTHONPATH"] = "."  # of the copy, where `bench` runs; not the project installed here
    if not gpu:
        environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it, and stages take what they see
    return environ


def stage_environment(threads: int) -> dict[str, str]:
    """What stages need in their environment on whichever machine: programs, and threads.

    Their number decides the last bits of what is computed on CPUs.
    """
    programs = str(Path(sys.executable).parent)
    return {
        "OMP_NUM_THREADS": str(threads),
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
    }
