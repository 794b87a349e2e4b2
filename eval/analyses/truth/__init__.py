"""How well each metric ranks images whose content is known, as they are drawn from parameters."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, shards
from pipeline.settings.profile import Grid, Params


class Parameters(Analysis):
    """How well metrics rank drawn images whose parameters are known (Toyland's profiles only)."""

    desc = "see how metrics rank images whose content is known"
    models = ("scorer",)
    settings = ("protocol",)
    protocol = ("score",)

    concepts: list[str] | None = Field(default=None, description="all of the grid if absent")
    scenes: int = Field(default=20, ge=3, description="for each concept, drawn at each distance")
    grades: int = Field(default=5, ge=2, description="distances from the concept, 0 included")
    sets: int = Field(default=5, ge=3, description="of images, for each concept and distance")
    set_images: int = Field(default=32, ge=2, description="of such a set")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return shards(self.concepts or grid.concepts)

    def deps(self, params: Params, grid: Grid) -> list[str]:
        """See `Analysis`; with the galleries, if the protocol ranks them."""
        galleries = shards(self.concepts or grid.concepts, "galleries")
        found = [(params.runs() / path).as_posix() for path in galleries]
        return super().deps(params, grid) + (found if params.protocol.score.galleries else [])
