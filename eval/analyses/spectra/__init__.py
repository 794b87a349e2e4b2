"""The singular values of the changes of keys and values (paper, appendix C, Fig. 14)."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, adapters
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """The singular values of changes (Fig. 14)."""

    desc = "take the singular values of changes"

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return adapters([self.method], self.concepts)
