"""Shards: all that a concept is learned from, in one file."""

from __future__ import annotations

import time

from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, read_tar, sha256, write_tar
from pipeline.concepts.concept import load_concept
from pipeline.concepts.photos import read_photo, square
from pipeline.settings.profile import load_params, profile_folder


def shard(concept: str, profile: str) -> None:
    """Writes a concept's target and regularization images to `shards/<concept>.tar`.

    Targets are cropped to their central square and resized (bicubic) to the base model's
    resolution; their `json` has source (the file), its sha256, width and height. Regularization
    samples are copied as they are.

    Raises:
        BenchError: an image cannot be decoded, the regularization images are missing, or the
            corpus has another resolution than the base model.
    """
    started = time.perf_counter()
    params = load_params(profile)
    resolution = params.base.resolution
    if params.corpus.resolution != resolution:
        raise BenchError(
            f"{profile_folder(profile) / 'params.yaml'}: corpus.resolution is "
            f"{params.corpus.resolution}, but base.resolution is {resolution}: make them equal"
        )
    samples = []
    for i, path in enumerate(load_concept(concept).images):
        image = read_photo(path)
        record = {
            "source": path.as_posix(),
            "sha256": sha256(path),
            "width": image.width,
            "height": image.height,
        }
        png = png_bytes(square(image, resolution))
        samples.append({"__key__": f"target-{i:04d}", "png": png, "json": record})
    targets = len(samples)
    regularization = read_tar(params.runs() / "regularization" / f"{concept}.tar")
    samples += [s for s in regularization if s["json"]["part"] == "regularization"]
    path = params.runs() / "shards" / f"{concept}.tar"
    write_tar(path, samples)
    seconds = time.perf_counter() - started
    print(
        f"shard: {targets} target and {len(samples) - targets} regularization images, "
        f"{seconds:.0f} s: {path}"
    )
