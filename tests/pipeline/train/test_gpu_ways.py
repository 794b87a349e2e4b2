"""What a GPU does otherwise, on a CPU: frozen weights in bfloat16, work ahead, late looks."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.methods import Trained, load_method
from pipeline.models import compiling
from pipeline.models.adapter import Adapter, applied, dense
from pipeline.models.base import Base
from pipeline.models.crossattn import (
    cross_attention_layers,
    detached_start_token,
    key_value_names,
)
from pipeline.models.texts import Condition
from pipeline.sample.sampler import sample
from pipeline.settings.profile import MethodParams, Params, SamplerParams
from pipeline.train import loop as training
from pipeline.train.ahead import AHEAD, made_ahead
from pipeline.train.making import Making
from pipeline.train.masters import Masters
from tests.pipeline.tiny import new_base, subject, task, training_set

ONE = training_set("cat", "cat")
HYPER = MethodParams(learning_rate=1e-3, rank=2, ridge=1e-6, steps=3)


def run(base: Base, params: Params, name: str, hyper: MethodParams = HYPER, **train) -> Adapter:
    params = params.model_copy(update={"train": params.train.model_copy(update=train)})
    how = load_method(name).single
    assert how is not None
    return how.make(Making.of(base, name, subject(ONE), params, hyper, [ONE]))


def difference(one: Adapter, two: Adapter) -> float:
    """The distance of all that changed, over how much changed."""
    first = [dense(delta).double() for delta in one.deltas.values()] or [*one.tokens.values()]
    other = [dense(delta).double() for delta in two.deltas.values()] or [*two.tokens.values()]
    a, b = (torch.cat([part.double().flatten() for part in parts]) for parts in (first, other))
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", ["custom_diffusion", "dreambooth", "lora"])
def test_stored_in_bfloat16_a_training_is_the_same_within_its_rounding(params, name):
    """A run of a few steps against float32 on the same rounded weights.

    AdamW's steps have the rate's length whatever the gradient's: where a gradient is near zero its
    sign is rounding's, so the bound is wide; a wrong gradient has a difference of about 1.4.
    """
    exact, stored = new_base(), new_base()
    for base in (exact, stored):
        base.store(torch.bfloat16)
    exact.store(torch.float32)
    before = {n: p.clone() for n, p in stored.unet.state_dict().items()}
    one, two = run(exact, params, name), run(stored, params, name)
    assert 0 < difference(one, two) < 0.4
    assert all(t.dtype is torch.float32 for t in two.tensors().values())
    after = stored.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], p) and p.dtype is torch.bfloat16 for n, p in before.items())
    # Its images: of the sum, rounded once.
    with applied(stored, two):
        for n, delta in two.deltas.items():
            expected = (before[n].float() + dense(delta)).bfloat16()
            assert torch.equal(stored.unet.get_parameter(n), expected)


@pytest.mark.parametrize("name", ["custom_diffusion_ewc", "custom_diffusion_lwf", "cidm"])
def test_sequences_are_trained_and_sampled_stored_in_bfloat16(params, name):
    """Squares of gradients, a teacher's predictions, and parts that are mixed by prompt."""
    base = new_base()
    base.store(torch.bfloat16)
    own = {"strength": 1.0, "fisher_rows": 2, "consolidation": 1.0}
    hyper = HYPER.model_copy(update={"steps": 1, "composition_steps": 1, "own": own})
    how, two = load_method(name).sequence, training_set("dog", "dog", 1)
    assert how is not None
    first = [run(base, params, of, hyper) for of, _ in how.needs(["cat"]).adapters]
    before = how.make(Making.of(base, name, task("s", ONE), params, hyper, [ONE], first))
    both = task("s", ONE, two)
    made = how.make(Making.of(base, name, both, params, hyper, [two], previous=before))
    sampler = SamplerParams(steps=2, guidance_scale=6, eta=1, batch_size=1)
    with how.open(base, made) as session:
        (image,) = sample(base, ["a <new1> cat and a <new2> dog"], [1], sampler, session)
    assert np.asarray(image).std() > 5
    assert base.unet.dtype is base.stored is torch.bfloat16
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


def test_masters_take_steps_that_stored_weights_would_round_away():
    weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    masters = Masters({"w": weight})
    optimizer = torch.optim.SGD([masters["w"]], lr=1e-4)  # bfloat16's neighbours of 1: 0.0039 below
    for _ in range(100):
        for _ in range(2):  # gradients of two backward passes add up
            (weight * torch.tensor([1.0, 2.0, 0.0])).sum().backward()
        assert weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
        masters.round()
    torch.testing.assert_close(masters["w"], torch.tensor([0.98, 0.96, 1.0]))
    assert torch.equal(weight, masters["w"].bfloat16())
    masters.let_go()
    assert not weight.requires_grad


def test_precise_is_float32_and_gives_the_stored_weights_back():
    base = new_base()
    base.store(torch.bfloat16)
    before = {n: p.clone() for n, p in base.texts.models[0].state_dict().items()}
    with base.precise():
        text = base.condition(["a cat"]).text
        assert text.dtype is torch.float32
    assert torch.equal(text, text.bfloat16().float()) is False
    assert base.condition(["a cat"]).text.dtype is torch.bfloat16
    after = base.texts.models[0].state_dict()
    assert all(torch.equal(after[name], part) for name, part in before.items())


@pytest.mark.parametrize("train", [{"micro_batch_size": 3}, {"gradient_checkpointing": True}])
def test_ways_to_save_memory_change_gradients_by_rounding_alone(base, params, monkeypatch, train):
    found: list[list[torch.Tensor]] = []

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        found.append([p.grad.double().clone() for p in parameters])

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    hyper = HYPER.model_copy(update={"steps": 1})
    run(base, params, "custom_diffusion", hyper)
    calls = unet_calls(base, lambda: run(base, params, "custom_diffusion", hyper, **train))
    assert calls == ([3, 3, 2] if "micro_batch_size" in train else [8])
    for one, two in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_run_again_see_the_texts_that_they_saw(base, dtype, monkeypatch):
    """Each layer's own, whose gradients differ; and attention as autocast had it."""
    monkeypatch.setattr(base, "dtype", dtype)
    g = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *base.latent_shape, generator=g)
    layers = len(cross_attention_layers(base.unet))
    text = torch.randn(2, layers, base.texts.context, 32, generator=g).requires_grad_(True)
    weight = base.unet.get_parameter(key_value_names(base.unet)[0]).requires_grad_(True)
    gradients = []
    for saving in (False, True):
        monkeypatch.setattr(base, "gradient_checkpointing", saving)
        base.predict(noisy, 500, Condition(text)).pow(2).sum().backward()
        gradients.append((text.grad, weight.grad))
        text.grad = weight.grad = None
    base.unet.requires_grad_(False)
    for one, two in zip(*gradients):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def unet_calls(base: Base, work) -> list[int]:
    """How many images each call of the UNet has."""
    sizes: list[int] = []
    hook = base.unet.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    try:
        work()
    finally:
        hook.remove()
    return sizes


def test_a_term_that_needs_the_batch_refuses_parts_of_it(base, params):
    how = load_method("custom_diffusion").single
    assert isinstance(how, Trained)
    small = params.model_copy(
        update={"train": params.train.model_copy(update={"micro_batch_size": 2})}
    )
    making = Making.of(base, "mine", subject(ONE), small, HYPER, [ONE])
    with pytest.raises(BenchError, match=r"train\.micro_batch_size: mine has a term of its own"):
        replace(how, penalty=lambda step: step.rows.sum()).make(making)


def test_late_looks_name_the_right_step(base, params, monkeypatch):
    """As a look at each step does, though several steps have been made by then."""
    hyper = HYPER.model_copy(update={"steps": 20, "learning_rate": 1e20})

    def message() -> str:
        with pytest.raises(FailureError) as error:
            run(base, params, "custom_diffusion", hyper)
        return str(error.value)

    once = message()
    seen: list[int] = []
    watch = training._Watch.found
    monkeypatch.setattr(training, "LOOKS", {"cpu": 15})
    monkeypatch.setattr(training._Watch, "found", lambda self: seen.append(1) or watch(self))
    assert message() == once
    assert "at step 15 " not in once
    assert len(seen) == 1


def test_what_is_made_ahead_is_in_order_bounded_and_let_go():
    made: list[int] = []
    lock = threading.Lock()

    def make(key: int) -> int:
        with lock:
            made.append(key)
        time.sleep(0.001 * (key % 3))
        return key * key

    assert list(made_ahead(make, range(50), 2)) == [k * k for k in range(50)]
    made.clear()
    items = made_ahead(make, range(1000), 2)
    assert next(items) == 0
    items.close()
    assert len(made) <= 2 * AHEAD + 3

    def broken(key: int) -> int:
        return 1 // (3 - key)

    items = made_ahead(broken, range(9), 2)
    assert [next(items) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_compiled_blocks_compute_the_same_and_are_let_go(base, monkeypatch):
    """With the compiler that traces, and runs what it traced as it is."""
    monkeypatch.setattr(compiling, "pays", lambda *_: True)
    monkeypatch.setattr(compiling, "OPTIONS", {"backend": "eager"})
    noisy, condition = torch.randn(1, *base.latent_shape), base.condition(["a cat"])
    counters.clear()
    with torch.no_grad(), detached_start_token(base.unet):
        plain = base.predict(noisy, 500, condition)
        with compiling.compiled(base, 1):
            assert base.compiled
            traced = base.predict(noisy, 500, condition)
    assert counters["frames"]["ok"] > 0
    torch.testing.assert_close(traced, plain)
    assert not base.compiled
    assert all(module._compiled_call_impl is None for module in base.unet.modules())


def test_compiling_is_for_long_runs_on_gpus():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    least = compiling.COMPILED_FROM
    assert [compiling.pays(d, n) for d, n in ((cuda, least), (cuda, least - 1), (cpu, 10**9))] == [
        True, False, False,
    ]  # fmt: skip
