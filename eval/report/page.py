"""The page: what it shows, as data that its templates only have to lay out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.analyses.stages import analyses_of
from eval.metrics.catalogue import METRICS
from eval.papers.claims import Finding, Verdict, check_claims, comparison_text, interval_text
from eval.papers.compare import compare
from eval.papers.reference import printed_means
from eval.report.grids import Sheet
from eval.report.origin import origin
from eval.results import KINDS, Results, reference_method, subjects_of
from eval.scores.file import ORACLE
from eval.statistics import Estimate, interval
from eval.study.read import REASONS
from eval.style import words
from eval.tables.building import by_prompt, tested
from eval.tables.gaps import by_failure
from eval.tables.rendering import cell_text, p_text
from eval.tables.table import HERE, STALE, Cell, Column, Compared, Table, metric_column
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure, failure_of
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import Grid, Params

FOLDER = Path(__file__).parent
STUDY_TABLES = ("preferences", "ranking", "agreement", "raters", "power")
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


class Winner(NamedTuple):
    """The best method by one metric, and whether it is so by more than chance."""

    column: Column
    method: str
    estimate: Estimate
    second: str
    lead: Compared | None  # on the second, with a positive mean; p is corrected


class PromptCell(NamedTuple):
    """What a method made of a prompt."""

    row: int  # on the sheet; 0 if there is no picture
    shades: list[Shade]  # by metric


class PromptLine(NamedTuple):
    """A prompt of a subject, and what each method made of it."""

    text: str
    column: int  # of its first sample on the sheet
    cells: list[PromptCell]


class StudyTable(NamedTuple):
    """A table for people, and the path of its CSV."""

    path: str
    caption: str
    header: list[str]
    rows: list[list[str]]


class Study(NamedTuple):
    """What `bench study analyse` left."""

    responses: int = 0
    raters: int = 0
    excluded: Mapping[str, int] = {}  # by reason
    tables: Sequence[StudyTable] = ()


def render(
    params: Params,
    results: Results,
    tables: Mapping[str, Table],
    sheets: Mapping[str, Sheet],
    missing: Mapping[str, Sequence[str]],
) -> str:
    """The page as HTML, with style and script in it; pictures are files beside it.

    Args:
        params: of the profile.
        results: what was scored.
        tables: "comparison", "cost", each kind of subjects, and "differences_" of it.
        sheets: by subject; those without samples have none.
        missing: by method, the subjects that were not scored.

    Raises:
        BenchError: claims cannot be tested on the scores, or costs cannot be read.
    """
    # A template has to fail on what it lacks, and texts are not markup.
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "cell": cell_text}
    folder, kinds = params.reports(), results.kinds()
    prompts = {
        name: load_subject(name, params.profile).scored_prompts()
        for name in results.grid.subjects()
    }
    subjects = [
        {
            "name": subject,
            "kind": kind,
            "table": _rows_about(tables.get(kind), subject),
            "sheet": sheets.get(subject),
            "metrics": [METRICS[metric].title for metric in _of_images(results, kind)],
            "methods": shown_methods(results, subject, sheets.get(subject)),
            "lines": prompt_lines(results, subject, sheets.get(subject), prompts[subject]),
        }
        for kind in kinds
        for subject in subjects_of(results.grid, kind)
    ]
    source, printed = printed_means(params.protocol.name)
    found = check_claims(results)
    compared = compare(results, params)
    main = compare(results, params, "1").order
    everyone = (ORACLE, *results.grid.methods)
    return environment.get_template("index.html.jinja").render(
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "script.js").read_text(encoding="utf-8")),
        chooser=Markup(chooser(results, sheets, prompts)),
        params=params,
        results=results,
        grid=results.grid,
        kinds={kind: KINDS[kind] for kind in kinds},
        tables=tables,
        winners={kind: winners(results, kind) for kind in kinds},
        printed={f"{kind}_{metric}/{method}": v for (kind, method, metric), v in printed.items()},
        source=source,
        compared=compared,
        main_order=main,
        maps={kind: heat_maps(results, kind) for kind in kinds},
        subjects=subjects,
        findings=list(zip(*found)),
        verdicts={
            name: {v: sum(f.verdict is v for f in part) for v in Verdict}
            for name, part in (("anywhere", found.anywhere), ("here", found.here))
        },
        not_run=[finding for finding in found.anywhere if finding.verdict is Verdict.NOT_RUN],
        not_made=[finding for finding in found.anywhere if finding.verdict is Verdict.FAILED],
        study=study(folder / "study"),
        reasons=REASONS,
        analyses=_analyses(params, folder),
        missing=missing,
        failed=by_failure(results.failed),
        stale=results.fresh.notes(STALE, everyone, results.grid.subjects()),
        charts=sorted(p.name for p in (folder / "figures").iterdir()),
        metrics=METRICS,
        distances=[name for name, metric in METRICS.items() if not metric.per_image],
        asked=[m for m in METRICS if m in params.protocol.score.metrics],
        extractors=_extractors(results),
        oracle=ORACLE,
        reference=reference_method(results.grid),
        origin=origin(params),
        hardware=trained_on(params, results.grid),
        is_estimate=lambda cell: isinstance(cell, Estimate),
        is_compared=lambda cell: isinstance(cell, Compared),
        is_failure=lambda cell: isinstance(cell, Failure),
        interval=interval,
        known=lambda value: value is not None and not math.isnan(value),
        only_here=HERE,
        scales=scales,
        comparison_text=comparison_text,
        p_said=lambda p: f"p {text}" if (text := p_text(p, 4)).startswith("<") else f"p = {p:.2g}",
        stale_mark=STALE,
        interval_text=_interval_text,
    )


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
    for metric in results.metrics(kind):
        subjects = subjects_of(results.grid, kind)
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


def winners(results: Results, kind: str) -> list[Winner]:
    """By each metric the best of the methods that learn, if there are two."""
    found = []
    differences = tested(results, kind)
    for metric in results.metrics(kind):
        means = {
            method: mean
            for method in results.grid.methods
            if method != "pretrained" and (mean := results.mean(method, kind, metric))
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


def prompt_lines(
    results: Results, subject: str, sheet: Sheet | None, prompts: Sequence[str]
) -> list[PromptLine]:
    """A line for each prompt of which there are pictures, or scores if there are none at all."""
    table = by_prompt(results, subject)
    metrics = [column.metric for column in table.columns if column.metric]
    first = len(table.columns) - len(metrics)
    coloured = [
        shades([_number(row[first + i]) for row in table.rows], METRICS[metric].higher_is_better)
        for i, metric in enumerate(metrics)
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
        metrics = _of_images(
            results, "single" if subject in results.grid.concepts else "compositions"
        )
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
                "methods": [
                    {
                        "name": words(method),
                        "scores": [
                            _by_column(results, method, subject, metric, sheet)
                            for metric in metrics
                        ],
                    }
                    for method in sheet.methods
                ],
            }
        )
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _by_column(
    results: Results, method: str, subject: str, metric: str, sheet: Sheet
) -> list[float | None]:
    """The score of each picture of a sheet's row."""
    rows = results.by_metric.get((method, subject, metric))
    if rows is None:
        return [None] * (len(sheet.prompts) * sheet.samples)
    known = {
        (int(prompt), int(sample)): float(value)
        for prompt, sample, value in zip(
            rows["prompt_index"], rows["sample"], rows["value"].round(3)
        )
    }
    return [known.get((p, s)) for p in sheet.prompts for s in range(sheet.samples)]


def _of_images(results: Results, kind: str) -> list[str]:
    """The metrics that each image has."""
    return [metric for metric in results.metrics(kind) if METRICS[metric].per_image]


def cost_table(params: Params, grid: Grid) -> Table:
    """What a cell of each method takes to train and to store, the mean over its cells."""
    from eval.analyses.cost.file import COST_FILE, read_cost

    shown = (
        ("seconds", "training, s", 1, 1.0),
        ("peak_bytes", "peak, GB", 2, 1e-9),
        ("parameters", "trains, millions", 3, 1e-6),
        ("bytes", "stored, MB", 3, 1e-6),
    )
    kinds = [kind for kind in KINDS if subjects_of(grid, kind)]
    columns = [Column("method", "method")]
    columns += [
        Column(f"{k}_{key}", title, KINDS[k], d) for k in kinds for key, title, d, _ in shown
    ]
    rows: list[tuple[Cell, ...]] = []
    for method in grid.methods:
        row: list[Cell] = [method]
        for kind in kinds:
            folders = [params.cell(method, s) for s in subjects_of(grid, kind)]
            costs = [cost for f in folders if (cost := read_cost(f / COST_FILE))]
            adapters = [f / "adapter.safetensors" for f in folders]
            sizes = [p.stat().st_size for p in adapters if p.is_file() and not failure_of(p)]
            for key, _, _, unit in shown:
                values = sizes if key == "bytes" else [getattr(cost, key) for cost in costs]
                row.append(float(np.mean(values)) * unit if values else None)
        if any(value is not None for value in row[1:]):
            rows.append(tuple(row))
    return Table("Mean over cells of what their training took", tuple(columns), tuple(rows))


def trained_on(params: Params, grid: Grid) -> list[str]:
    """The machines that trained the cells, as far as they wrote it down."""
    from eval.analyses.cost.file import COST_FILE, read_cost

    paths = [params.cell(m, s) / COST_FILE for m in grid.methods for s in grid.subjects()]
    return sorted({f"{cost.hardware} ({cost.device})" for p in paths if (cost := read_cost(p))})


def study(folder: Path) -> Study:
    """What people answered, as `bench study analyse` summed it up; empty if it did not run.

    Raises:
        BenchError: its files are damaged.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return Study()
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        tables = []
        for name in STUDY_TABLES:
            file = folder / f"{name}.md"
            if file.is_file():
                tables.append(_markdown(f"study/{name}.csv", file.read_text(encoding="utf-8")))
        return Study(
            int(summary["responses"]),
            int(summary.get("raters", 0)),
            {str(reason): int(count) for reason, count in summary.get("excluded", {}).items()},
            tables,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{folder}: not what `bench study analyse` writes ({error}): run it again"
        ) from error


def _markdown(path: str, text: str) -> StudyTable:
    """A table as `eval.tables.rendering.as_markdown` writes it."""
    body, caption = text.strip().split("\n\n")
    header, _, *lines = [line.strip("| ").split(" | ") for line in body.splitlines()]
    return StudyTable(path, caption, header, [[words(cell) for cell in line] for line in lines])


def scales(table: Table) -> list[tuple[float, float] | None]:
    """What each column spans, with its standard errors; None for one without."""
    found: list[tuple[float, float] | None] = []
    for i in range(len(table.columns)):
        ends: list[float] = []
        for row in table.rows:
            cell = row[i]
            estimate = cell.estimate if isinstance(cell, Compared) else cell
            if isinstance(estimate, Estimate):
                error = 0.0 if math.isnan(estimate.std_error) else estimate.std_error
                ends += [estimate.mean - error, estimate.mean + error]
        found.append((min(ends), max(ends)) if ends and min(ends) < max(ends) else None)
    return found


def _number(cell: Cell) -> float | None:
    return cell if isinstance(cell, float) else None


def _rows_about(table: Table | None, subject: str) -> Table | None:
    """The rows of one subject, without the column that names it."""
    if table is None:
        return None
    rows = tuple(row[1:] for row in table.rows if row[0] == subject)
    return Table(table.caption, table.columns[1:], rows) if rows else None


def _interval_text(finding: Finding) -> str | None:
    return interval_text(interval(finding.difference)) if finding.difference else None


def _extractors(results: Results) -> dict[str, list[str]]:
    """By metric, the models that measured."""
    groups = results.scores.groupby("metric")["extractor"]
    return {str(name): sorted(set(group)) for name, group in groups}


def _analyses(params: Params, folder: Path) -> list[dict[str, str | list[str] | Failure | None]]:
    """What each analysis that was run left in the report's folder, or why it could not."""
    found: list[dict[str, str | list[str] | Failure | None]] = []
    for name, analysis in analyses_of(params).items():
        inside = folder / "analyses" / name
        paths = {
            kind: [p.relative_to(folder).as_posix() for p in sorted(inside.rglob(f"*.{suffix}"))]
            for kind, suffix in (("figures", "png"), ("tables", "csv"))
        }
        failure = failure_of(inside)
        if paths["tables"] or failure:
            found.append({"desc": analysis.desc, "failure": failure, **paths})
    return found
