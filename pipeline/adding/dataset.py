"""A data set that lies here, as the reader of its layout describes it; see `layouts`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.common.errors import BenchError
from pipeline.concepts.concept import PHOTO_CAPTION


@dataclass(frozen=True)
class Entry:
    """A concept as a data set describes it."""

    name: str
    class_noun: str
    prompts: tuple[str, ...]  # templates with {}
    folder: Path  # where its images are, or should be
    licence: str
    source: str
    caption: str = PHOTO_CAPTION
    remarks: tuple[str, ...] = ()  # errata, and whatever else a reader should know


@dataclass(frozen=True)
class Pair:
    """A composition of two entries."""

    first: str
    second: str
    prompts: tuple[str, ...]  # templates with {0} and {1}

    @property
    def name(self) -> str:
        """Its name in a grid."""
        return f"{self.first}+{self.second}"


@dataclass(frozen=True)
class DataSet:
    """What a layout's reader finds in an index; no image has been looked at."""

    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...] = ()
    errata: tuple[str, ...] = ()  # those that are of no single entry
    # Orders in which entries are learned one after the other, by name.
    sequences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Given(NamedTuple):
    """What an index would say, for a folder of folders that has none."""

    class_noun: str | None = None
    classes: Path | None = None
    prompts: Path | None = None
    licence: str | None = None
    source: str | None = None


NOTHING = Given()


@dataclass(frozen=True)
class Layout:
    """A way in which data sets are laid out."""

    what: str  # what it is recognised by, in words
    folders: tuple[str, ...]  # where that may be, below the folder that is given
    recognised: Callable[[Path], bool]  # of such a folder
    # The folder, that of the images, and what was given on the command line.
    read: Callable[[Path, Path, Given], DataSet]
    # Whether an index says what a concept is; if not, `Given` does, and others are tried before.
    indexed: bool = True


def name_of(text: str) -> str:
    """A name that a concept may have, as near to the text as can be.

    Raises:
        BenchError: nothing of it is left.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", to_ascii(text)).strip("_-")
    if not name:
        raise BenchError(f"folder {text!r}: its name has no letters a to z: rename it")
    return name if name[0].isalpha() else f"concept_{name}"


def to_ascii(text: str) -> str:
    """The text with letters a to z only, without their accents."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def inside(folder: Path, relative: str, where: str) -> Path:
    """A path that an index names, below a folder.

    Raises:
        BenchError: it would lead out of the folder.
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in relative or "\0" in relative:
        raise BenchError(f"{where}: {relative!r} leads out of {folder}: it has to be relative")
    return folder / path


def image_folder(images: Path, relative: str, where: str) -> Path:
    """Where an entry's images are: as the index says, or right below the folder of images.

    Raises:
        BenchError: it would lead out of the folder.
    """
    path = inside(images, relative, where)
    return path if path.is_dir() or not (images / path.name).is_dir() else images / path.name
