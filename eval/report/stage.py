"""The report: tables, charts, sheets of samples and one page that shows them all.

What it writes depends on scores, samples, parameters and the code alone: no dates, no names of
hosts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from eval.continual import failed_sequences, load_sequences
from eval.report.cost import cost_table
from eval.report.figures import save_chart, write_figures
from eval.report.grids import (
    PAGE_PIXELS,
    PIXELS,
    Row,
    Sheet,
    grid_of,
    overview,
    read_rows,
    sheet,
    write_image,
)
from eval.report.missing import missing_cells
from eval.report.page import render
from eval.report.sequences import course_chart, pictures, sequence_parts, sequence_tables
from eval.results import KINDS, Results, load_results
from eval.scores.file import ORACLE
from eval.tables.building import by_prompt, by_subject, comparison, differences
from eval.tables.gaps import could_not_be_made, not_run
from eval.tables.rendering import FORMATS, as_csv
from eval.tables.table import Table
from pipeline.common.files import atomic, atomic_folder, write_json
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import Grid, load_params

SUFFIXES = {"csv": ".csv", "markdown": ".md", "latex": ".tex"}


def write_report(profile: str) -> None:
    """Writes everything that people read about a profile; prints the comparison and the paths.

    Each of the folders `tables`, `figures`, `grids`, `sprites` and `methods` is replaced as a
    whole, so that nothing stale remains. Cells of the grid that were not run are said to be
    missing, and why others could not be made.

    Raises:
        BenchError: nothing was scored yet, or scores and samples are damaged or do not fit.
    """
    start = time.monotonic()
    params, results = load_params(profile), load_results(profile)
    grid, folder = results.grid, params.reports()

    tables = {"comparison": comparison(results)}
    for kind in results.kinds():
        tables |= {kind: by_subject(results, kind)}
        tables |= {f"differences_{kind}": differences(results, kind)}
    tables["cost"] = cost_table(params, results)
    sequences = load_sequences(results)
    tables |= sequence_tables(sequences, grid, params)
    tables = {name: table for name, table in tables.items() if table.rows}
    with atomic_folder(folder / "tables", (*SUFFIXES.values(),)) as temporary:
        _write_tables(tables, temporary)
        # Long, and for programs: it has no other form.
        (temporary / "prompts.csv").write_text(as_csv(_prompts(results)), encoding="utf-8")
    with atomic_folder(folder / "methods", (".json",)) as temporary:
        _write_metrics(results, temporary)
    write_json(folder / "summary.json", _summary(results))
    rows = {subject: read_rows(params, grid, subject) for subject in grid.subjects()}
    rows = {subject: shown for subject, shown in rows.items() if any(r.images for r in shown)}
    with atomic_folder(folder / "figures", (".svg", ".png")) as temporary:
        write_figures(results, temporary)
        for sequence in sequences:
            save_chart(course_chart(sequence), temporary / f"sequence_{sequence.name}.svg")
        if rows:
            _write_overview(grid, profile, rows, temporary)
    sheets: dict[str, Sheet] = {}
    kinds = (".jpg",)
    with (
        atomic_folder(folder / "grids", kinds) as grids,
        atomic_folder(folder / "sprites", kinds) as sprites,
    ):
        for name, shown in rows.items():
            subject = load_subject(name, profile)
            sheets[name] = sheet(subject, shown, min(PIXELS, PAGE_PIXELS / len(rows)))
            write_image(sheets[name].image, sprites / f"{name}.jpg")
            write_image(grid_of(subject, shown), grids / f"{name}.jpg")
        for sequence in sequences:
            write_image(pictures(sequence, params), grids / f"{sequence.name}.jpg")
    missing = missing_cells(profile)
    with atomic(folder / "index.html") as temporary:
        parts = sequence_parts(sequences, tables, grid)
        page = render(params, results, tables, sheets, missing, parts)
        temporary.write_text(page, encoding="utf-8")

    print(FORMATS["text"](tables["comparison"]), end="")
    if missing:
        print(not_run(missing))
    failed = {**results.failed, **failed_sequences(profile)}
    print("".join(f"{line}\n" for line in could_not_be_made(failed)), end="")
    cells = len(results.scores[["method", "subject", "seed"]].drop_duplicates())
    seconds = time.monotonic() - start
    print(
        f"reported {cells} cells in {seconds:.1f} s -> {folder / 'index.html'}, {folder / 'tables'}"
    )


def _write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    for name, table in tables.items():
        for style, suffix in SUFFIXES.items():
            (folder / f"{name}{suffix}").write_text(FORMATS[style](table), encoding="utf-8")


def _prompts(results: Results) -> Table:
    """Every prompt of every subject, below each other."""
    tables = [by_prompt(results, subject) for subject in results.grid.subjects()]
    widest = max(tables, key=lambda table: len(table.columns))
    return Table(widest.caption, widest.columns, tuple(row for t in tables for row in t.rows))


def _write_metrics(results: Results, folder: Path) -> None:
    """One small JSON file for each method, all with the same keys, for `dvc metrics show`."""
    for method in (ORACLE, *results.grid.methods):
        content: dict[str, dict[str, float | int | None]] = {}
        for kind in KINDS if results.styles else ("single", "compositions"):
            values = content.setdefault(kind, {})
            for metric in results.metrics(kind):
                mean = results.mean(method, kind, metric)
                values[metric] = _rounded(mean.mean) if mean else None
                values[f"{metric}_se"] = _rounded(mean.std_error) if mean else None
            subjects = results.subjects(kind)
            values["subjects"] = len({s for m, s, _ in results.found if m == method} & {*subjects})
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        (folder / f"{method}.json").write_text(text)


def _summary(results: Results) -> dict[str, dict[str, float | None]]:
    """The means of all methods, with names so short that `dvc exp show` fits a screen."""
    prefixes = {"single": "", "styles": "style_", "compositions": "composed_"}
    return {
        method: {
            prefixes[kind] + metric.replace("_alignment", ""): _rounded(mean.mean)
            for kind in KINDS
            for metric in results.headline(kind)
            if (mean := results.mean(method, kind, metric))
        }
        for method in results.grid.methods
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.10g}")


def _write_overview(grid: Grid, profile: str, rows: dict[str, list[Row]], folder: Path) -> None:
    """Shows the first composition and each of its concepts, or concepts if there is none."""
    composed = next((name for name in grid.composed() if name in rows), None)
    names = [*grid.composed()[composed].concepts(), composed] if composed else [*grid.concepts][:3]
    subjects = [load_subject(name, profile) for name in names if name in rows]
    if subjects:
        write_image(overview(subjects, rows), folder / "overview.png")
