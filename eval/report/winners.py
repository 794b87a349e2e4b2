"""The best method by each metric, and whether it is so by more than chance."""

from __future__ import annotations

from typing import NamedTuple

from eval.metrics.catalogue import METRICS
from eval.results import REFERENCES, Results
from eval.statistics import Estimate
from eval.tables.building import tested
from eval.tables.table import Column, Compared, metric_column


class Winner(NamedTuple):
    """The best method by one metric, and whether it is so by more than chance."""

    column: Column
    method: str
    estimate: Estimate
    second: str
    lead: Compared | None  # on the second, with a positive mean; p is corrected


def winners(results: Results, kind: str) -> list[Winner]:
    """By each metric the best of the methods that learn, if there are two."""
    found = []
    differences = tested(results, kind)
    for metric in results.headline(kind):
        means = {
            method: mean
            for method in results.grid.methods
            if method not in REFERENCES and (mean := results.mean(method, kind, metric))
        }
        # A mean over other subjects is no rival.
        over = {method: results.scored(method, kind, metric) for method in means}
        most = max(map(len, over.values()), default=0)
        means = {method: mean for method, mean in means.items() if len(over[method]) == most}
        if len(means) < 2:
            continue
        first, second = sorted(
            means, key=lambda m: means[m].mean, reverse=METRICS[metric].higher_is_better
        )[:2]
        lead = differences.get((first, second, metric)) or differences.get((second, first, metric))
        if lead:
            estimate = lead.estimate._replace(mean=abs(lead.estimate.mean))
            lead = lead._replace(estimate=estimate)
        found.append(Winner(metric_column(metric), first, means[first], second, lead))
    return found
