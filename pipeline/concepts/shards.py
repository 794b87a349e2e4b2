"""The real images that everything is measured against, as the shards hold them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pipeline.common.errors import BenchError
from pipeline.common.files import read_tar
from pipeline.common.places import repro_command_for
from pipeline.settings.profile import IDENTITY, Params

Sample = dict[str, Any]  # of a shard: "__key__", "png" or "jpg", "txt", "json"


def targets_of(params: Params, concept: str) -> list[Sample]:
    """The concept's target images.

    Raises:
        BenchError: the concept's shard is missing or holds none.
    """
    path = params.runs() / "shards" / f"{concept}.tar"
    targets = [s for s in read_tar(path) if s["__key__"].startswith("target-")]
    if not targets:
        raise BenchError(
            f"{path}: holds no target images: delete it and run `{repro_command_for(path)}`"
        )
    return targets


def held_out_of(params: Params, concept: str) -> list[Sample]:
    """The held-out real images of the concept's class, which no method was trained on.

    Their captions are on one line each.

    Raises:
        BenchError: the shard of regularization images is missing or damaged.
    """
    path = params.runs() / "regularization" / f"{concept}.tar"
    found = [s for s in read_tar(path) if s["json"]["part"] == "held_out"]
    return [sample | {"txt": one_line(sample["txt"])} for sample in found]


def samples_of(
    params: Params,
    method: str,
    subject: str,
    keys: Container[str] | None = None,
    seed: int | None = None,
) -> list[Sample]:
    """The images that a method made of a subject, all or those with these keys.

    Those of the main training, or of the one with that seed.

    Raises:
        BenchError: the shard is missing or damaged, or of another cell or protocol.
    """
    path = params.cell(method, subject, seed) / "samples.tar"
    whose = params.identity(method, subject, seed)
    samples = read_tar(path, keys)
    for sample in samples:
        record = sample.get("json")
        for field in IDENTITY:
            said = record.get(field) if isinstance(record, dict) else None
            if said != (name := whose.get(field)):
                said, name = ("(none)" if word is None else word for word in (said, name))
                raise BenchError(
                    f"{path}: sample {sample['__key__']} is of {field} {said}, not "
                    f"{name}: delete the file and run `{repro_command_for(path)}`"
                )
    return samples


def image_of(sample: Sample) -> bytes:
    """The sample's image, encoded.

    Raises:
        BenchError: it has none.
    """
    image = sample.get("png", sample.get("jpg"))
    if not isinstance(image, bytes):
        raise BenchError(f"sample {sample['__key__']!r} holds no image: make its shard again")
    return image


def one_line(caption: str) -> str:
    """The caption with each run of white space as one space."""
    return " ".join(caption.split())
