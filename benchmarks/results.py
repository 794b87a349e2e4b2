"""`python -m benchmarks.results`: what benchmarks gave so far, by machine and commit.

Each run is a file in `benchmarks/results/`, so that the history is that of the repository.
"""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
SIDES = ("ours", "official")


def machine() -> str:
    """The GPU if there is one, else the processor, and how many cores."""
    import os

    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


def commit() -> str:
    """Of the code that is measured; with a plus if files differ from it."""
    try:
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def record(benchmark: str, settings: dict[str, Any], results: dict[str, dict[str, float]]) -> str:
    """A run as JSON: numbers by what was measured and by side, and what they are of."""
    import torch

    content = {
        "benchmark": benchmark,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "commit": commit(),
        "torch": torch.__version__,
        "settings": settings,
        "results": results,
    }
    return json.dumps(content, indent=2) + "\n"


def history(folder: Path = FOLDER) -> list[str]:
    """A line for each thing that a run measured of both sides: how many times ours is as fast."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    runs = [run for run in found if "benchmark" in run]  # what has no other side is of another form
    lines = []
    for run in sorted(runs, key=lambda run: str(run["when"])):
        whose = f"{run['when']}  {run['commit']:<14}{run['machine']}"
        for name, sides in run["results"].items():
            if all(side in sides for side in SIDES):
                ours, official = (sides[side] for side in SIDES)
                ratio = f"{official / ours:.2f}x" if ours else ""
                about = f"{run['benchmark']}: {name}"
                lines.append(f"{about:<44}{ours:>10.4g}{official:>10.4g}{ratio:>8}  {whose}")
    return lines


def main() -> None:
    """Prints the history."""
    print(f"{'':<44}{'ours':>10}{'official':>10}{'ratio':>8}  when, commit and machine")
    print("\n".join(history()))


if __name__ == "__main__":
    main()
