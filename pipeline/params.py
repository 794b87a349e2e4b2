"""The parameters of a profile: `params.yaml` and `grid.yaml`, read, checked and typed.

Profile `toyland` lies in the root of the project, every other one in `profiles/<name>/`.
Files are read as YAML 1.2, as DVC reads them (`1e-4` is a number, `no` a word).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.analysis_params import AnalysesParams
from pipeline.errors import BenchError

DEFAULT_PROFILE = "toyland"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class WorldParams(_Section):
    """The drawn corpus (Toyland's profiles only)."""

    images: int = Field(ge=1, description="scenes to train and retrieve from")
    held_out: int = Field(ge=1, description="scenes that only KID sees")
    seed: int


class CorpusParams(_Section):
    """A table of image URLs and captions, and what img2dataset makes of it."""

    url_table: str
    url_column: str = "url"
    caption_column: str = "caption"
    resolution: int = Field(ge=8, description="pixels; larger images are resized to it")
    min_success: float = Field(
        default=0.9, ge=0, le=1, description="least share of the table's images that must be had"
    )


class RetrieveParams(_Section):
    """Which captions count as being about a class noun (paper, section 3.1)."""

    clip: str = Field(description="a folder in open_clip's format, or NAME/PRETRAINED_TAG")
    query: str = Field(description="the target prompt; {} stands for the class noun")
    threshold: float = Field(gt=0, le=1, description="least cosine of caption and query")
    images: int = Field(ge=1, description="regularization images per class noun")
    held_out_images: int = Field(ge=2, description="real images per class noun for KID, at most")


class SamplerParams(_Section):
    """The sampler: DDIM with classifier-free guidance."""

    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1)
    eta: float = Field(ge=0, le=1)
    batch_size: int = Field(ge=1, description="images at once; changes no image")


class GenerateParams(SamplerParams):
    """Regularization images that the base model makes, for the methods that use them."""

    images: int = Field(ge=1, description="per concept")


class BaseParams(_Section):
    """The text-to-image model that is customized."""

    path: str = Field(description="a folder in diffusers' format, or a hub id")
    resolution: int = Field(ge=8, description="pixels of the images it makes")
    modifier_token_ids: list[int] = Field(
        min_length=1, description="rare tokens whose embeddings modifier tokens start from"
    )


class TrainParams(_Section):
    """What all methods have in common (paper, appendix E)."""

    batch_size: int = Field(ge=2, multiple_of=2, description="images per step, all kinds together")
    weight_decay: float = Field(ge=0)
    seed: int
    regularization_captions: int = Field(
        ge=1, description="captions that the merge keeps unchanged (C_reg)"
    )


class MethodParams(_Section):
    """The hyper-parameters of one method; a method uses those that its kind has."""

    learning_rate: float | None = Field(default=None, gt=0, lt=10)
    steps: int | None = Field(default=None, ge=0, description="steps on a single concept")
    composition_steps: int | None = Field(default=None, ge=0, description="steps on a composition")
    rank: int | None = Field(default=None, ge=1, description="of low-rank changes")
    ridge: float | None = Field(default=None, ge=0, description="relative to the mean eigenvalue")
    template_words: bool = Field(
        default=True, description='whether "photo of a" constrains a merge, as in the paper\'s code'
    )


class SampleParams(SamplerParams):
    """The sampling protocol (paper, section 4.1): eta 1, guidance 6."""

    protocol: str = Field(description="part of every image's seed")
    images_per_prompt: int = Field(ge=1, description="for a single concept")
    composition_images_per_prompt: int = Field(ge=1)
    images_per_caption: int = Field(ge=0, description="for each held-out caption, for KID")


class ScoreParams(_Section):
    """The models that measure."""

    clip: str = Field(description="a folder in open_clip's format, or NAME/PRETRAINED_TAG")
    kid_features: Literal["clip", "inception"]
    inception: str | None = Field(default=None, description="path of inception-2015-12-05.pt")


class Params(_Section):
    """Everything in a profile's `params.yaml`."""

    profile: str
    world: WorldParams | None = None
    corpus: CorpusParams
    retrieve: RetrieveParams
    generate: GenerateParams
    base: BaseParams
    train: TrainParams
    methods: dict[str, MethodParams]
    sample: SampleParams
    score: ScoreParams
    analyses: AnalysesParams = AnalysesParams()

    def runs(self) -> Path:
        """The folder of everything that this profile makes."""
        return Path("runs") / self.profile


class GridConcept(_Section):
    """A concept in the grid; the name is the folder in `datasets/concepts/`."""

    class_noun: str


class GridComposition(_Section):
    """A composition of two concepts in the grid, in the order of {0} and {1}."""

    first: str
    second: str

    def concepts(self) -> tuple[str, ...]:
        """The names of its concepts."""
        return tuple(vars(self).values())


class GridTriple(GridComposition):
    """A composition of three concepts; DVC's templates need a field for each."""

    third: str


class Grid(_Section):
    """Which concepts and compositions a profile covers, and which methods."""

    concepts: dict[str, GridConcept]
    compositions: dict[str, GridComposition]
    triples: dict[str, GridTriple] = {}
    methods: list[str] = Field(description="rows of the table; the order is theirs")

    def composed(self) -> dict[str, GridComposition]:
        """All compositions, of two concepts and of three."""
        return {**self.compositions, **self.triples}

    def subjects(self) -> list[str]:
        """Concepts, then compositions."""
        return [*self.concepts, *self.composed()]


def profile_folder(profile: str) -> Path:
    """Where the profile's files lie.

    Raises:
        BenchError: there is no such profile.
    """
    folder = Path() if profile == DEFAULT_PROFILE else Path("profiles") / profile
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
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def load_params(profile: str = DEFAULT_PROFILE) -> Params:
    """The parameters of a profile.

    Raises:
        BenchError: unknown profile, or a value that is missing, unknown, of the wrong type or out
            of range; names the file and the field.
    """
    return _parsed(profile_folder(profile) / "params.yaml", Params)


def load_grid(profile: str = DEFAULT_PROFILE) -> Grid:
    """The grid of a profile.

    Raises:
        BenchError: as `load_params`, and a composition of a concept that is not in the grid.
    """
    path = profile_folder(profile) / "grid.yaml"
    grid = _parsed(path, Grid)
    for name, composition in grid.composed().items():
        for concept in composition.concepts():
            if concept not in grid.concepts:
                raise BenchError(
                    f"{path}: compositions.{name}: concept {concept!r} is unknown: add it under "
                    f"`concepts` or name one of {', '.join(grid.concepts)}"
                )
    return grid


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain Python values.

    Raises:
        BenchError: the file is missing or not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path}: the file is missing") from None
    except (YAMLError, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise BenchError(f"{path}: not valid YAML: {line}") from error


_S = TypeVar("_S", bound=BaseModel)


def _parsed(path: Path, kind: type[_S]) -> _S:
    return parse(path, kind, read_yaml(path))


def parse(path: Path, kind: type[_S], content: Any) -> _S:
    """`content`, read from `path`, as a checked model.

    Raises:
        BenchError: names the file, the field and what is wrong with it.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise BenchError(f"{path}: {field}: {first['msg'].lower()}{given}") from error
