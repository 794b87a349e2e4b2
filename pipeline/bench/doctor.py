"""`bench doctor`: whether all is there that a profile needs, and where the rest is to be had.

Looks at local files only and downloads nothing.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from eval.encoders.published import DINO_URL, INCEPTION_FILE, INCEPTION_SHA256, INCEPTION_URL
from pipeline.adding.add import LICENCE, ONLY_DRAWINGS, is_drawn
from pipeline.adding.lengths import TOKENIZER_FILES, text_window
from pipeline.common.errors import BenchError
from pipeline.common.files import sha256
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.common.schema import read_yaml
from pipeline.common.text import aligned
from pipeline.concepts.concept import DATASETS, load_concept, read_prompts
from pipeline.concepts.photos import distinct_photos, read_photo
from pipeline.corpus.gallery import individuals_of
from pipeline.models.layout import INDEX, Layout, layout_in
from pipeline.settings.external import external_tar, is_external, load_external
from pipeline.settings.profile import (
    BaseParams,
    Grid,
    Params,
    is_hub_id,
    load_grid,
    load_params,
    profile_folder,
)
from pipeline.settings.protocol import Protocol

PYTHONS = ((3, 11), (3, 12))
GPU = Path("/dev/nvidiactl")
CPU_RESOLUTION = 128  # pixels; larger images take far too long without a GPU
DISK_SMALL, DISK_LARGE = 2.0, 200.0  # GiB; the larger where what a grid makes cannot be told
PROJECT, LOCK = Path("pyproject.toml"), Path("requirements.lock")
OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads them
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
# Of tokenizers on the hub: has the last word on what texts are padded with, and is easily left out.
SPECIAL_TOKENS = "special_tokens_map.json"
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
SHA256_DIGITS = 64

State = Literal["ready", "missing", "wrong", "unknown"]
GOOD = ("ready", "unknown")


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
    checks = list(examine(profile))
    for row in aligned([("what", "state", "note"), *((c.what, c.state, c.note) for c in checks)]):
        print(row)
    bad = sum(check.state not in GOOD for check in checks)
    print(
        f"\n{bad} of {len(checks)} are missing or wrong"
        if bad
        else f"\nready: `{repro_command(profile)}`"
    )
    return 1 if bad else 0


def examine(profile: str) -> Iterator[Check]:
    """All that the profile needs, in the order in which it is used.

    Raises:
        BenchError: the profile itself cannot be read.
    """
    params, grid = load_params(profile), load_grid(profile)
    settings = profile_folder(profile) / "params.yaml"
    clips = list(_clips(params, settings))
    yield from _environment(params, grid)
    yield _network(params)
    yield _protocol(params.protocol)
    yield _url_table(params, settings)
    yield from clips
    yield from _base(params.base, settings)
    yield from _inception(params, settings)
    yield from _dino(params, settings)
    yield _methods(params, grid, settings)
    yield from _images_made_elsewhere(grid)
    yield from _pipelines(profile)
    yield from _locks(profile)
    yield from _concepts(params, grid, profile)
    yield from _text_lengths(params, grid)
    if clips[0].state == "ready":
        yield from _captions(params, grid)


def _environment(params: Params, grid: Grid) -> Iterator[Check]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    known = sys.version_info[:2] in PYTHONS
    yield Check(
        "Python",
        "ready" if known else "wrong",
        version if known else f"{version}: use 3.11 or 3.12",
    )
    yield _packages()
    yield _disk(params, grid)
    yield _gpu(params.base.resolution)


def _packages() -> Check:
    """What is installed, by what `pyproject.toml` allows and by what `requirements.lock` pins."""
    what, mend = "packages", "make the environment with `make repro` or `make test`"
    try:
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        allowed = [Requirement(line) for line in project["dependencies"]]
        lines = (line.partition("#")[0].strip() for line in LOCK.read_text().splitlines())
        pinned = [Requirement(line) for line in lines if line]
    except (OSError, ValueError, KeyError) as error:
        state: State = "missing" if isinstance(error, OSError) else "wrong"
        return Check(what, state, f"{PROJECT} and {LOCK} cannot be read ({error}): restore them")
    faults = [fault for package in allowed if (fault := _unmet(package))]
    if faults:
        lacking = any("not installed" in fault for fault in faults)
        return Check(what, "missing" if lacking else "wrong", f"{', '.join(faults)}: {mend}")
    unlike = [fault for package in pinned if (fault := _unmet(package))]
    if not unlike:
        return Check(what, "ready", f"{len(pinned)} as in {LOCK}")
    some = ", ".join(unlike[:3])
    note = f"as {PROJECT} allows; {len(unlike)} of {len(pinned)} unlike {LOCK}, such as {some}"
    return Check(what, "ready", note)


def _unmet(package: Requirement) -> str | None:
    """How what is installed differs from a requirement: None if it does not."""
    if package.marker is not None and not package.marker.evaluate():
        return None
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{package.name} not installed"
    if package.specifier.contains(version, prereleases=True):
        return None
    return f"{package.name} {version} instead of {package.specifier}"


def _disk(params: Params, grid: Grid) -> Check:
    free = shutil.disk_usage(".").free / 2**30
    wanted, why = DISK_SMALL, "that a run takes"
    if params.base.resolution > CPU_RESOLUTION:
        wanted, why = _large_disk(params, grid)
    if free >= wanted:
        return Check("disk", "ready", f"{free:.0f} GiB free of about {wanted:.0f} {why}")
    note = f"{free:.1f} GiB free of about {wanted:.0f} {why}: make room or move the project"
    return Check("disk", "missing", note)


def _large_disk(params: Params, grid: Grid) -> tuple[float, str]:
    """GiB that a grid with large models takes, and what that counts."""
    guess = (DISK_LARGE, "by estimate: what the grid takes can be told when the base is here")
    config = _base_config(params.base)
    if config is None:
        return guess
    try:
        from pipeline.bench.disk import grid_bytes, unet_of  # imports diffusers

        cells = grid_bytes(params, grid, unet_of(config)) / 2**30
    except (ImportError, BenchError, OSError, ValueError):
        return guess  # told elsewhere
    return cells, "that adapters and images of the grid take, beside the corpus"


def _base_config(base: BaseParams) -> Path | None:
    """The configuration of the base's UNet, if it is here."""
    if is_hub_id(base.path):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base.path, f"unet/{CONFIG}", revision=base.revision)
        return Path(found) if isinstance(found, str) else None
    config = Path(base.path, "unet", CONFIG)
    return config if config.is_file() else None


def _network(params: Params) -> Check:
    what = "network"
    names = (params.base.path, params.retrieve.clip, params.protocol.score.clip)
    wanted = [name for name in dict.fromkeys(names) if is_hub_id(name)]
    if params.world is None:
        wanted.append("the images of the URL table")
    if not wanted:
        return Check(what, "ready", "not used: all is drawn or in folders of the project")
    off = [flag for flag in OFFLINE_FLAGS if os.environ.get(flag, "").upper() in TRUE]
    if off:
        note = f"switched off by {' and '.join(off)}: what is downloaded has to be here: "
        return Check(what, "ready", note + ", ".join(wanted))
    return Check(what, "ready", f"used for what is not here yet of {', '.join(wanted)}")


def _protocol(protocol: Protocol) -> Check:
    single, composed = protocol.sample.single, protocol.sample.composition
    note = (
        f"{protocol.name}: {single.images_per_prompt} images a prompt in {single.steps} steps, "
        f"compositions {composed.images_per_prompt} in {composed.steps}; "
        f"{', '.join(protocol.score.metrics)}"
    )
    return Check("protocol", "ready", note)


def _gpu(resolution: int) -> Check:
    if not GPU.exists():
        if resolution <= CPU_RESOLUTION:
            return Check("GPU", "ready", "none, and none is needed")
        return Check("GPU", "missing", f"images of {resolution} pixels take too long without one")
    try:
        import torch
    except ImportError:
        return Check("GPU", "wrong", "there is one, but torch is not installed")
    if not torch.cuda.is_available():
        return Check("GPU", "wrong", "there is one, but torch cannot use it: update its driver")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Check("GPU", "ready", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")


def _url_table(params: Params, settings: Path) -> Check:
    what, path = "URL table", Path(params.corpus.url_table)
    if params.world is not None:
        return Check(what, "ready", f"{path}, written by stage `table`")
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
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file), None)
        return list(pq.read_schema(str(path)).names)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error):
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


def _base(base: BaseParams, settings: Path) -> Iterator[Check]:
    path = base.path
    if not is_hub_id(path) and not Path(path).is_dir():
        note = f"no folder {path}: name a folder in diffusers' format in {settings}, base.path"
        yield Check("base model", "missing", note)
        return
    if fault := _revision_fault(base):
        yield Check("base model: revision", "wrong", f"{settings}: base.revision: {fault}")
    try:
        layout = layout_in(_base_config(base), path)
    except BenchError as error:
        yield Check("base model", "wrong", str(error))
        return
    for component, files in base_files(layout).items():
        what = f"base model: {component}"
        if is_hub_id(path):
            names = [str(Path(component, file)) for file in files]
            if component in layout.tokenizers:
                names.append(f"{component}/{SPECIAL_TOKENS}")
            yield _downloaded(what, path, names, base.revision)
        else:
            folder = Path(path) / component
            yield _folder(what, folder, [part for file in files for part in _parts(folder, file)])
    if layout.pooled:
        what = "base model: index"
        if is_hub_id(path):
            yield _downloaded(what, path, [INDEX], base.revision)
        else:
            yield _folder(what, Path(path), [INDEX])


def base_files(layout: Layout) -> dict[str, tuple[str, ...]]:
    """The files of a base model in diffusers' format that are read, by component."""
    kinds = {
        **dict.fromkeys(layout.weights, (CONFIG, WEIGHTS)),
        **dict.fromkeys(layout.encoders, (CONFIG, "model.safetensors")),
        **dict.fromkeys(layout.tokenizers, TOKENIZER_FILES),
        "scheduler": ("scheduler_config.json",),
    }
    return {component: kinds[component] for component in layout.components}


def _revision_fault(base: BaseParams) -> str | None:
    if is_hub_id(base.path):
        why = f"name the commit of {base.path} to use, so that results are of known weights"
        return None if base.revision else why
    return f"{base.path} is a folder, which has none: remove it" if base.revision else None


def _parts(folder: Path, file: str) -> list[str]:
    """The file, or what diffusers wrote in its place: an index, and files of a limited size."""
    index = folder / f"{file}.index.json"
    if not index.is_file():
        return [file]
    if _fault(index):
        return [index.name]
    return [index.name, *sorted(set(json.loads(index.read_text())["weight_map"].values()))]


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


def _downloaded(
    what: str, repository: str, files: Sequence[str], revision: str | None = None
) -> Check:
    """Files of a hub repository in the hub's cache, where large ones have their digest as name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {f: try_to_load_from_cache(repository, f, HF_HUB_CACHE, revision) for f in files}
    paths = {file: Path(path) for file, path in found.items() if isinstance(path, str)}
    lacking = [file for file in files if file not in paths]
    if lacking:
        command = " ".join(["hf download", repository, *lacking])
        command += f" --revision {revision}" if revision else ""
        return Check(what, "missing", f"`{command}` -> {HF_HUB_CACHE}")
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
    score = params.protocol.score
    if score.kid_features != "inception" or not {"kid", "fid"} & set(score.metrics):
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


def _dino(params: Params, settings: Path) -> Iterator[Check]:
    if "dino_image_alignment" not in params.protocol.score.metrics:
        return
    what, given = "DINO of image-alignment", params.score.dino
    if given is None:
        note = f"{settings}: score.dino: give a path, and download {DINO_URL} to it"
        yield Check(what, "missing", note)
    elif not Path(given).is_file():
        yield Check(what, "missing", f"download {DINO_URL} to {given}")
    elif Path(given).suffix != ".safetensors":
        yield Check(what, "wrong", f"{given}: not a .safetensors file: download {DINO_URL}")
    elif fault := _fault(Path(given)):
        yield Check(what, "wrong", f"{given}: {fault}: download {DINO_URL} again")
    else:
        yield Check(what, "ready", given)


def _methods(params: Params, grid: Grid, settings: Path) -> Check:
    """Whether every method has parameters; the grid has been read, so that all are known."""
    made_here = [method for method in grid.all_methods() if not is_external(method)]
    lacking = [method for method in made_here if method not in params.methods]
    if lacking:
        note = f"{settings}: methods.{lacking[0]}: missing: give the method's parameters"
        return Check("methods", "wrong", note)
    return Check("methods", "ready", ", ".join(grid.all_methods()))


def _images_made_elsewhere(grid: Grid) -> Iterator[Check]:
    """What made them, and for how many subjects they are here; the others have no scores."""
    for method in filter(is_external, grid.methods):
        what = f"images of {method}"
        try:
            about = load_external(method)
        except BenchError as error:
            yield Check(what, "wrong", str(error))
            continue
        subjects = grid.subjects()
        here = sum(external_tar(method, subject).is_file() for subject in subjects)
        yield Check(what, "ready", f"{here} of {len(subjects)} subjects: {about.credit()}")


def _pipelines(profile: str) -> Iterator[Check]:
    """Whether the stages are those of the parameters and the grid."""
    try:
        from pipeline.bench.pipelines import pipelines  # imports the methods, and so torch
    except ImportError:
        return  # told with the packages
    what = "stages"
    try:
        files = pipelines(profile)
    except BenchError as error:  # of a concept, say
        yield Check(what, "wrong", f"cannot be told before this is mended: {error}")
        return
    stale = [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if stale:
        stale.sort(key=Path.is_file)  # first what is missing
        state: State = "wrong" if stale[0].is_file() else "missing"
        note = f"{stale[0]}: not what parameters and grid ask for: run `bench pipelines`"
        yield Check(what, state, note)
    else:
        yield Check(what, "ready", f"{len(files)} dvc.yaml files")


def _locks(profile: str) -> Iterator[Check]:
    """What DVC wrote down and cannot read again: it writes in place, and may be killed."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    folder = profile_folder(profile)
    readers = folder / ".dvc/tmp/rwlock"
    for path in (*folder.glob("dvc.lock"), *sorted(folder.glob("cells/*/dvc.lock")), readers):
        try:
            if path != readers:
                COMPILED_LOCKFILE_SCHEMA(read_yaml(path))
            elif path.exists():
                json.loads(path.read_bytes())
        except (BenchError, Invalid, ValueError):
            note = (
                f"{path}: cut, as happens if DVC is killed: delete it, and run "
                f"`{repro_command(profile)}`, which takes what was made from DVC's cache"
            )
            yield Check("records", "wrong", note)


def _concepts(params: Params, grid: Grid, profile: str) -> Iterator[Check]:
    for name, about in grid.all_concepts().items():
        yield _concept(name, about.class_noun, params, grid)
    for name, composition in grid.composed().items():
        path = DATASETS / "prompts" / f"{name}.txt"
        what = f"prompts of {name}"
        if path.is_file():
            try:
                prompts = read_prompts(path, len(composition.concepts()))
                params.protocol.check_prompts(name, prompts)
                yield Check(what, "ready", f"{len(prompts)} in {path}")
            except BenchError as error:
                yield Check(what, "wrong", str(error))
        else:
            places = ", ".join(f"{{{i}}} for {c}" for i, c in enumerate(composition.concepts()))
            yield Check(what, "missing", f"write {path}, one prompt a line, with {places}")


def _concept(name: str, class_noun: str, params: Params, grid: Grid) -> Check:
    profile = params.profile
    what, folder = f"concept {name}", DATASETS / "concepts" / name
    if not folder.is_dir():
        option = "" if profile == DEFAULT_PROFILE else f" --profile {profile}"
        command = f'bench concept add {name} IMAGES --class "{class_noun}"{option}'
        return Check(what, "missing", f"`{command}` -> {folder}")
    try:
        concept = load_concept(name)
        params.protocol.check_prompts(name, concept.prompts)
        photos = distinct_photos(concept.images)
    except BenchError as error:
        return Check(what, "wrong", str(error))
    about = folder / "concept.yaml"
    if concept.class_noun != class_noun:
        note = (
            f"{about}: class_noun is {concept.class_noun!r}, in "
            f"{profile_folder(profile) / 'grid.yaml'} {class_noun!r}: make them equal"
        )
        return Check(what, "wrong", note)
    if photos.repeats:
        repeat, first = photos.repeats[0]
        return Check(what, "wrong", f"{repeat}: the same picture as {first.name}: remove one")
    if params.protocol.score.galleries:
        try:
            for pictures in individuals_of(name, grid).values():
                for picture in pictures:
                    read_photo(picture)
        except BenchError as error:
            return Check(what, "wrong", str(error))
    known = read_yaml(about)
    licence = "licence unknown" if known["licence"] == LICENCE else known["licence"]
    note = (
        f"{len(concept.images)} images of {_range(photos.sizes)} and {len(concept.prompts)} "
        f"prompts of {class_noun!r}, {licence}"
    )
    if params.world and not is_drawn(known["source"]):
        note += f"; {ONLY_DRAWINGS}"
    return Check(what, "ready", note)


def _range(sizes: Sequence[tuple[int, int]]) -> str:
    """The smallest size and, if there are several, the largest: "64 × 48 to 512 × 512"."""
    ordered = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    ends = (ordered[0], ordered[-1]) if len(ordered) > 1 else ordered
    return " to ".join(f"{width} × {height}" for width, height in ends)


def _text_lengths(params: Params, grid: Grid) -> Iterator[Check]:
    """Whether the text encoder sees the whole of every text, once the tokenizer is there."""
    what = "length of texts"
    try:
        window = text_window(params.base)
    except BenchError as error:
        yield Check(what, "wrong", str(error))
        return
    if window is None:
        return
    lengths: dict[str, int] = {}
    for name, composition in grid.composed().items():
        path, concepts = DATASETS / "prompts" / f"{name}.txt", composition.concepts()
        nouns = [grid.concepts[concept].class_noun for concept in concepts]
        with suppress(BenchError):  # told already
            for prompt in read_prompts(path, len(concepts)):
                lengths[f"{path}: {prompt!r}"] = window.prompt(prompt, nouns)
    for name, about in grid.all_concepts().items():
        path, nouns = DATASETS / "prompts" / f"{name}.txt", [about.class_noun]
        with suppress(BenchError):
            caption = load_concept(name).caption
            file = DATASETS / "concepts" / name / "concept.yaml"
            path = DATASETS / read_yaml(file)["prompts"]
            lengths[f"{file}: caption {caption!r}"] = window.caption(caption, about.class_noun)
        with suppress(BenchError):
            for prompt in read_prompts(path, 1):
                lengths[f"{path}: {prompt!r}"] = window.prompt(prompt, nouns)
    long = [where for where, length in lengths.items() if length > window.limit]
    if long:
        note = f"{len(long)} of {len(lengths)} are cut at {window.limit} tokens; shorten {long[0]}"
        yield Check(what, "wrong", note)
    elif lengths:
        note = f"{len(lengths)} prompts and captions, at most {max(lengths.values())} of "
        yield Check(what, "ready", f"{note}{window.limit} tokens")


def _captions(params: Params, grid: Grid) -> Iterator[Check]:
    """Whether the corpus has enough about each class noun, as far as that is known by now."""
    try:
        from pipeline.adding import coverage
        from pipeline.corpus.retrieve import queries_of
    except ImportError:
        return  # told with the packages
    if not coverage.can_be_known(params):
        note = f"counted once there is {params.runs() / 'index'}: run `bench doctor` again then"
        yield Check("captions", "unknown", note)
        return
    wanted = {}
    for name, about in grid.all_concepts().items():
        queries: tuple[str, ...] = ()
        with suppress(BenchError):  # told already
            queries = load_concept(name).queries
        wanted[name] = queries_of(about.class_noun, queries, params.retrieve)
    nouns = [about.class_noun for about in grid.all_concepts().values()]
    try:
        found = coverage.coverage(wanted, nouns, params)
    except BenchError as error:
        yield Check("captions", "wrong", str(error))
        return
    for name, one in found.items():
        state: State = "ready" if one.enough else "missing"
        note = str(one) if one.enough else f"{one}: {coverage.ways_out(params)}"
        yield Check(f"captions for {name}", state, note)
