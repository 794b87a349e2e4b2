"""Heat maps: a metric of every method and subject, in colours that span its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.metrics.catalogue import METRICS
from eval.results import Results
from eval.scores.file import ORACLE
from eval.tables.table import Column, metric_column
from pipeline.common.failures import Failure

LEVELS = 6  # of the colours of a heat map, white not counted


class Shade(NamedTuple):
    """A cell of a heat map."""

    value: float | Failure | None
    level: int  # 0 (worst) to LEVELS (best) of its map


class HeatMap(NamedTuple):
    """A metric of every method and subject."""

    column: Column
    subjects: list[str]
    rows: list[tuple[str, list[Shade]]]


def shades(values: Sequence[float | Failure | None], higher_is_better: bool) -> list[Shade]:
    """Values with colours that span them."""
    known = [value for value in values if isinstance(value, float)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)

    def level(value: float | Failure | None) -> int:
        if not isinstance(value, float) or high == low:
            return 0
        share = (value - low) / (high - low)
        return round(LEVELS * (share if higher_is_better else 1 - share))

    return [Shade(value, level(value)) for value in values]


def heat_maps(results: Results, kind: str) -> list[HeatMap]:
    """Each metric of each method and subject of a kind.

    The oracle is not in the competition: it is shown, and does not stretch the colours.
    """
    maps = []
    for metric in results.headline(kind):
        subjects = results.subjects(kind)
        found = {
            method: [_shown(results, method, subject, metric) for subject in subjects]
            for method in (ORACLE, *results.grid.methods)
        }
        found = {method: row for method, row in found.items() if any(v is not None for v in row)}
        rated = [method for method in found if method != ORACLE]
        flat = shades(
            [value for method in rated for value in found[method]], METRICS[metric].higher_is_better
        )
        n = len(subjects)
        coloured = {method: flat[i * n : (i + 1) * n] for i, method in enumerate(rated)}
        rows = [
            (method, coloured.get(method, [Shade(value, 0) for value in row]))
            for method, row in found.items()
        ]
        if rated:
            maps.append(HeatMap(metric_column(metric), subjects, rows))
    return maps


def _shown(results: Results, method: str, subject: str, metric: str) -> float | Failure | None:
    estimate = results.found.get((method, subject, metric))
    return estimate.mean if estimate else results.failed.get((method, subject))
