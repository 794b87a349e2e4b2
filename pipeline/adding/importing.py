"""`bench concept import`: a data set that lies here becomes concepts of the benchmark.

Nothing is downloaded. The reader of a layout (see `layouts`) turns the index into entries, which
are the same from there on: compared with what is in `datasets/`, and written as `bench concept add`
writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from pipeline.adding.add import (
    NewConcept,
    add_to_grid,
    concept_folder,
    counted_captions,
    find_ignoring_case,
    methods_of_sequences,
    prompt_path,
    write_concept,
    write_prompts,
)
from pipeline.adding.dataset import NOTHING, DataSet, Entry, Given
from pipeline.adding.layouts import read_data_set
from pipeline.common.errors import BenchError
from pipeline.common.text import aligned
from pipeline.concepts.concept import load_concept, read_prompts
from pipeline.concepts.photos import distinct_photos, pictures_in, pixel_digest, read_photo
from pipeline.settings.profile import check_name, load_grid, profile_folder

T = TypeVar("T")
State = Literal["new", "imported", "unchanged", "missing", "wrong"]


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
        layout: a name in `layouts`; recognised if None.
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
        whole = {name: them for name, them in data.sequences.items() if {*them} <= ready.keys()}
        learning = methods_of_sequences(profile)
        added = add_to_grid(profile, nouns, composed, sequences=whole if learning else {})
        print(f"{profile_folder(profile) / 'grid.yaml'}: {added} subjects added")
        for name, them in data.sequences.items():
            if name not in whole:
                print(f"sequence {name}: lacks {', '.join(c for c in them if c not in ready)}")
            elif not learning:
                print(f"sequence {name}: no method of {profile} learns one: see docs/sequences.md")
        for remark in (*counted.short, *counted.unknown):
            print(remark)
    return 0 if len(ready) == len(plans) else 1


def _progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar on a terminal."""
    bar: Iterable[T] = tqdm(items, what, disable=None, leave=False)
    return bar


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
        sequences={name: them for name, them in data.sequences.items() if {*them} <= chosen},
    )


def _renamed(data: DataSet, prefix: str) -> DataSet:
    """The data set with longer names."""
    if prefix:
        check_name(prefix)
    for entry in data.entries:
        check_name(prefix + entry.name)
    return replace(
        data,
        entries=tuple(replace(entry, name=prefix + entry.name) for entry in data.entries),
        pairs=tuple(
            replace(pair, first=prefix + pair.first, second=prefix + pair.second)
            for pair in data.pairs
        ),
        sequences={
            name: tuple(prefix + one for one in them) for name, them in data.sequences.items()
        },
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
    known = (*grid.subjects(), *grid.sequence_concepts, *grid.sequences)
    subjects = {subject.casefold(): subject for subject in known}
    clashes = []
    for entry in entries:
        there = subjects.get(entry.name.casefold())
        concepts = grid.all_concepts()
        noun = concepts[there].class_noun if there in concepts else None
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
