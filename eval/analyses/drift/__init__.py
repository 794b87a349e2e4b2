"""Language drift: what the class noun alone gives after a concept was learned (paper, Fig. 24)."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis, adapters, shards
from pipeline.settings.external import is_external
from pipeline.settings.profile import Grid


def single_methods(grid: Grid) -> list[str]:
    """The methods of the grid that make adapters of single concepts."""
    from pipeline.methods import load_method  # imports torch

    made_here = [method for method in grid.methods if not is_external(method)]
    return [method for method in made_here if load_method(method, grid).single]


class Parameters(Analysis):
    """What is left of the class (Fig. 24)."""

    desc = "see what is left of the class"
    models = ("base", "scorer")
    settings = ("base", "protocol")
    protocol = ("sample", "score")

    methods: list[str] | None = Field(default=None, description="all of the grid if absent")
    concepts: list[str] = Field(min_length=1)
    images: int = Field(default=24, ge=2, description="per method and concept")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        images = shards(self.concepts) + shards(self.concepts, "regularization")
        return images + adapters(self.methods or single_methods(grid), self.concepts)

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return self.concepts
