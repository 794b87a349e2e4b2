"""What is written is what is read, and what was changed is told."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval.study.questionnaire import (
    Question,
    Questionnaire,
    image_name_of,
    load_questionnaire,
    method_pairs,
    named,
    plain,
    unplain,
    write_questionnaire,
)
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes

IMAGES = {
    image_name_of(png): png
    for png in (png_bytes(Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(5))
}
A, B, C, D, E = IMAGES
TEXT = named(
    Question("", 0, 0, "text", "cat", 3, 1, '=HYPERLINK("x"), a cat', "x", "y", A, B, (), "")
)
IMAGE = named(
    Question("", 0, 1, "image", "cat+dog", -1, -1, "cat", "x", "y", C, D, (A, E), "right")
)
WRITTEN = Questionnaire("Title", "toyland", "v1", 1, ("text", "image"), 20, 1.5, (TEXT, IMAGE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_questionnaire(tmp_path, WRITTEN, IMAGES)
    return tmp_path


def rewrite(folder: Path, column: str, value: str) -> None:
    """Changes the first question, and the hash so that it fits."""
    path = folder / "questions.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    rows[0] = {**rows[0], column: value}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: v for k, v in row.items() if k in rows[0]} for row in rows)
    about = json.loads((folder / "questionnaire.json").read_text())
    about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "questionnaire.json").write_text(json.dumps(about))


def test_a_questionnaire_comes_back_as_it_was_written(folder: Path) -> None:
    found = load_questionnaire(folder)
    assert replace(found, sha256="") == WRITTEN
    assert found.sha256 == hashlib.sha256((folder / "questions.csv").read_bytes()).hexdigest()
    assert found.blocks() == {0: (TEXT, IMAGE)}
    assert found.by_name() == {TEXT.question: TEXT, IMAGE.question: IMAGE}
    assert sorted(p.name for p in (folder / "images").iterdir()) == sorted(IMAGES)


def test_no_cell_of_the_file_is_a_formula(folder: Path) -> None:
    rows = list(csv.reader((folder / "questions.csv").open(encoding="utf-8", newline="")))
    cells = [cell for row in rows for cell in row]
    assert "'" + TEXT.prompt in cells
    assert not [c for c in cells if c[:1] in ("=", "+", "@", "\t") or (c[:1] == "-" and c != "-1")]


@pytest.mark.parametrize(
    "text", ["", "a", "=1", "+1", "-1", "-a", "@x", "'=1", "''=1", "'a", "'", "\t=1", "\n", "- a"]
)
def test_neutral_cells_give_the_text_back(text: str) -> None:
    assert unplain(plain(text)) == text
    assert plain(text)[:1] not in ("=", "+", "@", "\t", "\n")


def test_names_follow_from_what_is_shown_and_not_from_the_place() -> None:
    assert named(replace(TEXT, block=4, position=9)).question == TEXT.question
    for change in ({"left_image": C}, {"left_image": B, "right_image": A}, {"kind": "image"},
                   {"left_method": "y", "right_method": "x"}, {"targets": (E,)}):  # fmt: skip
        assert named(replace(TEXT, **change)).question != TEXT.question


def test_pairs_have_a_reference_first() -> None:
    assert method_pairs(["a", "b", "c"], ["b"]) == [("b", "a"), ("b", "c")]
    assert method_pairs(["a", "b", "c"], ["a", "c"]) == [("a", "b"), ("a", "c"), ("c", "b")]


def test_changes_are_noticed(folder: Path) -> None:
    path = folder / "questions.csv"
    path.write_text(path.read_text().replace("cat+dog", "dog+cat"))
    with pytest.raises(BenchError, match=r"questions\.csv: was changed"):
        load_questionnaire(folder)


@pytest.mark.parametrize("name", ["questionnaire.json", "questions.csv", f"images/{E}"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BenchError, match=name.rpartition("/")[2]):
        load_questionnaire(folder)


@pytest.mark.parametrize("content", [b"", b"PNG"])
def test_damaged_images_are_named(folder: Path, content: bytes) -> None:
    (folder / "images" / A).write_bytes(content)
    with pytest.raises(BenchError, match=A):
        load_questionnaire(folder)


def test_damaged_descriptions_are_told(folder: Path) -> None:
    path = folder / "questionnaire.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "block": "many"}))
    with pytest.raises(BenchError, match=r"questionnaire\.json: block"):
        load_questionnaire(folder)
    for content in ("[]", "{", "{}"):
        path.write_text(content)
        with pytest.raises(BenchError, match="build"):
            load_questionnaire(folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("left_image", "../../../etc/passwd"),
        ("right_image", "a.png"),
        ("targets", "/etc/passwd"),
        ("question", "<script>"),
        ("kind", "video"),
        ("block", "one"),
        ("gold", "up"),
    ],
)
def test_wrong_values_are_refused(folder: Path, column: str, value: str) -> None:
    rewrite(folder, column, value)
    with pytest.raises(BenchError, match=rf"questions\.csv:2: {column}"):
        load_questionnaire(folder)


def test_wrong_columns_are_refused(folder: Path) -> None:
    rewrite(folder, "another", "1")
    with pytest.raises(BenchError, match="columns"):
        load_questionnaire(folder)
