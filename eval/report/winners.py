"""The best method by each metric, and whether it is so by more than chance."""

from __future__ import annotations

from typing import NamedTuple

from eval.metrics.catalogue import METRICS
from eval.results import REFERENCES, Results, rankable
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
        over = {method: frozenset(results.scored(method, kind, metric)) for method in means}
        means = {method: means[method] for method in rankable(over)}
        if len(means) < 2:
            continue
        higher = METRICS[metric].higher_is_better
        first, second = sorted(means, key=lambda m: means[m].mean, reverse=higher)[:2]
        # Differences are the second's less the first's.
        turned = (second, first, metric) in differences
        lead = differences.get((second, first, metric) if turned else (first, second, metric))
        if lead and turned != higher:
            lead = lead._replace(estimate=lead.estimate._replace(mean=-lead.estimate.mean))
        found.append(Winner(metric_column(metric), first, means[first], second, lead))
    return found
