"""How much disk a profile's grid takes: the sum over what its cells are going to write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.methods import (
    Chained,
    Continued,
    How,
    Merged,
    Trained,
    load_method,
    training_seeds,
)
from pipeline.methods.bundles import Bundled
from pipeline.settings.external import is_external
from pipeline.settings.profile import Grid, MethodParams, Params

if TYPE_CHECKING:
    from torch import nn

BYTES = {"float32": 4, "bfloat16": 2}
# Of a PNG of a photograph, by estimate: it is hardly smaller than its pixels, three bytes each.
PNG_BYTES_PER_PIXEL = 1.7
# Of a concept and of a composition, as in the paper; their files need not be there yet.
PROMPTS = {False: 20, True: 8}
MOMENTS = 3  # what trains, and two moments: the state of a long training, in float32


def unet_of(config: Path) -> nn.Module:
    """A UNet without values, from its configuration in diffusers' format."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(json.loads(config.read_text(encoding="utf-8")))


def grid_bytes(params: Params, grid: Grid, unet: nn.Module) -> int:
    """What the cells of a grid write: adapters and images, and the state of one training.

    Shards, the corpus and what methods of other people write are not in it.
    """
    pixel = params.base.resolution**2
    total, state = 0, 0
    for method in grid.all_methods():
        if is_external(method):
            continue
        for concepts in map(grid.concepts_of, grid.subjects() if method in grid.methods else []):
            count = len(concepts)
            how = load_method(method, grid).of(count)
            seeds = len(training_seeds(method, params, grid, count))
            if how is None or not seeds:
                continue
            adapter = adapter_bytes(how, concepts, params, grid, unet, method)
            sampling = params.protocol.sample
            images = sampling.of(count).images_per_prompt * PROMPTS[count > 1]
            if count == 1:
                images += sampling.images_per_caption * params.retrieve.held_out_images
            total += seeds * (adapter + int(images * pixel * PNG_BYTES_PER_PIXEL))
            if isinstance(how, Trained | Continued):
                float32 = adapter * 4 // BYTES[_hyper(params, method).store]
                state = max(state, MOMENTS * float32)
    return total + state


def adapter_bytes(
    how: How,
    concepts: Sequence[str],
    params: Params,
    grid: Grid,
    unet: nn.Module,
    method: str,
) -> int:
    """The size of the changes in an adapter of these concepts; tokens are nothing beside them."""
    if isinstance(how, Chained | Continued):
        how = how.how
    if isinstance(how, Trained):
        hyper, weights = _hyper(params, method), dict(unet.named_parameters())
        shapes = [weights[name].shape for name in how.weights(unet)]
        if how.low_rank:
            numbers = sum((hyper.rank or 0) * sum(shape) for shape in shapes)
        else:
            numbers = sum(prod(shape) for shape in shapes)
        return numbers * BYTES[hyper.store]
    if isinstance(how, Merged | Bundled):
        of = load_method(how.of, grid).single
        part = adapter_bytes(of, concepts[:1], params, grid, unet, how.of) if of else 0
        low = isinstance(of, Trained) and of.low_rank
        kept_apart = isinstance(how, Bundled) or low  # low ranks lie side by side
        stored = BYTES[_hyper(params, method).store] / BYTES[_hyper(params, how.of).store]
        return int(part * (len(concepts) if kept_apart else 1) * stored)
    return 0


def _hyper(params: Params, method: str) -> MethodParams:
    return params.methods.get(method, MethodParams())
