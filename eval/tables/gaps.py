"""What tables lack, and why, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline.common.failures import Failure

NAMED = 5  # cells of a method in a line


def counted(failures: Iterable[Failure]) -> list[str]:
    """How many there are of each kind: "2 diverged"."""
    counts = Counter(failure.kind for failure in failures)
    return [f"{count} {kind}" for kind, count in counts.items()]


def by_failure(
    failed: Mapping[tuple[str, str], Failure],
) -> dict[Failure, list[tuple[str, str]]]:
    """The cells, by method and subject, that failed for the same reason."""
    cells: dict[Failure, list[tuple[str, str]]] = {}
    for cell, failure in failed.items():
        cells.setdefault(failure, []).append(cell)
    return cells


def could_not_be_made(failed: Mapping[tuple[str, str], Failure]) -> list[str]:
    """A line for each reason for which cells failed, and which cells they are."""
    return [
        f"{failure.kind}: {', '.join(f'{m}/{s}' for m, s in cells)}: {failure.message}"
        for failure, cells in by_failure(failed).items()
    ]


def not_run(missing: dict[str, list[str]]) -> str:
    """Says which cells have no scores: of a method that lacks more than NAMED, how many."""
    cells = "; ".join(
        f"{method}: {', '.join(names) if len(names) <= NAMED else f'{len(names)} cells'}"
        for method, names in missing.items()
    )
    return f"not run: {cells}"
