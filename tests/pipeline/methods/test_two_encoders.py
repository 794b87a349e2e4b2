"""Every method on a base with two text encoders: its adapters are made, kept and installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from pipeline.concepts.concept import Subject
from pipeline.methods import load_method, method_names
from pipeline.models.adapter import Adapter, load_adapter, save_adapter
from pipeline.models.base import load_base
from pipeline.settings.profile import BaseParams, MethodParams, load_params
from pipeline.train.making import Making
from tests.pipeline.checkpoints import LAYOUTS, write_checkpoint
from tests.pipeline.tiny import RESOLUTION, subject, task, training_set

XL = LAYOUTS["XL"]
OWN = ("strength", "fisher_rows", "consolidation", "sharing", "shared_rank", "merge_scale")
HYPER = MethodParams(
    learning_rate=1e-3, steps=1, composition_steps=1, rank=1, ridge=1e-3,
    own=dict.fromkeys(OWN, 1.0),
)  # fmt: skip
CAPTIONS = [f"photo of a {a} {b}" for a in ("small", "wooden") for b in ("cat", "pot", "snow")]
SETS = [training_set(noun, noun, i) for i, noun in enumerate(("cat", "pot"))]


class Bench:
    """Makes adapters, and what they need; each once."""

    def __init__(self, folder: Path) -> None:
        write_checkpoint(folder, XL)
        own = BaseParams(path=str(folder), resolution=RESOLUTION, modifier_token_ids=[1, 2])
        self.base = load_base(own, torch.device("cpu"))
        params = load_params()
        train = params.train.model_copy(update={"batch_size": 4})
        self.params = params.model_copy(update={"base": own, "train": train})
        self.made = cache(self._made)

    def _made(self, name: str, about: Subject) -> Adapter:
        how = load_method(name).how(about, name)
        needs = how.needs([concept.name for concept in about.concepts])
        parts = {part.concept.name: part for part in SETS}
        previous = task("toys", *SETS[: len(about.concepts) - 1]) if needs.previous else None
        return how.make(
            Making.of(
                self.base, name, about, self.params, HYPER,
                [parts[concept] for concept in needs.shards],
                [self.made(of, subject(parts[concept])) for of, concept in needs.adapters],
                CAPTIONS if needs.captions else (),
                previous=previous and self.made(name, previous),
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("xl") / "base")


@pytest.mark.parametrize("name", method_names())
def test_adapters_are_made_kept_and_installed(bench, name, tmp_path):
    method, base = load_method(name), bench.base
    kinds = {
        subject(SETS[0]): method.single,
        subject(*SETS): method.composition,
        task("toys", *SETS): method.sequence,
    }
    before = {n: p.clone() for n, p in base.unet.state_dict().items()}
    for about in [about for about, how in kinds.items() if how is not None]:
        adapter = bench.made(name, about)
        save_adapter(adapter, tmp_path / "adapter.safetensors")
        back = load_adapter(tmp_path / "adapter.safetensors")
        assert back.provenance == adapter.provenance
        tensors, again = adapter.tensors(), back.tensors()
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensor, again[n]) for n, tensor in tensors.items())
        assert {row.shape[-1] for row in back.tokens.values()} <= {XL.width}
        noisy = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            nouns = ["", f"a {about.concepts[-1].class_noun}"]
            plain = base.predict(noisy, torch.tensor(500), base.condition(nouns))
            with load_method(name).how(about, name).open(base, back) as session:
                prompts = ["", f"a {back.provenance.references[-1]}"]
                changed = session.predict(noisy, torch.tensor(500), session.condition(prompts))
        assert changed.isfinite().all()
        assert torch.equal(changed, plain) is (name == "pretrained")
    assert all(torch.equal(p, before[n]) for n, p in base.unet.state_dict().items())
