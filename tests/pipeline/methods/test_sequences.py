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
from pipeline.methods import Batch, Step, Trained, TrainingSet, load_method, method_names
from pipeline.methods.custom_diffusion import TRAINED
from pipeline.methods.penalties import Consolidation, Quadratic, SharedSubspace, shared_rows
from pipeline.models.adapter import Adapter, LowRank, applied, dense, load_adapter, save_adapter
from pipeline.models.base import Base, to_tensor
from pipeline.models.bundle import unbundled
from pipeline.models.crossattn import (
    cross_attention_layers,
    cross_attention_names,
    detached_start_token,
    key_value_names,
)
from pipeline.sample.sampler import sample
from pipeline.settings.profile import MethodParams, Params, SamplerParams
from pipeline.train.augment import draw_view, render_view, view_mask
from pipeline.train.making import Making, first_rows
from tests.pipeline.tiny import RARE_TOKENS, new_base, task, training_set

STEPS = 4
HYPER = MethodParams(
    learning_rate=1e-2, steps=STEPS, composition_steps=STEPS, rank=2, ridge=1e-6,
    own={"strength": 1.0, "fisher_rows": 3},
)  # fmt: skip
CAPTIONS = [f"photo of a {a} {b}" for a in ("red", "blue", "green") for b in ("dog", "house")]
SETS = [training_set(noun, noun, i) for i, noun in enumerate(("cat", "chair", "dog"))]


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
                    CAPTIONS if needs.captions else (),
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
            text = base.texts.models[0](base.texts.tokenize([caption]))[0]
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
    with teacher.texts.modifier_tokens(parts[0].tokens):
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


# --- ED-LoRA, and what is made of it


@pytest.fixture(scope="module")
def ed_loras(base: Base, params: Params) -> list[Adapter]:
    """Adapters of single concepts, the last of which has a noun of two words."""
    return [single(base, params, "ed_lora", part) for part in PAIRS]


PAIRS = [*SETS[:2], training_set("wooden_pot", "wooden pot", 5)]


def test_a_pair_is_a_random_token_and_one_for_each_word_for_all_layers_alike(base, params):
    method = load_method("ed_lora").single
    assert isinstance(method, Trained)
    rows, ids = first_rows(base, method, [PAIRS[2].concept], 1, params, 3)
    assert list(rows) == ["<new2>", "<new2_2>", "<new2_3>"]
    layers = len(cross_attention_layers(base.unet))
    for piece, word in (("<new2_2>", "wooden"), ("<new2_3>", "pot")):
        assert base.texts.tokenizer.decode([ids[piece]]).strip() == word
        assert torch.equal(rows[piece], base.texts.embedding_row(ids[piece]).expand(layers, -1))
    other = first_rows(base, method, [PAIRS[2].concept], 1, params, 4)[0]
    assert not torch.equal(rows["<new2>"], other["<new2>"])
    assert torch.equal(rows["<new2>"], rows["<new2>"][:1].expand(layers, -1))
    assert torch.equal(rows["<new2_2>"], other["<new2_2>"])


def test_ed_lora_trains_factors_of_cross_attention_and_all_rows(base, params, ed_loras):
    made = ed_loras[2]
    assert made.provenance.references == ("<new1> <new1_2> <new1_3>",)
    assert list(made.deltas) == cross_attention_names(base.unet)
    assert all(delta.up.any() for delta in made.deltas.values())
    start, _ = first_rows(
        base, load_method("ed_lora").single, [PAIRS[2].concept], 0, params, params.train.seeds[0]
    )
    for token, row in made.tokens.items():
        moved = (row - start[token]).abs().amax(1)
        assert (moved > 0).all()
        assert len({round(float(m), 6) for m in moved}) > 1  # each layer by itself


def test_a_file_keeps_rows_of_layers_and_the_order_of_pieces(base, ed_loras, tmp_path):
    save_adapter(ed_loras[2], tmp_path / "adapter.safetensors")
    again = load_adapter(tmp_path / "adapter.safetensors")
    assert list(again.tokens) == ["<new1>", "<new1_2>", "<new1_3>"]
    assert same(again, ed_loras[2])
    with applied(base, again):
        pass
    row = again.tokens["<new1>"]
    with (
        pytest.raises(BenchError, match="does not fit the base"),
        applied(base, replace(again, tokens={"<new1>": row[:-1]})),
    ):
        pass


def learn_pairs(base: Base, params: Params, name: str, singles: list[Adapter]) -> Adapter:
    about = Subject("pair", tuple(part.concept for part in PAIRS), Path("none.txt"))
    how = load_method(name).composition
    return how.make(Making.of(base, name, about, params, HYPER, (), singles))


def test_lora_merge_is_the_mean_of_the_changes_in_factors(base, params, ed_loras):
    made = learn_pairs(base, params, "lora_merge", ed_loras)
    assert made.provenance.references == (
        "<new1> <new1_2>", "<new2> <new2_2>", "<new3> <new3_2> <new3_3>",
    )  # fmt: skip
    assert torch.equal(made.tokens["<new3_3>"], ed_loras[2].tokens["<new1_3>"])
    assert made.provenance.initial_ids["<new2_2>"] == ed_loras[1].provenance.initial_ids["<new1_2>"]
    for name, delta in made.deltas.items():
        assert delta.up.shape[1] == 3 * HYPER.rank
        mean = torch.stack([dense(part.deltas[name]) for part in ed_loras]).mean(0)
        torch.testing.assert_close(delta.dense(), mean)


@pytest.mark.parametrize(
    "name", ["ed_lora_ewa", "ed_lora_equal", "ed_lora_one_hot", "lora_compose"]
)
def test_bundles_have_all_parts_as_they_were(base, params, ed_loras, name):
    made = learn_pairs(base, params, name, ed_loras)
    for own, part in zip(unbundled(made), ed_loras):
        assert own.keys() == part.deltas.keys()
        assert all(torch.equal(dense(own[n]), dense(part.deltas[n])) for n in own)
    how, sampler = load_method(name).composition, SamplerParams(
        steps=2, guidance_scale=3, eta=0, batch_size=4
    )  # fmt: skip
    asked = [f"a {reference}" for reference in made.provenance.references]
    with how.open(base, made) as session:
        images = sample(base, asked, [1, 2, 3], sampler, session)
        (alone,) = sample(base, asked[:1], [1], sampler, session)
    difference = np.asarray(images[0]).astype(int) - np.asarray(alone)
    assert np.abs(difference).max() <= 1  # whatever else is in the batch
    with applied(base, Adapter(made.tokens, {}, made.provenance)) as plain:
        (without,) = sample(base, asked[:1], [1], sampler, plain)
    assert without.tobytes() != alone.tobytes()


@pytest.mark.parametrize(("name", "whole"), [("ed_lora_equal", 0.8), ("ed_lora_one_hot", 1.0)])
def test_mixes_to_compare_with_weigh_all_alike_or_one_alone(base, params, ed_loras, name, whole):
    made = learn_pairs(base, params, name, ed_loras)
    with load_method(name).composition.open(base, made) as session:
        asked = session.condition([f"a {made.provenance.references[0]}", "a chair"])
        weights = session.router.scale * asked.weights
    torch.testing.assert_close(weights.sum(-1), torch.full_like(weights[..., 0], whole))
    if name == "ed_lora_equal":
        torch.testing.assert_close(weights, torch.full_like(weights, whole / 3))
    else:
        assert torch.equal(weights, weights.round())
        assert weights[0].argmax(-1).eq(0).all()  # its own tokens are in the prompt


def ups(draw: torch.Generator, count: int) -> list[dict[str, Tensor]]:
    return [{n: torch.randn((6, 2), generator=draw) for n in "ab"} for _ in range(count)]


def term(penalty: Consolidation, new: dict[str, Tensor]) -> Tensor:
    empty = torch.zeros(0)
    changes = {n: LowRank(up, torch.zeros(2, 5)) for n, up in new.items()}
    return penalty(Step(changes, empty, Batch(0, empty, empty, None, empty, empty, empty)))


def test_consolidation_written_out():
    draw = torch.Generator().manual_seed(1)
    old, (new,) = ups(draw, 3), ups(draw, 1)
    products = [float(np.abs(new[n].numpy() @ p[n].numpy().T).mean()) for p in old for n in "ab"]
    ones = [float(((new[n].numpy() - 1) ** 2).mean()) for n in "ab"]
    expected = 0.1 * (np.mean(products) + np.mean(ones))
    assert float(term(Consolidation(old, "released", 0.1), new)) == pytest.approx(
        expected, rel=1e-5
    )
    squares = [np.linalg.norm(p[n].numpy().T @ new[n].numpy()) ** 2 / 4 for p in old for n in "ab"]
    expected = 0.1 * np.mean(squares)
    assert float(term(Consolidation(old, "orthogonal", 0.1), new)) == pytest.approx(
        expected, rel=1e-5
    )


def test_orthogonal_consolidation_keeps_size_and_the_published_product_does_not():
    draw = torch.Generator().manual_seed(2)
    old, (start,) = ups(draw, 1), ups(draw, 1)

    def after(kind: str) -> dict[str, Tensor]:
        new = {n: up.clone().requires_grad_(True) for n, up in start.items()}
        optimizer = torch.optim.Adam(new.values(), 1e-2)
        for _ in range(1500):
            optimizer.zero_grad()
            term(Consolidation(old, kind, 1.0), new).backward()
            optimizer.step()
        return {n: up.detach() for n, up in new.items()}

    orthogonal, published = after("orthogonal"), after("published")
    for n in "ab":
        meet, size = float((old[0][n].T @ start[n]).norm()), float(start[n].norm())
        assert float((old[0][n].T @ orthogonal[n]).norm()) < 0.01 * meet
        assert float(orthogonal[n].norm()) > 0.5 * size
        assert float(published[n].norm()) < 0.2 * size


def test_the_shared_subspace_is_the_best_one_and_the_distance_to_it_the_least():
    """Against numpy's least squares for H, and drawn subspaces in place of W."""
    draw = np.random.default_rng(4)
    old = [
        LowRank(*(torch.tensor(draw.normal(size=s), dtype=torch.float32) for s in ((6, 2), (2, 9))))
        for _ in range(3)
    ]
    dense_ones = np.concatenate([c.dense().numpy() for c in old]).astype(np.float64)

    def distance(changes: np.ndarray, w: np.ndarray) -> float:
        h = np.linalg.lstsq(w.T, changes.T, rcond=None)[0].T
        return float(((changes - h @ w) ** 2).sum())

    w = shared_rows(old, 4)
    torch.testing.assert_close(w @ w.T, torch.eye(4), rtol=0, atol=1e-5)
    least = distance(dense_ones, w.double().numpy())
    values = np.linalg.svd(dense_ones, compute_uv=False)
    assert least == pytest.approx((values[4:] ** 2).sum(), rel=1e-4)
    for _ in range(20):
        near = w.numpy() + 0.1 * draw.normal(size=w.shape)
        assert distance(dense_ones, near) > least
    assert shared_rows(old, 16).shape == (6, 9)  # no more directions than there are
    new = LowRank(
        *(torch.tensor(draw.normal(size=s), dtype=torch.float32) for s in ((6, 2), (2, 9)))
    )
    empty = torch.zeros(0)
    step = Step({"a": new}, empty, Batch(0, empty, empty, None, empty, empty, empty))
    found = float(SharedSubspace({"a": w}, 0.5)(step))
    assert found == pytest.approx(0.5 * distance(new.dense().numpy(), w.numpy()), rel=1e-4)
    inside = Step({"a": LowRank(new.up, w[:2])}, empty, step.batch)
    assert float(SharedSubspace({"a": w}, 0.5)(inside)) == pytest.approx(0, abs=1e-8)


CIDM = MethodParams(
    learning_rate=1e-2, steps=STEPS, rank=2,
    own={"consolidation": 0.1, "sharing": 1.0, "shared_rank": 4},
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["cidm", "cidm_both", "cidm_orthogonal", "cidm_paper", "cidm_subspace"]
)
def test_cidm_adds_parts_and_leaves_those_before_alone(base, params, ed_loras, name):
    made = learn(base, params, name, ed_loras, hyper=CIDM)
    first = unbundled(made[0])[0]
    assert all(torch.equal(first[n].up, ed_loras[0].deltas[n].up) for n in first)
    for earlier, later in zip(made, made[1:]):
        assert all(torch.equal(later.tokens[t], row) for t, row in earlier.tokens.items())
        for key, delta in earlier.deltas.items():
            assert torch.equal(later.deltas[key].up, delta.up)
    assert list(made[2].tokens) == [f"<new{i}{p}>" for i in (1, 2, 3) for p in ("", "_2")]
    # Without the term a part is what ED-LoRA trains alone.
    plain = learn(base, params, name, ed_loras, 2, CIDM.model_copy(
        update={"own": {"consolidation": 0.0, "sharing": 0.0, "shared_rank": 4}}
    ))[-1]  # fmt: skip
    second, other = unbundled(plain)[1], unbundled(made[1])[1]
    assert all(torch.equal(second[n].up, ed_loras[1].deltas[n].up) for n in second)
    assert any(not torch.equal(other[n].up, second[n].up) for n in second)
    with load_method(name).sequence.open(base, made[2]) as session:
        session.condition(["", "a <new2> <new2_2>"])


# --- C-LoRA, Orthogonal Adaptation, all at once


def test_c_loras_penalty_is_that_of_weights_with_twice_the_sums_square(base, params):
    made = learn(base, params, "c_lora", [])
    assert made[0].provenance.references == ("<new1>",)
    assert all(isinstance(delta, LowRank) for delta in made[0].deltas.values())
    how = load_method("c_lora").sequence
    making = Making.of(
        base, "c_lora", task("toys", *SETS[:2]), params, of_strength(3.0), SETS[1:2],
        previous=made[0],
    )  # fmt: skip
    penalty = how.guarded(making, made[0]).penalty
    draw, empty = torch.Generator().manual_seed(0), torch.zeros(0)
    change = {}
    for name, delta in made[0].deltas.items():
        up, down = (torch.randn(f.shape, generator=draw) for f in (delta.up, delta.down))
        change[name] = LowRank(up, down)
    batch = Batch(0, empty, empty, None, empty, empty, empty)
    sums = {n: delta.dense() for n, delta in made[0].deltas.items()}
    count = sum(s.numel() for s in sums.values())
    mean = sum(float(s.pow(2).sum()) for s in sums.values()) / count
    expected = 3 * sum(
        float((sums[n].abs() * change[n].dense()).pow(2).sum()) for n in sums
    ) / mean  # fmt: skip
    assert float(penalty(Step(change, empty, batch))) == pytest.approx(expected, rel=1e-4)
    elsewhere = {n: torch.where(sums[n] == 0, 1.0, 0.0) for n in sums}
    assert float(penalty(Step(elsewhere, empty, batch))) == 0


def test_c_lora_adds_products_and_not_factors(base, params):
    first, second = learn(base, params, "c_lora", [], 2)
    for name, delta in second.deltas.items():
        added = dense(delta) - first.deltas[name].dense()
        assert 0 < torch.linalg.matrix_rank(added, rtol=1e-3) <= HYPER.rank


def test_orthogonal_adaptations_are_some_rows_of_one_basis(base, params):
    hyper = HYPER.model_copy(update={"own": {"merge_scale": 0.6}})
    singles = [single(base, params, "orthogonal_adaptation", part) for part in SETS]
    for name, delta in singles[0].deltas.items():
        torch.testing.assert_close(delta.down @ delta.down.T, torch.eye(2), rtol=0, atol=1e-5)
        assert delta.up.any()
        other = singles[1].deltas[name]
        products = (delta.down @ other.down.T).abs()  # of the same rows one, of others none
        torch.testing.assert_close(products, products.round(), rtol=0, atol=1e-5)
        if not products.round().any():
            assert abs(float((delta.dense() * other.dense()).sum())) < 1e-6
    # Before any step it is what it is afterwards.
    start = load_method("orthogonal_adaptation").single
    about = Subject("cat", (SETS[0].concept,), Path("none.txt"))
    none = HYPER.model_copy(update={"steps": 0})
    untrained = start.make(Making.of(base, "m", about, params, none, SETS[:1]))
    assert all(torch.equal(untrained.deltas[n].down, d.down) for n, d in singles[0].deltas.items())
    made = learn(base, params, "orthogonal_adaptation", singles, hyper=hyper)[-1]
    for name, delta in made.deltas.items():
        whole = 0.6 * sum(dense(part.deltas[name]) for part in singles)
        torch.testing.assert_close(dense(delta), whole)
        downs = torch.cat([part.deltas[name].down for part in singles])
        assert torch.linalg.matrix_rank(dense(delta)) <= torch.linalg.matrix_rank(downs)


def test_joint_has_the_images_of_all_concepts_so_far(base, params):
    how = load_method("joint").sequence
    assert how.needs(["cat", "chair"]).shards == ("cat", "chair")
    first, second = learn(base, params, "joint", [], 2)
    assert same(first, single(base, params, "custom_diffusion", SETS[0]))
    assert list(second.tokens) == ["<new1>", "<new2>"]
    assert second.provenance.steps == HYPER.composition_steps


def test_every_method_with_sequences_is_tested_here():
    tested = {*CHAINS, "custom_diffusion_merge", "custom_diffusion_average", "textual_inversion"}
    tested |= {"lora_merge", "lora_compose", "ed_lora_ewa", "cidm", "cidm_orthogonal", "c_lora"}
    tested |= {"cidm_both", "cidm_paper", "cidm_subspace", "ed_lora_equal", "ed_lora_one_hot"}
    tested |= {"orthogonal_adaptation", "joint"}
    assert {n for n in method_names() if load_method(n).sequence} == tested
