"""`bench pipelines`: the dvc.yaml files of all profiles, from their parameters and grids.

DVC's templates can neither choose a profile nor take a list of dependencies, so each profile has
files of its own, which differ in their paths and in what their methods need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.analyses.stages import STAGES, chosen, deps, settings
from pipeline.files import atomic
from pipeline.methods import Continued, How, Merged, load_method, training_of
from pipeline.params import (
    DEFAULT_PROFILE,
    Grid,
    Params,
    is_hub_id,
    load_grid,
    load_params,
    profile_folder,
    profile_names,
)
from pipeline.protocols import protocol_path

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """The stages of one kind of subject in a method's file."""

    suffix: str  # of the stages' names
    subjects: str  # the grid's group of them
    concepts: tuple[str, ...]  # what stands for their concepts in a template
    sources: tuple[str, ...]  # files in pipeline/ that only some methods need
    train_deps: tuple[str, ...]  # in runs/<profile>/

    @property
    def single(self) -> bool:
        """Whether the subjects are concepts."""
        return self.subjects == "concepts"


def write_pipelines(profiles: list[str] | None = None) -> list[Path]:
    """Writes the dvc.yaml files of the profiles, all if not given, and removes stale ones.

    Returns:
        The files that changed.
    """
    changed = []
    for profile in profiles or profile_names():
        folder = profile_folder(profile)
        wanted = pipelines(profile)
        for path in {*wanted, *folder.glob("cells/*/dvc.yaml")}:
            text = wanted.get(path)
            if text is None:
                path.unlink()
                path.with_name("dvc.lock").unlink(missing_ok=True)
            elif not path.is_file() or path.read_text(encoding="utf-8") != text:
                with atomic(path) as part:
                    part.write_text(text, encoding="utf-8")
            else:
                continue
            changed.append(path)
    print(f"pipelines: {len(changed)} files changed{''.join(f'{chr(10)}  {p}' for p in changed)}")
    return sorted(changed)


def pipelines(profile: str) -> dict[Path, str]:
    """The text of each dvc.yaml of a profile."""
    params, grid, folder = load_params(profile), load_grid(profile), profile_folder(profile)
    default = profile == DEFAULT_PROFILE
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    methods = {name: load_method(name) for name in grid.methods}
    shared = {
        "params": (folder / "params.yaml").as_posix(),
        "base": _local(params.base.path),
        "scorer": _local(params.protocol.score.clip),
        "protocol": protocol_path(params.protocol.name).as_posix(),
        "inception": params.score.inception if _needs_inception(params) else None,
        "dino": params.score.dino
        if "dino_image_alignment" in params.protocol.score.metrics
        else None,
    }
    hows = [how for m in methods.values() for how in (m.single, m.composition)]
    texts = {
        folder / "dvc.yaml": environment.get_template("profile.yaml.jinja").render(
            **shared,
            clip=_local(params.retrieve.clip),
            grid=(folder / "grid.yaml").as_posix(),
            root="." if default else "../..",
            reports="reports" if default else f"reports/{profile}",
            world=params.world is not None,
            url_table=params.corpus.url_table,
            triples=bool(grid.triples),
            composed=bool(grid.composed()),
            kid="kid" in params.protocol.score.metrics,
            concepts=list(grid.concepts),
            analyses=[
                {
                    "name": name,
                    "desc": STAGES[name].desc,
                    "deps": deps(name, params, grid),
                    "params": settings(name, params),
                    "protocol": STAGES[name].protocol,
                }
                for name in chosen(params)
            ],
            generated=any(_needs_generated(how) for how in hows)
            or any(
                "/generated/" in dep for name in chosen(params) for dep in deps(name, params, grid)
            ),
        )
    }
    for name in methods:
        texts[folder / "cells" / name / "dvc.yaml"] = environment.get_template(
            "cells.yaml.jinja"
        ).render(
            **shared,
            method=name,
            root="../.." if default else "../../../..",
            groups=",".join(_groups(grid)),
            kinds=_kinds(name, grid, params),
        )
    return texts


def _groups(grid: Grid) -> list[str]:
    return ["concepts", "compositions", *(["triples"] if grid.triples else [])]


def _kinds(name: str, grid: Grid, params: Params) -> list[Kind]:
    """The kinds of subjects that the method makes adapters of."""
    method = load_method(name)
    items = ("${item.first}", "${item.second}", "${item.third}")
    found = []
    for group, how, suffix, concepts in (
        ("concepts", method.single, "", ("${key}",)),
        ("compositions", method.composition, "_composition", items[:2]),
        ("triples", method.composition, "_triple", items),
    ):
        if how is None or group not in _groups(grid):
            continue
        deps: list[str] = []
        trained = training_of(how)
        if isinstance(how, (Merged, Continued)):
            used = concepts if isinstance(how, Merged) else concepts[:1]
            deps += [f"cells/{how.of}/{c}/adapter.safetensors" for c in used]
        if trained:
            deps += [f"shards/{c}.tar" for c in concepts]
        if _needs_generated(how):
            deps += [f"generated/{c}.tar" for c in concepts]
        if isinstance(how, Merged) and how.rule == "constrained":
            deps.append("index")
        sources = ["merging.py"] if isinstance(how, Merged) else []
        sources += ["lowrank.py"] if trained and trained.low_rank else []
        code = (TEMPLATES / "methods" / f"{name}.py").read_text(encoding="utf-8")
        others = re.findall(r"^from pipeline\.methods\.(\w+) import", code, re.MULTILINE)
        sources += [f"methods/{other}.py" for other in others]
        found.append(Kind(suffix, group, concepts, tuple(sources), tuple(deps)))
    return found


def _needs_generated(how: How | None) -> bool:
    trained = training_of(how)
    return trained is not None and trained.regularization == "generated"


def _needs_inception(params: Params) -> bool:
    scoring = params.protocol.score
    return scoring.kid_features == "inception" and not {"kid", "fid"}.isdisjoint(scoring.metrics)


def _local(path: str) -> str | None:
    """The path if it is one that DVC can watch, None for the name of a download."""
    return None if is_hub_id(path) else path
