"""`bench doctor`: whether all is there that a profile needs, and where the rest is to be had.

Looks at local files only and downloads nothing.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.concepts import DATASETS, load_concept, open_image, read_prompts
from pipeline.errors import BenchError
from pipeline.files import sha256
from pipeline.params import (
    DEFAULT_PROFILE,
    Grid,
    Params,
    is_hub_id,
    load_grid,
    load_params,
    profile_folder,
)

PYTHONS = ((3, 11), (3, 12))
GPU = Path("/dev/nvidiactl")
CPU_RESOLUTION = 128  # pixels; larger images take far too long without a GPU
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
# The files of a base model in diffusers' format that are read, by component.
BASE_FILES = {
    "unet": (CONFIG, WEIGHTS),
    "vae": (CONFIG, WEIGHTS),
    "text_encoder": (CONFIG, "model.safetensors"),
    "tokenizer": ("vocab.json", "merges.txt", "tokenizer_config.json"),
    "scheduler": ("scheduler_config.json",),
}
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION_FILE
)
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
SHA256_DIGITS = 64

State = Literal["ready", "missing", "wrong"]


@dataclass(frozen=True)
class Check:
    """One thing that a profile needs."""

    what: str
    state: State
    note: str  # what it is, or else what to do


def doctor(profile: str = DEFAULT_PROFILE) -> int:
    """Prints one line for each thing that the profile needs.

    Returns:
        The exit status: 0 if everything is ready, otherwise 1.

    Raises:
        BenchError: the profile itself cannot be read.
    """
    checks = examine(profile)
    for row in aligned([("what", "state", "note"), *((c.what, c.state, c.note) for c in checks)]):
        print(row)
    bad = sum(check.state != "ready" for check in checks)
    pipeline = "" if profile == DEFAULT_PROFILE else f" {profile_folder(profile) / 'dvc.yaml'}"
    print(
        f"\n{bad} of {len(checks)} are missing or wrong"
        if bad
        else f"\nready: `dvc repro{pipeline}`"
    )
    return 1 if bad else 0


def examine(profile: str) -> list[Check]:
    """All that the profile needs, in the order in which it is used.

    Raises:
        BenchError: the profile itself cannot be read.
    """
    params, grid = load_params(profile), load_grid(profile)
    settings = profile_folder(profile) / "params.yaml"
    return [
        *_environment(params),
        _url_table(params, settings),
        *_clips(params, settings),
        *_base(params.base.path, settings),
        *_inception(params, settings),
        *_concepts(grid, profile),
    ]


def _environment(params: Params) -> Iterator[Check]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    known = sys.version_info[:2] in PYTHONS
    yield Check(
        "Python",
        "ready" if known else "wrong",
        version if known else f"{version}: use 3.11 or 3.12",
    )
    try:
        yield Check("torch", "ready", importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        yield Check("torch", "missing", "make the environment with `make repro` or `make test`")
        return
    yield _gpu(params.base.resolution)


def _gpu(resolution: int) -> Check:
    if not GPU.exists():
        if resolution <= CPU_RESOLUTION:
            return Check("GPU", "ready", "none, and none is needed")
        return Check("GPU", "missing", f"images of {resolution} pixels take too long without one")
    import torch

    if not torch.cuda.is_available():
        return Check("GPU", "wrong", "there is one, but torch cannot use it: update its driver")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Check("GPU", "ready", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")


def _url_table(params: Params, settings: Path) -> Check:
    what, path = "URL table", Path(params.corpus.url_table)
    if params.world is not None:
        return Check(what, "ready", f"{path}, drawn by stage `world`")
    wanted = (params.corpus.url_column, params.corpus.caption_column)
    if not path.is_file():
        return Check(
            what,
            "missing",
            f"put a .parquet or .csv file with the columns {' and '.join(wanted)} at {path}, or "
            f"name another in {settings}, corpus.url_table",
        )
    columns = _columns(path)
    if columns is None:
        return Check(what, "wrong", f"{path}: not a .parquet or .csv file")
    lacking = [column for column in wanted if column not in columns]
    if lacking:
        return Check(
            what,
            "wrong",
            f"{path} has no column {' and no '.join(lacking)}: name two of {', '.join(columns)} in "
            f"{settings}, corpus.url_column and corpus.caption_column",
        )
    return Check(what, "ready", str(path))


def _columns(path: Path) -> list[str] | None:
    """The columns of a table, None if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return next(csv.reader(file), None)
        return list(pq.read_schema(str(path)).names)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error):
        return None


def _clips(params: Params, settings: Path) -> Iterator[Check]:
    uses = {"retrieve.clip": params.retrieve.clip, "score.clip": params.protocol.score.clip}
    for name in dict.fromkeys(uses.values()):
        what = f"CLIP of {' and '.join(use for use, used in uses.items() if used == name)}"
        if is_hub_id(name):
            yield _published_clip(what, name, settings)
        else:
            yield _folder(what, Path(name), CLIP_FILES)


def _published_clip(what: str, name: str, settings: Path) -> Check:
    """Weights that open_clip downloads from the hub, or from a URL if they are not there."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    arch, _, tag = name.partition("/")
    published = get_pretrained_cfg(arch, tag)
    if not published:
        tags = ", ".join(list_pretrained_tags_by_model(arch)) or "none"
        return Check(what, "wrong", f"{name} is not published; tags of {arch}: {tags}: {settings}")
    repository = published.get("hf_hub", "").rstrip("/")
    if repository:
        return _downloaded(what, repository, CLIP_FILES[1:])
    url = published["url"]
    path = Path.home() / ".cache" / "clip" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return Check(what, "ready", str(path))
    return Check(what, "missing", f"download {url} to {path}")


def _base(path: str, settings: Path) -> Iterator[Check]:
    if not is_hub_id(path) and not Path(path).is_dir():
        note = f"no folder {path}: name a folder in diffusers' format in {settings}, base.path"
        yield Check("base model", "missing", note)
        return
    for component, files in BASE_FILES.items():
        what = f"base model: {component}"
        if is_hub_id(path):
            yield _downloaded(what, path, [f"{component}/{file}" for file in files])
        else:
            yield _folder(what, Path(path) / component, files)


def _folder(what: str, folder: Path, files: Iterable[str]) -> Check:
    """Files in a folder of the project."""
    lacking = [file for file in files if not (folder / file).is_file()]
    if lacking:
        return Check(what, "missing", f"{folder} lacks {', '.join(lacking)}: restore the folder")
    for file in files:
        fault = _fault(folder / file)
        if fault:
            return Check(what, "wrong", f"{folder / file}: {fault}: restore the file")
    return Check(what, "ready", str(folder))


def _downloaded(what: str, repository: str, files: Sequence[str]) -> Check:
    """Files of a hub repository in the hub's cache, where large ones have their digest as name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {file: try_to_load_from_cache(repository, file, HF_HUB_CACHE) for file in files}
    paths = {file: Path(path) for file, path in found.items() if isinstance(path, str)}
    lacking = [file for file in files if file not in paths]
    if lacking:
        return Check(
            what, "missing", f"`hf download {repository} {' '.join(lacking)}` -> {HF_HUB_CACHE}"
        )
    for path in paths.values():
        fault = _fault(path)
        digest = path.resolve().name
        if not fault and len(digest) == SHA256_DIGITS and sha256(path) != digest:
            fault = f"its SHA-256 is not {digest}"
        if fault:
            return Check(
                what, "wrong", f"{path}: {fault}: delete {path.resolve()} and download it again"
            )
    return Check(what, "ready", f"{repository}, in {HF_HUB_CACHE}")


def _fault(path: Path) -> str | None:
    """What is wrong with a file, as far as its form tells: None if nothing."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return "not valid JSON"
    if path.suffix == ".safetensors":
        # The length of a header, the header, and tensors that lie where the header says.
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(length, path.stat().st_size)))
                ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
            except (ValueError, TypeError, KeyError, AttributeError):
                return "not a safetensors file"
        if path.stat().st_size != 8 + length + max(ends, default=0):
            return "truncated"
    return None


def _inception(params: Params, settings: Path) -> Iterator[Check]:
    if params.protocol.score.kid_features != "inception":
        return
    what, given = "Inception of KID", params.score.inception
    if given is None or Path(given).name != INCEPTION_FILE:
        note = f"{settings}: score.inception: give the path of a file named {INCEPTION_FILE}"
        yield Check(what, "missing" if given is None else "wrong", note)
    elif not Path(given).is_file():
        note = f"download {INCEPTION_URL} to {given} (SHA-256 {INCEPTION_SHA256})"
        yield Check(what, "missing", note)
    elif sha256(given) != INCEPTION_SHA256:
        note = f"{given}: its SHA-256 is not {INCEPTION_SHA256}: download {INCEPTION_URL} again"
        yield Check(what, "wrong", note)
    else:
        yield Check(what, "ready", given)


def _concepts(grid: Grid, profile: str) -> Iterator[Check]:
    for name, about in grid.concepts.items():
        yield _concept(name, about.class_noun, profile)
    for name, composition in grid.composed().items():
        path = DATASETS / "prompts" / f"{name}.txt"
        what = f"prompts of {name}"
        if path.is_file():
            try:
                count = len(read_prompts(path, len(composition.concepts())))
                yield Check(what, "ready", f"{count} in {path}")
            except BenchError as error:
                yield Check(what, "wrong", str(error))
        else:
            places = ", ".join(f"{{{i}}} for {c}" for i, c in enumerate(composition.concepts()))
            yield Check(what, "missing", f"write {path}, one prompt a line, with {places}")


def _concept(name: str, class_noun: str, profile: str) -> Check:
    what, folder = f"concept {name}", DATASETS / "concepts" / name
    if not folder.is_dir():
        option = "" if profile == DEFAULT_PROFILE else f" --profile {profile}"
        command = f'bench concept add {name} IMAGES --class "{class_noun}"{option}'
        return Check(what, "missing", f"`{command}` -> {folder}")
    try:
        concept = load_concept(name)
        for path in concept.images:
            open_image(path)
    except BenchError as error:
        return Check(what, "wrong", str(error))
    if concept.class_noun != class_noun:
        note = (
            f"{folder / 'concept.yaml'}: class_noun is {concept.class_noun!r}, in "
            f"{profile_folder(profile) / 'grid.yaml'} {class_noun!r}: make them equal"
        )
        return Check(what, "wrong", note)
    note = f"{len(concept.images)} images and {len(concept.prompts)} prompts of {class_noun!r}"
    return Check(what, "ready", note)


def aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """The rows as lines whose columns begin at the same place."""
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"{what:<{first}}  {state:<{second}}  {note}" for what, state, note in rows]
