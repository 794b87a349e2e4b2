"""Adapters that are kept apart, and mixed anew for each prompt; on a small base."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.models.adapter import Adapter, LowRank, Provenance, applied, dense
from pipeline.models.base import Base
from pipeline.models.bundle import Router, bundled, composed, routed, unbundled
from pipeline.models.crossattn import (
    cross_attention_layers,
    cross_attention_names,
    key_value_names,
    texts_by_layer,
)

PROMPTS = ["", "", "", "a <new1> in the snow", "<new2> and <new1>", "a house"]
PAPER = Router("dot", "mean_max", 2.0, 2.0, 1.0)


def part(base: Base, seed: int, layered: bool = True) -> Adapter:
    """Low-rank changes of cross-attention, and a token with rows for each layer."""
    draw = torch.Generator().manual_seed(seed)
    layers = len(cross_attention_layers(base.unet))
    deltas: dict[str, LowRank] = {}
    for name in cross_attention_names(base.unet):
        out, into = base.unet.get_parameter(name).shape
        up, down = (torch.randn(s, generator=draw) * 0.3 for s in ((out, 2), (2, into)))
        deltas[name] = LowRank(up, down)
    row = 0.5 * torch.randn((layers, 32) if layered else (32,), generator=draw)
    about = Provenance("m", "s", base.path, base.hash, ("<new1>",))
    return Adapter({"<new1>": row}, deltas, about)


def bundle(base: Base, count: int = 2, layered: bool = True) -> Adapter:
    parts = [part(base, n, layered) for n in range(count)]
    tokens = {f"<new{n}>": one.tokens["<new1>"] for n, one in enumerate(parts, 1)}
    about = replace(parts[0].provenance, references=tuple(tokens))
    return bundled(parts, tokens, about)


def noise(base: Base, n: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return torch.randn((n, *base.latent_shape), generator=draw), torch.arange(n) * 100 + 3


def features(seed: int, n: int = 3, layers: int = 4) -> tuple[Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    text = torch.randn((n, layers, 6, 8), generator=draw)
    return text, [torch.randn((k, layers, 8), generator=draw) for k in (2, 1, 3)]


def test_weights_written_out():
    text, tokens = features(1)
    found = Router().weights(text, tokens)
    paper = PAPER.weights(text, tokens)
    assert found.shape == paper.shape == (3, 4, 3)
    for b in range(3):
        for layer in range(4):
            strong, dots = [], []
            for own in tokens:
                best = [
                    max(float(torch.cosine_similarity(e, c, 0)) for c in text[b, layer])
                    for e in own[:, layer]
                ]
                strong.append(max(sum(best) / len(best), 0) ** 4)
                mean = own[:, layer].mean(0)
                dots.append(max(0, *(float(mean @ c) for c in text[b, layer])) ** 2)
            expected = torch.tensor(strong) / sum(strong)
            torch.testing.assert_close(found[b, layer], expected, rtol=1e-4, atol=1e-6)
            expected = torch.tensor(dots) / torch.tensor(dots).norm()
            torch.testing.assert_close(paper[b, layer], expected, rtol=1e-4, atol=1e-6)


def test_released_weights_sum_to_one_and_the_papers_squares_do():
    text, tokens = features(2)
    torch.testing.assert_close(Router().weights(text, tokens).sum(-1), torch.ones(3, 4))
    torch.testing.assert_close(PAPER.weights(text, tokens).pow(2).sum(-1), torch.ones(3, 4))


def test_order_power_and_likeness_of_weights():
    text, tokens = features(3)
    found = Router().weights(text, tokens)
    torch.testing.assert_close(
        Router().weights(text, [tokens[2], tokens[0], tokens[1]]), found[..., [2, 0, 1]]
    )
    sharp = Router(power=4000.0).weights(text.double(), [t.double() for t in tokens])
    assert torch.equal(sharp.argmax(-1), found.argmax(-1))
    # Of concepts that are told apart at all.
    torch.testing.assert_close(sharp.amax(-1).median(), torch.tensor(1.0).double())
    alike = Router().weights(text, [tokens[0]] * 4)
    torch.testing.assert_close(alike, torch.full_like(alike, 0.25))
    opposite = [-text[:1, :, :1].mean((0, 2))[None]] * 2  # nothing is alike
    even = Router().weights(text[:1, :, :1], opposite)
    torch.testing.assert_close(even, torch.full_like(even, 0.5))


def folded(base: Base, adapter: Adapter, weights: Tensor, scale: float) -> Adapter:
    """The mix for one prompt as an ordinary adapter: what the hooks should amount to."""
    layers = list(cross_attention_layers(base.unet))
    parts = unbundled(adapter)
    deltas = {}
    for name in parts[0]:
        layer = layers.index(name.partition(".attn2")[0] + ".attn2")
        share = weights[layer]
        deltas[name] = scale * sum(float(w) * dense(p[name]) for w, p in zip(share, parts))
    return Adapter(adapter.tokens, deltas, adapter.provenance)


@pytest.mark.parametrize("layered", [True, False])
@pytest.mark.parametrize("router", [Router(), PAPER])
def test_a_batch_of_prompts_is_each_with_its_weights_folded_in(base, router, layered):
    adapter = bundle(base, 2, layered)
    noisy, timesteps = noise(base, len(PROMPTS))
    with torch.no_grad(), routed(base, adapter, router) as session:
        asked = session.condition(PROMPTS)
        found = session.predict(noisy, timesteps, asked)
    layers = len(cross_attention_layers(base.unet))
    weights = asked.weights.expand(-1, layers, -1)
    assert torch.equal(weights[:3], weights[3:])  # what guidance compares is one model
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad(), applied(base, folded(base, adapter, weights[i], router.scale)):
            alone = base.predict(noisy[i : i + 1], timesteps[i : i + 1], base.condition([prompt]))
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-3, atol=2e-3)
    assert (weights[3] - weights[4]).abs().max() > 1e-3


def test_texts_that_are_not_half_empty_have_their_own_weights(base):
    with torch.no_grad(), routed(base, bundle(base), Router()) as session:
        alone = session.condition(["a <new1> in the snow"]).weights
        pair = session.condition(["", "a <new1> in the snow", "a house"]).weights
    torch.testing.assert_close(pair[1:2], alone)
    assert (pair[0] - alone[0]).abs().max() > 1e-3


def test_of_a_single_concept_the_papers_mix_is_its_adapter_and_the_released_a_share(base):
    one = part(base, 0)
    adapter = bundled([one], one.tokens, one.provenance)
    noisy, timesteps = noise(base, 2)
    for router, scale in ((PAPER, 1.0), (Router(), 0.8)):
        with torch.no_grad(), routed(base, adapter, router) as session:
            found = session.predict(noisy, timesteps, session.condition(["", "a <new1>"]))
        scaled = {n: LowRank(scale * d.up, d.down) for n, d in one.deltas.items()}
        with torch.no_grad(), applied(base, replace(one, deltas=scaled)):
            alone = base.predict(noisy, timesteps, base.condition(["", "a <new1>"]))
        torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)


def test_a_session_leaves_the_base_as_it_was(base):
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    table = base.texts.models[0].get_input_embeddings()
    noisy, timesteps = noise(base, 1)
    with torch.no_grad():
        plain = base.predict(noisy, timesteps, base.condition(["a house"]))
        for opened in (routed(base, bundle(base), Router()), composed(base, bundle(base))):
            with opened as session:
                session.predict(noisy, timesteps, session.condition(["a <new1>"]))
            assert torch.equal(base.predict(noisy, timesteps, base.condition(["a house"])), plain)
    assert base.texts.models[0].get_input_embeddings() is table
    assert all(torch.equal(value, before[n]) for n, value in base.unet.state_dict().items())


def test_composed_is_the_mean_of_the_parts_predictions(base):
    adapter, prompts = bundle(base, 3), ["", "a <new2>"]
    noisy, timesteps = noise(base, 2)
    alone = []
    for own in unbundled(adapter):
        with torch.no_grad(), applied(base, Adapter(adapter.tokens, own, adapter.provenance)):
            alone.append(base.predict(noisy, timesteps, base.condition(prompts)))
    with torch.no_grad(), composed(base, adapter) as session:
        found = session.predict(noisy, timesteps, session.condition(prompts))
    torch.testing.assert_close(found, torch.stack(alone).mean(0))
    # Guidance of the means is the mean of guidances.
    guided = [one[:1] + 6 * (one[1:] - one[:1]) for one in alone]
    torch.testing.assert_close(
        found[:1] + 6 * (found[1:] - found[:1]), torch.stack(guided).mean(0), rtol=1e-3, atol=1e-4
    )


def test_what_cannot_be_mixed_is_refused(base):
    one, plain = part(base, 0), part(base, 1, layered=False)
    tokens = {"<new1>": one.tokens["<new1>"], "<new2>": plain.tokens["<new1>"]}
    with pytest.raises(BenchError, match="differ by layer"):
        bundled([one, plain], tokens, one.provenance)
    full = {name: dense(delta) for name, delta in one.deltas.items()}
    dense_one = bundled([replace(one, deltas=full)], one.tokens, one.provenance)
    with pytest.raises(BenchError, match="is no low-rank change"), routed(base, dense_one, PAPER):
        pass
    other = replace(one.provenance, base_hash="0" * 16)
    with (
        pytest.raises(BenchError, match="was made for base"),
        routed(base, bundled([one], one.tokens, other), PAPER),
    ):
        pass


# --- Tokens that differ by layer


def test_layers_are_in_the_order_in_which_they_are_called(base):
    called: list[str] = []
    layers = cross_attention_layers(base.unet)
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in layers.items()
    ]
    with torch.no_grad():
        base.predict(*noise(base, 1), base.condition(["a house"]))
    for hook in hooks:
        hook.remove()
    assert called == list(layers)
    assert sorted(layers) == sorted({n.rpartition(".to_")[0] for n in key_value_names(base.unet)})


def test_equal_rows_of_all_layers_are_one_row(base):
    row = torch.randn(32, generator=torch.Generator().manual_seed(3))
    layers = len(cross_attention_layers(base.unet))
    found = []
    for rows in (row, row.expand(layers, -1)):
        with torch.no_grad(), base.texts.modifier_tokens({"<new1>": rows}):
            found.append(base.predict(*noise(base, 2), base.condition(["", "a <new1>"])))
    assert torch.equal(*found)


def test_each_layer_sees_its_own_row_and_gradients_reach_that_alone(base):
    layers = len(cross_attention_layers(base.unet))
    rows = torch.randn((layers, 32), generator=torch.Generator().manual_seed(4))
    calls, encoder = [], base.texts.models[0]
    with base.texts.modifier_tokens({"<new1>": rows}) as ours:
        ours.requires_grad_(True)
        embedding = encoder.get_input_embeddings()
        hook = encoder.register_forward_hook(lambda *_: calls.append(embedding.layer))
        condition = base.condition(["a <new1>", "a house"])
        hook.remove()
    assert calls == list(range(layers))
    assert condition.text.shape[:2] == (2, layers)
    torch.testing.assert_close(condition.text[1], condition.text[1, :1].expand(layers, -1, -1))
    for layer in range(layers):
        (gradient,) = torch.autograd.grad(
            condition.text[:, layer].pow(2).sum(), ours, retain_graph=True
        )
        others = [k for k in range(layers) if k != layer]
        assert gradient[0, layer].abs().max() > 0 and gradient[0, others].abs().max() == 0


def test_a_layer_is_shown_its_text_whatever_the_model_is_given(base):
    layers = cross_attention_layers(base.unet)
    texts = [torch.randn(1, 5, 32) for _ in layers]
    seen: dict[str, Tensor] = {}
    hooks = [
        module.to_k.register_forward_hook(
            lambda _m, inputs, _o, name=name: seen.__setitem__(name, inputs[0])
        )
        for name, module in layers.items()
    ]
    with torch.no_grad(), texts_by_layer(base.unet, texts):
        base.unet(noise(base, 1)[0], 3, torch.zeros(1, 5, 32))
    for hook in hooks:
        hook.remove()
    assert all(seen[name] is text for name, text in zip(layers, texts))


def test_numbers_of_ed_lora_on_stable_diffusion_are_those_counted_in_its_code() -> None:
    """Of rank 4, in 64 matrices of 16 layers; the middle block's layer is the seventh."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    names = cross_attention_names(unet)
    assert len(names) == 64
    assert sum(4 * sum(unet.get_parameter(name).shape) for name in names) == 397_824
    assert sum(unet.get_parameter(name).numel() for name in key_value_names(unet)) == 19_169_280
    layers = list(cross_attention_layers(unet))
    assert len(layers) == 16
    assert [i for i, name in enumerate(layers) if name.startswith("mid_block")] == [6]
