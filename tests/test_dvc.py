"""The pipeline's files: they agree with each other, and a change re-runs what it touches alone.

Stages run here with a stand-in for `bench`, which writes something new to each output at once. Only
a few tests run any: what `dvc repro` would run is what DVC says has changed, and all that is below
it, as `test_experiment_runs_what_its_parameter_touches` shows. The stand-in fails as `bench` does
where `fails.txt` names the beginning of the command.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import chdir, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from dvc.cli import main
from dvc.repo import Repo

from pipeline.adding.add import add_concept, new_stages
from pipeline.bench.pipelines import pipelines, write_pipelines
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.methods import load_method, method_names
from pipeline.settings.profile import load_grid, load_params, profile_folder, profile_names

ROOT = Path(__file__).parents[1]
PROFILES = profile_names()
LAST = {"study_build", "study_analyse", "claims", "report"}  # they read all cells
LOOK = {"analyse_regions"}  # reads a cell of Custom Diffusion, and samples

BENCH = """\
#!{python} -S
import json, os, pathlib, sys
notes = pathlib.Path(".git")
(notes / "ran.txt").open("a").write(os.environ["DVC_STAGE"] + "\\n")
outs = json.loads((notes / "outs.json").read_text())
number = lambda: int.from_bytes(os.urandom(4), "big") / 2**32
command, fails = " ".join(sys.argv[1:]), notes / "fails.txt"
if fails.exists() and command.startswith(fails.read_text()) and "--record-failure" not in command:
    sys.exit(2)
for out in outs.get("bench " + command, []):
    path, text = pathlib.Path(out), os.urandom(16).hex()
    if path.name == "summary.json":
        text = json.dumps(dict(dreambooth=dict(text=number()), pretrained=dict(text=0.5)))
    elif path.name == "tables":
        kinds = [a + b for a in ("single_", "compositions_") for b in ("text", "image")]
        names = ["method", *[kind + "_alignment" for kind in kinds], "single_kid"]
        path, text = path / "comparison.csv", ",".join(names) + "\\npretrained,1,2,3,4,5\\n"
    elif path.name == "figures":
        path, text = path / "figure.svg", "<svg/>"
    elif not path.suffix:
        path = path / "file"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
"""


@cache
def stages(profile: str) -> nx.DiGraph:
    """All that DVC sees in the folder of a profile; an edge leads to what a stage depends on."""
    with closing(Repo(str(ROOT / profile_folder(profile)))) as repo:
        return repo.index.graph


def names_of(found: Iterable[Any]) -> set[str]:
    """The addresses of stages, from the folder of their project."""
    return {f"{stage.path_in_repo}:{stage.name}".removeprefix("dvc.yaml:") for stage in found}


@dataclass(frozen=True)
class Project:
    """A copy of the pipeline's files, with empty files in place of code and models."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "profiles/smoke"

    def prepare(self) -> None:
        """Writes everything that stages depend on and no stage makes, and notes what they make."""
        with closing(Repo(str(self.folder))) as repo:
            found = repo.index.stages
            made = {out.fs_path for stage in found for out in stage.outs}
            outs = {}
            for stage in found:
                last = stage.cmd[-1] if isinstance(stage.cmd, list) else stage.cmd
                paths = [os.path.relpath(out.fs_path, self.root) for out in stage.outs]
                outs[last.removeprefix("cd ../.. && ")] = paths
            deps = {Path(dep.fs_path) for stage in found for dep in stage.deps}
        (self.root / ".git/outs.json").write_text(json.dumps(outs))
        for path in deps:
            if path.exists() or str(path) in made or path.is_relative_to(self.folder / "runs"):
                continue
            path = path if path.suffix else path / "file"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("anything")

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=A Tester", "-c", "user.email=tester@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=self.root, check=True)

    def commit(self) -> None:
        """Commits all, and the report, which git ignores in this profile alone."""
        self.git("add", "--all")
        self.git("add", "--force", "profiles/smoke/reports")
        self.git("commit", "-qm", "a state")

    def dvc(self, *arguments: str) -> set[str]:
        """Runs DVC, which has to succeed and warn of nothing; returns the stages that ran."""
        log, warnings = self.root / ".git/ran.txt", Collected(logging.WARNING)
        log.unlink(missing_ok=True)
        logging.getLogger("dvc").addHandler(warnings)
        try:
            with chdir(self.folder):
                assert main([*arguments]) == 0
        finally:
            logging.getLogger("dvc").removeHandler(warnings)
        assert not warnings.messages
        return set(log.read_text().split()) if log.exists() else set()

    def stale(self) -> set[str]:
        """What DVC says has changed, and all that depends on it."""
        with closing(Repo(str(self.folder))) as repo:
            changed, graph = repo.status(), repo.index.graph
            found = {stage for stage in graph if stage.addressing in changed}
            assert len(found) == len(changed)
            return names_of(found.union(*(nx.ancestors(graph, s) for s in found)))


class Collected(logging.Handler):
    """What was logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stages find the stand-in for `bench`."""
    path = tmp_path_factory.mktemp("bin") / "bench"
    path.write_text(BENCH.format(python=sys.executable))
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def finished(stand_in: None, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Profile smoke, run once."""
    root = tmp_path_factory.mktemp("pipeline") / "root"
    names = ("params.yaml", "grid.yaml", "profiles", "datasets", ".dvc/config", ".dvc/.gitignore")
    made = shutil.ignore_patterns(
        "dvc.lock", "runs", "reports", "tmp", "cache", "held_out", "lookalikes"
    )
    for name in (*names, ".dvcignore", ".gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=made)
        else:
            shutil.copy(ROOT / name, root / name)
    project = Project(root)
    project.git("init", "-q")
    with chdir(root):
        write_pipelines(["smoke"])
    project.prepare()
    assert project.dvc("repro", "-q") == stages_of("smoke")
    project.commit()
    return project


@pytest.fixture
def project(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """A copy of the finished one, as the current directory."""
    shutil.copytree(finished.root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    yield Project(tmp_path / "copy")


@pytest.fixture(scope="module")
def trained_twice(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished one with a second seed, which ran the stages of that seed alone."""
    project = Project(tmp_path_factory.mktemp("seeds") / "copy")
    shutil.copytree(finished.root, project.root)
    with chdir(project.root):
        before = stages_of("smoke")
        new = seeded(project, "[42, 43]") - before
        assert len(new) == 3 * 3 * 3 + 3 and all("_seed_43@" in name for name in new)
        assert project.dvc("repro", "-q") == new | LAST
    return project


@pytest.fixture
def with_seeds(
    trained_twice: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """A copy of that one, as the current directory."""
    shutil.copytree(trained_twice.root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    yield Project(tmp_path / "copy")


def stages_of(profile: str) -> set[str]:
    """What the pipeline of a profile should consist of, from its grid alone."""
    grid, params = load_grid(profile), load_params(profile)
    names = {"index", "captions", *LAST}
    names |= {"table"} if params.world else set()
    names |= {f"analyse_{name}" for name in params.analyses}
    hows = [how for method in grid.methods if (how := load_method(method).single)]
    training = {"steps", "tuning"} & set(params.analyses)
    generated = any(how.needs(["a"]).generated for how in hows) or bool(training)
    fed = ["retrieve", "fetch", "shard", "oracle", *(["generate"] if generated else [])]
    for concept in grid.concepts:
        names |= {f"{stage}@{concept}" for stage in fed}
        names |= {f"gallery@{concept}"} if params.protocol.score.galleries else set()
    fed = ["retrieve", "fetch", "shard", *(["gallery"] if params.protocol.score.galleries else [])]
    names |= {f"{s}_sequence_concept@{c}" for s in fed for c in grid.sequence_concepts}
    # Of concepts that sequences alone have, there is what those are made of and compared with.
    made_of = {"pretrained"}
    for about in grid.sequences.values():
        for how in (load_method(name).sequence for name in about.methods):
            made_of |= {other for other, _ in how.needs(about.concepts).adapters}
    names |= {
        f"cells/{method}/dvc.yaml:{step}_sequence_concept@{concept}"
        for method in made_of
        for step in ("train", "sample", "score")
        for concept in grid.sequence_concepts
    }
    groups = (
        ("", grid.concepts, "single"),
        ("_composition", grid.compositions, "composition"),
        ("_triple", grid.triples, "composition"),
    )
    for method in grid.methods:
        for suffix, subjects, kind in groups:
            if getattr(load_method(method), kind):
                cells = f"cells/{method}/dvc.yaml"
                further = params.seeds(method)[1:] if method != "pretrained" else []
                for end in (suffix, *(f"{suffix}_seed_{seed}" for seed in further)):
                    for step in ("train", "sample", "score"):
                        names |= {f"{cells}:{step}{end}@{subject}" for subject in subjects}
    for sequence, about in grid.sequences.items():
        for method in about.methods:
            names |= learning(method, sequence, range(1, len(about.concepts) + 1))
    return names | (set() if profile == DEFAULT_PROFILE else {"code"})


def learning(method: str, sequence: str, tasks: Iterable[int]) -> set[str]:
    """The stages of a method that are about these tasks of a sequence, and their scores."""
    names = {f"{step}_{sequence}_{task}" for step in ("train", "sample") for task in tasks}
    names |= {f"sample_{sequence}", f"score_{sequence}"}
    return {f"cells/{method}/dvc.yaml:{name}" for name in names}


def cells(method: str) -> set[str]:
    return {name for name in stages_of("smoke") if f"cells/{method}/" in name}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("profile", PROFILES)
def test_files_are_what_the_command_would_write(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    wanted = pipelines(profile)
    folder = profile_folder(profile)
    assert set(wanted) == {folder / "dvc.yaml", *folder.glob("cells/*/dvc.yaml")}
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `bench pipelines`"


def test_every_method_has_parameters_where_it_is_used() -> None:
    for profile in PROFILES:
        methods, params = set(load_grid(profile).all_methods()), load_params(profile)
        tuning = params.analyses.get("tuning") or {}
        tried = {*tuning.get("rates", ()), *tuning.get("ridges", ())}
        assert set(params.methods) == methods | tried <= set(method_names())
    full, paper = (set(load_grid(name).methods) for name in ("toyland-full", "paper"))
    assert full == paper
    learning = set(load_grid("toyland-continual").all_methods())
    assert full | learning == set(method_names())


@pytest.mark.parametrize("profile", PROFILES)
def test_repro_of_a_profile_is_the_whole_profile_and_dvc_sees_no_other(profile: str) -> None:
    graph = stages(profile)
    (report,) = (stage for stage in graph if stage.name == "report")
    assert names_of((report, *nx.descendants(graph, report))) == stages_of(profile)
    assert names_of(graph) == stages_of(profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_sources_that_stages_depend_on_exist(profile: str) -> None:
    made = (ROOT / load_params(profile).runs(), ROOT / load_params(profile).reports())
    for path in {Path(dep.fs_path) for stage in stages(profile) for dep in stage.deps}:
        if any(path.is_relative_to(folder) for folder in made):
            continue
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():  # Python leaves compiled files there, which only the root has ignored
            assert profile == DEFAULT_PROFILE or not name.startswith(("pipeline/", "eval/"))
        # What users of profile `paper` bring: photographs with their prompts, and a corpus.
        elif not re.match(r"data/|datasets/(concepts|prompts)/\w+_photo", name):
            assert path.is_file(), name


def test_files_beside_the_sources_are_no_dependencies(project: Project) -> None:
    (project.root / "eval/metrics/__pycache__").mkdir()
    (project.root / "eval/metrics/__pycache__/kid.pyc").touch()
    (project.root / "models/toyland/base.md").write_text("A word changed.")
    (project.folder / "runs/cells/dreambooth/cat/.samples.tar.1.part").touch()
    assert project.stale() == set()


def test_parameter_of_a_method_reruns_what_merges_from_it(project: Project) -> None:
    section = "  custom_diffusion:\n    learning_rate: "
    edit(project.folder / "params.yaml", f"{section}1.0e-3", f"{section}2e-3")
    merged = cells("custom_diffusion") | cells("custom_diffusion_merge")
    continued = set().union(*(learning(name, "two", (1, 2)) for name in CHAINS))
    assert project.stale() == merged | continued | LOOK | LAST


def test_sampling_does_not_train(project: Project) -> None:
    edit(
        project.root / "datasets/protocols/smoke-v1.yaml",
        "images_per_caption: 1",
        "images_per_caption: 2",
    )
    expected = {name for name in stages_of("smoke") if ":sample" in name or ":score" in name}
    assert project.stale() == expected | LOOK | LAST


def seeded(project: Project, seeds: str, **fewer: int) -> set[str]:
    """Gives the profile these seeds, and methods fewer; returns the stages that it has then."""
    params = project.folder / "params.yaml"
    text = re.sub(r"seeds: \[.*\]", f"seeds: {seeds}", params.read_text())
    for method, count in fewer.items():
        text = re.sub(rf"  {method}:\n", rf"\g<0>    seeds: {count}\n", text)
    params.write_text(text)
    write_pipelines(["smoke"])
    project.prepare()
    return stages_of("smoke")


def test_another_seed_runs_its_own_stages_alone(with_seeds: Project) -> None:
    """Once a seed was added, adding one more trains nothing of those before it."""
    project, after = with_seeds, stages_of("smoke")
    made = project.folder / "runs/cells/custom_diffusion_merge/cat+chair/seed-43"
    assert {path.name for path in made.iterdir()} == {"adapter.safetensors", "samples.tar"}
    record = project.folder / "reports/cells/custom_diffusion_merge/cat+chair/seed-43"
    assert {path.name for path in record.iterdir()} == {"cost.json", "samples.jpg", "scores.csv"}
    more = seeded(project, "[42, 43, 7]") - after
    assert len(more) == 3 * 3 * 3 + 3 and all("_seed_7@" in name for name in more)
    assert project.stale() == more | LAST


def test_a_further_seed_of_a_part_makes_its_merge_again(with_seeds: Project) -> None:
    (with_seeds.folder / "runs/cells/custom_diffusion/cat/seed-43/adapter.safetensors").write_text(
        "?"
    )
    cells = "cells/custom_diffusion"
    expected = {f"{cells}/dvc.yaml:{step}_seed_43@cat" for step in ("train", "sample", "score")}
    expected |= {
        f"{cells}_merge/dvc.yaml:{step}_composition_seed_43@cat+chair"
        for step in ("train", "sample", "score")
    }
    assert with_seeds.stale() == expected | LAST


def test_another_main_seed_trains_all_and_draws_the_corpus_parts_anew(project: Project) -> None:
    seeded(project, "[7]")
    expected = {"captions", *(f"generate@{concept}" for concept in ("cat", "chair"))}
    expected |= set().union(*(cells(m) for m in load_grid("smoke").all_methods()))
    assert project.stale() == expected | LOOK | LAST


def test_a_method_with_fewer_seeds_has_fewer_stages(project: Project) -> None:
    found = seeded(project, "[42, 43, 44]", dreambooth=1, textual_inversion=2)
    further = {name for name in found if "_seed_" in name}
    assert not any("dreambooth" in name or "pretrained" in name for name in further)
    assert {name for name in further if "textual_inversion" in name} == {
        name for name in further if "textual_inversion" in name and "_seed_43@" in name
    }
    with closing(Repo(str(project.folder))) as repo:
        assert names_of(repo.index.stages) == found


def test_code_of_a_method_reruns_its_cells(project: Project) -> None:
    (project.root / "pipeline/methods/textual_inversion.py").write_text("# changed")
    assert project.stale() == cells("textual_inversion") | LAST


def test_code_of_a_room_reruns_what_runs_it() -> None:
    """The stages that name a room's digest, which a change of its code alone changes."""
    named = {
        room: names_of(
            stage
            for stage in stages("smoke")
            if any(dep.fs_path.endswith(f"runs/code/{room}.txt") for dep in stage.deps)
        )
        for room in ("pipeline.sample", "pipeline.train", "eval.study")
    }
    sampled = {name for name in stages_of("smoke") if re.search(r":sample", name)}
    trained = {name for name in stages_of("smoke") if re.search(r":train", name)}
    assert named["pipeline.sample"] >= sampled
    assert not named["pipeline.sample"] & trained
    assert named["pipeline.train"] >= trained
    assert not named["pipeline.train"] & {"index", "captions", "retrieve@cat", "shard@cat"}
    assert named["eval.study"] >= {"study_build", "study_analyse"}


def test_parameter_of_another_profile_runs_nothing(project: Project) -> None:
    edit(project.root / "params.yaml", "weight_decay: 0.01", "weight_decay: 0.02")
    assert project.stale() == set()


def test_what_fails_blocks_nothing(project: Project) -> None:
    (project.root / ".git/fails.txt").write_text("train dreambooth cat")
    params = project.folder / "params.yaml"
    edit(params, "learning_rate: 1.0e-4", "learning_rate: 9")
    assert project.dvc("repro", "-q") > LAST


@pytest.mark.parametrize("profile", PROFILES)
def test_stages_about_a_concept_or_a_cell_record_their_failures(profile: str) -> None:
    about = {
        "retrieve",
        "fetch",
        "shard",
        "gallery",
        "generate",
        "oracle",
        "train",
        "sample",
        "score",
    }
    about |= {"analyse"}
    for stage in stages(profile):
        command = stage.cmd[-1] if isinstance(stage.cmd, list) else stage.cmd
        name = command.removeprefix("cd ../.. && ").split()[1]
        assert ("--record-failure" in command) is (name in about), command


LEARNING = load_grid("smoke").sequences["two"].methods
CHAINS = [name for name in LEARNING if load_method(name).sequence.needs(("a", "b")).previous]


def test_what_tasks_depend_on() -> None:
    """Of chains, on each other; of merges, not. On images of the concept at hand alone."""
    assert set(CHAINS) == {f"custom_diffusion_{name}" for name in ("sequential", "ewc", "lwf")}
    found = {stage.addressing.split("/cells/")[-1]: stage for stage in stages("smoke")}
    for method in LEARNING:
        stage = next(s for n, s in found.items() if n.endswith(f"{method}/dvc.yaml:train_two_2"))
        deps = {os.path.relpath(dep.fs_path, ROOT / "profiles/smoke/runs") for dep in stage.deps}
        before = f"cells/{method}/two/task-1/adapter.safetensors"
        assert (before in deps) is (method in CHAINS)
        assert ("shards/cat.tar" in deps) is (method in CHAINS)
        assert "shards/chair.tar" not in deps


def test_a_concept_learned_last_runs_nothing_old(project: Project) -> None:
    old = {name: learning(name, "two", (1, 2)) for name in LEARNING}
    assert stages_of("smoke") > set().union(*old.values())
    own = added(project)
    edit(project.folder / "grid.yaml", "concepts: [chair, cat]", "concepts: [chair, cat, my_dog]")
    write_pipelines(["smoke"])
    project.prepare()
    expected = set().union(*(learning(name, "two", (3,)) for name in LEARNING))
    assert project.stale() == own | expected | LAST


def test_another_order_is_another_sequence(project: Project) -> None:
    """Tokens have their numbers by it, also where all that is merged is the same."""
    edit(project.folder / "grid.yaml", "concepts: [chair, cat]", "concepts: [cat, chair]")
    write_pipelines(["smoke"])
    expected = set().union(*(learning(name, "two", (1, 2)) for name in LEARNING))
    assert project.stale() == expected | LAST


def test_a_parameter_of_a_chain_runs_its_tasks_alone(project: Project) -> None:
    path = project.folder / "params.yaml"
    edit(path, "    own:\n      strength: 1\n", "    own:\n      strength: 2\n")
    assert project.stale() == learning("custom_diffusion_lwf", "two", (1, 2)) | LAST


def added(project: Project) -> set[str]:
    """Adds the concept `my_dog`; returns its own stages."""
    add_concept("my_dog", [project.root / "datasets/concepts/dog/images"], "dog", profile="smoke")
    return {
        f"{prefix}{stage}"
        for path, names in new_stages("my_dog", "smoke").items()
        for prefix in [f"{path}:".removeprefix("profiles/smoke/").removeprefix("dvc.yaml:")]
        for stage in names
    }


def test_added_concept_runs_its_own_stages(project: Project) -> None:
    own = added(project)
    assert len(own) == 6 + 4 * 3
    assert project.stale() == own | LAST


def test_removed_concept_reruns_the_report_alone(project: Project) -> None:
    edit(
        project.folder / "grid.yaml",
        "  cat+chair:\n    first: cat\n    second: chair\n",
        "  {}\n",
    )
    assert project.stale() == LAST


def test_experiment_runs_what_its_parameter_touches(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """An experiment, and what shows it: as docs/profiles.md has it."""
    expected = cells("dreambooth") | LAST
    assert project.dvc("exp", "run", "-S", "methods.dreambooth.learning_rate=2e-4") == expected
    capsys.readouterr()
    project.dvc("exp", "show", "--csv", "--only-changed", "--drop", r".*/|.*composed|Created")
    header = next(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [name for name in header if "." in name] == [
        "dreambooth.text", "methods.dreambooth.learning_rate",
    ]  # fmt: skip
    for command in (["metrics", "diff"], ["plots", "show"], ["checkout"], ["status"]):
        assert project.dvc(*command) == set()
    assert re.search(r"summary\.json +dreambooth\.text ", capsys.readouterr().out)
    assert project.stale() == set()
    # The same change by hand is the same to DVC, but for what a stand-in never repeats.
    project.git("checkout", "-q", "--", "profiles/smoke/cells", "profiles/smoke/dvc.lock")
    assert project.stale() == expected


def test_what_was_pushed_can_be_pulled_in_another_clone(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.dvc("remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"))
    project.commit()
    project.dvc("push", "-q")
    project.git("clone", "-q", str(project.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert not (clone.folder / "runs").exists()
    clone.dvc("pull", "-q")
    assert clone.stale() == set()
    for file in ("index/file", "cells/dreambooth/cat/samples.tar"):
        runs = [of.folder / "runs" / file for of in (clone, project)]
        assert runs[0].read_bytes() == runs[1].read_bytes()


def test_method_out_of_the_grid_keeps_its_record(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = project.folder / "cells"
    edit(project.folder / "grid.yaml", "  - textual_inversion\n", "")
    for name, text in (("textual_inversion", "record"), ("mine", "record")):
        (cells / name).mkdir(exist_ok=True)
        (cells / name / "dvc.lock").write_text(text)
    (cells / "mine/dvc.yaml").write_text("stages: {}\n")
    assert write_pipelines(["smoke"]) == [Path("profiles/smoke/cells/textual_inversion/dvc.yaml")]
    said = capsys.readouterr().out
    assert (
        "cells/textual_inversion/dvc.yaml: removed, as 'textual_inversion' is not in the grid"
        in said
    )
    assert "cells/textual_inversion/dvc.lock stays" in said
    assert "cells/mine/dvc.yaml: stays, as `bench pipelines` did not write it" in said
    assert (cells / "textual_inversion/dvc.lock").read_text() == "record"
    assert (cells / "mine/dvc.yaml").read_text() == "stages: {}\n"


def test_a_new_profile_becomes_a_project_of_its_own(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = project.root / "profiles/mine"
    mine.mkdir()
    text = (project.folder / "params.yaml").read_text()
    (mine / "params.yaml").write_text(text.replace("smoke", "mine").replace("mine-v1", "smoke-v1"))
    shutil.copy(project.folder / "grid.yaml", mine)
    write_pipelines(["mine"])
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        assert (mine / name).read_text() == (project.folder / name).read_text()
    with closing(Repo(str(mine))) as repo:
        assert names_of(repo.index.stages) == stages_of("smoke")
    (mine / ".dvc/config").write_text("[core]\n    remote = mine\n")
    assert write_pipelines(["mine"]) == []
    assert (mine / ".dvc/config").read_text() == "[core]\n    remote = mine\n"
