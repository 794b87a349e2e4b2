"""Parts of a picture with texts of their own: the formulas, and sessions on a small base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.methods import Session
from pipeline.models.adapter import applied
from pipeline.models.base import Base
from pipeline.models.bundle import Router, composed, routed
from pipeline.models.crossattn import cross_attention_layers
from pipeline.regions.layouts import Box, cells
from pipeline.regions.sessions import (
    Place,
    attended,
    coarsest,
    overlaid,
    regional,
    seen,
    showing,
)
from pipeline.sample.sampler import sample
from pipeline.settings.profile import SamplerParams
from tests.pipeline.models.test_bundle import bundle, noise, part

ALL = Box(0, 0, 1, 1)
LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)
PROMPT, OTHER = "a <new1> in the snow", "a house"
PARAMS = SamplerParams(steps=2, guidance_scale=6, eta=0, batch_size=4)
MODES = ("mix_of_show", "cidm")


# --- Cells of boxes


@pytest.mark.parametrize("side", [4, 8, 64])
@pytest.mark.parametrize("split", [0.5, 0.3, 0.37, 2 / 3])
def test_boxes_that_complete_each_other_share_out_the_cells(side: int, split: float) -> None:
    four = [
        Box(left, top, right, bottom)
        for left, right in ((0, split), (split, 1))
        for top, bottom in ((0, 1 - split), (1 - split, 1))
    ]
    assert (sum(cells(box, side, side).astype(int) for box in four) == 1).all()


@pytest.mark.parametrize("side", [4, 8, 64])
def test_inner_cells_are_those_that_mix_of_show_slices(side: int) -> None:
    for box in (ALL, LEFT, Box(0.1, 0.2, 0.45, 0.9), Box(0.3, 0.3, 0.7, 0.7)):
        expected = np.zeros((side, side), bool)
        rows = slice(math.ceil(box.top * side), math.floor(box.bottom * side))
        expected[rows, math.ceil(box.left * side) : math.floor(box.right * side)] = True
        assert np.array_equal(cells(box, side, side, "inner"), expected)
        assert (cells(box, side, side) >= expected).all()  # what is wholly inside has its middle


def test_the_places_of_cells() -> None:
    found = cells(Box(0.5, 0, 1, 0.25), 4, 8)
    assert found.shape == (4, 8)
    assert {(int(i), int(j)) for i, j in np.argwhere(found)} == {(0, 4), (0, 5), (0, 6), (0, 7)}
    assert cells(Box(0.1, 0.1, 0.45, 0.45), 4, 4, "inner").sum() == 0
    assert cells(Box(0.1, 0.1, 0.45, 0.45), 4, 4).sum() == 4


# --- Formulas


def random(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def test_the_noise_of_regions_written_out() -> None:
    plain, parts, kept = random(2, 3, 4, 4), random(3, 2, 3, 4, 4, seed=1), 0.1
    boxes = [LEFT, Box(0.25, 0, 0.75, 1), Box(0, 0, 1, 0.5)]
    masks = [cells(box, 4, 4) for box in boxes]
    inside = torch.from_numpy(np.stack(masks))[:, None, None]
    found = overlaid(plain, parts, inside, kept)
    for i in range(4):
        for j in range(4):
            there = [part for part, mask in zip(parts, masks) if mask[i, j]]
            expected = plain[..., i, j]
            if there:
                mean = sum(part[..., i, j] for part in there) / len(there)
                expected = kept * plain[..., i, j] + (1 - kept) * mean
            torch.testing.assert_close(found[..., i, j], expected)
    assert not inside[:, 0, 0, 3, 3].any() and torch.equal(found[..., 3, 3], plain[..., 3, 3])


def test_equal_noise_stays_and_all_that_is_kept_is_plain() -> None:
    plain = random(2, 3, 8, 8)
    inside = torch.rand((4, 1, 1, 8, 8), generator=torch.Generator().manual_seed(2)) < 0.4
    for kept in (0.0, 0.1, 0.5):
        torch.testing.assert_close(
            overlaid(plain, plain.expand(4, -1, -1, -1, -1), inside, kept), plain
        )
    others = random(4, 2, 3, 8, 8, seed=3)
    assert torch.equal(overlaid(plain, others, inside, 1.0), plain)


def by_hand(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention in float64, head by head."""
    q, k, v = (t.double() for t in (query, keys, values))
    width = q.shape[-1] // heads
    found = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        found.append(weights @ v[..., part])
    return torch.cat(found, -1)


def test_attention_is_a_softmax() -> None:
    q, k, v = random(3, 16, 12), random(3, 5, 12, seed=1), random(3, 5, 12, seed=2)
    torch.testing.assert_close(attended(q, k, v, 3), by_hand(q, k, v, 3))
    torch.testing.assert_close(attended(q, k[:1], v[:1], 3)[2], by_hand(q[2:], k[:1], v[:1], 3)[0])


# --- In the layers


def inside_of(box: Box):
    return lambda h, w: torch.from_numpy(cells(box, h, w))


def first_layer(base: Base, condition: object, *parts: object, n: int = 2) -> tuple[Tensor, Tensor]:
    """What the first layer of cross-attention has before its last projection; and its input."""
    layer = next(iter(cross_attention_layers(base.unet).values()))
    found: dict[str, Tensor] = {}
    with torch.no_grad(), showing(base.unet, parts, n // 2):
        hooks = [
            layer.to_q.register_forward_hook(lambda _m, i, _o: found.update(hidden=i[0])),
            layer.to_out[0].register_forward_hook(lambda _m, i, _o: found.update(own=i[0])),
        ]
        base.predict(noise(base, n)[0], torch.tensor(3), condition)
        for hook in hooks:
            hook.remove()
    return found["own"], found["hidden"]


def test_a_layer_shows_boxes_their_text_and_leaves_the_rest(base: Base) -> None:
    condition = base.condition(["", "photo of a cat"])
    layer = next(iter(cross_attention_layers(base.unet).values()))
    plain, hidden = first_layer(
        base, condition, (seen(base, base, [OTHER]), inside_of(Box(0, 0, 0.01, 0.01)))
    )
    boxes, texts = [Box(0, 0, 0.5, 1), Box(0.25, 0, 0.75, 0.5)], [OTHER, "a dog"]
    parts = [(seen(base, base, [text]), inside_of(box)) for text, box in zip(texts, boxes)]
    found, _ = first_layer(base, condition, *parts)
    assert torch.equal(found[0], plain[0])  # without a text
    side = math.isqrt(plain.shape[1])
    masks = [cells(box, side, side).ravel() for box in boxes]
    with torch.no_grad():
        query = layer.to_q(hidden)
        regions = [
            by_hand(query[1:], layer.to_k(text), layer.to_v(text), layer.heads)[0]
            for text in (base.condition([text]).text for text in texts)
        ]
    overlap = masks[0] & masks[1]
    assert overlap.any() and (masks[0] ^ masks[1]).any() and not (masks[0] | masks[1]).all()
    for cell in range(len(overlap)):
        there = [region[cell] for region, mask in zip(regions, masks) if mask[cell]]
        if there:
            expected = sum(there) / len(there)
            torch.testing.assert_close(found[1, cell].double(), expected, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(found[1, cell], plain[1, cell])


def test_the_pass_of_a_box_is_the_prompt_with_the_boxs_text_in_it(base: Base) -> None:
    """It is made the other way round, which of an adapter for all texts is the same."""
    latents, timestep = noise(base, 1)[0], torch.tensor(3)
    box = Box(0.25, 0, 1, 0.75)
    with torch.no_grad(), applied(base, part(base, 0, layered=False)):
        with showing(base.unet, [(seen(base, base, [OTHER]), inside_of(box))], 1):
            expected = base.predict(latents, timestep, base.condition([PROMPT]))
        session = regional(base, base, "cidm", [Place(OTHER, box)], kept=0.0)
        found = session.predict(
            latents.repeat(2, 1, 1, 1), timestep, session.condition(["", PROMPT])
        )
        plain = base.predict(latents, timestep, base.condition([PROMPT]))
    mask = inside_of(box)(*latents.shape[-2:])
    torch.testing.assert_close(found[1][:, mask], expected[0][:, mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][:, ~mask], plain[0][:, ~mask])
    assert (expected - plain).abs().max() > 1e-3


# --- Sessions


@contextmanager
def session_of(base: Base, kind: str) -> Iterator[Session]:
    """Of an adapter, one whose tokens differ by layer, a routed bundle, a composed one."""
    opened = {
        "adapter": lambda: applied(base, part(base, 0, layered=False)),
        "layered": lambda: applied(base, part(base, 0)),
        "routed": lambda: routed(base, bundle(base), Router()),
        "composed": lambda: composed(base, bundle(base)),
    }[kind]()
    with torch.no_grad(), opened as session:
        yield session


@pytest.mark.parametrize("kind", ["adapter", "layered", "routed", "composed"])
@pytest.mark.parametrize("mode", MODES)
def test_boxes_with_the_prompts_own_text_change_nothing(base: Base, kind: str, mode: str) -> None:
    latents, timestep, texts = noise(base, 4)[0], torch.tensor(500), ["", "", PROMPT, PROMPT]
    with session_of(base, kind) as session:
        plain = session.predict(latents, timestep, session.condition(texts))
        for boxes in ([ALL], [LEFT, RIGHT], [ALL, LEFT]):
            boxed = regional(base, session, mode, [Place(PROMPT, box) for box in boxes])
            found = boxed.predict(latents, timestep, boxed.condition(texts))
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["adapter", "layered", "routed", "composed"])
def test_a_box_over_all_is_another_prompt(base: Base, kind: str) -> None:
    latents, timestep = noise(base, 2)[0], torch.tensor(500)
    with session_of(base, kind) as session:
        alone = session.predict(latents[1:], timestep, session.condition([OTHER]))
        boxed = regional(base, session, "cidm", [Place(OTHER, ALL)], kept=0.0)
        found = boxed.predict(latents, timestep, boxed.condition(["", PROMPT]))
        plain = session.predict(latents, timestep, session.condition(["", PROMPT]))
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:1], plain[:1])
    assert (found[1:] - plain[1:]).abs().max() > 1e-3


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("mode", MODES)
def test_sampling(base: Base, mode: str) -> None:
    prompts, seeds = ["photo of a cat", "photo of a cat"], [1, 2]
    plain = pixels(sample(base, prompts, seeds, PARAMS))
    found = {
        text: pixels(
            sample(base, prompts, seeds, PARAMS, regional(base, base, mode, [Place(text, LEFT)]))
        )
        for text in ("photo of a cat", "a house in the snow")
    }
    assert np.abs(found["photo of a cat"] - plain).max() <= 1
    assert np.abs(found["a house in the snow"] - plain).max() > 1
    assert np.array_equal(pixels(sample(base, prompts, seeds, PARAMS)), plain)  # no trace is left


@pytest.mark.parametrize(("mode", "passes"), [("none", 2), ("mix_of_show", 2), ("cidm", 5)])
def test_images_that_the_unet_sees_in_a_step(base: Base, mode: str, passes: int) -> None:
    places = [Place("a cat", box) for box in (LEFT, RIGHT, ALL)]
    session = regional(base, base, mode, places)
    texts = ["", "", "a dog", "a dog"]
    with torch.no_grad():
        condition = session.condition(texts)
        seen_images: list[int] = []
        hook = base.unet.register_forward_pre_hook(lambda _m, i: seen_images.append(len(i[0])))
        session.predict(noise(base, 4)[0], torch.tensor(3), condition)
        hook.remove()
    assert sum(seen_images) == 2 * passes


def test_the_coarsest_map(base: Base) -> None:
    sides: list[int] = []
    hooks = [
        layer.to_q.register_forward_hook(lambda _m, _i, o: sides.append(math.isqrt(o.shape[1])))
        for layer in cross_attention_layers(base.unet).values()
    ]
    with torch.no_grad():
        base.predict(noise(base, 1)[0], torch.tensor(3), base.condition([""]))
    for hook in hooks:
        hook.remove()
    assert coarsest(base) == min(sides)
