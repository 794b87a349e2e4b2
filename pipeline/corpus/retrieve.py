"""Regularization images: real images whose captions are close to a concept's class noun.

Custom Diffusion, section 3.1: 200 images of the corpus whose caption has a cosine of at least
0.85 with the target prompt in CLIP's text space; if a concept has several prompts, with any of
them. The held-out part of the corpus gives real images for KID by the same threshold, but spread
over as many different captions as there are: what a caption asks for its images have in common,
so that captions are what KID's error rests on.

Captions are compared before any image is fetched; the partitions of the index are searched one
at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest

import numpy as np
import numpy.typing as npt

from pipeline.clip.openclip import load_clip
from pipeline.common.failures import TOO_FEW_IMAGES, FailureError
from pipeline.concepts.concept import DATASETS, load_concept
from pipeline.concepts.shards import one_line
from pipeline.corpus.candidates import (
    HELD_OUT,
    REGULARIZATION,
    Candidate,
    candidates_path,
    least,
    save_candidates,
    wanted,
)
from pipeline.corpus.index import Captions, load_index
from pipeline.corpus.table import TRAIN
from pipeline.settings.profile import RetrieveParams, load_params, profile_folder

SPARES = 10  # candidates for each image that is wanted: many links of the web are dead
KEPT = 100_000  # held-out rows, the nearest ones, that are spread over captions
SHOWN = 3  # captions just below the threshold


def retrieve(concept: str, profile: str) -> None:
    """Writes which images a concept may have to `retrieved/<concept>.parquet`; fetches none.

    See `Search.candidates`, which are written by part in their order, and `save_candidates`.

    Raises:
        BenchError: the index or the CLIP is missing.
        FailureError: the table has too few captions about the class noun.
    """
    started = time.perf_counter()
    params = load_params(profile)
    thing = load_concept(concept)
    queries = queries_of(thing.class_noun, thing.queries, params.retrieve)
    partitions = load_index(params)
    about = repr(queries[0]) + (f" or {len(queries) - 1} more" if len(queries) > 1 else "")
    vectors = load_clip(params.retrieve.clip).encode_texts(queries)
    search = Search(vectors, params.retrieve)
    for captions in partitions:
        search.add(captions)
    parts = search.candidates()
    for part, needed in least(params.retrieve).items():
        if len(parts[part]) < needed:
            rest = just_below(vectors, load_index(params), params.retrieve)
            raise FailureError(
                TOO_FEW_IMAGES,
                f"{concept}: only {len(parts[part])} {part} images have a caption with a "
                f"similarity of at least {params.retrieve.threshold} to {about}, {needed} are "
                f"needed (just below: {', '.join(rest) or 'nothing'}): enlarge the corpus, lower "
                f"retrieve.threshold{'' if thing.queries else ' or reword retrieve.query'} in "
                f"{profile_folder(profile) / 'params.yaml'}, or change "
                f"{'queries' if thing.queries else 'class_noun'} in "
                f"{DATASETS / 'concepts' / concept / 'concept.yaml'}",
            )
    path = candidates_path(params, concept)
    save_candidates(path, parts)
    seconds = time.perf_counter() - started
    print(
        f"retrieve: {len(parts[REGULARIZATION])} candidates for {params.retrieve.images} "
        f"regularization images and {len(parts[HELD_OUT])} for {params.retrieve.held_out_images} "
        f"held-out ones near {about}, {seconds:.0f} s: {path}"
    )


def queries_of(
    class_noun: str, queries: tuple[str, ...], params: RetrieveParams
) -> tuple[str, ...]:
    """The target prompts, to one of which a caption has to be near; `queries` are a concept's."""
    return queries or (params.query.format(class_noun),)


class Search:
    """What is at or above the threshold in the partitions of an index; few of its rows are kept."""

    def __init__(self, vectors: npt.NDArray[np.float32], params: RetrieveParams) -> None:
        """`vectors`: unit vectors of the queries, float32 [n, d]."""
        self.vectors, self.radius, self.wanted = vectors, _radius(params), wanted(params)
        self.kept = {
            part: max(SPARES * count, KEPT if part == HELD_OUT else 0)
            for part, count in self.wanted.items()
        }
        self.found: dict[str, list[Candidate]] = {part: [] for part in self.wanted}

    def add(self, captions: Captions) -> None:
        """Searches a partition.

        A row's similarity is that to the nearest of the queries.
        """
        _, similarities, rows = captions.index.range_search(self.vectors, self.radius)
        order = np.argsort(rows, kind="stable")
        rows, first = np.unique(rows[order], return_index=True)
        if not len(rows):
            return
        similarities = np.maximum.reduceat(similarities[order], first)
        new: dict[str, list[Candidate]] = {part: [] for part in self.found}
        for similarity, record in zip(similarities, captions.metadata.take(rows).to_pylist()):
            part = REGULARIZATION if record.pop("split") == TRAIN else HELD_OUT
            new[part].append(Candidate(round(float(similarity), 4), **record))
        for part, some in new.items():
            if some:
                self.found[part] = _nearest(self.found[part] + some, self.kept[part])

    def candidates(self) -> dict[str, list[Candidate]]:
        """By part: what is taken, in this order, and then what may replace it.

        No URL is there twice. Of the regularization images the nearest come first, equally near
        ones in the order of the table; the held-out ones are `spread` over captions, and so are
        those that may replace them. There are at most SPARES for each image that is wanted.
        """
        near = self.found[HELD_OUT]
        chosen = spread(near, self.wanted[HELD_OUT])
        rows = {one.row for one in chosen}
        others = [one for one in near if one.row not in rows]
        spares = spread(others, (SPARES - 1) * self.wanted[HELD_OUT])
        return {REGULARIZATION: list(self.found[REGULARIZATION]), HELD_OUT: chosen + spares}


def _radius(params: RetrieveParams) -> float:
    """Searches take what is above the radius, strictly."""
    return float(np.nextafter(np.float32(params.threshold), np.float32(0)))


def _nearest(found: list[Candidate], most: int) -> list[Candidate]:
    """The nearest of them, equally near ones in the order of the table, no URL twice."""
    by_url: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda one: (-one.similarity, one.row)):
        by_url.setdefault(one.url, one)
    return list(islice(by_url.values(), most))


def just_below(
    vectors: npt.NDArray[np.float32], partitions: Iterable[Captions], params: RetrieveParams
) -> list[str]:
    """The captions that the threshold just leaves out, and their similarities, in words."""
    nearest: dict[str, float] = {}
    for captions in partitions:
        there = captions.index.reconstruct_n(0, captions.index.ntotal)
        similarities = (there @ vectors.T).max(axis=1)
        below = np.flatnonzero(similarities <= _radius(params))
        for row in below[np.argsort(-similarities[below], kind="stable")]:
            caption = captions.metadata["caption"][int(row)].as_py()
            nearest[caption] = max(nearest.get(caption, -1.0), float(similarities[row]))
            if len(nearest) >= 2 * SHOWN:
                break
        nearest = dict(sorted(nearest.items(), key=lambda item: -item[1])[:SHOWN])
    return [f"{round(similarity, 4)} {caption!r}" for caption, similarity in nearest.items()]


def spread(found: Sequence[Candidate], most: int) -> list[Candidate]:
    """As many as `most` of them, of as many different captions as possible.

    With more captions than are wanted, one image of each of `most` captions, at equal steps from
    the nearest caption on. With fewer, the first image of every caption, then the second of each
    that has one, and so on.

    Args:
        found: nearest first.
        most: how many are wanted.
    """
    by_caption: dict[str, list[Candidate]] = {}
    for one in found:
        by_caption.setdefault(one_line(one.caption), []).append(one)
    captions = list(by_caption.values())
    if len(captions) > most:
        captions = [captions[i * len(captions) // most] for i in range(most)]
    rounds = chain.from_iterable(zip_longest(*captions))
    return list(islice((one for one in rounds if one is not None), most))
