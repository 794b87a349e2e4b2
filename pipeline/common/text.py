"""Text for people."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """The rows as lines whose columns begin at the same place."""
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"{what:<{first}}  {state:<{second}}  {note}" for what, state, note in rows]
