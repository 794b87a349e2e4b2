"""What `bench cluster` is made of, without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import modify_yaml

from pipeline.cluster.check import Machine, faults, look, versions
from pipeline.cluster.driver import Options, connect, repro_on_cluster
from pipeline.cluster.locks import merged, read_lock, write_lock
from pipeline.cluster.package import package
from pipeline.cluster.planning import changed, make_plan
from pipeline.cluster.supervisor import supervised
from pipeline.cluster.worker import Place, Result, _copy, run_stage
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE, folder_of
from pipeline.settings.profile import load_params
from tests.pipeline.cluster.toy import STAGES, Toy, make_toy

ROOT = Path(__file__).parents[3]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = make_toy(tmp_path)
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("BENCH_TOY", str(made.desk))
    return made


def place(toy: Toy, **other: object) -> Place:
    scratch = str(toy.desk / "scratch")
    values = {"cache": str(toy.root / ".dvc/cache"), "remote": None, "scratch": scratch, **other}
    return Place(".", remotes={}, threads=3, **values)


# --- DVC's records ------------------------------------------------------------------------------


def test_a_lock_has_the_bytes_that_dvc_writes(tmp_path: Path) -> None:
    written_by_dvc = [*ROOT.glob("cells/*/dvc.lock"), ROOT / "profiles/smoke/dvc.lock"]
    assert len(written_by_dvc) > 3
    for lock in written_by_dvc:
        write_lock(tmp_path / "dvc.lock", read_lock(lock))
        assert (tmp_path / "dvc.lock").read_bytes() == lock.read_bytes(), lock


def test_merging_writes_what_dvc_writes_when_it_runs_stages_one_after_the_other(
    tmp_path: Path,
) -> None:
    some = list(read_lock(ROOT / "profiles/smoke/dvc.lock").values())
    before = {f"train@{n}": some[n % len(some)] for n in (7, 3, 9)}
    new = {f"train@{n}": some[(n + 1) % len(some)] for n in (9, 3, 1, 5)}
    order = [f"train@{n}" for n in range(20)]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_lock(theirs, before)
    for name in sorted(new, key=order.index):
        with modify_yaml(str(theirs)) as data:  # what DVC does after each stage
            data["stages"][name] = new[name]
    there = merged(before, {"train@5": new["train@5"]}, before, order)  # in two flushes
    write_lock(ours, merged(there, new, before, order))
    assert ours.read_bytes() == theirs.read_bytes()


def test_merging_six_hundred_entries_is_quick(tmp_path: Path) -> None:
    entry = read_lock(ROOT / "cells/dreambooth/dvc.lock")["score@cat"]
    write_lock(tmp_path / "dvc.lock", {f"score@{n}": entry for n in range(600)})
    start = time.process_time()
    there = read_lock(tmp_path / "dvc.lock")
    write_lock(tmp_path / "dvc.lock", merged(there, {"score@9": entry}, there, list(there)))
    assert time.process_time() - start < 4


# --- what runs where ----------------------------------------------------------------------------


def test_what_only_fetches_and_packs_holds_no_gpu() -> None:
    """By what the default profile's stages run, of concepts of sequences as of others."""
    packing = {"toyland draw", "fetch", "shard", "gallery"}
    for address, stage in make_plan(ROOT).shared.items():
        file, _, name = address.partition(":")
        found = yaml.safe_load((ROOT / file).read_text())["stages"][name.partition("@")[0]]
        command = found.get("do", found)["cmd"]
        lines = [command] if isinstance(command, str) else command
        packs = all(any(line.startswith(f"bench {kind} ") for kind in packing) for line in lines)
        assert stage.needs_gpu != packs, address


def test_a_plan_has_every_cell_with_what_it_reads(toy: Toy) -> None:
    plan = make_plan(Path())
    assert plan.before == ("dvc.yaml:world",)
    assert {stage.name for stage in plan.shared.values()} == STAGES - {"world", "report"}
    of = {stage.name: stage for stage in plan.stages.values()}
    assert of["train_two_2"].upstream == ("dvc.yaml:shard@a", "cells/two/dvc.yaml:train_two_1")
    assert of["score@a"].lock == "cells/one/dvc.lock" and not of["score@a"].cached
    assert of["train@b"].records == ("reports/cells/one/b/cost.json",)
    assert of["train@b"].needs_gpu and not of["shard@b"].needs_gpu
    places = list(plan.stages)
    assert all(places.index(up) < places.index(a) for a in plan.stages for up in of[
        plan.stages[a].name].upstream)  # fmt: skip
    assert changed(Path(), plan.shared) == set(plan.shared)
    stale = plan.with_dependants({"dvc.yaml:shard@a"})
    assert {plan.stages[a].name for a in stale} == {
        "shard@a", "train@a", "score@a", "train_two_2", "score_two", "merge@a+b",
    }  # fmt: skip


def test_what_feeds_cells_and_reads_them_is_refused(toy: Toy) -> None:
    text = (toy.root / "dvc.yaml").read_text()
    between = text.replace("deps: [tool.py, source/all]", "deps: [runs/cells/two/1]")
    between = between.replace("[tool.py, runs/world, ", "[tool.py, ")  # shards are another's
    (toy.root / "dvc.yaml").write_text(between)
    cells = toy.root / "cells/one/dvc.yaml"
    cells.write_text(cells.read_text().replace("deps: [tool.py,", "deps: [runs/world,"))
    with pytest.raises(BenchError, match=r"world is read by cells and reads .*two"):
        make_plan(Path())


def test_the_package_is_what_git_holds_and_what_stages_name(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data/a", "data/__pycache__/x.pyc", "data/b.part", "runs/old"):
        (toy.root / name).parent.mkdir(parents=True, exist_ok=True)
        (toy.root / name).write_text("x")
    (toy.root / "untracked").write_text("x")
    subprocess.run(["git", "add", "scale.yaml", "source"], check=True)
    (toy.root / "source/all").unlink()
    found = {str(path) for path in package(toy.root, [str(toy.root / "data"), "/etc/hostname"])}
    assert {"scale.yaml", "untracked", "data/a", "cells/one/dvc.yaml"} <= found
    assert found.isdisjoint({"source/all", "data/b.part", "data/__pycache__/x.pyc", "runs/old"})
    monkeypatch.setattr("pipeline.cluster.package.LIMIT", 2**20)
    (toy.root / "huge").write_bytes(bytes(2**20))
    with pytest.raises(BenchError, match=r"^huge: the project's files are 1 MiB"):
        package(toy.root, [])


# --- a stage on a worker ------------------------------------------------------------------------


def test_a_stage_runs_in_a_copy_of_its_own_and_sees_what_it_should(toy: Toy) -> None:
    toy.repro()
    stages = {stage.name: stage for stage in make_plan(Path()).stages.values()}
    train, where = stages["train@a"], place(toy)
    shard = Result(stages["shard@a"].address, toy.entry("dvc.lock", "shard@a"))
    cost = {path: (toy.root / path).read_bytes() for path in train.records}
    before = Result(train.address, toy.entry(train.lock, train.name), cost)
    workshop = toy.desk / "scratch" / f"concept-bench-{os.getuid()}"
    dead = workshop / f"copy-{os.uname().nodename}-99999999-x"
    dead.mkdir(parents=True)
    made = toy.files()
    toy.forget()

    result = run_stage(train, where, False, before, shard)
    assert (result.entry, result.records) == (before.entry, cost)
    assert toy.notes() == []  # there was nothing to do

    (toy.root / "scale.yaml").write_text("scale: 2\n")
    result = run_stage(train, where, False, before, shard)
    note, _ = toy.notes()
    assert result.records.keys() == cost.keys() and result.records != cost
    assert result.entry["params"] == {"scale.yaml": {"scale": 2}}
    seen = [note[name] for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")]
    assert seen == ["3", "", "."]
    assert workshop in Path(note["cwd"]).parents and not Path(note["cwd"]).exists()
    assert not dead.exists()  # what a killed worker left
    assert toy.files() == made  # nothing happened here

    toy.fail("train@a")
    (toy.root / "scale.yaml").write_text("scale: 3\n")
    result = run_stage(train, where, False, None, shard)
    assert result.entry is None and not result.skipped and "told to fail" in result.log
    assert run_stage(stages["score@a"], where, False, None, result, shard).skipped


def test_what_is_half_done_outlives_the_copy(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """For stages of this project; a stage removes it when it is done."""
    for where, kept in ((place(toy), "half"), (place(toy, cache="/of/another/project"), None)):
        with _copy(place(toy)) as copy:
            (copy / where.runs() / "unfinished/train").mkdir(exist_ok=True)
            (copy / where.runs() / "unfinished/train/step").write_text("half")
        with _copy(where) as copy:
            path = copy / where.runs() / "unfinished/train/step"
            assert (path.read_text() if path.is_file() else None) == kept
    monkeypatch.chdir(ROOT)
    for name in ("toyland", "smoke"):
        of_profile = replace(place(toy), folder=folder_of(name).as_posix())
        assert of_profile.runs() == load_params(name).runs()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a disk that is soon full")
def test_a_full_disk_fails_the_stage_and_leaves_no_record(toy: Toy) -> None:
    cache = toy.desk / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(cache)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (toy.root / "tool.py").write_text(
            "import sys\nopen('runs/world', 'wb').write(bytes(10**6))\n"
        )
        (toy.root / "runs").mkdir()
        world = make_plan(Path()).stages["dvc.yaml:world"]
        result = run_stage(world, place(toy, cache=str(cache)), False, None)
        assert result.entry is None and "No space left" in result.log
        subprocess.run(["mount", "-o", "remount,size=4m", str(cache)], check=True)
        assert run_stage(world, place(toy, cache=str(cache)), False, None).entry
    finally:
        subprocess.run(["umount", str(cache)], check=False)


# --- the supervisor -----------------------------------------------------------------------------


def test_a_status_survives_that_ray_has_workers_ignore_the_end_of_children(tmp_path: Path) -> None:
    def status(script: str) -> int | None:
        return supervised(["sh", "-c", script], tmp_path, os.environ, tmp_path / "log")

    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert status("echo said; exit 0") == 0
        assert status("false") == 1
        assert status('sh -c "exit 4"; exit $?') == 4  # what the command starts has them, too
        assert status("kill -KILL $$") == -9
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert (tmp_path / "log").read_text() == "said\n"


def test_nothing_outlives_the_worker(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipeline.cluster.supervisor import supervised\n"
        "at = Path(sys.argv[1])\n"
        "command = 'sleep 99 & echo $! > a; echo $$ > b; wait'\n"
        "supervised(['sh', '-c', command], at, os.environ, at / 'log')"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    pids = []
    try:
        assert within(10, lambda: (tmp_path / "b").is_file() and (tmp_path / "b").read_text())
        pids = [int((tmp_path / name).read_text()) for name in "ab"]
        assert all(map(alive, pids))
        worker.kill()
        assert within(3, lambda: not any(map(alive, pids)))
    finally:
        worker.kill()
        worker.wait()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def within(seconds: float, condition: object) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(met)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- addresses, and the check ------------------------------------------------------------------


@pytest.mark.parametrize(
    "address, message",
    [("localhost:1", "no Ray cluster answers"), ("head", "say auto, or HOST:PORT"),
     ("ray://head:10001", "run it on a machine of the cluster")],
)  # fmt: skip
def test_addresses_where_there_is_no_cluster(toy: Toy, address: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(BenchError, match=message):
        if address.startswith("ray"):
            repro_on_cluster(DEFAULT_PROFILE, Options(address))
        connect(address)
    assert time.monotonic() - start < 5  # Ray would try for minutes


@pytest.mark.parametrize("path", ["dvc.lock", "dvc.yaml", "cells/one/dvc.lock"])
def test_a_file_that_was_cut_is_told(toy: Toy, path: str) -> None:
    toy.repro()
    content = (toy.root / path).read_bytes()
    (toy.root / path).write_bytes(content[: len(content) // 2] + b"\n  [")
    with pytest.raises(BenchError, match=r"dvc\.(lock|yaml).*`bench doctor` says what to do"):
        repro_on_cluster(DEFAULT_PROFILE, Options(dry=True))


@pytest.mark.parametrize("path", ["dvc.yaml", ".dvc/config"])
def test_a_profile_without_stages_is_told(toy: Toy, path: str) -> None:
    (toy.root / path).unlink()
    with pytest.raises(BenchError, match="has no stages yet: run `bench pipelines`"):
        repro_on_cluster(DEFAULT_PROFILE, Options(dry=True))


def test_check_names_what_a_machine_lacks(toy: Toy) -> None:
    cache = toy.root / ".dvc/cache"
    cache.mkdir()
    (cache / "token").touch()
    assert faults(look(place(toy), "token"), versions()) == []
    (fault,) = look(place(toy), "other").wrong
    assert "not the folder that it is on the first machine" in fault
    assert look(place(toy, remote="store"), "other").wrong == ()
    (fault,) = look(place(toy, scratch="/proc/nowhere"), "token").wrong
    assert "--scratch" in fault
    old = Machine("host", {**versions(), "dvc": "2.0"}, (), 0, None)
    (fault,) = faults(old, versions())
    assert fault.startswith("dvc is 2.0, here it is 3.")
