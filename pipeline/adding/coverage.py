"""Whether a corpus has enough captions about a class noun, told before any stage runs.

Counted as stage `retrieve` counts: by the index if there is one, and otherwise, as a drawn world's
captions are known without its pictures, by captions that are embedded here and now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError
from pipeline.common.places import repro_command
from pipeline.corpus.candidates import least
from pipeline.corpus.index import Captions, has_index, load_index
from pipeline.corpus.retrieve import Search, queries_of
from pipeline.corpus.table import HELD_OUT, TRAIN
from pipeline.settings.profile import Params, WorldParams
from pipeline.toyland.world.corpus import captioned_scene
from pipeline.toyland.world.scenes import CATEGORIES

NEAREST = 3  # class nouns that are named in place of one without captions
SHORT = 1500  # different captions that are embedded first
CHECKED, TOLERANCE = 8, 1e-3  # captions that tell whether an index is of this CLIP
PARTS = {"regularization": "captions", "held_out": "held-out ones"}


@dataclass(frozen=True)
class Coverage:
    """What a corpus has about one class noun."""

    queries: tuple[str, ...]
    found: dict[str, int]  # different URLs by part, at most as many as are wanted
    needed: dict[str, int]  # by part
    threshold: float
    instead: tuple[str, ...] = ()  # the nearest class nouns that have enough, if this one has not

    @property
    def enough(self) -> bool:
        """Whether stage `retrieve` will find what it needs."""
        return all(self.found[part] >= count for part, count in self.needed.items())

    def __str__(self) -> str:
        counts = " and ".join(
            f"{self.found[part]} {what} ({self.needed[part]} needed)"
            for part, what in PARTS.items()
        )
        more = f" or {len(self.queries) - 1} more" if len(self.queries) > 1 else ""
        text = f"{counts} within cosine {self.threshold} of {self.queries[0]!r}{more}"
        if self.enough:
            return text
        return f"{text}; nearest class nouns with enough: {', '.join(self.instead) or 'none'}"


def can_be_known(params: Params) -> bool:
    """Whether captions can be counted by now."""
    return params.world is not None or has_index(params)


def ways_out(params: Params) -> str:
    """What one can do about a class noun that lacks captions."""
    elsewhere = (
        "a profile with another corpus, such as `paper`" if params.world else "more captions"
    )
    return f"take another class noun, or {elsewhere}, or a lower retrieve.threshold"


def coverage(
    wanted: Mapping[str, Sequence[str]], nouns: Iterable[str], params: Params
) -> dict[str, Coverage]:
    """What the profile's corpus has about some concepts.

    Args:
        wanted: by concept: its queries, see `pipeline.corpus.retrieve.queries_of`.
        nouns: class nouns to name in place of one without captions, beside those of the world.

    Raises:
        BenchError: the CLIP or the index is missing or damaged, or they are not of each other.
    """
    if not can_be_known(params):
        raise BenchError(
            f"{params.runs() / 'index'}: is missing: `{repro_command(params.profile)}` makes it"
        )
    clip = load_clip(params.retrieve.clip)
    known = dict.fromkeys([*nouns, *(CATEGORIES if params.world else ())])
    queries = {noun: queries_of(noun, (), params.retrieve) for noun in known}
    others = {
        noun: Search(clip.encode_texts(some), params.retrieve) for noun, some in queries.items()
    }
    asked = {
        name: Search(clip.encode_texts(some), params.retrieve) for name, some in wanted.items()
    }
    for captions in _captions(params, clip):
        for search in (*asked.values(), *others.values()):
            search.add(captions)
        if all(_enough(search, params) for search in asked.values()):
            break
    coverages = {name: _coverage(wanted[name], search, params) for name, search in asked.items()}
    instead = [noun for noun, search in others.items() if _enough(search, params)]
    for name, one in coverages.items():
        if instead and not one.enough:
            vectors = np.concatenate([others[noun].vectors for noun in instead])
            nearness = (asked[name].vectors @ vectors.T).max(axis=0)
            nearest = np.argsort(-nearness, kind="stable")[:NEAREST]
            coverages[name] = replace(one, instead=tuple(instead[n] for n in nearest))
    return coverages


def _coverage(queries: Sequence[str], search: Search, params: Params) -> Coverage:
    counts = {part: len(found) for part, found in search.found.items()}
    found = {part: min(counts[part], most) for part, most in search.wanted.items()}
    return Coverage(tuple(queries), found, least(params.retrieve), params.retrieve.threshold)


def _enough(search: Search, params: Params) -> bool:
    return _coverage((), search, params).enough


def _captions(params: Params, clip: Clip) -> Iterator[Captions]:
    """The captions that stage `retrieve` will see, in parts; the nearest first if all take long."""
    index = load_index(params) if has_index(params) else None
    first = next(index, None) if index else None
    if index and first and _made_with(clip, first):
        yield first
        yield from index
    elif params.world:
        yield from _drawn(params.world, clip)
    else:
        raise BenchError(
            f"{params.runs() / 'index'}: was made with another CLIP than {params.retrieve.clip}: "
            f"run `{repro_command(params.profile)}` to make it again"
        )


def _made_with(clip: Clip, captions: Captions) -> bool:
    """Whether an index has the vectors that this CLIP gives: either may be newer."""
    some = captions.metadata["caption"][:CHECKED].to_pylist()
    vectors = clip.encode_texts(some)
    if captions.index.d != vectors.shape[1]:
        return False
    there = captions.index.reconstruct_n(0, len(some))
    return bool(np.allclose(there, vectors, atol=TOLERANCE))


def _drawn(world: WorldParams, clip: Clip) -> Iterator[Captions]:
    """The captions of a drawn world, which need no table: first the short ones, then the others.

    Short captions are near a class noun, so that they are mostly enough; to embed all takes long.
    """
    scenes = [(TRAIN, i) for i in range(world.images)]
    scenes += [(HELD_OUT, i) for i in range(world.held_out)]
    rows: list[dict[str, Any]] = []
    for row, (split, i) in enumerate(tqdm(scenes, "captions", leave=False, disable=None)):
        caption = captioned_scene(world.seed, split, i)[1]
        # All pictures are different.
        rows.append({"row": row, "url": f"{split} {i}", "caption": caption, "split": split})
    texts = sorted({row["caption"] for row in rows}, key=lambda text: (len(text), text))
    for part in (texts[:SHORT], texts[SHORT:]):
        numbers = {text: i for i, text in enumerate(part)}
        vectors = clip.encode_texts(part)
        some = [row for row in rows if row["caption"] in numbers]
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors[[numbers[row["caption"]] for row in some]])
        if some:
            yield Captions(index, pa.Table.from_pylist(some))
