"""A profile with drawn samples, and the questionnaire of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from eval.study.build import build
from pipeline.settings.study import StudyParams
from tests.eval.study.simulated import METHODS
from tests.eval.synthetic import make_profile, make_samples

SMALL = StudyParams(questions=12, block=10, checks=2)
QUESTIONNAIRE = Path("runs/toyland/study/questionnaire")


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile with samples and a questionnaire; only to be read."""
    root = tmp_path_factory.mktemp("study")
    make_profile(root, ["cat", "chair", "dog"], ["cat+chair"], METHODS)
    before = Path.cwd()
    os.chdir(root)
    try:
        make_samples(reals=1, prompts=5)
        build("toyland", SMALL)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def study(sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    shutil.copytree(sampled, tmp_path / "profile")
    monkeypatch.chdir(tmp_path / "profile")
    return tmp_path / "profile"
