"""The layout of DreamBooth's data set, and the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.adding.importing import import_concepts
from pipeline.adding.layouts import read_data_set
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import load_concept, read_prompts
from tests.pipeline.adding.copies import PUBLISHED, states

DREAMBOOTH = PUBLISHED / "dreambooth" / "dataset"
Said = pytest.CaptureFixture[str]


def test_dreambooth(project: Path, dreambooth: Path, capsys: Said) -> None:
    assert import_concepts(dreambooth / "prompts_and_classes.txt", prefix="db-") == 1
    assert states(capsys.readouterr().out) == {
        "db-teapot": "imported",
        "db-cat2": "imported",
        "db-can": "missing",
    }
    teapot, cat = load_concept("db-teapot"), load_concept("db-cat2")
    assert teapot.prompts == ("a {} in the jungle", "a cube shaped {}")
    assert cat.prompts == ("a {} wearing a red hat",)
    assert (cat.class_noun, len(teapot.images)) == ("cat", 3)
    licences = [
        read_yaml(project / f"datasets/concepts/db-{name}/concept.yaml")
        for name in ("teapot", "cat2")
    ]
    assert licences[0]["licence"] == "CC-BY-4.0; photographs: Unsplash License"
    assert "https://unsplash.com/@someone" in licences[0]["source"]
    assert licences[1]["licence"] == "CC-BY-4.0"
    assert "Photos taken by an author" in licences[1]["source"]
    assert "Rubinstein" in licences[1]["source"]


@pytest.mark.skipif(not DREAMBOOTH.is_dir(), reason="DreamBooth's data set is not here")
def test_the_real_dreambooth(project: Path, capsys: Said) -> None:
    data = read_data_set(DREAMBOOTH.parent)
    assert len(data.entries) == 30
    assert {len(entry.prompts) for entry in data.entries} == {25}
    assert sum("a {} wearing a santa hat" in entry.prompts for entry in data.entries) == 9
    here = [path.name for path in DREAMBOOTH.iterdir() if path.is_dir()]
    assert import_concepts(DREAMBOOTH, prefix="db_", only=here) == 0
    assert f"concepts: {len(here)} imported" in capsys.readouterr().out
    for name in here:
        files = sorted((DREAMBOOTH / name).iterdir())
        concept = load_concept(f"db_{name}")
        assert len(concept.images) == len(files)
        with Image.open(concept.images[0]) as copy, Image.open(files[0]) as original:
            assert (np.asarray(copy) == np.asarray(original.convert("RGB"))).all()
        assert read_prompts(project / f"datasets/prompts/db_{name}.txt", 1) == concept.prompts
