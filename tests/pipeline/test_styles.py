"""Style concepts in the stages: what is generated for them, and merging with an object."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipeline.sample.generate
from pipeline.common.files import read_tar
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Concept, Subject, load_concept
from pipeline.methods import load_method
from pipeline.models.adapter import Adapter, Provenance
from pipeline.models.base import Base
from pipeline.models.crossattn import key_value_names
from pipeline.sample.generate import generate
from pipeline.settings.profile import MethodParams, load_params
from pipeline.train.making import Making
from tests.pipeline.conftest import Settings
from tests.pipeline.tiny import concept, new_base

CAPTIONS = [f"photo of a {a} {b}" for a in ("red", "blue", "green") for b in ("dog", "house")]


@pytest.mark.parametrize("name", ["neon", "cat"])
def test_generated_images_are_of_the_queries_in_turn(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings(generate={"images": 20})
    monkeypatch.setattr(pipeline.sample.generate, "load_base", lambda _: None)
    monkeypatch.setattr(
        pipeline.sample.generate,
        "sample_pngs",
        lambda _, groups, *__: [b"png" for group in groups for _ in group],
    )
    queries = load_concept(name).queries
    assert len(queries) == (16 if name == "neon" else 0)
    samples = read_tar(generate(name))
    prompts = [*queries, *queries[:4]] if queries else ["photo of a cat"] * 20
    assert [sample["txt"] for sample in samples] == prompts
    seeds = [seed_of(42, "generated", prompt, i) for i, prompt in enumerate(prompts)]
    assert [sample["json"]["seed"] for sample in samples] == seeds


def adapter(base: Base, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    weights = dict(base.unet.named_parameters())
    deltas = {
        name: 0.1 * torch.randn(weights[name].shape, generator=generator)
        for name in key_value_names(base.unet)
    }
    row = torch.randn(32, generator=generator)
    noun = ("picture", "cat")[seed]
    about = Provenance("m", noun, base.path, base.hash, (f"<new1> {noun}",), {"<new1>": 336 + seed})
    return Adapter({"<new1>": row}, deltas, about)


@pytest.mark.parametrize("template_words", [True, False])
@pytest.mark.parametrize("caption", ["{}", "picture in the style of {}"])
def test_style_and_object_are_merged(project: Path, caption: str, template_words: bool) -> None:
    base, params = new_base(), load_params()
    style = Concept("neon", "picture", caption, Path("neon.txt"), ())
    about = Subject("neon+cat", (style, concept("cat", "cat")), Path("neon+cat.txt"))
    parts = [adapter(base, 0), adapter(base, 1)]
    how = load_method("custom_diffusion_merge").composition
    assert how is not None
    hyper = MethodParams(ridge=1e-6, template_words=template_words)
    result = how.make(Making.of(base, "m", about, params, hyper, (), parts, CAPTIONS))

    # Token, noun and end of each name; the same three in each caption, unless it is the name
    # alone; and the words before them: "photo of a", "picture in the style of" or none.
    words = {"{}": 0, "picture in the style of {}": 5}[caption]
    again = 3 if words else 0
    expected = 3 + again + 3 + 3 + ((words + 3) if template_words else 0)
    assert result.provenance.notes["constraints"] == expected
    assert result.provenance.notes["residual"] < 1e-6
    assert result.provenance.references == ("<new1> picture", "<new2> cat")

    # The style's words are mapped as by its own adapter, in the prompt as in its caption.
    with torch.no_grad(), base.texts.modifier_tokens(result.tokens):
        prompt, own = base.condition(
            ["<new1> picture of a <new2> cat", caption.format("<new1> picture")]
        ).text
    if caption == "{}":
        torch.testing.assert_close(prompt[1:3], own[1:3])
    weights = dict(base.unet.named_parameters())
    for name, delta in parts[0].deltas.items():
        both = own[words + 1 : words + 4]
        torch.testing.assert_close(
            both @ (weights[name] + result.deltas[name]).T,
            both @ (weights[name] + delta).T,
            rtol=1e-3,
            atol=1e-4,
        )
