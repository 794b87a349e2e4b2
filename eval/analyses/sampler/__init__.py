"""Guidance scale, steps and eta by trial: what the base model draws, and how long it takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eval.analyses.analysis import Analysis, Share
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """Guidance, steps and eta by trial on the base model (Toyland's profiles only)."""

    desc = "try guidance, steps and eta on the base model"
    models = ("base", "scorer")
    files = ("models/toyland/judge",)
    settings = ("base", "protocol")
    protocol = ("score",)

    guidance_scales: list[Annotated[float, Field(ge=1)]] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=1, le=1000)]] = Field(min_length=1)
    etas: list[Share] = Field(min_length=1)
    singles: int = Field(ge=2, description="prompts of one thing, an image each")
    pairs: int = Field(ge=2, description="prompts of two things, an image each")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return []
