"""Texts of a base with two encoders, against diffusers' own Stable Diffusion XL pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.common.errors import BenchError
from pipeline.models.base import Base, check_base, load_base
from pipeline.models.crossattn import cross_attention_layers
from pipeline.models.texts import Condition
from pipeline.settings.profile import BaseParams
from tests.pipeline.checkpoints import CONTEXT, LAYOUTS, RESOLUTION, WORDS, write_checkpoint

XL = LAYOUTS["XL"]
CPU = torch.device("cpu")
PROMPTS = ["photo of a cat", "a wooden pot in the snow and very small"]
WIDTHS = [text.width for text in XL.texts]


def loaded(folder: Path) -> Base:
    params = BaseParams(path=str(folder), resolution=RESOLUTION, modifier_token_ids=[0])
    return load_base(params, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("xl") / "base"
    write_checkpoint(path, XL)
    return path


@pytest.fixture(scope="module")
def base(folder) -> Base:
    return loaded(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """One to break things in."""
    return shutil.copytree(folder, tmp_path / "base")


def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(folder)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def same(ours: Condition, text: Tensor, pooled: Tensor) -> None:
    torch.testing.assert_close(ours.text, text, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zeros", [True, False])
def test_texts_are_those_of_diffusers_and_the_index_says_what_an_empty_one_is(copy, zeros):
    change(copy / "model_index.json", force_zeros_for_empty_prompt=zeros)
    base = loaded(copy)
    with torch.no_grad():
        text, without, pooled, pooled_without = pipeline(copy).encode_prompt(PROMPTS)
        same(base.condition(PROMPTS), text, pooled)
        empty = base.condition(["", PROMPTS[0], ""])
    same(Condition(empty.text[::2], empty.pooled[::2]), without, pooled_without)
    assert bool(empty.text[0].any()) is bool(empty.pooled[0].any()) is (not zeros)
    same(Condition(empty.text[1:2], empty.pooled[1:2]), text[:1], pooled[:1])


def test_a_prediction_is_that_of_diffusers(base, folder):
    pipe = pipeline(folder)
    sizes = pipe._get_add_time_ids(
        (RESOLUTION, RESOLUTION),
        (0, 0),
        (RESOLUTION, RESOLUTION),
        dtype=torch.float32,
        text_encoder_projection_dim=pipe.text_encoder_2.config.projection_dim,
    )
    noisy = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([7, 800])
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(PROMPTS)
        added = {"text_embeds": pooled, "time_ids": sizes.repeat(2, 1)}
        expected = pipe.unet(noisy, timesteps, text, added_cond_kwargs=added).sample
        condition = base.condition(PROMPTS)
        found = base.predict(noisy, timesteps, condition)
        halves = [
            base.predict(noisy[i : i + 1], timesteps[i : i + 1], part)
            for i, part in enumerate(condition.split())
        ]
        # Both what is said once and how large a picture is are heard.
        other = Condition(condition.text, condition.pooled.flip(0))
        assert not torch.allclose(base.predict(noisy, timesteps, other), found, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(halves), expected, rtol=1e-4, atol=1e-5)
    joined = Condition.joined(condition.split())
    assert torch.equal(joined.text, condition.text) and torch.equal(joined.pooled, condition.pooled)


def test_a_row_is_what_each_encoder_embeds_and_gradients_reach_both(folder):
    """Values and gradients against ordinary tables that have the rows at their end."""
    base, pipe = loaded(folder), pipeline(folder)
    row = torch.randn(XL.width, generator=torch.Generator().manual_seed(1))
    texts = ["photo of a <new1> cat", "a <new1>"]
    with base.texts.modifier_tokens({"<new1>": row}) as rows:
        rows.requires_grad_(True)
        ours = base.condition(texts)
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    tables = []
    for encoder, tokenizer, part in zip(
        encoders, (pipe.tokenizer, pipe.tokenizer_2), row.split(WIDTHS)
    ):
        pipe.load_textual_inversion(
            part[None], token="<new1>", text_encoder=encoder, tokenizer=tokenizer
        )
        tables.append(encoder.get_input_embeddings().weight)
    text, _, wrong, _ = pipe.encode_prompt(texts)
    torch.testing.assert_close(ours.text, text, rtol=1e-5, atol=1e-6)
    # transformers takes the largest token for the end, as the configuration has a wrong number.
    assert not torch.allclose(ours.pooled, wrong, atol=1e-2)
    pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    text, _, pooled, _ = pipe.encode_prompt(texts)
    same(ours, text, pooled)
    weight = torch.randn(text.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((ours.text * weight).sum() + ours.pooled.sum(), rows)
    expected = torch.autograd.grad((text * weight).sum() + pooled.sum(), tables)
    torch.testing.assert_close(gradient[0], torch.cat([part[-1] for part in expected]))
    assert gradient.abs().min() > 0
    assert all(isinstance(m.get_input_embeddings(), nn.Embedding) for m in base.texts.models)


def test_rows_of_words_are_those_of_both_tables(base):
    tables = [m.get_input_embeddings().weight for m in base.texts.models]
    assert torch.equal(base.texts.embedding_row(3), torch.cat([table[3] for table in tables]))
    assert torch.equal(base.texts.embedding_table(), torch.cat(tables, 1))
    with pytest.raises(BenchError, match=f"which has {len(tables[0])} tokens"):
        base.texts.embedding_row(len(tables[0]))
    # A token that starts from a word's row acts like the word.
    word = base.texts.tokenizer("cat", add_special_tokens=False).input_ids[-1]
    with (
        torch.no_grad(),
        base.texts.modifier_tokens({"<new1>": base.texts.embedding_row(word)}),
    ):
        expected = base.condition(["a cat"])
        same(base.condition(["a <new1>"]), expected.text, expected.pooled)


def test_rows_of_layers_have_the_mean_of_their_vectors(base):
    layers = len(cross_attention_layers(base.unet))
    assert layers == XL.layers
    rows = torch.randn((layers, XL.width), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        with base.texts.modifier_tokens({"<new1>": rows}):
            found = base.condition(["a <new1>", ""])
        assert found.text.shape == (2, layers, CONTEXT, XL.width)
        alone = []
        for row in (rows[0], rows[-1], *rows[1:-1]):
            with base.texts.modifier_tokens({"<new1>": row}):
                alone.append(base.condition(["a <new1>"]))
    same(Condition(found.text[:1, 0], alone[0].pooled), alone[0].text, alone[0].pooled)
    same(Condition(found.text[:1, -1], alone[0].pooled), alone[1].text, alone[0].pooled)
    mean = torch.stack([one.pooled for one in alone]).mean(0)
    torch.testing.assert_close(found.pooled[:1], mean, rtol=1e-5, atol=1e-6)
    assert not found.text[1].any() and not found.pooled[1].any()


def test_gradients_are_the_same_if_they_take_less_memory(base):
    noisy = torch.randn((1, *base.latent_shape), generator=torch.Generator().manual_seed(4))
    weight = base.unet.get_parameter("add_embedding.linear_1.weight").requires_grad_(True)
    found = []
    for saving in (False, True):
        base.gradient_checkpointing = saving
        loss = base.predict(noisy, 500, base.condition(PROMPTS[:1])).pow(2).sum()
        found += torch.autograd.grad(loss, [weight])
    base.gradient_checkpointing = False
    base.unet.requires_grad_(False)
    assert found[0].any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2", "vae"])
def test_adapters_belong_to_the_weights_of_both_encoders(base, copy, part):
    (path,) = (copy / part).glob("*.safetensors")
    save_file({n: t + 1 for n, t in load_file(path).items()}, path, {"format": "pt"})
    assert (loaded(copy).hash != base.hash) is (part != "vae")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("text_encoder_2", "text_encoder_2: the base model lacks its text_encoder_2"),
        ("tokenizer_2", "tokenizer_2: the base model lacks its tokenizer_2"),
        ("text_encoder", "text_encoder: the base model lacks its text_encoder"),  # the refiner
        ("model_index.json", "model_index.json: missing: it says what the base makes of an empty"),
    ],
)
def test_a_base_that_lacks_a_part_is_refused(copy, missing, message):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BenchError, match=f"^{copy}/{message}"):
        check_base(BaseParams(path=str(copy), resolution=RESOLUTION, modifier_token_ids=[0]))


def test_parts_of_different_models_are_refused(copy):
    vocabulary = copy / "tokenizer_2" / "vocab.json"
    ids = json.loads(vocabulary.read_text())
    swapped = {"cat</w>": ids["snow</w>"], "snow</w>": ids["cat</w>"]}
    assert set(swapped) <= {f"{word}</w>" for word in WORDS} & set(ids)
    change(vocabulary, **swapped)
    with pytest.raises(BenchError, match=r"^base\.path: .* tokenizers have different vocabularies"):
        loaded(copy)
    change(vocabulary, **ids)
    pipe = pipeline(copy)
    pipe.text_encoder_2.config.projection_dim = 12
    type(pipe.text_encoder_2)(pipe.text_encoder_2.config).save_pretrained(copy / "text_encoder_2")
    with pytest.raises(BenchError, match="unet reads 72 numbers .* and six sizes make 60"):
        loaded(copy)
    change(copy / "unet" / "config.json", addition_embed_type="image")
    for check in (check_base, load_base):
        with pytest.raises(BenchError, match=r"config\.json: addition_embed_type: 'image' is not"):
            check(BaseParams(path=str(copy), resolution=RESOLUTION, modifier_token_ids=[0]))
