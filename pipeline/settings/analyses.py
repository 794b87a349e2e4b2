"""The section `analyses` of `params.yaml`: an analysis that it does not name is not run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.settings.external import is_external

if TYPE_CHECKING:
    from pipeline.settings.profile import Grid  # which imports this module

Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def reads(self, grid: Grid) -> list[str]:
        """What the analysis reads of what the profile made, relative to `runs/<profile>/`."""
        raise NotImplementedError


def _adapters(methods: Iterable[str], subjects: Iterable[str]) -> list[str]:
    subjects = list(subjects)
    return [f"cells/{m}/{s}/adapter.safetensors" for m in methods for s in subjects]


def _shards(concepts: Iterable[str], kind: str = "shards") -> list[str]:
    return [f"{kind}/{concept}.tar" for concept in concepts]


def single_methods(grid: Grid) -> list[str]:
    """The methods of the grid that make adapters of single concepts."""
    from pipeline.methods import load_method  # imports torch

    made_here = [method for method in grid.methods if not is_external(method)]
    return [method for method in made_here if load_method(method).single]


class WeightsParams(_Section):
    """How much each weight of the UNet changes (Fig. 3)."""

    methods: list[str] = Field(min_length=1, description="such as train all weights")
    concepts: list[str] | None = Field(default=None, description="all of the grid if absent")

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return _adapters(self.methods, self.concepts or grid.concepts)


class SpectraParams(_Section):
    """The singular values of changes (Fig. 14)."""

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return _adapters([self.method], self.concepts)


class CompressionParams(_Section):
    """Scores of adapters that were compressed (Fig. 21)."""

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)
    shares: list[Share] = [1, 0.6, 0.4, 0.2, 0.1, 0.01, 0]
    images_per_prompt: int = Field(default=1, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return _shards(self.concepts) + _adapters([self.method], self.concepts)


class DriftParams(_Section):
    """What is left of the class (Fig. 24)."""

    methods: list[str] | None = Field(default=None, description="all of the grid if absent")
    concepts: list[str] = Field(min_length=1)
    images: int = Field(default=24, ge=2, description="per method and concept")

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        images = _shards(self.concepts) + _shards(self.concepts, "regularization")
        return images + _adapters(self.methods or single_methods(grid), self.concepts)


class StepsParams(_Section):
    """Scores along the training."""

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    images_per_prompt: int = Field(default=1, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        from pipeline.methods import load_method  # imports torch

        made = getattr(load_method(self.method).single, "regularization", None) == "generated"
        return _shards(self.concepts) + (_shards(self.concepts, "generated") if made else [])


class TuningParams(_Section):
    """Hyper-parameters by trial, on concepts that no report compares methods on."""

    rates: dict[str, list[Annotated[float, Field(gt=0, lt=10)]]] = Field(
        min_length=1, description="learning rates by method"
    )
    steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    composition_steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    ridges: dict[str, list[Annotated[float, Field(ge=0)]]] = Field(
        default_factory=dict, description="by merging method; of what its own parts' rule gives"
    )
    images_per_prompt: int = Field(default=1, ge=1)
    tolerance: Share = Field(
        default=0.03, description="of the best product; of what comes within it the cheapest wins"
    )
    quick_steps: int | None = Field(
        default=None, ge=1, description="at most so many on single concepts, for quick profiles"
    )

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        made = _shards(grid.concepts) + _shards(grid.concepts, "generated")
        return made + (["index"] if self.ridges else [])


class SamplerTrialParams(_Section):
    """Guidance, steps and eta by trial on the base model (Toyland's profiles only)."""

    guidance_scales: list[Annotated[float, Field(ge=1)]] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=1, le=1000)]] = Field(min_length=1)
    etas: list[Share] = Field(min_length=1)
    singles: int = Field(ge=2, description="prompts of one thing, an image each")
    pairs: int = Field(ge=2, description="prompts of two things, an image each")

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return []


class AttentionParams(_Section):
    """Where the words of a composition look (Fig. 19)."""

    methods: list[str] = Field(
        default=["custom_diffusion", "pretrained"],
        min_length=1,
        description="the first decides which compositions are the best and the worst",
    )
    prompt: str = Field(default="photo of a {0} and a {1}", pattern=r"\{0\}.*\{1\}|\{1\}.*\{0\}")
    images: int = Field(default=4, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        scores = [f"cells/{self.methods[0]}/{pair}/scores.csv" for pair in grid.compositions]
        return scores + _adapters(self.methods, grid.compositions)


class Edit(_Section):
    """A prompt and what becomes of it, both with {} for the concept."""

    source: str = Field(pattern=r"\{\}")
    target: str = Field(pattern=r"\{\}")


class EditingParams(_Section):
    """Prompt-to-prompt editing with a customized model (Fig. 10)."""

    method: str = "custom_diffusion"
    concept: str
    edits: list[Edit] = Field(min_length=1)
    images: int = Field(default=3, ge=1)
    cross_share: Share = Field(default=0.8, description="of steps that keep cross-attention")
    self_share: Share = Field(default=0.4, description="of steps that keep self-attention")

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return _shards([self.concept]) + _adapters([self.method], [self.concept])


class TruthParams(_Section):
    """How well metrics rank drawn images whose parameters are known (Toyland's profiles only)."""

    concepts: list[str] | None = Field(default=None, description="all of the grid if absent")
    scenes: int = Field(default=20, ge=3, description="for each concept, drawn at each distance")
    grades: int = Field(default=5, ge=2, description="distances from the concept, 0 included")
    sets: int = Field(default=5, ge=3, description="of images, for each concept and distance")
    set_images: int = Field(default=32, ge=2, description="of such a set")

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return _shards(self.concepts or grid.concepts)


class CostParams(_Section):
    """Time, memory and storage."""

    methods: list[str] | None = Field(default=None, description="all of the grid if absent")

    def reads(self, grid: Grid) -> list[str]:
        """See `_Section`."""
        return [f"cells/{method}" for method in self.methods or grid.methods]


class AnalysesParams(BaseModel):
    """Which analyses a profile runs, and how large they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: WeightsParams | None = None
    spectra: SpectraParams | None = None
    compression: CompressionParams | None = None
    drift: DriftParams | None = None
    steps: StepsParams | None = None
    tuning: TuningParams | None = None
    sampler: SamplerTrialParams | None = None
    attention: AttentionParams | None = None
    editing: EditingParams | None = None
    truth: TruthParams | None = None
    cost: CostParams | None = None
