"""The command line: a mistake is one line and status 2, before anything heavy is imported."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench import cli
from pipeline.common.errors import BenchError

ROOT = Path(__file__).parents[3]


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`bench` as a process of its own that says what it imported."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('heavy:', 'torch' in sys.modules))\n"
        "from pipeline.bench.cli import main\n"
        "main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["train", "dreamboot", "cat"], "error: method 'dreamboot' is unknown: choose one of"),
        (
            ["sample", "dreambooth", "cow"],
            "error: subject 'cow' is unknown: choose one of cat, dog",
        ),
        (["score", "dreambooth", "dog+cat"], "error: subject 'dog+cat' is unknown"),
        (["oracle", "cat+chair"], "error: concept 'cat+chair' is unknown"),
        (["retrieve", "cow"], "error: concept 'cow' is unknown: choose one of cat, dog"),
        (["shard", "cat", "--profile", "big"], "error: profile 'big' is unknown: choose one of"),
        (
            ["shard", "dog", "-p", "smoke"],
            "error: concept 'dog' is unknown: choose one of cat, chair",
        ),
        (["report", "-p", "big"], "error: profile 'big' is unknown"),
        (
            ["concept", "add", "cat", "datasets", "--class", "cat"],
            "error: grid.yaml: 'cat' is there",
        ),
        (["concept", "add", "x", "nowhere", "--class", "cat"], "error: nowhere: no such file"),
        (
            ["concept", "add", "x" * 300, "datasets", "--class", "cat"],
            f"error: name '{'x' * 70}': needs a letter first",
        ),
        (
            ["toyland", "concept", "x", "--class", "clock", "--seed", "5"],
            "error: --class 'clock': Toyland draws cat, dog, teddybear",
        ),
    ],
)
def test_mistakes_are_one_line(project: Path, arguments: list[str], error: str) -> None:
    run = bench(*arguments, cwd=project)
    assert run.returncode == 2
    assert run.stderr.startswith(error)
    assert run.stderr.count("\n") == 1
    if "concept" not in arguments:
        assert "heavy: False" in run.stdout


def test_bad_parameter_is_one_line(project: Path) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("  steps: 12\n", "  steps: many\n", 1))
    run = bench("train", "dreambooth", "cat", cwd=project)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert run.stderr.startswith("error: params.yaml: generate.steps: ")


@pytest.mark.parametrize("profile", [None, "smoke"])
def test_outside_of_the_root(tmp_path: Path, project: Path, profile: str | None) -> None:
    """The folder of a profile has a params.yaml too, which is not the default's."""
    elsewhere = project / "profiles" / profile if profile else tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    run = bench("index", cwd=elsewhere)
    assert run.returncode == 2
    assert run.stderr == (
        "error: no params.yaml and datasets/ here: run `bench` in the project's root\n"
    )


def test_help_is_light(tmp_path: Path) -> None:
    run = bench("--help", cwd=tmp_path)
    assert run.returncode == 0
    assert "heavy: False" in run.stdout
    for command in ("index", "retrieve", "fetch", "shard", "train", "sample", "score", "oracle"):
        assert command in run.stdout


def run_main(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> int | str | None:
    def app() -> None:
        raise raised

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception
) -> None:
    assert run_main(monkeypatch, raised) == 2
    assert capsys.readouterr().err.startswith("error: the disk is full")


def test_error_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, BenchError("one\n  two")) == 2
    assert capsys.readouterr().err == "error: one two\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CompVis/stable-diffusion-v1-4", True),
        ("ViT-B-32-quickgelu/openai", True),
        ("models/toyland/base", False),
        ("datasets/concepts", False),
        ("/somewhere/else", False),
        ("./nowhere", False),
        ("../nowhere", False),
    ],
)
def test_hub_id(project: Path, name: str, expected: bool) -> None:
    assert cli.is_hub_id(name) is expected
