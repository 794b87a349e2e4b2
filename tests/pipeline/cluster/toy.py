"""A DVC project of fifteen stages that take no time, in the layout of a profile.

Its commands note when they start and end, and what they see of their environment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from dvc.cli import main as dvc

from pipeline.bench.pipelines import PROJECT
from pipeline.cluster.locks import read_lock

# What a stage runs: its outputs are a function of its inputs, its name and a parameter.
TOOL = """\
import hashlib, json, os, sys, time
name, *paths = sys.argv[1:]
outs, deps = paths[: paths.index("--")], paths[paths.index("--") + 1 :]
folder = os.environ["BENCH_TOY"]
def note(what):
    seen = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
    line = json.dumps({"what": what, "name": name, "pid": os.getpid(), "cwd": os.getcwd(), **seen})
    with open(folder + "/log", "a") as log:
        log.write(line + "\\n")
note("start")
def present(what):
    return os.path.exists(f"{folder}/{what} {name}")
while present("hold"):
    time.sleep(0.02)
if present("fail"):
    sys.exit(f"{name} was told to fail")
content = name.encode() + open("scale.yaml", "rb").read()
for dep in sorted(deps):
    found = [dep]
    if os.path.isdir(dep):
        found = sorted(os.path.join(at, f) for at, _, files in os.walk(dep) for f in files)
    for file in found:
        content += open(file, "rb").read()
for number, out in enumerate(outs):
    os.makedirs(os.path.dirname(out), exist_ok=True)
    with open(out, "w") as file:
        file.write(hashlib.sha256(content + bytes([number])).hexdigest())
note("end")
"""
ROOT_STAGES = """\
stages:
  world:
    cmd: {python} tool.py world runs/world -- source/all
    deps: [tool.py, source/all]
    params: [{{scale.yaml: [scale]}}]
    outs: [runs/world]
  shard:
    foreach: [a, b, c]
    do:
      cmd: {python} tool.py shard@${{item}} runs/shards/${{item}} -- runs/world data/${{item}}
      deps: [tool.py, runs/world, 'data/${{item}}']
      params: [{{scale.yaml: [scale]}}]
      outs: ['runs/shards/${{item}}']
  report:
    cmd: {python} tool.py report reports/page -- reports/cells
    deps: [tool.py, reports/cells]
    params: [{{scale.yaml: [scale]}}]
    outs:
      - reports/page: {{cache: false}}
"""
ONE = """\
stages:
  train:
    foreach: [a, b, c]
    do:
      wdir: ../..
      cmd: {python} tool.py train@${{item}} runs/cells/one/${{item}}/adapter
        reports/cells/one/${{item}}/cost.json -- runs/shards/${{item}}
      deps: [tool.py, 'runs/shards/${{item}}']
      params: [{{scale.yaml: [scale]}}]
      outs:
        - runs/cells/one/${{item}}/adapter
        - reports/cells/one/${{item}}/cost.json: {{cache: false}}
  score:
    foreach: [a, b, c]
    do:
      wdir: ../..
      cmd: {python} tool.py score@${{item}} reports/cells/one/${{item}}/scores.csv
        -- runs/cells/one/${{item}}/adapter runs/shards/${{item}}
      deps: [tool.py, 'runs/cells/one/${{item}}/adapter', 'runs/shards/${{item}}']
      outs:
        - reports/cells/one/${{item}}/scores.csv: {{cache: false}}
"""
# What is learned task after task, and a method that is made of another's adapters.
TWO = """\
stages:
  train_two_1:
    wdir: ../..
    cmd: {python} tool.py train_two_1 runs/cells/two/1 -- runs/shards/c
    deps: [tool.py, runs/shards/c]
    outs: [runs/cells/two/1]
  train_two_2:
    wdir: ../..
    cmd: {python} tool.py train_two_2 runs/cells/two/2 -- runs/cells/two/1 runs/shards/a
    deps: [tool.py, runs/cells/two/1, runs/shards/a]
    outs: [runs/cells/two/2]
  score_two:
    wdir: ../..
    cmd: {python} tool.py score_two reports/cells/two/scores.csv
      -- runs/cells/two/1 runs/cells/two/2
    deps: [tool.py, runs/cells/two/1, runs/cells/two/2]
    outs:
      - reports/cells/two/scores.csv: {{cache: false}}
  merge:
    foreach:
      a+b: {{first: a, second: b}}
    do:
      wdir: ../..
      cmd: {python} tool.py merge@${{key}} runs/cells/merge/${{key}}
        reports/cells/merge/${{key}}/scores.csv
        -- runs/cells/one/${{item.first}}/adapter runs/cells/one/${{item.second}}/adapter
      deps:
        - tool.py
        - runs/cells/one/${{item.first}}/adapter
        - runs/cells/one/${{item.second}}/adapter
      outs:
        - runs/cells/merge/${{key}}
        - reports/cells/merge/${{key}}/scores.csv: {{cache: false}}
"""
STAGES = {
    "world", "shard@a", "shard@b", "shard@c", "train@a", "train@b", "train@c", "score@a", "score@b",
    "score@c", "train_two_1", "train_two_2", "score_two", "merge@a+b", "report",
}  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """Such a project, and a folder beside it by which one steers its commands."""

    root: Path
    desk: Path

    def hold(self, name: str) -> None:
        """Has a stage wait in the middle until it is released."""
        (self.desk / f"hold {name}").touch()

    def release(self, name: str) -> None:
        (self.desk / f"hold {name}").unlink()

    def fail(self, name: str) -> None:
        (self.desk / f"fail {name}").touch()

    def mend(self, name: str) -> None:
        (self.desk / f"fail {name}").unlink()

    def notes(self) -> list[dict]:
        """What the commands noted since the last call of `forget`."""
        log = self.desk / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget(self) -> None:
        (self.desk / "log").unlink(missing_ok=True)

    def started(self) -> Counter[str]:
        return Counter(note["name"] for note in self.notes() if note["what"] == "start")

    def files(self) -> dict[str, bytes]:
        """Everything that a run makes: outputs, and DVC's records."""
        paths = [*self.root.glob("runs/**/*"), *self.root.glob("reports/**/*")]
        paths += self.root.glob("**/dvc.lock")
        return {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(paths) if p.is_file()}

    def entry(self, lock: str, name: str) -> dict:
        return read_lock(self.root / lock)[name]

    def repro(self) -> None:
        """`dvc repro`, in this process."""
        with chdir(self.root):
            assert dvc(["repro", "--quiet"]) == 0

    def copy(self, folder: Path) -> Toy:
        """The project as it is now, elsewhere; with nothing noted."""
        shutil.copytree(self.root, folder / "project")
        (folder / "desk").mkdir()
        return Toy(folder / "project", folder / "desk")


def make_toy(folder: Path) -> Toy:
    """Writes the project to an empty folder."""
    root, desk = folder / "project", folder / "desk"
    desk.mkdir(parents=True)
    python = f"{sys.executable} -S -E"
    for name, text in {
        **PROJECT,
        ".gitignore": "/runs/\n/reports/\n/data/\n",
        "tool.py": TOOL,
        "scale.yaml": "scale: 1\n",
        "source/all": "all",
        **{f"data/{key}": key for key in "abc"},  # git ignores them, and stages read them
        "dvc.yaml": ROOT_STAGES.format(python=python),
        "cells/one/dvc.yaml": ONE.format(python=python),
        "cells/two/dvc.yaml": TWO.format(python=python),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return Toy(root, desk)
