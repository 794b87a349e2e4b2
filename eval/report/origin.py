"""Where a report comes from: what was run, of which code, with what and on what."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from pipeline.common.places import repro_command
from pipeline.settings.profile import Params, profile_folder
from pipeline.settings.protocol import protocol_path

# What the numbers depend on. The report itself is committed too, so its own commit cannot be in it,
# and so are DVC's notes of what was made.
CODE = (
    *("pipeline", "eval", "datasets", "models", "params.yaml", "grid.yaml"),
    *(":(glob)profiles/*/params.yaml", ":(glob)profiles/*/grid.yaml"),
)


class Origin(NamedTuple):
    """What somebody needs to make a report again."""

    commands: tuple[str, ...]
    commit: str  # the last that changed CODE; empty outside of a git repository
    changed: tuple[str, ...]  # files of CODE that differ from it
    files: dict[str, str]  # parameters by path, as they were
    packages: dict[str, str]  # versions
    machine: str


def origin(params: Params) -> Origin:
    """Where the profile's report comes from, if it is written now."""
    folder = profile_folder(params.profile)
    paths = [folder / "params.yaml", folder / "grid.yaml", protocol_path(params.protocol.name)]
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return Origin(
        (repro_command(params.profile), f"bench report --profile {params.profile}"),
        _git("log", "-1", "--format=%H", "--", *CODE).strip(),
        tuple(sorted(line[3:] for line in changed.splitlines())),
        {path.as_posix(): path.read_text(encoding="utf-8") for path in paths},
        packages(),
        machine(),
    )


def packages() -> dict[str, str]:
    """The versions of what the project depends on directly, as installed."""
    try:
        needed = requires("concept-bench") or []
    except PackageNotFoundError:  # run from its folder without having been installed
        needed = []
    found = {}
    for requirement in needed:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
    return {"Python": platform.python_version(), **found}


def machine() -> str:
    """The kind of processor and its cores: what times depend on, and nothing that names a host."""
    model = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
