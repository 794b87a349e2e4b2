"""Prompt-to-prompt editing (Hertz et al., 2022) with a customized model (paper, Fig. 10).

Two prompts are sampled from the same noise without randomness in between. During the first steps
the second one takes over the attention of the first for the words that both have, and for a word
that replaces another: so the layout stays, and what the words say changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from eval.analyses.common import (
    Judge,
    adapter_of,
    folder_of,
    picture_table,
    write_results,
)
from eval.analyses.editing import Edit, Parameters
from eval.analyses.probes import CROSS, SELF, Word, attention_through, words_of
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import load_concept
from pipeline.models.adapter import applied
from pipeline.models.base import Base, load_base
from pipeline.sample.sampler import sample
from pipeline.settings.profile import SamplerParams, load_params

MOST_QUERIES = 256  # self-attention of finer layers is not replaced, as in the released code


def token_mapping(source: Sequence[Word], target: Sequence[Word], context: int) -> Tensor:
    """What each token of the target takes from the source's attention, float32 [source, target].

    Words that both prompts have, and words that replace as many others, take that of their
    counterpart; if they have different numbers of tokens, in equal parts. Tokens of a column of
    zeros, those of added words, keep their own. The end and what follows it take the source's.

    Args:
        source: words and the places of their tokens.
        target: words and the places of their tokens.
        context: tokens of an encoded text.
    """
    matrix = torch.zeros(context, context)
    matrix[0, 0] = 1
    blocks = SequenceMatcher(None, [w for w, _ in source], [w for w, _ in target], autojunk=False)
    for kind, a, a_end, b, b_end in blocks.get_opcodes():
        if kind == "equal" or (kind == "replace" and a_end - a == b_end - b):
            for (_, ours), (_, theirs) in zip(source[a:a_end], target[b:b_end]):
                if len(ours) == len(theirs):
                    matrix[ours, theirs] = 1
                else:
                    matrix[np.ix_(ours, theirs)] = 1 / len(theirs)
    ends = [1 + sum(len(tokens) for _, tokens in text) for text in (source, target)]
    for place in range(ends[1], context):
        matrix[min(ends[0] + place - ends[1], context - 1), place] = 1
    return matrix


class Replacement:
    """Gives the second half of a batch's prompted images the attention of the first half."""

    def __init__(self, mapping: Tensor, cross_steps: int, self_steps: int) -> None:
        self.mapping, self.mapped = mapping, mapping.any(0)
        self.cross_steps, self.self_steps = cross_steps, self_steps
        self.step = -1

    def __call__(self, name: str, attention: Tensor) -> Tensor:
        """A layer's probabilities [4 n, heads, queries, keys], of which the last n are new."""
        plain, source, target = attention.split((len(attention) // 2, *[len(attention) // 4] * 2))
        if name.endswith(CROSS) and self.step < self.cross_steps:
            taken = source @ self.mapping.to(source)
            target = torch.where(self.mapped.to(source.device), taken, target)
        elif name.endswith(SELF) and self.step < self.self_steps:
            target = source if source.shape[2] <= MOST_QUERIES else target
        return torch.cat([plain, source, target])


@contextmanager
def replaced(base: Base, replacement: Replacement) -> Iterator[None]:
    """Installs the replacement, which counts the denoiser's steps, while it lasts."""

    def count(*_: object) -> None:
        replacement.step += 1

    handle = base.unet.register_forward_pre_hook(count)
    try:
        with attention_through(base.unet, replacement):
            yield
    finally:
        handle.remove()


def edit(
    base: Base,
    source: str,
    target: str,
    seeds: Sequence[int],
    params: SamplerParams,
    cross_share: float,
    self_share: float,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Images of the source prompt, and what the target prompt makes of each.

    Args:
        base: with the adapter applied.
        source: a prompt.
        target: a prompt with other words, or with more.
        seeds: of the start noise; eta is 0 whatever `params` say.
        params: how to sample.
        cross_share: of the steps, from the first one on, in which cross-attention is replaced.
        self_share: the same for self-attention.
    """
    mapping = token_mapping(words_of(base, source), words_of(base, target), base.texts.context)
    steps = [round(share * params.steps) for share in (cross_share, self_share)]
    count = len(seeds)
    prompts = [source] * count + [target] * count
    with replaced(base, Replacement(mapping, *steps)):
        images = sample(base, prompts, [*seeds, *seeds], params.model_copy(update={"eta": 0.0}))
    return images[:count], images[count:]


def analyse_editing(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `editing.csv`, and a sheet of the images before and after each edit.

    Raises:
        BenchError: the profile does not run it, or the adapter is missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    concept = load_concept(about.concept)
    adapter = adapter_of(params, about.method, about.concept)
    base, judge = load_base(params.base), Judge(params)
    (reference,) = adapter.provenance.references
    rows: list[pd.DataFrame] = []
    sheet: dict[str, list[Image.Image]] = {}
    for number, wanted in enumerate(about.edits):
        protocol = params.protocol.name
        seeds = [seed_of(protocol, "edit", wanted.source, i) for i in range(about.images)]
        source, target = (text.format(reference) for text in (wanted.source, wanted.target))
        with applied(base, adapter):
            before, after = edit(
                base, source, target, seeds, params.sampler(), about.cross_share, about.self_share
            )
        asked = [wanted.target.format(concept.class_noun)] * about.images
        for when, images in (("before", before), ("after", after)):
            frame = {
                "edit": number,
                "source": wanted.source,
                "target": wanted.target,
                "when": when,
                "sample": range(about.images),
                "text_alignment": judge.text_alignment(images, asked),
                "image_alignment": judge.image_alignment(images, about.concept),
                "change": [_change(a, b) for a, b in zip(before, images)],
            }
            rows.append(pd.DataFrame(frame))
        sheet |= _sheet(wanted, before, after)
    table = pd.concat(rows, ignore_index=True)
    numbers = ["text_alignment", "image_alignment", "change"]
    means = table.groupby(["target", "when"], sort=False)[numbers].mean().reset_index()
    for row in means.to_dict("records"):
        print(
            f"editing: {row['target']!r}, {row['when']}: text-alignment {row['text_alignment']:.3f}"
            f", image-alignment {row['image_alignment']:.3f}"
        )
    figures = {"editing": picture_table(sheet)}
    return write_results(folder_of(params, "editing"), {"editing": table}, figures)


def _change(first: Image.Image, second: Image.Image) -> float:
    """The mean difference of two images' pixels, from 0 to 1."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(np.abs(a - b).mean() / 255)


def _sheet(
    wanted: Edit, before: Sequence[Image.Image], after: Sequence[Image.Image]
) -> dict[str, list[Image.Image]]:
    return {wanted.source.format("V*"): [*before], f"→ {wanted.target.format('V*')}": [*after]}
