"""`cost.json`, which a run that trains a cell leaves beside its adapter."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.common.failures import failure_of
from pipeline.common.schema import parse, read_yaml

COST_FILE = "cost.json"


class Cost(BaseModel):
    """`cost.json`: what the run that trained a cell took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(ge=0)
    peak_bytes: int = Field(ge=0, description="of the GPU's memory, or of the process on a CPU")
    parameters: int = Field(ge=0, description="numbers that an optimizer moved")
    bytes: int = Field(ge=0, description="of the adapter's file")
    device: str
    arithmetic: str = Field(description="what models computed with: float32 or bfloat16")
    hardware: str


def read_cost(path: Path) -> Cost | None:
    """The cost of a cell; None if nobody wrote it down, or the cell could not be made.

    Raises:
        BenchError: the file is not what it should be; names the field.
    """
    # YAML contains JSON.
    known = path.is_file() and not failure_of(path)
    return parse(path, Cost, read_yaml(path)) if known else None
