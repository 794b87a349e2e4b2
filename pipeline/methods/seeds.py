"""How often a method is trained on each subject: once for each of its seeds."""

from __future__ import annotations

from pipeline.common.errors import BenchError
from pipeline.methods.registry import load_method
from pipeline.settings.external import is_external
from pipeline.settings.profile import Grid, Params, profile_folder


def training_seeds(method: str, params: Params, grid: Grid, concepts: int) -> list[int | None]:
    """The seeds of a method's cells of one subject of so many concepts, the main one first.

    A method that is made of adapters of others is made of those of the same seed.

    Returns:
        [None] if nothing in the method is random; nothing if it makes no adapters of such subjects.

    Raises:
        BenchError: it is unknown, or made of adapters that are trained with fewer seeds.
    """
    if is_external(method):
        return [None]
    how = load_method(method, grid).of(concepts)
    if how is None or not how.random:
        return [] if how is None else [None]
    seeds = params.seeds(method)
    for other, _ in how.needs([""] * concepts).adapters:
        count = len(training_seeds(other, params, grid, 1))
        if count < len(seeds):
            raise BenchError(
                f"{profile_folder(params.profile) / 'params.yaml'}: methods.{method}.seeds: it is "
                f"made of adapters of {other}, which is trained with {count} of the "
                f"{len(params.train.seeds)} seeds: write {count}"
            )
    return [*seeds]
