"""Where a stage keeps what it has done so far, to go on from if it is killed.

That is outside of DVC's outputs, which it removes before a stage runs.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from pipeline.common.failures import FailureError

KEPT_EVERY = 180.0  # seconds: what is lost of a long stage, at most. A shorter one keeps nothing
CODE = Path(__file__).parents[1]  # all of pipeline/, but for the command
COMMAND = CODE / "bench"


@dataclass(frozen=True)
class Unfinished:
    """A folder of what is half-done, and a key: only what was made with the same one is used."""

    folder: Path
    about: Callable[[], object]  # what the result depends on, beside this project's code

    @cached_property
    def key(self) -> str:
        """Of the code and of all that the result depends on; made only if it is asked for."""
        return digest(code_digest(), self.about())

    def due(self, since: float) -> bool:
        """Whether it is time to keep what was done since a moment of `time.monotonic`."""
        return time.monotonic() - since >= KEPT_EVERY

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Removes the folder in the end: when all is done, or fails in a way that is a result."""
        try:
            yield
        except FailureError:
            self._remove()
            raise
        self._remove()

    def _remove(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)


def digest(*parts: object) -> str:
    """The SHA-256 of parts: bytes as they are, everything else as it is shown."""
    found = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


@cache
def code_digest() -> str:
    """Of this project's code that makes things."""
    files = (p for p in sorted(CODE.rglob("*.py")) if not p.is_relative_to(COMMAND))
    return digest(
        *(part for p in files for part in (p.relative_to(CODE).as_posix(), p.read_bytes()))
    )
