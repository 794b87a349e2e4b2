"""Prompt-to-prompt editing (Hertz et al., 2022) with a customized model (paper, Fig. 10)."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, Share, adapters, shards
from pipeline.common.schema import Section
from pipeline.settings.profile import Grid


class Edit(Section):
    """A prompt and what becomes of it, both with {} for the concept."""

    source: str = Field(pattern=r"\{\}")
    target: str = Field(pattern=r"\{\}")


class Parameters(Analysis):
    """Prompt-to-prompt editing with a customized model (Fig. 10)."""

    desc = "edit images by their prompts"
    models = ("base", "scorer")
    settings = ("base", "protocol")
    protocol = ("sample", "score")

    method: str = "custom_diffusion"
    concept: str
    edits: list[Edit] = Field(min_length=1)
    images: int = Field(default=3, ge=1)
    cross_share: Share = Field(default=0.8, description="of steps that keep cross-attention")
    self_share: Share = Field(default=0.4, description="of steps that keep self-attention")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return shards([self.concept]) + adapters([self.method], [self.concept])

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return [self.concept]
