"""The pipeline's files: they agree with each other, and a change re-runs what it touches alone.

Stages run here with a stand-in for `bench`, which writes something new to each output at once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.concept_add import add_concept, new_stages
from pipeline.methods import Merged, load_method, method_names
from pipeline.params import load_grid, load_params, read_yaml

ROOT = Path(__file__).parents[1]
PROFILES = ("toyland", "smoke", "toyland-full")
TEMPLATE = ROOT / "cells" / "custom_diffusion" / "dvc.yaml"

BENCH = """\
#!{python} -S
import json, os, pathlib, sys
pathlib.Path("ran.txt").open("a").write(os.environ["DVC_STAGE"] + "\\n")
for out in json.loads(pathlib.Path("outs.json").read_text())["bench " + " ".join(sys.argv[1:])]:
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
    grid = load_grid(profile)
    prefix = "" if profile == "toyland" else f"profiles/{profile}/"
    root = f"{prefix}dvc.yaml:" if prefix else ""
    names = {f"{root}{name}" for name in ("world", "corpus", "index", "report")}
    for concept in grid.concepts:
        names |= {f"{root}{stage}@{concept}" for stage in ("retrieve", "shard", "oracle")}
    for method in grid.methods:
        for step in ("train", "sample", "score"):
            cells = f"{prefix}cells/{method}/dvc.yaml:{step}"
            if method != "custom_diffusion_merge":
                names |= {f"{cells}@{concept}" for concept in grid.concepts}
            if method != "textual_inversion":
                names |= {f"{cells}_composition@{pair}" for pair in grid.compositions}
    return names


def cells(method: str) -> set[str]:
    return {name for name in stages_of("smoke") if f"/cells/{method}/" in name}


REPORT = {"profiles/smoke/dvc.yaml:report"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("profile", PROFILES)
def test_root_file_is_the_default_one_up_to_its_paths(profile: str) -> None:
    default = (ROOT / "dvc.yaml").read_text()
    if profile != "toyland":
        for old, new in (
            ("params: params.yaml", f"params: profiles/{profile}/params.yaml"),
            ("grid: grid.yaml", f"grid: profiles/{profile}/grid.yaml"),
            ("root: .", "root: ../.."),
            ("reports: reports", f"reports: reports/{profile}"),
        ):
            assert default.count(f"    {old}\n") + default.count(f"  - {old}\n") == 1
            default = default.replace(old + "\n", new + "\n")
    assert (folder_of(profile) / "dvc.yaml").read_text() == default


@pytest.mark.parametrize("profile", PROFILES)
def test_cells_of_a_method_are_those_of_the_default_profile(profile: str) -> None:
    for path in sorted(ROOT.glob("cells/*/dvc.yaml")):
        text = path.read_text()
        if profile != "toyland":
            text = text.replace("params: params.yaml", f"params: profiles/{profile}/params.yaml")
            text = text.replace("root: ../..", "root: ../../../..")
        assert (folder_of(profile) / path.relative_to(ROOT)).read_text() == text


@pytest.mark.parametrize("method", [p.parent.name for p in sorted(ROOT.glob("cells/*/dvc.yaml"))])
def test_cells_of_all_methods_are_one_template(method: str) -> None:
    template = read_yaml(TEMPLATE)
    pipeline = read_yaml(ROOT / "cells" / method / "dvc.yaml")
    assert pipeline["vars"][-1].pop("method") == method
    template["vars"][-1].pop("method")
    assert pipeline["vars"] == template["vars"]
    same = dict(pipeline["stages"])
    if isinstance(load_method(method), Merged):
        del same["train_composition"]  # the one that differs: it depends on other adapters
    assert same == {name: template["stages"][name] for name in same}
    # A method has all three steps of a kind of subject, or none of them.
    for ending in ("", "_composition"):
        steps = {f"{step}{ending}" in pipeline["stages"] for step in ("train", "sample", "score")}
        assert len(steps) == 1


def test_every_method_has_its_cells_and_parameters() -> None:
    assert sorted(p.parent.name for p in ROOT.glob("cells/*/dvc.yaml")) == method_names()
    for profile in PROFILES:
        assert sorted(load_grid(profile).methods) == method_names()
        assert sorted(load_params(profile).methods) == method_names()


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
    missing = [p for p in sources if not p.startswith("runs/") and not (ROOT / p).exists()]
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
    edit(pipeline.root / "profiles/smoke/params.yaml", "guidance_scale: 6.0", "guidance_scale: 5.0")
    ran = pipeline.repro()
    expected = {name for name in stages_of("smoke") if ":sample" in name or ":score" in name}
    assert ran == expected | REPORT


def test_code_of_a_method_reruns_its_cells(pipeline: Pipeline) -> None:
    (pipeline.root / "pipeline/methods/textual_inversion.py").write_text("# changed")
    assert pipeline.repro() == cells("textual_inversion") | REPORT


def test_parameter_of_another_profile_runs_nothing(pipeline: Pipeline) -> None:
    edit(pipeline.root / "params.yaml", "guidance_scale: 6.0", "guidance_scale: 5.0")
    assert pipeline.repro() == set()


def test_added_concept_runs_its_own_stages(pipeline: Pipeline) -> None:
    add_concept("my_cat", [pipeline.root / "datasets/concepts/cat/images"], "cat", profile="smoke")
    pipeline.prepare()
    expected = {
        f"{path}:{stage}"
        for path, names in new_stages("my_cat", "smoke").items()
        for stage in names
    }
    assert len(expected) == 3 + 4 * 3
    assert pipeline.repro() == expected | REPORT


def test_removed_concept_reruns_the_report_alone(pipeline: Pipeline) -> None:
    edit(
        pipeline.root / "profiles/smoke/grid.yaml",
        "  cat+chair:\n    first: cat\n    second: chair\n",
        "  {}\n",
    )
    assert pipeline.repro() == REPORT
