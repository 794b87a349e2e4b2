"""The start page: the default profile's report leads to all others there are, and they to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.common.places import DEFAULT_PROFILE, folder_of
from pipeline.settings.profile import Params, load_params, profile_names

HEADLINE = "figures/scatter_single.svg"


class Neighbour(NamedTuple):
    """Another profile that has a report."""

    profile: str
    about: str  # its protocol, in words
    page: str  # from the folder of the report that leads there
    plot: str  # empty if it has none


def neighbours(params: Params) -> list[Neighbour]:
    """The reports that a profile's leads to, as they are committed or were made here.

    The default's leads to those of all others, and theirs to the default's.
    """
    default = params.profile == DEFAULT_PROFILE
    found = []
    for name in profile_names()[1:] if default else [DEFAULT_PROFILE]:
        reports = folder_of(name) / "reports"
        if (reports / "index.html").is_file():
            folder = Path(os.path.relpath(reports, params.reports())).as_posix()
            plot = f"{folder}/{HEADLINE}" if (reports / HEADLINE).is_file() else ""
            about = load_params(name).protocol.about
            found.append(Neighbour(name, about, f"{folder}/index.html", plot))
    return found
