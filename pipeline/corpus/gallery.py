"""Galleries: what images of a concept are ranked against, to tell whether they show that thing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, sha256, write_tar
from pipeline.concepts.concept import DATASETS, load_concept
from pipeline.concepts.photos import pictures_in, read_photo, square
from pipeline.concepts.shards import OWN, Sample
from pipeline.settings.profile import Grid, load_grid, load_params


def make_gallery(concept: str, profile: str) -> None:
    """Writes the concept's own pictures and those of its look-alikes to `galleries/<concept>.tar`.

    Its own are those in `held_out/` of its folder, which nothing is trained on; without that
    folder, its target images. Look-alikes are the folders in `lookalikes/`, one for each other
    individual; without that, the targets of the grid's other concepts of the same class noun.

    Pictures are cropped and resized as targets are. Their `json` has individual (OWN or the name
    of the look-alike), source (the file) and its sha256.

    Raises:
        BenchError: a folder is there and holds no pictures, or one cannot be decoded.
    """
    started = time.perf_counter()
    params = load_params(profile)
    individuals = individuals_of(concept, load_grid(profile))
    samples: list[Sample] = []
    for name, paths in individuals.items():
        for path in paths:
            record = {"individual": name, "source": path.as_posix(), "sha256": sha256(path)}
            png = png_bytes(square(read_photo(path), params.base.resolution))
            samples.append({"__key__": f"{len(samples):05d}", "png": png, "json": record})
    path = params.runs() / "galleries" / f"{concept}.tar"
    write_tar(path, samples)
    own = len(individuals[OWN])
    seconds = time.perf_counter() - started
    print(
        f"gallery: {own} pictures of {concept}, {len(samples) - own} of "
        f"{len(individuals) - 1} look-alikes, {seconds:.0f} s: {path}"
    )


def individuals_of(concept: str, grid: Grid) -> dict[str, Sequence[Path]]:
    """The pictures of a concept's gallery: its own, by OWN, and those of each look-alike.

    Raises:
        BenchError: a folder is there and holds no pictures, or something else than pictures.
    """
    return {OWN: _own(concept), **_lookalikes(concept, grid)}


def _own(concept: str) -> Sequence[Path]:
    folder = DATASETS / "concepts" / concept / "held_out"
    return _pictures(folder) if folder.is_dir() else load_concept(concept).images


def stand_ins(grid: Grid) -> list[str]:
    """The concepts whose targets are look-alikes of another one, which has no folder of them."""
    asked = [name for name in grid.all_concepts() if not _folder(name).is_dir()]
    return [name for name in grid.concepts if any(name in _same_noun(one, grid) for one in asked)]


def _same_noun(concept: str, grid: Grid) -> list[str]:
    """The other concepts of its class noun."""
    noun = grid.all_concepts()[concept].class_noun
    same = [name for name, about in grid.concepts.items() if about.class_noun == noun]
    return [name for name in same if name != concept]


def _folder(concept: str) -> Path:
    return DATASETS / "concepts" / concept / "lookalikes"


def _lookalikes(concept: str, grid: Grid) -> Mapping[str, Sequence[Path]]:
    """By individual."""
    folder = _folder(concept)
    if not folder.is_dir():
        return {name: load_concept(name).images for name in _same_noun(concept, grid)}
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in inside:
        if not path.is_dir():
            raise BenchError(f"{path}: each look-alike has a folder of its own: move it into one")
    return {path.name: _pictures(path) for path in inside}


def _pictures(folder: Path) -> Sequence[Path]:
    found = pictures_in(folder)
    if not found:
        raise BenchError(f"{folder}: holds no pictures: put some there, or remove the folder")
    return found
