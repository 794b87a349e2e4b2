"""Whether a corpus has enough captions about a class noun, told before any stage runs.

Counted as stage `retrieve` counts: by the index if there is one, and otherwise, as a drawn world's
captions are known without its pictures, by captions that are embedded here and now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import faiss
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError
from pipeline.common.places import repro_command
from pipeline.corpus.fetch import HELD_OUT, TRAIN
from pipeline.corpus.retrieve import Captions, has_index, least, load_index, queries_of, search
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
    found: dict[str, int]  # different images by part, at most as many as are wanted
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
    needed, threshold = least(params.retrieve), params.retrieve.threshold

    def found(queries: Sequence[str], captions: Captions) -> Coverage:
        parts, _ = search(clip.encode_texts(queries), captions, params.retrieve)
        counts = {part: len(matches) for part, matches in parts.items()}
        return Coverage(tuple(queries), counts, needed, threshold)

    for captions in _captions(params, clip):
        coverages = {name: found(queries, captions) for name, queries in wanted.items()}
        if all(one.enough for one in coverages.values()):
            return coverages
    known = dict.fromkeys([*nouns, *(CATEGORIES if params.world else ())])
    asked = {noun: found(queries_of(noun, (), params.retrieve), captions) for noun in known}
    others = [noun for noun, one in asked.items() if one.enough]
    vectors = clip.encode_texts([asked[noun].queries[0] for noun in others])
    for name, one in coverages.items():
        if not one.enough:
            nearness = (clip.encode_texts(one.queries) @ vectors.T).max(axis=0)
            nearest = np.argsort(-nearness, kind="stable")[:NEAREST]
            coverages[name] = replace(one, instead=tuple(others[n] for n in nearest))
    return coverages


def _captions(params: Params, clip: Clip) -> Iterator[Captions]:
    """The captions that stage `retrieve` will see; a part of them first, if all take long."""
    captions = load_index(params) if has_index(params) else None
    if captions is not None and _made_with(clip, captions):
        yield captions
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
    """The captions of a drawn world, without drawing its pictures: first the short, then all.

    Short captions are near a class noun, so that they are mostly enough; to embed all takes long.
    """
    rows = []
    for split, count in ((TRAIN, world.images), (HELD_OUT, world.held_out)):
        for i in tqdm(range(count), f"captions: {split}", leave=False, disable=None):
            name = f"{split} {i}"  # stands for key and digest: all pictures are different
            caption = captioned_scene(world.seed, split, i)[1]
            rows.append({"key": name, "caption": caption, "split": split, "sha256": name})
    rows.sort(key=lambda row: (len(row["caption"]), row["caption"]))
    texts = list(dict.fromkeys(row["caption"] for row in rows))
    metadata = pa.Table.from_pylist(rows)
    index = faiss.IndexFlatIP(clip.encode_texts(texts[:1]).shape[1])
    for part in (texts[:SHORT], texts[SHORT:]):
        numbers = {text: i for i, text in enumerate(part)}
        vectors = clip.encode_texts(part)
        index.add(vectors[[numbers[row["caption"]] for row in rows if row["caption"] in numbers]])
        yield Captions(index, metadata[: index.ntotal])
