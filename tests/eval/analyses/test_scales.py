from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from eval.analyses.common import Judge, adapter_scores
from eval.analyses.scales.stage import analyse_scales, scaled
from pipeline.concepts.concept import load_subject
from pipeline.models.adapter import Adapter, LowRank, Provenance, applied
from pipeline.models.base import Base
from pipeline.sample.requests import task_requests
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import load_params
from pipeline.settings.protocol import protocol_path
from tests.eval.analyses.conftest import Adapt, Configure


def test_changes_are_scaled_and_tokens_are_not() -> None:
    g = torch.Generator().manual_seed(0)
    up, down, whole, row = (torch.randn(4, 4, generator=g) for _ in range(4))
    made = Provenance("lora", "cat", "base", "hash", ("<new1> cat",))
    found = scaled(Adapter({"<new1>": row[0]}, {"a": LowRank(up, down), "b": whole}, made), 0.3)
    assert isinstance(found.deltas["a"], LowRank)
    torch.testing.assert_close(found.deltas["a"].dense(), 0.3 * (up @ down))
    assert torch.equal(found.deltas["b"], 0.3 * whole)
    assert torch.equal(found.tokens["<new1>"], row[0])


def test_a_share_of_a_change_scores_as_an_adapter_of_that_share(
    configure: Configure, adapt: Adapt, base: Base
) -> None:
    about = {"methods": ["custom_diffusion"], "subjects": ["cat"], "scales": [0, 0.5, 1]}
    configure(scales=about)
    adapter = adapt("custom_diffusion", "cat")
    folder = analyse_scales()
    table = pd.read_csv(folder / "scales.csv").set_index("scale")
    judge, subject = Judge(load_params()), load_subject("cat")
    halved = {name: delta / 2 for name, delta in adapter.deltas.items()}
    for scale, deltas in ((0, {}), (0.5, halved), (1, adapter.deltas)):
        scores = adapter_scores(judge, base, replace(adapter, deltas=deltas), subject, 1)
        wanted = scores.groupby("metric")["value"].mean()
        assert len(set(wanted)) > 1
        for metric in wanted.index:
            assert table.loc[scale, metric] == pytest.approx(wanted[metric], abs=1e-5)
    assert table["image_alignment"].nunique() == 3
    assert (folder / "cat.png").is_file()


def test_of_a_task_the_adapter_is_asked_for_every_concept(
    profile: Path, configure: Configure, adapt: Adapt, base: Base
) -> None:
    yaml, method = YAML(), "custom_diffusion_sequential"
    configure(scales={"methods": [method], "subjects": ["toys/task-2"], "scales": [1]})
    grid = yaml.load(profile / "grid.yaml")
    grid["sequences"] = {"toys": {"concepts": ["chair", "cat"], "methods": [method]}}
    yaml.dump(grid, profile / "grid.yaml")
    path = profile / protocol_path(load_params().protocol.name)
    protocol = yaml.load(path)
    protocol["sequence"] = {"images_per_prompt": 1, "steps": 2}
    yaml.dump(protocol, path)
    adapter = adapt(method, "toys/task-2")
    prompts = pd.read_csv(analyse_scales() / "prompts.csv")
    assert set(prompts["of"]) == {"toys/task-2"} and list(dict.fromkeys(prompts["subject"])) == [
        "chair", "cat",
    ]  # fmt: skip
    params, task = load_params(), load_subject("toys/task-2")
    asked = task_requests(params, task, adapter.provenance.references)[1]
    with applied(base, adapter):
        images = sample_all(base, asked, params.task_sampler())
    of_cat = prompts.query("subject == 'cat' and metric == 'image_alignment'")["value"]
    expected = Judge(params).image_alignment(images, "cat")
    assert of_cat.mean() == pytest.approx(expected.mean(), abs=1e-5)
