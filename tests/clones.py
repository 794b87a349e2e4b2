"""A copy of the project to run profile `smoke` in, as a user would after cloning it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.cluster.package import copy_to, package

ROOT = Path(__file__).parents[1]
FOLDER = "profiles/smoke"


@dataclass(frozen=True)
class Clone:
    """What git holds of the project, with nothing made yet."""

    root: Path
    hooks: Path | None = None  # a folder of modules that come before all others

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.root / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
        modules = ":".join(str(folder) for folder in (self.hooks, self.root) if folder)
        return {**os.environ, "PATH": path, "PYTHONPATH": modules}

    def start(self, output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        """`dvc repro` of the profile in a process group of its own."""
        return subprocess.Popen(
            ["dvc", "--cd", FOLDER, "repro"],
            cwd=self.root,
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def repro(self) -> set[str]:
        """Runs the profile to its end; returns the stages that ran."""
        process = self.start()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return set(re.findall(r"^Running stage '(.*)'", output, re.MULTILINE))

    def hashes(self, pattern: str) -> dict[str, str]:
        """SHA-256 of what the profile made, in its runs/ or reports/, that matches."""
        folder = self.root / FOLDER
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for part in ("runs", "reports")
            for path in sorted((folder / part).glob(pattern))
        }

    def half_written(self) -> set[Path]:
        """The hidden files and folders that a writer has not renamed yet, or left."""
        return {path for path in self.root.rglob("*.part") if path.name.startswith(".")}


def make_clone(root: Path) -> Clone:
    """Copies to an empty folder what git holds, or would; without any lock of the profile."""
    copy_to(root, ROOT, package(ROOT, ()))
    for lock in root.glob(f"{FOLDER}/**/dvc.lock"):
        lock.unlink()
    (root / "bin").mkdir()
    bench = root / "bin" / "bench"
    bench.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline.bench.warm "$@"\n')
    bench.chmod(0o755)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return Clone(root)
