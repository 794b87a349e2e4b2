"""Where profiles lie, and the command that runs one: what messages about a missing file name."""

from __future__ import annotations

from pathlib import Path

DEFAULT_PROFILE = "toyland"


def folder_of(profile: str) -> Path:
    """Where a profile's files lie, whether or not there is such a profile."""
    return Path() if profile == DEFAULT_PROFILE else Path("profiles", profile)


def repro_command(profile: str) -> str:
    """What runs the profile's pipeline, typed in the root of the project."""
    if profile == DEFAULT_PROFILE:
        return "dvc repro"
    return f"dvc --cd {folder_of(profile).as_posix()} repro"


def repro_command_for(path: Path) -> str:
    """What makes a file of `runs/` or `reports/` again: the command of its profile."""
    in_profile = path.parts[:1] == ("profiles",) and len(path.parts) > 1
    return repro_command(path.parts[1] if in_profile else DEFAULT_PROFILE)
