"""A small profile that was run and scored, drawn once for all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from eval.papers.claims import print_claims
from eval.report.stage import write_report
from eval.scores.stage import score_cell, score_oracle
from tests.eval.synthetic import make_profile, make_samples, write_cost

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
