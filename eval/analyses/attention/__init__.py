"""Where the words of a composition look (paper, appendix C, Fig. 19)."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, adapters
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """Where the words of a composition look (Fig. 19)."""

    desc = "see where the words of compositions look"
    models = ("base",)
    settings = ("base", "protocol")
    protocol = ("sample",)

    methods: list[str] = Field(
        default=["custom_diffusion", "pretrained"],
        min_length=1,
        description="the first decides which compositions are the best and the worst",
    )
    prompt: str = Field(default="photo of a {0} and a {1}", pattern=r"\{0\}.*\{1\}|\{1\}.*\{0\}")
    images: int = Field(default=4, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return adapters(self.methods, grid.compositions)

    def records(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return [f"cells/{self.methods[0]}/{pair}/scores.csv" for pair in grid.compositions]

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return list(grid.compositions)
