from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.analyses.common import Judge
from eval.analyses.drift.stage import analyse_drift, class_requests
from pipeline.common.errors import BenchError
from pipeline.concepts.concept import load_concept
from pipeline.models.adapter import applied
from pipeline.models.base import Base
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import load_params
from tests.eval.analyses.conftest import Adapt, Configure


def test_the_class_is_asked_for_without_a_modifier_token(profile: Path) -> None:
    requests = class_requests(load_params(), load_concept("cat"), 3)
    assert {request.prompt for request in requests} == {"photo of a cat"}
    assert len({request.seed for request in requests}) == 3


def test_stage(configure: Configure, adapt: Adapt, base: Base) -> None:
    configure(drift={"concepts": ["cat"], "images": 3})
    adapt("pretrained", "cat", size=0)
    adapter = adapt("custom_diffusion", "cat")
    folder = analyse_drift()
    table = pd.read_csv(folder / "drift.csv").set_index("method")
    assert list(table.index) == ["pretrained", "custom_diffusion"]
    params = load_params()
    requests = class_requests(params, load_concept("cat"), 3)
    with applied(base, adapter):
        images = sample_all(base, requests, params.sampler())
    judge = Judge(params)
    row = table.loc["custom_diffusion"]
    text = judge.text_alignment(images, ["photo of a cat"] * 3)
    assert row["text_alignment"] == pytest.approx(text.mean(), abs=1e-5)
    assert row["text_alignment_se"] == pytest.approx(text.std(ddof=1) / np.sqrt(3), abs=1e-5)
    assert row["kid"] == pytest.approx(judge.kid(images, "cat").value, rel=1e-4)
    assert row["image_alignment"] != table.loc["pretrained", "image_alignment"]
    assert {path.name for path in folder.iterdir()} == {"drift.csv", "drift.png", "cat.png"}


def test_without_adapters_there_is_no_drift(configure: Configure, base: Base) -> None:
    configure(drift={"concepts": ["cat"]})
    with pytest.raises(BenchError, match=r"pretrained/cat/adapter\.safetensors: .* is missing"):
        analyse_drift()
