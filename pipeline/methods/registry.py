"""Where methods are found, and which files they are made of.

A name in the `methods` of a grid.yaml is that of a file beside this one, or of an entry point in
the group `concept_bench.methods` of an installed package. A path there is a file of anybody's,
whose stem is the method's name. All define a `Method`; the files call it METHOD.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from pipeline.common.errors import BenchError
from pipeline.methods.method import Method
from pipeline.settings.profile import Grid, check_name, profile_folder

GROUP = "concept_bench.methods"
FOLDER = Path(__file__).parent
CODE = FOLDER.parents[1]  # where the packages of this project lie
PACKAGES = (CODE / "pipeline", CODE / "eval")
NO_METHODS = ("__init__", "answers", "method", "registry")
TAKEN = ("oracle",)  # its scores lie among those of the methods


def method_names() -> list[str]:
    """The methods that come with this project."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NO_METHODS)


def _installed() -> dict[str, EntryPoint]:
    """The methods of installed packages, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def check_methods(grid: Grid, profile: str) -> None:
    """Finds out whether each method of the profile's grid is there once, without importing any.

    Raises:
        BenchError: one is unknown, cannot be a name, or is there twice.
    """
    try:
        for name in grid.methods:
            _check_method(name, grid.method_files().get(name))
    except BenchError as error:
        raise BenchError(f"{profile_folder(profile) / 'grid.yaml'}: methods: {error}") from None


def _check_method(name: str, file: str | None) -> None:
    places = [file] if file else []
    places += ["this project"] if name in method_names() else []
    places += [f"the package of {_installed()[name].module}"] if name in _installed() else []
    if not places:
        raise _unknown(name)
    if name in TAKEN:
        raise BenchError(f"method {name!r}: the real images are called so: rename it")
    if len(places) > 1:
        raise BenchError(f"method {name!r} is in {' and in '.join(places)}: rename yours")
    if file:
        check_name(name, f"{file}: method")
        if not Path(file).is_file():
            raise BenchError(f"method {name!r}: {file}: no such file: correct its path")


def _unknown(name: str) -> BenchError:
    known = ", ".join([*method_names(), *sorted(_installed())])
    return BenchError(
        f"method {name!r} is unknown: choose one of {known}, or give the path of a file, such as "
        "my_lab/my_method.py"
    )


def load_method(name: str, grid: Grid | None = None) -> Method:
    """The method of that name.

    Args:
        name: as in cells, parameters and tables.
        grid: says which methods are files of other people.

    Raises:
        BenchError: there is none, or it cannot be imported, or is no method.
    """
    where, module, attribute = _place(name, grid)
    try:
        loaded = _module_of(module) if isinstance(module, Path) else importlib.import_module(module)
        found = getattr(loaded, attribute, None)
    except Exception as error:  # whatever other people's code raises
        last = extract_tb(error.__traceback__)[-1]
        raise BenchError(
            f"method {name!r}: {where} could not be imported ({type(error).__name__}: {error}; at "
            f"line {last.lineno} of {last.filename})"
        ) from error
    if not isinstance(found, Method):
        raise BenchError(
            f"method {name!r}: {where} defines no Method called {attribute}: write "
            f"{attribute} = Method(...), as docs/adding-a-method.md shows"
        )
    return found


def _place(name: str, grid: Grid | None) -> tuple[str, str | Path, str]:
    """Where a method is: in words, its module or file, and what it is called there.

    Raises:
        BenchError: it is nowhere.
    """
    if grid and (file := grid.method_files().get(name)):
        return file, Path(file), "METHOD"
    if name in method_names():
        return f"pipeline/methods/{name}.py", f"pipeline.methods.{name}", "METHOD"
    entry = _installed().get(name)
    if entry is None:
        raise _unknown(name)
    return f"{entry.value} of an installed package", entry.module, entry.attr


def _module_of(file: Path) -> ModuleType:
    """A file as a module, as `python FILE` has it: it can import what lies beside it."""
    path = file.resolve()
    if (known := sys.modules.get(str(path))) is not None:
        return known
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(path)]
        raise
    return module


def method_files(name: str, grid: Grid | None = None) -> list[str]:
    """The method's file first, then those that it imports, directly or not.

    Of these the project's own and those of the method's folder or package; others are
    libraries. Imports for type checkers do not count.

    Returns:
        Paths: of this project's packages relative to where they lie, of other files in the
        current directory relative to it, and absolute ones.
    """
    load_method(name, grid)  # so that what is to be found is on the path
    _, module, _ = _place(name, grid)
    if isinstance(module, Path):
        first, package, root = module.resolve(), "", module.resolve().parent
    else:
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        first = Path(spec.origin).resolve()
        package = module if spec.submodule_search_locations else module.rpartition(".")[0]
        top = importlib.util.find_spec(module.partition(".")[0])
        folders = top.submodule_search_locations if top else None
        root = Path(next(iter(folders))).resolve() if folders else first
    ours = (*PACKAGES, root)
    found, todo = {first: None}, [(first, package)]
    while todo:
        for imported in _imported(*todo.pop()):
            file, its_package = _source(imported, ours)
            if file is not None and file not in found:
                found[file] = None
                todo.append((file, its_package))
    _, *others = found
    return [_shown(first), *sorted(map(_shown, others))]


def _shown(file: Path) -> str:
    if any(file.is_relative_to(package) for package in PACKAGES):
        return file.relative_to(CODE).as_posix()
    here = file.is_relative_to(Path.cwd())
    return (file.relative_to(Path.cwd()) if here else file).as_posix()


def _source(module: str, ours: tuple[Path, ...]) -> tuple[Path | None, str]:
    """The file of a module that lies in one of these folders, and its package; else None."""
    parts, spec = module.split("."), None
    for end in range(1, len(parts) + 1):
        # Only packages of ours are looked into, as that imports them.
        if spec is not None and spec.submodule_search_locations is None:
            return None, ""
        spec = importlib.util.find_spec(".".join(parts[:end]))
        if spec is None:  # the name of a function, or of a library that is not here
            return None, ""
        places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
        if not any(_lies_in(Path(place).resolve(), root) for place in places for root in ours):
            return None, ""
    assert spec is not None
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    return (Path(spec.origin).resolve() if spec.has_location and spec.origin else None), package


def _lies_in(path: Path, root: Path) -> bool:
    """Whether it does, but not in an environment with libraries that the folder may hold."""
    return path.is_relative_to(root) and "site-packages" not in path.relative_to(root).parts


def _imported(file: Path, package: str) -> list[str]:
    """The names of all that a file imports, and of the packages that those are in."""
    return _names_in(file, package, file.stat().st_mtime_ns)


@cache
def _names_in(file: Path, package: str, _changed: int) -> list[str]:
    names: dict[str, None] = {}
    for node in _statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(name, package)
            found = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in found:
            parts = name.split(".")
            names |= dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return list(names)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it but what is for type checkers alone."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = iter(node.orelse)
    for child in children:
        yield from _statements(child)
