"""Exports are judged by diffusers alone, in a process that knows nothing of this project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import load_file, save_file

from pipeline.common.errors import BenchError
from pipeline.exchange import formats
from pipeline.exchange.compression import compress, to_rank
from pipeline.exchange.formats import LAYOUTS, difference, export_adapter, import_adapter
from pipeline.models.adapter import (
    Adapter,
    LowRank,
    Provenance,
    applied,
    load_adapter,
    save_adapter,
)
from pipeline.models.base import Base, load_base
from pipeline.models.crossattn import key_value_names
from pipeline.sample.sampler import sample
from pipeline.settings.profile import BaseParams, SamplerParams
from tests.pipeline.checkpoints import LAYOUTS as PUBLISHED
from tests.pipeline.checkpoints import RESOLUTION as SIDE
from tests.pipeline.checkpoints import write_checkpoint
from tests.pipeline.sample.test_sampler import random_adapter
from tests.pipeline.tiny import write_base

NOUNS = ("cat", "dog")
PAGE = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```python\n# ([^\n]+)\n(.*?)```", PAGE, re.DOTALL))
CUSTOM = "pytorch_custom_diffusion_weights.safetensors"

# Ends what a snippet began; also runs here, where `pipe` has our adapter.
DRAW = """
import torch
from diffusers import DDIMScheduler

pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
image = pipe(
    PROMPT, height=32, width=32, num_inference_steps=3, guidance_scale=6.0, eta=0.0,
    latents=latents, output_type="np",
).images[0]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    folder = tmp_path_factory.mktemp("formats") / "base"
    loaded = load_base(write_base(folder), torch.device("cpu"))
    # Laid out as diffusers alone does it, so that convolutions add in the same order.
    for model in (loaded.unet, loaded.vae):
        model.to(memory_format=torch.contiguous_format)
    return loaded


@pytest.fixture
def adapter(base) -> Adapter:
    """Custom Diffusion's: two tokens and all keys and values."""
    return random_adapter(base)


def one_token(adapter: Adapter, **changes: object) -> Adapter:
    return Adapter({"<new1>": adapter.tokens["<new1>"]}, dict(changes), adapter.provenance)


def weights_with(base: Base, adapter: Adapter) -> dict[str, torch.Tensor]:
    with applied(base, adapter):
        return {name: p.detach().clone() for name, p in base.unet.named_parameters()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[n].view(torch.int32), b[n].view(torch.int32)) for n in a
    )


# --- diffusers alone


def ours(base: Base, adapter: Adapter, prompt: str) -> np.ndarray:
    with applied(base, adapter):
        parts = (base.vae, base.texts.models[0], base.texts.tokenizer, base.unet)
        pipe = StableDiffusionPipeline(
            *parts, base.scheduler, None, None, requires_safety_checker=False
        )
        scope = {"pipe": pipe, "PROMPT": prompt}
        exec(DRAW, scope)
    return scope["image"]


def theirs(folder: Path, prompt: str, *snippets: str) -> np.ndarray:
    code = [f"PROMPT = {prompt!r}", *(SNIPPETS[name] for name in ("pipeline", *snippets)), DRAW]
    code += [
        "import sys",
        "assert not {'pipeline', 'eval'} & set(sys.modules)",
        "import numpy",
        "numpy.save('image.npy', image)",
    ]
    path = os.pathsep.join(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)
    subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(code)],
        cwd=folder,
        check=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    return np.load(folder / "image.npy")


@pytest.mark.parametrize("case", ["custom-diffusion", "textual-inversion", "lora"])
def test_diffusers_alone_draws_the_same_image(base, adapter, case):
    if case == "lora":
        pytest.importorskip("peft")
        adapter = compress(adapter, 0.5)
        assert len({delta.down.shape[0] for delta in adapter.deltas.values()}) > 1
    if case == "textual-inversion":
        adapter = one_token(adapter)
    place = Path(base.path).parent
    for old in (place / "exported").glob("*"):
        old.unlink()
    export_adapter(adapter, base, case, place / "exported")
    prompt = "photo of a <new1> cat" + (" and a <new2> dog" if len(adapter.tokens) > 1 else "")
    expected = ours(base, adapter, prompt)
    tokens_alone = Adapter(adapter.tokens, {}, adapter.provenance)
    other = "photo of a cat" if case == "textual-inversion" else prompt
    assert np.abs(expected - ours(base, tokens_alone, other)).max() > 0.02
    more = [] if case == "textual-inversion" else ["tokens"]
    got = theirs(place, prompt, case, *more)
    print(case, np.abs(got - expected).max())
    # Two processes may sum float32 in another order: 1.1e-6 was seen, of an effect above 0.02.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 if case == "lora" else 1e-5)


def test_diffusers_own_loader_takes_the_file_when_it_is_given_the_pipeline(base, adapter, tmp_path):
    export_adapter(adapter, base, "custom-diffusion", tmp_path / "exported")

    def pipeline() -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(base.path)

    def image(pipe: StableDiffusionPipeline) -> np.ndarray:
        scope = {"pipe": pipe, "PROMPT": "photo of a cat"}
        exec(DRAW, scope)
        return scope["image"]

    call = SNIPPETS["custom-diffusion, with diffusers' loader"]
    call = call.replace('"exported"', repr(str(tmp_path / "exported")))
    pipe = pipeline()
    exec(call, {"pipe": pipe})
    np.testing.assert_allclose(image(pipe), ours(base, adapter, "photo of a cat"), atol=1e-4)
    # And what the page says of it: without the pipeline nothing happens.
    silent = pipeline()
    exec(call.replace("_pipeline=pipe", ""), {"pipe": silent})
    assert np.array_equal(image(silent), image(pipeline()))
    # Nor does it take the file without the empty tensors.
    path = tmp_path / "exported" / CUSTOM
    save_file({key: t for key, t in load_file(path).items() if t.numel()}, path)
    with pytest.raises(ValueError, match="number of processors"):
        exec(call, {"pipe": pipeline()})


def test_keys_are_those_that_diffusers_saves(base, adapter, tmp_path):
    export_adapter(adapter, base, "custom-diffusion", tmp_path)
    unet = StableDiffusionPipeline.from_pretrained(base.path).unet
    widths = dict(unet.named_parameters())
    processors = {}
    for name in unet.attn_processors:
        cross = ".attn2." in name
        width, text = widths[name.replace("processor", "to_k.weight")].shape
        processors[name] = CustomDiffusionAttnProcessor(cross, False, width, text)
    unet.set_attn_processor(processors)
    unet.save_attn_procs(tmp_path / "diffusers")
    saved = load_file(tmp_path / "diffusers" / CUSTOM)
    written = {name: t for name, t in load_file(tmp_path / CUSTOM).items() if t.numel()}
    assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in saved.items()}
    # What diffusers saves can be imported: new processors have weights of their own.
    back = import_adapter(tmp_path / "diffusers", base, "s", ("cat",))
    assert back.deltas.keys() == set(key_value_names(base.unet)) and not back.tokens


# --- round trips


@pytest.mark.parametrize("layout", LAYOUTS)
def test_import_of_an_export_gives_the_same_bits(base, adapter, layout, tmp_path):
    if layout == "textual-inversion":
        adapter = Adapter(adapter.tokens, {}, adapter.provenance)
    if layout == "lora":
        adapter = compress(adapter, 0.5)
    before = {name: p.clone() for name, p in base.unet.named_parameters()}
    paths = export_adapter(adapter, base, layout, tmp_path / "out")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()}
    assert same_bits(before, dict(base.unet.named_parameters()))
    back = import_adapter(tmp_path / "out", base, "my", NOUNS)
    assert same_bits(weights_with(base, back), weights_with(base, adapter))
    assert same_bits(back.tokens, adapter.tokens)
    assert back.provenance == Provenance(
        "imported", "my", base.path, base.hash, ("<new1> cat", "<new2> dog")
    )
    # Through this project's own file too, and out again with the same bytes.
    save_adapter(back, tmp_path / "back.safetensors")
    back = load_adapter(tmp_path / "back.safetensors")
    again = export_adapter(back, base, layout, tmp_path / "again")
    for one, other in zip(paths, again):
        assert one.read_bytes() == other.read_bytes()


def test_nouns_are_given_in_the_order_of_the_tokens_numbers(base, tmp_path):
    rows = {f"<new{i}>": torch.full((32,), float(i)) for i in (10, 9, 2, 1, 11)}
    for token, row in rows.items():
        save_file({token: row[None]}, tmp_path / f"{token}.safetensors")
    nouns = ["cat", "dog", "chair", "house", "tree"]
    back = import_adapter(tmp_path, base, "s", nouns)
    assert [float(row[0]) for row in back.tokens.values()] == [1, 2, 9, 10, 11]
    assert back.provenance.references == (
        "<new1> cat",
        "<new2> dog",
        "<new9> chair",
        "<new10> house",
        "<new11> tree",
    )


def test_low_ranks_come_back_as_they_were(base, adapter, tmp_path):
    adapter = compress(adapter, 0.5)
    export_adapter(adapter, base, "lora", tmp_path)
    back = import_adapter(tmp_path, base, "s", NOUNS)
    for name, delta in adapter.deltas.items():
        assert torch.equal(back.deltas[name].up, delta.up)
        assert torch.equal(back.deltas[name].down, delta.down)


def test_low_ranks_as_weights_and_weights_that_do_not_change(base, adapter, tmp_path):
    name = key_value_names(base.unet)[0]
    low = LowRank(torch.randn(adapter.deltas[name].shape[0], 2), torch.randn(2, 32))
    one = one_token(adapter, **{name: low})
    export_adapter(one, base, "official", tmp_path)
    back = import_adapter(tmp_path, base, "s", ("cat",))
    assert list(back.deltas) == [name]
    assert same_bits(weights_with(base, back), weights_with(base, one))


def test_difference_is_exact_for_every_sum_of_floats():
    generator = torch.Generator().manual_seed(0)
    original, change = (
        torch.randn(200_000, generator=generator)
        * 2.0 ** torch.randint(-30, 30, (200_000,), generator=generator)
        for _ in range(2)
    )
    weight = original + change
    assert torch.equal(original + difference(weight, original), weight)
    # A tie where the rounded difference misses and its neighbour does not.
    original = torch.tensor([-(2.0**-24)])
    weight = original + torch.tensor([1 + 2.0**-23])
    assert not torch.equal(original + (weight - original), weight)
    assert torch.equal(original + difference(weight, original), weight)


def test_foreign_weights_are_within_the_rounding_of_the_change():
    generator = torch.Generator().manual_seed(1)
    original, noise = (0.05 * torch.randn(200_000, generator=generator) for _ in range(2))
    weight = (original.double() + 0.05 * noise.double()).float()
    missed = (original + difference(weight, original)).double() - weight.double()
    assert (missed.abs() <= 2.0**-23 * (weight.double() - original.double()).abs()).all()
    assert 0 < missed.count_nonzero() < 0.05 * len(missed)


# --- the official file


def test_official_file_has_the_official_content(base, adapter, tmp_path):
    export_adapter(adapter, base, "official", tmp_path)
    content = torch.load(tmp_path / "delta.bin", weights_only=True)
    assert content.keys() == {"unet", "modifier_token"}
    assert same_bits(content["modifier_token"], adapter.tokens)
    expected = weights_with(base, adapter)
    names = [n for n in expected if "attn2.to_k" in n or "attn2.to_v" in n]
    assert same_bits(content["unet"], {name: expected[name] for name in names})


def test_pickles_are_refused_and_the_page_shows_how_to_convert_them(
    base, adapter, tmp_path, monkeypatch
):
    export_adapter(adapter, base, "official", tmp_path)
    (tmp_path / "delta.safetensors").unlink()
    (tmp_path / "renamed.st").write_bytes((tmp_path / "delta.bin").read_bytes())
    torch.save({"x": 1}, tmp_path / "old.st", _use_new_zipfile_serialization=False)
    for path in (tmp_path, tmp_path / "delta.bin", tmp_path / "renamed.st", tmp_path / "old.st"):
        with pytest.raises(BenchError, match=r"(delta.bin|\.st): is a pickle.*docs/adapters.md"):
            import_adapter(path, base, "s", NOUNS)
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS["convert"], {})
    back = import_adapter(tmp_path, base, "s", NOUNS)
    assert same_bits(weights_with(base, back), weights_with(base, adapter))
    # diffusers' own .bin: plain keys, and an empty dict for a layer that has not changed.
    name = key_value_names(base.unet)[0]
    key = name.replace(".to_k", ".processor.to_k_custom_diffusion")
    weight = torch.randn_like(adapter.deltas[name])
    torch.save({key: weight, "a.attn1.processor": {}}, tmp_path / "delta.bin")
    exec(SNIPPETS["convert"], {})
    assert import_adapter(tmp_path, base, "s", ("cat",)).deltas.keys() == {name}


def test_lora_of_other_programs(base, tmp_path):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    up, down = torch.randn(16, 2), torch.randn(2, 16)
    module = f"unet.{name.removesuffix('.weight')}"
    path = tmp_path / "x.safetensors"
    save_file({f"{module}.lora.up.weight": up, f"{module}.lora.down.weight": down}, path)
    assert torch.equal(import_adapter(path, base, "s", ("cat",)).deltas[name].up, up)
    content = {f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down}
    settings = '{"unet.lora_alpha": 1, "unet.r": 2, "unet.rank_pattern": {}}'
    save_file(content, path, {"lora_adapter_metadata": settings})
    back = import_adapter(path, base, "s", ("cat",))
    assert torch.equal(back.deltas[name].up, up / 2)
    assert back.provenance.references == ("cat",)
    for bad, message in {
        '{"unet.use_dora": true}': "use_dora is not supported",
        '{"unet.r": 0}': "cannot be read",
        "[": "cannot be read",
        '{"unet.lora_alpha": Infinity}': "alpha / rank is inf",
    }.items():
        save_file(content, path, {"lora_adapter_metadata": bad})
        with pytest.raises(BenchError, match=f"x.safetensors: metadata .*{message}"):
            import_adapter(path, base, "s", ("cat",))


# --- mistakes


def test_what_a_layout_cannot_hold_is_refused(base, adapter, tmp_path):
    bias = one_token(adapter, **{"conv_in.bias": torch.ones(16)})
    nothing = Adapter({}, adapter.deltas, adapter.provenance)
    slash = Adapter({"a/b": adapter.tokens["<new1>"]}, {}, adapter.provenance)
    layered = Adapter({"<new1>": torch.ones(4, 32)}, {}, adapter.provenance)
    for refused, layout, message in (
        (adapter, "zip", "layout 'zip' is unknown: choose one of custom-diffusion"),
        (bias, "custom-diffusion", "changes 1 weights, such as conv_in.bias"),
        (bias, "official", "keys and values of cross-attention alone"),
        (bias, "lora", r"changes conv_in.bias \[16\], and layout lora holds matrices alone"),
        (adapter, "lora", "dense change of .* run `bench adapter compress` first"),
        (to_rank(adapter, 0), "lora", "changes no weights: export as textual-inversion"),
        (adapter, "textual-inversion", "changes weights: layout textual-inversion"),
        (to_rank(nothing, 0), "textual-inversion", "has no token"),
        (slash, "textual-inversion", "token 'a/b' cannot be a file's name"),
        (layered, "textual-inversion", "tokens that differ by layer, which no other layout has"),
    ):
        with pytest.raises(BenchError, match=message):
            export_adapter(refused, base, layout, tmp_path / "out")
    foreign = Provenance(**{**vars(adapter.provenance), "base_hash": "feed"})
    with pytest.raises(BenchError, match="feed.*not for"):
        other = Adapter(adapter.tokens, adapter.deltas, foreign)
        export_adapter(other, base, "official", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_fit_are_one_clear_line(base, adapter, tmp_path):
    name = key_value_names(base.unet)[0]
    weight, row = torch.zeros_like(adapter.deltas[name]), torch.zeros(32)
    module = f"unet.{name.removesuffix('.weight')}"
    path = tmp_path / "x.safetensors"

    def refused(content: dict[str, torch.Tensor], message: str, nouns=("cat",), **metadata) -> None:
        save_file({k: t.clone().contiguous() for k, t in content.items()}, path, metadata or None)
        with pytest.raises(BenchError, match=message) as caught:
            import_adapter(path, base, "s", nouns)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    refused(
        {"text_encoder.x": row, "unet.y": row}, "text_encoder.x: belongs to none of the layouts"
    )
    refused({"unet.y": row}, r"unet.y: the base .* has no weight y: import it with")
    refused({f"unet.{name}": weight[:, :-1]}, rf"{name}: is for a weight \[.*, 31\], and")
    refused({f"unet.{name}": weight.fill_(float("nan"))}, "holds what is not a finite")
    refused({f"unet.{name}": weight.int()}, "holds what is not a finite")
    refused({"<new1>": torch.zeros(1, 31)}, r"<new1>: \[1, 31\] is no embedding .* \[1, 32\]")
    refused({"<new1>": torch.zeros(2, 32)}, r"\[2, 32\] is no embedding")
    refused({"cat": row}, "cat: is a word or cannot be a token: rename it")
    refused({"a/b": row}, "a/b: is a word or cannot be a token")
    refused({"<new1>": row}, "tokens <new1> and was given the class nouns cat, dog", NOUNS)
    refused({"<new1>": row}, r"nouns \(none\)", ())
    refused({"<new1>": row}, "was made for base feed, not for", **{"concept-bench-base": "feed"})
    original = base.unet.state_dict()[name].clone()
    refused({f"unet.{name}": original}, "changes nothing")
    up, down = torch.ones(weight.shape[0], 2), torch.ones(2, 32)
    refused({f"{module}.lora_B.weight": up, "unet.z": row}, "no weight z")
    refused({f"{module}.lora_B.weight": up}, "lora_B.weight: has no matrix for down beside it")
    pair = {f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down[:1]}
    refused(pair, r"lora_B.weight: .* does not fit .*lora_A.weight \[1, 32\]")
    pair = {f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down[:, 1:]}
    refused(pair, r"is for a weight \[.*, 31\]")
    pair = {f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down}
    refused({**pair, f"unet.{name}": original + 1}, "is also in")

    save_adapter(adapter, path)
    with pytest.raises(BenchError, match="is an adapter of this project"):
        import_adapter(path, base, "s", NOUNS)
    for content in (b"", b"\0" * 100, b"no safetensors"):
        path.write_bytes(content)
        with pytest.raises(BenchError, match=r"x.safetensors: not a readable safetensors file"):
            import_adapter(tmp_path, base, "s", NOUNS)
    with pytest.raises(BenchError, match="none: no such file or folder"):
        import_adapter(tmp_path / "none", base, "s", NOUNS)
    path.unlink()
    with pytest.raises(BenchError, match="holds no .safetensors file"):
        import_adapter(tmp_path, base, "s", NOUNS)


def test_two_layouts_in_one_folder_are_refused(base, adapter, tmp_path):
    export_adapter(adapter, base, "official", tmp_path)
    export_adapter(adapter, base, "custom-diffusion", tmp_path)
    with pytest.raises(BenchError, match=r"is also in .*: import the files of one layout"):
        import_adapter(tmp_path, base, "s", NOUNS)


@pytest.fixture
def importing(base, monkeypatch):
    """`import_file` with the small base."""
    monkeypatch.setattr(formats, "load_params", lambda _: SimpleNamespace(base=None))
    monkeypatch.setattr(formats, "load_base", lambda *_: base)
    return formats.import_file


@pytest.mark.parametrize("noun", ["{}", "", "<new1>", "cat {0}", "cat\n{}"])
def test_a_class_noun_of_other_than_words_is_refused(adapter, base, tmp_path, importing, noun):
    export_adapter(one_token(adapter), base, "textual-inversion", tmp_path / "exported")
    with pytest.raises(BenchError, match=r"^--class .*: needs a noun in plain words"):
        importing(tmp_path / "exported", tmp_path / "a.safetensors", "my_cat", [noun])
    assert not (tmp_path / "a.safetensors").exists()


def test_a_pickle_beside_a_token_is_said_to_be_ignored(adapter, base, tmp_path, importing, capsys):
    folder = tmp_path / "exported"
    export_adapter(one_token(adapter), base, "textual-inversion", folder)
    importing(folder, tmp_path / "a.safetensors", "my_cat", ["cat"])
    assert "never read" not in capsys.readouterr().out
    (folder / "pytorch_custom_diffusion_weights.bin").write_bytes(b"\x80\x02}q\x00.")
    importing(folder, tmp_path / "b.safetensors", "my_cat", ["cat"])
    said = capsys.readouterr().out
    assert re.search(r"weights\.bin: a pickle, .* ignored beside learned_embeds\.safeten", said)


def test_files_that_are_there_stay(adapter, base, tmp_path):
    """Of any of the names, before the first is written."""
    mine = tmp_path / "<new2>.safetensors"
    mine.write_text("mine")
    with pytest.raises(BenchError, match=r"<new2>\.safetensors: exists already: name another"):
        export_adapter(adapter, base, "custom-diffusion", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [mine.name]
    assert mine.read_text() == "mine"


# --- A base with two text encoders


@pytest.fixture(scope="module")
def xl(tmp_path_factory) -> Base:
    folder = tmp_path_factory.mktemp("xl") / "base"
    write_checkpoint(folder, PUBLISHED["XL"])
    params = BaseParams(path=str(folder), resolution=SIDE, modifier_token_ids=[0])
    return load_base(params, torch.device("cpu"))


@pytest.mark.parametrize("case", ["custom-diffusion", "textual-inversion", "lora"])
def test_diffusers_draws_the_same_image_with_two_text_encoders(xl, case, monkeypatch):
    adapter = random_adapter(xl)
    if case == "lora":
        pytest.importorskip("peft")
        adapter = compress(adapter, 0.5)
    if case == "textual-inversion":
        adapter = one_token(adapter)
    place = Path(xl.path).parent
    monkeypatch.chdir(place)
    shutil.rmtree(place / "exported", ignore_errors=True)
    files = export_adapter(adapter, xl, case, "exported")
    assert {f"{token}.safetensors" for token in adapter.tokens} <= {file.name for file in files}
    scope: dict[str, Any] = {}
    weights = [] if case == "textual-inversion" else [case]
    for name in ("pipeline of XL", *weights, "tokens of XL"):
        exec(SNIPPETS[name], scope)
    pipe = scope["pipe"]
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    prompt = "photo of a <new1> cat" + (" and a <new2> dog" if len(adapter.tokens) > 1 else "")
    how = SamplerParams(steps=3, guidance_scale=6, eta=0, batch_size=1)
    (got,) = pipe(
        prompt, height=SIDE, width=SIDE, num_inference_steps=how.steps, eta=how.eta,
        guidance_scale=how.guidance_scale, generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    with applied(xl, adapter):
        (expected,) = sample(xl, [prompt], [7], how)
    with applied(xl, Adapter(adapter.tokens, {}, adapter.provenance)):
        other = "photo of a cat" if case == "textual-inversion" else prompt
        (plain,) = sample(xl, [other], [7], how)
    got, expected, plain = (np.asarray(i).astype(int) for i in (got, expected, plain))
    assert np.abs(got - expected).max() <= 1
    assert np.abs(plain - expected).max() > 5
    back = import_adapter("exported", xl, "s", NOUNS[: len(adapter.tokens)])
    assert same_bits(back.tokens, adapter.tokens)


def test_official_file_of_two_text_encoders_has_a_list_of_rows(xl, tmp_path):
    adapter = random_adapter(xl)
    export_adapter(adapter, xl, "official", tmp_path)
    content = torch.load(tmp_path / "delta.bin", weights_only=True)
    row = adapter.tokens["<new1>"]
    for found, expected in zip(content["modifier_token"]["<new1>"], row.split(xl.texts.widths)):
        assert torch.equal(found, expected)
    scope: dict[str, Any] = {}
    code = SNIPPETS["convert"].replace('"delta.bin"', repr(str(tmp_path / "delta.bin")))
    (tmp_path / "converted").mkdir()
    converted = str(tmp_path / "converted" / "converted.safetensors")
    exec(code.replace('"converted.safetensors"', repr(converted)), scope)
    for path in (tmp_path / "delta.safetensors", converted):
        back = import_adapter(path, xl, "s", NOUNS)
        assert same_bits(back.tokens, adapter.tokens)


def test_a_token_of_one_text_encoder_is_refused_by_two_and_the_other_way_round(xl, base, tmp_path):
    export_adapter(one_token(random_adapter(xl)), xl, "textual-inversion", tmp_path / "two")
    export_adapter(one_token(random_adapter(base)), base, "textual-inversion", tmp_path / "one")
    for path, other, width in ((tmp_path / "two", base, 32), (tmp_path / "one", xl, 40)):
        for file in path.iterdir():  # without the hash of the base
            save_file(load_file(file), file)
        with pytest.raises(BenchError, match=rf"is no embedding of the base .* \[{width}\]"):
            import_adapter(path, other, "s", ("cat",))
