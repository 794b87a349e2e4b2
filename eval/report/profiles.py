"""The start page: the default profile's report leads to those of all others that have results."""

from __future__ import annotations

import os
from typing import NamedTuple

from pipeline.settings.profile import Params, load_params, profile_names

HEADLINE = "figures/scatter_single.svg"


class Neighbour(NamedTuple):
    """Another profile that has a report."""

    profile: str
    about: str  # its protocol, in words
    page: str  # from the folder of the report that leads there
    plot: str  # empty if it has none


def neighbours(params: Params) -> list[Neighbour]:
    """The reports of other profiles that are there, as committed or made here."""
    found = []
    for name in profile_names():
        if name == params.profile:
            continue
        other = load_params(name)
        folder = os.path.relpath(other.reports(), params.reports())
        if (other.reports() / "index.html").is_file():
            plot = f"{folder}/{HEADLINE}" if (other.reports() / HEADLINE).is_file() else ""
            found.append(Neighbour(name, other.protocol.about, f"{folder}/index.html", plot))
    return found
