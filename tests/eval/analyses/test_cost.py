from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from eval.analyses.cost.file import read_cost
from eval.analyses.cost.stage import analyse_cost
from pipeline.common.errors import BenchError
from pipeline.common.files import write_json
from tests.eval.analyses.conftest import Configure

RECORDS = Path("reports/cells")
COST = {
    "seconds": 12.5,
    "peak_bytes": 2_000_000_000,
    "parameters": 700,
    "bytes": 3000,
    "device": "cpu",
    "arithmetic": "float32",
    "hardware": "a machine",
}


@pytest.mark.parametrize("change", [{"seconds": -1}, {"seconds": None}, {"more": 1}])
def test_costs_that_are_wrong_are_told(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(COST | change))
    with pytest.raises(BenchError, match=rf"cost\.json: {next(iter(change))}"):
        read_cost(path)


def test_stage(configure: Configure) -> None:
    configure(cost={})
    for method, subject, seconds in (
        ("pretrained", "cat", 0), ("custom_diffusion", "cat", 2), ("custom_diffusion", "chair", 4),
        ("custom_diffusion", "cat+chair", 9),
    ):  # fmt: skip
        path = RECORDS / method / subject / "cost.json"
        write_json(path, COST | {"seconds": seconds})
    folder = analyse_cost()
    assert (folder / "cost.png").is_file()
    cells = pd.read_csv(folder / "cells.csv")
    assert len(cells) == 4 and set(COST) <= set(cells)
    means = pd.read_csv(folder / "cost.csv").set_index(["method", "kind"])
    assert means.loc[("custom_diffusion", "single"), "seconds"] == 3
    assert means.loc[("custom_diffusion", "compositions"), "seconds"] == 9
    assert (means["bytes"] == COST["bytes"]).all()


def test_without_trainings_there_are_no_costs(configure: Configure) -> None:
    configure(cost={})
    with pytest.raises(BenchError, match="no costs yet"):
        analyse_cost()
