"""How much of what was learned is wanted: scores by the share of an adapter that is applied."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eval.analyses.analysis import Analysis, adapters, shards
from pipeline.settings.profile import Grid


class Parameters(Analysis):
    """Scores of adapters whose changes of weights are made smaller or larger."""

    desc = "score adapters of which a part is applied"
    models = ("base", "scorer")
    settings = ("base", "protocol")
    protocol = ("sample", "sequence", "score")

    methods: list[str] = Field(min_length=1)
    subjects: list[str] = Field(
        min_length=1, description="concepts, compositions, tasks of sequences"
    )
    scales: list[Annotated[float, Field(ge=0)]] = Field(default=[0.4, 0.6, 0.8, 1], min_length=1)
    images_per_prompt: int = Field(default=1, ge=1)

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        concepts = dict.fromkeys(c for name in self.subjects for c in grid.concepts_of(name))
        return shards(concepts) + adapters(self.methods, self.subjects)

    def uses(self) -> list[str]:
        """See `Analysis`."""
        return self.methods

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`; of a task, what its concepts are asked for."""
        tasks = grid.all_tasks()
        return [one for name in self.subjects for one in tasks.get(name, (name,))]
