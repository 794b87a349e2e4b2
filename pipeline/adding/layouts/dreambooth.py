"""DreamBooth's data set: a list of classes and prompts, and a folder of images for each subject."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.adding.dataset import NOTHING, DataSet, Entry, Given, Layout, image_folder, name_of
from pipeline.common.errors import BenchError
from pipeline.concepts.concept import checked_noun, parse_prompts, read_lines

INDEX, CREDITS = "prompts_and_classes.txt", "references_and_licenses.txt"
LIVE_CLASSES = {"cat", "dog"}  # these nine subjects get the prompts of live subjects


def read(folder: Path, images: Path, _: Given = NOTHING) -> DataSet:
    """What the list of prompts and classes says, and that of the photographers."""
    path = folder / INDEX
    credits_path = folder / CREDITS
    lines = read_lines(path)
    credit = _credits(read_lines(credits_path)) if credits_path.is_file() else {}
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"Object Prompts": [], "Live Subject Prompts": []}
    section = ""
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line in {"Classes", "Prompts", *prompts}:
            section = line
        elif section == "Classes" and line and line != "subject_name,class":
            name, comma, noun = line.partition(",")
            if not comma or name.strip() in classes:
                fault = "is there twice" if comma else "needs the form NAME,CLASS"
                raise BenchError(f"{path}:{number}: {line!r} {fault}")
            classes[name.strip()] = checked_noun(noun, f"{path}:{number}: class")
        elif section in prompts and "format(" in line:
            found = re.fullmatch(r"""(['"])(.*)\1\.format\(unique_token, class_token\),?""", line)
            if not found or found[2].count("{0} {1}") != 1:
                raise BenchError(f"{path}:{number}: no prompt with '{{0}} {{1}}': {line!r}")
            prompts[section].append(found[2].replace("{0} {1}", "{}"))
    objects, live = (parse_prompts(some, path, 1) for some in prompts.values())

    def entry(name: str, noun: str) -> Entry:
        by = credit.get(name, "")
        photos = "; photographs: Unsplash License" if "unsplash" in by else ""
        return Entry(
            name=name_of(name),
            class_noun=noun,
            prompts=live if noun in LIVE_CLASSES else objects,
            folder=image_folder(images, name, f"{path}: {name!r}"),
            licence=f"CC-BY-4.0{photos}",
            source="DreamBooth data set, Ruiz, Li, Jampani, Pritch, Rubinstein and Aberman 2023, "
            "https://github.com/google/dreambooth" + (f"; {by}" if by else ""),
        )

    return DataSet(tuple(entry(name, noun) for name, noun in classes.items()))


def _credits(lines: Sequence[str]) -> dict[str, str]:
    """By subject: who took its photographs, as DreamBooth's list of references has it."""
    found = {}
    for line, following in zip(lines, [*lines[1:], ""]):
        subject = re.fullmatch(r"(\w+):\s*(.*)", line.strip())
        if subject:
            text = subject[2] or following.strip()
            found[subject[1]] = text.removeprefix("(").removesuffix(")")
    return found


LAYOUT = Layout(
    what=INDEX,
    folders=(".", "dataset"),
    recognised=lambda folder: (folder / INDEX).is_file(),
    read=read,
)
