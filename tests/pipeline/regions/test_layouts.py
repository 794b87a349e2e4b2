"""Layouts as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.common.errors import BenchError
from pipeline.concepts.concept import Subject, load_subject
from pipeline.regions.layouts import Box, cells, check_cells, layout_path, load_layouts
from pipeline.settings.profile import load_grid
from tests.pipeline.tiny import concept

PAIR = Subject("cat+dog", (concept("cat", "cat"), concept("dog", "dog")), Path("none.txt"))
GOOD = {"concept": 0, "prompt": "photo of a {}", "box": [0, 0, 0.5, 1]}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(*layouts: object) -> Path:
        path = layout_path(PAIR.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        YAML().dump([*layouts], path)
        return path

    return write


def layout(*regions: object, prompt: str = "a {0} and a {1}") -> dict[str, object]:
    return {"prompt": prompt, "regions": [*regions]}


def region(**changed: object) -> dict[str, object]:
    return {**GOOD, **changed}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "a {0}"}, r"0\.regions: field required"),
        (layout(), r"0\.regions: .* at least 1"),
        (layout(*[GOOD] * 9), r"0\.regions: .* at most 8"),
        (layout(region(concept=2)), r"0\.regions\.0\.concept: 2: .* are 0 to 1"),
        (layout(region(concept=-1)), r"0\.regions\.0\.concept: .* greater than or equal to 0"),
        (layout(region(prompt="a cat")), r"0\.regions\.0\.prompt 'a cat': needs the placeholder"),
        (layout(region(prompt="a {0}")), r"0\.regions\.0\.prompt 'a \{0\}': needs the placeholder"),
        (layout(region(box=[0.5, 0, 0.5, 1])), r"0\.regions\.0\.box: \[0\.5, 0, 0\.5, 1\]: needs"),
        (layout(GOOD, region(box=[0, 0.5, 1, 0.4])), r"0\.regions\.1\.box: .* top below bottom"),
        (layout(region(box=[-0.1, 0, 1, 1])), r"0\.regions\.0\.box: .* fractions"),
        (layout(region(box=[0, 0, 1, 1.2])), r"0\.regions\.0\.box: .* fractions"),
        (layout(region(box=[0, 0, float("nan"), 1])), r"0\.regions\.0\.box: .* fractions"),
        (layout(region(box=[0, 0, 1])), r"0\.regions\.0\.box"),
        (layout(region(size=3)), r"0\.regions\.0\.size: extra inputs"),
        (layout(GOOD, prompt="a {2}"), r"0\.prompt: 'a \{2\}': of placeholders .* \{0\}, "),
        (layout(GOOD, prompt="a {"), r"0\.prompt: 'a \{': of placeholders"),
        (layout(GOOD, prompt="a {}"), r"0\.prompt: 'a \{\}': of placeholders"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_and_entry(written, given: object, said: str) -> None:
    path = written(given)
    with pytest.raises(BenchError, match=rf"^{str(path).replace('+', '.')}: {said}") as told:
        load_layouts(PAIR)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_or_empty(written) -> None:
    with pytest.raises(BenchError, match=r"cat.dog\.yaml: cat.dog has no layouts: write some"):
        load_layouts(PAIR)
    written()
    with pytest.raises(BenchError, match="holds no layouts"):
        load_layouts(PAIR)


def test_boxes_that_lie_in_each_other_are_allowed_and_told(written, capsys) -> None:
    written(layout(GOOD, region(concept=1, box=[0, 0, 1, 1])), layout(GOOD, prompt="two things"))
    first, second = load_layouts(PAIR)
    assert first.regions[1].box == Box(0, 0, 1, 1) and second.prompt == "two things"
    said = capsys.readouterr().out
    assert "0: of the boxes of regions 0 and 1 one lies in the other" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("rule", ["centres", "inner"])
def test_the_smallest_box_that_is_named_holds_a_cell(written, rule) -> None:
    small = [0.3, 0.63, 0.35, 0.7]
    written(layout(region(box=small)))
    layouts = load_layouts(PAIR)
    assert not cells(Box(*small), 4, 4, rule).any()
    with pytest.raises(BenchError, match=r"0\.regions\.0\.box: .* 4 x 4: .* is \[(.*)\]$") as told:
        check_cells(PAIR.name, layouts, 4, rule)
    named = Box(*map(float, str(told.value).rpartition("[")[2].strip("]").split(",")))
    assert cells(named, 4, 4, rule).sum() == 1
    check_cells(PAIR.name, layouts, 64, "centres")


def test_the_layouts_that_are_shipped_are_right() -> None:
    paths = sorted(Path("datasets/layouts").glob("*.yaml"))
    subjects = {name: load_subject(name) for name in load_grid().composed()}
    subjects |= {"toys": load_subject("toys/task-3")}
    assert {path.stem for path in paths} == set(subjects)
    for subject in subjects.values():
        check_cells(subject.name, load_layouts(subject), 4, "centres")
    task = load_subject("toys/task-4", "toyland-continual")
    assert load_layouts(task) == load_layouts(subjects["toys"])
