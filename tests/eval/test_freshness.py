"""Stale cells: whatever DVC would make again is marked, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from eval.freshness import Freshness, digest_of
from eval.papers.claims import claims_table
from eval.papers.compare import compare, print_comparison
from eval.report.printing import print_table
from eval.report.stage import write_report
from eval.results import load_results
from eval.tables.building import by_subject, comparison
from eval.tables.rendering import as_csv
from eval.tables.table import FEWER, STALE
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure
from pipeline.common.files import write_failure
from pipeline.settings.profile import load_params
from tests.eval.conftest import METHODS
from tests.eval.synthetic import PROTOCOL

HEADING = f"Profile toyland, protocol {PROTOCOL}"
CELLS = Path("runs/toyland/cells")
RECORDS = Path("reports/cells")
STAGES = """\
stages:
  sample:
    foreach: {subjects}
    do:
      wdir: ../..
      cmd: "true"
      deps:
        - models/scorer
        - datasets/prompts/${{item}}.txt
      params:
        - params.yaml:
            - train.batch_size
            - train.seeds.0
            - methods.{method}
      outs:
        - runs/toyland/cells/{method}/${{item}}/samples.tar:
            cache: false
  score:
    foreach: {subjects}
    do:
      wdir: ../..
      cmd: "true"
      deps:
        - runs/toyland/cells/{method}/${{item}}/samples.tar
      params:
        - params.yaml:
            - protocol
        - datasets/protocols/{protocol}.yaml:
            - score
      outs:
        - reports/cells/{method}/${{item}}/scores.csv:
            cache: false
"""
ORACLE = """\
stages:
  oracle:
    foreach: [cat, chair]
    do:
      cmd: "true"
      outs:
        - reports/cells/oracle/${item}/scores.csv:
            cache: false
"""


def dvc(*arguments: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["dvc", *arguments], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout


@pytest.fixture(scope="module")
def committed(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scored profile, of which DVC has written down what was made of what."""
    root = tmp_path_factory.mktemp("committed") / "profile"
    shutil.copytree(scored, root)
    before = Path.cwd()
    os.chdir(root)
    try:
        dvc("init", "-q", "--no-scm")
        Path("dvc.yaml").write_text(ORACLE)
        (Path("models") / "scorer" / "__pycache__").mkdir()
        Path("models/scorer/__pycache__/x.pyc").write_text("not looked at")
        Path(".dvcignore").write_text("__pycache__/\n")
        for method in METHODS:
            subjects = [path.parent.name for path in sorted(RECORDS.glob(f"{method}/*/scores.csv"))]
            folder = Path("cells") / method
            folder.mkdir(parents=True)
            text = STAGES.format(method=method, subjects=json.dumps(subjects), protocol=PROTOCOL)
            (folder / "dvc.yaml").write_text(text)
        dvc("commit", "-q", "-f")
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def known(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    shutil.copytree(committed, tmp_path / "known")
    monkeypatch.chdir(tmp_path / "known")
    return tmp_path / "known"


def set_value(path: str, value: object, *keys: str) -> None:
    yaml = YAML()
    content = inner = yaml.load(Path(path))
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    yaml.dump(content, Path(path))


def experiment(subject: str = "cat") -> None:
    """What `dvc exp run` and `git reset` leave: other scores than dvc.lock says."""
    path = RECORDS / "custom_diffusion" / subject / "scores.csv"
    frame = pd.read_csv(path)
    frame.assign(value=frame["value"] + 0.1).to_csv(path, index=False)


def other_weights() -> None:
    path = next(Path("models/scorer").glob("*.json"))
    path.write_text(path.read_text() + " ")


ALL = {(method, subject) for method in METHODS for subject in ("cat", "chair", "cat+chair")} - {
    ("custom_diffusion_merge", "cat"), ("custom_diffusion_merge", "chair")
}  # fmt: skip
CHANGES: dict[str, tuple[Callable[[], None], set[tuple[str, str]], str]] = {
    "an experiment's scores": (
        experiment,
        {("custom_diffusion", "cat")},
        "not the scores that dvc.lock knows",
    ),
    "a method's parameter": (
        lambda: set_value("params.yaml", 7, "methods", "custom_diffusion", "steps"),
        {cell for cell in ALL if cell[0] == "custom_diffusion"},
        "methods.custom_diffusion in params.yaml has changed",
    ),
    "a parameter of all": (
        lambda: set_value("params.yaml", 6, "train", "batch_size"),
        ALL,
        "train.batch_size in params.yaml has changed",
    ),
    "the main seed": (
        lambda: set_value("params.yaml", [7, 42], "train", "seeds"),
        ALL,
        "train.seeds.0 in params.yaml has changed",
    ),
    "the protocol's file": (
        lambda: set_value(f"datasets/protocols/{PROTOCOL}.yaml", 3.0, "score", "text_scale"),
        ALL,
        f"score in datasets/protocols/{PROTOCOL}.yaml has changed",
    ),
    "prompts": (
        lambda: Path("datasets/prompts/cat.txt").write_text("{} on the moon\n") and None,
        {("pretrained", "cat"), ("custom_diffusion", "cat")},
        "datasets/prompts/cat.txt has changed",
    ),
    "the model in a folder": (other_weights, ALL, "models/scorer has changed"),
}


def test_nothing_is_stale_while_dvc_is_content(known: Path) -> None:
    assert json.loads(dvc("status", "--json")) == {}
    assert load_results().fresh == Freshness({}, verified=True)
    Path("models/scorer/__pycache__/y.pyc").write_text("not looked at either")
    assert load_results().fresh.stale == {}


@pytest.mark.parametrize("name", CHANGES)
def test_what_dvc_would_make_again_is_stale(known: Path, name: str) -> None:
    change, cells, why = CHANGES[name]
    change()
    assert json.loads(dvc("status", "--json"))
    found = load_results().fresh
    assert set(found.stale) == cells
    assert all(why in reason for reason in found.stale.values())


def test_another_seed_makes_nothing_stale_but_scores_of_it_that_dvc_does_not_know(
    known: Path,
) -> None:
    set_value("params.yaml", [42, 43], "train", "seeds")
    assert load_results().fresh.stale == {}
    path = RECORDS / "custom_diffusion/cat/scores.csv"
    text = path.read_text()
    (path.parent / "seed-43").mkdir()
    (path.parent / "seed-43/scores.csv").write_text(text.replace(",cat,,", ",cat,43,"))
    found = load_results()
    assert found.trainings == 1 and found.seeds == {("custom_diffusion", "cat"): [43]}
    assert found.fresh.stale.keys() == {("custom_diffusion", "cat")}


def test_another_protocol_makes_all_stale_with_and_without_a_lock(known: Path) -> None:
    shutil.copy(f"datasets/protocols/{PROTOCOL}.yaml", "datasets/protocols/mine.yaml")
    set_value("params.yaml", "mine", "protocol")
    for lock in (None, *Path().glob("**/dvc.lock")):
        if lock:
            lock.unlink()
        found = load_results().fresh
        assert set(found.stale) == ALL | {("oracle", "cat"), ("oracle", "chair")}
        assert set(found.stale.values()) == {f"of protocol {PROTOCOL} and not mine"}
    assert not found.verified


def test_a_cell_that_dvc_does_not_know_is_stale(known: Path) -> None:
    Path("cells/pretrained/dvc.lock").unlink()
    found = load_results().fresh
    assert set(found.stale) == {cell for cell in ALL if cell[0] == "pretrained"}


def test_a_damaged_lock_is_told(known: Path) -> None:
    Path("cells/pretrained/dvc.lock").write_text("<<<<<<< HEAD\nstages: [\n")
    with pytest.raises(BenchError, match=r"cells/pretrained/dvc\.lock: not what DVC writes"):
        load_results()


def test_every_printed_table_marks_stale_numbers_and_says_why(
    known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table()
    assert STALE not in capsys.readouterr().out
    experiment()
    print_table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == HEADING
    (row,) = [line for line in lines if line.startswith("custom_diffusion ")]
    # Text- and image-alignment and KID of single concepts, not of the composition.
    assert row.count(STALE) == 3
    assert not any(STALE in line for line in lines if line.startswith("pretrained"))
    said = " ".join(lines)
    assert f"{STALE} stale, not the scores that dvc.lock knows" in said
    assert "custom_diffusion/cat" in said
    for style in ("markdown", "latex"):
        print_table(format=style)
        out = capsys.readouterr().out
        assert "custom_diffusion/cat" in out
        assert HEADING in out
    print_table(format="csv")
    captured = capsys.readouterr()
    assert STALE not in captured.out
    assert "custom_diffusion/cat" in captured.err

    print_comparison()
    out = capsys.readouterr().out
    assert out.startswith(f"{HEADING}\n")
    assert f" {STALE}" in out
    assert "custom_diffusion/cat" in out


def test_claims_and_the_page_mark_what_rests_on_stale_cells(known: Path) -> None:
    assert not claims_table(load_results()).marks
    experiment("cat+chair")
    results = load_results()
    table = claims_table(results)
    assert {str(table.rows[i][0]).partition(":")[0] for i, _ in table.marks} == {
        "joint training is no worse than merging"
    }
    assert any("custom_diffusion/cat+chair" in note for note in table.notes)
    compared = compare(results, load_params())
    assert {t.rows[i][0] for t in compared.tables for i, _ in t.marks} == {"custom_diffusion"}
    by = by_subject(results, "compositions")
    assert {by.rows[i][:2] for i, _ in by.marks} == {("cat+chair", "custom_diffusion")}
    write_report("toyland")
    text = Path("reports/index.html").read_text(encoding="utf-8")
    assert 'aria-label="Stale"' in text
    of_subject = re.findall(r'<details class="subject" id="([^"]+)">(.*?)</details>', text, re.S)
    caveat = f'<span class="caveat">{STALE}</span>'
    assert [name for name, part in of_subject if caveat in part] == ["cat+chair"]


def test_a_cell_that_failed_is_stale_too(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may not fail any more: the rate that it diverged at was lowered."""
    path = RECORDS / "custom_diffusion" / "cat" / "scores.csv"
    write_failure(path, Failure("diverged", "cat: the loss is not finite"))
    lock = YAML().load(Path("cells/custom_diffusion/dvc.lock"))
    (out,) = lock["stages"]["score@cat"]["outs"]
    out |= {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    YAML().dump(lock, Path("cells/custom_diffusion/dvc.lock"))
    assert load_results().fresh.stale == {}
    set_value("params.yaml", 7, "methods", "custom_diffusion", "steps")
    assert ("custom_diffusion", "cat") in load_results().fresh.stale
    (RECORDS / "custom_diffusion" / "chair" / "scores.csv").unlink()
    print_table()
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("custom_diffusion ")]
    assert row.count(f"diverged {STALE}") == 3


def test_without_a_lock_it_is_said_once(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table()
    assert capsys.readouterr().out.count("unverified") == 1
    assert load_results().fresh == Freshness({}, verified=False)


def test_means_over_fewer_subjects_are_marked(profile: Path) -> None:
    results = load_results()
    assert FEWER not in comparison(results).marks.values()
    (RECORDS / "pretrained" / "chair" / "scores.csv").unlink()
    table = comparison(load_results())
    places = {(table.rows[i][0], table.columns[j].key) for i, j in table.marks}
    assert places == {
        ("pretrained", f"single_{metric}")
        for metric in ("text_alignment", "image_alignment", "kid")
    }
    assert any("pretrained lacks chair (single concepts)" in note for note in table.notes)
    # Rows that all lack the same subjects can be compared.
    assert not comparison(load_results(), ["pretrained"]).marks
    assert FEWER not in as_csv(table)


def test_of_code_behind_digests_the_rooms_that_a_stage_runs_count(known: Path) -> None:
    """Stage `code` lists the files of all rooms; a cell depends on the digests of some."""
    for room in ("own", "other"):
        Path("eval", room).mkdir(parents=True)
        Path("eval", room, "a.py").write_text("x = 1\n")
    Path("eval/own/.a.py.swp").write_text("what an editor keeps")
    files = {f"eval/{room}/a.py": {"hash": "md5"} for room in ("own", "other")}
    for path, about in files.items():
        content = Path(path).read_bytes()
        about |= {"path": path, "md5": hashlib.md5(content).hexdigest(), "size": len(content)}
    digests = [
        {"path": f"runs/code/eval.{room}.txt", "hash": "md5",
         "md5": hashlib.md5(digest_of(f"eval/{room}").encode()).hexdigest(), "size": 1}
        for room in ("own", "other")
    ]  # fmt: skip
    code = {"cmd": "bench digest eval/own eval/other", "deps": [*files.values()], "outs": digests}
    lock = YAML().load(Path("dvc.lock"))
    lock["stages"]["code"] = code
    YAML().dump(lock, Path("dvc.lock"))
    path = Path("cells/custom_diffusion/dvc.lock")
    lock = YAML().load(path)
    lock["stages"]["score@cat"]["deps"].append(digests[0])
    YAML().dump(lock, path)
    assert load_results().fresh.stale == {}
    Path("eval/other/a.py").write_text("x = 2\n")
    assert load_results().fresh.stale == {}
    Path("eval/own/b.py").write_text("y = 1\n")
    assert load_results().fresh.stale == {("custom_diffusion", "cat"): "as eval/own has changed"}
