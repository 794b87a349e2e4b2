from __future__ import annotations

from collections import Counter

import pytest
import torch

from pipeline.adapters import Provenance
from pipeline.base import Base, to_tensor
from pipeline.crossattn import detached_start_token, key_value_names
from pipeline.errors import BenchError
from pipeline.methods import load_method, method_names
from pipeline.params import MethodParams, Params, load_params
from pipeline.training import draw_schedule, loss_of_rows, merge, train
from tests.pipeline.tiny import RARE_TOKENS, new_base, subject, training_set

HYPER = MethodParams(learning_rate=1e-2)


@pytest.fixture(scope="module")
def base() -> Base:
    return new_base()


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params()


def provenance(base: Base, method: str, references: tuple[str, ...]) -> Provenance:
    return Provenance(
        method,
        "+".join(str(i) for i in range(len(references))),
        base.path,
        base.hash,
        references,
        {f"<new{i + 1}>": RARE_TOKENS[i] for i in range(len(references))},
    )


def run(base: Base, params: Params, name: str, *sets, steps: int = 3):
    method = load_method(name)
    references = tuple(f"<new{i + 1}> {s.concept.class_noun}" for i, s in enumerate(sets))
    return train(base, method, sets, params, HYPER, steps, provenance(base, name, references))


def state(base: Base) -> dict[str, torch.Tensor]:
    models = {"unet": base.unet, "vae": base.vae, "text": base.text_encoder}
    return {
        f"{kind}.{name}": value.clone()
        for kind, model in models.items()
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "rows_train", "weights"),
    [
        ("textual_inversion", True, lambda unet: set()),
        ("custom_diffusion", True, lambda unet: set(key_value_names(unet))),
        ("dreambooth", False, lambda unet: {n for n, _ in unet.named_parameters()}),
    ],
)
def test_only_what_the_method_names_changes(base, params, name, rows_train, weights):
    before = state(base)
    adapter = run(base, params, name, training_set("cat", "cat"))
    assert set(adapter.deltas) == weights(base.unet)
    if weights(base.unet):
        assert all(delta.abs().max() > 0 for n, delta in adapter.deltas.items() if "bias" not in n)
    start = base.embedding_row(RARE_TOKENS[0])
    assert torch.equal(adapter.tokens["<new1>"], start) is not rows_train
    after = state(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


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


def test_a_step_is_the_step_computed_plainly(base, params):
    """One step on one target image against a computation with autograd and no caches."""
    one = training_set("cat", "cat")
    method = load_method("custom_diffusion")
    adapter = run(base, params, "custom_diffusion", one, steps=1)

    from pipeline.augment import render_view, view_mask
    from pipeline.seeds import seed_of

    rows = draw_schedule(method, [one], params.train, base.resolution, 1)[0]
    generator = torch.Generator().manual_seed(seed_of(params.train.seed, "0", "step", 0))
    shape = (len(rows), *base.latent_shape)
    posterior, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    timesteps = torch.randint(1000, shape[:1], generator=generator)
    pictures = [
        render_view(r.view, one.targets if r.target else one.regularization, 32) for r in rows
    ]
    latent = base.vae.encode(to_tensor(pictures)).latent_dist
    clean = (latent.mean + latent.std * posterior) * base.vae.config.scaling_factor
    alpha = base.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    embedding = base.add_modifier_tokens({"<new1>": base.embedding_row(RARE_TOKENS[0])})
    names = key_value_names(base.unet)
    weights = [dict(base.unet.named_parameters())[n].requires_grad_(True) for n in names]
    embedding.rows.requires_grad_(True)
    text = base.encode_text([r.caption for r in rows])
    with detached_start_token(base.unet):
        error = base.unet(noisy, timesteps, text).sample - noise
    total = 0.0
    for e, row in zip(error, rows):
        mask = view_mask(row.view, 32, 4)
        total = total + (e**2 * mask).sum() / mask.sum()
    gradients = torch.autograd.grad(total / len(rows), [*weights, embedding.rows])
    base.unet.requires_grad_(False)
    base.text_encoder.set_input_embeddings(embedding.table)
    # The first step of AdamW moves by the learning rate against the gradient's sign, after decay.
    for name, weight, gradient in zip(names, weights, gradients):
        clear = gradient.abs() > 1e-6 * gradient.abs().max() + 1e-7
        expected = -HYPER.learning_rate * (0.01 * weight + gradient / (gradient.abs() + 1e-8))
        torch.testing.assert_close(
            adapter.deltas[name][clear], expected[clear], rtol=2e-2, atol=1e-5
        )


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
        for rows in draw_schedule(load_method(method), sets, params.train, 32, 20):
            counts = Counter((row.concept, row.target) for row in rows)
            assert set(counts.values()) == {params.train.batch_size // (2 * kinds)}
            assert len(rows) == params.train.batch_size


def test_captions_follow_the_method(params):
    one = training_set("wooden_pot", "wooden pot")
    prefixes = ("", "a far away ", "very small ", "zoomed in ", "close up ")

    def captions(method: str, target: bool = True) -> set[str]:
        steps = draw_schedule(load_method(method), [one], params.train, 64, 60)
        return {row.caption for rows in steps for row in rows if row.target is target}

    assert captions("custom_diffusion") == {f"{p}photo of a <new1> wooden pot" for p in prefixes}
    assert captions("dreambooth") == {"photo of <new1> wooden pot"}
    assert all(c.endswith("<new1>") for c in captions("textual_inversion"))
    assert captions("custom_diffusion", target=False) <= set(one.captions)


def test_a_batch_that_cannot_be_shared_out_is_refused(params):
    sets = [training_set(n, "cat") for n in ("a", "b", "c")]
    with pytest.raises(BenchError, match="batch_size.*3 concepts"):
        draw_schedule(load_method("custom_diffusion"), sets, params.train, 32, 1)


def test_missing_regularization_is_refused(params):
    bare = training_set("cat", "cat")
    bare = type(bare)(bare.concept, bare.targets, [], [])
    with pytest.raises(BenchError, match="no regularization images"):
        draw_schedule(load_method("custom_diffusion"), [bare], params.train, 32, 1)


def test_unknown_method_is_refused():
    with pytest.raises(BenchError, match="choose one of .*custom_diffusion"):
        load_method("hyperdream")
    assert "pretrained" in method_names()


def test_merge_through_the_text_encoder_maps_each_concept_as_its_own_adapter(base, params):
    sets = [training_set("cat", "cat"), training_set("chair", "chair", 1)]
    parts = [run(base, params, "custom_diffusion", part, steps=5) for part in sets]
    about = subject(*sets)
    captions = [f"photo of a {a} {b}" for a in ("red", "blue", "green") for b in ("dog", "house")]
    merged = merge(base, parts, about, captions, 1e-6, provenance(base, "m", ("a", "b")))
    assert merged.provenance.notes["residual"] < 1e-6
    assert torch.equal(merged.tokens["<new2>"], parts[1].tokens["<new1>"])

    table = base.text_encoder.get_input_embeddings()
    base.add_modifier_tokens(merged.tokens)
    with torch.no_grad():
        text = base.encode_text(["<new1> cat", "<new2> chair"])
    base.text_encoder.set_input_embeddings(table)
    weights = dict(base.unet.named_parameters())
    for i, part in enumerate(parts):
        for name, delta in part.deltas.items():
            words = text[i, 1:4]  # modifier token, noun, end
            own = words @ (weights[name] + delta).T
            torch.testing.assert_close(
                words @ (weights[name] + merged.deltas[name]).T, own, rtol=1e-3, atol=1e-4
            )
