"""`bench cluster check`: whether each machine of a cluster has what stages need."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.driver import connect
from pipeline.cluster.planning import opened
from pipeline.cluster.worker import Place
from pipeline.common.errors import BenchError
from pipeline.common.places import folder_of

PACKAGES = ("ray", "dvc", "torch", "diffusers", "transformers", "open_clip_torch")
LITTLE = 20 * 2**30  # bytes of free space that are too few for a large profile
SECONDS = 120.0  # in which a machine has to answer


@dataclass(frozen=True)
class Machine:
    """What a machine says of itself."""

    host: str
    versions: dict[str, str]  # of Python and of packages
    wrong: tuple[str, ...]  # what keeps stages from running there
    scratch: int  # bytes free where workers work
    cache: int | None  # bytes free where DVC's cache is; None: results go to a remote


def look(place: Place, token: str) -> Machine:
    """What stages would find on this machine.

    Args:
        place: where they would run.
        token: the name of a file in DVC's cache, if machines share it.
    """
    wrong = []
    if shutil.which("bench", path=str(Path(sys.executable).parent)) is None:
        wrong.append(f"no `bench` beside {sys.executable}: install the project there")
    cache = None
    if place.remote is None:
        if not Path(place.cache, token).is_file():
            wrong.append(
                f"{place.cache} is not the folder that it is on the first machine: share it under "
                "this path, or use --remote"
            )
        elif not os.access(place.cache, os.W_OK):
            wrong.append(f"{place.cache} may not be written to")
        else:
            cache = shutil.disk_usage(place.cache).free
    free = 0
    try:
        free = shutil.disk_usage(place.workshop()).free
    except OSError as error:
        wrong.append(f"nothing can be written for --scratch: {error}")
    return Machine(socket.gethostname(), versions(), tuple(wrong), free, cache)


def versions() -> dict[str, str]:
    """Of Python and of what stages compute with, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def faults(machine: Machine, here: Mapping[str, str]) -> list[str]:
    """What is wrong with a machine, given the versions on the first one."""
    other = [
        f"{name} is {machine.versions[name]}, here it is {version}"
        for name, version in here.items()
        if machine.versions[name] != version
    ]
    return [*machine.wrong, *other]


def check_cluster(
    profile: str, address: str | None, remote: str | None, scratch: str | None
) -> int:
    """Prints what each machine has and lacks.

    Args:
        profile: whose cache or remote it is about.
        address: of the cluster; None: this machine alone.
        remote: the name of DVC's, if machines share no file system.
        scratch: where workers work.

    Returns:
        The exit status: 1 if stages would fail on a machine.

    Raises:
        BenchError: there is no cluster.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with opened(folder_of(profile)) as repo:
        cache = Path(repo.cache.local_cache_dir).resolve()
        if remote is not None and remote not in repo.config["remote"]:
            raise BenchError(f"--remote {remote} is unknown to DVC: `dvc remote add` makes one")
    token = f"check-{uuid.uuid4().hex}"
    place = Place(folder_of(profile).as_posix(), str(cache), remote, {}, scratch, 1)
    connect(address)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / token).touch()
    try:
        status = 0
        task: Any = ray.remote(look)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        refs = []  # asked all at once
        for node in nodes:
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            there = task.options(num_cpus=0, scheduling_strategy=pinned)
            refs.append(there.remote(place, token))
        for node, ref in zip(nodes, refs, strict=True):
            has = node["Resources"]
            what = f"{has['CPU']:.0f} cores, {has.get('GPU', 0):.0f} GPUs"
            try:
                machine = ray.get(ref, timeout=SECONDS)
            except (ray.exceptions.RayError, TimeoutError) as error:
                print(f"{node['NodeManagerHostname']}: {what}: no answer: {str(error).strip()}")
                status = 1
                continue
            spaces = [("scratch", machine.scratch), ("cache", machine.cache)]
            said = [f"{s / 2**30:.0f} GiB for {name}" for name, s in spaces if s is not None]
            print(f"{machine.host}: {', '.join([what, *said])}")
            for fault in faults(machine, versions()):
                print(f"    wrong: {fault}")
                status = 1
            for name, space in spaces:
                if space is not None and space < LITTLE:
                    print(f"    little space for {name}: a large profile may not fit")
        if not nodes:
            print("no machine has a core for Ray")
            status = 1
    finally:
        ray.shutdown()
        (cache / token).unlink()
    return status
