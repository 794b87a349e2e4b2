"""Where image-alignment and identity disagree: methods that they order otherwise, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from eval.metrics.catalogue import METRICS
from eval.report.grids import Sheet
from eval.report.prompts import by_column
from eval.results import KINDS, REFERENCES, Results
from eval.style import words
from eval.tables.table import Column, Table

ALIKE, SAME = "image_alignment", "identity_map"  # like the thing, and the very thing
LEAST_GAP = 0.5  # between an image's two ranks, as shares of all, to be shown


class Odd(NamedTuple):
    """A picture that is high by one of the two metrics and low by the other."""

    subject: str
    method: str
    text: str  # the prompt
    alike: float  # image-alignment
    same: float  # identity mAP
    gap: float  # its rank by the first less that by the second, as shares of the subject's images
    column: int  # on the sheet
    row: int


class Disagreement(NamedTuple):
    """What a page shows of it."""

    tables: dict[str, Table]  # by kind of subjects; those without a difference have none
    alike: list[Odd]  # alike, but not the thing
    same: list[Odd]  # the thing, but not alike


def disagreement(
    results: Results,
    sheets: Mapping[str, Sheet],
    prompts: Mapping[str, Sequence[str]],
    shown: int = 6,
) -> Disagreement | None:
    """Where the two metrics disagree; None if the protocol does not ask for both.

    Args:
        results: what was scored.
        sheets: by subject, the pictures that a page can show.
        prompts: of each subject.
        shown: pictures of either sort at most, one a subject.
    """
    if not {ALIKE, SAME} <= {*results.metrics("single")}:
        return None
    found = [odd for name, sheet in sheets.items() for odd in odds(results, name, sheet, prompts)]
    alike = sorted((odd for odd in found if odd.gap > 0), key=lambda odd: -odd.gap)
    same = sorted((odd for odd in found if odd.gap < 0), key=lambda odd: odd.gap)
    tables = {kind: orders(results, kind) for kind in results.kinds()}
    tables = {kind: table for kind, table in tables.items() if table.rows}
    return Disagreement(tables, alike[:shown], same[:shown])


def orders(results: Results, kind: str) -> Table:
    """The subjects of which the two metrics order methods that learn otherwise, by their means."""
    found, rows = results.found, []
    methods = [method for method in results.grid.methods if method not in REFERENCES]
    for subject in results.subjects(kind):
        means = {
            method: [found[method, subject, metric].mean for metric in (ALIKE, SAME)]
            for method in methods
            if all((method, subject, metric) in found for metric in (ALIKE, SAME))
        }
        pairs = [*combinations(means, 2)]
        turned = [
            (a, b) if first > 0 else (b, a)
            for a, b in pairs
            if (first := means[a][0] - means[b][0]) * (means[a][1] - means[b][1]) < 0
        ]
        if turned:
            best = [max(means, key=lambda method: means[method][i]) for i in (0, 1)]
            said = "; ".join(f"{words(a)} before {words(b)}" for a, b in turned)
            rows.append((subject, *map(words, best), f"{len(turned)} of {len(pairs)}", said))
    alike, same = (METRICS[metric].title for metric in (ALIKE, SAME))
    columns = (
        Column("subject", "subject"),
        Column("alike", f"best by {alike}"),
        Column("same", f"best by {same}"),
        Column("turned", "pairs turned round"),
        Column("pairs", f"in this order by {alike}, in the other by {same}"),
    )
    caption = (
        f"{KINDS[kind].capitalize()} of which {alike} and {same} order methods otherwise, by their "
        "means; whether a difference is more than chance is in the tables of differences"
    )
    return Table(caption, columns, tuple(rows))


def odds(
    results: Results, subject: str, sheet: Sheet, prompts: Mapping[str, Sequence[str]]
) -> list[Odd]:
    """The picture of a subject whose rank falls most from one metric to the other, and rises most.

    Ranks are among all pictures of the sheet; those are left out that differ by less than
    LEAST_GAP.
    """
    places, values = [], []
    for row, method in enumerate(sheet.methods, 1):
        columns = (by_column(results, method, subject, metric, sheet) for metric in (ALIKE, SAME))
        for column, pair in enumerate(zip(*columns)):
            if None not in pair:
                places.append((row, column))
                values.append(pair)
    if not values:
        return []
    scores = np.array(values, np.float64)
    first, second = (rankdata(part) / len(part) for part in scores.T)
    gaps = first - second
    return [
        Odd(
            subject,
            sheet.methods[places[i][0] - 1],
            prompts[subject][sheet.pictures()[places[i][1]][0]],
            float(scores[i, 0]),
            float(scores[i, 1]),
            float(gaps[i]),
            places[i][1],
            places[i][0],
        )
        for i in (int(gaps.argmax()), int(gaps.argmin()))
        if abs(gaps[i]) >= LEAST_GAP
    ]
