"""A folder of images for each concept, and no index: what they are is given or guessed."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from pydantic import RootModel

from pipeline.adding.add import DEFAULT_PROMPTS, LICENCE
from pipeline.adding.dataset import DataSet, Entry, Given, Layout, image_folder, name_of, to_ascii
from pipeline.common.errors import BenchError
from pipeline.common.schema import parse, read_yaml
from pipeline.concepts.concept import checked_noun, read_lines, read_prompts
from pipeline.concepts.photos import pictures_in


def read(_: Path, images: Path, given: Given) -> DataSet:
    """A concept for each folder; what it is, its name says if nothing else does."""
    classes = _classes(given.classes) if given.classes else {}
    prompts = read_prompts(given.prompts, 1) if given.prompts else DEFAULT_PROMPTS
    names = [folder.name for folder in _folders_in(images)]
    entries = []
    for name in [*names, *(name for name in classes if name not in names)]:
        noun = classes.get(name) or given.class_noun
        if given.classes and noun is None:
            raise BenchError(f"{given.classes}: has no class for the folder {name!r}")
        words = " ".join(re.findall("[A-Za-z]+", to_ascii(name)))
        entries.append(
            Entry(
                name=name_of(name),
                class_noun=checked_noun(noun or words, f"{images / name}: class noun"),
                prompts=prompts,
                folder=image_folder(images, name, f"{given.classes}: {name!r}"),
                licence=given.licence or LICENCE,
                source=given.source or "imported with `bench concept import`",
                remarks=(f"from the folder {name!r}",) if name_of(name) != name else (),
            )
        )
    return DataSet(tuple(entries))


def _classes(path: Path) -> dict[str, str]:
    """Class nouns by folder, from a YAML mapping or a CSV file of two columns."""
    if path.suffix.lower() in {".yaml", ".yml"}:
        return parse(path, RootModel[dict[str, str]], read_yaml(path)).root
    rows = [row for row in csv.reader(read_lines(path, "table of classes")) if any(row)]
    for row in rows:
        if len(row) != 2:
            raise BenchError(f"{path}: needs two columns, folder and class: {','.join(row)!r}")
    if rows and rows[0][1].strip().lower() == "class":
        rows = rows[1:]
    return {folder.strip(): noun.strip() for folder, noun in rows}


def _folders_in(folder: Path) -> list[Path]:
    """The folders that may be concepts: not hidden, nor what unpacking leaves."""
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] not in "._"]


LAYOUT = Layout(
    what="a folder of images for each concept",
    folders=(".",),
    recognised=lambda folder: any(pictures_in(inner) for inner in _folders_in(folder)),
    read=read,
    indexed=False,
)
