"""`bench pipelines`: the dvc.yaml files of all profiles, from their parameters and grids.

DVC's templates can neither choose a profile nor take a list of dependencies, so each profile has
files of its own, which differ in their paths and in what their methods need. The default profile
is the DVC project in the root; every other one is a project in its own folder, so that DVC sees
one profile at a time.

There the code is not below the project, and DVC would take the compiled files in a folder of
sources for dependencies. So a stage writes a digest of each room of code, on which the others
depend: lists of files in each of a thousand stages would take DVC longer to write than many stages
run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.analyses.analysis import Analysis
from eval.analyses.stages import analyses_of
from eval.freshness import files_of
from eval.papers.claims import ANALYSED
from eval.report.evidence import trials
from eval.results import KINDS, subjects_of
from pipeline.bench.checks import check_profile
from pipeline.bench.closure import ROOT, in_project, rooms
from pipeline.bench.digest import digest_path
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.common.places import DEFAULT_PROFILE, folder_of
from pipeline.common.schema import read_yaml
from pipeline.concepts.concept import DATASETS, styles_of
from pipeline.corpus.gallery import stand_ins
from pipeline.methods import Needs, check_methods, load_method, method_files, training_seeds
from pipeline.settings.external import ABOUT, external_folder, is_external
from pipeline.settings.profile import (
    FIRST_SEED,
    TRAIN_KEYS,
    Grid,
    Params,
    is_hub_id,
    load_grid,
    load_params,
    profile_folder,
    profile_names,
    task_name,
)
from pipeline.settings.protocol import protocol_path

TEMPLATES = Path(__file__).parent
MARK = "by `bench pipelines`"  # in the first lines of each file that is written here
# What makes a folder a DVC project, beside its pipeline. Users add remotes to the first.
PROJECT = {
    ".dvc/config": """\
[core]
    analytics = false
    check_update = false
[cache]
    type = "reflink,hardlink,copy"
""",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": """\
# What a killed stage may leave behind: files under their temporary names.
*.part
# What editors and file managers leave behind.
.*.sw?
*~
.DS_Store
._*
.ipynb_checkpoints/
""",
}


@dataclass(frozen=True)
class Kind:
    """The stages of one kind of subject in a method's file, for one seed of its trainings."""

    params: Params
    suffix: str  # of the stages' names
    subjects: str  # the grid's group of them
    concepts: tuple[str, ...]  # what stands for their concepts in a template
    needs: Needs
    random: bool  # whether the seed matters
    seed: int | None  # unless it is the main one

    @property
    def single(self) -> bool:
        """Whether the subjects are concepts."""
        return self.subjects in ("concepts", "sequence_concepts")

    @property
    def option(self) -> str:
        """What says in commands which seed it is."""
        return "" if self.seed is None else f" --seed {self.seed}"

    @property
    def cell(self) -> str:
        """The folder of a cell in runs/<profile>/."""
        return self._folder("${method}", "${key}")

    @property
    def record(self) -> str:
        """The folder of its record in that of the profile."""
        folder = self.params.record("${method}", "${key}", self.seed)
        return folder.relative_to(folder_of(self.params.profile)).as_posix()

    def _folder(self, method: str, subject: str) -> str:
        folder = self.params.cell(method, subject, self.seed)
        return folder.relative_to(self.params.runs()).as_posix()

    @property
    def train_deps(self) -> list[str]:
        """What training depends on in runs/<profile>/."""
        return [
            *(f"{self._folder(m, c)}/adapter.safetensors" for m, c in self.needs.adapters),
            *of_runs(self.needs),
        ]

    @property
    def train_keys(self) -> list[str]:
        """What training depends on in the section `train` of the parameters.

        Another seed than the main one is in the command.
        """
        return [*TRAIN_KEYS, *([FIRST_SEED] if self.seed is None else [])]


@dataclass(frozen=True)
class TaskStages:
    """The stages of a task of a sequence in a method's file; names are written out in it."""

    number: int
    subject: str
    concepts: tuple[str, ...]
    train_deps: list[str]  # in runs/<profile>/


@dataclass(frozen=True)
class SequenceStages:
    """The stages of a sequence in a method's file; all are of the main seed."""

    name: str
    concepts: tuple[str, ...]
    tasks: list[TaskStages]


def of_runs(needs: Needs) -> list[str]:
    """What training depends on in runs/<profile>/, adapters left out."""
    return [
        *(f"shards/{concept}.tar" for concept in needs.shards),
        *(f"generated/{concept}.tar" for concept in needs.generated),
        *(["captions.json"] if needs.captions else []),
    ]


def write_pipelines(profiles: list[str] | None = None) -> list[Path]:
    """Writes the dvc.yaml files of the profiles, all if not given, and makes each a DVC project.

    The dvc.yaml of a method that is no longer in the grid is removed, unless somebody else wrote
    it. Its dvc.lock stays: if the method comes back, DVC knows what was made.

    Returns:
        The files that changed.
    """
    changed = []
    texts = {profile: pipelines(profile) for profile in profiles or profile_names()}
    for path in (path for files in texts.values() for path in files):
        if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
            raise BenchError(
                f"{path}: `bench pipelines` did not write it and would replace it: move it away"
            )
    for profile, files in texts.items():
        folder = profile_folder(profile)
        changed += [path for path, text in files.items() if _write(path, text)]
        for name, text in PROJECT.items() if profile != DEFAULT_PROFILE else ():
            if not (folder / name).exists():
                changed += [folder / name] if _write(folder / name, text) else []
        methods = load_grid(profile).all_methods()
        for path in sorted(folder.glob("cells/*/dvc.yaml")):
            if path.parent.name not in methods:
                changed += [path] if _remove(path) else []
    print(f"pipelines: {len(changed)} files changed{''.join(f'{chr(10)}  {p}' for p in changed)}")
    return sorted(changed)


def _write(path: Path, text: str) -> bool:
    """Whether the file had to be written."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")
    return True


def _remove(path: Path) -> bool:
    """Removes the dvc.yaml of a method that is not in the grid; whether it could."""
    method = path.parent.name
    if MARK not in path.read_text(encoding="utf-8"):
        print(
            f"{path}: stays, as `bench pipelines` did not write it; {method!r} is not in the grid"
        )
        return False
    path.unlink()
    lock = path.with_name("dvc.lock")
    kept = f"; {lock} stays, so that its cells are known if it comes back" if lock.exists() else ""
    print(f"{path}: removed, as {method!r} is not in the grid{kept}")
    return True


def pipelines(profile: str) -> dict[Path, str]:
    """The text of each dvc.yaml of a profile.

    Raises:
        BenchError: a method is unknown, or made of adapters of one that is not in the grid, or is
            trained with fewer seeds, or a concept has its prompts where stages see no change of
            them; or as `check_profile`.
    """
    params, grid, folder = load_params(profile), load_grid(profile), profile_folder(profile)
    check_profile(params, grid)
    _check_prompts(grid)
    check_methods(grid, profile)
    default, analyses, styles = profile == DEFAULT_PROFILE, analyses_of(params), styles_of(grid)

    def here(path: str | Path) -> str:
        """A path that is relative to the root, as the profile's DVC project sees it."""
        return Path(path).as_posix() if Path(path).is_absolute() else os.path.relpath(path, folder)

    def local(path: str | None) -> str | None:
        """The path if it is one that DVC can watch, None for the name of a download."""
        return None if path is None or is_hub_id(path) else here(path)

    def weights(path: str | None) -> str | None:
        """The same of what is never a download, whether or not the file is there yet."""
        return None if path is None else here(path)

    def digest_of(room: str) -> str:
        return here(digest_path(params, room))

    read: set[str] = set()  # the rooms whose digests stages depend on

    def code(*modules: str, methods: Iterable[str] = ()) -> list[str]:
        """What a stage depends on that runs these modules and methods."""
        files = dict.fromkeys(file for method in methods for file in method_files(method, grid))
        found = rooms(modules, files)
        folders = set() if default else {room for room in found if (ROOT / room).is_dir()}
        read.update(folders)
        return [
            *(digest_of(room) if room in folders else here(room) for room in found),
            *(here(_from_here(file)) for file in files if not in_project(file)),
        ]

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    scoring = params.protocol.score
    environment.globals |= {
        "bench": "bench" if default else f"cd {here('.')} && bench",  # it runs in the root
        "up": "" if default else f"{here('.')}/",
        "runs": here(params.runs()),
        "code": code,
        "base": local(params.base.path),
        "scorer": local(scoring.clip),
        "protocol": here(protocol_path(params.protocol.name)),
        "main_seed": FIRST_SEED,
        "train_keys": [*TRAIN_KEYS, FIRST_SEED],
        "inception": weights(params.score.inception) if _needs_inception(params) else None,
        "default": default,
        # Asked for at the end of the profile's file, which comes last: all are known by then.
        "rooms_read": lambda: sorted(read),
        "files_of": partial(files_of, root=ROOT),
        "digest_of": digest_of,
        "galleries": scoring.galleries,
        "dino": weights(params.score.dino) if "dino_image_alignment" in scoring.metrics else None,
    }
    kinds = {name: _kinds(name, params, grid) for name in grid.methods}
    learned = {name: _sequences(name, params, grid) for name in grid.all_methods()}
    for name in grid.all_methods():
        made_of = {other for kind in kinds.get(name, []) for other, _ in kind.needs.adapters}
        made_of |= {other for sequence in learned[name] for other in sequence[1]}
        for other in sorted(made_of.difference(grid.methods)):
            raise BenchError(
                f"{folder / 'grid.yaml'}: methods: {name} is made of adapters of {other}: "
                f"add {other}"
            )
    texts = {
        folder / "cells" / name / "dvc.yaml": environment.get_template("cells.yaml.jinja").render(
            method=name,
            external=here(external_folder(name)) if is_external(name) else None,
            groups=",".join(_groups(grid)),
            kinds=kinds.get(name, []),
            sequences=[stages for stages, _ in learned[name]],
        )
        for name in grid.all_methods()
    }
    contents = environment.get_template("profile.yaml.jinja").render(
        clip=local(params.retrieve.clip),
        world=params.world is not None,
        url_table=here(params.corpus.url_table),
        triples=bool(grid.triples),
        kinds={k: title for k, title in KINDS.items() if subjects_of(grid, k, styles)},
        kid="kid" in scoring.metrics,
        concepts=list(grid.concepts),
        concept_groups={"concepts": "", "sequence_concepts": "_sequence_concept"}
        if grid.sequence_concepts
        else {"concepts": ""},
        stand_ins=stand_ins(grid),
        # Files, as DVC sees nothing in the folder of another project.
        trials=[
            here(path / file)
            for name, path in trials(params).items()
            if name != profile
            for file in ("prompts.csv", "trials.csv")
        ],
        credits=[here(external_folder(m) / ABOUT) for m in filter(is_external, grid.methods)],
        analyses=[
            {
                "name": name,
                "module": f"eval.analyses.{name}",
                "desc": analysis.desc,
                "deps": [
                    *code(
                        f"eval.analyses.{name}.stage",
                        "eval.analyses.stages",
                        methods=analysis.uses(),
                    ),
                    *map(here, analysis.deps(params, grid)),
                ],
                "params": analysis.keys(),
                "protocol": analysis.protocol,
            }
            for name, analysis in analyses.items()
        ],
        claimed=ANALYSED,
        generated=_generated(params, grid, kinds, analyses),
    )
    return {folder / "dvc.yaml": contents, **texts}


def _check_prompts(grid: Grid) -> None:
    """Finds out whether concepts have their prompts where stages look for changes of them.

    Raises:
        BenchError: one has them elsewhere.
    """
    for name in grid.all_concepts():
        path = DATASETS / "concepts" / name / "concept.yaml"
        content = read_yaml(path) if path.is_file() else None
        said = content.get("prompts") if isinstance(content, dict) else None
        if said not in (None, own := f"prompts/{name}.txt"):
            raise BenchError(
                f"{path}: prompts: {said}: stages would see no change of that file: copy it to "
                f"{DATASETS / own}, and write {own}"
            )


def _from_here(file: Path) -> Path:
    """A file as it is called in the root, or its absolute path if it lies elsewhere."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _groups(grid: Grid) -> list[str]:
    return [
        "concepts",
        "compositions",
        *(["triples"] if grid.triples else []),
        *(["sequence_concepts"] if grid.sequence_concepts else []),
    ]


def _generated(
    params: Params,
    grid: Grid,
    kinds: Mapping[str, list[Kind]],
    analyses: Mapping[str, Analysis],
) -> set[str]:
    """The groups of concepts of which the base model's own images are needed."""
    needing = {
        "sequence_concepts" if kind.subjects == "sequence_concepts" else "concepts"
        for found in kinds.values()
        for kind in found
        if kind.needs.generated
    }
    read = any("/generated/" in dep for a in analyses.values() for dep in a.deps(params, grid))
    return needing | ({"concepts"} if read else set())


def _learning_alone(grid: Grid) -> set[str]:
    """The methods that learn the concepts of sequences alone by themselves, too.

    Those of whose adapters a sequence is made, and the pretrained model to compare with.
    """
    found = {"pretrained"}
    for about in grid.sequences.values():
        for name in about.methods if grid.sequence_concepts else ():
            how = None if is_external(name) else load_method(name, grid).sequence
            if how is not None:
                found |= {other for other, _ in how.needs(about.concepts).adapters}
    return found


def _kinds(name: str, params: Params, grid: Grid) -> list[Kind]:
    """The kinds of subjects that the method makes adapters of, or may have images of."""
    method = None if is_external(name) else load_method(name, grid)
    items = ("${item.first}", "${item.second}", "${item.third}")
    found = []
    for group, suffix, concepts in (
        ("concepts", "", ("${key}",)),
        ("compositions", "_composition", items[:2]),
        ("triples", "_triple", items),
        ("sequence_concepts", "_sequence_concept", ("${key}",)),
    ):
        of_sequences = group == "sequence_concepts"
        if group not in _groups(grid) or (of_sequences and name not in _learning_alone(grid)):
            continue
        how = method.of(len(concepts)) if method else None
        needs = how.needs(concepts) if how else Needs()
        for seed in training_seeds(name, params, grid, len(concepts)):
            further = seed not in (None, params.train.seeds[0])
            if further and of_sequences:  # which are learned with the main seed alone
                continue
            found.append(
                Kind(
                    params,
                    f"{suffix}_seed_{seed}" if further else suffix,
                    group,
                    concepts,
                    needs,
                    seed is not None,
                    seed if further else None,
                )
            )
    return found


def _sequences(name: str, params: Params, grid: Grid) -> list[tuple[SequenceStages, set[str]]]:
    """The stages of each sequence that the method learns, and the methods it is made of.

    Raises:
        BenchError: the method learns no sequences, or the protocol or the base has none.
    """
    found = []
    for sequence, about in grid.sequences.items():
        if name not in about.methods:
            continue
        where = f"{profile_folder(params.profile) / 'grid.yaml'}: sequences.{sequence}.methods:"
        how = None if is_external(name) else load_method(name, grid).sequence
        if how is None:
            raise BenchError(f"{where} {name} learns no sequences: remove it")
        params.task_sampling()
        tasks, made_of = [], set[str]()
        for number, (task, concepts) in enumerate(grid.tasks(sequence).items(), 1):
            needs = how.needs(concepts)
            deps = [f"cells/{m}/{c}/adapter.safetensors" for m, c in needs.adapters]
            deps += of_runs(needs)
            if needs.previous:
                before = task_name(sequence, number - 1)
                deps.insert(0, f"cells/{name}/{before}/adapter.safetensors")
                if number > (ids := len(params.base.modifier_token_ids)):
                    raise BenchError(
                        f"{where} {name} needs a rare token for each task: params.yaml: "
                        f"base.modifier_token_ids has {ids}, give {len(about.concepts)}"
                    )
            tasks.append(TaskStages(number, task, concepts, deps))
            made_of |= {other for other, _ in needs.adapters}
        found.append((SequenceStages(sequence, tuple(about.concepts), tasks), made_of))
    return found


def _needs_inception(params: Params) -> bool:
    scoring = params.protocol.score
    return scoring.kid_features == "inception" and not {"kid", "fid"}.isdisjoint(scoring.metrics)
