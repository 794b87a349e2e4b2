"""The warm process: commands run in it as they would by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.bench import warm

ROOT = Path(__file__).parents[3]
# Stands for a project: what `bench` runs is read from the folder that the command comes from.
CLI = """\
import os, sys, time
from pathlib import Path
if "--slow-import" in sys.argv:
    print("importing", flush=True)
    time.sleep(60)
def main():
    try:
        print("torch" in sys.modules, os.getcwd(), os.environ["GREETING"], sys.argv[2:], flush=True)
        if "--wait" in sys.argv:
            time.sleep(60)
    finally:
        Path("cleaned").touch()
    print("to stderr", file=sys.stderr)
    raise SystemExit(int(sys.argv[2]))
"""

pytestmark = pytest.mark.skipif(
    Path("/dev/nvidiactl").exists() or not hasattr(os, "fork"), reason="warm starts are not used"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a `bench` of its own, and a folder for its warm process."""
    home = tmp_path_factory.mktemp("warm")
    (home / "pipeline" / "bench").mkdir(parents=True)
    (home / "pipeline" / "__init__.py").touch()
    (home / "pipeline" / "bench" / "__init__.py").touch()
    source = (ROOT / "pipeline" / "bench" / "warm.py").read_text(encoding="utf-8")
    # As heavy as needed to tell a warm process from a cold one.
    source = (
        source[: source.index("PRELOADED = {")]
        + 'PRELOADED = {"torch": ()}\n'
        + source[source.index("IDLE_SECONDS = ") :].replace(
            "IDLE_SECONDS = 120.0", "IDLE_SECONDS = 20.0"
        )
    )
    (home / "pipeline" / "bench" / "warm.py").write_text(source, encoding="utf-8")
    (home / "pipeline" / "bench" / "cli.py").write_text(CLI, encoding="utf-8")
    (home / "tmp").mkdir()
    yield home


def start(home: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(home), "TMPDIR": str(home / "tmp"), "GREETING": "hello",
    } | environ  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.bench.warm", *arguments],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed,  # noqa: PLW1509
    )


def _heed() -> None:
    """In the background of a script SIGINT is ignored, under nohup SIGHUP; children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_command_runs_as_by_itself_but_warm(home: Path) -> None:
    process = start(home, "train", "3")
    out, err = process.communicate(timeout=120)
    assert out == f"True {home} hello ['3']\n"
    assert err == "to stderr\n"
    assert process.returncode == 3


def test_files_and_cores_are_those_of_who_asks(home: Path) -> None:
    """And not of who started the warm process."""
    for mask in (0o077, 0o022):
        Path(home, "cleaned").unlink(missing_ok=True)
        before = os.umask(mask)
        try:
            start(home, "train", "0").communicate(timeout=120)
        finally:
            os.umask(before)
        assert Path(home, "cleaned").stat().st_mode & 0o777 == 0o666 & ~mask


def test_code_and_environment_are_those_of_the_moment(home: Path) -> None:
    start(home, "train", "0").communicate(timeout=120)
    (home / "pipeline" / "bench" / "cli.py").write_text(CLI.replace("to stderr", "changed"))
    began = time.perf_counter()
    process = start(home, "train", "0", GREETING="bye")
    out, err = process.communicate(timeout=120)
    assert (out, err, process.returncode) == (f"True {home} bye ['0']\n", "changed\n", 0)
    assert time.perf_counter() - began < 2, "torch was imported again"
    (home / "pipeline" / "bench" / "cli.py").write_text(CLI)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ending_the_command_ends_its_work(home: Path, number: signal.Signals) -> None:
    (home / "cleaned").unlink(missing_ok=True)
    process = start(home, "train", "0", "--wait")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    end = time.monotonic() + 9
    while not (home / "cleaned").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (home / "cleaned").exists(), "no chance to remove what is half-written"
    # Until all that had them open have ended.
    assert process.communicate(timeout=60) == ("", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ending_a_command_that_runs_by_itself_cleans_up(home: Path, number: signal.Signals) -> None:
    (home / "cleaned").unlink(missing_ok=True)
    process = start(home, "train", "0", "--wait", BENCH_WARM="0")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 128 + number
    assert (home / "cleaned").exists(), "no chance to remove what is half-written"


def test_a_hang_up_is_ignored_under_nohup(home: Path) -> None:
    command = ["nohup", sys.executable, "-c", "import signal; from pipeline.bench import warm;"]
    command[-1] += "warm._end_cleanly(); print(signal.getsignal(signal.SIGHUP).name)"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_IGN\n"


@pytest.mark.parametrize("warm", ["1", "0"])
def test_ctrl_c_while_code_is_imported_is_quiet(home: Path, warm: str) -> None:
    process = start(home, "train", "0", "--slow-import", BENCH_WARM=warm)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize(("command", "warm"), [("table", "1"), ("train", "0")])
def test_others_run_by_themselves(home: Path, command: str, warm: str) -> None:
    out, _ = start(home, command, "0", BENCH_WARM=warm).communicate(timeout=60)
    assert out.startswith("False ")


@pytest.mark.parametrize(
    ("name", "other"), [("getpriority", lambda *_: 19), ("getrlimit", lambda *_: (1 << 30, -1))]
)
def test_what_may_take_less_of_the_machine_has_a_warm_process_of_its_own(
    name: str, other: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that it forks would have the priority and the limits of whoever came first."""
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: str(tmp_path))
    before = warm._address()
    assert warm._address() == before
    monkeypatch.setattr(warm.os if name == "getpriority" else warm.resource, name, other)
    assert warm._address() != before


def test_a_folder_that_others_can_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"bench-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(PermissionError):
        warm._address()
