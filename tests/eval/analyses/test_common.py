"""Scores of images in memory against those of the cells' files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from eval.analyses.common import Judge, picture_table, write_results
from eval.analyses.stages import NAMES, analyses_of, kind_of
from pipeline.common.errors import BenchError
from pipeline.common.files import read_tar
from pipeline.settings.profile import load_params
from tests.eval.analyses.conftest import Configure

CELL = Path("runs/toyland/cells/custom_diffusion/cat")
RECORD = Path("reports/cells/custom_diffusion/cat")


def test_scores_are_those_of_the_cell(profile: Path) -> None:
    samples = [s for s in read_tar(CELL / "samples.tar") if s["json"]["part"] == "prompt"]
    images = [Image.open(io.BytesIO(s["png"])).convert("RGB") for s in samples]
    judge = Judge(load_params())
    known = pd.read_csv(RECORD / "scores.csv").groupby("metric")["value"].apply(list)
    text = judge.text_alignment(images, [s["json"]["scored_prompt"] for s in samples])
    assert text == pytest.approx(known["text_alignment"], abs=1e-6)
    near = judge.image_alignment(images, "cat")
    assert near == pytest.approx(known["image_alignment"], abs=1e-6)


def test_kid_is_that_of_the_cell(profile: Path) -> None:
    samples = [s for s in read_tar(CELL / "samples.tar") if s["json"]["part"] == "caption"]
    images = [Image.open(io.BytesIO(s["png"])).convert("RGB") for s in samples]
    found = Judge(load_params()).kid(images, "cat")
    scores = pd.read_csv(RECORD / "scores.csv")
    assert found.value == pytest.approx(scores.loc[scores["metric"] == "kid", "value"].iloc[0])
    assert found.std_error > 0


def test_an_analysis_that_is_not_named_is_not_run(configure: Configure) -> None:
    configure(cost={})
    assert list(analyses_of(load_params())) == ["cost"]
    for name in set(NAMES) - {"cost"}:
        with pytest.raises(BenchError, match=rf"params\.yaml: analyses\.{name}: missing"):
            kind_of(name).of(load_params())


def test_results_replace_the_folder_and_are_the_same_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "analyses" / "one"
    folder.mkdir(parents=True)
    (folder / "old.csv").touch()
    pictures = {"a": [Image.new("RGB", (4, 4))], "b": [np.eye(3), np.ones((3, 3))]}
    table = pd.DataFrame({"a": [1 / 3]})
    write_results(folder, {"table": table}, {"pictures": picture_table(pictures, ["x", "y"])})
    assert sorted(path.name for path in folder.iterdir()) == ["pictures.png", "table.csv"]
    assert (folder / "table.csv").read_text() == "a\n0.33333333\n"
    first = (folder / "pictures.png").read_bytes()
    write_results(folder, {}, {"pictures": picture_table(pictures, ["x", "y"])})
    assert (folder / "pictures.png").read_bytes() == first


def test_nothing_is_left_of_results_that_fail(tmp_path: Path) -> None:
    class Broken(Figure):
        def savefig(self, *_args: object, **_kwargs: object) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_results(tmp_path / "one", {}, {"figure": Broken()})
    assert list(tmp_path.iterdir()) == []
