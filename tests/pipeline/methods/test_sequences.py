"""Methods that learn one concept after the other, on a small base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Subject
from pipeline.methods import Batch, Step, TrainingSet, load_method, method_names
from pipeline.methods.custom_diffusion import TRAINED
from pipeline.methods.penalties import Quadratic
from pipeline.models.adapter import Adapter, applied, dense, load_adapter, save_adapter
from pipeline.models.base import Base, to_tensor
from pipeline.models.crossattn import detached_start_token, key_value_names
from pipeline.sample.sampler import sample
from pipeline.settings.profile import MethodParams, Params, SamplerParams, load_params
from pipeline.train.augment import draw_view, render_view, view_mask
from pipeline.train.making import Making
from tests.pipeline.tiny import RARE_TOKENS, new_base, task, training_set

STEPS = 4
HYPER = MethodParams(
    learning_rate=1e-2, steps=STEPS, composition_steps=STEPS, rank=2, ridge=1e-6,
    own={"strength": 1.0, "fisher_rows": 3},
)  # fmt: skip
CAPTIONS = [f"photo of a {a} {b}" for a in ("red", "blue", "green") for b in ("dog", "house")]
SETS = [training_set(noun, noun, i) for i, noun in enumerate(("cat", "chair", "dog"))]


@pytest.fixture(scope="module")
def base() -> Base:
    return new_base()


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params()


def single(base: Base, params: Params, name: str, part: TrainingSet) -> Adapter:
    about = Subject(part.concept.name, (part.concept,), Path("none.txt"))
    how = load_method(name).single
    assert how is not None
    return how.make(Making.of(base, name, about, params, HYPER, [part]))


@pytest.fixture(scope="module")
def parts(base: Base, params: Params) -> list[Adapter]:
    """Custom Diffusion's adapters of single concepts."""
    return [single(base, params, "custom_diffusion", part) for part in SETS]


def learn(
    base: Base, params: Params, name: str, singles: list[Adapter], tasks: int = 3, hyper=HYPER
) -> list[Adapter]:
    """The adapter after each task, as the stages have them made."""
    how, made = load_method(name).sequence, []
    assert how is not None
    for n in range(1, tasks + 1):
        about = task("toys", *SETS[:n])
        needs = how.needs([c.name for c in about.concepts])
        made.append(
            how.make(
                Making.of(
                    base, name, about, params, hyper,
                    [part for part in SETS if part.concept.name in needs.shards],
                    singles[:n] if needs.adapters else (),
                    CAPTIONS if needs.index else (),
                    previous=made[-1] if needs.previous else None,
                )
            )
        )  # fmt: skip
        assert made[-1].provenance.subject == about.name
        assert made[-1].provenance.method == name
        assert len(made[-1].provenance.references) == n
    return made


def same(one: Adapter, other: Adapter) -> bool:
    """Whether they sample alike, bit by bit."""
    pairs = [(t, other.tokens.get(n)) for n, t in one.tokens.items()]
    pairs += [(dense(d), dense(other.deltas[n])) for n, d in one.deltas.items()]
    return one.tokens.keys() == other.tokens.keys() and all(torch.equal(a, b) for a, b in pairs)


CHAINS = ("custom_diffusion_sequential", "custom_diffusion_ewc", "custom_diffusion_lwf")


@pytest.mark.parametrize("name", CHAINS)
def test_the_first_task_of_a_chain_is_the_concepts_own_adapter(base, params, parts, name):
    (first,) = learn(base, params, name, parts, tasks=1)
    assert same(first, parts[0])


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_leaves_earlier_tokens_alone_and_the_base_as_it_was(base, params, parts, name):
    before = {n: p.clone() for n, p in base.unet.named_parameters()}
    made = learn(base, params, name, parts)
    for earlier, later in zip(made, made[1:]):
        for token, row in earlier.tokens.items():
            assert torch.equal(row, later.tokens[token])
        assert not same(earlier, later)
    assert list(made[-1].tokens) == ["<new1>", "<new2>", "<new3>"]
    assert made[-1].provenance.initial_ids["<new3>"] == RARE_TOKENS[2]
    assert made[-1].provenance.steps == 3 * STEPS
    assert all(torch.equal(p, before[n]) for n, p in base.unet.named_parameters())
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_a_chain_of_two_is_the_composition_with_the_same_noise(base, params, parts):
    """The composition's noise is that of its name: here it has the second concept's."""
    about = Subject("chair", tuple(part.concept for part in SETS[:2]), Path("none.txt"))
    how = load_method("custom_diffusion_sequential").composition
    assert how is not None
    whole = how.make(Making.of(base, "s", about, params, HYPER, SETS[:2], parts[:1]))
    chained = learn(base, params, "custom_diffusion_sequential", parts, tasks=2)[-1]
    assert same(whole, chained)


def test_noise_is_of_the_concept_and_not_of_the_sequence(base, params, parts):
    """The same adapter before and the same concept now, in other sequences and at other places."""

    def second(sequence: str) -> Adapter:
        about = replace(task("toys", *SETS[:2]), name=f"{sequence}/task-2")
        how = load_method("custom_diffusion_sequential").sequence
        return how.make(Making.of(base, "s", about, params, HYPER, SETS[1:2], previous=parts[0]))

    assert same(second("toys"), second("others"))


# --- EWC


def plain_fisher(base: Base, params: Params, adapter: Adapter, part: TrainingSet, rows: int):
    """Squared gradients of single images' losses, written out; and the squared mean gradient."""
    with applied(base, adapter), detached_start_token(base.unet):
        weights = {n: base.unet.get_parameter(n) for n in key_value_names(base.unet)}
        found = []
        for i in range(rows):
            seed = seed_of(params.train.seeds[0], part.concept.name, "fisher", i)
            view, prefix = draw_view(
                np.random.default_rng(seed), len(part.targets), base.resolution, True
            )
            generator = torch.Generator().manual_seed(seed)
            shape = (1, *base.latent_shape)
            posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
            timestep = torch.randint(1000, (1,), generator=generator)
            picture = to_tensor([render_view(view, part.targets, base.resolution)])
            latent = base.vae.encode(picture).latent_dist
            clean = (latent.mean + latent.std * posterior) * base.scale
            alpha = base.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            wanted = base.target(clean, noise, timestep)
            caption = prefix + "photo of a " + adapter.provenance.references[-1]
            text = base.text_encoder(base.tokenize([caption]))[0]
            for weight in weights.values():
                weight.requires_grad_(True)
            error = base.unet(noisy, timestep, text).sample - wanted
            mask = view_mask(view, base.resolution, base.downsampling)
            loss = (error.pow(2) * mask).sum() / mask.sum()
            found.append(torch.autograd.grad(loss, [*weights.values()]))
            base.unet.requires_grad_(False)
    squares = [torch.stack([g[k] for g in found]).pow(2).mean(0) for k in range(len(weights))]
    means = [torch.stack([g[k] for g in found]).mean(0).pow(2) for k in range(len(weights))]
    return dict(zip(weights, squares)), dict(zip(weights, means))


def test_fisher_is_the_mean_of_the_squares_of_single_images_gradients(base, params, parts):
    making = Making.of(base, "m", task("toys", SETS[0]), params, HYPER, SETS[:1])
    found = making.fisher(TRAINED, parts[0], 5)
    squares, of_mean = plain_fisher(base, params, parts[0], SETS[0], 5)
    assert found.keys() == squares.keys()
    for name, square in squares.items():
        torch.testing.assert_close(found[name], square, rtol=1e-3, atol=1e-9)
    # Squaring the gradient of a batch gives less: up to its size in times.
    total = sum(float(s.sum()) for s in squares.values())
    assert 1.2 < total / sum(float(s.sum()) for s in of_mean.values()) <= 5
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_fisher_of_weights_that_nothing_reaches_is_refused(base, params, parts, monkeypatch):
    making = Making.of(base, "m", task("toys", SETS[0]), params, HYPER, SETS[:1])
    monkeypatch.setattr("pipeline.train.fisher._loss", lambda *_: sum(
        0 * base.unet.get_parameter(n).sum() for n in key_value_names(base.unet)
    ))  # fmt: skip
    with pytest.raises(BenchError, match="is zero, so that nothing would be guarded"):
        making.fisher(TRAINED, parts[0], 2)


def test_elastic_weights_sum_the_fisher_information_of_all_tasks(base, params, parts, tmp_path):
    made = learn(base, params, "custom_diffusion_ewc", parts)
    whole: dict[str, Tensor] = {}
    for n, adapter in enumerate(made):
        making = Making.of(base, "m", task("toys", *SETS[: n + 1]), params, HYPER, SETS[n : n + 1])
        for name, part in making.fisher(TRAINED, adapter, 3).items():
            whole[name] = whole.get(name, torch.zeros(())) + part
        assert all(torch.equal(adapter.kept[name], whole[name]) for name in whole)
    values = torch.cat([part.flatten() for part in made[0].kept.values()]).double()
    assert made[2].provenance.notes["fisher_mean"] == pytest.approx(float(values.mean()))
    save_adapter(made[2], tmp_path / "adapter.safetensors")
    again = load_adapter(tmp_path / "adapter.safetensors")
    assert all(torch.equal(again.kept[name], part) for name, part in whole.items())
    # What is kept for learning is no part of what is sampled.
    numbers = sum(d.numel() for d in again.deltas.values()) + sum(
        row.numel() for row in again.tokens.values()
    )
    assert again.parameters() == numbers


def of_strength(strength: float) -> MethodParams:
    return HYPER.model_copy(update={"own": {"strength": strength, "fisher_rows": 3}})


@pytest.mark.parametrize("name", CHAINS[1:])
def test_without_strength_a_guard_changes_nothing(base, params, parts, name):
    plain = learn(base, params, CHAINS[0], parts)
    guarded = learn(base, params, name, parts, hyper=of_strength(0.0))
    assert all(same(one, other) for one, other in zip(plain, guarded))


@pytest.mark.parametrize(("name", "strength"), [(CHAINS[1], 1e6), (CHAINS[2], 30.0)])
def test_a_strong_guard_keeps_more_of_what_was_there(base, params, parts, name, strength):
    """EWC: weights; LwF: what the model says of old prompts."""
    hyper = HYPER.model_copy(update={"learning_rate": 1e-3, "steps": 12})
    strong = hyper.model_copy(update={"own": {"strength": strength, "fisher_rows": 3}})
    first, plain = learn(base, params, CHAINS[0], parts, 2, hyper)
    guarded = learn(base, params, name, parts, 2, strong)[-1]

    def moved(adapter: Adapter) -> float:
        if name == CHAINS[1]:
            weights = torch.cat([f.flatten() for f in stiff.values()])
            change = [(adapter.deltas[n] - first.deltas[n]).flatten() for n in stiff]
            return float((weights * torch.cat(change).pow(2)).sum())
        return float((answers(base, adapter) - answers(base, first)).pow(2).mean())

    stiff = learn(base, params, CHAINS[1], parts, 1, strong)[0].kept
    assert moved(guarded) < 0.5 * moved(plain)


def answers(base: Base, adapter: Adapter) -> Tensor:
    """What the model predicts of noise when asked for the first concept."""
    noisy = torch.randn((8, *base.latent_shape), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), applied(base, adapter):
        asked = base.condition(["photo of a <new1> cat"] * 8)
        return base.predict(noisy, torch.linspace(10, 990, 8).long(), asked)


def test_the_optimum_of_a_quadratic_loss_with_the_penalty_is_known():
    draw = torch.Generator().manual_seed(2)
    a, b, start, stiffness = (torch.rand(4, 3, generator=draw).double() + 0.1 for _ in range(4))
    theta = start.clone().requires_grad_(True)
    penalty, empty = Quadratic({"w": stiffness}), torch.zeros(0)
    batch = Batch(0, empty, empty, None, empty, empty, empty)
    for _ in range(2000):
        loss = 0.5 * (a * (theta - b) ** 2).sum()
        loss = loss + penalty(Step({"w": theta - start}, empty, batch))
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.3 * gradient).detach().requires_grad_(True)
    torch.testing.assert_close(theta.detach(), (a * b + stiffness * start) / (a + stiffness))


@pytest.mark.parametrize("spoil", [lambda part: -part, None])
def test_a_task_before_without_its_fisher_information_is_refused(base, params, parts, spoil):
    first = learn(base, params, CHAINS[1], parts, 1)[0]
    kept = {n: spoil(part) for n, part in first.kept.items()} if spoil else {}
    how = load_method(CHAINS[1]).sequence
    making = Making.of(
        base, CHAINS[1], task("toys", *SETS[:2]), params, HYPER, SETS[1:2],
        previous=replace(first, kept=kept),
    )  # fmt: skip
    with pytest.raises(BenchError, match="lacks the Fisher information, or some is negative"):
        how.make(making)


# --- LwF


def test_distillation_compares_with_the_model_before_and_begins_at_zero(base, params, parts):
    """The teacher's answers are those of a second model with the old weights written into it."""
    name = CHAINS[2]
    making = Making.of(
        base, name, task("toys", *SETS[:2]), params, of_strength(1.0), SETS[1:2], previous=parts[0]
    )
    penalty = load_method(name).sequence.guarded(making, parts[0]).penalty
    noisy = torch.randn((8, *base.latent_shape), generator=torch.Generator().manual_seed(0))
    timesteps = torch.arange(8) * 100 + 5
    nothing = torch.zeros(0)

    def term(now: Adapter) -> float:
        with torch.no_grad(), applied(base, replace(now, tokens={})):
            batch = Batch(0, noisy, timesteps, None, nothing, nothing, nothing)
            return float(penalty(Step({}, nothing, batch)))

    assert term(parts[0]) == 0
    teacher = new_base()
    with torch.no_grad():
        for key, delta in parts[0].deltas.items():
            teacher.unet.get_parameter(key).add_(delta)
    expected = []
    teacher.add_modifier_tokens(parts[0].tokens)
    asked = teacher.condition(["photo of a <new1> cat"]).text.expand(2, -1, -1)
    with torch.no_grad():
        known = teacher.unet(noisy[:2], timesteps[:2], asked).sample
        with applied(base, replace(parts[1], tokens={})):
            now = base.unet(noisy[:2], timesteps[:2], asked).sample
    expected = (now - known).pow(2).mean()
    assert term(parts[1]) == pytest.approx(float(expected), rel=1e-4)
    assert float(expected) > 0


# --- Merges, and words that are learned alone


@pytest.mark.parametrize("name", ["custom_diffusion_merge", "custom_diffusion_average"])
def test_merges_of_a_task_are_those_of_the_composition(base, params, parts, name):
    made = learn(base, params, name, parts)
    for n in (2, 3):
        about = Subject("any", tuple(part.concept for part in SETS[:n]), Path("none.txt"))
        how = load_method(name).composition
        whole = how.make(Making.of(base, name, about, params, HYPER, (), parts[:n], CAPTIONS))
        assert same(made[n - 1], whole)
    needs = load_method(name).sequence.needs(["cat", "chair"])
    assert needs.adapters == (("custom_diffusion", "cat"), ("custom_diffusion", "chair"))
    assert not needs.previous and not needs.shards


def test_words_learned_alone_are_forgotten_by_nothing(base, params):
    """The first concept's images after each task are the same, byte by byte."""
    singles = [single(base, params, "textual_inversion", part) for part in SETS]
    sampler, images = SamplerParams(steps=2, guidance_scale=3, eta=0, batch_size=4), []
    for made in learn(base, params, "textual_inversion", singles):
        with applied(base, made) as session:
            asked = made.provenance.references[0]
            images.append(sample(base, [f"a {asked}", f"{asked} here"], [1, 2], sampler, session))
    assert [i.tobytes() for i in images[0]] == [i.tobytes() for i in images[2]]
    assert [i.tobytes() for i in images[0]] == [i.tobytes() for i in images[1]]


def test_every_method_with_sequences_is_tested_here():
    tested = {*CHAINS, "custom_diffusion_merge", "custom_diffusion_average", "textual_inversion"}
    assert {n for n in method_names() if load_method(n).sequence} == tested
