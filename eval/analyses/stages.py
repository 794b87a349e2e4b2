"""The analyses as stages: which there are, which of them a profile runs, and running one.

They are found by their names, so that no analysis depends on the code of the others, and nothing
heavy is imported to find out whether parameters are right.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from eval.analyses.analysis import Analysis
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.settings.profile import Params, profile_folder

# In the order of a report; each is a folder here.
NAMES = (
    "weights",
    "spectra",
    "compression",
    "scales",
    "drift",
    "steps",
    "tuning",
    "sampler",
    "attention",
    "editing",
    "regions",
    "truth",
    "agreement",
    "cost",
)


def kind_of(name: str) -> type[Analysis]:
    """What an analysis says of itself."""
    found: type[Analysis] = importlib.import_module(f"eval.analyses.{name}").Parameters
    return found


def analyses_of(params: Params) -> dict[str, Analysis]:
    """The analyses that a profile runs, by name.

    Raises:
        BenchError: there is none of a name, or a parameter is wrong; names the file and the field.
    """
    for name in params.analyses:
        if name not in NAMES:
            path = profile_folder(params.profile) / "params.yaml"
            raise BenchError(f"{path}: analyses.{name}: unknown: choose from {', '.join(NAMES)}")
    return {
        name: kind_of(name).of(params) for name in NAMES if params.analyses.get(name) is not None
    }


def run(name: str, profile: str = DEFAULT_PROFILE) -> None:
    """Runs an analysis.

    Raises:
        BenchError: there is none of that name, the profile does not run it, or what it needs is
            missing.
    """
    if name not in NAMES:
        raise BenchError(f"analysis {name!r} is unknown: choose one of {', '.join(NAMES)}")
    module = importlib.import_module(f"eval.analyses.{name}.stage")
    folder: Path = getattr(module, f"analyse_{name}")(profile)
    print(f"{name} -> {folder}")
