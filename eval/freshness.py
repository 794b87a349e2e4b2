"""Whether scores are of the present parameters, protocol, code and data.

DVC writes down what it made of what in dvc.lock, and this reads it: `dvc status` says more, but
takes a minute. A cell is *stale* if its scores are not the ones that were written down (of an
experiment, or made by hand), or if anything that they were made of has changed since. What stages
make is compared between the notes alone; only what nobody makes is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pathspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.common.errors import BenchError
from pipeline.common.files import sha256
from pipeline.common.places import repro_command_for
from pipeline.settings.profile import Params, load_params, profile_folder
from pipeline.settings.protocol import PROTOCOLS

Cell = tuple[str, str]  # method and subject
LOCK = "dvc.lock"
HASHED_BYTES = 1 << 28  # of larger files and folders only the size is compared
NAMED = 6  # cells in a note


@dataclass(frozen=True)
class Freshness:
    """Which cells are stale and why, and whether that could be found out."""

    stale: Mapping[Cell, str] = field(default_factory=dict)
    verified: bool = True  # whether DVC wrote down anything about the profile

    def notes(
        self, mark: str, methods: Collection[str], subjects: Collection[str]
    ) -> tuple[str, ...]:
        """A line for each reason, which begins with the mark of the numbers that it is about.

        Args:
            mark: stands at the numbers of stale cells.
            methods: cells of these are named,
            subjects: if they are of these too.
        """
        by_reason: dict[str, list[str]] = {}
        for (method, subject), why in self.stale.items():
            if method in methods and subject in subjects:
                by_reason.setdefault(why, []).append(f"{method}/{subject}")
        return tuple(f"{mark} stale, {why}: {_listed(names)}" for why, names in by_reason.items())

    def unverified(self) -> tuple[str, ...]:
        """A line that says so if nothing could be found out."""
        said = f"unverified: there is no {LOCK} that says what these scores were made of"
        return () if self.verified else (said,)


def freshness(profile: str, scores: pd.DataFrame, failed: Collection[Cell] = ()) -> Freshness:
    """Finds out which cells are stale.

    Args:
        profile: the name of a profile.
        scores: those of its cells, as `eval.scores.reading.load_scores` gives.
        failed: cells that hold why they could not be made, which may be otherwise by now.

    Raises:
        BenchError: a dvc.lock is damaged.
    """
    params, notes = load_params(profile), _Notes(profile)
    rows = scores.drop_duplicates(["method", "subject"])
    cells = dict.fromkeys(failed, params.protocol.name)
    cells |= dict(zip(zip(rows["method"], rows["subject"]), rows["protocol"]))
    stale: dict[Cell, str] = {}
    for (method, subject), protocol in cells.items():
        if protocol != params.protocol.name:
            stale[method, subject] = f"of protocol {protocol} and not {params.protocol.name}"
            continue
        # One stale training makes a cell's mean stale.
        paths = [folder / "scores.csv" for folder in params.records(method, subject).values()]
        made = filter(Path.is_file, paths if notes.makers else ())
        if why := next(filter(None, (notes.why_stale(params, path) for path in made)), ""):
            stale[method, subject] = why
    return Freshness(stale, bool(notes.makers))


def stale_analyses(params: Params, names: Collection[str]) -> dict[str, str]:
    """Which of these analyses of a profile are stale, and why; those that were not run are not.

    Raises:
        BenchError: a dvc.lock is damaged.
    """
    notes, folder = _Notes(params.profile), params.reports() / "analyses"
    if not notes.makers:
        return {}
    whys = {name: notes.why_stale(params, folder / name) for name in params.analyses
            if name in names and (folder / name).is_dir()}  # fmt: skip
    return {name: why for name, why in whys.items() if why}


def files_of(room: str, root: Path = Path()) -> list[str]:
    """The files of a room of code, or of one of its own that stands for itself, from the root."""
    if (root / room).is_file():
        return [room]
    return sorted(
        file.relative_to(root).as_posix()
        for file in (root / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not _is_stray(file)
    )


def digest_of(room: str, root: Path = Path()) -> str:
    """The SHA-256 and the name of each file of a room of code, a line each."""
    return "".join(f"{sha256(root / file)}  {file}\n" for file in files_of(room, root))


def _is_stray(file: Path) -> bool:
    """Whether an editor or a file manager left it behind."""
    return file.name.startswith(".") or file.name.endswith("~")


class _Notes:
    """What DVC wrote down about the stages of a profile, and how it compares with the present."""

    def __init__(self, profile: str) -> None:
        self.folder = profile_folder(profile)
        self.makers: dict[str, str] = {}  # the name of the stage that makes a path
        self.made: dict[str, dict[str, Any]] = {}  # what it made, with its MD5
        self.stages: dict[str, dict[str, Any]] = {}
        self.known: dict[str, str] = {}  # by stage, why it is stale
        for lock in (self.folder / LOCK, *sorted(self.folder.glob(f"cells/*/{LOCK}"))):
            for name, stage in _stages(lock).items():
                self.stages[full := f"{lock.parent}:{name}"] = stage
                for out in stage.get("outs", ()):
                    self.makers[out["path"]] = full
                    self.made[out["path"]] = out

    def why_stale(self, params: Params, path: Path) -> str:
        """Why the scores or results in this file or folder are stale; empty if they are not."""
        # The notes may name paths from another folder: only the end is sure.
        end = path.relative_to(params.reports()).parts
        noted = next((p for p in self.made if Path(p).parts[-len(end) :] == end), None)
        if noted is None:
            return f"not made by DVC, as {LOCK} does not know them"
        if _fingerprint(str(path), self.made[noted]) != self.made[noted].get("md5"):
            return f"not the {path.stem} that {LOCK} knows (of an experiment, or made by hand)"
        return self._why(self.makers[noted])

    def _why(self, name: str) -> str:
        """Why a stage would have to run again."""
        if name not in self.known:
            self.known[name] = ""  # a circle, which DVC forbids, would end here
            self.known[name] = next(self._reasons(self.stages[name]), "")
        return self.known[name]

    def _reasons(self, stage: Mapping[str, Any]) -> Iterator[str]:
        deps = {dep["path"]: dep for dep in stage.get("deps", ())}
        # Of the stage that writes digests of rooms what counts is the room, and not all others.
        rooms = {path: deps.pop(path) for path in [*deps] if self._is_digest(path)}
        for path, dep in rooms.items():
            room = Path(path).stem.replace(".", "/")
            text = digest_of(room).encode()
            if hashlib.md5(text, usedforsecurity=False).hexdigest() != dep.get("md5"):
                yield f"as {room} has changed"
        for path in deps:
            if path in self.makers and (why := self._why(self.makers[path])):
                yield why
        for key, values in stage.get("params", {}).items():
            path = self._settings_of(key)
            for name, value in values.items():
                if _setting(path, name) != value:
                    yield f"as {name} in {path.as_posix()} has changed"
        for path, dep in deps.items():
            # Paths are noted from the profile's folder, and read from the root.
            here = os.path.normpath(self.folder / path)
            now = self.made[path].get("md5") if path in self.made else _fingerprint(here, dep)
            if now != dep.get("md5"):
                yield f"as {here} has changed"

    def _is_digest(self, path: str) -> bool:
        """Whether a file is what `bench digest` writes of a room of code."""
        return "bench digest " in self.stages.get(self.makers.get(path, ""), {}).get("cmd", "")

    def _settings_of(self, key: str) -> Path:
        """The file of parameters that is written down as `key`."""
        protocol = PROTOCOLS / Path(key).name
        return protocol if Path(key).parent.name == PROTOCOLS.name else self.folder / Path(key).name


def _stages(lock: Path) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.lock, to be read only; none if there is no such file."""
    if not lock.is_file():
        return {}
    stat = lock.stat()
    return _stages_of(lock, Path.cwd(), stat.st_mtime_ns, stat.st_size)


@cache
def _stages_of(lock: Path, *_: Path | int) -> dict[str, dict[str, Any]]:
    """They are asked for scores, sequences and analyses, and take seconds where there are many."""
    try:
        # The quick parser; both read numbers alike.
        found = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))
        return dict(found["stages"])
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise BenchError(
            f"{lock}: not what DVC writes: restore it, or run `{repro_command_for(lock)}`"
        ) from None


@cache
def _settings(path: Path, _: float) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def _setting(path: Path, name: str) -> Any:
    """A value in a file of settings, by its dotted name; None if there is none.

    As DVC has it, the number of an item stands for it in a list: `train.seeds.0`.
    """
    if not path.is_file():
        return None
    value = _settings(path.absolute(), path.stat().st_mtime)
    for part in name.split("."):
        if isinstance(value, list):
            value = dict(enumerate(value)).get(int(part)) if part.isdigit() else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _fingerprint(path: str, dep: Mapping[str, Any]) -> str | None:
    """The present MD5 of a dependency, as DVC computes it; as noted if it is too large for that."""
    files = _files(Path(path))
    size = sum(file.stat().st_size for file in files)
    if size != dep.get("size") or len(files) != dep.get("nfiles", 1):
        return None
    if size > HASHED_BYTES:
        return dep.get("md5")
    if Path(path).is_file():
        return _md5(Path(path))
    entries = [{"md5": _md5(f), "relpath": f.relative_to(path).as_posix()} for f in files]
    text = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}.dir"


def _files(path: Path) -> list[Path]:
    """The file, or those in a folder that DVC looks at."""
    if path.is_file():
        return [path]
    ignore = Path(".dvcignore")
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    ignored = pathspec.PathSpec.from_lines("gitwildmatch", lines)
    return [f for f in path.rglob("*") if f.is_file() and not ignored.match_file(f)]


def _md5(path: Path) -> str:
    stat = path.stat()
    return _md5_of(path.absolute(), stat.st_mtime_ns, stat.st_size)


@cache
def _md5_of(path: Path, *_: int) -> str:
    """The MD5 of a file, computed once as long as its time and size stay."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
