"""What a profile's files may not say beyond what their types allow, checked before any command.

Names stand in the commands of stages, and DVC sees no change where a composition swaps its concepts
under its old name.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.common.errors import BenchError
from pipeline.settings.profile import NAME, Grid, Params, profile_folder


def check_profile(params: Params, grid: Grid) -> None:
    """Finds out whether stages can be made of a profile.

    Raises:
        BenchError: a profile's or a composition's name that cannot be one, a query without its one
            place for the class noun, or a drawn world beside a table of one's own.
    """
    folder = profile_folder(params.profile)
    if not re.fullmatch(NAME, params.profile):
        raise BenchError(
            f"{folder}: a profile's name needs a letter first, then letters, digits, _ or -"
        )
    for group, composed in (("compositions", grid.compositions), ("triples", grid.triples)):
        for name, composition in composed.items():
            if name != (right := "+".join(composition.concepts())):
                raise BenchError(
                    f"{folder / 'grid.yaml'}: {group}.{name}: is of {right}, in this order: name "
                    "it so, and its file of prompts"
                )
    settings, query = folder / "params.yaml", params.retrieve.query
    if not query.count("{}") == query.count("{") == query.count("}") == 1:
        raise BenchError(
            f"{settings}: retrieve.query: {query!r} needs {{}} once, for the class noun"
        )
    written = params.runs() / "world" / "urls.parquet"
    if params.world and Path(params.corpus.url_table) != written:
        raise BenchError(
            f"{settings}: corpus.url_table: stage `table` writes {written}: name that, or remove "
            "the section `world` to use a table of your own"
        )
