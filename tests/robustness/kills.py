"""Kills `dvc repro` of profile `smoke` at random moments, and compares what it makes in the end.

`python -m tests.robustness.kills --runs 100 --seed 0` runs the profile once undisturbed in a copy
of the project, then over and over from nothing. Each `dvc repro` is killed at a random moment, in
three ways in turn, and started again, until the profile is done; then every adapter, sample, score
and tar has to be, byte for byte, what the undisturbed run made, and nothing half-written may lie
about. DVC writes dvc.lock and its list of who reads what in place, so a kill may cut one; the next
run says so, and it is deleted then, as `bench doctor` tells users to: DVC takes what it knew out of
its cache. The campaign ends after so many kills and the comparison that follows. Not part of the
suite: a hundred kills take the better part of an hour.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.clones import FOLDER, Clone, make_clone

WAYS = ("dvc alone", "the whole group", "the warm process")
# Seconds after the start of dvc. It needs a few to begin, and stages take up to ten: so some kills
# strike before the first stage, most in one, and all together let the profile end.
MOMENTS = (0.5, 30.0)
# What does not say how long something took.
COMPARED = ("**/*.safetensors", "**/*.tar", "cells/*/*/s*.*", "index/**/*.*")
ORPHAN_SECONDS = 60.0  # that a stage may go on after its dvc was killed


class CampaignError(Exception):
    """What was found."""


def outputs(clone: Clone) -> dict[str, str]:
    """The hashes of all that is compared."""
    return {path: sha for pattern in COMPARED for path, sha in clone.hashes(pattern).items()}


def forget(clone: Clone) -> None:
    """As if the profile had never run here: neither files, nor records, nor a cache."""
    folder = clone.root / FOLDER
    for path in (folder / "runs", folder / "reports", folder / ".dvc/cache"):
        shutil.rmtree(path, ignore_errors=True)
    for lock in folder.glob("**/dvc.lock"):
        lock.unlink()


def warm_processes() -> list[int]:
    """The ids of this campaign's warm process and of its children: told by where it listens."""
    address = os.fsencode(Path(tempfile.gettempdir(), "bench-"))
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if any(argument.startswith(address) for argument in arguments):
                found.append(int(process.name))
    return found


def group_lives(group: int) -> bool:
    """Whether a process of that group has not ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class Campaign:
    """Kills at seeded moments, one after another, while the profile is run over and over."""

    def __init__(self, clone: Clone, runs: int, seed: int) -> None:
        self.clone = clone
        self.runs = runs
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.groups: set[int] = set()  # of every dvc: what it left behind is in its group
        self.excused: set[Path] = set()  # nobody can remove what a writer leaves under SIGKILL
        self.cut = 0  # locks that DVC was killed in the middle of

    def run(self) -> None:
        """All of it; prints what was found.

        Raises:
            CampaignError: a run failed by itself or made something else, or left half a file.
        """
        self._complete()
        expected = outputs(self.clone)
        print(f"undisturbed: {len(expected)} outputs", flush=True)
        completed = 0
        while self.kills.total() < self.runs:
            forget(self.clone)
            self._complete(disturbed=True)
            completed += 1
            made = outputs(self.clone)
            different = sorted(p for p in expected.keys() | made if expected.get(p) != made.get(p))
            if different:
                raise CampaignError(f"differs from the undisturbed run: {', '.join(different)}")
            if left := self.clone.half_written() - self.excused:
                raise CampaignError(f"half-written: {', '.join(map(str, sorted(left)))}")
            print(f"{self.kills.total()} kills, {completed} runs completed, all equal", flush=True)
        ways = ", ".join(f"{self.kills[way]} of {way}" for way in WAYS)
        print(
            f"{self.kills.total()} kills ({ways}) in {completed} runs: {len(expected)} outputs "
            f"equal each time, nothing half-written but {len(self.excused)} by killed writers, "
            f"{self.cut} of DVC's locks cut"
        )

    def end(self) -> None:
        """Ends what still runs."""
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        for warm in warm_processes():
            with suppress(ProcessLookupError):
                os.kill(warm, signal.SIGTERM)

    def _complete(self, *, disturbed: bool = False) -> None:
        """Starts `dvc repro` until it has done all, and waits for what killed ones left running."""
        while True:
            with tempfile.TemporaryFile("w+") as output:  # a pipe would wait for what is left
                process = self.clone.start(output)
                self.groups.add(process.pid)
                killed = disturbed and self.kills.total() < self.runs and self._strike(process)
                if process.wait() == 0:
                    break
                output.seek(0)
                said = output.read()[-4000:]
                if not killed and not self._cut_locks(said):
                    raise CampaignError(f"dvc repro failed by itself:\n{said}")
        end = time.monotonic() + ORPHAN_SECONDS
        while any(map(group_lives, self.groups)):
            if time.monotonic() > end:
                raise CampaignError(f"{ORPHAN_SECONDS:.0f} s after the end, a stage still runs")
            time.sleep(0.2)

    def _cut_locks(self, said: str) -> bool:
        """Deletes the locks that DVC could not read and named; whether there were any."""
        named = {
            self.clone.root / FOLDER / name
            for name in re.findall(r"'(\S*(?:dvc\.lock|rwlock))'", said)
        }
        for lock in named:
            print(f"  cut: {lock} ({lock.stat().st_size} bytes)", flush=True)
            lock.unlink()
        self.cut += len(named)
        return bool(named)

    def _strike(self, process: subprocess.Popen[str]) -> bool:
        """Waits and kills; False if all was done before."""
        way = WAYS[self.kills.total() % len(WAYS)]
        seconds = self.random.uniform(*MOMENTS)
        number = self.random.choice((signal.SIGTERM, signal.SIGINT))
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return False
        if way == "dvc alone":
            process.kill()
        elif way == "the whole group":
            os.killpg(process.pid, number)
        else:
            while not (victims := warm_processes()):
                if process.poll() is not None:
                    return False
                time.sleep(0.1)
            for victim in victims:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            self.excused |= self.clone.half_written()
        self.kills[way] += 1
        print(f"  {way} after {seconds:.1f} s", flush=True)
        return True


def main() -> None:
    """Runs the campaign in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    # In the background of a script SIGINT is ignored, and dvc would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # So that the folder goes and all in it ends.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        for name in ("clone", "tmp"):
            Path(folder, name).mkdir()
        os.environ["TMPDIR"] = str(Path(folder, "tmp"))  # a warm process of its own
        tempfile.tempdir = os.environ["TMPDIR"]
        campaign = Campaign(make_clone(Path(folder, "clone")), given.runs, given.seed)
        try:
            campaign.run()
        except CampaignError as error:
            sys.exit(f"error: after {campaign.kills.total()} kills: {error}")
        finally:
            campaign.end()


if __name__ == "__main__":
    main()
