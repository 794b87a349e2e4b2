"""CIFC, the ten tasks of CIDM (Dong et al., NeurIPS 2024): seven things and three styles in order.

Its index has neither folders nor prompts; these are in `datasets/errata/cifc.yaml`, and compared
with it. Captions of single images, which the release has too, are not read.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, RootModel

from pipeline.adding.dataset import NOTHING, DataSet, Entry, Given, Layout
from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse, read_yaml
from pipeline.concepts.concept import DATASETS, PHOTO_CAPTION, parse_prompts, read_lines

INDEX, PICTURES, PROMPTS = Path("data_cfgs/task10.json"), "images", "evaluation_prompts"
PLACEHOLDER = "<TOK>"
STYLE_CAPTION = "{}"  # its noun says what a picture of the style is: a painting


class _Task(BaseModel):
    """A task in the index."""

    concept_name: str


class _Tasks(RootModel[list[_Task]]):
    """The index."""


class _Known(Section):
    """What the release says elsewhere about a task."""

    folder: str
    class_noun: str
    prompts: str
    prefix: str = ""
    style: bool = False


class _Facts(Section):
    """`datasets/errata/cifc.yaml`."""

    about: str
    tasks: list[_Known]


def read(folder: Path, images: Path, _: Given = NOTHING) -> DataSet:
    """The ten tasks, in their order."""
    facts_path, path = DATASETS / "errata" / "cifc.yaml", folder / INDEX
    facts = parse(facts_path, _Facts, read_yaml(facts_path))
    nouns = [task.concept_name for task in parse(path, _Tasks, read_yaml(path)).root]
    if nouns != [known.class_noun for known in facts.tasks]:
        raise BenchError(
            f"{path}: its tasks are {', '.join(nouns)}, others than those in {facts_path}: it is "
            "another release, whose folders and prompts are not known"
        )
    where = images if images != folder else folder / PICTURES
    return DataSet(
        tuple(_entry(known, folder / PROMPTS / known.prompts, where) for known in facts.tasks),
        errata=(facts.about,),
        sequences={"cifc": tuple(known.folder for known in facts.tasks)},
    )


def _entry(known: _Known, path: Path, images: Path) -> Entry:
    """A concept.

    Raises:
        BenchError: its prompts are missing, or one has no placeholder.
    """
    written = f"{known.prefix} {{}}".strip()
    lines = [line.replace(PLACEHOLDER, written) for line in read_lines(path)]
    return Entry(
        name=known.folder,
        class_noun=known.class_noun,
        prompts=parse_prompts(lines, path, 1),
        folder=images / known.folder,
        licence="not stated" if known.style else "Unsplash License",
        source="CIFC, Dong, Liang, Liu, Li, Wang and Khan 2024, https://github.com/JiahuaDong/CIFC",
        caption=STYLE_CAPTION if known.style else PHOTO_CAPTION,
    )


LAYOUT = Layout(
    what=INDEX.as_posix(),
    folders=(".", "datasets", ".."),
    recognised=lambda folder: (folder / INDEX).is_file() and (folder / PICTURES).is_dir(),
    read=read,
)
