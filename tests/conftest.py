"""What tests of several folders share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Before torch is imported: its threads gain nothing on models this small, and `make test` has a
# process for each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
DEFINITIONS = ("params.yaml", "grid.yaml", "dvc.yaml", "cells", "profiles", "datasets")


LONGEST = (
    "tests/end_to_end",
    "tests/test_dvc.py",
    "tests/robustness",
    "tests/test_architecture.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left alone with it at the end."""

    def place(item: pytest.Item) -> int:
        return next((i for i, p in enumerate(LONGEST) if item.nodeid.startswith(p)), len(LONGEST))

    items.sort(key=place)


# Galleries are most of the files, and the few tests that look at one draw it themselves.
GALLERIES = shutil.ignore_patterns("held_out", "lookalikes")


def copy_definitions(folder: Path) -> None:
    """Copies the project's definitions to an empty folder; galleries hold nothing there."""
    for name in DEFINITIONS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=GALLERIES)
        else:
            shutil.copy(source, folder / name)
    for gallery in (ROOT / "datasets/concepts").glob("*/lookalikes"):
        (folder / gallery.relative_to(ROOT)).mkdir()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's definitions to break things in, as the current directory."""
    copy_definitions(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
