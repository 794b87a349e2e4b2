"""Stage `sample` of methods whose images were made elsewhere: takes what the protocol asks for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.common.failures import NOT_IMPORTED, FailureError
from pipeline.common.files import png_bytes, read_tar, write_tar
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import Subject, load_subject
from pipeline.concepts.photos import square
from pipeline.concepts.shards import image_of, one_line
from pipeline.sample.requests import (
    Request,
    caption_requests,
    cell_requests,
    held_out_captions,
)
from pipeline.settings.external import external_tar
from pipeline.settings.profile import Params, load_params

Record = dict[str, str | int]


def take_cell(method: str, subject: str, profile: str = DEFAULT_PROFILE) -> Path:
    """Writes `samples.tar` of a cell from `datasets/external/<method>/<subject>.tar`.

    Images are resized to the base's resolution. If those of captions are not those of all the
    profile's held-out real images, they are left out: KID is not measured then.

    Raises:
        BenchError: the tar, or the shard of regularization images, is damaged.
        FailureError: the tar is missing, or lacks an image that the protocol asks for now.
    """
    params, thing = load_params(profile), load_subject(subject, profile)
    params.protocol.check_prompts(subject, thing.prompts)
    path = external_tar(method, subject)
    again = f"`bench samples import {method} {subject} FOLDER --replace`"
    if not path.is_file():
        raise FailureError(NOT_IMPORTED, f"{path}: is missing: {again.replace(' --replace', '')}")
    try:
        there = {sample["__key__"]: sample for sample in read_tar(path)}
    except BenchError as error:
        raise BenchError(f"{path}: is damaged: import the images again with {again}") from error
    prompts, captions = external_prompts(params, thing), external_captions(params, thing)
    if lacking := _lacking(prompts, there):
        first = lacking[0].record
        raise FailureError(
            NOT_IMPORTED,
            f"{path}: lacks {len(lacking)} of the {len(prompts)} images that protocol "
            f"{params.protocol.name!r} asks for, such as sample {first['sample']} of "
            f"{first['scored_prompt']!r}: {again}",
        )
    if captions and _lacking(captions, there):
        print(f"{path}: no KID, as it has not the images of all {len(captions)} held-out captions")
        captions = []
    requests, whose = [*prompts, *captions], params.identity(method, subject)
    write_tar(
        target := params.cell(method, subject) / "samples.tar",
        [
            {
                "__key__": request.key,
                "png": _resized(there[request.key], params.base.resolution),
                "json": external_record(request) | whose,
            }
            for request in requests
        ],
    )
    print(f"sample: {len(requests)} images of {method} on {subject} from {path} -> {target}")
    return target


def external_prompts(params: Params, subject: Subject) -> list[Request]:
    """The images of a subject's prompts, in words for anybody: with class nouns."""
    return cell_requests(params, subject, [c.class_noun for c in subject.concepts], [])


def external_captions(params: Params, subject: Subject) -> list[Request]:
    """The images of held-out captions that KID needs, each caption on one line.

    Raises:
        BenchError: the shard of regularization images is missing or damaged.
        FailureError: it could not be made.
    """
    captions = [one_line(caption) for caption in held_out_captions(params, subject)]
    protocol = params.protocol
    count = protocol.sample.images_per_caption
    return caption_requests(protocol.name, subject.name, captions, count)


def external_record(request: Request) -> Record:
    """What is kept beside an image that was made elsewhere."""
    return {k: request.record[k] for k in ("part", "prompt_index", "sample", "scored_prompt")}


def _lacking(
    requests: Sequence[Request], there: Mapping[str, Mapping[str, Any]]
) -> Sequence[Request]:
    """The requests without an image, or with one of another prompt."""
    return [r for r in requests if there.get(r.key, {}).get("json") != external_record(r)]


def _resized(sample: dict[str, Any], side: int) -> bytes:
    """Its image as a square of so many pixels, as PNG."""
    with Image.open(io.BytesIO(image_of(sample))) as image:
        return png_bytes(square(image, side))
