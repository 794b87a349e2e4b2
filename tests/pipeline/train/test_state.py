"""A killed training goes on, and ends in the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.common import unfinished
from pipeline.common.failures import FailureError
from pipeline.common.files import sha256
from pipeline.common.unfinished import Unfinished, code_digest, digest
from pipeline.methods import load_method
from pipeline.models.adapter import Adapter, save_adapter
from pipeline.models.base import Base
from pipeline.settings.profile import MethodParams, load_params
from pipeline.train.making import Making
from tests.pipeline.sample.test_sampler import random_adapter
from tests.pipeline.tiny import subject, training_set

STEPS = 4
HYPER = MethodParams(learning_rate=1e-2, rank=2, steps=STEPS, composition_steps=STEPS)
ONE, TWO = training_set("cat", "cat"), training_set("chair", "chair", 1)


@pytest.fixture(autouse=True)
def keep_always(monkeypatch):
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 0.0)


class Killed(BaseException):
    """As a signal, nothing catches it."""


def train(
    base: Base, folder: Path, name: str, *sets, monkeypatch, kill: int | None = None, about="a"
) -> tuple[str, int]:
    """The digest of an adapter, and how many steps were made; killed before that of a number."""
    steps = 0
    plain = torch.optim.AdamW.step

    def step(self, closure=None):
        nonlocal steps
        if steps == kill:
            raise Killed
        steps += 1
        return plain(self, closure)

    params = load_params()
    half = Unfinished(folder / "unfinished", lambda: about)
    how = load_method(name).of(len(sets))
    assert how is not None
    making = Making.of(
        base, name, subject(*sets), params, HYPER, sets, unfinished=half, parts=parts(base)
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        try:
            save_adapter(how.make(making), folder / "a.safetensors")
        except Killed:
            return "killed", steps
    return sha256(folder / "a.safetensors"), steps


def parts(base: Base) -> list[Adapter]:
    """The adapter of a first concept."""
    adapter = random_adapter(base)
    about = replace(adapter.provenance, references=("<new1> cat",))
    return [replace(adapter, tokens={"<new1>": adapter.tokens["<new1>"]}, provenance=about)]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("custom_diffusion", torch.float32),
        ("custom_diffusion", torch.bfloat16),
        ("lora_kv", torch.float32),
    ],
)
def test_a_killed_training_ends_in_the_bytes_of_an_undisturbed_one(
    base, tmp_path, monkeypatch, name, stored
):
    base.store(stored)
    whole, _ = train(base, tmp_path / "whole", name, ONE, monkeypatch=monkeypatch)
    first = train(base, tmp_path / "b", name, ONE, monkeypatch=monkeypatch, kill=2)
    assert first == ("killed", 2)
    assert train(base, tmp_path / "b", name, ONE, monkeypatch=monkeypatch) == (whole, STEPS - 2)
    base.store(torch.float32)


def test_of_several_trainings_the_finished_ones_are_not_made_again(base, tmp_path, monkeypatch):
    name, sets = "custom_diffusion_sequential", (ONE, TWO, training_set("dog", "dog", 2))
    whole, steps = train(base, tmp_path / "w", name, *sets, monkeypatch=monkeypatch)
    assert steps == 2 * STEPS
    train(base, tmp_path / "b", name, *sets, monkeypatch=monkeypatch, kill=STEPS + 2)
    found = train(base, tmp_path / "b", name, *sets, monkeypatch=monkeypatch)
    assert found == (whole, STEPS - 2)


def test_another_key_and_a_damaged_file_start_anew(base, tmp_path, monkeypatch):
    name = "textual_inversion"
    whole, _ = train(base, tmp_path / "w", name, ONE, monkeypatch=monkeypatch)
    train(base, tmp_path, name, ONE, monkeypatch=monkeypatch, kill=2)
    again = train(base, tmp_path, name, ONE, monkeypatch=monkeypatch, about="b")
    assert again == (whole, STEPS)
    train(base, tmp_path, name, ONE, monkeypatch=monkeypatch, kill=2)
    (file,) = (tmp_path / "unfinished").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert train(base, tmp_path, name, ONE, monkeypatch=monkeypatch) == (whole, STEPS)


def test_short_trainings_write_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 60.0)
    train(base, tmp_path, "textual_inversion", ONE, monkeypatch=monkeypatch)
    assert not (tmp_path / "unfinished").exists()


def test_what_is_half_done_goes_when_all_is_done_or_failed_but_not_when_killed(tmp_path):
    half = Unfinished(tmp_path / "u", lambda: "a")
    for error, stays in ((Killed(), True), (FailureError("diverged", "it did"), False)):
        half.folder.mkdir()
        with pytest.raises(type(error)), half.removed():
            raise error
        assert half.folder.exists() == stays
        if stays:
            half.folder.rmdir()
    half.folder.mkdir()
    with half.removed():
        pass
    assert not half.folder.exists()


def test_keys_differ_by_content_and_by_where_parts_end():
    same = Unfinished(Path(), lambda: ("cat", 1)).key
    assert same == Unfinished(Path("elsewhere"), lambda: ("cat", 1)).key
    assert same != Unfinished(Path(), lambda: ("cat", 2)).key
    assert digest("ab", "c") != digest("a", "bc")
    assert len(code_digest()) == 64
