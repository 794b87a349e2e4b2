"""Which cells of a grid were not run."""

from __future__ import annotations

import pandas as pd

from eval.scores.file import ORACLE
from eval.scores.reading import failed_cells
from pipeline.settings.external import is_external
from pipeline.settings.profile import load_grid


def missing_cells(profile: str, scores: pd.DataFrame) -> dict[str, list[str]]:
    """By method, the subjects that it makes adapters of and that were not run, if there are any.

    A cell that failed was run.
    """
    from pipeline.methods import load_method  # imports torch

    grid = load_grid(profile)
    there = {*zip(scores["method"], scores["subject"]), *failed_cells(profile)}
    asked = {ORACLE: list(grid.concepts)}
    for method in grid.methods:
        how = None if is_external(method) else load_method(method, grid)
        asked[method] = [*grid.concepts] if how is None or how.single else []
        asked[method] += [*grid.composed()] if how is None or how.composition else []
    missing = {m: [s for s in subjects if (m, s) not in there] for m, subjects in asked.items()}
    return {method: subjects for method, subjects in missing.items() if subjects}
