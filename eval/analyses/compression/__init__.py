"""How small an adapter can be: scores and bytes by the share of singular values that it keeps."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, Share, adapters, shards
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """Scores of adapters that were compressed (Fig. 21)."""

    desc = "score adapters that were made smaller"
    models = ("base", "scorer")
    settings = ("base", "protocol")
    protocol = ("sample", "score")

    method: str = "custom_diffusion"
    concepts: list[str] = Field(min_length=1)
    shares: list[Share] = Field(default=[1, 0.6, 0.4, 0.2, 0.1, 0.01, 0])
    images_per_prompt: int = Field(default=1, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return shards(self.concepts) + adapters([self.method], self.concepts)

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return self.concepts
