from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.seeds import seed_of
from pipeline.methods import How, Trained, TrainingSet, load_method, method_names
from pipeline.models.adapter import Adapter, LowRank, dense
from pipeline.models.base import Base, to_tensor
from pipeline.models.crossattn import (
    attention_names,
    cross_attention_names,
    detached_start_token,
    key_value_names,
)
from pipeline.settings.profile import MethodParams, Params
from pipeline.train import loop as training
from pipeline.train.augment import render_view, view_mask
from pipeline.train.encoder import Encoder, Row
from pipeline.train.loop import draw_schedule, loss_of_rows
from pipeline.train.making import Making, first_rows
from tests.pipeline.tiny import RARE_TOKENS, new_base, subject, training_set

CAPTIONS = [f"photo of a {a} {b}" for a in ("red", "blue", "green") for b in ("dog", "house")]
ONE = training_set("cat", "cat")
HYPER = MethodParams(learning_rate=1e-2, rank=2, ridge=1e-6)


def make(
    how: How, base: Base, params: Params, name: str, hyper: MethodParams, *sets, parts=()
) -> Adapter:
    """As stage `train` has it made, from these images and parts."""
    about = subject(*sets)
    return how.make(Making.of(base, name, about, params, hyper, sets, parts, CAPTIONS))


def composition(name: str) -> How:
    found = load_method(name).composition
    assert found is not None
    return found


def how(method: str, concepts: int = 1) -> Trained:
    found = load_method(method)
    chosen = found.single if concepts == 1 else found.composition
    assert isinstance(chosen, Trained)
    return chosen


def run(base: Base, params: Params, name: str, *sets: TrainingSet, steps: int = 3) -> Adapter:
    hyper = HYPER.model_copy(update={"steps": steps, "composition_steps": steps})
    return make(how(name, len(sets)), base, params, name, hyper, *sets)


def schedule(
    method: Trained, sets: list[TrainingSet], params: Params, resolution: int, steps: int
) -> list[list[Row]]:
    references = [
        method.reference.format(token=f"<new{i}>", noun=part.concept.class_noun)
        for i, part in enumerate(sets, 1)
    ]
    seed = params.train.seeds[0]
    return draw_schedule(method, sets, references, params.train, resolution, steps, seed)


def state(base: Base) -> dict[str, Tensor]:
    models = {"unet": base.unet, "vae": base.vae, "text": base.texts.models[0]}
    return {
        f"{kind}.{name}": value.clone()
        for kind, model in models.items()
        for name, value in model.state_dict().items()
    }


def check_restored(base: Base, before: dict[str, Tensor]) -> None:
    """Finds out whether the base is what it was: the same names, and the same bits."""
    after = state(base)
    assert after.keys() == before.keys()
    assert [key for key in after if not torch.equal(after[key], before[key])] == []
    parts = (base.unet, base.vae, base.texts.models[0])
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())


def no_names(_unet) -> list[str]:
    return []


def all_names(unet) -> list[str]:
    return [name for name, _ in unet.named_parameters()]


@pytest.mark.parametrize(
    ("name", "token_trains", "weights"),
    [
        ("textual_inversion", True, no_names),
        ("custom_diffusion", True, key_value_names),
        ("custom_diffusion_all", True, all_names),
        ("custom_diffusion_no_augmentation", True, key_value_names),
        ("custom_diffusion_no_regularization", True, key_value_names),
        ("custom_diffusion_generated", True, key_value_names),
        ("custom_diffusion_normal_token", True, key_value_names),
        ("custom_diffusion_frozen_token", False, key_value_names),
        ("dreambooth", False, all_names),
        ("lora", False, attention_names),
        ("lora_kv", True, key_value_names),
        ("ed_lora", True, cross_attention_names),
        ("orthogonal_adaptation", True, key_value_names),
    ],
)
def test_only_what_the_method_names_changes(base, params, name, token_trains, weights):
    before = state(base)
    one = training_set("cat", "cat")
    adapter = run(base, params, name, one)
    assert list(adapter.deltas) == list(weights(base.unet))
    for key, delta in adapter.deltas.items():
        assert dense(delta).abs().max() > 0 or "bias" in key
    rows, _ = first_rows(base, how(name), [one.concept], 0, params, 42)
    assert torch.equal(adapter.tokens["<new1>"], rows["<new1>"]) is not token_trains
    check_restored(base, before)


def test_every_method_that_trains_single_concepts_is_tested_above():
    (mark,) = test_only_what_the_method_names_changes.pytestmark
    tested = {case[0] for case in mark.args[1]}
    assert tested == {n for n in method_names() if isinstance(load_method(n).single, Trained)}


def diverging(base: Base, params: Params, name: str, rate: float, steps: int) -> str:
    """The message of a training that diverges, which leaves the base as it was."""
    hyper = HYPER.model_copy(update={"steps": steps, "learning_rate": rate})
    one, before = training_set("cat", "cat"), state(base)
    with pytest.raises(FailureError) as error:
        make(how(name), base, params, name, hyper, one)
    check_restored(base, before)
    assert error.value.failure.kind == "diverged"
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "rate"), [("dreambooth", 9.0), ("custom_diffusion", 1e20), ("textual_inversion", 1e20)]
)
def test_training_stops_at_the_first_loss_that_is_not_finite(base, params, monkeypatch, name, rate):
    losses, plain = [], training.loss_of_rows

    def spy(*arguments):
        losses.append(found := plain(*arguments))
        return found

    monkeypatch.setattr(training, "loss_of_rows", spy)
    message = diverging(base, params, name, rate, 40)
    finite = [bool(torch.isfinite(loss).all()) for loss in losses]
    assert finite == [True] * (len(losses) - 1) + [False]
    assert message == (
        f"{name} on cat: the training diverged: the loss is not finite at step {len(losses)} of 40 "
        f"(learning rate {rate:g}): lower methods.{name}.learning_rate in the profile's params.yaml"
    )


@pytest.mark.parametrize("name", ["dreambooth", "lora_kv", "textual_inversion"])
def test_a_last_gradient_that_is_not_finite_makes_no_adapter(base, params, monkeypatch, name):
    plain = training.loss_of_rows

    def steep(error, mask, masked):
        """The loss, with a root of zero: its value is zero, its slope is not finite."""
        return plain(error, mask, masked) + (0 * error).sqrt().sum()

    monkeypatch.setattr(training, "loss_of_rows", steep)
    message = diverging(base, params, name, 1e-3, 1)
    assert re.search(r"diverged: (delta|up|down|token)\.\S+ is not finite at step 1 of 1", message)
    assert message.endswith(f"lower methods.{name}.learning_rate in the profile's params.yaml")


def test_normal_token_has_the_tables_mean_and_deviation(base, params):
    method = how("custom_diffusion_normal_token")
    names = [f"concept-{i}" for i in range(400)]
    drawn = torch.stack(
        [
            first_rows(base, method, [training_set(n, "cat").concept], 0, params, 42)[0]["<new1>"]
            for n in names
        ]
    )
    table = base.texts.embedding_table()
    scale = table.std(0)
    torch.testing.assert_close(drawn.mean(0) / scale, table.mean(0) / scale, rtol=0, atol=0.25)
    torch.testing.assert_close(drawn.std(0) / scale, torch.ones_like(scale), rtol=0, atol=0.25)


def test_low_rank_change_is_that_of_its_factors_trained_plainly(base, params):
    """One step on the factors against autograd on the weights, and AdamW."""
    one, method = training_set("cat", "cat"), how("lora_kv")
    adapter = run(base, params, "lora_kv", one, steps=1)
    names = method.weights(base.unet)
    gradients, _ = plain_gradients(base, params, method, one, names)
    start = run(base, params, "lora_kv", one, steps=0)
    for name, gradient in gradients.items():
        up, down = adapter.deltas[name].up, adapter.deltas[name].down
        first = start.deltas[name]
        assert up.shape[1] == down.shape[0] == 2
        assert not first.up.any() and first.down.all()
        # `up` is zero, so that `down` has no gradient yet: it is only decayed.
        check_step(up, first.up, gradient @ first.down.T)
        torch.testing.assert_close(down, first.down * (1 - HYPER.learning_rate * 0.01))
        assert torch.linalg.matrix_rank(adapter.deltas[name].dense()) <= 2


def test_a_rank_larger_than_a_matrix_is_refused(base, params):
    hyper = HYPER.model_copy(update={"steps": 1, "rank": 1000})
    one = training_set("cat", "cat")
    before = state(base)
    with pytest.raises(BenchError, match="rank 1000 does not fit .*choose a rank from 1 to"):
        make(how("lora"), base, params, "lora", hyper, one)
    check_restored(base, before)


def test_key_value_names_are_all_of_cross_attention_and_nothing_else(base):
    names = key_value_names(base.unet)
    processors = [n for n in base.unet.attn_processors if ".attn2." in n]
    assert len(names) == 2 * len(processors) > 0
    # Their input is the text, whose width self-attention never has here.
    assert all(dict(base.unet.named_parameters())[n].shape[1] == 32 for n in names)


def test_training_twice_gives_the_same_adapter(base, params):
    first = run(base, params, "custom_diffusion", training_set("cat", "cat"))
    torch.randn(7)  # the global generator does not matter
    second = run(base, params, "custom_diffusion", training_set("cat", "cat"))
    assert torch.equal(first.tokens["<new1>"], second.tokens["<new1>"])
    assert all(torch.equal(first.deltas[n], second.deltas[n]) for n in first.deltas)


@pytest.mark.parametrize("name", ["custom_diffusion", "custom_diffusion_normal_token", "lora"])
def test_another_seed_is_another_training(base, params, name):
    """Views, noise, and where normal tokens and low ranks start, by the seed that is asked for."""
    one = training_set("cat", "cat")
    hyper = HYPER.model_copy(update={"steps": 2})
    both = params.model_copy(
        update={"train": params.train.model_copy(update={"seeds": [43, *params.train.seeds]})}
    )

    def made(of: Params, seed: int | None) -> Adapter:
        about = subject(one)
        return how(name).make(Making.of(base, name, about, of, hyper, [one], seed=seed))

    first, second = made(params, None), made(params, 43)
    assert (first.provenance.seed, second.provenance.seed) == (42, 43)
    assert not any(torch.equal(dense(d), dense(second.deltas[n])) for n, d in first.deltas.items())
    for same, other in ((made(both, 42), first), (made(both, None), second)):
        assert same.provenance == other.provenance
        tensors = other.tensors()
        assert all(torch.equal(t, tensors[n]) for n, t in same.tensors().items())


def plain_gradients(
    base: Base, params: Params, method: Trained, one: TrainingSet, names: list[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of the first step's loss for weights and for the token, without caches.

    The token is a further row of an ordinary embedding table, and mask, noise and target are
    written out.
    """
    rows = schedule(method, [one], params, base.resolution, 1)[0]
    generator = torch.Generator().manual_seed(seed_of(params.train.seeds[0], "cat", "step", 0))
    shape = (len(rows), *base.latent_shape)
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    timesteps = torch.randint(1000, shape[:1], generator=generator)
    pictures = [
        render_view(p.view, one.targets if p.target else one.regularization, 32)
        for p in (row.picture for row in rows)
    ]
    latent = base.vae.encode(to_tensor(pictures)).latent_dist
    clean = (latent.mean + latent.std * posterior) * base.vae.config.scaling_factor
    alpha = base.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    target = {"epsilon": noise, "v_prediction": velocity}[base.scheduler.config.prediction_type]

    table = base.texts.models[0].get_input_embeddings()
    more = base.texts.embedding_table()[RARE_TOKENS[:1]]
    longer = torch.nn.Embedding.from_pretrained(torch.cat([table.weight, more]), freeze=False)
    base.texts.tokenizer.add_tokens(["<new1>"])
    assert base.texts.tokenizer.convert_tokens_to_ids("<new1>") == len(table.weight)
    base.texts.models[0].set_input_embeddings(longer)
    weights = [base.unet.get_parameter(name).requires_grad_(True) for name in names]
    text = base.texts.models[0](base.texts.tokenize([r.caption for r in rows]))[0]
    with detached_start_token(base.unet) if method.detach_start_token else nullcontext():
        error = base.unet(noisy, timesteps, text).sample - target
    total = 0.0
    for e, row in zip(error, rows):
        mask = view_mask(row.picture.view, 32, 4)
        total = total + (e**2 * mask).sum() / mask.sum()
    *found, of_table = torch.autograd.grad(total / len(rows), [*weights, longer.weight])
    base.unet.requires_grad_(False)
    base.texts.models[0].set_input_embeddings(table)
    return dict(zip(names, found)), of_table[-1]


def first_step(before: Tensor, gradient: Tensor) -> Tensor:
    """What AdamW's first step adds: the learning rate against the gradient's sign, and decay."""
    return -HYPER.learning_rate * (0.01 * before + gradient / (gradient.abs() + 1e-8))


def check_step(change: Tensor, before: Tensor, gradient: Tensor) -> None:
    """Compares a change with the first step, where the gradient is more than rounding."""
    clear = gradient.abs() > 1e-3 * gradient.abs().max() + 1e-7
    assert clear.float().mean() > 0.5
    expected = first_step(before, gradient)
    torch.testing.assert_close(change[clear], expected[clear], rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_a_step_is_the_step_computed_plainly(params, predicts):
    """One step of K, V and the token against a computation with autograd and no caches."""
    base, one = new_base(prediction_type=predicts), training_set("cat", "cat")
    adapter = run(base, params, "custom_diffusion", one, steps=1)
    names = key_value_names(base.unet)
    gradients, of_token = plain_gradients(base, params, how("custom_diffusion"), one, names)
    for name, gradient in gradients.items():
        check_step(adapter.deltas[name], base.unet.get_parameter(name), gradient)
    row = base.texts.embedding_row(RARE_TOKENS[0])
    check_step(adapter.tokens["<new1>"] - row, row, of_token)


def test_start_token_values_stay_but_teach_nothing(base):
    text = torch.randn(2, 5, 32, requires_grad=True)
    noisy = torch.randn(2, 4, 8, 8)
    plain = base.unet(noisy, 3, text).sample
    with detached_start_token(base.unet):
        detached = base.unet(noisy, 3, text).sample
    assert torch.equal(plain, detached)
    (gradient,) = torch.autograd.grad(detached.sum(), text)
    assert gradient[:, 0].abs().max() == 0
    assert gradient[:, 1:].abs().max() > 0


def test_masked_loss_is_the_sum_over_the_mask_divided_by_its_size():
    error = torch.randn(3, 4, 8, 8)
    mask = torch.zeros(3, 8, 8)
    mask[:, 2:5, 1:7] = 1
    expected = [(e[:, 2:5, 1:7].double() ** 2).sum() / 18 for e in error]
    torch.testing.assert_close(loss_of_rows(error, mask, True).double(), torch.stack(expected))
    ones = torch.ones_like(mask)
    ratio = loss_of_rows(error, ones, True) / loss_of_rows(error, ones, False)
    torch.testing.assert_close(ratio, torch.full((3,), 4.0))


def test_batches_share_targets_and_regularization_and_concepts_equally(params):
    sets = [training_set("cat", "cat"), training_set("chair", "chair", 1)]
    for method, kinds in (("custom_diffusion", 2), ("textual_inversion", 1)):
        for rows in schedule(how(method), sets, params, 32, 20):
            counts = Counter((row.picture.concept, row.picture.target) for row in rows)
            assert set(counts.values()) == {params.train.batch_size // (2 * kinds)}
            assert len(rows) == params.train.batch_size


def test_captions_follow_the_method(params):
    one = training_set("wooden_pot", "wooden pot")
    prefixes = ("", "a far away ", "very small ", "zoomed in ", "close up ")

    def captions(method: str, target: bool = True) -> set[str]:
        steps = schedule(how(method), [one], params, 64, 60)
        return {row.caption for rows in steps for row in rows if row.picture.target is target}

    assert captions("custom_diffusion") == {f"{p}photo of a <new1> wooden pot" for p in prefixes}
    assert captions("dreambooth") == {"photo of <new1> wooden pot"}
    assert all(c.endswith("<new1>") for c in captions("textual_inversion"))
    assert captions("custom_diffusion", target=False) <= set(one.captions)


def test_styles_are_trained_on_captions_of_their_own(params):
    one = training_set("neon", "picture")
    style = replace(one, concept=replace(one.concept, caption="a picture in the style of {}"))
    for method, reference in (("dreambooth", "<new1> picture"), ("textual_inversion", "<new1>")):
        steps = schedule(how(method), [style], params, 64, 10)
        captions = {row.caption for rows in steps for row in rows if row.picture.target}
        assert captions == {f"a picture in the style of {reference}"}


@pytest.mark.parametrize("at_once", [1, 10])
def test_each_picture_is_encoded_once_and_let_go_after_its_last_step(
    base, params, monkeypatch, at_once
):
    one = training_set("cat", "cat")
    steps = schedule(how("custom_diffusion"), [one], params, base.resolution, 12)
    encode, encoded = Encoder(base, [one], steps, at_once), []
    plain = type(base).encode_images

    def spy(self, images):
        # The VAE on the same batch, as its rounding depends on what else is in there.
        posterior = self.vae.encode(images).latent_dist
        encoded.extend(zip(images, posterior.mean, posterior.std))
        return plain(self, images)

    monkeypatch.setattr(type(base), "encode_images", spy)
    for step, rows in enumerate(steps):
        latents = encode(step, encode.rendered(step))
        for row, mean, deviation, mask in zip(rows, *latents):
            view, images = row.picture.view, one.targets
            images = images if row.picture.target else one.regularization
            (picture,) = to_tensor([render_view(view, images, base.resolution)])
            expected = next(part[1:] for part in encoded if torch.equal(part[0], picture))
            torch.testing.assert_close(mean, expected[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(deviation, expected[1], rtol=1e-4, atol=1e-5)
            assert torch.equal(mask, view_mask(view, base.resolution, base.downsampling))
    assert len(encoded) == len({row.picture for rows in steps for row in rows})
    assert len(encoded) < sum(map(len, steps))
    assert not encode.kept
    *first, _ = map(len, encode.groups.values())
    assert min(first) >= at_once


def test_three_concepts_share_a_batch_of_eight_equally(params):
    sets = [training_set(n, "cat") for n in ("a", "b", "c")]
    for rows in schedule(how("custom_diffusion", 3), sets, params, 32, 3):
        counts = Counter((row.picture.concept, row.picture.target) for row in rows)
        assert set(counts.values()) == {1}
        assert len(rows) == 6


def test_a_batch_that_is_too_small_is_refused(params):
    sets = [training_set(n, "cat") for n in ("a", "b", "c")]
    small = params.model_copy(update={"train": params.train.model_copy(update={"batch_size": 4})})
    with pytest.raises(BenchError, match="batch_size: 4 is too small for 3 concepts"):
        schedule(how("custom_diffusion", 3), sets, small, 32, 1)


def test_without_regularization_all_images_are_targets(params):
    one = training_set("cat", "cat")
    steps = schedule(how("custom_diffusion_no_regularization"), [one], params, 32, 5)
    assert all(row.picture.target for rows in steps for row in rows)
    assert {len(rows) for rows in steps} == {params.train.batch_size}


def test_without_augmentation_targets_are_only_mirrored(params):
    one = training_set("cat", "cat")
    steps = schedule(how("custom_diffusion_no_augmentation"), [one], params, 32, 40)
    rows = [row for rows in steps for row in rows if row.picture.target]
    assert {row.caption for row in rows} == {"photo of a <new1> cat"}
    assert {row.picture.view.size for row in rows} == {32}
    assert {row.picture.view.flip for row in rows} == {True, False}


def test_missing_regularization_is_refused(params):
    bare = training_set("cat", "cat")
    bare = type(bare)(bare.concept, bare.targets, [], [])
    with pytest.raises(BenchError, match="no regularization images"):
        schedule(how("custom_diffusion"), [bare], params, 32, 1)


def test_unknown_method_is_refused():
    with pytest.raises(BenchError, match="choose one of .*custom_diffusion"):
        load_method("hyperdream")
    assert "pretrained" in method_names()


NOUNS = ("cat", "chair", "dog")


def parts_of(base: Base, params: Params, count: int) -> tuple[list[TrainingSet], list[Adapter]]:
    sets = [training_set(noun, noun, i) for i, noun in enumerate(NOUNS[:count])]
    return sets, [run(base, params, "custom_diffusion", part, steps=5) for part in sets]


@pytest.mark.parametrize("template_words", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_merge_maps_each_concept_as_its_own_adapter(base, params, count, template_words):
    sets, parts = parts_of(base, params, count)
    how = composition("custom_diffusion_merge")
    hyper = HYPER.model_copy(update={"template_words": template_words})
    result = make(how, base, params, "m", hyper, *sets, parts=parts)
    assert result.provenance.notes["residual"] < 1e-6
    # Three words and the template's four with template words, else twice "<new1> cat" and the end;
    # the words of the template before the token are the same for all concepts.
    rows = 3 + 3 + 3 if template_words else 3 + 3
    shared = 3 * (count - 1) if template_words else 0
    assert result.provenance.notes["constraints"] == rows * count - shared
    assert result.provenance.references == tuple(
        f"<new{i}> {noun}" for i, noun in enumerate(NOUNS[:count], 1)
    )

    with torch.no_grad(), base.texts.modifier_tokens(result.tokens):
        text = base.condition(list(result.provenance.references)).text
    weights = dict(base.unet.named_parameters())
    for i, part in enumerate(parts):
        assert torch.equal(result.tokens[f"<new{i + 1}>"], part.tokens["<new1>"])
        for name, delta in part.deltas.items():
            words = text[i, 1:4]  # modifier token, noun, end
            own = words @ (weights[name] + delta).T
            torch.testing.assert_close(
                words @ (weights[name] + result.deltas[name]).T, own, rtol=1e-3, atol=1e-4
            )


def test_average_is_the_mean_of_the_changes_and_keeps_all_tokens(base, params):
    sets, parts = parts_of(base, params, 2)
    how = composition("custom_diffusion_average")
    result = make(how, base, params, "m", HYPER, *sets, parts=parts)
    for name, delta in result.deltas.items():
        both = parts[0].deltas[name].double() + parts[1].deltas[name].double()
        torch.testing.assert_close(delta.double(), both / 2, rtol=1e-6, atol=1e-9)
    assert torch.equal(result.tokens["<new2>"], parts[1].tokens["<new1>"])


def test_a_merge_without_a_finite_solution_is_refused(base, params, monkeypatch):
    sets, parts = parts_of(base, params, 2)
    method = "custom_diffusion_merge"
    arguments = (composition(method), base, params, method, HYPER, *sets)
    name = next(iter(parts[0].deltas))
    huge = {name: 3e38 * parts[0].deltas[name].sign()}  # finite, but too large for what comes of it
    parts[0] = replace(parts[0], deltas={**parts[0].deltas, **huge})
    whose = r"^custom_diffusion_merge on cat\+chair: the merge has no finite solution \("
    field = r"ridge 1e-06\): raise methods\.custom_diffusion_merge\.ridge"
    with pytest.raises(FailureError, match=f"{whose}delta.{name}; {field}"):
        make(*arguments, parts=parts)

    def singular(*_):
        return torch.linalg.inv(torch.zeros(2, 2))

    monkeypatch.setattr("pipeline.train.making.constrained", singular)
    with pytest.raises(FailureError, match=f"{whose}.*singular.*; {field}"):
        make(*arguments, parts=parts)


def test_words_of_textual_inversion_are_put_side_by_side(base, params):
    sets = [training_set(noun, noun, i) for i, noun in enumerate(("cat", "wooden pot"))]
    parts = [run(base, params, "textual_inversion", part) for part in sets]
    how = composition("textual_inversion")
    result = make(how, base, params, "m", HYPER, *sets, parts=parts)
    assert result.deltas == {}
    assert result.provenance.references == ("<new1>", "<new2>")
    for i, part in enumerate(parts, 1):
        assert torch.equal(result.tokens[f"<new{i}>"], part.tokens["<new1>"])


def test_sequential_goes_on_from_the_first_concept_and_leaves_its_token(base, params):
    sets, parts = parts_of(base, params, 3)
    how = composition("custom_diffusion_sequential")
    hyper = HYPER.model_copy(update={"composition_steps": 4})
    before = state(base)
    result = make(how, base, params, "s", hyper, *sets, parts=parts[:1])
    assert torch.equal(result.tokens["<new1>"], parts[0].tokens["<new1>"])
    assert result.provenance.references == ("<new1> cat", "<new2> chair", "<new3> dog")
    assert result.provenance.initial_ids == {f"<new{i}>": RARE_TOKENS[i - 1] for i in (1, 2, 3)}
    assert result.provenance.steps == 5 + 4 + 4
    assert (result.provenance.method, result.provenance.subject) == ("s", "cat+chair+dog")
    check_restored(base, before)
    # No step: the adapter of the first concept, and the other tokens where they start.
    hyper = HYPER.model_copy(update={"composition_steps": 0})
    same = make(how, base, params, "s", hyper, *sets, parts=parts[:1])
    for name, delta in same.deltas.items():
        torch.testing.assert_close(delta, parts[0].deltas[name], rtol=0, atol=0)
    assert torch.equal(same.tokens["<new3>"], base.texts.embedding_row(RARE_TOKENS[2]))


def test_sequential_trains_on_a_base_that_is_the_first_concepts(base, params):
    """A base with that concept's weights written into it gives what the training adds, bit for bit.

    The same training on the plain base gives something else.
    """
    sets, parts = parts_of(base, params, 2)
    hyper = HYPER.model_copy(update={"composition_steps": 2})
    how = composition("custom_diffusion_sequential")
    result = make(how, base, params, "s", hyper, *sets, parts=parts[:1])

    def added(start: Base) -> Adapter:
        about = subject(*sets)
        return Making.of(start, "s", about, params, hyper).train(how.how, sets[1:], 1)

    customized = new_base()
    with torch.no_grad():
        for name, weight in customized.unet.named_parameters():
            weight.add_(parts[0].deltas.get(name, torch.zeros(())))
    expected, plain = added(customized), added(base)
    assert torch.equal(result.tokens["<new2>"], expected.tokens["<new2>"])
    for name, delta in result.deltas.items():
        assert torch.equal(delta, expected.deltas[name] + parts[0].deltas[name])
        assert not torch.equal(delta, plain.deltas[name] + parts[0].deltas[name])


def test_a_penalty_on_changes_and_tokens_is_a_part_of_the_loss(base, params):
    """A linear one so steep that the images do not count: its gradient's signs are known."""
    draw = torch.Generator().manual_seed(5)
    slopes: dict[str, torch.Tensor] = {}

    def slope(name: str, like: torch.Tensor) -> torch.Tensor:
        if name not in slopes:
            signs = torch.randint(2, like.shape, generator=draw) * 2 - 1
            slopes[name] = 1e6 * signs.to(like)
        return slopes[name]

    def penalty(step):
        changed = [(name, part) for name, part in step.changes.items()]
        changed.append(("rows", step.rows))
        return sum((slope(name, part) * part).sum() for name, part in changed)

    method = replace(how("custom_diffusion"), penalty=penalty)
    hyper = HYPER.model_copy(update={"steps": 1})
    adapter = make(method, base, params, "m", hyper, training_set("cat", "cat"))
    weights = dict(base.unet.named_parameters())
    for name, delta in adapter.deltas.items():
        expected = first_step(weights[name].double(), slopes[name].double())
        torch.testing.assert_close(delta.double(), expected, rtol=1e-4, atol=1e-6)
    row = base.texts.embedding_row(RARE_TOKENS[0])
    expected = first_step(row.double(), slopes["rows"][0].double())
    change = adapter.tokens["<new1>"] - row
    torch.testing.assert_close(change.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_penalty_on_factors_is_a_part_of_the_loss(base, params):
    """Each factor `up` is drawn to a number far away: all of it moves there by the rate."""

    def penalty(step):
        assert all(isinstance(change, LowRank) for change in step.changes.values())
        return 1e6 * sum((change.up - 1).pow(2).sum() for change in step.changes.values())

    method = replace(how("lora_kv"), penalty=penalty)
    hyper = HYPER.model_copy(update={"steps": 1})
    adapter = make(method, base, params, "m", hyper, training_set("cat", "cat"))
    for delta in adapter.deltas.values():
        expected = torch.full_like(delta.up, HYPER.learning_rate)
        torch.testing.assert_close(delta.up, expected, rtol=1e-4, atol=0)


def test_a_penalty_that_is_the_loss_with_another_sign_leaves_weight_decay_alone(base, params):
    """So what it sees of the batch is what the loss is of."""
    plain, seen = how("custom_diffusion"), []

    def penalty(step):
        b = step.batch
        seen.append(b.step)
        with torch.no_grad():
            again = base.predict(b.noisy, b.timesteps, b.condition)
        torch.testing.assert_close(again, b.predicted.detach())
        losses = loss_of_rows(b.predicted - b.target, b.mask, plain.masked_loss)
        return -(losses.sum() * 1 / len(losses))

    hyper = HYPER.model_copy(update={"steps": 3})
    one = training_set("cat", "cat")
    adapter = make(replace(plain, penalty=penalty), base, params, "m", hyper, one)
    assert seen == [0, 1, 2]
    left = (1 - HYPER.learning_rate * params.train.weight_decay) ** 3
    weights = dict(base.unet.named_parameters())
    for name, delta in adapter.deltas.items():
        expected = (left - 1) * weights[name].double()
        torch.testing.assert_close(delta.double(), expected, rtol=1e-2, atol=1e-7)


def test_a_penalty_that_is_not_finite_stops_the_training(base, params):
    method = replace(how("custom_diffusion"), penalty=lambda step: step.rows.sum() / 0)
    with pytest.raises(FailureError, match="the loss is not finite at step 1 of 1"):
        make(method, base, params, "m", HYPER.model_copy(update={"steps": 1}), ONE)


def test_tokens_can_have_a_rate_of_their_own(base, params):
    """AdamW's first step is as long as the rate where there is a gradient."""

    def rate(name: str) -> float:
        return 10.0 if name == "tokens" else 2.0 if name.endswith("to_k.weight") else 1.0

    method = replace(how("custom_diffusion"), rate=rate)
    hyper = HYPER.model_copy(update={"steps": 1})
    adapter = make(method, base, params, "m", hyper, ONE)
    weights, decay = dict(base.unet.named_parameters()), params.train.weight_decay
    row = base.texts.embedding_row(RARE_TOKENS[0])
    moved = {"tokens": (row, adapter.tokens["<new1>"] - row)}
    moved |= {name: (weights[name], delta) for name, delta in adapter.deltas.items()}
    for name, (start, change) in moved.items():
        step = HYPER.learning_rate * rate(name)
        without_decay = (change + step * decay * start).abs()
        assert without_decay.max() == pytest.approx(step, rel=1e-3), name
    # Equal rates are one group, and one rate for all.
    same = make(replace(method, rate=lambda _: 1.0), base, params, "m", hyper, ONE)
    plain = make(how("custom_diffusion"), base, params, "m", hyper, ONE)
    assert all(torch.equal(same.deltas[n], plain.deltas[n]) for n in plain.deltas)
