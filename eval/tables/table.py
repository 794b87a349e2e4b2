"""What a table is: rows of cells, and what their marks mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from eval.metrics.catalogue import METRICS
from eval.statistics import Estimate
from pipeline.common.failures import Failure

SIGNIFICANT = 0.05
# Better and worse: for subjects of the kind, and for the subjects at hand only.
ANYWHERE, HERE = ("▲", "▼"), ("△", "▽")
# Behind them: the difference would be there with other trainings, too.
AGAIN = "°"
# What else a number may need said: scores are stale, a mean is over fewer subjects than others.
STALE, FEWER = "†", "‡"
EXTERNAL = "(external)"  # behind a method whose images were made elsewhere


class Compared(NamedTuple):
    """A number, and whether two methods differ in it.

    The p-values are those of no difference after Holm's correction for the whole table, NaN where
    there is no test.
    """

    estimate: Estimate
    p: float  # for subjects of this kind: would others show the same?
    p_here: float  # for the subjects at hand: would other prompts?
    better: bool  # the direction of the difference
    p_trainings: float | None = None  # if trainings are repeated: would other trainings?

    def mark(self) -> str:
        """ANYWHERE or HERE, of the right direction, if the difference is significant."""
        for p, marks in ((self.p, ANYWHERE), (self.p_here, HERE)):
            if p <= SIGNIFICANT:
                return marks[0 if self.better else 1]
        return ""

    def again(self) -> str:
        """AGAIN if the difference is significant for other trainings on these subjects."""
        return AGAIN if self.p_trainings is not None and self.p_trainings <= SIGNIFICANT else ""


Cell = str | Estimate | Compared | Failure | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table; `digits` are those of its numbers."""

    key: str  # its name in CSV
    title: str
    group: str = ""  # what it has in common with its neighbours
    digits: int = 0
    metric: str = ""  # what it measures, if it is one of METRICS
    p_value: bool = False  # small ones are printed as "< 0.001"
    by_row: bool = False  # rows are of different metrics: the digits are those of the row


@dataclass(frozen=True)
class Table:
    """Rows of texts, numbers, numbers with an error, failures to make them, and gaps."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)  # by row and column
    notes: tuple[str, ...] = ()  # what the marks mean, and what else has to be said
    heading: str = ""  # what all of it is of
    digits: tuple[int, ...] = ()  # of each row, for columns that are `by_row`

    def column(self, i: int, j: int) -> Column:
        """The j-th column as it is in the i-th row, which may have digits of its own."""
        column = self.columns[j]
        return replace(column, digits=self.digits[i]) if column.by_row else column


def metric_column(metric: str, key: str | None = None, group: str = "") -> Column:
    """A column of one of METRICS, as the catalogue calls and prints it."""
    about = METRICS[metric]
    return Column(key or metric, about.heading, group, about.digits, metric)
