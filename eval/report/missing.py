"""Which cells of a grid were not run."""

from __future__ import annotations

from collections.abc import Container

from eval.scores.file import ORACLE, SCORES
from pipeline.settings.profile import load_grid, load_params


def missing_cells(profile: str, subjects: Container[str] | None = None) -> dict[str, list[str]]:
    """By method, the subjects that it makes adapters of and that were not run, if there are any.

    A cell that failed was run. Further trainings of a subject are named with their seeds. If all
    subjects are asked about, the sequences that a method learns are, too.

    Args:
        profile: the name of a profile.
        subjects: those that are asked about; all if not given.
    """
    from pipeline.methods import training_seeds

    params, grid = load_params(profile), load_grid(profile)
    missing: dict[str, list[str]] = {}
    for method in (ORACLE, *grid.methods):
        for subject in grid.concepts if method == ORACLE else grid.subjects():
            concepts = len(grid.concepts_of(subject))
            seeds = [None] if method == ORACLE else training_seeds(method, params, grid, concepts)
            for seed in seeds if subjects is None or subject in subjects else ():
                record, main = (params.record(method, subject, s) for s in (seed, None))
                if not (record / SCORES).is_file():
                    name = subject if record == main else f"{subject} (seed {seed})"
                    missing.setdefault(method, []).append(name)
    for name, sequence in grid.sequences.items():
        for method in sequence.methods if subjects is None else ():
            if not (params.record(method, name) / SCORES).is_file():
                missing.setdefault(method, []).append(name)
    return missing
