"""What a profile's findings rest on: the tables of its report, and how they came about.

Everything is read from files that are committed, so that whoever has no scores can check a
sentence about results too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from eval.results import KINDS, subjects_of
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.places import repro_command
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import (
    Grid,
    Params,
    load_grid,
    load_params,
    profile_folder,
    profile_names,
)

TRIALS = "reports/analyses/tuning/trials.csv"  # of a profile that tries learning rates


@dataclass(frozen=True)
class Evidence:
    """The tables that sentences are made of."""

    comparison: pd.DataFrame  # `tables/comparison.csv`, indexed by method
    # By kind, `tables/differences_<kind>.csv`, indexed by "second − first".
    differences: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    claims: pd.DataFrame | None = None  # `claims.csv`
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
        _read(tables / "comparison.csv", "method", profile),
        {k: _read(p, "difference", profile) for k, p in differences.items() if p.is_file()},
        _read(claims, "claim", profile) if claims.is_file() else None,
        (*_counts(params, grid), rates(params, grid), _measures(params)),
    )


def _read(path: Path, index: str, profile: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, index_col=index)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path}: not a table of a report ({error}): run `{repro_command(profile)}`"
        ) from error


def _counts(params: Params, grid: Grid) -> list[str]:
    sample, said = params.protocol.sample, []
    plans = {
        "single": ("concept", sample.single),
        "compositions": ("composition", sample.composition),
    }
    for kind, (noun, plan) in plans.items():
        subjects = subjects_of(grid, kind)
        if subjects:
            prompts = {len(load_subject(s, params.profile).scored_prompts()) for s in subjects}
            asked = " or ".join(map(str, sorted(prompts)))
            said.append(
                f"{counted(len(subjects), noun)}, {asked} prompts each, "
                f"{counted(plan.images_per_prompt, 'image')} a prompt"
            )
    return [*said, "one training seed, so nothing is known about the luck of a training"]


def counted(count: int, noun: str) -> str:
    """As "1 concept", "4 concepts"."""
    return f"{count} {noun}{'s' * (count != 1)}"


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
    for name in profile_names():
        path = profile_folder(name) / TRIALS
        if not path.is_file() or load_params(name).base.path != params.base.path:
            continue
        trials = _read(path, "kind", name).loc[["single"]]
        marked = {
            mark: {(row.method, row.learning_rate, row.steps) for row in rows.itertuples()}
            for mark in ("chosen", "quick")
            for rows in [trials[trials[mark]]]
        }
        tuned = [m for m, (rate, steps) in mine.items() if (m, rate, steps) in marked["chosen"]]
        short = [
            m
            for m, (rate, steps) in mine.items()
            if (m, rate, steps) in marked["quick"] and m not in tuned
        ]
        if not tuned and not short:
            continue
        held_out = listed([words(concept) for concept in load_grid(name).concepts])
        said = f"learning rates chosen by one rule on other concepts ({held_out})"
        if short:
            said += f", for {listed(map(words, short))} among short trainings only"
        others = [words(m) for m in mine if m not in (*tuned, *short)]
        return f"{said}, but for {listed(others)} not tuned" if others else said
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
