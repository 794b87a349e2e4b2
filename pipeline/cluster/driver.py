"""`bench cluster repro`: what `dvc repro` makes, on many machines."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster.locks import Entry, merged, read_lock, write_lock
from pipeline.cluster.package import copy_to, package
from pipeline.cluster.planning import Plan, changed, located, make_plan, opened
from pipeline.cluster.worker import Place, Result, run_stage, stage_environment
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.common.places import folder_of

FLUSH_SECONDS = 5.0  # between two times that what is done is recorded; so much a crash loses
REACH_SECONDS = 10.0  # in which a cluster has to answer
RETRIES = 3  # of a stage whose worker or machine was lost
# What workers get of this machine's environment, by its beginning.
PASSED = ("HF_", "TORCH_HOME", "BENCH_")


@dataclass(frozen=True)
class Options:
    """How to run a profile on a cluster."""

    address: str | None = None  # of a running Ray; None: one of this machine alone is started
    threads: int = 1  # that each stage computes with
    per_gpu: int = 1  # stages that share a GPU
    remote: str | None = None  # of DVC, if machines share no file system
    scratch: str | None = None  # where workers work
    dry: bool = False  # say what would run


def repro_on_cluster(profile: str, options: Options) -> int:
    """Runs a profile: its cells on the cluster, all else here.

    Args:
        profile: its name; the current folder is the project's root.
        options: how.

    Returns:
        The exit status: 1 if stages failed or `dvc repro` did.

    Raises:
        BenchError: it cannot be run like this, or was edited in the meantime.
    """
    folder = folder_of(profile)
    if options.address and options.address.startswith("ray://"):
        raise BenchError(
            f"--address {options.address}: this command reads and writes the project: run it on a "
            "machine of the cluster that has it, with --address auto"
        )
    if "/runtime_resources/" in f"{Path.cwd()}/":
        raise BenchError(
            "this folder is a copy that Ray throws away: in `ray job submit` leave --working-dir "
            "out and change to the project's folder"
        )
    if not ((folder / "dvc.yaml").is_file() and (folder / ".dvc" / "config").is_file()):
        raise BenchError(f"{folder}: has no stages yet: run `bench pipelines`")
    with _alone(folder):
        run = Run(folder, options)
        return run.dry() if options.dry else run.run()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one of these commands runs in a profile."""
    path = folder / ".dvc" / "tmp" / "cluster.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(
                f"{folder}: another `bench cluster repro` runs here: wait for it, or end it"
            ) from None
        yield


@dataclass
class Run:
    """A run of a profile's stages."""

    folder: Path
    options: Options
    plan: Plan = field(init=False)
    settled: dict[str, list[str]] = field(init=False)  # by lock: the names there at the start
    waiting: dict[str, Result] = field(default_factory=dict)  # results that are not recorded yet
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0  # that workers took

    def __post_init__(self) -> None:
        self.plan = make_plan(self.folder)
        self.settled = {lock: list(read_lock(self.folder / lock)) for lock in self.plan.order}
        remote = self.options.remote
        if remote is not None and remote not in self.plan.remotes:
            known = ", ".join(self.plan.remotes) or "none: add one with `dvc remote add`"
            raise BenchError(f"--remote {remote} is unknown to DVC in {self.folder}: {known}")

    def dry(self) -> int:
        """Prints what workers would run."""
        todo = self.todo()
        print("\n".join([*todo, f"cluster: {len(todo)} of {len(self.plan.shared)} stages"]))
        return 0

    def run(self) -> int:
        """Runs everything; the exit status."""
        stale = changed(self.folder, self.plan.stages)
        if not stale.isdisjoint(self.plan.before) and self._dvc("repro", *self.plan.before):
            return 1
        if stale:
            self._restore()
            if todo := self.todo():
                self._on_ray(todo)
            self._restore()
        if self.failed:
            # In the order of the plan: they end in any.
            failed, skipped = (
                ", ".join(address for address in self.plan.stages if address in some)
                for some in (self.failed, self.skipped)
            )
            print(f"cluster: failed: {failed}", file=sys.stderr)
            if skipped:
                print(f"cluster: skipped, as they read those: {skipped}")
            return 1
        if edited := changed(self.folder, self.plan.shared):
            some = ", ".join([*sorted(edited)[:5], *(["..."] if len(edited) > 5 else [])])
            raise BenchError(
                f"{len(edited)} stages are not of what is here now, which was edited during the "
                f"run: {some}: run the same command again"
            )
        status = self._dvc("repro")
        self._record({lock: {} for lock in self.plan.order})  # its own are at the end
        return int(status != 0)

    def todo(self) -> list[str]:
        """The stages that workers have to run, in order."""
        return self.plan.with_dependants(changed(self.folder, self.plan.shared))

    def _on_ray(self, todo: Sequence[str]) -> None:
        """Runs stages on the cluster and records what comes of them."""
        import ray

        files = package(Path.cwd(), {dep for a in todo for dep in self.plan.stages[a].deps})
        if self.options.remote:
            read = {up for a in todo for up in self.plan.stages[a].upstream}.difference(todo)
            if read and self._dvc("push", "--quiet", "--remote", self.options.remote, *read):
                raise BenchError(f"DVC could not push to the remote {self.options.remote}")
        with _quiet(self.folder / ".dvc" / "tmp" / "ray.log"):
            try:
                with tempfile.TemporaryDirectory() as snapshot:
                    copy_to(Path(snapshot), Path.cwd(), files)
                    connect(self.options.address, snapshot)
                self._submit_and_wait(todo)
            except KeyboardInterrupt:
                print("cluster: stopped; the same command goes on with what is left")
                raise
            finally:
                ray.shutdown()
                self._flush()

    def _submit_and_wait(self, todo: Sequence[str]) -> None:
        import ray

        gpus = _gpus(self.options.threads)
        task: Any = ray.remote(run_stage)
        place = self._place()
        entries = {lock: read_lock(self.folder / lock) for lock in self.settled}
        refs: dict[str, Any] = {}
        for address in todo:
            stage = self.plan.stages[address]
            gpu = gpus and stage.needs_gpu
            options = {
                "num_cpus": self.options.threads,
                "num_gpus": 1 / self.options.per_gpu if gpu else 0,
                "max_retries": RETRIES,
                "name": address,
            }
            upstream = [
                refs[up] if up in refs else self._recorded(up, entries) for up in stage.upstream
            ]
            before = None
            if stage.name in entries[stage.lock]:
                before = self._recorded(address, entries)
            refs[address] = task.options(**options).remote(stage, place, gpu, before, *upstream)
        start = flushed = time.monotonic()
        pending = {ref: address for address, ref in refs.items()}
        left = len(pending)
        print(f"cluster: {len(todo)} of {len(self.plan.shared)} stages to run", flush=True)
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=FLUSH_SECONDS)
            for ref in ready:
                self._take(pending.pop(ref), ref)
            if not pending or time.monotonic() - flushed >= FLUSH_SECONDS:
                self._flush()
                flushed = time.monotonic()
                if len(pending) < left:
                    left = len(pending)
                    self._print(left, flushed - start)

    def _take(self, address: str, ref: Any) -> None:
        """Keeps what became of a stage until it is recorded."""
        import ray

        try:
            result = ray.get(ref)
        except ray.exceptions.RayError as error:
            upstream = self.plan.stages[address].upstream
            lost = not {*self.failed, *self.skipped}.isdisjoint(upstream)
            result = Result(address, skipped=lost, log=str(error))
        self.seconds += result.seconds
        if result.entry is not None:
            self.waiting[address] = result
        elif result.skipped:
            self.skipped.append(address)
        else:
            self.failed.append(address)
            print(f"cluster: {address} failed on {result.node or 'a lost machine'}:")
            print("    " + "\n    ".join(result.log.strip().splitlines()[-15:]), flush=True)

    def _flush(self) -> None:
        """Writes what was made: small outputs first, then that they were made, in dvc.lock."""
        new: dict[str, dict[str, Entry]] = {}
        for address, result in self.waiting.items():
            lock, name = located(address)
            new.setdefault(lock, {})[name] = result.entry or {}
            for path, content in result.records.items():
                with atomic(self.folder / path) as part:
                    part.write_bytes(content)
        if new:
            self._record(new)
        self.done += self.waiting
        self.waiting.clear()

    def _record(self, new: Mapping[str, Mapping[str, Entry]]) -> None:
        """Adds entries to locks, all in the order in which `dvc repro` had written them."""
        with opened(self.folder) as repo, repo.lock:
            for lock, entries in new.items():
                there = read_lock(self.folder / lock)
                after = merged(there, entries, self.settled[lock], self.plan.order[lock])
                if list(after.items()) != list(there.items()):
                    write_lock(self.folder / lock, after)

    def _print(self, left: int, seconds: float) -> None:
        finished = len(self.done) + len(self.failed)
        more = f", {seconds / finished * left / 60:.0f} min more" if finished and left else ""
        print(
            f"cluster: {len(self.done)} done, {len(self.failed)} failed, {len(self.skipped)} "
            f"skipped, {left} left after {seconds / 60:.1f} min{more}; "
            f"{self.seconds / 3600:.2f} hours of work",
            flush=True,
        )

    def _place(self) -> Place:
        return Place(
            self.folder.as_posix(),
            str(self.plan.cache.resolve()),
            self.options.remote,
            self.plan.remotes if self.options.remote else {},
            self.options.scratch,
            self.options.threads,
        )

    def _recorded(self, address: str, entries: Mapping[str, Mapping[str, Entry]]) -> Result:
        """What became of a stage in an earlier run."""
        lock, name = located(address)
        files = {path: self.folder / path for path in self.plan.stages[address].records}
        records = {path: file.read_bytes() for path, file in files.items() if file.is_file()}
        return Result(address, entries[lock][name], records)

    def _restore(self) -> None:
        """Puts in place what DVC has recorded of the cells' outputs, as far as it is there."""
        locks = {lock: read_lock(self.folder / lock) for lock in self.settled}
        known = [a for a, s in self.plan.shared.items() if s.name in locks[s.lock]]
        remote = self.options.remote
        fetch = ["pull", "--remote", remote] if remote else ["checkout"]
        if known:
            self._dvc(*fetch, "--quiet", "--force", "--allow-missing", *known)

    def _dvc(self, *command: str) -> int:
        """Runs DVC in the profile's folder, with the threads that stages have on workers."""
        environ = {**os.environ, **stage_environment(self.options.threads)}
        command = (sys.executable, "-m", "dvc", *command)
        return subprocess.run(command, cwd=self.folder, env=environ, check=False).returncode


def connect(address: str | None, working_dir: str | None = None) -> None:
    """Joins a cluster, or starts one of this machine alone with as many slots as it has cores.

    Args:
        address: of a running Ray, `auto` for that of this machine; None starts one.
        working_dir: a folder that workers get a copy of.

    Raises:
        BenchError: there is none at the address.
    """
    if address not in (None, "auto"):
        _reach(address)
    # Read when Ray is started or first used.
    os.environ |= {"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("RAY_task_oom_retries", "1")  # forever, without
    import ray

    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED)}
    environment: dict[str, Any] = {"env_vars": passed}
    if working_dir:
        environment["working_dir"] = working_dir
    some = getattr(os, "sched_getaffinity", None)  # Linux: the cores that this process may use
    local: dict[str, Any] = {
        "num_cpus": len(some(0)) if some else os.cpu_count(),
        "include_dashboard": False,
        "object_store_memory": 128 * 2**20,
    }
    try:
        ray.init(
            address=address or "local",
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if address is None else {}),
        )
    except (ConnectionError, ValueError) as error:
        raise _silent(address, str(error).splitlines()[0]) from error


def _reach(address: str) -> None:
    """Whether anything answers there: Ray itself would try for minutes.

    Raises:
        BenchError: nothing does, or it is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BenchError(f"--address {address}: say auto, or HOST:PORT such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _silent(address, error) from error


def _silent(address: str | None, why: object) -> BenchError:
    return BenchError(
        f"--address {address}: no Ray cluster answers ({why}): start one with "
        "`ray start --head`, and see docs/cluster.md"
    )


def _gpus(threads: int) -> bool:
    """Whether the cluster has GPUs.

    Raises:
        BenchError: none of its machines has as many cores as a stage is to have threads.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if (cores := max((node.get("CPU", 0) for node in nodes), default=0)) < threads:
        raise BenchError(f"--threads {threads}: no machine has more than {cores:.0f} cores for Ray")
    return any(node.get("GPU", 0) for node in nodes)


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Sends standard error to a file: Ray has dozens of lines there for each machine it loses."""
    sys.stderr.flush()
    kept = os.dup(2)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
