"""Learning rates, steps and ways of merging by trial, one grid and one rule for all methods."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eval.analyses.analysis import Analysis, Share, shards
from pipeline.settings.profile import FIRST_SEED, TRAIN_KEYS, Grid


class Parameters(Analysis):
    """Hyper-parameters by trial, on concepts that no report compares methods on."""

    desc = "try learning rates, steps and ridges on held-out concepts"
    models = ("base", "scorer")
    settings = ("base", "protocol", *TRAIN_KEYS, FIRST_SEED)
    protocol = ("sample", "score")

    rates: dict[str, list[Annotated[float, Field(gt=0, lt=10)]]] = Field(
        min_length=1, description="learning rates by method"
    )
    steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    composition_steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    ridges: dict[str, list[Annotated[float, Field(ge=0)]]] = Field(
        default_factory=dict,
        description="by merging method; each with and without `template_words`",
    )
    images_per_prompt: int = Field(default=1, ge=1)
    tolerance: Share = Field(
        default=0.03, description="of the best product; of what comes within it the cheapest wins"
    )

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        made = shards(grid.concepts) + shards(grid.concepts, "generated")
        return made + (["captions.json"] if self.ridges else [])

    def uses(self) -> list[str]:
        """See `Analysis`."""
        return [*self.rates, *self.ridges]

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return grid.subjects()
