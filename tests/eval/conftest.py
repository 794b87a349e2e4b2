"""A small profile that was run and scored, drawn once for all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from eval.papers.claims import print_claims
from eval.report.stage import write_report
from eval.scores.stage import score_cell, score_oracle
from pipeline.corpus.gallery import make_gallery
from pipeline.settings.profile import load_grid, load_params
from pipeline.settings.protocol import protocol_path
from tests.eval.synthetic import draw_gallery, make_profile, make_samples, write_cost

IDENTITY_METRICS = ["text_alignment", "image_alignment", "identity_map", "identity_top1", "kid"]
Score = Callable[..., pd.DataFrame]
METHODS = ["pretrained", "custom_diffusion", "custom_diffusion_merge"]


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile with scores; only to be read."""
    root = tmp_path_factory.mktemp("profile")
    make_profile(root, ["cat", "chair"], ["cat+chair"], METHODS)
    before = Path.cwd()
    os.chdir(root)
    try:
        make_samples(reals=12, prompts=3)
        shutil.rmtree("runs/toyland/cells/custom_diffusion_merge/cat")
        shutil.rmtree("runs/toyland/cells/custom_diffusion_merge/chair")
        for concept in ("cat", "chair"):
            score_oracle(concept, "toyland")
            for method in METHODS[:2]:
                score_cell(method, concept, "toyland")
        for method in METHODS:
            score_cell(method, "cat+chair", "toyland")
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def profile(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    shutil.copytree(scored, tmp_path / "profile")
    monkeypatch.chdir(tmp_path / "profile")
    return tmp_path / "profile"


@pytest.fixture
def score(profile: Path) -> Score:
    """Draws galleries of so many look-alikes, scores all cells anew, and reads one's scores."""

    def run(method: str, subject: str, **lookalikes: int) -> pd.DataFrame:
        path, yaml = protocol_path(load_params().protocol.name), YAML()
        content = yaml.load(path)
        content["score"]["metrics"] = IDENTITY_METRICS
        yaml.dump(content, path)
        for name, count in lookalikes.items():
            draw_gallery(name, count)
            make_gallery(name, "toyland")
        for concept in load_grid().concepts:
            score_oracle(concept, "toyland")
        for cell in sorted(Path("runs/toyland").glob("cells/*/*/samples.tar")):
            method_of, subject_of = cell.parts[-3:-1]
            score_cell(method_of, subject_of, "toyland")
        return pd.read_csv(Path("reports/cells") / method / subject / "scores.csv")

    return run


@pytest.fixture(scope="session")
def complete(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile with its report; only to be read."""
    root = tmp_path_factory.mktemp("reported") / "profile"
    shutil.copytree(scored, root)
    before = Path.cwd()
    os.chdir(root)
    try:
        for number, path in enumerate(sorted(Path("runs").glob("toyland/cells/*/*/samples.tar"))):
            write_cost(Path("reports/cells", *path.parts[-3:-1], "cost.json"), number)
        print_claims("toyland", write=True)
        write_report("toyland")
    finally:
        os.chdir(before)
    return root
