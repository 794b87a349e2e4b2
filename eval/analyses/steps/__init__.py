"""Text- and image-alignment along the training of a method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eval.analyses.analysis import Analysis, shards
from pipeline.settings.profile import FIRST_SEED, TRAIN_KEYS, Grid


class Parameters(Analysis):
    """Scores along the training."""

    desc = "score a method along its training"
    models = ("base", "scorer")
    settings = ("base", "protocol", *TRAIN_KEYS, FIRST_SEED)
    protocol = ("sample", "score")

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    images_per_prompt: int = Field(default=1, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        from pipeline.methods import load_method  # imports torch

        how = load_method(self.method, grid).single
        made = how.needs(self.concepts).generated if how else ()
        return shards(self.concepts) + shards(made, "generated")

    def uses(self) -> list[str]:
        """See `Analysis`."""
        return [self.method]

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return self.concepts

    def keys(self) -> list[str]:
        """See `Analysis`."""
        return [*super().keys(), f"methods.{self.method}"]
