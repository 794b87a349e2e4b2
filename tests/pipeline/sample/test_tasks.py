"""Tasks of a sequence, as far as stages read files: which images there are, and what was before."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes
from pipeline.concepts.concept import load_subject
from pipeline.concepts.shards import samples_of
from pipeline.methods import Chained
from pipeline.models.adapter import Adapter, Provenance, save_adapter
from pipeline.sample import sampler
from pipeline.sample.requests import cell_requests, task_requests
from pipeline.settings.profile import Params, load_params
from pipeline.settings.protocol import protocol_path
from pipeline.train.inputs import load_previous

METHOD = "custom_diffusion_sequential"


@pytest.fixture
def params(project: Path) -> Params:
    """The default profile with a sequence of three."""
    yaml = YAML()
    for path, section in (
        (
            project / "grid.yaml",
            {"sequences": {"toys": {"concepts": ["cat", "dog", "chair"], "methods": [METHOD]}}},
        ),
        (
            project / protocol_path(load_params().protocol.name),
            {"sequence": {"images_per_prompt": 2, "steps": 7}},
        ),
    ):
        content = yaml.load(path)
        content.update(section)
        yaml.dump(content, path)
    return load_params()


def test_a_task_asks_for_each_concept_from_the_noise_of_its_own_cell(params: Params) -> None:
    task = load_subject("toys/task-2")
    assert task.task and [c.name for c in task.concepts] == ["cat", "dog"]
    groups = task_requests(params, task, ["<new1> cat", "<new2> dog"])
    keys = [request.key for group in groups for request in group]
    assert len(set(keys)) == len(keys) == 2 * sum(len(c.prompts) for c in task.concepts)
    for number, (group, concept) in enumerate(zip(groups, task.concepts), 1):
        own = load_subject(concept.name)
        cell = {r.key: r for r in cell_requests(params, own, [f"<new1> {concept.class_noun}"], [])}
        for request in group:
            alone = cell[request.key.removeprefix(f"{number:03d}-")]
            assert request.seed == alone.seed
            assert request.record["concept"] == concept.name
            assert request.record["scored_prompt"] == alone.record["scored_prompt"]
            assert request.prompt == alone.prompt.replace("<new1>", f"<new{number}>")
    later = task_requests(params, load_subject("toys/task-3"), ["<new1>", "<new2>", "<new3>"])
    assert [[r.seed for r in group] for group in later[:2]] == [
        [r.seed for r in group] for group in groups
    ]
    assert params.task_sampler().steps == 7
    with pytest.raises(BenchError, match="its adapter is of <new1> cat, not of cat, dog"):
        task_requests(params, task, ["<new1> cat"])


def test_a_sequence_itself_is_its_last_model_asked_for_class_nouns(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pngs(_base, groups, how, session, _unfinished):
        asked.extend([request.prompt for request in group] for group in groups)
        assert how.steps == 7 and session == "toys/task-3"
        return [png_bytes(Image.new("RGB", (4, 4)))] * sum(map(len, groups))

    opened = lambda how, base, adapter: nullcontext(adapter.provenance.subject)  # noqa: E731
    monkeypatch.setattr(sampler, "load_base", lambda _: None)
    monkeypatch.setattr(sampler, "sample_pngs", pngs)
    monkeypatch.setattr(Chained, "open", opened)
    references = ("<new1> cat", "<new2> dog", "<new3> chair")
    rows = {f"<new{n}>": torch.ones(3) for n in (1, 2, 3)}
    made = Provenance(METHOD, "toys/task-3", "base", "hash", references)
    save_adapter(
        Adapter(rows, {}, made), params.cell(METHOD, "toys/task-3") / "adapter.safetensors"
    )
    path = sampler.sample_cell(METHOD, "toys")
    assert path == params.cell(METHOD, "toys") / "samples.tar"
    concepts = [load_subject(name) for name in ("cat", "dog", "chair")]
    assert asked == [[p for p in c.scored_prompts() for _ in range(2)] for c in concepts]
    samples = samples_of(params, METHOD, "toys")
    assert {s["json"]["concept"] for s in samples} == {"cat", "dog", "chair"}
    # From the noise of the pretrained model's cells, which asks for the same words.
    cell = cell_requests(params, concepts[1], ["dog"], [])
    seeds = {s["json"]["seed"] for s in samples if s["json"]["concept"] == "dog"}
    assert seeds <= {request.seed for request in cell}


def test_the_task_before_has_to_be_that(params: Params) -> None:
    made = Provenance(METHOD, "toys/task-1", "base", "hash", ("<new1> cat",))
    before = Adapter({"<new1>": torch.ones(3)}, {}, made)
    path = params.cell(METHOD, "toys/task-1") / "adapter.safetensors"
    second = load_subject("toys/task-2")
    with pytest.raises(BenchError, match="the adapter is missing: run `dvc repro`"):
        load_previous(params, METHOD, second)
    save_adapter(before, path)
    assert load_previous(params, METHOD, second).provenance == made
    for wrong in (
        replace(made, method="custom_diffusion_ewc"),
        replace(made, subject="others/task-1"),
        replace(made, references=("<new1> cat", "dog")),
    ):
        save_adapter(replace(before, provenance=wrong), path)
        with pytest.raises(BenchError, match=f"not of {METHOD} on toys/task-1: delete it"):
            load_previous(params, METHOD, second)
