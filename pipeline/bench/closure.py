"""What code a stage runs: everything that its module imports, and what that imports, and so on.

DVC is told of *rooms*: the folders that these files lie in. So a list of dependencies is short,
does not change with every import, and is never incomplete. Of a few folders each file is a thing of
its own, and is listed by itself: a change of one method trains no other one again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipeline.common.imports import names_imported

ROOT = Path(__file__).parents[2]  # of the project whose code this is
PACKAGES = ("eval", "pipeline")
# How a command gets to its stage, which no result depends on; and what says which rooms there are.
NEUTRAL = {
    "pipeline/bench",
    "pipeline/__init__.py",
    "pipeline/toyland/__init__.py",
    "eval/__init__.py",
}
# Folders whose files are things of their own; `eval` holds a few beside its rooms.
COLLECTIONS = {"eval", "eval/analyses", "pipeline/methods"}
HOUSES = {"toyland", "analyses"}  # folders whose folders are rooms


def rooms(modules: Iterable[str], files: Iterable[Path] = ()) -> list[str]:
    """The rooms, and files of collections, that running these takes.

    Args:
        modules: dotted names of modules of this project.
        files: of this project, or of somebody else's who imports from it.

    Returns:
        Paths from the root, in order, without what is neutral and what is not of this project.
    """
    found = {_room(file) for file in closure(modules, files) if in_project(file)}
    return sorted(found - NEUTRAL)


def closure(modules: Iterable[str], files: Iterable[Path] = ()) -> set[Path]:
    """These files, those of the modules, and all that they import of this project anywhere."""
    found: set[Path] = set()
    waiting = [*files, *(file for module in modules for file in _files(module))]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            # Of the command line's code only its name is used: it imports everything.
            neutral = in_project(file) and _room(file) in NEUTRAL
            waiting += [] if neutral else imported(file)
    return found


def imported(file: Path) -> list[Path]:
    """The files of this project that a file imports, at its top or within a function."""
    return [path for name in names_imported(file) for path in _files(name)]


@cache
def in_project(file: Path) -> bool:
    """Whether it is a file of this project's packages."""
    return any(file.is_relative_to(ROOT / package) for package in PACKAGES)


@cache  # the same few hundred names are asked for again for each stage
def _files(name: str) -> tuple[Path, ...]:
    """The file of a module of this project, and those of the packages it lies in; else none."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return ()
    module = ROOT.joinpath(*parts)
    candidates = [module.with_suffix(".py"), module / "__init__.py"]
    candidates += [parent / "__init__.py" for parent in module.parents if parent != ROOT]
    return tuple(path for path in candidates if path.is_relative_to(ROOT) and path.is_file())


@cache
def _room(file: Path) -> str:
    path = file.relative_to(ROOT)
    if path.parent.as_posix() in COLLECTIONS or path.as_posix() in NEUTRAL:
        return path.as_posix()
    return "/".join(path.parts[: 3 if path.parts[1] in HOUSES else 2])
