"""The page: what it shows, as data that its templates only have to lay out."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.analyses.stages import analyses_of
from eval.continual import failed_sequences
from eval.freshness import freshness, stale_analyses
from eval.metrics.catalogue import METRICS
from eval.papers.claims import (
    Verdict,
    analyses_said,
    check_claims,
    comparison_text,
    interval_text,
)
from eval.papers.compare import comparable, compare, compared
from eval.report.cost import trained_on
from eval.report.disagreement import disagreement
from eval.report.evidence import counted, read_evidence
from eval.report.findings import answers
from eval.report.grids import Sheet
from eval.report.maps import heat_maps
from eval.report.origin import origin
from eval.report.profiles import neighbours
from eval.report.prompts import chooser, extremes, of_images, prompt_lines, shown_methods
from eval.report.seen import orders, seen_table
from eval.report.sequences import Part
from eval.report.winners import winners
from eval.results import KINDS, Results, reference_method
from eval.scores.file import ORACLE
from eval.statistics import Estimate, interval
from eval.study.outcome import read_outcome
from eval.study.read import REASONS
from eval.style import words
from eval.tables.building import by_subject
from eval.tables.gaps import by_failure
from eval.tables.rendering import cell_text, p_text
from eval.tables.table import HERE, STALE, Compared, Table
from pipeline.common.failures import Failure, failure_of
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import Params

FOLDER = Path(__file__).parent


def render(
    params: Params,
    results: Results,
    tables: Mapping[str, Table],
    sheets: Mapping[str, Sheet],
    missing: Mapping[str, Sequence[str]],
    sequences: Sequence[Part] = (),
) -> str:
    """The page as HTML, with style and script in it; pictures are files beside it.

    Args:
        params: of the profile.
        results: what was scored.
        tables: "comparison", "cost", each kind of subjects, and "differences_" of it; they are in
            the report's folder already.
        sheets: by subject; those without samples have none.
        missing: by method, the subjects that were not scored.
        sequences: what is shown of them.

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
            "table": _without_subject(by_subject(results, kind, [subject])),
            "sheet": sheets.get(subject),
            "metrics": [METRICS[metric].title for metric in of_images(results, kind)],
            "methods": shown_methods(results, subject, sheets.get(subject)),
            "lines": prompt_lines(results, subject, sheets.get(subject), prompts[subject]),
            "extremes": extremes(results, subject, sheets.get(subject), prompts[subject]),
        }
        for kind in kinds
        for subject in results.subjects(kind)
    ]
    found = check_claims(results)
    stale_of_analyses = stale_analyses(params, params.analyses)
    lost = failed_sequences(params.profile)
    beside = comparable(results, params)
    printed: dict[str, float] = {}  # by column and row; of several tables the first counts
    for _, table, numbers in beside:
        for line in numbers:
            if (line.subject, line.target, line.against) == (None, None, None):
                printed.setdefault(f"{table.kind}_{line.metric}/{line.method}", line.printed)
    everyone = (ORACLE, *results.grid.methods)
    charts = sorted(p.name for p in (folder / "figures").iterdir())
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
        answers=answers(read_evidence(params.profile)),
        neighbours=neighbours(params),
        printed=printed,
        printed_by=" and ".join(dict.fromkeys(source.source for source, _, _ in beside)),
        beside=[compared(*about) for about in beside],
        order=compare(results, params).order,
        main_order=compare(results, params, "1").order,
        maps={kind: heat_maps(results, kind) for kind in kinds},
        subjects=subjects,
        disagreement=disagreement(results, sheets, prompts),
        seen=_seen(folder, stale_of_analyses),
        seen_orders=orders(folder / "analyses" / "agreement"),
        sheets=sheets,
        findings=list(zip(*found)),
        verdicts={
            name: {
                v: n
                for v in Verdict
                if v is not Verdict.NOT_ASKED and (n := sum(f.verdict is v for f in part))
            }
            for name, part in found._asdict().items()
            if name != "stale"
        },
        not_run=[finding for finding in found.anywhere if finding.verdict is Verdict.NOT_RUN],
        not_made=[finding for finding in found.anywhere if finding.verdict is Verdict.FAILED],
        study=read_outcome(folder / "study"),
        reasons=REASONS,
        analyses=_analyses(params, folder, stale_of_analyses),
        missing=missing,
        sequences=sequences,
        failed=by_failure({**results.failed, **lost}),
        stale=[
            *results.fresh.notes(STALE, everyone, results.grid.subjects()),
            *freshness(params.profile, results.scores[:0], lost).notes(
                STALE, results.grid.all_methods(), results.grid.sequences
            ),
            *(note for part in sequences for note in part.stale),
            *analyses_said(stale_of_analyses),
        ],
        charts=charts,
        scatters=[kind for kind in kinds if f"scatter_{kind}.svg" in charts],
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
        counted=counted,
        known=lambda value: value is not None and not math.isnan(value),
        only_here=HERE,
        scales=scales,
        comparison_text=comparison_text,
        p_text=p_text,
        p_said=lambda p: f"p {text}" if (text := p_text(p, 4)).startswith("<") else f"p = {p:.2g}",
        stale_mark=STALE,
        interval_text=interval_text,
    )


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


def _without_subject(table: Table) -> Table | None:
    """A table of one subject without the column that names it; None if it has no rows."""
    rows = tuple(row[1:] for row in table.rows)
    marks = {(i, j - 1): mark for (i, j), mark in table.marks.items()}
    shown = replace(table, columns=table.columns[1:], rows=rows, marks=marks)
    return shown if rows else None


def _seen(folder: Path, stale: Container[str]) -> Table | None:
    """The table of what is really there, with a mark at its numbers if the analysis is stale."""
    table = seen_table(folder / "analyses" / "agreement")
    if table is None or "agreement" not in stale:
        return table
    places = [
        (i, j) for i, row in enumerate(table.rows) for j, cell in enumerate(row) if j and cell
    ]
    return replace(table, marks={**table.marks, **dict.fromkeys(places, STALE)})


def _extractors(results: Results) -> dict[str, list[str]]:
    """By metric, the models that measured."""
    groups = results.scores.groupby("metric")["extractor"]
    return {str(name): sorted(set(group)) for name, group in groups}


def _analyses(params: Params, folder: Path, stale: Container[str]) -> list[dict[str, Any]]:
    """What each analysis that was run left in the report's folder, or why it could not."""
    found: list[dict[str, Any]] = []
    for name, analysis in analyses_of(params).items():
        inside = folder / "analyses" / name
        paths = {
            kind: [p.relative_to(folder).as_posix() for p in sorted(inside.rglob(f"*.{suffix}"))]
            for kind, suffix in (("figures", "png"), ("tables", "csv"))
        }
        failure = failure_of(inside)
        if paths["tables"] or failure:
            mark = STALE if name in stale else ""
            found.append({"desc": analysis.desc, "mark": mark, "failure": failure, **paths})
    return found
