"""CustomConcept101's layout: its index, its errata, and the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.adding.importing import import_concepts
from pipeline.adding.layouts import read_data_set
from pipeline.bench.doctor import examine
from pipeline.common.errors import BenchError
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import load_concept, load_subject
from pipeline.settings.profile import load_grid
from tests.pipeline.adding.copies import PUBLISHED, rewrite, states
from tests.pipeline.adding.test_add import snapshot

CUSTOM = PUBLISHED / "customconcept101"
Said = pytest.CaptureFixture[str]


def test_customconcept101_with_its_errata(project: Path, custom: Path, capsys: Said) -> None:
    assert import_concepts(custom, profile="smoke") == 1  # one has no images
    said = capsys.readouterr().out
    assert states(said) == {
        "plushie_dice": "imported",
        "wearable_sunglasses2": "imported",
        "furniture_chair3": "imported",
        "scene_barn": "imported",
        "pet_dog1": "missing",
    }
    assert f"put its images in {custom / 'benchmark_dataset/pet_dog1'}" in said
    for erratum in (
        "plushie_dice: class_prompt is 'dice': 'dice plushie' as in instance_prompt",
        "wearable_sunglasses2: instance_prompt has the form 'photo of {}'",
        "furniture_chair3: dataset_multiconcept.json entry 1 calls it 'sofa': stays 'chair'",
        "scene_pet.txt:2: read as 'A photo of {0} at dawn with {1} sleeping peacefully.'",
        "moongate.txt: prompts of no concept",
        "scene_barn: stands in for the paper's barn",
        "the paper's moongate has no counterpart here",
    ):
        assert f"  {erratum}" in said
    assert "compositions: 1 imported, 0 unchanged, 1 lack a concept" in said

    dice = load_concept("plushie_dice")
    assert dice.class_noun == "dice plushie"
    assert dice.prompts == ("photo of a {}.", "{} on a café table", "A {} at sea.")
    assert load_concept("wearable_sunglasses2").caption == "photo of {}"
    about = read_yaml(project / "datasets/concepts/plushie_dice/concept.yaml")
    assert "noncommercial" in about["licence"]
    assert "CustomConcept101" in about["source"]
    pair = load_subject("scene_barn+furniture_chair3", "smoke")
    assert pair.scored_prompts()[1] == "A photo of barn at dawn with chair sleeping peacefully."
    grid = load_grid("smoke")
    assert grid.concepts["furniture_chair3"].class_noun == "chair"
    assert "pet_dog1" not in grid.concepts
    assert "scene_barn+pet_dog1" not in grid.compositions
    assert "plushie_dice" not in load_grid().concepts
    assert not (project / "datasets/concepts/pet_dog1").exists()
    checks = {check.what: check for check in examine("smoke")}
    assert checks["concept plushie_dice"].state == "ready"
    assert checks["prompts of scene_barn+furniture_chair3"].state == "ready"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("instance_data_dir", "../../etc", r"entry 1: '\.\./\.\./etc' leads out of"),
        ("instance_data_dir", "/etc/cat", r"entry 1: '/etc/cat' leads out of"),
        ("instance_data_dir", "..\\..\\etc", r"leads out of"),
        ("instance_data_dir", "C:/etc", r"'C:/etc' leads out of"),
        ("prompt_filename", "../../secret.txt", r"'\.\./\.\./secret\.txt' leads out of"),
        ("prompt_filename", "prompts/none.txt", r"none\.txt: the prompt file is missing"),
        ("prompt_filename", "prompts/scene_pet.txt", r"scene_pet\.txt:1: prompt needs the place"),
        ("instance_prompt", "photo of a dog", r"'photo of a dog' lacks <new1>"),
        ("instance_prompt", "photo of a <new1> {0}", r"instance_prompt: '\{0\}': needs a noun"),
        ("instance_data_dir", "./benchmark_dataset/犬", r"'犬': its name has no letters"),
        ("instance_data_dir", "./x/Scene_Barn", r"'scene_barn' is there 2 times, up to case"),
        ("instance_data_dir", "./x/scene_barn", r"entry 4: 'scene_barn' is there twice"),
        ("instance_data_dir", 7, r"dataset\.json: 0\.instance_data_dir: .*string \(got 7\)"),
    ],
)
def test_a_bad_index(project: Path, custom: Path, field: str, value: object, message: str) -> None:
    index = custom / "dataset.json"
    content = json.loads(index.read_text())
    content[0][field] = value
    rewrite(index, content)
    before = snapshot(project)
    with pytest.raises(BenchError, match=message) as error:
        import_concepts(custom)
    assert "\n" not in str(error.value)
    assert snapshot(project) == before


@pytest.mark.skipif(not CUSTOM.is_dir(), reason="CustomConcept101 is not here")
def test_the_real_customconcept101(project: Path, capsys: Said) -> None:
    data = read_data_set(CUSTOM)
    assert (len(data.entries), len(data.pairs)) == (101, 101)
    assert len({name for pair in data.pairs for name in (pair.first, pair.second)}) == 63
    assert {len(entry.prompts) for entry in data.entries} == {20}
    assert {len(pair.prompts) for pair in data.pairs} == {12}
    nouns = {entry.name: entry.class_noun for entry in data.entries}
    assert (nouns["plushie_dice"], nouns["furniture_chair3"]) == ("dice plushie", "chair")
    pair = data.pairs[4]
    assert (pair.first, pair.second) == ("furniture_chair1", "furniture_chair3")
    unusual = {e.name for e in data.entries for r in e.remarks if not r.startswith("stands in")}
    assert unusual == {"plushie_dice", "wearable_sunglasses2", "furniture_chair3"}
    assert sum(r.startswith("stands in") for e in data.entries for r in e.remarks) == 9
    assert len(data.errata) == 4
    before = snapshot(project)
    assert import_concepts(CUSTOM, profile="paper") == 1  # its images are not here
    assert snapshot(project) == before
    assert "concepts: 101 missing" in capsys.readouterr().out
