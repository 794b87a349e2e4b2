"""What a profile's findings rest on: the tables of its report, and how they came about.

Everything is read from files that are committed, so that whoever has no scores can check a
sentence about results too.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eval.metrics.catalogue import METRICS
from eval.papers.claims import seeds_text
from eval.results import KINDS, subjects_of
from eval.scores.file import SCORES
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.failures import failure_of
from pipeline.common.places import repro_command
from pipeline.concepts.concept import load_subject, styles_of
from pipeline.methods import training_seeds
from pipeline.settings.profile import (
    Grid,
    Params,
    load_grid,
    load_params,
    profile_folder,
    profile_names,
)

Rows = Mapping[str, Mapping[str, str]]  # a table's, by what they begin with and by column
# What a kind's subjects are called: one, and several.
NOUNS = {
    "single": ("concept", "concepts"),
    "styles": ("style, alone or composed", "styles, alone or composed"),
    "compositions": ("composition", "compositions"),
}
TRIALS = "reports/analyses/tuning"  # of a profile that tries learning rates


@dataclass(frozen=True)
class Evidence:
    """The tables that sentences are made of."""

    comparison: Rows  # `tables/comparison.csv`, by method
    # By kind, `tables/differences_<kind>.csv`, by "second − first".
    differences: Mapping[str, Rows] = field(default_factory=dict)
    # By kind and metric, the subjects that each method's mean is over.
    scored: Mapping[tuple[str, str], Mapping[str, frozenset[str]]] = field(default_factory=dict)
    claims: Rows = field(default_factory=dict)  # `claims.csv`, by claim
    basis: tuple[str, ...] = ()  # what it all was measured on, in words


def read_evidence(profile: str) -> Evidence:
    """What the report of a profile holds.

    Raises:
        BenchError: it was not written yet, or a file of it is damaged.
    """
    params, grid = load_params(profile), load_grid(profile)
    folder = params.reports()
    tables = folder / "tables"
    differences = {kind: tables / f"differences_{kind}.csv" for kind in KINDS}
    claims = folder / "claims.csv"
    return Evidence(
        _by_name(tables / "comparison.csv", profile),
        {k: _by_name(path, profile) for k, path in differences.items() if path.is_file()},
        _scored(tables, params),
        _by_name(claims, profile) if claims.is_file() else {},
        (*_counts(params, grid), rates(params, grid), _measures(params)),
    )


def _by_name(path: Path, profile: str) -> Rows:
    return {next(iter(row.values())): row for row in _read(path, profile)}


def _read(path: Path, profile: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}: run `{repro_command(profile)}`") from error
    if not rows or any(None in row or None in row.values() for row in rows):
        raise BenchError(f"{path}: not a table of a report: run `{repro_command(profile)}`")
    return rows


def _scored(tables: Path, params: Params) -> dict[tuple[str, str], dict[str, frozenset[str]]]:
    """By kind and metric, what means are over, as the tables of subjects and the protocol say."""
    found: dict[tuple[str, str], dict[str, frozenset[str]]] = {}
    rules = params.protocol.score.leave_out.items()
    left_out = {m: {c for name, some in rules if name == m for c in some} for m in METRICS}
    for kind in KINDS:
        path = tables / f"{kind}.csv"
        for row in _read(path, params.profile) if path.is_file() else ():
            for metric in METRICS.keys() & row.keys():
                if number(row[metric]) is not None and row["subject"] not in left_out[metric]:
                    over = found.setdefault((kind, metric), {})
                    over[row["method"]] = over.get(row["method"], frozenset()) | {row["subject"]}
    return found


def number(text: str | None) -> float | None:
    """The number in a cell; None for a gap, and for what stands there if a cell failed."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _counts(params: Params, grid: Grid) -> list[str]:
    said, styles = [], styles_of(grid)
    for kind, nouns in NOUNS.items():
        subjects = subjects_of(grid, kind, styles)
        if subjects:
            prompts = {len(load_subject(s, params.profile).scored_prompts()) for s in subjects}
            sizes = {len(grid.concepts_of(s)) for s in subjects}
            images = {params.protocol.sample.of(size).images_per_prompt for size in sizes}
            said.append(
                f"{len(subjects)} {nouns[len(subjects) != 1]}, {_or(prompts)} prompts each, "
                f"{_or(images)} image{'s' * (max(images) != 1)} a prompt"
            )
    return [*said, _seeds(params, grid)]


def _or(numbers: Iterable[int]) -> str:
    """As "3", "3 or 5"."""
    return " or ".join(map(str, sorted(numbers)))


def _seeds(params: Params, grid: Grid) -> str:
    """With how many seeds the methods in which anything is random were trained and scored."""
    counts = set()
    for method in grid.methods:
        for subject in grid.subjects():
            seeds = training_seeds(method, params, grid, len(grid.concepts_of(subject)))
            if None not in seeds:
                paths = [params.record(method, subject, seed) / SCORES for seed in seeds]
                counts.add(sum(path.is_file() and not failure_of(path) for path in paths))
    counts.discard(0)
    most = max(counts, default=1)
    if most == 1:
        return f"{seeds_text(most)}, so nothing is known about the luck of a training"
    said = f"{min(counts)} to {seeds_text(most)}" if len(counts) > 1 else seeds_text(most)
    return f"{said}, so that the luck of a training is known"


def counted(count: int, noun: str) -> str:
    """As "1 concept", "4 concepts"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def trials(params: Params) -> dict[str, Path]:
    """The folders of trials of learning rates with the same base model, by their profile."""
    return {
        name: path
        for name in profile_names()
        if (path := profile_folder(name) / TRIALS).is_dir()
        and load_params(name).base.path == params.base.path
    }


def rates(params: Params, grid: Grid) -> str:
    """Says how the learning rates of a profile's methods were tuned.

    They were if the trials of a profile of the same base model mark them, with their steps on
    single concepts, as what the rule takes.
    """
    mine = {
        method: (about.learning_rate, about.steps)
        for method in grid.methods
        if (about := params.methods.get(method)) and about.learning_rate is not None
    }
    for name, path in trials(params).items():
        chosen = {
            (row["method"], row["learning_rate"], row["steps"])
            for row in _read(path / "trials.csv", name)
            if row["kind"] == "single" and row["chosen"] == "True"
        }
        # A method that varies another, and is named so, is tuned with it, if not by itself.
        rates_of = {(method, rate) for method, rate, _ in chosen}
        alone = {method for method, _ in rates_of}
        others = [
            m
            for m, (r, n) in mine.items()
            if (m, f"{r:.10g}", str(n)) not in chosen
            and (
                m in alone
                or not any(m.startswith(f"{of}_") and f"{r:.10g}" == rate for of, rate in rates_of)
            )
        ]
        if len(others) == len(mine):
            continue
        # Of what was tried, which may be less than the profile has by now.
        tried = [row for row in _read(path / "prompts.csv", name) if row["kind"] == "single"]
        held_out = listed([words(c) for c in dict.fromkeys(row["subject"] for row in tried)])
        said = f"learning rates chosen by one rule on other concepts ({held_out})"
        untuned = listed([words(m) for m in others]) if others else ""
        return f"{said}, but for {untuned} not tuned" if untuned else said
    return "learning rates that were not tuned here" if mine else "no learning rates to tune"


def listed(names: Iterable[str]) -> str:
    """As "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _measures(params: Params) -> str:
    score = params.protocol.score
    said = f"alignments measured with one CLIP ({score.clip})"
    drift = "the same one" if score.kid_features == "clip" else "Inception"
    return f"{said}, drift with {drift}" if {"kid", "fid"} & {*score.metrics} else said
