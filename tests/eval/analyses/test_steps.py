from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eval.analyses.common import Judge, adapter_scores
from eval.analyses.steps.stage import analyse_steps
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, write_tar
from pipeline.concepts.concept import load_subject
from pipeline.methods import TrainingSet
from pipeline.methods.custom_diffusion import TRAINED
from pipeline.models.adapter import Adapter, dense
from pipeline.models.base import Base
from pipeline.settings.profile import MethodParams, load_params
from pipeline.train.inputs import load_training_sets
from pipeline.train.loop import draw_schedule
from pipeline.train.making import Making
from tests.eval.analyses.conftest import Configure
from tests.pipeline.tiny import training_set

HYPER = MethodParams(learning_rate=1e-3, steps=3)


@pytest.fixture
def images(base: Base) -> TrainingSet:
    """A shard of small random images."""
    drawn = training_set("cat", "cat")
    samples = [("target", image, "") for image in drawn.targets]
    samples += list(zip(["regularization"] * 5, drawn.regularization, drawn.captions))
    write_tar(
        Path("runs/toyland/shards/cat.tar"),
        [
            {"__key__": f"{kind}-{i:04d}", "png": png_bytes(image), "txt": text, "json": {}}
            for i, (kind, image, text) in enumerate(samples)
        ],
    )
    (found,) = load_training_sets(load_subject("cat"), Path("runs/toyland"), TRAINED.needs(["cat"]))
    return found


def test_shorter_schedules_are_the_start_of_longer_ones(images: TrainingSet) -> None:
    train = load_params().train
    short, long = (
        draw_schedule(TRAINED, [images], ["<new1> cat"], train, 32, steps, 42) for steps in (4, 9)
    )
    assert long[:4] == short


def along(
    base: Base, images: TrainingSet, *checkpoints: int, hyper: MethodParams = HYPER
) -> list[Adapter]:
    making = Making.of(base, "custom_diffusion", load_subject("cat"), load_params(), hyper)
    return making.train_through(TRAINED, [images], checkpoints)


def test_a_checkpoint_is_the_shorter_run(base: Base, images: TrainingSet) -> None:
    before = {name: weight.clone() for name, weight in base.unet.named_parameters()}
    nothing, early, late = along(base, images, 0, 2, 5)
    for name, weight in base.unet.named_parameters():
        assert torch.equal(weight, before[name]), name
    assert not any(dense(delta).any() for delta in nothing.deltas.values())
    (short,) = along(base, images, 2)
    assert [a.provenance.steps for a in (nothing, early, late, short)] == [0, 2, 5, 2]
    assert early.provenance == short.provenance
    # Images are encoded in other batches, which rounds otherwise; and where a gradient is next to
    # nothing, AdamW's first steps follow its sign alone. So: but for a few numbers the same.
    for name, delta in short.deltas.items():
        apart = (dense(early.deltas[name]) - dense(delta)).norm() / dense(delta).norm()
        assert apart < 0.05, name
        close = torch.isclose(dense(early.deltas[name]), dense(delta), rtol=1e-3, atol=1e-6)
        assert close.float().mean() > 0.99, name
        assert not torch.equal(dense(late.deltas[name]), dense(early.deltas[name])), name


def test_stage(configure: Configure, base: Base, images: TrainingSet) -> None:
    configure(steps={"concepts": ["cat"], "steps": [2, 0]})
    folder = analyse_steps()
    table = pd.read_csv(folder / "steps.csv").set_index("steps")
    assert list(table.index) == [0, 2]
    params = load_params()
    hyper = params.methods["custom_diffusion"]
    adapter = along(base, images, 0, 2, hyper=hyper)[-1]
    scores = adapter_scores(Judge(params), base, adapter, load_subject("cat"), 1)
    expected = scores.loc[scores["metric"] == "text_alignment", "value"]
    assert table.loc[2, "text_alignment"] == pytest.approx(expected.mean(), abs=1e-5)
    assert table.loc[2, "text_alignment_se"] == pytest.approx(
        expected.std() / np.sqrt(len(expected)), abs=1e-5
    )
    assert (folder / "steps.png").is_file()


def test_methods_without_training_are_refused(configure: Configure, base: Base) -> None:
    configure(steps={"concepts": ["cat"], "steps": [1], "method": "pretrained"})
    with pytest.raises(BenchError, match="pretrained does not train"):
        analyse_steps()
