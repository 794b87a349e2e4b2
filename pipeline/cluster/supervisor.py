"""Runs a command that ends with whoever asked for it, however that ended.

Ray ends a worker and its direct children, but not what those have started: a training would go on
beside its own second attempt. So between the two stands a process that is no child of the worker,
has the command in a session of its own, and kills all of it when the worker's end of a pipe closes.
Run as a script it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


def supervised(
    command: Sequence[str], cwd: Path, environ: Mapping[str, str], log: Path
) -> int | None:
    """Runs a command to its end.

    Args:
        command: the program and its arguments.
        cwd: the folder to run it in.
        environ: its whole environment.
        log: a file that gets its output and its errors.

    Returns:
        Its exit status (negative: the signal that ended it); None if the supervisor was killed.
    """
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *command],
            cwd=cwd,
            env=environ,
            stdin=subprocess.PIPE,  # stays open as long as this process lives
            stdout=subprocess.PIPE,
            stderr=output,
        ) as process,
    ):
        assert process.stdout is not None
        status = process.stdout.read()
    return int(status) if status else None


def main(command: Sequence[str]) -> None:
    """Of the script: leaves its parent, runs the command, writes the status to standard output."""
    # Ray has workers ignore it, which children inherit: every status would be 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if os.fork():
        os._exit(0)
    os.setsid()
    report = os.dup(1)
    os.dup2(2, 1)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end_with_the_worker() -> None:
        os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_the_worker, daemon=True).start()
    os.write(report, str(process.wait()).encode())
    os.killpg(0, signal.SIGKILL)  # what the command left behind, and this process


if __name__ == "__main__":
    main(sys.argv[1:])
