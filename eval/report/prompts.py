"""Prompt by prompt: what each method made of it, in tables and to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple
from urllib.parse import quote

from eval.metrics.catalogue import METRICS
from eval.report.grids import Sheet
from eval.report.maps import Shade, shades
from eval.results import Results
from eval.style import words
from eval.tables.building import by_prompt
from eval.tables.table import Cell, Column, metric_column


class PromptCell(NamedTuple):
    """What a method made of a prompt."""

    row: int  # on the sheet; 0 if there is no picture
    shades: list[Shade]  # by metric


class PromptLine(NamedTuple):
    """A prompt of a subject, and what each method made of it."""

    text: str
    column: int  # of its first sample on the sheet
    cells: list[PromptCell]


class Extreme(NamedTuple):
    """A picture with the best or the worst score of a subject's by one metric."""

    side: str  # "best" or "worst"
    metric: Column
    value: float
    method: str
    text: str  # the prompt
    column: int  # on the sheet
    row: int


def prompt_lines(
    results: Results, subject: str, sheet: Sheet | None, prompts: Sequence[str]
) -> list[PromptLine]:
    """A line for each prompt of which there are pictures, or scores if there are none at all."""
    table = by_prompt(results, subject)
    places = {column.metric: place for place, column in enumerate(table.columns)}
    metrics = of_images(results, results.kind_of(subject))
    coloured = [
        shades([_number(row[places[name]]) for row in table.rows], METRICS[name].higher_is_better)
        for name in metrics
    ]
    found = {
        (int(str(row[1])), str(row[3])): [column[line] for column in coloured]
        for line, row in enumerate(table.rows)
    }
    gaps = [Shade(None, 0)] * len(metrics)
    numbers = sheet.prompts if sheet else sorted({number for number, _ in found})
    return [
        PromptLine(
            prompts[number],
            place * sheet.samples if sheet else 0,
            [
                PromptCell(
                    1 + sheet.methods.index(method) if sheet and method in sheet.methods else 0,
                    found.get((number, method), gaps),
                )
                for method in shown_methods(results, subject, sheet)
            ],
        )
        for place, number in enumerate(numbers)
    ]


def shown_methods(results: Results, subject: str, sheet: Sheet | None) -> list[str]:
    """The methods that have pictures or scores of a subject."""
    scored = {method for method, name, _ in results.found if name == subject}
    pictured = set(sheet.methods) if sheet else set()
    return [method for method in results.grid.methods if method in scored | pictured]


def chooser(
    results: Results, sheets: Mapping[str, Sheet], prompts: Mapping[str, Sequence[str]]
) -> str:
    """What the script needs to show one prompt at a time, as JSON that may stand in HTML."""
    content = []
    for subject, sheet in sheets.items():
        metrics = of_images(results, results.kind_of(subject))
        content.append(
            {
                "name": words(subject),
                "sheet": f"sprites/{quote(subject)}.jpg",
                "columns": sheet.columns,
                "rows": sheet.rows,
                "samples": sheet.samples,
                "prompts": [prompts[subject][number] for number in sheet.prompts],
                "targets": [words(name) for name in sheet.targets],
                "metrics": [METRICS[metric].title for metric in metrics],
                "digits": [METRICS[metric].digits for metric in metrics],
                "methods": [
                    {
                        "name": words(method),
                        "scores": [
                            by_column(results, method, subject, metric, sheet) for metric in metrics
                        ],
                        # As text: a script's numbers would lose their last digits.
                        "seeds": [None if seed is None else str(seed) for seed in seeds],
                    }
                    for method, seeds in zip(sheet.methods, sheet.seeds)
                ],
            }
        )
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def by_column(
    results: Results, method: str, subject: str, metric: str, sheet: Sheet
) -> list[float | None]:
    """The score of each picture of a sheet's row."""
    rows = results.pictured.get((method, subject, metric))
    if rows is None:
        return [None] * len(sheet.pictures())
    known = {
        (int(prompt), int(sample)): float(value)
        for prompt, sample, value in zip(
            rows["prompt_index"], rows["sample"], rows["value"].round(METRICS[metric].digits)
        )
    }
    return [known.get(picture) for picture in sheet.pictures()]


def extremes(
    results: Results, subject: str, sheet: Sheet | None, prompts: Sequence[str]
) -> list[Extreme]:
    """The pictures that a page shows with the best and the worst score, metric by metric."""
    if sheet is None:
        return []
    found = []
    for metric in of_images(results, results.kind_of(subject)):
        scored = [
            (value, column, row)
            for row, method in enumerate(sheet.methods, 1)
            for column, value in enumerate(by_column(results, method, subject, metric, sheet))
            if value is not None
        ]
        ends = (max, min) if METRICS[metric].higher_is_better else (min, max)
        for side, end in zip(("best", "worst"), ends):
            if scored:
                value, column, row = end(scored, key=itemgetter(0))
                text = prompts[sheet.pictures()[column][0]]
                column_of = metric_column(metric)
                found.append(
                    Extreme(side, column_of, value, sheet.methods[row - 1], text, column, row)
                )
    return found


def of_images(results: Results, kind: str) -> list[str]:
    """The headline metrics that each image has."""
    return [metric for metric in results.headline(kind) if METRICS[metric].per_image]


def _number(cell: Cell) -> float | None:
    return cell if isinstance(cell, float) else None
