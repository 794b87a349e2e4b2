"""Starts `bench`: quickly, by forking a process that has imported the heavy libraries already.

Importing torch, diffusers, transformers and open_clip takes several seconds, and `dvc repro` starts
one process for each of a hundred stages. So the first stage leaves a *warm* process behind; a later
stage sends it the command line, the environment and its standard streams, and it forks a child
that runs the command. Only libraries are imported before the fork: the code of this project is
read anew each time. The warm process ends itself after IDLE_SECONDS without work.

Not used where there is an NVIDIA device, as CUDA does not survive a fork and start-up is not what
takes time there; nor with BENCH_WARM=0, nor where there is no fork.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# The commands that are worth it.
COMMANDS = {
    "retrieve",
    "generate",
    "shard",
    "gallery",
    "train",
    "sample",
    "score",
    "oracle",
    "analyse",
}
PRELOADED = {
    "torch": (),
    "diffusers": ("AutoencoderKL", "DDIMScheduler", "UNet2DConditionModel"),
    "transformers": ("CLIPTextModel", "CLIPTokenizer"),
    "open_clip": (),
    "pandas": (),
    "PIL.Image": (),
    "pyarrow.parquet": (),
    "pydantic": (),
    "ruamel.yaml": (),
    "safetensors.torch": (),
    "tqdm": (),
    "typer": (),
}
IDLE_SECONDS = 120.0
START_SECONDS = 60.0
INTERRUPTED = 130  # the exit status after Ctrl-C, as shells have it
# They end a process at once unless it takes them; nohup has it ignore the second.
ENDING = (signal.SIGTERM, signal.SIGHUP)
PINS = hasattr(os, "sched_setaffinity")  # not on macOS
# Variables that libraries read when they are imported: processes that differ in them share nothing.
READ_AT_IMPORT = ("CUDA", "HF_", "KMP_", "LD_", "MKL_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")
_SERVE = "import sys; from pipeline.bench.warm import serve; serve(sys.argv[1])"


def main() -> None:
    """The entry point of `bench`."""
    _end_cleanly()
    try:
        status = _delegate() if _wanted() else None
        if status is None:
            from pipeline.bench.cli import main as run

            run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    raise SystemExit(status)


def _end_cleanly() -> None:
    """Has signals that end this process run its `finally` clauses, which remove half a file."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # as shells have it

    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def _wanted() -> bool:
    return (
        sys.argv[1:2] != []
        and sys.argv[1] in COMMANDS
        and "--help" not in sys.argv
        and os.environ.get("BENCH_WARM") != "0"
        and hasattr(os, "fork")
        and hasattr(socket, "send_fds")
        and not Path("/dev/nvidiactl").exists()
    )


def _address() -> Path:
    """Where the warm process for this interpreter, its libraries and this environment listens.

    Raises:
        PermissionError: somebody else owns the folder, and could answer in our place.
    """
    folder = Path(tempfile.gettempdir()) / f"bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise PermissionError(folder)
    libraries = Path(sysconfig.get_paths()["purelib"])
    identity = [
        sys.executable,
        sys.version,
        str(libraries.stat().st_mtime_ns),
        Path(__file__).read_text(encoding="utf-8"),
        *sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(READ_AT_IMPORT)),
        *_bounds(),
    ]
    return folder / hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]


def _bounds() -> Iterator[str]:
    """What of a machine this process may take, which a forked command inherits and cannot widen."""
    yield f"niceness {os.getpriority(os.PRIO_PROCESS, 0)}"
    for name in sorted(name for name in dir(resource) if name.startswith("RLIMIT_")):
        yield f"{name} {resource.getrlimit(getattr(resource, name))}"
    with suppress(OSError):  # of a job on a shared machine
        yield Path("/proc/self/cgroup").read_text(encoding="utf-8")


def _delegate() -> int | None:
    """Has the command run by the warm process, which is started if need be.

    Returns:
        The exit status of the command, or None if it could not be delegated.
    """
    try:
        connection = _connected(_address())
    except OSError:
        return None
    request = {
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "environ": dict(os.environ),
        "path": sys.path,
        "umask": _umask(),
        "cores": sorted(os.sched_getaffinity(0)) if PINS else [],
    }
    content = json.dumps(request).encode()
    with connection:
        socket.send_fds(connection, [struct.pack("!I", len(content))], [0, 1, 2])
        connection.sendall(content)
        # A signal that ends this process closes the connection, and that ends the command.
        answer = connection.recv(4)
    if len(answer) < 4:
        print("error: the command was killed (was there enough memory?)", file=sys.stderr)
        return 1
    return int(struct.unpack("!i", answer)[0])


def _umask() -> int:
    """This process's, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _connected(address: Path) -> socket.socket:
    """A connection to the warm process.

    Raises:
        OSError: it could not be started.
    """
    with suppress(OSError):
        return _connect(address)
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several beginners starts it
        with suppress(OSError):
            return _connect(address)
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(address)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError):
                return _connect(address)
            time.sleep(0.05)
        raise OSError("the warm process did not start")


def _connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        raise
    return connection


def serve(path: str) -> None:
    """The warm process: imports the libraries, then forks a child for each connection."""
    address = Path(path)
    # As pipeline.bench.cli does before it imports anything.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for module, names in PRELOADED.items():
        imported = importlib.import_module(module)
        for name in names:
            getattr(imported, name)  # diffusers and transformers import what is asked for
    gc.freeze()  # so that collections in children do not copy these pages
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        children: set[int] = set()
        last = time.monotonic()
        while children or time.monotonic() - last < IDLE_SECONDS:
            children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
            if not select.select([listener], [], [], 0.5)[0]:
                continue
            connection, _ = listener.accept()
            child = os.fork()
            if child == 0:
                listener.close()
                _serve_one(connection)
            connection.close()
            children.add(child)
            last = time.monotonic()
        address.unlink(missing_ok=True)


def _serve_one(connection: socket.socket) -> None:
    """In the child: becomes the process that asked, runs its command and sends the status."""
    os.setsid()
    header, streams, _, _ = socket.recv_fds(connection, 4, 3)
    if len(header) < 4 or len(streams) < 3:
        os._exit(1)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    size = struct.unpack("!I", header)[0]
    content = b""
    while len(content) < size and (part := connection.recv(size - len(content))):
        content += part
    status = 1
    try:
        request = json.loads(content)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _end_cleanly()
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        os.environ.clear()
        os.environ.update(request["environ"])
        os.chdir(request["cwd"])
        os.umask(request["umask"])
        if PINS:
            os.sched_setaffinity(0, request["cores"])
        sys.argv[:], sys.path[:] = request["argv"], request["path"]
        sys.path_importer_cache.clear()
        for name in [n for n in sys.modules if n.split(".")[0] in ("pipeline", "eval")]:
            del sys.modules[name]
        importlib.import_module("pipeline.bench.cli").main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # that the other side goes now is no matter
        for output in (sys.stdout, sys.stderr):
            try:
                output.flush()
            except OSError:  # nobody reads it any more, or its disk is full
                status = status or 1
        with suppress(OSError):  # the other side is gone: nobody waits for the status
            connection.sendall(struct.pack("!i", status))
        os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """Ends this process and all that it started when the other side is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the main thread is to get it
    with suppress(OSError):
        connection.recv(1)
    os.killpg(0, signal.SIGINT)  # a chance to remove what is half-written
    time.sleep(10)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
