from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from eval.analyses.attention.stage import (
    Recorder,
    analyse_attention,
    best_and_worst,
    cosine,
    find,
    overlap,
    recorded,
    token_maps,
    word_map,
)
from eval.analyses.probes import CROSS, attention_through, words_of
from pipeline.common.errors import BenchError
from pipeline.models.adapter import applied
from pipeline.models.base import Base
from pipeline.sample.sampler import sample
from pipeline.settings.profile import load_params
from tests.eval.analyses.conftest import Adapt, Configure


def test_attention_is_the_softmax_of_queries_and_keys(base: Base) -> None:
    """Of one layer, from its input and weights, in float64."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    layer = dict(base.unet.named_modules())[name]
    inputs: dict[str, Tensor] = {}
    hook = layer.register_forward_pre_hook(
        lambda _m, args, kwargs: inputs.update(x=args[0], text=kwargs["encoder_hidden_states"]),
        with_kwargs=True,
    )
    seen = {}

    def look(name: str, attention: Tensor) -> Tensor:
        seen[name] = attention
        return attention

    condition = base.condition(["a cat", "a dog"])
    with attention_through(base.unet, look), torch.no_grad():
        base.predict(torch.randn(2, *base.latent_shape), 3, condition)
    hook.remove()
    heads = layer.heads
    q = layer.to_q(inputs["x"]).detach().double().numpy().reshape(2, -1, heads, 16)
    k = layer.to_k(inputs["text"]).detach().double().numpy().reshape(2, -1, heads, 16)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 4
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert seen[name].detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_looking_changes_no_image_and_leaves_no_trace(base: Base) -> None:
    params = load_params().sampler()
    plain = sample(base, ["a cat", "a dog"], [1, 2], params)
    processors = {name: type(p) for name, p in base.unet.attn_processors.items()}
    recorder = Recorder()
    with attention_through(base.unet, recorder, [CROSS]):
        seen = sample(base, ["a cat", "a dog"], [1, 2], params)
    assert all(name.endswith("attn2") for name in recorder.sums)
    for total in recorder.sums.values():
        assert total.sum(-1).numpy() == pytest.approx(np.full(total.shape[:2], params.steps), 1e-4)
    assert np.abs(np.stack(plain).astype(int) - np.stack(seen)).max() <= 1
    assert {name: type(p) for name, p in base.unet.attn_processors.items()} == processors
    count = len(recorder.sums)
    assert np.array_equal(np.stack(sample(base, ["a cat", "a dog"], [1, 2], params)), plain)
    assert len(recorder.sums) == count


def test_layers_are_enlarged_to_the_largest_and_averaged() -> None:
    rng = np.random.default_rng(0)
    fine, coarse = rng.uniform(size=(1, 16, 3)), rng.uniform(size=(1, 4, 3))
    found = token_maps([torch.tensor(fine), torch.tensor(coarse)])[0].numpy()
    for token in range(3):
        small = Image.fromarray(coarse[0, :, token].reshape(2, 2).astype(np.float32))
        large = np.asarray(small.resize((4, 4), Image.Resampling.BILINEAR))
        expected = (fine[0, :, token].reshape(4, 4) + large) / 2
        assert found[token] == pytest.approx(expected, abs=1e-6)


def test_maps_are_compared() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(2, 5, 5))
    lengths = np.sqrt((a**2).sum()) * np.sqrt((b**2).sum())
    assert cosine(a, b) == pytest.approx(float(a.ravel() @ b.ravel()) / lengths)
    assert cosine(a, 2 * a) == pytest.approx(1)
    first = {(i, j) for i in range(5) for j in range(5) if a[i, j] > 0.3 * a.max()}
    second = {(i, j) for i in range(5) for j in range(5) if b[i, j] > 0.3 * b.max()}
    assert overlap(a, b) == len(first & second) / len(first | second)


def test_words_are_found_by_their_tokens(base: Base) -> None:
    prompt = "photo of a <new1> wooden pot and a <new2> cat"
    base.texts.tokenizer.add_tokens(["<new1>", "<new2>"])
    text = words_of(base, prompt)
    assert [word for word, _ in text] == prompt.split()
    ids = base.texts.tokenize([prompt])[0]
    for word, places in text:
        assert base.texts.tokenizer.decode(ids[places]).replace(" ", "") == word
    (first,) = find(text, "<new1>")
    assert base.texts.tokenizer.convert_tokens_to_ids("<new1>") == ids[first[1][0]]
    assert [word for word, _ in find(text, "<new2> cat")] == ["<new2>", "cat"]
    with pytest.raises(BenchError, match="'a dog' is not in"):
        find(text, "a dog")


def test_a_words_map_is_the_mean_of_its_tokens(base: Base) -> None:
    _, maps = recorded(base, "a wooden pot", [1, 2], load_params().sampler())
    assert maps.shape == (2, base.texts.tokenize(["a"]).shape[1], 8, 8)
    # What all tokens get together is everything.
    assert maps.sum(1).numpy() == pytest.approx(np.ones((2, 8, 8)), abs=1e-4)
    found = word_map(maps[1], [("wooden", [2, 3]), ("pot", [4])])
    assert found == pytest.approx((maps[1, 2] + maps[1, 3] + maps[1, 4]).numpy() / 3, abs=1e-6)


def test_stage(configure: Configure, adapt: Adapt, base: Base) -> None:
    configure(attention={"images": 2})
    adapter = adapt("custom_diffusion", "cat+chair")
    adapt("pretrained", "cat+chair", size=0)
    folder = analyse_attention()
    table = pd.read_csv(folder / "attention.csv")
    assert len(table) == 2 * 2
    assert table["cosine"].between(0, 1).all()
    assert table["iou"].between(0, 1).all()
    scores = pd.read_csv("reports/cells/custom_diffusion/cat+chair/scores.csv")
    of_images = scores["metric"].str.startswith("image_alignment")
    expected = scores.loc[of_images, "value"].mean()
    assert best_and_worst("toyland", "custom_diffusion") == {"cat+chair": pytest.approx(expected)}
    assert {p.name for p in folder.iterdir()} == {"attention.csv", "cat_chair.png"}
    with applied(base, adapter):
        assert find(words_of(base, "a <new1> cat"), "<new1> cat")


def test_without_scores_of_compositions_there_is_no_best(configure: Configure) -> None:
    configure(attention={})
    Path("reports/cells/custom_diffusion/cat+chair/scores.csv").unlink()
    with pytest.raises(BenchError, match="no composition of 'custom_diffusion'"):
        analyse_attention()
