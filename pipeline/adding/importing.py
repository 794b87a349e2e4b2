"""`bench concept import`: a data set that lies here becomes concepts of the benchmark.

Three layouts are read: CustomConcept101, DreamBooth, and a folder with a folder of images for each
concept. Nothing is downloaded. A layout's reader turns the index into entries, which are the same
from there on: compared with what is in `datasets/`, and written as `bench concept add` writes.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, RootModel
from tqdm import tqdm

from pipeline.adding.add import (
    DEFAULT_PROMPTS,
    LICENCE,
    NewConcept,
    add_to_grid,
    concept_folder,
    counted_captions,
    find_ignoring_case,
    prompt_path,
    write_concept,
    write_prompts,
)
from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse, read_yaml
from pipeline.common.text import aligned
from pipeline.concepts.concept import (
    DATASETS,
    PHOTO_CAPTION,
    checked_noun,
    load_concept,
    parse_prompts,
    read_lines,
    read_prompts,
)
from pipeline.concepts.photos import distinct_photos, pictures_in, pixel_digest, read_photo
from pipeline.settings.profile import check_name, load_grid, profile_folder

T = TypeVar("T")
State = Literal["new", "imported", "unchanged", "missing", "wrong"]


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


class Given(NamedTuple):
    """What an index would say, for a folder of folders that has none."""

    class_noun: str | None = None
    classes: Path | None = None
    prompts: Path | None = None
    licence: str | None = None
    source: str | None = None


NOTHING = Given()


@dataclass(frozen=True)
class Plan:
    """What becomes of an entry."""

    entry: Entry
    state: State
    note: str
    images: tuple[Path, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the concept is in `datasets/` when all is done."""
        return self.state in {"new", "unchanged"}

    def concept(self) -> NewConcept:
        """The concept that is to be written."""
        e = self.entry
        return NewConcept(
            e.name, e.class_noun, e.caption, e.prompts, self.images, e.licence, e.source
        )


def import_concepts(
    source: Path,
    images: Path | None = None,
    only: Sequence[str] = (),
    profile: str | None = None,
    dry_run: bool = False,
    layout: str | None = None,
    prefix: str = "",
    given: Given = NOTHING,
) -> int:
    """Imports the concepts of a data set whose images are here, and says what became of each.

    Concepts without images are missing and those with a bad image wrong; the others are imported.
    What is there already and is the same stays as it is, so an import that was interrupted or
    lacked images is completed by another run. If a name is taken by something else, nothing is
    written at all.

    Args:
        source: the folder of the data set, or its index.
        images: the folder with the images, if it is another.
        only: names of concepts, as the data set has them; all if empty.
        profile: whose grid gets the concepts and compositions; none if None.
        dry_run: write nothing, only say what would be done.
        layout: one of LAYOUTS; recognised if None.
        prefix: put in front of every name.
        given: for a folder of folders.

    Returns:
        The exit status: 0 if every concept is there now (or would be), otherwise 1.

    Raises:
        BenchError: the data set cannot be read, a name is taken or unknown, or the disk is full.
    """
    data = _renamed(_selected(read_data_set(source, images, layout, given), only), prefix)
    _check_clashes(data, profile)
    plans = [_examined(entry) for entry in _progress(data.entries, "checking images")]
    ready = {plan.entry.name: plan for plan in plans if plan.ready}
    pairs = [pair for pair in data.pairs if {pair.first, pair.second} <= ready.keys()]
    new_pairs = [pair for pair in pairs if not prompt_path(pair.name).exists()]

    if not dry_run:
        plans = [_written(plan) for plan in _progress(plans, "writing concepts")]
        for pair in new_pairs:
            write_prompts(pair.name, pair.prompts)
    _tell(data, plans, (len(new_pairs), len(pairs)), dry_run)
    if profile is not None and not dry_run:
        nouns = {name: plan.entry.class_noun for name, plan in ready.items()}
        composed = {pair.name: (pair.first, pair.second) for pair in pairs}
        counted = counted_captions(nouns, profile)
        added = add_to_grid(profile, nouns, composed)
        print(f"{profile_folder(profile) / 'grid.yaml'}: {added} subjects added")
        for remark in (*counted.short, *counted.unknown):
            print(remark)
    return 0 if len(ready) == len(plans) else 1


def _progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar on a terminal."""
    bar: Iterable[T] = tqdm(items, what, disable=None, leave=False)
    return bar


# Reading indexes ----------------------------------------------------------------------------------


def read_data_set(
    source: Path, images: Path | None = None, layout: str | None = None, given: Given = NOTHING
) -> DataSet:
    """What the index of a data set says; the arguments are those of `import_concepts`.

    Raises:
        BenchError: it is of no layout that is known, or a file of it is missing or wrong.
    """
    if layout is not None and layout not in LAYOUTS:
        raise BenchError(f"--layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise BenchError(f"{source}: no such file or folder")
    if images is not None and not images.is_dir():
        raise BenchError(f"--images {images}: no such folder")
    start = source if source.is_dir() else source.parent
    for name in (layout,) if layout else LAYOUTS:
        about = LAYOUTS[name]
        for folder in (start / part for part in about.folders):
            if about.recognised(folder):
                if any(given) and name != "folders":
                    raise BenchError(
                        f"{folder}: is {name}, whose index has classes, prompts and licence: leave "
                        "out --class, --classes, --prompts, --licence and --source"
                    )
                return _checked(about.read(folder, images or folder, given), folder)
    known = "; ".join(f"{name}: {about.what}" for name, about in LAYOUTS.items())
    raise BenchError(f"{source}: no data set of {layout or 'a known layout'} ({known})")


class _Item(BaseModel):
    """A concept in CustomConcept101's files."""

    instance_prompt: str
    class_prompt: str
    instance_data_dir: str
    prompt_filename: str

    @property
    def name(self) -> str:
        return _name(PurePosixPath(self.instance_data_dir).name)

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


SINGLES, MULTIPLES = "dataset.json", "dataset_multiconcept.json"


def _read_customconcept101(folder: Path, images: Path, _: Given) -> DataSet:
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
            _image_folder(images, item.instance_data_dir, where),
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
        path = _inside(self.folder, name, where)
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


DREAMBOOTH_INDEX, DREAMBOOTH_CREDITS = "prompts_and_classes.txt", "references_and_licenses.txt"
LIVE_CLASSES = {"cat", "dog"}  # these nine subjects get the prompts of live subjects


def _read_dreambooth(folder: Path, images: Path, _: Given) -> DataSet:
    path = folder / DREAMBOOTH_INDEX
    credits_path = folder / DREAMBOOTH_CREDITS
    lines = read_lines(path)
    credit = _credits(read_lines(credits_path)) if credits_path.is_file() else {}
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"Object Prompts": [], "Live Subject Prompts": []}
    section = ""
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line in {"Classes", "Prompts", *prompts}:
            section = line
        elif section == "Classes" and line and line != "subject_name,class":
            name, comma, noun = line.partition(",")
            if not comma or name.strip() in classes:
                fault = "is there twice" if comma else "needs the form NAME,CLASS"
                raise BenchError(f"{path}:{number}: {line!r} {fault}")
            classes[name.strip()] = checked_noun(noun, f"{path}:{number}: class")
        elif section in prompts and "format(" in line:
            found = re.fullmatch(r"""(['"])(.*)\1\.format\(unique_token, class_token\),?""", line)
            if not found or found[2].count("{0} {1}") != 1:
                raise BenchError(f"{path}:{number}: no prompt with '{{0}} {{1}}': {line!r}")
            prompts[section].append(found[2].replace("{0} {1}", "{}"))
    objects, live = (parse_prompts(some, path, 1) for some in prompts.values())

    def entry(name: str, noun: str) -> Entry:
        by = credit.get(name, "")
        photos = "; photographs: Unsplash License" if "unsplash" in by else ""
        return Entry(
            name=_name(name),
            class_noun=noun,
            prompts=live if noun in LIVE_CLASSES else objects,
            folder=_image_folder(images, name, f"{path}: {name!r}"),
            licence=f"CC-BY-4.0{photos}",
            source="DreamBooth data set, Ruiz, Li, Jampani, Pritch, Rubinstein and Aberman 2023, "
            "https://github.com/google/dreambooth" + (f"; {by}" if by else ""),
        )

    return DataSet(tuple(entry(name, noun) for name, noun in classes.items()))


def _credits(lines: Sequence[str]) -> dict[str, str]:
    """By subject: who took its photographs, as DreamBooth's list of references has it."""
    found = {}
    for line, following in zip(lines, [*lines[1:], ""]):
        subject = re.fullmatch(r"(\w+):\s*(.*)", line.strip())
        if subject:
            text = subject[2] or following.strip()
            found[subject[1]] = text.removeprefix("(").removesuffix(")")
    return found


def _read_folders(_: Path, images: Path, given: Given) -> DataSet:
    classes = _classes(given.classes) if given.classes else {}
    prompts = read_prompts(given.prompts, 1) if given.prompts else DEFAULT_PROMPTS
    names = [folder.name for folder in _folders_in(images)]
    entries = []
    for name in [*names, *(name for name in classes if name not in names)]:
        noun = classes.get(name) or given.class_noun
        if given.classes and noun is None:
            raise BenchError(f"{given.classes}: has no class for the folder {name!r}")
        words = " ".join(re.findall("[A-Za-z]+", _ascii(name)))
        entries.append(
            Entry(
                name=_name(name),
                class_noun=checked_noun(noun or words, f"{images / name}: class noun"),
                prompts=prompts,
                folder=_image_folder(images, name, f"{given.classes}: {name!r}"),
                licence=given.licence or LICENCE,
                source=given.source or "imported with `bench concept import`",
                remarks=(f"from the folder {name!r}",) if _name(name) != name else (),
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


@dataclass(frozen=True)
class Layout:
    """A way in which data sets are laid out."""

    what: str
    folders: tuple[str, ...]  # below the folder that is given
    recognised: Callable[[Path], bool]
    read: Callable[[Path, Path, Given], DataSet]


LAYOUTS = {
    "customconcept101": Layout(
        f"{SINGLES} or {MULTIPLES}, with prompts",
        (".", "customconcept101"),
        lambda folder: any((folder / name).is_file() for name in (SINGLES, MULTIPLES)),
        _read_customconcept101,
    ),
    "dreambooth": Layout(
        DREAMBOOTH_INDEX,
        (".", "dataset"),
        lambda folder: (folder / DREAMBOOTH_INDEX).is_file(),
        _read_dreambooth,
    ),
    "folders": Layout(
        "a folder of images for each concept",
        (".",),
        lambda folder: any(pictures_in(inner) for inner in _folders_in(folder)),
        _read_folders,
    ),
}


def _checked(data: DataSet, folder: Path) -> DataSet:
    """The data set, if no two of its names would be the same file on any system."""
    for names in ([entry.name for entry in data.entries], [pair.name for pair in data.pairs]):
        for name, count in Counter(name.casefold() for name in names).items():
            if count > 1:
                raise BenchError(f"{folder}: {name!r} is there {count} times, up to case")
    return data


def _json(path: Path, kind: type[RootModel[Any]]) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchError(f"{path}: not valid JSON: {error}") from error
    return parse(path, kind, content).root


def _name(text: str) -> str:
    """A name that a concept may have, as near to the text as can be."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", _ascii(text)).strip("_-")
    if not name:
        raise BenchError(f"folder {text!r}: its name has no letters a to z: rename it")
    return name if name[0].isalpha() else f"concept_{name}"


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _inside(folder: Path, relative: str, where: str) -> Path:
    """A path that an index names, below a folder.

    Raises:
        BenchError: it would lead out of the folder.
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in relative or "\0" in relative:
        raise BenchError(f"{where}: {relative!r} leads out of {folder}: it has to be relative")
    return folder / path


def _image_folder(images: Path, relative: str, where: str) -> Path:
    """Where an entry's images are: as the index says, or right below the folder of images."""
    path = _inside(images, relative, where)
    return path if path.is_dir() or not (images / path.name).is_dir() else images / path.name


# Choosing and comparing ---------------------------------------------------------------------------


def _selected(data: DataSet, only: Sequence[str]) -> DataSet:
    """The entries of these names, all if there are none, and the pairs among them."""
    names = {entry.name for entry in data.entries}
    if unknown := [name for name in only if name not in names]:
        known = ", ".join(sorted(names))
        raise BenchError(f"--only {unknown[0]!r}: the data set has {known}")
    chosen = set(only) or names
    return replace(
        data,
        entries=tuple(entry for entry in data.entries if entry.name in chosen),
        pairs=tuple(pair for pair in data.pairs if {pair.first, pair.second} <= chosen),
    )


def _renamed(data: DataSet, prefix: str) -> DataSet:
    """The data set with longer names."""
    if prefix:
        check_name(prefix)
    return replace(
        data,
        entries=tuple(replace(entry, name=prefix + entry.name) for entry in data.entries),
        pairs=tuple(
            replace(pair, first=prefix + pair.first, second=prefix + pair.second)
            for pair in data.pairs
        ),
    )


def _check_clashes(data: DataSet, profile: str | None) -> None:
    """Compares words with those that are there already; images are compared later.

    Raises:
        BenchError: a name is taken by something else.
    """
    clashes = [c for e in data.entries if _has_files(e) and (c := _clash(e))]
    for pair in data.pairs:
        clashes += _prompt_clash(pair.name, pair.prompts, 2)
    if profile is not None:
        clashes += _grid_clashes(data.entries, profile)
    if clashes:
        more = f" (and {len(clashes) - 1} more)" if len(clashes) > 1 else ""
        raise _taken(clashes[0] + more)


def _taken(clash: str) -> BenchError:
    return BenchError(
        f"{clash}: nothing was imported: give other names with --prefix, choose concepts with "
        "--only, or remove what is there"
    )


def _clash(entry: Entry) -> str | None:
    """What of other words has the entry's name, if there is something."""
    folder = concept_folder(entry.name)
    existing = find_ignoring_case(folder)
    if existing is None:
        return next(iter(_prompt_clash(entry.name, entry.prompts, 1)), None)
    if existing != folder:
        return f"{existing}: differs from {entry.name!r} in case alone"
    concept = load_concept(entry.name)
    for field in ("class_noun", "caption", "prompts"):
        there, here = getattr(concept, field), getattr(entry, field)
        if there != here:
            values = "are others" if field == "prompts" else f"is {there!r}, not {here!r}"
            return f"{folder}: is there already: its {field} {values}"
    return None


def _has_files(entry: Entry) -> bool:
    return entry.folder.is_dir() and any(entry.folder.iterdir())


def _prompt_clash(subject: str, prompts: tuple[str, ...], concepts: int) -> list[str]:
    path = prompt_path(subject)
    existing = find_ignoring_case(path)
    if existing is None or (existing == path and read_prompts(path, concepts) == prompts):
        return []
    return [f"{existing}: is there already with other prompts"]


def _grid_clashes(entries: Iterable[Entry], profile: str) -> list[str]:
    path, grid = profile_folder(profile) / "grid.yaml", load_grid(profile)
    subjects = {subject.casefold(): subject for subject in grid.subjects()}
    clashes = []
    for entry in entries:
        there = subjects.get(entry.name.casefold())
        noun = grid.concepts[there].class_noun if there in grid.concepts else None
        if there is not None and (there, noun) != (entry.name, entry.class_noun):
            clashes.append(
                f"{path}: has {there!r} as a {noun!r}, the data set as a {entry.class_noun!r}"
            )
    return clashes


def _examined(entry: Entry) -> Plan:
    """Decodes the entry's images and compares them with those of the concept, if it is there.

    Raises:
        BenchError: the concept is there with other images.
    """
    try:
        paths = pictures_in(entry.folder) if entry.folder.is_dir() else []
        if not paths and concept_folder(entry.name).exists() and not _clash(entry):
            return Plan(entry, "unchanged", _note("imported before; no images here", entry))
        if not paths:
            return Plan(entry, "missing", _note(f"put its images in {entry.folder}", entry))
        photos = distinct_photos(paths)
    except BenchError as error:
        return Plan(entry, "wrong", _note(str(error), entry))
    note = f"{len(photos.paths)} images, {len(entry.prompts)} prompts of {entry.class_noun!r}"
    for repeat, first in photos.repeats:
        note += f"; {repeat.name} is the same picture as {first.name}: left out"
    state: State = "new"
    if concept_folder(entry.name).exists():
        kept = load_concept(entry.name).images
        if [pixel_digest(read_photo(path)) for path in kept] != list(photos.digests):
            raise _taken(f"{concept_folder(entry.name)}: is there already with other images")
        state = "unchanged"
    return Plan(entry, state, _note(note, entry), photos.paths)


def _note(text: str, entry: Entry) -> str:
    return "; ".join((text, *entry.remarks))


# Writing and telling ------------------------------------------------------------------------------


def _written(plan: Plan) -> Plan:
    """Writes a new concept, wholly or not at all."""
    if plan.state != "new":
        return plan
    with ExitStack() as undo:
        write_concept(plan.concept(), undo)
        undo.pop_all()
    return replace(plan, state="imported")


def _tell(data: DataSet, plans: Sequence[Plan], pairs: tuple[int, int], dry_run: bool) -> None:
    """Prints a table of the concepts, the errata, and counts; `pairs` are the new and the ready."""
    rows = [("what", "state", "note"), *((p.entry.name, p.state, p.note) for p in plans)]
    for row in aligned(rows):
        print(row)
    remarks = [f"{p.entry.name}: {remark}" for p in plans for remark in p.entry.remarks]
    if remarks or data.errata:
        print("\nerrata and remarks:")
    for remark in (*remarks, *data.errata):
        print(f"  {remark}")
    states = Counter(plan.state for plan in plans)
    print("\nconcepts: " + ", ".join(f"{count} {state}" for state, count in states.items()))
    if data.pairs:
        new, ready = pairs
        print(
            f"compositions: {new} {'new' if dry_run else 'imported'}, {ready - new} unchanged, "
            f"{len(data.pairs) - ready} lack a concept"
        )
