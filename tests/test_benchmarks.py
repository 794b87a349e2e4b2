"""Both sides of a comparison compute the same: only then does it say which is faster."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import full_size, official, results, speed
from benchmarks.sizes import SIZES, TextSize, random_base
from pipeline.methods import Trained, load_method
from pipeline.models.adapter import Adapter, Provenance, dense
from pipeline.models.base import Base
from pipeline.models.crossattn import key_value_names
from pipeline.sample import sampler as sampling
from pipeline.settings.profile import MethodParams, SamplerParams, TrainParams
from pipeline.train import augment
from pipeline.train import loop as training
from tests.pipeline.conftest import float32  # noqa: F401  (for all tests here)
from tests.pipeline.tiny import RARE_TOKENS, new_base, training_set

LEARNING_RATE, STEPS = 1e-3, 3
PARAMS = TrainParams(batch_size=8, weight_decay=0.01, seeds=[42], regularization_captions=5)
HYPER = MethodParams(learning_rate=LEARNING_RATE)


def train(side, count: int, monkeypatch) -> tuple[Base, Adapter, list[torch.Tensor]]:
    """A run of Custom Diffusion on as many concepts, and the losses [n] of its steps."""
    base, losses = new_base(), []
    loss_of_rows = side.loss_of_rows

    def spy(*arguments):
        losses.append(loss_of_rows(*arguments))
        return losses[-1]

    monkeypatch.setattr(side, "loss_of_rows", spy)
    method = load_method("custom_diffusion").single
    assert isinstance(method, Trained)
    sets = [training_set(noun, noun, i) for i, noun in enumerate(("cat", "chair")[:count])]
    tokens = {f"<new{i + 1}>": base.texts.embedding_row(RARE_TOKENS[i]) for i in range(count)}
    references = tuple(f"{t} {part.concept.class_noun}" for t, part in zip(tokens, sets))
    about = Provenance("custom_diffusion", "s", base.path, base.hash, references)
    adapter = side.train_through(
        base, method, sets, references, tokens, PARAMS, HYPER, [STEPS], about
    )[-1]
    monkeypatch.setattr(side, "loss_of_rows", loss_of_rows)
    return base, adapter, losses


def test_both_ways_of_masking_leave_the_same_pixels_and_give_the_same_losses():
    """On latents of 8 and of 64 pixels a side, where small pictures leave something to shrink."""
    rng, g = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for resolution, downsampling in ((32, 4), (512, 8)):
        side = resolution // downsampling
        base = SimpleNamespace(
            latent_shape=(4, side, side), downsampling=downsampling, resolution=resolution
        )
        views = [augment.draw_view(rng, 3, resolution, True)[0] for _ in range(60)]
        masks = torch.stack([official.mask_of(view, base) for view in views])
        ours = torch.stack([augment.view_mask(view, resolution, downsampling) for view in views])
        assert torch.equal(masks, ours)
        assert 0 < (masks.mean((1, 2)) < 1).sum() < len(views)
        error = torch.randn((len(views), 4, side, side), generator=g)
        torch.testing.assert_close(
            training.loss_of_rows(error, ours, True), official.loss_of_rows(error, masks)
        )


@pytest.mark.parametrize("count", [1, 2])
def test_both_ways_of_training_give_the_same_losses_and_the_same_adapter(count, monkeypatch):
    base, ours, our_losses = train(training, count, monkeypatch)
    other, theirs, their_losses = train(official, count, monkeypatch)
    assert len(our_losses) == len(their_losses) == STEPS
    for one, two in zip(our_losses, their_losses):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert ours.tokens.keys() == theirs.tokens.keys()
    assert ours.deltas.keys() == theirs.deltas.keys()
    pairs = [(ours.tokens[name], theirs.tokens[name]) for name in ours.tokens]
    pairs += [(dense(ours.deltas[name]), dense(theirs.deltas[name])) for name in ours.deltas]
    for one, two in pairs:
        assert one.abs().max() > LEARNING_RATE / 2
        # AdamW's first steps are as long for small gradients, which are mostly rounding, as for
        # large ones; hence the mean.
        assert (one - two).abs().mean() < 1e-2 * LEARNING_RATE
    # The other side leaves the base as it was, too.
    for name, weight in base.unet.state_dict().items():
        assert torch.equal(weight, other.unet.state_dict()[name])
    text = [b.texts.models[0].get_input_embeddings().weight for b in (base, other)]
    assert torch.equal(*text)


def test_both_ways_of_sampling_give_the_same_images():
    base = new_base()
    params = SamplerParams(steps=4, guidance_scale=6, eta=1, batch_size=2)
    prompts, seeds = ["photo of a cat", "a chair in the snow"], [1, 2]
    ours, theirs = (
        np.stack([np.asarray(i) for i in side.sample(base, prompts, seeds, params)]).astype(int)
        for side in (sampling, official)
    )
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 5


def test_the_table_says_which_goals_are_met():
    found = {
        "training run": {"ours": 2.0, "official": 3.1},
        "training memory": {"ours": 100.0, "official": 150.0},
        "sampling": {"ours": 1.0, "official": 1.1},
        "merging 2 concepts": {"ours": 0.5},
        "merging 3 concepts": {"ours": 0.6},
    }
    _, run, memory, sampled, two, three = speed.table(found).splitlines()
    assert run.split() == ["training", "run", "2s", "3.1s", "1.55x", "1.5x:", "met"]
    assert memory.split()[-1] == "1.50x"
    assert sampled.endswith("1.10x  1.5x: missed")
    assert two.endswith("2.0 s: met")
    assert three.endswith("0.6s")


def test_the_history_is_of_what_was_measured_on_both_sides():
    lines = results.history()
    assert any(line.startswith("speed: training run ") and "x  20" in line for line in lines)


def test_models_of_full_size_have_as_many_parameters_as_the_published_ones():
    base = random_base(SIZES["v1-4"], torch.device("meta"))
    assert parameters(base.unet, base.vae, *base.texts.models) == [
        859_520_964, 83_653_863, 123_060_480,
    ]  # fmt: skip
    trained = dict(base.unet.named_parameters())
    matrices = [trained[name] for name in key_value_names(base.unet)]
    assert len(matrices) == 32
    assert sum(m.numel() for m in matrices) * 4 == pytest.approx(76.7e6, rel=1e-3)
    assert (base.latent_shape, base.texts.tokenizer.model_max_length) == ((4, 64, 64), 77)


def test_xl_too():
    base = random_base(SIZES["sdxl"], torch.device("meta"))
    assert parameters(base.unet, base.vae, *base.texts.models) == [
        2_567_463_684, 83_653_863, 123_060_480, 694_659_840,
    ]  # fmt: skip
    assert (base.latent_shape, base.texts.width) == ((4, 128, 128), 2048)


def parameters(*models: torch.nn.Module) -> list[int]:
    return [sum(p.numel() for p in model.parameters()) for model in models]


SMALL_XL = replace(
    SIZES["sdxl"],
    unet=SIZES["sdxl"].unet | {"projection_class_embeddings_input_dim": 12 + 6 * 256},
    texts=(TextSize(16, 2, 2), TextSize(24, 2, 2, projection=12)),
)


def test_xl_is_measured_beside_diffusers_pipeline_and_no_script():
    base = random_base(SMALL_XL, torch.device("cpu"), 64, 40)
    sampler = SamplerParams(steps=2, guidance_scale=6, eta=1, batch_size=2)
    prompts = ["photo of a cat", "a dog"]
    ours, theirs = (
        side(base, prompts, [3, 4], sampler) for side in (sampling.sample, official.sample)
    )
    for a, b in zip(ours, theirs):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    trained, sampled = full_size.measure(base, training_set("cat", "cat"), PARAMS, 1, sampler)
    assert trained.official is None
    assert sampled.official is not None
    for result in (trained, sampled):
        assert 0 < result.floor < result.seconds


def test_operations_are_those_of_the_products():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert full_size.count(lambda: a @ b) == 2 * 3 * 5 * 7
    image, kernel = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    assert full_size.count(lambda: F.conv2d(image, kernel, padding=1)) == 2 * 2 * 64 * 4 * 27


def test_the_floor_lies_below_what_was_measured():
    base, sampler = new_base(), SamplerParams(steps=3, guidance_scale=6, eta=1, batch_size=2)
    part = training_set("cat", "cat")
    trained, sampled = full_size.measure(base, part, PARAMS, 3, sampler)
    for result in (trained, sampled):
        assert result.official is not None
        assert 0 < result.floor < min(result.seconds, result.official)
        assert result.peak > 0
    parts = full_size.parts_of_a_step(base, part, PARAMS)
    assert all(seconds > 0 for seconds in parts.values())
    assert trained.line().startswith("training, 3 steps of 8")
    assert sampled.line().startswith("sampling, 2 images of 3 steps")
