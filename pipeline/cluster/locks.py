"""DVC's records, read and written: entries that workers made go into the project's dvc.lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.utils.serialize import dump_yaml, load_yaml

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic

Entry = dict[str, Any]  # of a stage in a dvc.lock, as DVC writes it


def read_lock(path: Path) -> dict[str, Entry]:
    """The entries of a dvc.lock by the stages' names, in its order; none if there is no file.

    Raises:
        BenchError: it is damaged.
    """
    try:
        return dict(load_yaml(str(path)).get("stages", {})) if path.exists() else {}
    except (DvcException, AttributeError) as error:
        raise BenchError(f"{path}: {error}: `bench doctor` says what to do") from error


def write_lock(path: Path, entries: Mapping[str, Entry]) -> None:
    """Writes a dvc.lock, with the bytes that DVC would write."""
    with atomic(path) as part:
        dump_yaml(str(part), {"schema": "2.0", "stages": dict(entries)})


def merged(
    there: Mapping[str, Entry],
    new: Mapping[str, Entry],
    settled: Iterable[str],
    order: Sequence[str],
) -> dict[str, Entry]:
    """The entries of a dvc.lock after a run, in the order in which `dvc repro` had written them.

    Args:
        there: its entries now.
        new: those that were made.
        settled: the names that were there before the run, in their order: they keep their places.
        order: of the stages in `dvc repro`, by which the others follow.
    """
    both = {**there, **new}
    places = {name: place for place, name in enumerate(dict.fromkeys([*settled, *order]))}
    return {name: both[name] for name in sorted(both, key=lambda n: places.get(n, len(places)))}
