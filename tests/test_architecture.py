"""The house: which room imports which, and that stages depend on all the code that they run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.bench.closure import COLLECTIONS, closure, rooms
from pipeline.settings.profile import profile_folder, profile_names

ROOT = Path(__file__).parents[1]
# Each room imports from itself and from those before it. The table that docs/architecture.md shows.
ORDER = (
    "pipeline/common",
    "pipeline/settings",
    "pipeline/concepts",
    "pipeline/clip",
    "pipeline/models",
    "pipeline/corpus",
    "pipeline/methods",
    "pipeline/train",
    "pipeline/sample",
    "pipeline/regions",
    "pipeline/exchange",
    "pipeline/toyland/world",
    "pipeline/toyland/pretrain",
    "pipeline/adding",
    "eval/style.py",
    "eval/metrics",
    "eval/statistics.py",
    "eval/encoders",
    "eval/scores",
    "eval/freshness.py",
    "eval/results.py",
    "eval/continual.py",
    "eval/tables",
    "eval/papers",
    "eval/study",
    "eval/analyses",
    "eval/report",
    "pipeline/cluster",
    "pipeline/bench",
    "benchmarks",
)
# What makes adapters and images: of eval/, only the analyses do.
MAKING = ("pipeline/methods", "pipeline/train", "pipeline/sample", "pipeline/regions")
# What a stage's command goes through; no result depends on it.
COMMAND = ("pipeline/bench",)


@cache
def sources() -> list[Path]:
    return sorted(p for top in ("pipeline", "eval", "benchmarks") for p in Path(top).rglob("*.py"))


def room_of(path: Path) -> str:
    """The entry of ORDER that a file belongs to."""
    (found,) = [room for room in ORDER if path.as_posix() == room or Path(room) in path.parents]
    return found


def imports(path: Path) -> Iterator[Path]:
    """The files of the project that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things are"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            module = Path(*name.split("."))
            for one in filter(lambda path: path.parts, (module, module.parent)):
                files = (one.with_suffix(".py"), one / "__init__.py")
                if found := [file for file in files if file.is_file()]:
                    yield found[0]
                    break


def containers(path: Path) -> bool:
    """Whether it is the `__init__` of a package of rooms."""
    return path.name == "__init__.py" and path.parent.as_posix() in (
        "pipeline", "pipeline/toyland", "eval", "benchmarks",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_imports_go_down_only() -> None:
    wrong = [
        f"{path} imports {other}"
        for path in sources()
        for other in imports(path)
        if not containers(path) and not containers(other)
        if ORDER.index(room_of(other)) > ORDER.index(room_of(path))
    ]
    assert wrong == []


def test_only_bench_imports_eval_and_only_analyses_make_images() -> None:
    for path in sources():
        for other in imports(path):
            if path.parts[0] == "pipeline" and other.parts[0] == "eval":
                assert room_of(path) == "pipeline/bench", path
            if path.parts[0] == "eval" and other.as_posix().startswith(MAKING):
                assert path.parts[1] in ("analyses", "report"), path


def test_packages_of_rooms_hold_a_line_of_text_alone() -> None:
    found = [path for path in sources() if containers(path)]
    assert len(found) == 4
    for path in found:
        (statement,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(statement, ast.Expr), path


def entry_of(command: str) -> set[str]:
    """The modules that the code of a sub-command of `bench` imports: `train`, `study build`."""
    tree = ast.parse((ROOT / "pipeline/bench/cli.py").read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for mark in function.decorator_list:
                if ast.unparse(mark) in (f"app.command('{command}')", command):
                    return {
                        str(node.module)
                        for node in ast.walk(function)
                        if isinstance(node, ast.ImportFrom)
                        if str(node.module).startswith(("pipeline", "eval"))
                    }
    raise AssertionError(command)


def modules_of(command: str) -> set[str]:
    """What runs for a line of a stage's command."""
    words = command.removeprefix("cd ../.. && ").removeprefix("bench ").split()
    if words[0] in ("study", "toyland"):
        return entry_of(f"{words[0]}.command('{words[1]}')")
    found = entry_of(words[0])
    if words[0] == "analyse":
        found |= {f"eval.analyses.{words[1]}.stage"}
    if words[0] == "train":
        found |= {f"pipeline.methods.{words[1]}"}
    return found


def found_by_python(module: str) -> set[Path]:
    """The files that a module imports of the project, as the standard library finds them."""
    folders = [str(ROOT)]  # of nothing else is the code looked at
    finder = ModuleFinder(path=folders)
    finder.run_script(str(next(iter(closure([module]) & set(files_of(module))))))
    names = {Path(found.__file__) for found in finder.modules.values() if found.__file__}
    return {path.relative_to(ROOT) for path in names if path.is_relative_to(ROOT)}


def files_of(module: str) -> list[Path]:
    path = ROOT.joinpath(*module.split("."))
    return [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]


def uncovered(modules: set[str], deps: set[Path]) -> set[str]:
    """Which files of the modules' closures lie in no dependency."""
    files = {file for module in modules for file in cached(module)}
    return {
        file.as_posix()
        for file in files
        if not containers(file)
        and not file.as_posix().startswith(COMMAND)
        and not deps.intersection((file, *file.parents))
    }


cached = cache(found_by_python)


@pytest.mark.parametrize("profile", profile_names())
def test_stages_depend_on_all_code_that_they_run(profile: str) -> None:
    with closing(Repo(str(ROOT / profile_folder(profile)))) as repo:
        stages = {
            stage.name.split("@")[0] + "@" + stage.path_in_repo: stage
            for stage in repo.index.stages
        }
    assert len(stages) > 10
    for name, stage in stages.items():
        if name == "code@dvc.yaml":
            digested = [room_of_digest(Path(out.fs_path)) for out in stage.outs]
            files = {file for room in digested for file in sources_in(ROOT / (room or ""))}
            writer = ROOT / "eval/freshness.py"  # what reads the rooms; the command is neutral
            assert {Path(dep.fs_path) for dep in stage.deps} == {*files, writer}
            continue
        lines = stage.cmd if isinstance(stage.cmd, list) else [stage.cmd]
        modules = set().union(*(modules_of(line) for line in lines))
        paths = [Path(dep.fs_path) for dep in stage.deps]
        deps = {room_of_digest(p) or p.relative_to(ROOT) for p in paths}
        assert modules and uncovered(modules, deps) == set(), name


def room_of_digest(path: Path) -> Path | None:
    """The room of code whose digest lies there; None if it is no digest."""
    return Path(*path.stem.split(".")) if path.parent.name == "code" else None


def sources_in(folder: Path) -> set[Path]:
    """The files in a folder, without what Python left there."""
    return {path for path in folder.rglob("*.*") if "__pycache__" not in path.parts}


def test_a_dependency_that_is_left_out_is_found() -> None:
    deps = {Path(room) for room in rooms(["pipeline.train.stage"])}
    assert uncovered({"pipeline.train.stage"}, deps) == set()
    lost = uncovered({"pipeline.train.stage"}, deps - {Path("pipeline/models")})
    assert "pipeline/models/base.py" in lost
    assert all(name.startswith("pipeline/models/") for name in lost)


def test_every_entry_of_the_order_is_there() -> None:
    assert {room_of(path) for path in sources() if not containers(path)} == set(ORDER)
    assert set(COLLECTIONS) <= {"eval", *ORDER}


def test_names_and_tables_need_no_torch() -> None:
    """So that `bench table` takes a second, and a typing error a moment."""
    code = (
        "import sys, pipeline.bench.cli, eval.report.printing, eval.analyses.stages\n"
        "from pipeline.methods import load_method, method_names\n"
        "for name in method_names(): load_method(name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
