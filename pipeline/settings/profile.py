"""The parameters of a profile: `params.yaml` and `grid.yaml`, read, checked and typed.

Profile `toyland` lies in the root of the project, every other one in `profiles/<name>/`, as a DVC
project of its own.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE, folder_of
from pipeline.common.schema import Section, parse, read_yaml
from pipeline.settings.protocol import PromptSampling, Protocol, load_protocol, protocol_path
from pipeline.settings.study import StudyParams

# Of a concept. Three of such length, as in the name of a triple, still make a file's name.
NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
SEQUENCE_NAME = r"[a-z][a-z0-9_]{0,63}"  # a part of the names of stages
H = TypeVar("H", bound=Hashable)


class WorldParams(Section):
    """The drawn corpus (Toyland's profiles only)."""

    images: int = Field(ge=1, description="scenes to train and retrieve from")
    held_out: int = Field(ge=1, description="scenes that only KID sees")
    seed: int


class CorpusParams(Section):
    """A table of image URLs and captions, and how img2dataset makes images of it."""

    url_table: str
    url_column: str = "url"
    caption_column: str = "caption"
    resolution: int = Field(ge=8, description="pixels; larger images are resized to it")


class RetrieveParams(Section):
    """Which captions count as being about a class noun (paper, section 3.1)."""

    clip: str = Field(description="a folder in open_clip's format, or NAME/PRETRAINED_TAG")
    query: str = Field(description="the target prompt; {} stands for the class noun")
    threshold: float = Field(gt=0, le=1, description="least cosine of caption and query")
    images: int = Field(ge=1, description="regularization images per class noun")
    held_out_images: int = Field(ge=2, description="real images per class noun for KID, at most")


class SamplerParams(Section):
    """The sampler: DDIM with classifier-free guidance."""

    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1)
    eta: float = Field(ge=0, le=1)
    batch_size: int = Field(ge=1, description="images at once; changes no image")


class GenerateParams(SamplerParams):
    """Regularization images that the base model makes, for the methods that use them."""

    images: int = Field(ge=1, description="per concept")


class BaseParams(Section):
    """The text-to-image model that is customized."""

    path: str = Field(description="a folder in diffusers' format, or a hub id")
    revision: str | None = Field(
        default=None, min_length=1, description="of a hub id: the commit that is used"
    )
    resolution: int = Field(ge=8, description="pixels of the images it makes")
    modifier_token_ids: list[int] = Field(
        min_length=1, description="rare tokens whose embeddings modifier tokens start from"
    )


class TrainParams(Section):
    """What all methods have in common (paper, appendix E)."""

    batch_size: int = Field(ge=2, multiple_of=2, description="images per step, all kinds together")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="of these, images that the UNet trains on at once; all if absent. Takes memory "
        "and changes results by rounding alone",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="computes activations twice, which takes time and saves memory"
    )
    weight_decay: float = Field(ge=0)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="one training of each cell for each; the first is the main one"
    )
    regularization_captions: int = Field(
        ge=1, description="captions that the merge keeps unchanged (C_reg)"
    )


# All of `train` that every training depends on, as DVC knows it: of the seeds each has one, and
# what may be left out is about this machine's memory.
TRAIN_KEYS = tuple(
    f"train.{name}"
    for name, field in TrainParams.model_fields.items()
    if field.is_required() and name != "seeds"
)
FIRST_SEED = "train.seeds.0"


class MethodParams(Section):
    """The hyper-parameters of one method; a method uses those that its kind has."""

    seeds: int | None = Field(
        default=None, ge=1, description="with how many of `train.seeds` it trains; all if absent"
    )
    learning_rate: float | None = Field(default=None, gt=0, lt=10)
    steps: int | None = Field(default=None, ge=0, description="steps on a single concept")
    composition_steps: int | None = Field(default=None, ge=0, description="steps on a composition")
    rank: int | None = Field(default=None, ge=1, description="of low-rank changes")
    ridge: float | None = Field(
        default=None, ge=0, description="of merges; relative to the mean eigenvalue"
    )
    template_words: bool = Field(
        default=True, description='whether "photo of a" constrains a merge, as in the paper\'s code'
    )
    store: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="how an adapter's file holds changes: bfloat16 takes half of the disk, and "
        "rounds each number by 0.4 % at most",
    )
    own: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="what this method alone has, by name"
    )


class SampleParams(Section):
    """How this machine samples; the protocol says what."""

    batch_size: int = Field(ge=1, description="images at once; changes no image")


class ScoreParams(Section):
    """Local files of models that measure; the protocol says which models."""

    inception: str | None = Field(default=None, description="path of inception-2015-12-05.pt")
    dino: str | None = Field(default=None, description="path of DINO's ViT-S/16")


IDENTITY = ("protocol", "method", "subject", "training_seed")


class Params(Section):
    """Everything in a profile's `params.yaml`."""

    profile: str
    world: WorldParams | None = None
    corpus: CorpusParams
    retrieve: RetrieveParams
    generate: GenerateParams
    base: BaseParams
    train: TrainParams
    methods: dict[str, MethodParams]
    protocol: Protocol
    sample: SampleParams
    score: ScoreParams = ScoreParams()
    study: StudyParams = StudyParams()
    # By name, as they are read: `eval.analyses` knows which there are and checks them. An analysis
    # that is not named is not run.
    analyses: dict[str, dict[str, Any] | None] = Field(default_factory=dict)

    def runs(self) -> Path:
        """The folder of everything that this profile makes."""
        default = self.profile == DEFAULT_PROFILE
        return Path("runs", DEFAULT_PROFILE) if default else folder_of(self.profile) / "runs"

    def reports(self) -> Path:
        """The folder of the profile's report."""
        return folder_of(self.profile) / "reports"

    def seeds(self, method: str) -> list[int]:
        """The seeds that a method trains with if anything in it is random, the main one first."""
        about = self.methods.get(method)
        return self.train.seeds[: about.seeds if about else None]

    def cell(self, method: str, subject: str, seed: int | None = None) -> Path:
        """The folder of a cell: its adapter and samples.

        Args:
            method: of the cell,
            subject: and what it is about.
            seed: of the training; the main one has no folder of its own. None: there is one cell.
        """
        folder = self.runs() / "cells" / method / subject
        return folder / f"seed-{seed}" if self._further(seed) else folder

    def unfinished(self, stage: str, path: Path) -> Path:
        """The folder of what a stage keeps until it is done; DVC knows nothing of it.

        Args:
            stage: its name.
            path: in `runs`, of what it makes; or `runs`. It is a part of one name here, so that no
                stage's folder lies in that of another.
        """
        name = ".".join((stage, *path.relative_to(self.runs()).parts))
        return self.runs() / "unfinished" / name

    def record(self, method: str, subject: str, seed: int | None = None) -> Path:
        """The folder of what stays of a cell in the report: its cost, scores and first pictures.

        It is small and committed, so that whoever has no samples has the results; see `cell`.
        """
        return self.reports() / self.cell(method, subject, seed).relative_to(self.runs())

    def records(self, method: str, subject: str) -> dict[int, Path]:
        """By seed, the records that the trainings of a cell may have, the main one first."""
        return {seed: self.record(method, subject, seed) for seed in self.seeds(method)}

    def identity(self, method: str, subject: str, seed: int | None = None) -> dict[str, str | int]:
        """What stands beside each sample of a cell, and says whose it is; some of IDENTITY."""
        further = {"training_seed": seed} if seed is not None and self._further(seed) else {}
        return {"protocol": self.protocol.name, "method": method, "subject": subject, **further}

    def _further(self, seed: int | None) -> bool:
        """Whether it is the seed of another training than the main one."""
        return seed not in (None, self.train.seeds[0])

    def sampler(self, concepts: int = 1) -> SamplerParams:
        """The sampler for a subject of so many concepts."""
        return self._sampler(self.protocol.sample.of(concepts).steps)

    def task_sampler(self) -> SamplerParams:
        """The sampler after each task of a sequence; raises as `task_sampling`."""
        return self._sampler(self.task_sampling().steps)

    def _sampler(self, steps: int) -> SamplerParams:
        sample = self.protocol.sample
        return SamplerParams(
            steps=steps,
            guidance_scale=sample.guidance_scale,
            eta=sample.eta,
            batch_size=self.sample.batch_size,
        )

    def task_sampling(self) -> PromptSampling:
        """Which images are made after each task of a sequence.

        Raises:
            BenchError: the protocol does not say.
        """
        found = self.protocol.sequence
        if found is None:
            raise BenchError(
                f"{protocol_path(self.protocol.name)}: has no section `sequence`, which sequences "
                "of the grid need: copy it to a new name and add "
                "`sequence: {images_per_prompt: 1, steps: 20}`"
            )
        return found


class GridConcept(Section):
    """A concept in the grid; the name is the folder in `datasets/concepts/`."""

    class_noun: str


class GridComposition(Section):
    """A composition of two concepts in the grid, in the order of {0} and {1}."""

    first: str
    second: str

    def concepts(self) -> tuple[str, ...]:
        """The names of its concepts."""
        return tuple(vars(self).values())


class GridTriple(GridComposition):
    """A composition of three concepts; DVC's templates need a field for each."""

    third: str


class GridSequence(Section):
    """Concepts that are learned one after the other, and the methods that learn them so."""

    concepts: list[str] = Field(min_length=2, description="in the order of the tasks")
    methods: list[str] = Field(min_length=1)


class Grid(Section):
    """Which concepts and compositions a profile covers, and which methods."""

    concepts: dict[str, GridConcept]
    compositions: dict[str, GridComposition]
    triples: dict[str, GridTriple] = Field(default_factory=dict)
    sequences: dict[str, GridSequence] = Field(default_factory=dict)
    sequence_concepts: dict[str, GridConcept] = Field(
        default_factory=dict,
        description="concepts that only sequences have: a method learns them by themselves if a "
        "sequence is made of its adapters, and no table of subjects shows them",
    )
    rows: list[str] = Field(
        alias="methods",
        min_length=1,
        description="methods by name, or as the path of a file; the order is the table's",
    )

    @property
    def methods(self) -> list[str]:
        """The methods' names; that of a file is its stem."""
        return [Path(row).stem if row.endswith(".py") else row for row in self.rows]

    def all_methods(self) -> list[str]:
        """These, then those of sequences alone, which have no row in the tables of subjects."""
        learning = (method for about in self.sequences.values() for method in about.methods)
        return list(dict.fromkeys([*self.methods, *learning]))

    def method_files(self) -> dict[str, str]:
        """The paths of the methods that are files of other people, by name."""
        return {Path(row).stem: row for row in self.rows if row.endswith(".py")}

    def all_concepts(self) -> dict[str, GridConcept]:
        """These, then those of sequences alone."""
        return {**self.concepts, **self.sequence_concepts}

    def composed(self) -> dict[str, GridComposition]:
        """All compositions, of two concepts and of three."""
        return {**self.compositions, **self.triples}

    def subjects(self) -> list[str]:
        """Concepts, then compositions."""
        return [*self.concepts, *self.composed()]

    def tasks(self, sequence: str) -> dict[str, tuple[str, ...]]:
        """The tasks of a sequence by name, and the concepts that are learned after each."""
        concepts = self.sequences[sequence].concepts
        return {task_name(sequence, n): tuple(concepts[:n]) for n in range(1, len(concepts) + 1)}

    def all_tasks(self) -> dict[str, tuple[str, ...]]:
        """The tasks of all sequences."""
        return {
            task: concepts for name in self.sequences for task, concepts in self.tasks(name).items()
        }

    def concepts_of(self, subject: str) -> tuple[str, ...]:
        """The names of a subject's concepts; of a task, those that are learned after it.

        Raises:
            BenchError: there is no such subject.
        """
        if subject in self.all_concepts():
            return (subject,)
        if subject in self.composed():
            return self.composed()[subject].concepts()
        if subject in self.all_tasks():
            return self.all_tasks()[subject]
        known = ", ".join(self.subjects())
        raise BenchError(f"subject {subject!r} is unknown: the grid has {known}")


def task_name(sequence: str, number: int) -> str:
    """The name of a task of a sequence, counted from 1; a subject's name, and a folder's."""
    return f"{sequence}/task-{number}"


def profile_folder(profile: str) -> Path:
    """Where the profile's files lie.

    Raises:
        BenchError: there is no such profile.
    """
    folder = folder_of(profile)
    if not (folder / "params.yaml").is_file():
        known = ", ".join(profile_names())
        raise BenchError(f"profile {profile!r} is unknown: choose one of {known}")
    return folder


def profile_names() -> list[str]:
    """All profiles, the default one first."""
    return [
        DEFAULT_PROFILE,
        *sorted(path.parent.name for path in Path("profiles").glob("*/params.yaml")),
    ]


def is_hub_id(name: str) -> bool:
    """Whether the name means a download: OWNER/NAME, and no such folder here."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def load_params(profile: str = DEFAULT_PROFILE) -> Params:
    """The parameters of a profile.

    Raises:
        BenchError: unknown profile, or a value that is missing, unknown, of the wrong type or out
            of range, or the name of another profile, or a seed is there twice, or a method has
            more seeds than there are; names the file and the field.
    """
    path = profile_folder(profile) / "params.yaml"
    content = read_yaml(path)
    if isinstance(content, dict) and isinstance(content.get("protocol"), str):
        content["protocol"] = load_protocol(content["protocol"], f"{path}: protocol:")
    params = parse(path, Params, content)
    if params.profile != profile:
        raise BenchError(
            f"{path}: profile: {params.profile!r} is the name of another profile, whose results "
            f"this one would overwrite: write {profile!r}"
        )
    seeds = params.train.seeds
    if (repeated := _repeated(seeds)) is not None:
        raise BenchError(f"{path}: train.seeds: {repeated} is there twice: remove one")
    for name, method in params.methods.items():
        if (method.seeds or 1) > len(seeds):
            raise BenchError(
                f"{path}: methods.{name}.seeds: {method.seeds}, but train.seeds has {len(seeds)}: "
                "add seeds there, or write a smaller number"
            )
    return params


def load_grid(profile: str = DEFAULT_PROFILE) -> Grid:
    """The grid of a profile.

    Raises:
        BenchError: as `load_params`; a concept's name that cannot be one; a composition of a
            concept that is not in the grid or with itself; a sequence of fewer than two concepts,
            or of one that is not in the grid; a name that two subjects have; a method that is there
            twice. Whether methods exist is not looked at.
    """
    path = profile_folder(profile) / "grid.yaml"
    grid = parse(path, Grid, read_yaml(path))
    for group, concepts in (
        ("concepts", grid.concepts),
        ("sequence_concepts", grid.sequence_concepts),
    ):
        for name in concepts:
            check_name(name, f"{path}: {group}:")
    for group, composed in (("compositions", grid.compositions), ("triples", grid.triples)):
        for name, composition in composed.items():
            where = f"{path}: {group}.{name}"
            for concept in composition.concepts():
                if concept not in grid.concepts:
                    raise BenchError(
                        f"{where}: concept {concept!r} is unknown: add it under `concepts` or "
                        f"name one of {', '.join(grid.concepts)}"
                    )
            if repeated := _repeated(composition.concepts()):
                raise BenchError(f"{where}: {repeated!r} is there twice: name different concepts")
    for name, sequence in grid.sequences.items():
        _check_sequence(name, sequence, grid, f"{path}: sequences.{name}")
    if repeated := _repeated((*grid.subjects(), *grid.sequence_concepts, *grid.sequences)):
        raise BenchError(f"{path}: two subjects have the name {repeated!r}: rename one")
    if repeated := _repeated(grid.methods):
        raise BenchError(f"{path}: methods: {repeated!r} is there twice: remove one")
    return grid


def _check_sequence(name: str, sequence: GridSequence, grid: Grid, where: str) -> None:
    """Finds out whether a sequence is one of concepts and methods of the grid.

    Raises:
        BenchError: it is not; begins with `where` it stands.
    """
    if not re.fullmatch(SEQUENCE_NAME, name):
        raise BenchError(
            f"{where}: needs a small letter first, then small letters, digits or _ (such as toys)"
        )
    for concept in sequence.concepts:
        if concept not in grid.all_concepts():
            raise BenchError(
                f"{where}.concepts: concept {concept!r} is unknown: add it under `concepts` or "
                f"`sequence_concepts`, or name one of {', '.join(grid.all_concepts())}"
            )
    for kind, named in (("concepts", sequence.concepts), ("methods", sequence.methods)):
        if repeated := _repeated(named):
            raise BenchError(f"{where}.{kind}: {repeated!r} is there twice: remove one")


def check_name(name: str, where: str = "name") -> None:
    """Finds out whether a concept or a method may have this name.

    Raises:
        BenchError: it may not; begins with `where` it stands.
    """
    if not re.fullmatch(NAME, name):
        raise BenchError(
            f"{where} {name[:70]!r}: needs a letter first, then letters, digits, _ or -, 64 "
            "at most (such as my_cat)"
        )


def _repeated(names: Iterable[H]) -> H | None:
    """The first name that is there a second time, if any."""
    seen: set[H] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
