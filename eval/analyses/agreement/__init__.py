"""Whether metrics order methods and images as what is to be seen in them does."""

from __future__ import annotations

from pydantic import Field

from eval.analyses.analysis import Analysis
from pipeline.settings.profile import Grid

FACTS, THING = "facts", "thing"  # what is to be seen: what the prompt asks for, and the individual
# Not methods: drawn scenes that show all that prompts ask for, with the thing or with another one.
DRAWN, OTHERS = "drawn", "drawn, another one"


class Parameters(Analysis):
    """Whether metrics agree with what is to be seen (Toyland's profiles only)."""

    desc = "see whether metrics order methods and images as what they show does"
    files = ("models/toyland/judge",)
    settings = ("protocol",)
    protocol = ("score",)

    subjects: list[str] | None = Field(
        default=None, description="concepts and compositions of drawn things; all if absent"
    )
    portraits: int = Field(
        default=1600, ge=8, description="pictures that a thing's recogniser learns from"
    )
    checks: int = Field(default=600, ge=8, description="others, which it is tested on")
    drawn: int = Field(default=2, ge=1, description="scenes that are drawn of each prompt")

    def reads(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return []

    def records(self, grid: Grid) -> list[str]:
        """See `Analysis`."""
        return [f"cells/{method}" for method in grid.methods]
