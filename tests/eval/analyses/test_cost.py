from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from eval.analyses.cost.file import read_cost
from eval.analyses.cost.stage import analyse_cost, cell_cost
from pipeline.common.errors import BenchError
from tests.eval.analyses.conftest import Adapt, Configure

CELLS = Path("runs/toyland/cells")
COST = {
    "seconds": 12.5,
    "peak_bytes": 2_000_000_000,
    "parameters": 700,
    "bytes": 3000,
    "device": "cpu",
    "arithmetic": "float32",
    "hardware": "a machine",
}


def test_costs_are_those_of_the_file_and_the_run(adapt: Adapt) -> None:
    adapter = adapt("custom_diffusion", "cat")
    path = CELLS / "custom_diffusion/cat/adapter.safetensors"
    stored = {
        "parameters": sum(delta.numel() for delta in adapter.deltas.values()) + 32,
        "bytes": len(path.read_bytes()),
    }
    machine = {name: COST[name] for name in ("device", "arithmetic", "hardware")}
    nothing = dict.fromkeys(("seconds", "peak_bytes", "trained", *machine))
    assert cell_cost(path) == stored | nothing
    path.with_name("cost.json").write_text(json.dumps(COST))
    run = {"seconds": 12.5, "peak_bytes": 2_000_000_000, "trained": 700}
    assert cell_cost(path) == stored | run | machine


@pytest.mark.parametrize("change", [{"seconds": -1}, {"seconds": None}, {"more": 1}])
def test_costs_that_are_wrong_are_told(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(COST | change))
    with pytest.raises(BenchError, match=rf"cost\.json: {next(iter(change))}"):
        read_cost(path)


def test_stage(configure: Configure, adapt: Adapt) -> None:
    configure(cost={})
    for method, subject in (("pretrained", "cat"), ("custom_diffusion", "cat+chair")):
        adapt(method, subject, size=float(method != "pretrained"))
    for subject, seconds in (("cat", 2), ("chair", 4)):
        adapt("custom_diffusion", subject)
        path = CELLS / "custom_diffusion" / subject / "cost.json"
        path.write_text(json.dumps(COST | {"seconds": seconds}))
    folder = analyse_cost()
    assert (folder / "cost.png").is_file()
    assert len(pd.read_csv(folder / "cells.csv")) == 4
    means = pd.read_csv(folder / "cost.csv").set_index(["method", "kind"])
    assert means.loc[("custom_diffusion", "single"), "seconds"] == 3
    assert means.isna().loc[("custom_diffusion", "compositions"), "seconds"]
    size = (CELLS / "custom_diffusion/cat/adapter.safetensors").stat().st_size
    other = (CELLS / "custom_diffusion/chair/adapter.safetensors").stat().st_size
    assert means.loc[("custom_diffusion", "single"), "bytes"] == (size + other) / 2


def test_without_adapters_there_are_no_costs(configure: Configure) -> None:
    configure(cost={})
    with pytest.raises(BenchError, match="no adapters yet"):
        analyse_cost()
