"""`bench cluster repro` on a cluster of two machines, which are processes here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dvc.cli import main as dvc

from pipeline.cluster.driver import Options, repro_on_cluster
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from tests.pipeline.cluster.test_parts import alive, within
from tests.pipeline.cluster.toy import STAGES, Toy, make_toy

cluster_utils = pytest.importorskip("ray.cluster_utils")

ROOT = Path(__file__).parents[3]
NODE = {"num_cpus": 1, "num_gpus": 2, "object_store_memory": 80 * 2**20}
# So that a lost machine is noticed in seconds.
HEALTH = {"initial_delay_ms": 0, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 3}
PATIENCE = 180.0  # seconds that a busy machine may take for what takes a few
AFTER_C = {"shard@c", "train@c", "score@c", "train_two_1", "train_two_2", "score_two", "report"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HEALTH.items():
            patch.setenv(f"RAY_health_check_{name}", str(value))
        patch.setenv("RAY_worker_niceness", "0")  # they are polite by default, and tests wait
        patch.setenv("PYTHONPATH", str(ROOT))
        head = {**NODE, "num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
        made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                made.add_node(**NODE)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The project after `dvc repro`."""
    toy = make_toy(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_TOY", str(toy.desk))
        toy.repro()
    return toy


@pytest.fixture(scope="module")
def edited(finished: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `dvc repro` makes of the finished project after `data/c` was edited."""
    toy = finished.copy(tmp_path_factory.mktemp("edited"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_TOY", str(toy.desk))
        (toy.root / "data/c").write_text("edited")
        toy.repro()
    assert toy.started().keys() == AFTER_C
    return toy.files()


@pytest.fixture
def toy(finished: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A copy of the finished project with `data/c` edited, as the current folder."""
    copied = finished.copy(tmp_path)
    (copied.root / "data/c").write_text("edited")
    return entered(copied, monkeypatch)


def entered(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.chdir(toy.root)
    monkeypatch.setenv("BENCH_TOY", str(toy.desk))
    return toy


def run(cluster: Any, toy: Toy, **other: Any) -> int:
    options = Options(address=cluster.address, scratch=str(toy.desk / "scratch"), **other)
    return repro_on_cluster(DEFAULT_PROFILE, options)


def while_running(steer: Callable[[], Any], work: Callable[[], Any]) -> Any:
    """What `work` returns, while `steer` runs beside it."""
    with ThreadPoolExecutor() as pool:
        steering = pool.submit(steer)
        result = work()
        steering.result()
    return result


def test_it_makes_what_dvc_repro_makes(
    cluster: Any, finished: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = entered(make_toy(tmp_path), monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run(cluster, toy) == 0
    assert toy.files() == finished.files()  # outputs and locks, to the byte
    assert toy.started() == Counter(STAGES)
    here, there = set(), set()
    for note in toy.notes():
        name, gpus = note["name"].partition("@")[0], note["CUDA_VISIBLE_DEVICES"]
        (here if name in ("world", "report") else there).add(note["cwd"])
        assert note["OMP_NUM_THREADS"] == "1", note
        if note["cwd"] != str(toy.root):
            assert note["PYTHONPATH"] == ".", note
            assert gpus in ([""] if name == "shard" else ["0", "1"]), note
    assert here == {str(toy.root)} and len(there) == 13
    toy.forget()
    assert dvc(["repro", "--quiet"]) == 0
    assert toy.notes() == []
    assert not list((toy.desk / "scratch").rglob("copy-*"))


def test_a_machine_that_is_lost(
    cluster: Any, toy: Toy, edited: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train@c", "train_two_1"):
        toy.hold(name)

    def lose_one() -> set[str]:
        assert within(PATIENCE, lambda: {"train@c", "train_two_1"} <= toy.started().keys())
        pids = {n["name"]: n["pid"] for n in toy.notes() if n["what"] == "start"}
        workers = {n["name"]: int(n["cwd"].split("/copy-")[1].split("-")[-2]) for n in toy.notes()
                   if "/copy-" in n["cwd"]}  # fmt: skip
        machine = node_of(workers["train@c"])
        lost = {n for n in ("train@c", "train_two_1") if node_of(workers[n]) == machine}
        assert lost == {"train@c"}
        (node,) = [n for n in cluster.list_all_nodes() if raylet(n) == machine]
        cluster.remove_node(node, allow_graceful=False)
        assert within(30, lambda: not any(alive(pids[name]) for name in lost))
        for name in ("train@c", "train_two_1"):
            toy.release(name)
        return lost

    lost: set[str] = set()
    try:
        assert while_running(lambda: lost.update(lose_one()), lambda: run(cluster, toy)) == 0
    finally:
        cluster.add_node(**NODE)
    assert toy.files() == edited
    assert "train@c" in lost
    assert toy.started() == Counter(AFTER_C) + Counter(lost)


def raylet(node: Any) -> int:
    (process,) = node.all_processes["raylet"]
    return process.process.pid


def node_of(worker: int) -> int:
    """The raylet that started a worker."""
    return int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_driver_that_is_killed(cluster: Any, toy: Toy, edited: dict[str, bytes]) -> None:
    toy.hold("train_two_2")
    code = (
        "import sys; from pipeline.cluster.driver import Options, repro_on_cluster\n"
        "repro_on_cluster('toyland', Options(address=sys.argv[1], scratch=sys.argv[2]))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, cluster.address, str(toy.desk / "scratch")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )

    try:
        ended = {"score@c", "train_two_1"}
        assert within(PATIENCE, lambda: ended <= {
            n["name"] for n in toy.notes() if n["what"] == "end"
        } and "train_two_2" in toy.started())  # fmt: skip
        (pid,) = [n["pid"] for n in toy.notes() if n["name"] == "train_two_2"]
        time.sleep(6)  # seconds in which what is done is recorded
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert within(30, lambda: not alive(pid))
    toy.release("train_two_2")
    assert run(cluster, toy) == 0
    assert toy.files() == edited
    assert toy.started() == Counter(AFTER_C) + Counter({"train_two_2"})


def test_a_stage_that_fails_and_what_is_left_after_it(
    cluster: Any, toy: Toy, edited: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    toy.fail("train_two_1")
    assert run(cluster, toy) == 1
    said = capfd.readouterr()
    assert "train_two_1 was told to fail" in said.out
    assert "failed: cells/two/dvc.yaml:train_two_1" in said.err
    (skipped,) = [line for line in said.out.splitlines() if "skipped, as" in line]
    assert skipped.endswith("cells/two/dvc.yaml:train_two_2, cells/two/dvc.yaml:score_two")
    assert toy.started() == Counter({"shard@c", "train@c", "score@c", "train_two_1"})

    # The next run makes what is left, and what somebody has lost: a record, an output in DVC's
    # cache and all that DVC remembers of runs. Nothing that reads the same runs again.
    toy.mend("train_two_1")
    toy.forget()
    (toy.root / "reports/cells/one/a/scores.csv").unlink()
    md5 = toy.entry("dvc.lock", "shard@b")["outs"][0]["md5"]
    (toy.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    for name in ("runs/shards/b", "runs/cells/one/b/adapter"):  # the second can be restored
        (toy.root / name).unlink()
    subprocess.run(["rm", "-r", str(toy.root / ".dvc/cache/runs")], check=True)
    assert run(cluster, toy) == 0
    assert toy.files() == edited
    left = {"train_two_1", "train_two_2", "score_two", "score@a", "shard@b", "report"}
    assert toy.started() == Counter(left)


def test_parameters_that_are_edited_during_a_run(cluster: Any, toy: Toy) -> None:
    toy.hold("train@c")

    def edit() -> None:
        assert within(PATIENCE, lambda: "train@c" in toy.started())
        (toy.root / "scale.yaml").write_text("scale: 2\n")
        toy.release("train@c")

    with pytest.raises(BenchError, match=r"6 stages are not of what is here now.*one/dvc.yaml:tr"):
        while_running(edit, lambda: run(cluster, toy))
    # The record says what was used, not what is there now.
    assert toy.entry("cells/one/dvc.lock", "train@c")["params"] == {"scale.yaml": {"scale": 1}}
    assert "report" not in toy.started()


def test_machines_that_share_no_files(cluster: Any, toy: Toy, edited: dict[str, bytes]) -> None:
    assert dvc(["remote", "add", "--quiet", "store", str(toy.desk / "store")]) == 0
    assert run(cluster, toy, remote="store") == 0
    assert toy.files() == edited
    assert toy.started() == Counter(AFTER_C)


def test_nothing_to_do_starts_no_ray(finished: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    entered(finished, monkeypatch)
    finished.forget()
    assert repro_on_cluster(DEFAULT_PROFILE, Options(address="nowhere:1")) == 0
    assert finished.notes() == []
