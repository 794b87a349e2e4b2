"""`bench samples`: which images the protocol asks for, and images of any system as a method's own.

Whatever made them, they become `datasets/external/<method>/<subject>.tar` at their own size, and
the method a row of the table. Everything is checked before the first write.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pipeline.adding.add import (
    add_to_grid,
    find_ignoring_case,
    remove,
    write_yaml,
)
from pipeline.adding.dataset import inside
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, png_bytes, read_tar, write_tar
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.concepts.concept import Subject, load_subject, read_lines
from pipeline.concepts.photos import pictures_in, read_photo
from pipeline.concepts.shards import one_line
from pipeline.methods import taken_names
from pipeline.sample.external import external_captions, external_prompts, external_record
from pipeline.sample.requests import Request
from pipeline.settings.external import (
    ABOUT,
    External,
    external_folder,
    external_tar,
    is_external,
    load_external,
)
from pipeline.settings.profile import (
    Grid,
    Params,
    check_name,
    load_grid,
    load_params,
    profile_folder,
)

LICENCE = "unknown"
FILE, PROMPT, TEMPLATE = "file", "prompt", "template"  # columns of a table of images
NAMED = re.compile(r"(?:(prompt|caption)-)?(\d+)-(\d+)")


class Credit(NamedTuple):
    """What is said of the images on the command line."""

    source: str | None = None
    licence: str | None = None
    url: str | None = None


NOTHING_NEW = Credit()


def print_prompts(subject: str, profile: str = DEFAULT_PROFILE, captions: bool = False) -> None:
    """Prints a table of the images that the protocol asks for, one a row, as CSV.

    `file` is the name under which an import knows the image; `prompt` has class nouns; `template`
    has {}, or {0} and {1}, in their place, for systems that call their concepts otherwise.

    Args:
        subject: of the profile's grid.
        profile: the name of a profile.
        captions: also the captions of held-out real images, for KID; they have no template.

    Raises:
        BenchError: the subject is unknown, its prompts are not the protocol's, it has no captions,
            or the shard that has them is missing.
    """
    params, thing = load_params(profile), load_subject(subject, profile)
    params.protocol.check_prompts(subject, thing.prompts)
    wanted = external_prompts(params, thing)
    if captions:
        found = external_captions(params, thing)
        if not found:
            raise BenchError(
                f"--captions: protocol {params.protocol.name!r} asks for no images of captions of "
                f"{subject!r}: leave it out"
            )
        wanted += found
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((FILE, PROMPT, TEMPLATE))
    for request in wanted:
        record = request.record
        is_prompt = record["part"] == "prompt"
        template = thing.prompts[int(record["prompt_index"])] if is_prompt else ""
        writer.writerow((f"{_short(request.key)}.png", record["scored_prompt"], template))


def import_samples(
    method: str,
    subject: str,
    folder: Path,
    table: Path | None = None,
    profile: str = DEFAULT_PROFILE,
    credit: Credit = NOTHING_NEW,
    replace: bool = False,
) -> None:
    """Makes images of any system the method's images of a subject, and the method a row.

    Args:
        method: a name that no other method has.
        subject: of the profile's grid.
        folder: with an image for each that `print_prompts` lists, PNG, JPEG or WebP, square, of any
            size. Either all images of captions are there, or none.
        table: CSV whose columns `file` and `prompt` say what each image shows; if None, their
            names do: PROMPT-SAMPLE or caption-CAPTION-SAMPLE, counted from zero.
        profile: whose protocol it is, and whose grid gets the row.
        credit: what made the images; the first import of a method needs its source.
        replace: images and words that are there already.

    Raises:
        BenchError: a bad or taken name, an image that is missing, there twice, not asked for, not
            square or cannot be decoded, or images that are there already and are others.
    """
    params, thing = load_params(profile), load_subject(subject, profile)
    params.protocol.check_prompts(subject, thing.prompts)
    _check_method(method, load_grid(profile))
    about = _about(method, credit, replace)
    if not folder.is_dir():
        raise BenchError(f"{folder}: no such folder")
    where = table or folder
    found = _by_table(folder, table, params, thing) if table else _by_name(folder)
    wanted = external_prompts(params, thing)
    if any(key.startswith("caption") for key in found):
        wanted += external_captions(params, thing)
    _check_all_there(found, wanted, where, params)
    samples, remarks = _samples(found, wanted, params.base.resolution)
    tar = external_tar(method, subject)
    unchanged = _holds(tar, samples)
    if tar.exists() and not unchanged and not replace:
        raise BenchError(f"{tar}: is there already with other images: replace it with --replace")

    note = external_folder(method) / ABOUT
    with ExitStack() as undo:
        for path in (note, tar):
            if not path.exists():
                undo.callback(remove, path)
        if not unchanged:
            write_tar(tar, samples)
        if not note.exists() or load_external(method) != about:
            with atomic(note) as temporary:
                write_yaml(temporary, about.model_dump(exclude_none=True))
        add_to_grid(profile, {}, methods=[method])
        undo.pop_all()

    what = "unchanged" if unchanged else "imported"
    print(f"{what}: {len(samples)} images of {method} on {subject} -> {tar}")
    for remark in remarks:
        print(remark)
    grid = load_grid(profile)
    lacking = [name for name in grid.subjects() if not external_tar(method, name).is_file()]
    if lacking:
        print(f"not imported of {method}: {', '.join(lacking)}")
    path = profile_folder(profile) / "grid.yaml"
    print(f"{path}: {method} is a row: `{repro_command(profile)}` scores it")


def _check_method(method: str, grid: Grid) -> None:
    """Finds out whether images made elsewhere may be under this name.

    Raises:
        BenchError: they may not.
    """
    check_name(method, "method")
    for name in taken_names(grid):
        if name.casefold() == method.casefold():
            raise BenchError(f"method {method!r} is taken by {name!r}: choose another name")
    there = find_ignoring_case(external_folder(method))
    if there is not None and there.name != method:
        raise BenchError(f"{there}: differs from {method!r} in case alone: choose another name")


def _about(method: str, credit: Credit, replace: bool) -> External:
    """What `method.yaml` is to say: what it says already, or what is given.

    Raises:
        BenchError: nothing says what made the images, or it says something else.
    """
    said = {name: value for name, value in credit._asdict().items() if value is not None}
    if not is_external(method) and not (credit.source or "").strip():
        raise BenchError(
            f"--source: say what made the images of {method!r} (system, version, by whom)"
        )
    for name, value in said.items():
        if not value.strip():
            raise BenchError(f"--{name}: is empty: say it, or leave the option out")
    if not is_external(method):
        return External(**{"licence": LICENCE} | said)
    there = load_external(method)
    for name, value in said.items():
        if getattr(there, name) != value and not replace:
            raise BenchError(
                f"--{name} {value!r}: {external_folder(method) / ABOUT} says "
                f"{getattr(there, name)!r}: leave it out, or replace it with --replace"
            )
    return there.model_copy(update=said)


def _by_name(folder: Path) -> dict[str, Path]:
    """The images of a folder by the keys that their names say.

    Raises:
        BenchError: a name says none, two say the same, or the folder holds no images.
    """
    found: dict[str, Path] = {}
    for path in pictures_in(folder):
        named = NAMED.fullmatch(path.stem)
        if not named:
            raise BenchError(
                f"{path}: name it PROMPT-SAMPLE, such as 000-00.png (see `bench samples prompts`), "
                "or say what it shows in a table: --csv"
            )
        key = f"{named[1] or 'prompt'}-{int(named[2]):03d}-{int(named[3]):03d}"
        if key in found:
            raise BenchError(f"{path}: is the same image as {found[key].name}: remove one")
        found[key] = path
    if not found:
        raise BenchError(f"{folder}: the folder holds no images")
    return found


def _by_table(folder: Path, table: Path, params: Params, subject: Subject) -> dict[str, Path]:
    """The images that a table names, by the keys of its prompts; equal prompts count upwards.

    Raises:
        BenchError: the table lacks a column, or names a file that is missing or named before, or a
            prompt that is none of the subject's or has all its images.
    """
    rows = csv.DictReader(read_lines(table, "table of images"), strict=True)
    try:
        lines = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise BenchError(f"{table}: not CSV: {error}") from error
    if lacking := {FILE, PROMPT} - {*(rows.fieldnames or ())}:
        raise BenchError(f"{table}: has no column {min(lacking)!r}: it needs {FILE} and {PROMPT}")
    prompts = external_prompts(params, subject)
    free = _keys(prompts)
    if any(one_line(row[PROMPT] or "") not in free for _, row in lines):
        free = _keys([*prompts, *external_captions(params, subject)])
    asked = Counter({prompt: len(keys) for prompt, keys in free.items()})
    found: dict[str, Path] = {}
    for number, row in lines:
        where, prompt = f"{table}:{number}", one_line(row[PROMPT] or "")
        path = inside(folder, row[FILE] or "", where)
        if not path.is_file():
            raise BenchError(f"{where}: {path}: no such file")
        if path in found.values():
            raise BenchError(f"{where}: {path}: is named twice")
        if not free.get(prompt):
            fault = (
                f"has more than its {asked[prompt]} images"
                if prompt in free
                else f"is none of {subject.name}'s: see `bench samples prompts {subject.name}`"
            )
            raise BenchError(f"{where}: prompt {prompt!r} {fault}")
        found[free[prompt].pop(0)] = path
    return found


def _keys(requests: Iterable[Request]) -> dict[str, list[str]]:
    """The keys of the images of each prompt."""
    keys: dict[str, list[str]] = defaultdict(list)
    for request in requests:
        keys[str(request.record["scored_prompt"])].append(request.key)
    return dict(keys)


def _check_all_there(
    found: Mapping[str, Path], wanted: Sequence[Request], where: Path, params: Params
) -> None:
    """Finds out whether the images are those of the protocol, no more and no fewer.

    Raises:
        BenchError: they are not.
    """
    keys = [request.key for request in wanted]
    asks = f"protocol {params.protocol.name!r} asks for"
    if extra := [path for key, path in found.items() if key not in {*keys}]:
        raise BenchError(
            f"{extra[0]}: {asks} {len(keys)} images, numbered from {_short(keys[0])} to "
            f"{_short(keys[-1])}: rename or remove it ({len(extra)} such files)"
        )
    if missing := [request for request in wanted if request.key not in found]:
        first = missing[0]
        raise BenchError(
            f"{where}: {len(missing)} of the {len(keys)} images are missing that {asks}, such as "
            f"{_short(first.key)}: sample {first.record['sample']} of "
            f"{first.record['scored_prompt']!r}"
        )


def _samples(
    found: Mapping[str, Path], wanted: Sequence[Request], resolution: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The images with what they show, in the order of their keys, and what is odd about them.

    Raises:
        BenchError: one cannot be decoded or is not square.
    """
    samples, others = [], 0
    for request in tqdm(
        sorted(wanted, key=lambda r: r.key), "checking images", disable=None, leave=False
    ):
        path = found[request.key]
        image = read_photo(path)
        if image.width != image.height:
            raise BenchError(
                f"{path}: {image.width} x {image.height} pixels are not square, as all images that "
                "are scored: make it so, or crop it"
            )
        others += image.width != resolution
        record = external_record(request)
        samples.append({"__key__": request.key, "png": png_bytes(image), "json": record})
    same = len(samples) - len({sample["png"] for sample in samples})
    remarks = {
        f"{others} are of another size than {resolution} x {resolution} pixels, as the base makes "
        "them: resized before they are scored": others,
        f"{same} are the same picture as another: was each made from a seed of its own?": same,
    }
    return samples, [remark for remark, count in remarks.items() if count]


def _holds(tar: Path, samples: Sequence[dict[str, Any]]) -> bool:
    """Whether the tar is there, whole, and of these samples in this order."""
    try:
        return tar.is_file() and read_tar(tar) == samples
    except BenchError:
        return False


def _short(key: str) -> str:
    """The name of an image's file, without its suffix: prompt-000-000 is 000-00."""
    part, index, sample = key.split("-")
    return f"{'' if part == 'prompt' else f'{part}-'}{index}-{int(sample):02d}"
