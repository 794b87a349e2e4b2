"""How data sets are laid out: one file each, which has to define `LAYOUT`."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from pathlib import Path

from pipeline.adding.dataset import NOTHING, DataSet, Given, Layout
from pipeline.common.errors import BenchError


def layouts() -> dict[str, Layout]:
    """All layouts there are, in the order in which they are tried."""
    found: dict[str, Layout] = {
        name: importlib.import_module(f"{__name__}.{name}").LAYOUT
        for name in sorted(module.name for module in pkgutil.iter_modules(__path__))
    }
    return dict(sorted(found.items(), key=lambda item: not item[1].indexed))


def read_data_set(
    source: Path, images: Path | None = None, layout: str | None = None, given: Given = NOTHING
) -> DataSet:
    """What the index of a data set says; the arguments are those of `import_concepts`.

    Raises:
        BenchError: it is of no layout that is known, or a file of it is missing or wrong.
    """
    known = layouts()
    if layout is not None and layout not in known:
        raise BenchError(f"--layout {layout!r}: choose one of {', '.join(known)}")
    if not source.exists():
        raise BenchError(f"{source}: no such file or folder")
    if images is not None and not images.is_dir():
        raise BenchError(f"--images {images}: no such folder")
    start = source if source.is_dir() else source.parent
    for name in (layout,) if layout else known:
        about = known[name]
        for folder in (start / part for part in about.folders):
            if about.recognised(folder):
                if any(given) and about.indexed:
                    raise BenchError(
                        f"{folder}: is {name}, whose index has classes, prompts and licence: leave "
                        "out --class, --classes, --prompts, --licence and --source"
                    )
                return _checked(about.read(folder, images or folder, given), folder)
    all_of_them = "; ".join(f"{name}: {about.what}" for name, about in known.items())
    raise BenchError(f"{source}: no data set of {layout or 'a known layout'} ({all_of_them})")


def _checked(data: DataSet, folder: Path) -> DataSet:
    """The data set, if no two of its names would be the same file on any system."""
    for names in ([entry.name for entry in data.entries], [pair.name for pair in data.pairs]):
        for name, count in Counter(name.casefold() for name in names).items():
            if count > 1:
                raise BenchError(f"{folder}: {name!r} is there {count} times, up to case")
    return data
