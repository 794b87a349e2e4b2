from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.models.adapter import (
    Adapter,
    LowRank,
    Provenance,
    applied,
    load_adapter,
    save_adapter,
)
from pipeline.models.base import Base, check_base, load_base
from pipeline.models.tokens import ModifierEmbedding, natural_order
from tests.pipeline.sample.test_sampler import random_adapter
from tests.pipeline.tiny import RARE_TOKENS, new_base, write_base


@pytest.fixture(scope="module")
def base() -> Base:
    return new_base()


def test_file_gives_back_what_was_saved_and_has_the_same_bytes_each_time(base, tmp_path):
    adapter = random_adapter(base)
    name = next(iter(adapter.deltas))
    low = LowRank(torch.randn(adapter.deltas[name].shape[0], 2), torch.randn(2, 32))
    adapter = Adapter(adapter.tokens, {**adapter.deltas, name: low}, adapter.provenance)
    save_adapter(adapter, tmp_path / "a.safetensors")
    save_adapter(adapter, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    back = load_adapter(tmp_path / "a.safetensors")
    assert back.provenance == adapter.provenance
    assert back.tokens.keys() == adapter.tokens.keys()
    assert back.parameters() == adapter.parameters()
    assert torch.equal(back.deltas[name].dense(), low.dense())
    assert all(torch.equal(back.tokens[t], adapter.tokens[t]) for t in adapter.tokens)


def test_stored_in_bfloat16_a_file_is_half_as_large_and_off_by_its_rounding(base, tmp_path):
    adapter = random_adapter(base)
    name = next(iter(adapter.deltas))
    low = LowRank(torch.randn(adapter.deltas[name].shape[0], 2), torch.randn(2, 32))
    adapter = replace(adapter, deltas={**adapter.deltas, name: low})
    adapter = replace(adapter, kept={name: torch.rand(40)})
    save_adapter(adapter, tmp_path / "a.safetensors")
    save_adapter(adapter, tmp_path / "b.safetensors", "bfloat16")
    large, small = ((tmp_path / f"{n}.safetensors").stat().st_size for n in "ab")
    assert small < 0.6 * large
    back, was = load_adapter(tmp_path / "b.safetensors").tensors(), adapter.tensors()
    assert back.keys() == was.keys()
    for key, tensor in back.items():
        assert tensor.dtype is torch.float32
        error = ((tensor - was[key]).abs() / was[key].abs()).max()
        exact = key.startswith(("token.", "kept."))
        assert (error == 0) if exact else (0 < error <= 2.0**-8), key


def test_base_is_restored_bit_by_bit_even_after_an_error(base):
    before = {n: p.clone() for n, p in base.unet.state_dict().items()}
    table = base.texts.models[0].get_input_embeddings()
    adapter = random_adapter(base)
    with pytest.raises(ZeroDivisionError), applied(base, adapter):
        name = next(iter(adapter.deltas))
        assert not torch.equal(base.unet.state_dict()[name], before[name])
        assert isinstance(base.texts.models[0].get_input_embeddings(), ModifierEmbedding)
        raise ZeroDivisionError
    assert all(torch.equal(p, before[n]) for n, p in base.unet.state_dict().items())
    assert base.texts.models[0].get_input_embeddings() is table


def test_modifier_rows_embed_their_tokens_and_leave_others_alone(base):
    text = "photo of a cat and a dog"
    plain = base.condition([text]).text
    row = base.texts.embedding_row(RARE_TOKENS[0])
    table = base.texts.models[0].get_input_embeddings()
    with base.texts.modifier_tokens({"<new1>": row, "<new2>": row + 1}):
        layer = base.texts.models[0].get_input_embeddings()
        ids = base.texts.tokenize(["a <new1> cat"])
        assert torch.equal(layer(ids)[0, 2], row)
        assert torch.equal(layer(ids)[0, 3], table.weight[ids[0, 3]])
        assert torch.equal(base.condition([text]).text, plain)
        # A token that starts from a row of the table acts like that row's own token.
        torch.testing.assert_close(
            base.condition(["a <new1> cat"]).text, base.condition(["a q cat"]).text
        )
    assert base.texts.models[0].get_input_embeddings() is table


def test_modifier_rows_are_those_of_a_longer_table():
    """Values and gradients against an ordinary embedding that has the rows at its end.

    The tokens are known already in another order, with one between them that has no row.
    """
    base, tokens = new_base(), ["<new3>", "<new1>", "<new2>"]
    base.texts.tokenizer.add_tokens(["<new1>", "<new2>", "<other>", "<new3>"])
    g = torch.Generator().manual_seed(1)
    rows = {token: torch.randn(32, generator=g) for token in tokens}
    texts = ["<new1> and a <new2> cat", "<new1> <new1>", "a dog", "the <new3>, <new2>"]
    weight = torch.randn(len(texts), base.texts.context, 32, generator=g)
    table = base.texts.models[0].get_input_embeddings()

    with base.texts.modifier_tokens(rows) as trained:
        ours = base.condition(texts).text
        assert not ours.requires_grad
        trained.requires_grad_(True)
        ours = base.condition(texts).text
    (ours * weight).sum().backward()
    assert trained.grad is not None
    assert all(p.grad is None for p in base.texts.models[0].parameters())

    gap = torch.full((1, 32), torch.nan)
    more = [rows["<new1>"][None], rows["<new2>"][None], gap, rows["<new3>"][None]]
    longer = nn.Embedding.from_pretrained(torch.cat([table.weight, *more]), freeze=False)
    base.texts.models[0].set_input_embeddings(longer)
    theirs = base.condition(texts).text
    assert torch.equal(ours, theirs)
    (theirs * weight).sum().backward()
    assert longer.weight.grad is not None
    expected = longer.weight.grad[len(table.weight) :][[3, 0, 1]]
    assert expected.abs().min() > 0
    torch.testing.assert_close(trained.grad, expected)


def test_many_tokens_have_a_row_each():
    base, count = new_base(), 120
    rows = {f"<new{i}>": torch.full((32,), float(i)) for i in reversed(range(1, count + 1))}
    with base.texts.modifier_tokens(rows):
        layer = base.texts.models[0].get_input_embeddings()
        for i in (1, 2, 10, 11, 99, 100, count):
            _, found, *_ = layer(base.texts.tokenize([f"<new{i}>"]))[0, :, 0].tolist()
            assert found == i


def test_tokens_come_back_in_the_order_of_their_numbers(base, tmp_path):
    count, path = 12, tmp_path / "a.safetensors"
    rows = {f"<new{i}>": torch.full((32,), float(i)) for i in range(1, count + 1)}
    references = tuple(f"{token} cat" for token in rows)
    adapter = random_adapter(base)
    about = replace(adapter.provenance, references=references)
    save_adapter(Adapter(rows, adapter.deltas, about), path)
    back = load_adapter(path)
    assert list(back.tokens) == list(rows)
    assert [float(row[0]) for row in back.tokens.values()] == list(range(1, count + 1))
    again = tmp_path / "b.safetensors"
    save_adapter(back, again)
    assert again.read_bytes() == path.read_bytes()


def test_numbers_in_tokens_count_and_words_are_sorted_as_words():
    tokens = [
        "<new10>",
        "b2",
        "<new2>",
        "<a>",
        "<new1>",
        "a10b2",
        "<new>",
        "a10b11",
        "a9",
        "<new01>",
    ]
    expected = [
        "<a>", "<new1>", "<new01>", "<new2>", "<new10>", "<new>", "a9", "a10b2", "a10b11", "b2",
    ]  # fmt: skip
    assert sorted(tokens, key=natural_order) == expected


def test_adapter_of_another_base_is_refused_and_both_are_named(base):
    adapter = random_adapter(base)
    foreign = Provenance(**{**vars(adapter.provenance), "base": "other", "base_hash": "feed"})
    with (
        pytest.raises(BenchError, match="other.*feed.*not for"),
        applied(base, Adapter(adapter.tokens, adapter.deltas, foreign)),
    ):
        pass


def test_weight_of_another_shape_is_refused(base):
    adapter = random_adapter(base)
    name = next(iter(adapter.deltas))
    wrong = Adapter({}, {name: torch.zeros(3, 3)}, adapter.provenance)
    with pytest.raises(BenchError, match=r"\(3, 3\) does not fit"), applied(base, wrong):
        pass


def test_missing_corrupt_and_foreign_files_are_one_clear_line(tmp_path):
    with pytest.raises(BenchError, match="adapter is missing"):
        load_adapter(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(BenchError, match="not a readable safetensors"):
        load_adapter(tmp_path / "bad.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BenchError, match="not an adapter"):
        load_adapter(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["token", "delta", "up", "down"])
def test_values_that_are_not_finite_are_neither_written_nor_read(base, tmp_path, part, value):
    adapter = random_adapter(base)
    first, second = list(adapter.deltas)[:2]
    low = LowRank(torch.randn(adapter.deltas[first].shape[0], 2), torch.randn(2, 32))
    adapter.deltas[first] = low
    save_adapter(adapter, tmp_path / "good.safetensors")
    tensors = {
        "token": adapter.tokens["<new2>"],
        "delta": adapter.deltas[second],
        "up": low.up,
        "down": low.down,
    }
    tensors[part].view(-1)[-1] = value
    with pytest.raises(FailureError, match=rf"^m on s: {part}\..* not finite: .*learning rate"):
        save_adapter(adapter, tmp_path / "bad.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["good.safetensors"]

    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        metadata = file.metadata()
    bad = tmp_path / "bad.safetensors"
    save_file({name: t.contiguous() for name, t in adapter.tensors().items()}, bad, metadata)
    with pytest.raises(FailureError, match=rf"bad\.safetensors: {part}\..* not finite") as error:
        load_adapter(bad)
    assert error.value.failure.kind == "diverged"


def test_incomplete_base_folder_is_named(tmp_path):
    params = write_base(tmp_path)
    check_base(params)
    for path in (tmp_path / "vae").iterdir():
        path.unlink()
    with pytest.raises(BenchError, match="vae.*lacks its vae"):
        check_base(params)
    for missing in ("./nowhere", "../nowhere", "models/own/nowhere", "nowhere"):
        with pytest.raises(BenchError, match="no such folder"):
            check_base(params.model_copy(update={"path": missing}))


def described(**changes: Any) -> str:
    provenance = {"method": "m", "subject": "s", "base": "b", "base_hash": "h"}
    provenance |= {"references": ["<new1> cat"]} | changes
    return json.dumps({"format": "concept-bench-adapter-1", "provenance": provenance})


@pytest.mark.parametrize(
    ("about", "fault"),
    [
        ("{not json", "metadata is not valid JSON"),
        ("[1]", "not an adapter of this project"),
        ("[" * 100_000, "metadata is not valid JSON"),
        ('{"format": "concept-bench-adapter-1"}', "the file: input should be"),
        (described(references=None), "references: input should be a valid tuple"),
        (described(references=[3]), "references.0: input should be a valid string"),
        (described(method=["m"]), "method: input should be a valid string"),
        (described(steps="many"), "steps: input should be a valid integer"),
    ],
)
def test_metadata_that_is_damaged(tmp_path: Path, about: str, fault: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"token.<new1>": torch.zeros(32)}, path, {"adapter": about})
    with pytest.raises(BenchError, match=rf"a\.safetensors: .*{fault}"):
        load_adapter(path)


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({}, r"has the tokens \(none\), but .* called <new1> cat: <new1> is"),
        ({"token.<new1>": 1, "token.<new2>": 1}, "<new1>, <new2>, but .* <new2> is in one"),
        ({"token.<new1>": 1, "up.w": 1}, "up.w: belongs to no change"),
        ({"token.<new1>": 1, "down.w": 1}, "down.w: belongs to no change"),
        ({"token.<new1>": 1, "up.w": 1, "down.w": 1}, r"up.w \[1\] does not fit down.w \[1\]"),
        ({"token.<new1>": 1, "other": 1}, "other: belongs to no change"),
    ],
)
def test_tensors_that_are_missing_or_too_many(
    tmp_path: Path, tensors: dict[str, int], fault: str
) -> None:
    path = tmp_path / "a.safetensors"
    named = {name: torch.zeros(length) for name, length in tensors.items()}
    save_file(named, path, {"adapter": described()})
    with pytest.raises(BenchError, match=rf"a\.safetensors: .*{fault}"):
        load_adapter(path)


def test_a_folder_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is a folder: name an adapter's file"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("shape", [(1,), (31,), (1, 32), ()])
def test_a_token_of_another_shape_is_refused(base: Base, shape: tuple[int, ...]) -> None:
    adapter = random_adapter(base)
    rows = adapter.tokens | {"<new1>": torch.zeros(shape)}
    wrong = Adapter(rows, adapter.deltas, adapter.provenance)
    table = base.texts.models[0].get_input_embeddings()
    with (
        pytest.raises(BenchError, match="m/s: token <new1> .* embeddings are"),
        applied(base, wrong),
    ):
        pytest.fail("installed")
    assert base.texts.models[0].get_input_embeddings() is table


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("unet/config.json", "block_out_channels", [16, 64]),
        ("unet/config.json", "cross_attention_dim", 64),
        ("text_encoder/config.json", "hidden_size", 64),
        ("text_encoder/config.json", "num_hidden_layers", 3),  # else filled with random numbers
        ("vae/config.json", "block_out_channels", [8, 8]),
        ("scheduler/scheduler_config.json", "beta_start", None),
    ],
)
def test_a_base_that_is_not_what_its_configuration_says(
    tmp_path: Path, file: str, field: str, value: object
) -> None:
    params = write_base(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(content | {field: value}))
    with pytest.raises(BenchError, match=r"^base\.path: .* could not be loaded \("):
        load_base(params)


def test_a_base_of_parts_that_do_not_fit(tmp_path: Path) -> None:
    params = write_base(tmp_path)
    narrow = CLIPTextModel(CLIPTextConfig(vocab_size=777, hidden_size=16, num_attention_heads=2))
    narrow.save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(BenchError, match="text features of 32 numbers, .* makes 16"):
        load_base(params)
