"""Regularization images: real images whose captions are close to a concept's class noun.

Custom Diffusion, section 3.1: 200 images of the corpus whose caption has a cosine of at least
0.85 with the target prompt in CLIP's text space; if a concept has several prompts, with any of
them. The held-out part of the corpus gives real images for KID by the same threshold, but spread
over as many different captions as there are: what a caption asks for its images have in common,
so that captions are what KID's error rests on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.clip.openclip import load_clip
from pipeline.common.errors import BenchError
from pipeline.common.failures import TOO_FEW_IMAGES, FailureError
from pipeline.common.files import read_tar, write_tar
from pipeline.common.places import repro_command_for
from pipeline.concepts.concept import DATASETS, load_concept
from pipeline.concepts.shards import one_line
from pipeline.corpus.fetch import HELD_OUT, TRAIN, shard_of
from pipeline.corpus.index import INDEX, METADATA
from pipeline.settings.profile import Params, RetrieveParams, load_params, profile_folder

LEAST_HELD_OUT = 20  # fewer real images say little about a distribution


@dataclass(frozen=True)
class Match:
    """A sample of the corpus and how near its caption is to the nearest query."""

    similarity: float  # cosine, rounded to four digits
    key: str
    caption: str
    split: str
    sha256: str


def retrieve(concept: str, profile: str) -> None:
    """Writes a concept's regularization and held-out images to `regularization/<concept>.tar`.

    Each sample is copied from the corpus: `png`, `txt` (its caption) and `json` with part
    ("regularization" or "held_out"), similarity, key and sha256. No image occurs twice. Of the
    regularization images the nearest come first, equally near ones in the order of their keys; for
    the held-out ones see `spread`, and theirs also says how many `images` and `captions` there are.

    Raises:
        BenchError: corpus or index are missing.
        FailureError: they hold too few images of the class noun.
    """
    started = time.perf_counter()
    params = load_params(profile)
    thing = load_concept(concept)
    queries = queries_of(thing.class_noun, thing.queries, params.retrieve)
    about = repr(queries[0]) + (f" or {len(queries) - 1} more" if len(queries) > 1 else "")
    captions = load_index(params)
    vectors = load_clip(params.retrieve.clip).encode_texts(queries)
    parts, rest = search(vectors, captions, params.retrieve)
    needed = least(params.retrieve)
    for part, found in parts.items():
        if len(found) < needed[part]:
            raise FailureError(
                TOO_FEW_IMAGES,
                f"{concept}: only {len(found)} {part} images have a caption with a similarity of "
                f"at least {params.retrieve.threshold} to {about}, {needed[part]} are needed "
                f"(just below: {', '.join(rest) or 'nothing'}): enlarge the corpus, lower "
                f"retrieve.threshold{'' if thing.queries else ' or reword retrieve.query'} in "
                f"{profile_folder(profile) / 'params.yaml'}, or change "
                f"{'queries' if thing.queries else 'class_noun'} in "
                f"{DATASETS / 'concepts' / concept / 'concept.yaml'}",
            )
    target = params.runs() / "regularization" / f"{concept}.tar"
    write_tar(target, _samples(parts, params.runs() / "corpus"))
    seconds = time.perf_counter() - started
    print(
        f"retrieve: {len(parts['regularization'])} regularization and {len(parts['held_out'])} "
        f"held-out images (of {_captions(parts['held_out'])} captions) near {about}, "
        f"similarities down to "
        f"{parts['regularization'][-1].similarity}, {seconds:.0f} s: {target}"
    )


def queries_of(
    class_noun: str, queries: tuple[str, ...], params: RetrieveParams
) -> tuple[str, ...]:
    """The target prompts, to one of which a caption has to be near; `queries` are a concept's."""
    return queries or (params.query.format(class_noun),)


def least(params: RetrieveParams) -> dict[str, int]:
    """How many images a class noun needs, by part."""
    return {
        "regularization": params.images,
        "held_out": min(LEAST_HELD_OUT, params.held_out_images),
    }


@dataclass(frozen=True)
class Captions:
    """The captions of a corpus, to be searched."""

    index: faiss.Index  # inner products with unit vectors, float32
    metadata: pa.Table  # key, caption, split, sha256; row i belongs to vector i


def has_index(params: Params) -> bool:
    """Whether stage `index` ran."""
    return (params.runs() / "index" / INDEX).is_file()


def load_index(params: Params) -> Captions:
    """What stage `index` made.

    Raises:
        BenchError: it is missing or damaged.
    """
    folder = params.runs() / "index"
    if not has_index(params):
        raise BenchError(
            f"{folder / INDEX}: the index is missing: run `{repro_command_for(folder)}` to make it"
        )
    try:
        index = faiss.read_index(str(folder / INDEX))
        metadata = pq.read_table(str(folder / METADATA))
    except (RuntimeError, OSError, pa.ArrowException) as error:
        raise BenchError(
            f"{folder}: the index is damaged ({error}): delete it and run "
            f"`{repro_command_for(folder)}`"
        ) from error
    return Captions(index, metadata)


def search(
    vectors: npt.NDArray[np.float32], captions: Captions, params: RetrieveParams
) -> tuple[dict[str, list[Match]], list[str]]:
    """What is at or above the threshold, and the next three captions in words.

    A sample's similarity is that to the nearest of the queries, and no image is there twice.
    Regularization images are the nearest, held-out ones are `spread` over captions.

    Args:
        vectors: unit vectors of the queries, float32 [n, d].

    Returns:
        The matches by part, at most as many as are wanted, and what is just below the threshold.
    """
    # faiss takes what is above the radius, strictly.
    radius = float(np.nextafter(np.float32(params.threshold), np.float32(0)))
    _, similarities, rows = captions.index.range_search(vectors, radius)
    matches = _matches(captions.metadata, similarities, rows)
    # Many samples may share a caption.
    most = min(len(matches) + 100, captions.index.ntotal)
    nearest, rows = captions.index.search(vectors, most)
    known = {match.key for match in matches}
    rest = _matches(captions.metadata, nearest[nearest <= radius], rows[nearest <= radius])
    rest = [match for match in rest if match.key not in known]
    seen: set[str] = set()
    parts = {
        "regularization": _distinct(matches, TRAIN, seen, params.images),
        "held_out": spread(_distinct(matches, HELD_OUT, seen), params.held_out_images),
    }
    return parts, list(dict.fromkeys(f"{m.similarity} {m.caption!r}" for m in rest))[:3]


def _matches(
    metadata: pa.Table, similarities: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
) -> list[Match]:
    records = metadata.take(rows).to_pylist()
    found = [Match(round(float(s), 4), **record) for s, record in zip(similarities, records)]
    found.sort(key=lambda match: (-match.similarity, match.key))
    # The nearest match of each sample, as several queries may have found it.
    nearest: dict[str, Match] = {}
    for match in found:
        nearest.setdefault(match.key, match)
    return list(nearest.values())


def _distinct(
    matches: list[Match], split: str, seen: set[str], most: int | None = None
) -> list[Match]:
    """The matches of a split whose images are not yet `seen`, the nearest `most`; adds theirs."""
    found: list[Match] = []
    for match in matches:
        if (
            match.split == split
            and match.sha256 not in seen
            and (most is None or len(found) < most)
        ):
            found.append(match)
            seen.add(match.sha256)
    return found


def spread(matches: list[Match], most: int) -> list[Match]:
    """As many as `most` of the matches, of as many different captions as possible.

    With more captions than are wanted, one image of each of `most` captions, at equal steps from
    the nearest caption on. With fewer, the first image of every caption, then the second of each
    that has one, and so on.

    Args:
        matches: nearest first.
        most: how many are wanted.
    """
    by_caption: dict[str, list[Match]] = {}
    for match in matches:
        by_caption.setdefault(one_line(match.caption), []).append(match)
    captions = list(by_caption.values())
    if len(captions) > most:
        captions = [captions[i * len(captions) // most] for i in range(most)]
    rounds = chain.from_iterable(zip_longest(*captions))
    return list(islice((match for match in rounds if match is not None), most))


def _captions(matches: list[Match]) -> int:
    """How many different captions they have."""
    return len({one_line(match.caption) for match in matches})


def _samples(parts: dict[str, list[Match]], corpus: Path) -> list[dict[str, Any]]:
    """The samples of the matches, read from the corpus."""
    keys: dict[str, set[str]] = {}
    for match in chain(*parts.values()):
        keys.setdefault(shard_of(match.key), set()).add(match.key)
    images: dict[str, bytes] = {}
    for name, some in tqdm(sorted(keys.items()), "retrieve", leave=False):
        samples = read_tar(corpus / name, some)
        images |= {sample["__key__"]: sample["png"] for sample in samples}
    samples = []
    for part, matches in parts.items():
        for i, match in enumerate(matches):
            if match.key not in images:
                raise BenchError(
                    f"{corpus / shard_of(match.key)}: sample {match.key} is missing: the corpus is "
                    f"not the one that was indexed: run `{repro_command_for(corpus)}`"
                )
            record: dict[str, object] = {
                "part": part,
                "similarity": match.similarity,
                "key": match.key,
                "sha256": match.sha256,
            }
            if part == "held_out":
                record |= {"images": len(matches), "captions": _captions(matches)}
            sample = {"png": images[match.key], "txt": match.caption, "json": record}
            samples.append({"__key__": f"{part}-{i:04d}", **sample})
    return samples
