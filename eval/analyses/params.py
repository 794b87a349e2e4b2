"""The section `analyses` of `params.yaml`: an analysis that it does not name is not run."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsParams(_Section):
    """How much each weight of the UNet changes (Fig. 3)."""

    methods: list[str] = Field(min_length=1, description="such as train all weights")
    concepts: list[str] | None = Field(default=None, description="all of the grid if absent")


class SpectraParams(_Section):
    """The singular values of changes (Fig. 14)."""

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)


class CompressionParams(_Section):
    """Scores of adapters that were compressed (Fig. 21)."""

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)
    shares: list[Share] = [1, 0.6, 0.4, 0.2, 0.1, 0.01, 0]
    images_per_prompt: int = Field(default=1, ge=1)


class DriftParams(_Section):
    """What is left of the class (Fig. 24)."""

    methods: list[str] | None = Field(default=None, description="all of the grid if absent")
    concepts: list[str] = Field(min_length=1)
    images: int = Field(default=24, ge=2, description="per method and concept")


class StepsParams(_Section):
    """Scores along the training."""

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    images_per_prompt: int = Field(default=1, ge=1)


class AttentionParams(_Section):
    """Where the words of a composition look (Fig. 19)."""

    method: str = "custom_diffusion"
    prompt: str = Field(default="photo of a {0} and a {1}", pattern=r"\{0\}.*\{1\}|\{1\}.*\{0\}")
    images: int = Field(default=4, ge=1)


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


class CostParams(_Section):
    """Time, memory and storage."""

    methods: list[str] | None = Field(default=None, description="all of the grid if absent")


class AnalysesParams(_Section):
    """Which analyses a profile runs, and how large they are."""

    weights: WeightsParams | None = None
    spectra: SpectraParams | None = None
    compression: CompressionParams | None = None
    drift: DriftParams | None = None
    steps: StepsParams | None = None
    attention: AttentionParams | None = None
    editing: EditingParams | None = None
    cost: CostParams | None = None
