"""CustomConcept101: two JSON files, which name folders of images and files of prompts.

Its peculiarities are known and told: `datasets/errata/customconcept101.yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, RootModel

from pipeline.adding.dataset import (
    NOTHING,
    DataSet,
    Entry,
    Given,
    Layout,
    Pair,
    image_folder,
    inside,
    name_of,
)
from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse, read_yaml
from pipeline.concepts.concept import (
    DATASETS,
    PHOTO_CAPTION,
    checked_noun,
    parse_prompts,
    read_lines,
)

SINGLES, MULTIPLES = "dataset.json", "dataset_multiconcept.json"


class _Item(BaseModel):
    """A concept in CustomConcept101's files."""

    instance_prompt: str
    class_prompt: str
    instance_data_dir: str
    prompt_filename: str

    @property
    def name(self) -> str:
        return name_of(PurePosixPath(self.instance_data_dir).name)

    def words(self, where: str) -> tuple[str, str]:
        """Caption and class noun, by the instance prompt: class prompts do not always agree."""
        found = re.fullmatch(r"(.*?)<new\d+>(.+)", " ".join(self.instance_prompt.split()))
        if not found:
            raise BenchError(f"{where}: instance_prompt {self.instance_prompt!r} lacks <new1>")
        return f"{found[1]}{{}}", checked_noun(found[2], f"{where}: instance_prompt:")


class _Composed(BaseModel):
    prompt_filename_compose: str


class _Items(RootModel[list[_Item]]):
    """`dataset.json`."""


class _Pairs(RootModel[list[tuple[_Item, _Item, _Composed]]]):
    """`dataset_multiconcept.json`."""


class _PromptErratum(Section):
    file: str
    found: str | None = None
    used: str | None = None
    why: str


class _Errata(Section):
    """`datasets/errata/customconcept101.yaml`."""

    prompts: list[_PromptErratum]
    substitutes: dict[str, str | None]


def read(folder: Path, images: Path, _: Given = NOTHING) -> DataSet:
    """What the index says, with its errata applied."""
    licence = "Adobe Research License (noncommercial research only)"
    source = (
        "CustomConcept101, Kumari et al. 2023, https://github.com/adobe-research/custom-diffusion"
    )
    path = DATASETS / "errata" / "customconcept101.yaml"
    errata = parse(path, _Errata, read_yaml(path))
    substitutes = {of: paper for paper, of in errata.substitutes.items() if of}
    prompts = _PromptFiles(folder, errata.prompts)

    entries: dict[str, Entry] = {}
    pairs = []

    def add(item: _Item, where: str) -> str:
        caption, noun = item.words(where)
        if known := entries.get(item.name):
            if noun != known.class_noun:
                remark = f"{where} calls it {noun!r}: stays {known.class_noun!r}"
                entries[item.name] = replace(known, remarks=(*known.remarks, remark))
            return item.name
        remarks = []
        if item.class_prompt != noun:
            remarks.append(f"class_prompt is {item.class_prompt!r}: {noun!r} as in instance_prompt")
        if caption != PHOTO_CAPTION:
            remarks.append(
                f"instance_prompt has the form {caption!r}, others {PHOTO_CAPTION!r}: kept"
            )
        if item.name in substitutes:
            remarks.append(f"stands in for the paper's {substitutes[item.name]}")
        entries[item.name] = Entry(
            item.name,
            noun,
            prompts.read(item.prompt_filename, 1, where),
            image_folder(images, item.instance_data_dir, where),
            licence,
            source,
            caption,
            tuple(remarks),
        )
        return item.name

    if (folder / SINGLES).is_file():
        for number, item in enumerate(_json(folder / SINGLES, _Items), 1):
            before = len(entries)
            add(item, f"{SINGLES} entry {number}")
            if len(entries) == before:
                raise BenchError(
                    f"{folder / SINGLES}: entry {number}: {item.name!r} is there twice"
                )
    if (folder / MULTIPLES).is_file():
        for number, (first, second, composed) in enumerate(_json(folder / MULTIPLES, _Pairs), 1):
            where = f"{MULTIPLES} entry {number}"
            names = add(first, where), add(second, where)
            pairs.append(Pair(*names, prompts.read(composed.prompt_filename_compose, 2, where)))
    without = [paper for paper, of in errata.substitutes.items() if of not in entries]
    remarks = [f"the paper's {paper} has no counterpart here" for paper in without]
    return DataSet(tuple(entries.values()), tuple(pairs), (*prompts.remarks(), *remarks))


class _PromptFiles:
    """The prompt files of a data set, each read once, with its errata applied."""

    def __init__(self, folder: Path, errata: Sequence[_PromptErratum]) -> None:
        self.folder, self.errata = folder, errata
        self.known: dict[tuple[Path, int], tuple[str, ...]] = {}
        self.applied: list[str] = []

    def read(self, name: str, concepts: int, where: str) -> tuple[str, ...]:
        """The prompts of a file that an index names."""
        path = inside(self.folder, name, where)
        if (path, concepts) not in self.known:
            lines = [" ".join(line.split()) for line in read_lines(path)]
            for erratum in (e for e in self.errata if e.file == path.name):
                if erratum.found is None or erratum.used is None:
                    self.applied.append(f"{path.name}: {erratum.why}")
                elif erratum.found in lines:
                    line = lines.index(erratum.found)
                    lines[line] = erratum.used
                    self.applied.append(
                        f"{path.name}:{line + 1}: read as {erratum.used!r}: {erratum.why}"
                    )
            self.known[path, concepts] = parse_prompts(lines, path, concepts)
        return self.known[path, concepts]

    def remarks(self) -> list[str]:
        """What was applied, and which files nothing names."""
        used = {path for path, _ in self.known}
        beside = {path for folder in {p.parent for p in used} for path in folder.glob("*.txt")}
        unused = [f"{path.name}: prompts of no concept" for path in sorted(beside - used)]
        return [*self.applied, *unused]


def _json(path: Path, kind: type[RootModel[Any]]) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchError(f"{path}: not valid JSON: {error}") from error
    return parse(path, kind, content).root


LAYOUT = Layout(
    what=f"{SINGLES} or {MULTIPLES}, with prompts",
    folders=(".", "customconcept101"),
    recognised=lambda folder: any((folder / name).is_file() for name in (SINGLES, MULTIPLES)),
    read=read,
)
