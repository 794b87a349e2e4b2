"""`datasets/` as objects: concepts and compositions with their images, captions and prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.schema import parse, read_yaml
from pipeline.settings.profile import NAME, Grid, load_grid

DATASETS = Path("datasets")
PHOTO_CAPTION = "photo of a {}"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ConceptFile(BaseModel):
    """`concept.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="that of its folder")
    class_noun: str = Field(min_length=1)
    modifier_token: str | None = Field(
        default=None,
        pattern=r"^<[^<>\s]+>$",
        description="not used: concepts get their tokens by position",
    )
    caption: str
    prompts: str = Field(description="relative to datasets/")
    queries: tuple[str, ...] = Field(
        default=(), description="what regularization images show, if the class noun cannot tell"
    )
    licence: str
    source: str


@dataclass(frozen=True)
class Concept:
    """A thing to learn: a few images, its class noun and the prompts that it is judged by."""

    name: str
    class_noun: str  # "wooden pot"
    caption: str  # template of training captions: PHOTO_CAPTION, or what suits a style
    prompt_file: Path
    images: tuple[Path, ...]  # sorted
    queries: tuple[str, ...] = ()  # captions of regularization images; empty: by the class noun

    @property
    def is_style(self) -> bool:
        """Whether its pictures show anything, in a way that is to be learned.

        No class noun says what they show, so that it needs queries.
        """
        return bool(self.queries)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Templates with {}; see `read_prompts`. Read when asked for: few stages depend on them."""
        return read_prompts(self.prompt_file, 1)


@dataclass(frozen=True)
class Subject:
    """What one cell is about: one concept, several that are composed, or a task of a sequence.

    Concepts get their modifier tokens by position, so that two of them never share one.
    """

    name: str
    concepts: tuple[Concept, ...]  # of a task: those learned before, and last the one it adds
    prompt_file: Path
    # Its concepts are learned one after the other, and each is asked for by its own prompts.
    task: bool = False

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Templates with {} (one concept) or {0}, {1} (several), read when asked for."""
        return read_prompts(self.prompt_file, len(self.concepts))

    def scored_prompts(self) -> tuple[str, ...]:
        """The prompts with class nouns alone, as text-alignment sees them."""
        nouns = [concept.class_noun for concept in self.concepts]
        return tuple(prompt.format(*nouns) for prompt in self.prompts)


def load_concept(name: str) -> Concept:
    """The concept in `datasets/concepts/<name>/`.

    Raises:
        BenchError: something is missing or wrong; names the file and the way out.
    """
    folder = DATASETS / "concepts" / name
    path = folder / "concept.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in (DATASETS / "concepts").glob("*/concept.yaml"))
        raise BenchError(
            f"{path}: concept {name!r} is unknown: add it with `bench concept add {name} ...` "
            f"or choose one of {', '.join(known)}"
        )
    file = parse(path, ConceptFile, read_yaml(path))
    if file.name != name:
        raise BenchError(f"{path}: name: is {file.name!r}, its folder {name!r}: make them equal")
    check_caption(file.caption, f"{path}: caption")
    images = tuple(
        sorted(p for p in (folder / "images").glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    )
    if not images:
        raise BenchError(f"{folder / 'images'}: holds no images: put PNG or JPEG files there")
    return Concept(
        name=file.name,
        class_noun=file.class_noun,
        caption=file.caption,
        prompt_file=DATASETS / file.prompts,
        images=images,
        queries=file.queries,
    )


def styles_of(grid: Grid) -> frozenset[str]:
    """The concepts of a grid that are styles; those that are not there yet count as things.

    Raises:
        BenchError: something about a concept is wrong.
    """
    there = (c for c in grid.concepts if (DATASETS / "concepts" / c / "concept.yaml").is_file())
    return frozenset(name for name in there if load_concept(name).is_style)


def check_caption(caption: str, where: str) -> None:
    """Finds out whether this can be the template of training captions.

    Raises:
        BenchError: it lacks or repeats its placeholder, or has another; begins with `where`.
    """
    if not caption.count("{}") == caption.count("{") == caption.count("}") == 1:
        raise BenchError(f"{where} {caption!r}: needs the placeholder {{}} once, and no other")


def checked_noun(noun: str, where: str) -> str:
    """A class noun without superfluous blanks.

    Raises:
        BenchError: it has other than words; begins with `where` it stands.
    """
    noun = " ".join(noun.split())
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", noun):
        raise BenchError(f"{where} {noun!r}: needs a noun in plain words (wooden pot)")
    return noun


def load_subject(name: str, profile: str = DEFAULT_PROFILE) -> Subject:
    """The concept, the composition or the task of that name in the profile's grid.

    Raises:
        BenchError: the grid has no such subject, or something about it is wrong.
    """
    grid = load_grid(profile)
    concepts = tuple(map(load_concept, grid.concepts_of(name)))
    if name in grid.all_tasks():
        return Subject(name, concepts, concepts[-1].prompt_file, task=True)
    if len(concepts) == 1:
        return Subject(name, concepts, concepts[0].prompt_file)
    return Subject(name, concepts, DATASETS / "prompts" / f"{name}.txt")


def read_prompts(path: Path, concepts: int) -> tuple[str, ...]:
    """The prompts of a file, one a line, each with one placeholder for each concept.

    Placeholders are {} for one concept and {0}, {1}, ... for several, as in CustomConcept101.

    Raises:
        BenchError: the file is missing, empty or not UTF-8, or a line lacks or repeats a
            placeholder.
    """
    return parse_prompts(read_lines(path), path, concepts)


def read_lines(path: Path, what: str = "prompt file") -> list[str]:
    """The lines of a file, as they stand there.

    Args:
        path: of the file.
        what: what the file is, for the error.

    Raises:
        BenchError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise BenchError(f"{path}: the {what} is missing") from None
    except OSError as error:
        raise BenchError(f"{path}: the {what} could not be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"{path}: not UTF-8 ({error}): save it in that encoding") from error


def parse_prompts(lines: Sequence[str], path: Path, concepts: int) -> tuple[str, ...]:
    """The prompts in lines that were read from `path`; see `read_prompts`.

    Raises:
        BenchError: there are none, or a line lacks or repeats a placeholder.
    """
    placeholders = ["{}"] if concepts == 1 else [f"{{{i}}}" for i in range(concepts)]
    prompts = []
    for number, line in enumerate(lines, 1):
        prompt = " ".join(line.split())
        if not prompt:
            continue
        for placeholder in placeholders:
            if prompt.count(placeholder) != 1:
                raise BenchError(
                    f"{path}:{number}: prompt needs the placeholder {placeholder} once: {prompt!r}"
                )
        if prompt.count("{") != concepts or prompt.count("}") != concepts:
            raise BenchError(f"{path}:{number}: unknown placeholder in {prompt!r}")
        prompts.append(prompt)
    if not prompts:
        raise BenchError(f"{path}: holds no prompts: write one a line")
    return tuple(prompts)
