"""Concepts, compositions, prompts and images as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common.errors import BenchError
from pipeline.concepts.concept import load_concept, load_subject, read_lines, read_prompts
from pipeline.settings.profile import load_grid


@pytest.mark.parametrize("profile", ["toyland", "toyland-full", "toyland-tuning", "smoke"])
def test_every_subject_of_every_profile_loads(project: Path, profile: str) -> None:
    grid = load_grid(profile)
    for name in grid.subjects():
        subject = load_subject(name, profile)
        assert len(subject.prompts) == (20 if name in grid.concepts else 8)
        assert not any(set("{}<>") & set(prompt) for prompt in subject.scored_prompts())
    for name, concept in grid.concepts.items():
        assert concept.class_noun == load_concept(name).class_noun


def test_scored_prompts_name_the_concepts_in_order(project: Path) -> None:
    subject = load_subject("wooden_pot+cat")
    prompt = subject.prompts.index("a {1} in a {0}") if "a {1} in a {0}" in subject.prompts else 0
    expected = subject.prompts[prompt].replace("{0}", "wooden pot").replace("{1}", "cat")
    assert subject.scored_prompts()[prompt] == expected


def test_unknown_concept_and_subject(project: Path) -> None:
    with pytest.raises(BenchError, match="concept 'cow' is unknown: .*barn, cat"):
        load_concept("cow")
    with pytest.raises(BenchError, match="subject 'cow' is unknown: the grid has cat"):
        load_subject("cow")


def test_concept_without_images(project: Path) -> None:
    for path in (project / "datasets/concepts/cat/images").iterdir():
        path.unlink()
    with pytest.raises(BenchError, match=r"datasets/concepts/cat/images: holds no images"):
        load_concept("cat")


@pytest.mark.parametrize(
    ("text", "concepts", "message"),
    [
        ("a {} here\na dog there\n", 1, r"p\.txt:2: prompt needs the placeholder \{\} once"),
        ("a {} and a {}\n", 1, r"p\.txt:1: prompt needs the placeholder \{\} once"),
        ("a {0}\n", 2, r"p\.txt:1: prompt needs the placeholder \{1\} once"),
        ("a {0} {1} {2}\n", 2, r"p\.txt:1: unknown placeholder"),
        ("\n \n", 1, r"p\.txt: holds no prompts"),
    ],
)
def test_bad_prompts(tmp_path: Path, text: str, concepts: int, message: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        read_prompts(path, concepts)


def test_prompts_are_read_when_asked_for(project: Path) -> None:
    """What does not ask for them does not depend on their file."""
    (project / "datasets/prompts/cat.txt").unlink()
    concept = load_concept("cat")
    with pytest.raises(BenchError, match=r"datasets/prompts/cat\.txt: the prompt file is missing"):
        _ = concept.prompts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: cat", "name: tom", r"name: is 'tom', its folder 'cat': make them equal"),
        ("photo of a {}", "photo of a cat", "caption 'photo of a cat': needs the placeholder"),
        ("photo of a {}", "{} and {0}", r"caption '{} and \{0\}': needs the placeholder"),
    ],
)
def test_bad_concept_file(project: Path, old: str, new: str, message: str) -> None:
    path = project / "datasets/concepts/cat/concept.yaml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BenchError, match=rf"^datasets/concepts/cat/concept\.yaml: {message}"):
        load_concept("cat")


def test_lines_of_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="the prompt file could not be read: Is a directory"):
        read_prompts(tmp_path, 1)
    with pytest.raises(BenchError, match=r"nope\.csv: the table of classes is missing$"):
        read_lines(tmp_path / "nope.csv", "table of classes")
