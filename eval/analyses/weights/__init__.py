"""How much each weight of the UNet changes when all are trained (paper, section 3.1, Fig. 3)."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, adapters
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """How much each weight of the UNet changes (Fig. 3)."""

    desc = "compare how much layers change"
    models = ("base",)
    settings = ("base",)

    methods: list[str] = Field(min_length=1, description="such as train all weights")
    concepts: list[str] | None = Field(default=None, description="all of the grid if absent")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return adapters(self.methods, self.concepts or grid.concepts)
