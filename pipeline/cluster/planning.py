"""Which stages of a profile run on the cluster, and in what order: DVC's graph says it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro

from pipeline.common.errors import BenchError

# Stages that compute nothing with a model; each other one gets a GPU where there are any.
WITHOUT_GPU = {"fetch", "shard", "gallery"}


@dataclass(frozen=True)
class Stage:
    """A stage that a worker runs. Paths are relative to the profile's folder."""

    address: str  # as DVC takes it in the profile's folder: cells/lora/dvc.yaml:train@cat
    cached: bool  # whether DVC keeps any of its outputs in its cache
    records: tuple[str, ...]  # outputs that it does not keep there: small files
    upstream: tuple[str, ...]  # addresses of the stages whose outputs it reads
    deps: tuple[str, ...]  # what else it reads of this machine, as absolute paths

    @property
    def name(self) -> str:
        """What it is called in its dvc.yaml and dvc.lock: train@cat."""
        return located(self.address)[1]

    @property
    def lock(self) -> str:
        """The dvc.lock that records it."""
        return located(self.address)[0]

    @property
    def needs_gpu(self) -> bool:
        """Whether it computes with a model."""
        kind = self.name.partition("@")[0].removesuffix("_sequence_concept")
        return kind not in WITHOUT_GPU


@dataclass(frozen=True)
class Plan:
    """The stages of a profile."""

    stages: dict[str, Stage]  # those of workers and of `before`, in the order of `dvc repro`
    before: tuple[str, ...]  # what feeds them and is nobody's own: run first, on this machine
    order: dict[str, list[str]]  # by dvc.lock: the names of all stages, in the same order
    cache: Path  # DVC's, as an absolute path
    remotes: dict[str, dict[str, Any]]  # DVC's, by their names

    @property
    def shared(self) -> dict[str, Stage]:
        """The stages that workers run."""
        return {a: stage for a, stage in self.stages.items() if a not in self.before}

    def with_dependants(self, stale: Collection[str]) -> list[str]:
        """These stages and all that read what they make, as far as workers run them; in order."""
        found: dict[str, None] = {}
        for address, stage in self.shared.items():
            if address in stale or not found.keys().isdisjoint(stage.upstream):
                found[address] = None
        return list(found)


def located(address: str) -> tuple[str, str]:
    """The dvc.lock that records a stage, and its name there."""
    file, _, name = address.partition(":")
    return Path(file).with_name("dvc.lock").as_posix(), name


def make_plan(folder: Path) -> Plan:
    """Reads a profile's stages.

    A worker runs what is of one subject (`name@subject`) and all in the files of methods.

    Args:
        folder: the DVC project that the profile is.

    Raises:
        BenchError: something that feeds the cells reads what they make.
    """
    with opened(folder) as repo:
        graph = get_active_graph(repo.index.graph)
        ordered = plan_repro(graph, repo.stage.collect(f"{repo.root_dir}/dvc.yaml"))
        shared = [s for s in ordered if "@" in s.name or "/" in s.path_in_repo]
        feeding = {up for stage in shared for up in graph.successors(stage)}.difference(shared)
        waiting = list(feeding)
        while waiting:
            above = set(graph.successors(stage := waiting.pop()))
            if wrong := above.intersection(shared):
                raise BenchError(
                    f"{folder / 'dvc.yaml'}: {stage.name} is read by cells and reads "
                    f"{_address(next(iter(wrong)))}: it has to be of one subject, or not between"
                )
            waiting += above - feeding
            feeding |= above
        places = {stage: place for place, stage in enumerate(ordered)}
        made = {out.fs_path for stage in ordered for out in stage.outs}
        order: dict[str, list[str]] = {}
        for stage in ordered:
            lock, name = located(_address(stage))
            order.setdefault(lock, []).append(name)
        return Plan(
            {
                _address(stage): Stage(
                    _address(stage),
                    any(out.use_cache for out in stage.outs),
                    tuple(
                        Path(out.fs_path).relative_to(repo.root_dir).as_posix()
                        for out in stage.outs
                        if not out.use_cache
                    ),
                    tuple(map(_address, sorted(graph.successors(stage), key=places.__getitem__))),
                    tuple(sorted({dep.fs_path for dep in stage.deps} - made)),
                )
                for stage in ordered
                if stage in feeding or stage in shared
            },
            tuple(_address(stage) for stage in ordered if stage in feeding),
            order,
            Path(repo.cache.local_cache_dir),
            {name: dict(options) for name, options in repo.config["remote"].items()},
        )


def changed(folder: Path, addresses: Collection[str]) -> set[str]:
    """Which of these stages `dvc repro` would run, were those before them up to date."""
    with opened(folder) as repo, repo.lock:
        return {
            _address(stage)
            for stage in repo.index.stages
            if _address(stage) in addresses and stage.changed()
        }


@contextmanager
def opened(folder: Path) -> Iterator[Repo]:
    """DVC's view of a profile; its lock waits for another `dvc` that holds it.

    Raises:
        BenchError: a file of DVC's is damaged.
    """
    try:
        with closing(Repo(str(folder), _wait_for_lock=True)) as repo:
            yield repo
    except DvcException as error:
        raise BenchError(f"{folder}: {error}: `bench doctor` says what to do") from error


def _address(stage: Any) -> str:
    return f"{stage.path_in_repo}:{stage.name}"
