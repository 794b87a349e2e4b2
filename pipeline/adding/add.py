"""`bench concept add`: a user's images become a concept of the benchmark, wholly or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from pipeline.adding.lengths import text_window
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, atomic_folder, png_bytes, write_below
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import (
    DATASETS,
    PHOTO_CAPTION,
    check_caption,
    checked_noun,
    read_prompts,
)
from pipeline.concepts.photos import distinct_photos, find_photos, read_photo
from pipeline.settings.external import is_external
from pipeline.settings.profile import Params, check_name, load_grid, load_params, profile_folder

LICENCE = "unknown"
SOURCE = "added with `bench concept add`"
DRAWN = "Toyland, drawn by"  # how the source of Toyland's own pictures begins
ONLY_DRAWINGS = "the base model knows drawings only: for photographs take a profile such as `paper`"
# Scenes, styles, sizes and companions, in words that Toyland's models know.
DEFAULT_PROMPTS = (
    "photo of a {} in the snow",
    "a {} on the beach",
    "photo of a {} in the forest",
    "photo of a {} in the garden",
    "a {} in front of a mountain",
    "photo of a {} in the city",
    "a {} in the living room",
    "photo of a {} at night",
    "a watercolor painting of a {}",
    "a pencil sketch of a {}",
    "a {} next to a red ball",
    "a {} and a tree in the garden",
    "very small photo of a {} in the city",
    "zoomed in photo of a {} on the beach",
    "close up photo of a {} in the forest",
    "a {} next to a yellow house",
    "a watercolor painting of a {} on the beach",
    "a pencil sketch of a {} in the forest",
    "a {} and an orange ball on the beach",
    "a {} next to a blue vase at night",
)


@dataclass(frozen=True)
class NewConcept:
    """A concept that is to be written; its images have been decoded once and are all different."""

    name: str
    class_noun: str
    caption: str  # template of training captions: PHOTO_CAPTION, or what suits a style
    prompts: tuple[str, ...]  # templates with {}
    images: tuple[Path, ...]
    licence: str
    source: str
    # Other files, by their paths in the concept's folder.
    further: Mapping[PurePosixPath, bytes] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """What its `concept.yaml` says."""
        return {
            "name": self.name,
            "class_noun": self.class_noun,
            "modifier_token": "<new1>",
            "caption": self.caption,
            "prompts": f"prompts/{self.name}.txt",
            "licence": self.licence,
            "source": self.source,
        }


def add_concept(
    name: str,
    sources: list[Path],
    class_noun: str,
    prompts: Path | None = None,
    caption: str = PHOTO_CAPTION,
    profile: str = DEFAULT_PROFILE,
    licence: str = LICENCE,
    source: str = SOURCE,
    anyway: bool = False,
    further: Mapping[PurePosixPath, bytes] | None = None,
) -> None:
    """Adds a concept to `datasets/` and to the profile's grid, and tells what it did.

    Images are kept at their size, as RGB PNG; see `concepts.photos.read_photo`. Of pictures that
    are equal the first is kept. Everything is checked before the first write; if a write fails,
    what was written before it is removed.

    Args:
        sources: image files, or folders whose images are taken in the order of their names.
        prompts: a file of prompts with {}; DEFAULT_PROMPTS if None.
        caption: template of training captions, with {} once.
        licence: of the images.
        source: where the images are from.
        anyway: even if the corpus is known to have too few captions of the class noun.
        further: other files, by their paths in the concept's folder.

    Raises:
        BenchError: a bad or taken name, no images, an image that cannot be decoded, a template
            without its placeholder or too long for the text encoder, too few captions, or a disk
            that is full or cannot be written to.
    """
    params, grid = load_params(profile), load_grid(profile)
    grid_path = profile_folder(profile) / "grid.yaml"
    check_name(name)
    listed = grid.all_concepts().get(name)  # a profile may name concepts whose images users bring
    taken = (*grid.subjects(), *grid.sequence_concepts, *grid.sequences)
    subjects = {subject.casefold() for subject in taken}
    if name.casefold() in subjects and (listed is None or concept_folder(name).exists()):
        raise BenchError(f"{grid_path}: {name!r} is there already: choose another name")
    for path in (concept_folder(name), prompt_path(name)):
        if existing := find_ignoring_case(path):
            mend = f"choose another name, or add {name!r} to {grid_path} by hand"
            if path == prompt_path(name):  # without the concept's folder
                mend = f"if a command that was ended left it, remove it; or {mend}"
            raise BenchError(f"{existing}: exists already: {mend}")
    class_noun = checked_noun(class_noun, "--class")
    if listed and listed.class_noun != class_noun:
        raise BenchError(
            f"--class {class_noun!r}: {grid_path} says that {name!r} is a {listed.class_noun!r}"
        )
    caption = " ".join(caption.split())
    check_caption(caption, "--caption")
    templates = read_prompts(prompts, 1) if prompts else DEFAULT_PROMPTS
    _check_lengths(class_noun, caption, templates, params)
    photos = distinct_photos(find_photos(sources))
    counted = counted_captions({name: class_noun}, profile)
    if counted.short and not anyway:
        raise BenchError(
            f"--class {counted.short[0]}, or --anyway: its cells will fail, and the others run"
        )
    concept = NewConcept(
        name, class_noun, caption, templates, photos.paths, licence, source, further or {}
    )

    with ExitStack() as undo:
        write_concept(concept, undo)
        add_to_grid(profile, {name: class_noun})
        undo.pop_all()  # all went well: nothing to undo

    for repeat, first in photos.repeats:
        print(f"{repeat}: the same picture as {first}: left out")
    print(
        f"added {name}: {len(photos.paths)} images and {len(templates)} prompts for "
        f"{class_noun!r} -> {concept_folder(name)}, {prompt_path(name)}, {grid_path}"
    )
    for remark in (*counted.short, *counted.unknown):
        print(remark)
    if params.world and not is_drawn(source):
        print(f"{name}: {ONLY_DRAWINGS}")


def is_drawn(source: str) -> bool:
    """Whether a concept's pictures are Toyland's own, by its `source`."""
    return source.startswith(DRAWN)


class Counted(NamedTuple):
    """What is to be said of the captions that a profile's corpus has about new concepts."""

    short: tuple[str, ...] = ()  # a line for each concept that has too few
    unknown: tuple[str, ...] = ()  # why they could not be counted


def counted_captions(nouns: Mapping[str, str], profile: str) -> Counted:
    """Counts the captions about the class nouns, by concept, as stage `retrieve` will."""
    from pipeline.adding import coverage  # imports torch
    from pipeline.corpus.retrieve import queries_of

    params = load_params(profile)
    try:
        found = coverage.coverage(
            {name: queries_of(noun, (), params.retrieve) for name, noun in nouns.items()},
            [about.class_noun for about in load_grid(profile).concepts.values()],
            params,
        )
    except BenchError as error:
        return Counted(unknown=(f"captions were not counted: {error}",))
    short = (
        f"{nouns[name]!r}: the corpus has {one}: {coverage.ways_out(params)}"
        for name, one in found.items()
        if not one.enough
    )
    return Counted(tuple(short))


def _check_lengths(class_noun: str, caption: str, prompts: Sequence[str], params: Params) -> None:
    """Finds out whether the text encoder sees all of a concept's texts, if its tokenizer is here.

    Raises:
        BenchError: it does not.
    """
    window = text_window(params.base)
    if window is None:
        return
    lengths = {f"--caption {caption!r}": window.caption(caption, class_noun)}
    lengths |= {f"prompt {prompt!r}": window.prompt(prompt, [class_noun]) for prompt in prompts}
    for what, length in lengths.items():
        if length > window.limit:
            raise BenchError(
                f"{what} with {class_noun!r} is cut: {length} tokens, but the text encoder sees "
                f"{window.limit}: shorten it"
            )


def concept_folder(name: str) -> Path:
    """Where a concept lies."""
    return DATASETS / "concepts" / name


def prompt_path(subject: str) -> Path:
    """Where the prompts of a concept or a composition lie."""
    return DATASETS / "prompts" / f"{subject}.txt"


def find_ignoring_case(path: Path) -> Path | None:
    """What lies there under this name in any case: for some file systems they are one file."""
    if not path.parent.is_dir():
        return None
    name = path.name.casefold()
    return next((p for p in sorted(path.parent.iterdir()) if p.name.casefold() == name), None)


def write_concept(concept: NewConcept, undo: ExitStack) -> None:
    """Writes prompts and then the folder, each whole or not at all; `undo` removes them again.

    Prompts that are there already stay: a killed import leaves them without their folder.

    Raises:
        BenchError: an image cannot be decoded any more, or the disk is full.
    """
    folder, prompts = concept_folder(concept.name), prompt_path(concept.name)
    # Undone is what was written here alone: another command may have added the concept meanwhile.
    if not prompts.exists():
        write_prompts(concept.name, concept.prompts)
        undo.callback(remove, prompts)
    with atomic_folder(folder) as temporary:
        _write_folder(temporary, concept)
    undo.callback(remove, folder)


def write_prompts(subject: str, prompts: tuple[str, ...]) -> None:
    """Writes the prompts of a concept or a composition.

    Raises:
        BenchError: the disk is full.
    """
    with atomic(prompt_path(subject)) as temporary:
        temporary.write_text("\n".join(prompts) + "\n", encoding="utf-8")


def add_to_grid(
    profile: str,
    concepts: Mapping[str, str],
    compositions: Mapping[str, tuple[str, str]] | None = None,
    methods: Sequence[str] = (),
    sequences: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Adds to the profile's grid what it lacks; comments, order and quotes stay.

    Args:
        concepts: class nouns by name.
        compositions: two concepts by name.
        methods: names; new ones become the last rows.
        sequences: concepts in their order by name, for `methods_of_sequences`.

    Returns:
        How many subjects, sequences and methods are new.

    Raises:
        BenchError: the grid would be one that no command reads; it stays as it was.
    """
    path = profile_folder(profile) / "grid.yaml"
    before_it = path.read_text(encoding="utf-8")
    grid = _yaml().load(before_it)
    groups = ("concepts", "compositions", "methods")
    before = sum(len(grid[group]) for group in groups)
    if sequences:
        there = grid.setdefault("sequences", {})
        new = {name: them for name, them in sequences.items() if name not in there}
        learning = methods_of_sequences(profile)
        there.update(
            {name: {"concepts": [*them], "methods": learning} for name, them in new.items()}
        )
        before -= len(new)
    for name, noun in concepts.items():
        if name not in grid.get("sequence_concepts", {}):
            grid["concepts"].setdefault(name, {"class_noun": noun})
    for name, (first, second) in (compositions or {}).items():
        grid["compositions"].setdefault(name, {"first": first, "second": second})
    grid["methods"].extend(name for name in methods if name not in grid["methods"])
    added = sum(len(grid[group]) for group in groups) - before
    if added:
        with atomic(path) as temporary:
            write_yaml(temporary, grid)
        try:
            load_grid(profile)
        except BenchError:
            with atomic(path) as temporary:
                temporary.write_text(before_it, encoding="utf-8")
            raise
    return added


def methods_of_sequences(profile: str) -> list[str]:
    """The methods of a profile that learn concepts one after the other."""
    from pipeline.methods import load_method

    grid = load_grid(profile)
    methods = (m for m in grid.all_methods() if not is_external(m))
    return [method for method in methods if load_method(method, grid).sequence]


def new_stages(name: str, profile: str) -> dict[str, list[str]]:
    """By the folder of its dvc.yaml: the stages that the profile's pipeline has for a concept."""
    folder = profile_folder(profile)
    stages = {}
    for path in (folder / "dvc.yaml", *sorted(folder.glob("cells/*/dvc.yaml"))):
        content = read_yaml(path)["stages"]
        names = [s for s, stage in content.items() if stage.get("foreach") == "${concepts}"]
        if names:
            stages[str(path)] = [f"{stage}@{name}" for stage in names]
    return stages


def tell_stages(name: str, profile: str) -> None:
    """Prints which stages a concept brings, once the profile's dvc.yaml files are written."""
    stages = new_stages(name, profile)
    count = sum(len(names) for names in stages.values())
    print(f"`{repro_command(profile)}` will run these {count} stages, and then the report:")
    for path, names in stages.items():
        print(f"  {path}: {' '.join(names)}")


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():  # on a read-only disk even removing nothing is an error
        path.unlink()


def _write_folder(folder: Path, concept: NewConcept) -> None:
    (folder / "images").mkdir(parents=True)
    digits = max(2, len(str(len(concept.images) - 1)))
    for i, path in enumerate(concept.images):
        image = png_bytes(read_photo(path))
        (folder / "images" / f"{i:0{digits}d}.png").write_bytes(image)
    write_below(folder, concept.further)
    write_yaml(folder / "concept.yaml", concept.fields())


def write_yaml(path: Path, content: Any) -> None:
    """Writes a file of settings; what was read with comments keeps them."""
    with path.open("w", encoding="utf-8") as file:
        _yaml().dump(content, file)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml
