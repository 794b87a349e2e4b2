"""The layout of CIFC, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.adding.importing import import_concepts
from pipeline.adding.layouts import read_data_set
from pipeline.common.errors import BenchError
from pipeline.concepts.concept import load_concept
from pipeline.settings.profile import load_grid
from tests.pipeline.adding.copies import draw, rewrite, states

# As the paper's tables have them, V1 to V10.
TASKS = {
    "dog": "dog", "duck_toy": "duck toy", "cat": "cat", "backpack": "backpack",
    "teddybear": "teddy bear", "painting": "painting", "dog2": "dog", "drawing": "drawing",
    "cat2": "cat", "ink_painting": "ink painting",
}  # fmt: skip
Said = pytest.CaptureFixture[str]


@pytest.fixture
def cifc(tmp_path: Path) -> Path:
    """A copy with two pictures of each concept, and none of the last."""
    root = tmp_path / "CIFC" / "datasets"
    (root / "data_cfgs").mkdir(parents=True)
    (root / "evaluation_prompts").mkdir()
    for number, folder in enumerate(list(TASKS)[:-1]):
        draw(root / "images" / folder, seed=number)
    index = [
        {"lora_path": f"task_{n}", "concept_name": noun, "replace_mapping": f"<{n}>"}
        for n, noun in enumerate(TASKS.values(), 1)
    ]
    rewrite(root / "data_cfgs" / "task10.json", index)
    for kind in ("pet", "plushy", "style"):
        text = f"a {kind} <TOK>\n\nA <TOK>, in the ocean\n"
        (root / "evaluation_prompts" / f"test_{kind}.txt").write_text(text)
    return root.parent


def test_ten_tasks_in_order_with_their_prompts(project: Path, cifc: Path) -> None:
    data = read_data_set(cifc)
    assert {entry.name: entry.class_noun for entry in data.entries} == TASKS
    assert data.sequences == {"cifc": tuple(TASKS)}
    by_name = {entry.name: entry for entry in data.entries}
    assert by_name["dog2"].prompts == ("a pet {}", "A {}, in the ocean")
    assert by_name["duck_toy"].prompts == (
        "a plushy yellow rubber {}", "A yellow rubber {}, in the ocean",
    )  # fmt: skip
    captions = {name for name, entry in by_name.items() if entry.caption == "{}"}
    assert captions == {"painting", "drawing", "ink_painting"}


def test_the_sequence_is_written_once_all_are_there(
    project: Path, cifc: Path, capsys: Said
) -> None:
    assert import_concepts(cifc, prefix="cifc_", profile="smoke") == 1
    said = capsys.readouterr().out
    assert states(said)["cifc_cat2"] == "imported"
    assert states(said)["cifc_ink_painting"] == "missing"
    assert "sequence cifc: lacks cifc_ink_painting" in said
    before = load_grid("smoke").sequences
    assert "cifc" not in before
    draw(cifc / "datasets/images/ink_painting", seed=20)
    assert import_concepts(cifc, prefix="cifc_", profile="smoke") == 0
    grid = load_grid("smoke")
    assert grid.sequences["cifc"].concepts == [f"cifc_{name}" for name in TASKS]
    assert set(grid.sequences["cifc"].methods) >= set(before["two"].methods)
    assert {k: v for k, v in grid.sequences.items() if k != "cifc"} == before
    assert load_concept("cifc_teddybear").class_noun == "teddy bear"


def test_another_release_is_refused(project: Path, cifc: Path) -> None:
    rewrite(cifc / "datasets/data_cfgs/task10.json", [{"concept_name": "dog"}])
    with pytest.raises(BenchError, match=r"task10\.json: its tasks are dog, others than those"):
        read_data_set(cifc)
