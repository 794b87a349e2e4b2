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
        min_length=1, description="concepts, compositions, or sequences after their last task"
    )
    scales: list[Annotated[float, Field(ge=0)]] = Field(default=[0.4, 0.6, 0.8, 1], min_length=1)
    images_per_prompt: int = Field(default=1, ge=1)

    def subject(self, grid: Grid, name: str) -> str:
        """What has the adapter: of a sequence, its last task."""
        return [*grid.tasks(name)][-1] if name in grid.sequences else name

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        of = [self.subject(grid, name) for name in self.subjects]
        concepts = dict.fromkeys(c for subject in of for c in grid.concepts_of(subject))
        return shards(concepts) + adapters(self.methods, of)

    def makes(self) -> list[str]:
        """The methods say how their adapters are opened."""
        return self.methods

    def samples(self, grid: Grid) -> list[str]:
        """See `Analysis`; of a sequence, what its concepts are asked for."""
        return [
            name
            for subject in self.subjects
            for name in (
                grid.sequences[subject].concepts if subject in grid.sequences else [subject]
            )
        ]
