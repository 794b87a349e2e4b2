"""The report: tables, charts, grids of samples and one page that shows them all.

What it writes depends on scores, samples and parameters alone: no dates, no names of machines.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.analyses.stages import STAGES, chosen
from eval.claims import claims_table
from eval.figures import write_figures
from eval.grids import (
    OVERVIEW_COMPOSITIONS,
    OVERVIEW_CONCEPTS,
    Row,
    overview,
    read_rows,
    subject_grid,
    write_image,
)
from eval.scores import ORACLE, load_scores, missing_cells
from eval.statistics import Estimate, interval
from eval.tables import (
    FORMATS,
    KIND_METRICS,
    KINDS,
    METRICS,
    Cell,
    Estimates,
    Table,
    by_subject,
    cell_text,
    comparison,
    differences,
    estimates,
    not_run,
    over_subjects,
    printed,
    subjects_of,
    words,
)
from pipeline.concepts import load_subject
from pipeline.errors import BenchError
from pipeline.files import atomic
from pipeline.params import Grid, Params, load_grid, load_params

TEMPLATE = "report.html.jinja"
SUFFIXES = {"csv": ".csv", "markdown": ".md", "latex": ".tex"}


def write_report(profile: str) -> None:
    """Writes everything that people read about a profile; prints the comparison and the paths.

    Each of the folders `tables`, `figures`, `grids` and `methods` is replaced as a whole, so
    that nothing stale remains. Cells of the grid that were not run are said to be missing.

    Raises:
        BenchError: nothing was scored yet, or scores and samples are damaged or do not fit.
    """
    start = time.monotonic()
    params, grid, scores = load_params(profile), load_grid(profile), load_scores(profile)
    if scores.empty:
        raise BenchError(f"profile {profile!r} has no scores yet: run `dvc repro`")
    found, folder = estimates(scores), params.reports()

    tables = {"comparison": comparison(found, grid)}
    tables |= {kind: by_subject(found, grid, kind) for kind in KINDS if subjects_of(grid, kind)}
    with atomic(folder / "tables") as temporary:
        _write_tables(tables, temporary)
    with atomic(folder / "methods") as temporary:
        _write_metrics(found, grid, temporary)
    rows = {subject: read_rows(params, grid, subject) for subject in grid.subjects()}
    rows = {subject: found_rows for subject, found_rows in rows.items() if found_rows}
    with atomic(folder / "figures") as temporary:
        write_figures(found, grid, temporary)
        if rows:
            _write_overview(grid, profile, rows, temporary)
    with atomic(folder / "grids") as temporary:
        temporary.mkdir(parents=True)
        for subject, shown in rows.items():
            write_image(
                subject_grid(load_subject(subject, profile), shown), temporary / f"{subject}.jpg"
            )
    missing = missing_cells(profile, scores)
    with atomic(folder / "index.html") as temporary:
        page = _page(params, grid, scores, tables, missing, folder)
        temporary.write_text(page, encoding="utf-8")

    print(FORMATS["text"](tables["comparison"]), end="")
    if missing:
        print(not_run(missing))
    cells = len(scores[["method", "subject"]].drop_duplicates())
    seconds = time.monotonic() - start
    print(
        f"reported {cells} cells in {seconds:.1f} s -> {folder / 'index.html'}, {folder / 'tables'}"
    )


def _write_tables(tables: dict[str, Table], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, table in tables.items():
        for style, suffix in SUFFIXES.items():
            (folder / f"{name}{suffix}").write_text(FORMATS[style](table), encoding="utf-8")


def _write_metrics(found: Estimates, grid: Grid, folder: Path) -> None:
    """One small JSON file for each method, all with the same keys, for `dvc metrics`."""
    folder.mkdir(parents=True)
    for method in (ORACLE, *grid.methods):
        content: dict[str, dict[str, float | int | None]] = {}
        for kind in KINDS:
            subjects = subjects_of(grid, kind)
            values = content.setdefault(kind, {})
            for metric in KIND_METRICS[kind]:
                mean = over_subjects(found, method, metric, subjects)
                values[metric] = _rounded(mean.mean) if mean else None
                values[f"{metric}_se"] = _rounded(mean.std_error) if mean else None
            values["subjects"] = len({s for m, s, _ in found if m == method} & set(subjects))
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        (folder / f"{method}.json").write_text(text)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.10g}")


def _write_overview(grid: Grid, profile: str, rows: dict[str, list[Row]], folder: Path) -> None:
    concepts = [c for c in grid.concepts if c in rows][:OVERVIEW_CONCEPTS]
    compositions = [c for c in grid.composed() if c in rows][:OVERVIEW_COMPOSITIONS]
    subjects = [load_subject(name, profile) for name in concepts + compositions]
    write_image(overview(grid, subjects, rows), folder / "overview.png")


def _page(
    params: Params,
    grid: Grid,
    scores: pd.DataFrame,
    tables: dict[str, Table],
    missing: dict[str, list[str]],
    folder: Path,
) -> str:
    # A template has to fail on what it lacks, and texts are not markup.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "cell": cell_text}
    kinds = [kind for kind in KINDS if kind in tables]
    subjects = [
        {
            "name": subject,
            "kind": kind,
            "grid": (folder / "grids" / f"{subject}.jpg").is_file(),
            "table": _rows_about(tables[kind], subject),
            "concepts": [c.name for c in load_subject(subject, params.profile).concepts],
        }
        for kind in kinds
        for subject in subjects_of(grid, kind)
    ]
    return environment.get_template(TEMPLATE).render(
        params=params,
        grid=grid,
        kinds={kind: KINDS[kind] for kind in kinds},
        comparison=tables["comparison"],
        differences=[t for kind in kinds if (t := differences(scores, grid, kind)).rows],
        printed=printed(grid),
        subjects=subjects,
        claims=claims_table(params.profile),
        analyses=_analyses(params, folder),
        missing=missing,
        charts={p.stem for p in (folder / "figures").glob("*.png")},
        metrics=METRICS,
        oracle=ORACLE,
        extractors=sorted(scores["extractor"].unique()),
        kid_extractors=sorted(scores.loc[scores["metric"] == "kid", "extractor"].unique()),
        machine=machine(),
        is_estimate=lambda cell: isinstance(cell, Estimate),
        interval=interval,
        excludes_zero=_excludes_zero,
        shares=_shares,
    )


def _analyses(params: Params, folder: Path) -> list[dict[str, str | list[str]]]:
    """What each analysis that was run left in the report's folder."""
    found: list[dict[str, str | list[str]]] = []
    for name in chosen(params):
        inside = folder / "analyses" / name
        paths = {
            kind: [p.relative_to(folder).as_posix() for p in sorted(inside.rglob(f"*.{suffix}"))]
            for kind, suffix in (("figures", "png"), ("tables", "csv"))
        }
        if paths["tables"]:
            found.append({"desc": STAGES[name].desc, **paths})
    return found


def _rows_about(table: Table, subject: str) -> Table:
    """The rows of one subject, without the column that names it."""
    rows = tuple(row[1:] for row in table.rows if row[0] == subject)
    return Table(table.caption, table.columns[1:], rows)


def _excludes_zero(cell: Cell) -> bool:
    if not isinstance(cell, Estimate):
        return False
    low, high = interval(cell)
    return low > 0 or high < 0


def _shares(table: Table) -> list[float]:
    """The largest number of each column, for bars; 0 where there is none."""
    columns: Sequence[Sequence[Cell]] = list(zip(*table.rows))
    return [
        max((cell.mean for cell in column if isinstance(cell, Estimate)), default=0.0)
        for column in columns
    ]


def machine() -> str:
    """The kind of processor and its cores: what times depend on, and nothing that names a host."""
    model = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
