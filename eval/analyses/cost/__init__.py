"""What methods cost: time and memory of training, numbers that train, bytes that are stored."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """Time, memory and storage."""

    desc = "compare time, memory and storage"

    methods: list[str] | None = Field(default=None, description="all of the grid if absent")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return []

    def records(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return [f"cells/{method}" for method in self.methods or grid.methods]
