"""Folders of images without an index."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.adding.dataset import Given
from pipeline.adding.importing import import_concepts
from pipeline.adding.layouts import read_data_set
from pipeline.common.errors import BenchError
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import load_concept
from tests.pipeline.adding.copies import draw, states

Said = pytest.CaptureFixture[str]


def test_folders(project: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Said) -> None:
    folder = tmp_path_factory.mktemp("mine")
    for seed, name in enumerate(["red_chair2", "Mütze (neu)", "7 dwarfs"]):
        draw(folder / name, seed=seed)
    for name in ("__MACOSX", ".cache"):
        (folder / name).mkdir()
    (folder / "empty").mkdir()
    assert import_concepts(folder, given=Given(licence="CC0-1.0", source="me")) == 1
    said = capsys.readouterr().out
    assert states(said) == {
        "concept_7_dwarfs": "imported",
        "Mutze_neu": "imported",
        "empty": "missing",
        "red_chair2": "imported",
    }
    assert "concept_7_dwarfs: from the folder '7 dwarfs'" in said
    assert load_concept("red_chair2").class_noun == "red chair"
    about = read_yaml(project / "datasets/concepts/red_chair2/concept.yaml")
    assert (about["licence"], about["source"]) == ("CC0-1.0", "me")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "folder,class\na,wooden pot\nb,cat\n"),
        ("c.csv", "\ufeffa, wooden pot\r\nb,cat\r\n"),
        ("c.yaml", "a: wooden pot\nb: cat\n"),
    ],
)
def test_class_nouns_of_folders(
    project: Path, tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    draw(folder / "a")
    draw(folder / "b", seed=1)
    (folder / name).write_text(text, encoding="utf-8")
    data = read_data_set(folder, given=Given(classes=folder / name))
    assert [(e.name, e.class_noun) for e in data.entries] == [("a", "wooden pot"), ("b", "cat")]
    every = read_data_set(folder, given=Given(class_noun="dog"))
    assert {entry.class_noun for entry in every.entries} == {"dog"}
    draw(folder / "c")
    with pytest.raises(BenchError, match="has no class for the folder 'c'"):
        read_data_set(folder, given=Given(classes=folder / name))
