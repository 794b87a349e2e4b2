from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from eval.analyses.sampler.stage import analyse_sampler
from tests.eval.analyses.conftest import Configure

ROOT = Path(__file__).parents[3]


def test_stage(configure: Configure, profile: Path) -> None:
    """With the shipped models: more guidance shows more of what is asked for, in as many steps."""
    shutil.rmtree(profile / "models" / "toyland")
    (profile / "models" / "toyland").symlink_to(ROOT / "models" / "toyland")
    trial = {"guidance_scales": [1.0, 3.0], "steps": [6], "etas": [0.0], "singles": 6, "pairs": 4}
    configure(sampler=trial)
    params = (profile / "params.yaml").read_text()
    params = params.replace("models/base", "models/toyland/base").replace(
        "resolution: 32", "resolution: 64"
    )
    (profile / "params.yaml").write_text(params)
    folder = analyse_sampler()
    table = pd.read_csv(folder / "settings.csv").set_index("guidance_scale")
    assert list(table.index) == [1.0, 3.0]
    assert table.loc[3.0, "category"] >= table.loc[1.0, "category"]
    assert table.loc[3.0, ["category", "background"]].tolist() == pytest.approx([1, 1])
    assert (table["cpu_seconds_per_image"] > 0).all()
    assert (folder / "pictures.png").is_file()
