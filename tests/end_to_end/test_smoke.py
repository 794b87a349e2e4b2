"""Profile smoke with the real stages, in a copy of the project: as a user would run it.

The tests build on each other, in the order of the file.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.clones import FOLDER, ROOT, Clone, make_clone
from tests.eval.synthetic import draw_gallery
from tests.watching import Watch

METHODS = ("pretrained", "textual_inversion", "dreambooth", "custom_diffusion")

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        not (ROOT / "models/toyland/base").is_dir(), reason="the models are not here"
    ),
]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return Watch(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("hooks"))


@pytest.fixture(scope="module")
def clone(watch: Watch) -> Clone:
    made = make_clone(watch.root)
    for name in ("cat", "chair"):
        draw_gallery(name, datasets=made.root / "datasets")
    return replace(made, hooks=watch.folder)


def cells(method: str, subjects: tuple[str, ...]) -> set[str]:
    """The stages of a method's cells."""
    return {
        f"cells/{method}/dvc.yaml:{step}{'_composition' if '+' in subject else ''}@{subject}"
        for step in ("train", "sample", "score")
        for subject in subjects
    }


def learned(method: str) -> set[str]:
    """The stages of a method on the sequence."""
    steps = ("train_two_1", "train_two_2", "sample_two_1", "sample_two_2", "sample_two")
    return {f"cells/{method}/dvc.yaml:{step}" for step in (*steps, "score_two")}


# What stages open and no result comes from.
NEUTRAL = (
    r"pipeline/bench/\w+\.py",  # how a command gets to its stage
    r"(eval|pipeline|pipeline/toyland)/__init__\.py",  # hold a line of text
    # The command checks a profile's names; what runs of these tests/test_architecture.py looks at.
    r"pipeline/methods/\w+\.py",
    r"eval/analyses/(\w+/)?\w+\.py",
    r".+/runs/world/images/.+",  # drawn and fetched by one stage
    r"\.dvcignore",
    r"(.+/)?(params|grid)\.yaml",  # DVC watches the values in them
    r"datasets/protocols/.+\.yaml",
    r"(.+/)?dvc\.lock",  # tells whether scores are stale
)
# They also read what cells were made of, code and all, to tell whether scores are stale.
REPORT = {"study_build", "study_analyse", "claims", "report"}
ANALYSES = {"analyse_regions"}  # of Custom Diffusion's pictures of two things


def test_fresh_clone(clone: Clone) -> None:
    start = time.perf_counter()
    ran = clone.repro()
    print(f"{len(ran)} stages in {time.perf_counter() - start:.0f} s")
    in_sequence = 4 * (2 * 2 + 2)
    of_all = 4 + len(ANALYSES) + len(REPORT)
    assert len(ran) == of_all + 2 * 6 + 2 * 4 * 3 + 5 * 3 + in_sequence
    reports = clone.root / FOLDER / "reports"
    page = (reports / "index.html").read_text(encoding="utf-8")
    with (reports / "tables" / "comparison.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    for method in (*METHODS, "custom_diffusion_merge"):
        assert 0 < float(rows[method]["compositions_identity_map"]) <= 1
        assert (reports / "methods" / f"{method}.json").is_file()
    for image in re.findall(r'src="([^":]+)"', page):
        assert (reports / image).is_file()
    assert not clone.half_written()


def test_stages_open_nothing_but_what_they_depend_on(clone: Clone, watch: Watch) -> None:
    """Code and data, as the stages of `test_fresh_clone` opened them."""
    opened = watch.opened()
    with closing(Repo(str(clone.root / FOLDER))) as repo:
        stages = {
            f"{stage.path_in_repo}:{stage.name}".removeprefix("dvc.yaml:"): stage
            for stage in repo.index.stages
        }
        assert opened.keys() == stages.keys()
        beside: dict[str, set[str]] = {}
        for address, stage in stages.items():
            # Whether there are several trainings, the command asks the method: as the training did.
            training = address.replace(":score", ":train")
            trained = next((s for name, s in stages.items() if name.startswith(training)), stage)
            known = {
                Path(one.fs_path).relative_to(clone.root).as_posix()
                for one in (*stage.deps, *stage.outs, *trained.deps)
            }
            # Of a digest, the room that it is of.
            known |= {Path(p).stem.replace(".", "/") for p in known if "runs/code/" in p}
            beside[address] = {
                path
                for path in opened[address]
                if (clone.root / path).exists()  # a library may remove things by relative names
                and not known.intersection([path, *map(str, Path(path).parents)])
                and not any(re.fullmatch(pattern, path) for pattern in NEUTRAL)
                and not (address in REPORT and re.match("(datasets|models|eval|pipeline)/", path))
            }
            assert any(path.startswith(("pipeline/", "eval/")) for path in opened[address])
        assert {address: paths for address, paths in beside.items() if paths} == {}


def test_nothing_changed(clone: Clone) -> None:
    start = time.perf_counter()
    assert clone.repro() == set()
    print(f"nothing to do: {time.perf_counter() - start:.1f} s")


def test_table(clone: Clone) -> None:
    run = subprocess.run(
        ["bench", "table", "--profile", "smoke", "--method", "dreambooth", "--format", "csv"],
        cwd=clone.root,
        env=clone.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dreambooth" in run.stdout


def test_killed_in_the_middle(clone: Clone) -> None:
    """The machine goes down while a cell trains or samples; the next run ends the same."""
    pattern = "cells/textual_inversion/*/[!c]*"  # what training cost is not reproducible
    before = clone.hashes(pattern)
    assert len(before) == 3 * 4
    # As if this method had never run here: neither files, nor records, nor remembered results.
    folder = clone.root / FOLDER
    shutil.rmtree(folder / "runs/cells/textual_inversion")
    shutil.rmtree(folder / "reports/cells/textual_inversion")
    shutil.rmtree(folder / ".dvc/cache/runs")
    (folder / "cells/textual_inversion/dvc.lock").unlink()

    process = clone.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Running stage") and "textual_inversion" in line and ":sample@" in line:
            break
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    assert len(clone.hashes(pattern)) < len(before)

    ran = clone.repro()
    assert ran - REPORT < cells("textual_inversion", ("cat", "chair", "cat+chair"))
    assert clone.hashes(pattern) == before


def test_one_parameter(clone: Clone) -> None:
    """A merge is made again from the adapters that are there; other methods keep theirs.

    tests/test_dvc.py changes one of a method that others are made of.
    """
    params = clone.root / FOLDER / "params.yaml"
    before = clone.hashes("cells/*/*/adapter.safetensors")
    text = params.read_text()
    yaml = YAML()
    content = yaml.load(text)
    content["methods"]["custom_diffusion_merge"]["ridge"] = 2.0e-1
    with params.open("w") as file:
        yaml.dump(content, file)
    ran = clone.repro()
    merged = cells("custom_diffusion_merge", ("cat+chair",))
    assert ran == merged | learned("custom_diffusion_merge") | REPORT
    after = clone.hashes("cells/*/*/adapter.safetensors")
    changed = {path.split("/")[2] for path in after if after[path] != before[path]}
    assert changed == {"custom_diffusion_merge"}

    # Going back takes the old results out of DVC's cache and trains nothing.
    params.write_text(text)
    clone.repro()
    assert clone.hashes("cells/*/*/adapter.safetensors") == before


def test_added_concept(clone: Clone) -> None:
    command = "bench concept add my_dog datasets/concepts/dog/images --class dog --profile smoke"
    subprocess.run(
        command.split(),
        cwd=clone.root,
        env=clone.environment,
        check=True,
    )
    ran = clone.repro()
    stages = ("retrieve", "fetch", "shard", "gallery", "generate", "oracle")
    fed = {f"{stage}@my_dog" for stage in stages}
    trained = set().union(*(cells(method, ("my_dog",)) for method in METHODS))
    assert ran == fed | trained | REPORT
    assert "my_dog" in "".join(
        path.read_text(encoding="utf-8")
        for path in (clone.root / FOLDER / "reports/tables").glob("*.csv")
    )


def test_concept_without_a_corpus_fails_alone(clone: Clone) -> None:
    """All others are reported, and why it is not."""
    command = "bench concept add my_cat datasets/concepts/cat/images --class cat --profile smoke"
    subprocess.run(command.split(), cwd=clone.root, env=clone.environment, check=True)
    path = clone.root / "datasets/concepts/my_cat/concept.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "queries: [nothing that anybody wrote]\n")
    ran = clone.repro()
    fed = {f"{stage}@my_cat" for stage in ("retrieve", "fetch", "shard", "generate", "oracle")}
    # The cat stands in as a look-alike of the new one, which has no folder of them.
    fed |= {f"gallery@{name}" for name in ("cat", "chair", "my_dog", "my_cat")}
    assert ran == fed | set().union(*(cells(method, ("my_cat",)) for method in METHODS)) | REPORT
    run = subprocess.run(
        ["bench", "table", "--profile", "smoke"],
        cwd=clone.root,
        env=clone.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    failed = ", ".join(f"{method}/my_cat" for method in ("oracle", *METHODS))
    assert f"too few images: {failed}: my_cat: only 0 regularization images" in run.stdout
    assert "1 too few images" in run.stdout and "not run" not in run.stdout
    page = (clone.root / FOLDER / "reports/index.html").read_text(encoding="utf-8")
    assert "my_cat: only 0 regularization images" in page
    assert not clone.half_written()


def test_images_made_elsewhere(clone: Clone) -> None:
    """What one of the methods made, imported as images of another system, scores the same."""
    runs, records = (clone.root / FOLDER / part / "cells" for part in ("runs", "reports"))
    for subject in ("cat", "cat+chair"):
        folder = clone.root / "elsewhere" / subject
        with tarfile.open(runs / "dreambooth" / subject / "samples.tar") as tar:
            tar.extractall(folder, filter="data")
        command = f"bench samples import again {subject} {folder} --source me --profile smoke"
        subprocess.run(command.split(), cwd=clone.root, env=clone.environment, check=True)
    ran = clone.repro()
    grid = YAML(typ="safe").load(clone.root / FOLDER / "grid.yaml")  # also of the tests before
    subjects = (*grid["concepts"], *grid["compositions"])
    assert ran == {name for name in cells("again", subjects) if ":train" not in name} | REPORT
    for subject in ("cat", "cat+chair"):
        made, taken = (
            pd.read_csv(records / method / subject / "scores.csv")
            for method in ("dreambooth", "again")
        )
        assert set(made["method"]) == {"dreambooth"} and set(taken["method"]) == {"again"}
        assert set(made["seed"]) == {42} and taken["seed"].isna().all()  # nobody knows its seed
        own = ["method", "seed"]
        assert len(made) > 1 and made.drop(columns=own).equals(taken.drop(columns=own))
    assert '"failed": "not imported"' in (records / "again/chair/scores.csv").read_text()
    page = (clone.root / FOLDER / "reports/index.html").read_text(encoding="utf-8")
    assert "again (external)" in page
