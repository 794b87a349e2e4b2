"""Several concepts, each in its place: what boxes do, for any method of the grid."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eval.analyses.analysis import Analysis, Share, adapters, shards
from pipeline.settings.profile import Grid, Params


class Parameters(Analysis):
    """Pictures of layouts without boxes, by Mix-of-Show's way and by CIDM's, and as drawn truth."""

    desc = "put several concepts each in its place"
    models = ("base", "scorer")
    settings = ("base", "protocol")
    protocol = ("sample", "score")

    subjects: list[str] = Field(
        min_length=1, description="compositions, or tasks of sequences, that have layouts"
    )
    methods: list[str] = Field(min_length=1)
    images: int = Field(default=8, ge=1, description="of each layout, in each way")
    cells: Literal["centres", "inner"] = Field(
        default="centres",
        description="which cells of a map are in a box: those whose middle is; or those that are "
        "wholly, as in Mix-of-Show's code",
    )
    kept: Share = Field(
        default=0.1, description="of the prompt's own prediction, within boxes (CIDM's alpha)"
    )
    judge: str | None = Field(
        default=None,
        description="folder of a classifier of drawn scenes, which says what pictures show; "
        "without it, what needs one is not measured",
    )

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return adapters(self.methods, self.subjects) + shards(self._concepts(grid))

    def uses(self) -> list[str]:
        """See `Analysis`."""
        return self.methods

    def deps(self, params: Params, grid: Grid) -> list[str]:
        """See `Analysis`."""
        from pipeline.regions.layouts import layout_path  # not of every command

        layouts = dict.fromkeys(layout_path(name).as_posix() for name in self.subjects)
        concepts = [f"datasets/concepts/{name}/concept.yaml" for name in self._concepts(grid)]
        judge = [self.judge] if self.judge else []
        return [*judge, *layouts, *concepts, *super().deps(params, grid)]

    def _concepts(self, grid: Grid) -> list[str]:
        names = (name for subject in self.subjects for name in grid.concepts_of(subject))
        return list(dict.fromkeys(names))
