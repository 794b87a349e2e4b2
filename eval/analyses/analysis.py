"""What is to be known of an analysis without running it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse
from pipeline.settings.profile import Grid, Params, is_hub_id, profile_folder

Share = Annotated[float, Field(ge=0, le=1)]


class Analysis(Section):
    """What every analysis says of itself; the fields of a subclass are its parameters.

    Each lies in a folder of its name, `eval/analyses/<name>/`: the subclass `Parameters` in
    `__init__.py`, which imports nothing heavy, and `analyse_<name>(profile)` in `stage.py`, which
    writes to the folder that it returns. The code that this takes is found from its imports; what
    else its results depend on is said here.
    """

    desc: ClassVar[str]  # what it does, in a few words
    models: ClassVar[tuple[Literal["base", "scorer"], ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()  # of this repository, that are no code
    settings: ClassVar[tuple[str, ...]] = ()  # keys of params.yaml, beside its own
    protocol: ClassVar[tuple[str, ...]] = ()  # sections of the protocol

    def reads(self, grid: Grid) -> list[str]:
        """What it reads of what the profile made, relative to `runs/<profile>/`."""
        raise NotImplementedError

    def records(self, grid: Grid) -> list[str]:
        """What it reads of the records of cells, relative to the report's folder."""
        return []

    def samples(self, grid: Grid) -> list[str]:
        """The subjects whose prompts it samples."""
        return []

    def uses(self) -> list[str]:
        """The methods whose own files it runs: it makes adapters with them, or opens theirs."""
        return []

    @classmethod
    def name(cls) -> str:
        """Its name, which is that of its folder."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def of(cls, params: Params) -> Self:
        """Its parameters in a profile.

        Raises:
            BenchError: the profile does not run it, or a value is missing, unknown, of the wrong
                type or out of range; names the file and the field.
        """
        path, where = profile_folder(params.profile) / "params.yaml", f"analyses.{cls.name()}"
        content = params.analyses.get(cls.name())
        if content is None:
            raise BenchError(f"{path}: {where}: missing: the profile does not run this analysis")
        return parse(path, cls, content, where)

    def keys(self) -> list[str]:
        """The keys of params.yaml that its results depend on."""
        return [f"analyses.{self.name()}", *self.settings]

    def deps(self, params: Params, grid: Grid) -> list[str]:
        """All that its results depend on, beside code and settings."""
        paths = {"base": params.base.path, "scorer": params.protocol.score.clip}
        models = [paths[model] for model in self.models if not is_hub_id(paths[model])]
        inputs = [(params.runs() / path).as_posix() for path in self.reads(grid)]
        inputs += [(params.reports() / path).as_posix() for path in self.records(grid)]
        return [*self.files, *models, *self._datasets(grid), *inputs]

    def _datasets(self, grid: Grid) -> list[str]:
        subjects, composed = self.samples(grid), grid.composed()
        concepts = [
            concept
            for name in subjects
            for concept in (composed[name].concepts() if name in composed else (name,))
        ]
        return [
            *(f"datasets/concepts/{name}/concept.yaml" for name in dict.fromkeys(concepts)),
            *(f"datasets/prompts/{name}.txt" for name in subjects),
        ]


def adapters(methods: Iterable[str], subjects: Iterable[str]) -> list[str]:
    """Where cells have their adapters, for `Analysis.reads`."""
    subjects = list(subjects)
    return [f"cells/{m}/{s}/adapter.safetensors" for m in methods for s in subjects]


def shards(concepts: Iterable[str], kind: str = "shards") -> list[str]:
    """Where concepts have their shards, or other tars, for `Analysis.reads`."""
    return [f"{kind}/{concept}.tar" for concept in concepts]
