"""Tables of scores: what they hold, and how they are written for people and programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from eval.scores import ORACLE, load_scores, missing_cells
from eval.statistics import Estimate, clustered_mean, interval, mean_over, paired_difference
from pipeline.errors import BenchError
from pipeline.params import DEFAULT_PROFILE, Grid, load_grid
from pipeline.schema import read_yaml

REFERENCE = Path(__file__).with_name("reference") / "custom_diffusion.yaml"


class Metric(NamedTuple):
    """How a metric is called and printed."""

    title: str
    digits: int
    higher_is_better: bool


METRICS: dict[str, Metric] = {
    "text_alignment": Metric("text-alignment", 3, True),
    "image_alignment": Metric("image-alignment", 3, True),
    "kid": Metric("KID × 10³", 2, False),
}
# The groups of subjects; KID needs real images of what was asked for, so of one concept.
KINDS: dict[str, str] = {"single": "single concepts", "compositions": "compositions"}
KIND_METRICS: dict[str, tuple[str, ...]] = {
    "single": ("text_alignment", "image_alignment", "kid"),
    "compositions": ("text_alignment", "image_alignment"),
}

Estimates = dict[tuple[str, str, str], Estimate]  # by method, subject and metric
Cell = str | Estimate | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table; `digits` are those of its numbers."""

    key: str  # its name in CSV
    title: str
    group: str = ""  # what it has in common with its neighbours
    digits: int = 0


@dataclass(frozen=True)
class Table:
    """Rows of texts, numbers, numbers with an error, and gaps."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def words(name: str) -> str:
    """A name in `datasets/` or of a method as words: "custom_diffusion" as "custom diffusion"."""
    return name.replace("_", " ").replace("+", " + ")


def subjects_of(grid: Grid, kind: str) -> list[str]:
    """The grid's concepts or its compositions."""
    return list(grid.concepts if kind == "single" else grid.composed())


def estimates(scores: pd.DataFrame) -> Estimates:
    """The mean of every metric in every cell, with its error clustered by prompt.

    Image-alignment with a composition is the mean of that with its concepts (Custom Diffusion,
    Table 1), image by image, so that its error takes their correlation into account.

    Args:
        scores: as `eval.scores.load_scores` gives.
    """
    found: Estimates = {}
    for (method, subject, metric), rows in _by_metric(scores).items():
        if rows["prompt_index"].isna().all():
            value, error, n = rows.iloc[0][["value", "std_error", "n"]]
            estimate = Estimate(float(value), float(error), int(n), int(n))
        else:
            estimate = clustered_mean(rows["value"], rows["prompt_index"].astype(int))
        found[method, subject, metric] = estimate
    return found


def over_subjects(
    found: Estimates, method: str, metric: str, subjects: Sequence[str]
) -> Estimate | None:
    """The mean over those of the subjects that were scored.

    The error is that of the sample of subjects; for a single one it is its own.
    """
    cells = [found[key] for s in subjects if (key := (method, s, metric)) in found]
    if not cells:
        return None
    return cells[0] if len(cells) == 1 else mean_over([cell.mean for cell in cells])


def comparison(
    found: Estimates,
    grid: Grid,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] = tuple(METRICS),
) -> Table:
    """Methods by metrics, single concepts and compositions side by side (the paper's Table 1).

    Args:
        found: see `estimates`.
        grid: the subjects to average over.
        methods: the rows; the oracle and all of the grid if not given.
        metrics: the columns.
    """
    shown = {
        kind: [metric for metric in KIND_METRICS[kind] if metric in metrics]
        for kind in KINDS
        if subjects_of(grid, kind)
    }
    shown = {kind: columns for kind, columns in shown.items() if columns}
    columns = [Column("method", "method")]
    for kind, names in shown.items():
        for name in names:
            title, digits, higher = METRICS[name]
            arrow = "↑" if higher else "↓"
            columns.append(Column(f"{kind}_{name}", f"{title} {arrow}", KINDS[kind], digits))
        columns.append(Column(f"{kind}_subjects", "subjects", KINDS[kind]))
    rows = []
    for method in methods or (ORACLE, *grid.methods):
        row: list[Cell] = [method]
        for kind, names in shown.items():
            subjects = subjects_of(grid, kind)
            row += [over_subjects(found, method, name, subjects) for name in names]
            scored = {s for m, s, _ in found if m == method}.intersection(subjects)
            row.append(f"{len(scored)}/{len(subjects)}" if scored else None)
        rows.append(tuple(row))
    caption = "Mean over subjects ± standard error over subjects"
    return Table(caption, tuple(columns), tuple(rows))


def by_subject(found: Estimates, grid: Grid, kind: str) -> Table:
    """Every subject of a kind by itself, methods below each other."""
    metrics = KIND_METRICS[kind]
    columns = [Column("subject", "subject"), Column("method", "method")]
    columns += [Column(m, METRICS[m].title, digits=METRICS[m].digits) for m in metrics]
    rows = [
        (subject, method, *(found.get((method, subject, metric)) for metric in metrics))
        for subject in subjects_of(grid, kind)
        for method in (ORACLE, *grid.methods)
        if any((method, subject, metric) in found for metric in metrics)
    ]
    caption = f"{KINDS[kind].capitalize()}: mean ± standard error clustered by prompt"
    return Table(caption, tuple(columns), tuple(rows))


def differences(scores: pd.DataFrame, grid: Grid, kind: str) -> Table:
    """Each pair of methods: the mean of the differences on the same prompts of the same subjects.

    The error is over subjects, or over prompts where the two share one subject only.
    """
    metrics = KIND_METRICS[kind]
    tables = _by_metric(scores)
    rows = []
    for first, second in combinations(grid.methods, 2):
        cells = [
            _difference(tables, first, second, metric, subjects_of(grid, kind))
            for metric in metrics
        ]
        if any(cells):
            rows.append((f"{second} − {first}", *cells))
    columns = [Column("difference", "difference")]
    columns += [Column(m, METRICS[m].title, digits=METRICS[m].digits) for m in metrics]
    caption = f"{KINDS[kind].capitalize()}: paired differences of methods ± standard error"
    return Table(caption, tuple(columns), tuple(rows))


def printed(grid: Grid) -> Table:
    """What Custom Diffusion's paper prints for the methods of the grid."""
    reference = read_yaml(REFERENCE)
    keys = [(kind, metric) for kind in KINDS for metric in KIND_METRICS[kind]]
    columns = [Column("method", "method")]
    columns += [
        Column(f"{kind}_{m}", METRICS[m].title, KINDS[kind], METRICS[m].digits) for kind, m in keys
    ]
    values = [
        (method, *(reference[kind].get(method, {}).get(metric) for kind, metric in keys))
        for method in grid.methods
    ]
    rows = tuple(row for row in values if any(value is not None for value in row[1:]))
    return Table(f"As printed: {reference['source']}", tuple(columns), rows)


def print_table(
    profile: str = DEFAULT_PROFILE,
    metrics: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
    format: str = "text",
) -> None:
    """Prints the comparison of what has been scored so far; runs nothing.

    Args:
        profile: the name of a profile.
        metrics: those to show; all if not given.
        methods: the rows to show, `oracle` among them; all if not given.
        subjects: those to average over; all if not given.
        format: one of FORMATS.

    Raises:
        BenchError: a name is unknown, nothing was scored yet, or scores cannot be compared.
    """
    grid = load_grid(profile)
    chosen_metrics = _chosen("metric", metrics, METRICS)
    chosen_methods = _chosen("method", methods, (ORACLE, *grid.methods))
    chosen_subjects = _chosen("subject", subjects, grid.subjects())
    _chosen("format", [format], FORMATS)
    scores = load_scores(profile)
    if scores.empty:
        raise BenchError(f"profile {profile!r} has no scores yet: run `dvc repro`")
    grid = grid.model_copy(
        update={
            "concepts": {k: v for k, v in grid.concepts.items() if k in chosen_subjects},
            "compositions": {k: v for k, v in grid.compositions.items() if k in chosen_subjects},
            "triples": {k: v for k, v in grid.triples.items() if k in chosen_subjects},
        }
    )
    table = comparison(estimates(scores), grid, chosen_methods, chosen_metrics)
    print(FORMATS[format](table), end="")
    missing = {m: s for m, s in missing_cells(profile, scores).items() if m in chosen_methods}
    if format == "text" and missing:
        print(not_run(missing))


def not_run(missing: dict[str, list[str]]) -> str:
    """Says which cells have no scores."""
    cells = "; ".join(f"{method}: {', '.join(subjects)}" for method, subjects in missing.items())
    return f"not run: {cells}"


def cell_text(cell: Cell, digits: int) -> str:
    """A cell as text: "0.783 ± 0.012", "22.27", "–" for a gap."""
    if isinstance(cell, str):
        return cell
    if cell is None:
        return "–"
    if isinstance(cell, Estimate):
        if math.isnan(cell.std_error):
            return f"{cell.mean:.{digits}f}"
        return f"{cell.mean:.{digits}f} ± {cell.std_error:.{digits}f}"
    return f"{cell:.{digits}f}"


def as_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    grid = [[column.title for column in table.columns], *_texts(table)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    lines = []
    groups = _groups(table)
    if any(name for name, _ in groups):
        parts, at = [], 0
        for name, count in groups:
            width = sum(widths[at : at + count]) + 2 * (count - 1)
            parts.append(f" {name} ".center(width, "─") if name else " " * width)
            at += count
        lines.append("  ".join(parts))
    left = [_is_text(table, i) for i in range(len(widths))]
    lines.append(_aligned(grid[0], widths, left))
    lines.append("─" * len(lines[-1]))
    lines += [_aligned(row, widths, left) for row in grid[1:]]
    return "\n".join(line.rstrip() for line in [*lines, table.caption]) + "\n"


def as_markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    titles = [f"{c.title} ({c.group})" if c.group else c.title for c in table.columns]
    alignment = ["---" if _is_text(table, i) else "--:" for i in range(len(table.columns))]
    rows = [titles, alignment, *_texts(table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{table.caption}.\n"


def as_csv(table: Table) -> str:
    """Plain numbers: value, standard error and 95 % interval in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = [
        any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))
    ]
    header = []
    for column, several in zip(table.columns, measured):
        suffixes = ("", "_se", "_low", "_high") if several else ("",)
        header += [column.key + suffix for suffix in suffixes]
    writer.writerow(header)
    for row in table.rows:
        line: list[str] = []
        for cell, several in zip(row, measured):
            if isinstance(cell, Estimate):
                line += map(_plain, (cell.mean, cell.std_error, *interval(cell)))
            elif several:
                line += [""] * 4
            else:
                line.append(cell if isinstance(cell, str) else _plain(cell))
        writer.writerow(line)
    return out.getvalue()


def as_latex(table: Table) -> str:
    """A tabular that needs the package booktabs."""
    count = len(table.columns)
    kinds = "".join("l" if _is_text(table, i) else "r" for i in range(count))
    lines = [f"% {table.caption}", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    groups = _groups(table)
    if any(name for name, _ in groups):
        parts, rules, at = [], [], 1
        for name, width in groups:
            parts.append(rf"\multicolumn{{{width}}}{{c}}{{{name}}}" if name else "")
            if name:
                rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        lines += [" & ".join(parts) + r" \\", "".join(rules)]
    titles = [_latex(column.title) for column in table.columns]
    lines += [" & ".join(titles) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(text) for text in row) + r" \\" for row in _texts(table)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}


def _by_metric(scores: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """The rows of each method, subject and metric; those of several targets made one."""
    several = scores["metric"].str.fullmatch(r"image_alignment_\d+").astype(bool)
    cell = ["protocol", "method", "subject", "extractor", "prompt_index", "prompt", "sample"]
    means = scores[several].groupby(cell, as_index=False, sort=False)["value"].mean()
    merged = pd.concat([scores[~several], means.assign(metric="image_alignment")])
    groups = merged.groupby(["method", "subject", "metric"], sort=False)
    return {(str(m), str(s), str(name)): rows for (m, s, name), rows in groups}


def _difference(
    tables: dict[tuple[str, str, str], pd.DataFrame],
    first: str,
    second: str,
    metric: str,
    subjects: Sequence[str],
) -> Estimate | None:
    pairs = []
    for subject in subjects:
        a, b = tables.get((first, subject, metric)), tables.get((second, subject, metric))
        if a is not None and b is not None:
            pairs.append((b, a))
    found = [_subject_difference(b, a) for b, a in pairs]
    if len(found) == 1:
        return found[0]
    return mean_over([estimate.mean for estimate in found]) if found else None


def _subject_difference(first: pd.DataFrame, second: pd.DataFrame) -> Estimate:
    if first["prompt_index"].isna().all():
        # One value for each set of images: there is nothing to pair within a subject.
        return mean_over([first["value"].iloc[0] - second["value"].iloc[0]])
    means = [rows.groupby("prompt_index")["value"].mean() for rows in (first, second)]
    common = means[0].index.intersection(means[1].index)
    return paired_difference(means[0].loc[common], means[1].loc[common])


def _chosen(what: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    options = list(known)
    for name in names or ():
        if name not in options:
            raise BenchError(f"{what} {name!r} is unknown: choose from {', '.join(options)}")
    return list(names or options)


def _texts(table: Table) -> list[list[str]]:
    digits = [column.digits for column in table.columns]
    return [[cell_text(cell, d) for cell, d in zip(row, digits)] for row in table.rows]


def _is_text(table: Table, i: int) -> bool:
    return i == 0 or table.columns[i].key == "method"


def _groups(table: Table) -> list[tuple[str, int]]:
    """The groups of columns from left to right, and of how many each is."""
    groups: list[tuple[str, int]] = []
    for column in table.columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


def _aligned(row: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    return "  ".join(
        text.ljust(width) if to_left else text.rjust(width)
        for text, width, to_left in zip(row, widths, left)
    )


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.10g}"


def _latex(text: str) -> str:
    symbols = {
        "±": r"$\pm$",
        "× 10³": r"$\times 10^3$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "_": r"\_",
        "–": "--",
        "−": "$-$",
    }
    for symbol, command in symbols.items():
        text = text.replace(symbol, command)
    return f"$-${text[1:]}" if text.startswith("-") and text[1:2].isdigit() else text
