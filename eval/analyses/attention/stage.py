"""Where the words of a composition look (paper, appendix C, Fig. 19).

Compositions fail where the model attends to both nouns in the same place, as the pretrained one
does already. Measured for the composition with the best and the one with the worst image-alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eval.analyses.attention import Parameters
from eval.analyses.common import (
    adapter_of,
    folder_of,
    made,
    picture_table,
    write_results,
)
from eval.analyses.probes import CROSS, Word, attention_through, words_of
from eval.results import estimates
from eval.scores.reading import failed_cells, load_scores, main_training
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.places import DEFAULT_PROFILE, repro_command
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import load_subject
from pipeline.models.adapter import Adapter, applied
from pipeline.models.base import Base, load_base
from pipeline.sample.sampler import sample
from pipeline.settings.profile import Params, SamplerParams, load_grid, load_params

Map = npt.NDArray[np.float64]
THRESHOLD = 0.3


class Recorder:
    """Adds up the cross-attention of the prompted half of each batch, the mean over heads."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # by layer: [images, queries, keys]

    def __call__(self, name: str, attention: Tensor) -> Tensor:
        """Looks at a layer's probabilities [images, heads, queries, keys]; changes nothing."""
        mean = attention[len(attention) // 2 :].float().mean(1)
        self.sums[name] = self.sums[name] + mean if name in self.sums else mean
        return attention


def token_maps(layers: Sequence[Tensor]) -> Tensor:
    """The mean over layers of attention to each token, [images, tokens, side, side].

    Args:
        layers: [images, queries, tokens] each, whose queries are a square of pixels; smaller
            squares are enlarged to the largest one.
    """
    side = max(round(layer.shape[1] ** 0.5) for layer in layers)
    maps = []
    for layer in layers:
        own = round(layer.shape[1] ** 0.5)
        square = layer.transpose(1, 2).unflatten(2, (own, own))
        maps.append(F.interpolate(square, (side, side), mode="bilinear", align_corners=False))
    return torch.stack(maps).mean(0)


def cosine(first: Map, second: Map) -> float:
    """The cosine of two maps as vectors: 1 where words look alike, 0 where they never meet."""
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float((first * second).sum() / norms)


def overlap(first: Map, second: Map, threshold: float = THRESHOLD) -> float:
    """The intersection over union of where each map exceeds that share of its own maximum."""
    a, b = first > threshold * first.max(), second > threshold * second.max()
    return float((a & b).sum() / (a | b).sum())


def find(prompt: Sequence[Word], part: str) -> list[Word]:
    """The first place of several words in a prompt.

    Raises:
        BenchError: it does not hold them.
    """
    wanted = part.split()
    for start in range(len(prompt) - len(wanted) + 1):
        here = list(prompt[start : start + len(wanted)])
        if [word for word, _ in here] == wanted:
            return here
    text = " ".join(word for word, _ in prompt)
    raise BenchError(f"params.yaml: analyses.attention.prompt: {part!r} is not in {text!r}")


def word_map(maps: Tensor, found: Sequence[Word]) -> Map:
    """The mean map [side, side] of the tokens of words, from one image's [tokens, side, side]."""
    places = [place for _, tokens in found for place in tokens]
    return maps[places].mean(0).double().cpu().numpy()


def recorded(
    base: Base, prompt: str, seeds: Sequence[int], params: SamplerParams
) -> tuple[list[Image.Image], Tensor]:
    """Images of a prompt and their token maps [images, tokens, side, side].

    The maps are means over timesteps, heads and layers.
    """
    recorder = Recorder()
    with attention_through(base.unet, recorder, [CROSS]):
        images = sample(base, [prompt] * len(seeds), seeds, params)
    return images, token_maps([total / params.steps for total in recorder.sums.values()])


def best_and_worst(profile: str, method: str) -> dict[str, float]:
    """Image-alignment of the method's compositions with the highest and the lowest.

    Raises:
        BenchError: none was scored.
        FailureError: none was, as they could not be made.
    """
    grid = load_grid(profile)
    scores = main_training(load_scores(profile))
    found = {
        subject: estimate.mean
        for (name, subject, metric), estimate in estimates(scores).items()
        if name == method and metric == "image_alignment" and subject in grid.compositions
    }
    for (name, subject), failure in failed_cells(profile).items():
        if not found and name == method and subject in grid.compositions:
            raise FailureError(*failure)
    if not found:
        raise BenchError(
            f"no composition of {method!r} was scored yet: run `{repro_command(profile)}`"
        )
    chosen = (max(found, key=found.__getitem__), min(found, key=found.__getitem__))
    return {subject: found[subject] for subject in chosen}


def analyse_attention(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `attention.csv` and a sheet of maps for each of the two compositions.

    Raises:
        BenchError: the profile does not run it, or scores or adapters are missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    chosen = best_and_worst(profile, about.methods[0])
    base = load_base(params.base)
    rows, sheets = [], {}
    for subject, alignment in chosen.items():
        nouns = [concept.class_noun for concept in load_subject(subject, profile).concepts]
        sheet: dict[str, list[Image.Image | Map]] = {}
        adapters = made(about.methods, partial(adapter_of, params, subject=subject))
        for method, adapter in adapters:
            maps = _maps(base, adapter, params, about, nouns)
            for number, (image, (first, second)) in enumerate(maps):
                rows.append(
                    {
                        "subject": subject,
                        "image_alignment": alignment,
                        "method": method,
                        "sample": number,
                        "cosine": cosine(first, second),
                        "iou": overlap(first, second),
                    }
                )
                sheet[f"{words(method)} {number + 1}"] = [image, first, second]
        sheets[subject.replace("+", "_")] = picture_table(sheet, ["image", *nouns])
    table = pd.DataFrame(rows)
    means = table.groupby(["subject", "method"], sort=False)[["cosine", "iou"]].mean()
    for row in means.reset_index().to_dict("records"):
        print(
            f"attention: {row['method']} on {row['subject']}: "
            f"cosine of the nouns {row['cosine']:.3f}, IoU {row['iou']:.3f}"
        )
    return write_results(folder_of(params, "attention"), {"attention": table}, sheets)


def _maps(
    base: Base, adapter: Adapter, params: Params, about: Parameters, nouns: Sequence[str]
) -> list[tuple[Image.Image, list[Map]]]:
    """Each image of the prompt, with the map of each noun (of what stands for it, without one)."""
    references = adapter.provenance.references
    prompt = about.prompt.format(*references)
    subject = adapter.provenance.subject
    seeds = [
        seed_of(params.protocol.name, "attention", subject, about.prompt, i)
        for i in range(about.images)
    ]
    with applied(base, adapter):
        images, maps = recorded(base, prompt, seeds, params.sampler(2))
        text = words_of(base, prompt)
    # The noun lies behind the modifier token; where a word of its own replaces it, it is that.
    of_references = [find(text, reference) for reference in references]
    found = [
        place[-len(noun.split()) :] if reference.endswith(noun) else place
        for place, reference, noun in zip(of_references, references, nouns)
    ]
    return [
        (image, [word_map(tokens, place) for place in found]) for image, tokens in zip(images, maps)
    ]
