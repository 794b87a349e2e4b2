"""The pipeline's files: they agree with each other, and a change re-runs what it touches alone.

Stages run here with a stand-in for `bench`, which writes something new to each output at once, and
fails like `bench` where `fails.txt` names the beginning of the command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.concept_add import add_concept, new_stages
from pipeline.methods import load_method, method_names
from pipeline.params import load_grid, load_params, profile_names
from pipeline.pipelines import pipelines

ROOT = Path(__file__).parents[1]
PROFILES = profile_names()
LAST = ("study_build", "study_analyse", "claims", "report")  # they read all cells

BENCH = """\
#!{python} -S
import json, os, pathlib, sys
pathlib.Path("ran.txt").open("a").write(os.environ["DVC_STAGE"] + "\\n")
command, fails = " ".join(sys.argv[1:]), pathlib.Path("fails.txt")
if fails.exists() and command.startswith(fails.read_text()) and "--record-failure" not in command:
    sys.exit(2)
for out in json.loads(pathlib.Path("outs.json").read_text())["bench " + command]:
    path = pathlib.Path(out)
    path = path if path.suffix else path / "file"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(16))
"""


def folder_of(profile: str) -> Path:
    return ROOT if profile == "toyland" else ROOT / "profiles" / profile


@dataclass(frozen=True)
class Pipeline:
    """A copy of the pipeline's files, with empty files in place of code and models."""

    root: Path
    target: str = "profiles/smoke/dvc.yaml"

    @cached_property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.root / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        }

    def prepare(self) -> None:
        """Writes the stand-in and everything that stages depend on and no stage makes."""
        repo = Repo(str(self.root))
        stages = repo.index.stages
        made = {os.path.relpath(out.fs_path, self.root) for stage in stages for out in stage.outs}
        outs = {
            stage.cmd: [os.path.relpath(out.fs_path, self.root) for out in stage.outs]
            for stage in stages
        }
        (self.root / "outs.json").write_text(json.dumps(outs))
        for stage in stages:
            for dep in stage.deps:
                path = Path(dep.fs_path)
                if path.exists() or os.path.relpath(path, self.root) in made:
                    continue
                if path.suffix:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                elif not str(path).startswith(str(self.root / "runs")):
                    path.mkdir(parents=True, exist_ok=True)
                    (path / "file").touch()
        repo.close()

    def repro(self) -> set[str]:
        """Runs the pipeline; returns the names of the stages that ran."""
        log = self.root / "ran.txt"
        log.unlink(missing_ok=True)
        subprocess.run(
            ["dvc", "repro", "-q", self.target], cwd=self.root, env=self.environment, check=True
        )
        return set(log.read_text().split()) if log.exists() else set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Profile smoke, run once."""
    root = tmp_path_factory.mktemp("pipeline")
    for name in (
        "dvc.yaml",
        "cells",
        "profiles",
        "params.yaml",
        "grid.yaml",
        "datasets",
        ".dvcignore",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("dvc.lock"))
        else:
            shutil.copy(source, root / name)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    (root / "bin").mkdir()
    stand_in = root / "bin" / "bench"
    stand_in.write_text(BENCH.format(python=sys.executable))
    stand_in.chmod(0o755)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    pipeline = Pipeline(root)
    pipeline.prepare()
    assert pipeline.repro() == stages_of("smoke")
    return pipeline


@pytest.fixture
def pipeline(finished: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A copy of the finished one, as the current directory."""
    shutil.copytree(finished.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    subprocess.run(["git", "init", "-q", str(tmp_path / "copy")], check=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Pipeline(tmp_path / "copy")


def stages_of(profile: str) -> set[str]:
    """What the pipeline of a profile should consist of, from its grid alone."""
    grid, params = load_grid(profile), load_params(profile)
    prefix = "" if profile == "toyland" else f"profiles/{profile}/"
    root = f"{prefix}dvc.yaml:" if prefix else ""
    names = {f"{root}{name}" for name in ("corpus", "index", *LAST)}
    names |= {f"{root}analyse_{name}" for name in params.analyses.model_fields_set}
    names |= {f"{root}world"} if params.world else set()
    for concept in grid.concepts:
        fed = ("retrieve", "shard", "generate", "oracle")
        names |= {f"{root}{stage}@{concept}" for stage in fed}
    groups = (
        ("", grid.concepts, "single"),
        ("_composition", grid.compositions, "composition"),
        ("_triple", grid.triples, "composition"),
    )
    for method in grid.methods:
        for suffix, subjects, kind in groups:
            if getattr(load_method(method), kind):
                cells = f"{prefix}cells/{method}/dvc.yaml"
                for step in ("train", "sample", "score"):
                    names |= {f"{cells}:{step}{suffix}@{subject}" for subject in subjects}
    return names


def cells(method: str) -> set[str]:
    return {name for name in stages_of("smoke") if f"/cells/{method}/" in name}


REPORT = {f"profiles/smoke/dvc.yaml:{name}" for name in LAST}


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
    folder = folder_of(profile).relative_to(ROOT)
    assert set(wanted) == {folder / "dvc.yaml", *folder.glob("cells/*/dvc.yaml")}
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `bench pipelines`"


def test_every_method_has_parameters_where_it_is_in_the_grid() -> None:
    for profile in PROFILES:
        methods = load_grid(profile).methods
        assert sorted(load_params(profile).methods) == sorted(methods)
        assert set(methods) <= set(method_names())
    for profile in ("toyland-ablation", "paper"):
        assert set(load_grid(profile).methods) == set(method_names())


@pytest.mark.parametrize("profile", PROFILES)
def test_repro_of_a_profile_is_the_whole_profile_and_no_other(
    finished: Pipeline, profile: str
) -> None:
    repo = Repo(str(finished.root))
    graph = repo.index.graph
    file = str((finished.root / folder_of(profile).relative_to(ROOT) / "dvc.yaml").resolve())
    report = [s for s in graph if s.path == file and s.name == "report"]
    reached, todo = set(), report
    while todo:
        stage = todo.pop()
        if stage not in reached:
            reached.add(stage)
            todo += graph.successors(stage)
    names = {os.path.relpath(s.path, finished.root) + ":" + s.name for s in reached}
    assert names == {name if ":" in name else f"dvc.yaml:{name}" for name in stages_of(profile)}
    repo.close()


def test_sources_that_stages_depend_on_exist() -> None:
    repo = Repo(str(ROOT))
    sources = {
        os.path.relpath(dep.fs_path, ROOT) for stage in repo.index.stages for dep in stage.deps
    }
    repo.close()
    # What users of profile `paper` bring: photographs with their prompts, and a corpus.
    theirs = re.compile(r"runs/|reports/|data/|datasets/(concepts|prompts)/\w+_photo")
    missing = [p for p in sources if not theirs.match(p) and not (ROOT / p).exists()]
    assert not missing


def test_nothing_changed_runs_nothing(pipeline: Pipeline) -> None:
    assert pipeline.repro() == set()


def test_parameter_of_a_method_reruns_its_cells(pipeline: Pipeline) -> None:
    edit(
        pipeline.root / "profiles/smoke/params.yaml", "learning_rate: 1.0e-4", "learning_rate: 2e-4"
    )
    assert pipeline.repro() == cells("dreambooth") | REPORT


def test_parameter_of_a_method_reruns_what_merges_from_it(pipeline: Pipeline) -> None:
    edit(
        pipeline.root / "profiles/smoke/params.yaml", "learning_rate: 1.0e-3", "learning_rate: 2e-3"
    )
    assert pipeline.repro() == cells("custom_diffusion") | cells("custom_diffusion_merge") | REPORT


def test_sampling_does_not_train(pipeline: Pipeline) -> None:
    edit(
        pipeline.root / "datasets/protocols/smoke-v1.yaml",
        "images_per_caption: 1",
        "images_per_caption: 2",
    )
    ran = pipeline.repro()
    expected = {name for name in stages_of("smoke") if ":sample" in name or ":score" in name}
    assert ran == expected | REPORT


def test_code_of_a_method_reruns_its_cells(pipeline: Pipeline) -> None:
    (pipeline.root / "pipeline/methods/textual_inversion.py").write_text("# changed")
    assert pipeline.repro() == cells("textual_inversion") | REPORT


def test_parameter_of_another_profile_runs_nothing(pipeline: Pipeline) -> None:
    edit(pipeline.root / "params.yaml", "steps: 300\n  dreambooth", "steps: 301\n  dreambooth")
    assert pipeline.repro() == set()


@pytest.mark.parametrize("stage", ["retrieve cat", "train dreambooth cat", "oracle cat"])
def test_what_fails_blocks_nothing(pipeline: Pipeline, stage: str) -> None:
    (pipeline.root / "fails.txt").write_text(stage)
    params = pipeline.root / "profiles/smoke/params.yaml"
    if stage.startswith("train"):
        edit(params, "learning_rate: 1.0e-4", "learning_rate: 9")
    else:
        edit(params, "threshold: 0.85", "threshold: 0.86")
    assert pipeline.repro() > REPORT


def test_stages_about_a_concept_or_a_cell_record_their_failures() -> None:
    repo = Repo(str(ROOT))
    stages = repo.index.stages
    repo.close()
    about = {"retrieve", "shard", "generate", "oracle", "train", "sample", "score", "analyse"}
    assert {stage.cmd.split()[1] for stage in stages} > about
    for stage in stages:
        assert ("--record-failure" in stage.cmd) is (stage.cmd.split()[1] in about), stage.cmd


def test_added_concept_runs_its_own_stages(pipeline: Pipeline) -> None:
    add_concept("my_cat", [pipeline.root / "datasets/concepts/cat/images"], "cat", profile="smoke")
    pipeline.prepare()
    expected = {
        f"{path}:{stage}"
        for path, names in new_stages("my_cat", "smoke").items()
        for stage in names
    }
    assert len(expected) == 4 + 4 * 3
    assert pipeline.repro() == expected | REPORT


def test_removed_concept_reruns_the_report_alone(pipeline: Pipeline) -> None:
    edit(
        pipeline.root / "profiles/smoke/grid.yaml",
        "  cat+chair:\n    first: cat\n    second: chair\n",
        "  {}\n",
    )
    assert pipeline.repro() == REPORT
