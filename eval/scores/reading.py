"""Reading scores back: those of a profile, and why cells have none."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from eval.scores.file import COLUMNS, ORACLE, SCORES, SEQUENCE_COLUMNS, read_scores
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure, failure_of
from pipeline.settings.profile import load_grid, load_params

# What has to be alike in the rows of a metric, and why.
DEFINITION: dict[str, str] = {
    "protocol": "protocols differ in which images are made and in how they are measured",
    "extractor": "features of other models or weights give other values",
    "scale": "the same cosine or distance was multiplied by different numbers",
    "text_rule": "images were compared with texts made in different ways",
}


def load_scores(profile: str, subjects: Collection[str] | None = None) -> pd.DataFrame:
    """All scores of the profile's grid that are there, oracle first, then in the grid's order.

    Of each cell those of the main training come first.

    Cells that failed have none; see `failed_cells`.

    Args:
        profile: the name of a profile.
        subjects: whose; those of the grid if absent.

    Returns:
        A frame with COLUMNS; empty if nothing was scored yet.

    Raises:
        BenchError: a file is damaged, or scores were measured in ways that cannot be compared.
    """
    params, grid = load_params(profile), load_grid(profile)
    frames = []
    for method in (ORACLE, *grid.methods):
        for subject in grid.subjects() if subjects is None else subjects:
            for folder in params.records(method, subject).values():
                path = folder / SCORES
                if path.is_file() and not failure_of(path):
                    frames.append(read_scores(path, method, subject))
    if not frames:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    scores = pd.concat(frames, ignore_index=True)
    check_comparable(scores)
    return scores


def load_sequence(profile: str, sequence: str) -> pd.DataFrame:
    """The scores of a sequence that are there, of all its methods in their order.

    Returns:
        A frame with SEQUENCE_COLUMNS; empty if nothing was scored yet.

    Raises:
        BenchError: as `load_scores`.
    """
    params, about = load_params(profile), load_grid(profile).sequences[sequence]
    frames = []
    for method in about.methods:
        path = params.record(method, sequence) / SCORES
        if path.is_file() and not failure_of(path):
            frames.append(read_scores(path, method, sequence, SEQUENCE_COLUMNS))
    if not frames:
        return pd.DataFrame({n: pd.Series(dtype=kind) for n, kind in SEQUENCE_COLUMNS.items()})
    scores = pd.concat(frames, ignore_index=True)
    check_comparable(scores)
    return scores


def failed_cells(profile: str) -> dict[tuple[str, str], Failure]:
    """By method and subject, why cells of the profile's grid could not be made, in its order.

    Of a cell whose trainings failed, all or some, it is why the first of them did.
    """
    params, grid = load_params(profile), load_grid(profile)
    found: dict[tuple[str, str], Failure] = {}
    for method in (ORACLE, *grid.methods):
        for subject in grid.subjects():
            records = params.records(method, subject)
            for seed, folder in records.items():
                if failure := failure_of(folder / SCORES):
                    whose = f"seed {seed}: " if len(records) > 1 else ""
                    said = failure._replace(message=whose + failure.message)
                    found.setdefault((method, subject), said)
    return found


def main_training(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first training of each cell, whose pictures people see.

    Args:
        scores: as `load_scores` gives.
    """
    first = scores.groupby(["method", "subject"])["seed"].transform("first")
    return scores[(scores["seed"].isna() | scores["seed"].eq(first)).astype(bool)]


def check_comparable(scores: pd.DataFrame) -> None:
    """Finds out whether all rows of each metric are defined alike, and all are of one protocol.

    Raises:
        BenchError: says which two are not, and why that matters.
    """
    for column, why in DEFINITION.items():
        groups = (
            scores.groupby("metric", sort=False) if column != "protocol" else [("scores", scores)]
        )
        for name, group in groups:
            examples = group.drop_duplicates(column).head(2).to_dict("records")
            if len(examples) > 1:
                said = " and ".join(f"{r[column]} ({r['method']}/{r['subject']})" for r in examples)
                what = column.replace("_", " ")
                raise BenchError(
                    f"{str(name).replace('_', '-')} of different {what}s cannot be compared, as "
                    f"{why}: {said}: run the profile's pipeline so that all are scored alike"
                )
