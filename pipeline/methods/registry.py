"""Where methods are found, and which files they are made of.

A name in the `methods` of a grid.yaml is that of a file beside this one, or of an entry point in
the group `concept_bench.methods` of an installed package. A path there is a file of anybody's,
whose stem is the method's name. All define a `Method`; the files call it METHOD.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from pipeline.common.errors import BenchError
from pipeline.common.imports import names_imported, with_packages
from pipeline.methods.method import Method
from pipeline.settings.external import external_folder, is_external
from pipeline.settings.profile import Grid, check_name, profile_folder

GROUP = "concept_bench.methods"
FOLDER = Path(__file__).parent
NO_METHODS = ("__init__", "answers", "bundles", "method", "penalties", "registry", "seeds")
TAKEN = ("oracle",)  # its scores lie among those of the methods


def method_names() -> list[str]:
    """The methods that come with this project."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NO_METHODS)


def taken_names(grid: Grid) -> list[str]:
    """The names that stand for methods which are made here, and for the real images."""
    return [*TAKEN, *method_names(), *sorted(_installed()), *grid.method_files()]


def _installed() -> dict[str, EntryPoint]:
    """The methods of installed packages, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def check_methods(grid: Grid, profile: str) -> None:
    """Finds out whether each method of the profile's grid is there once, without importing any.

    Raises:
        BenchError: one is unknown, cannot be a name, or is there twice.
    """
    try:
        for name in grid.all_methods():
            _check_method(name, grid.method_files().get(name))
    except BenchError as error:
        raise BenchError(f"{profile_folder(profile) / 'grid.yaml'}: methods: {error}") from None


def _check_method(name: str, file: str | None) -> None:
    places = [file] if file else []
    places += ["this project"] if name in method_names() else []
    places += [f"the package of {_installed()[name].module}"] if name in _installed() else []
    places += [external_folder(name).as_posix()] if is_external(name) else []
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
        BenchError: there is none, it cannot be imported or is no method, or its images were made
            elsewhere.
    """
    if is_external(name):
        raise BenchError(f"method {name!r} is of images made elsewhere: it has no adapters")
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
    spec = spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[str(path)] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(path)]
        raise
    return module


def method_files(name: str, grid: Grid | None = None) -> list[Path]:
    """The method's file, then those that it imports of its own folder or package, at any depth.

    Of a method of this project that is its file alone, as `pipeline.bench.closure` says the rest.
    """
    load_method(name, grid)  # so that what lies beside a file is found
    _, module, _ = _place(name, grid)
    if isinstance(module, Path):
        first, root = module.resolve(), module.resolve().parent
        found, waiting = {first}, names_imported(first)
    else:
        first, root = _file(find_spec(module)), _root(find_spec(module.partition(".")[0]))
        found, waiting = set[Path](), with_packages(module)
    while waiting and name not in method_names():
        spec = _found(waiting.pop(), root)
        if spec is not None and spec.has_location and (file := _file(spec)) not in found:
            found.add(file)
            waiting += names_imported(file, _package(spec))
    return [first, *sorted(found - {first})]


def _file(spec: ModuleSpec | None) -> Path:
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).resolve()


def _root(spec: ModuleSpec | None) -> Path:
    """The folder of a package, or the file of a module."""
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]).resolve() if folders else _file(spec)


def _package(spec: ModuleSpec) -> str:
    """What relative imports of a module start from."""
    return spec.name if spec.submodule_search_locations is not None else spec.parent or ""


def _found(name: str, root: Path) -> ModuleSpec | None:
    """Where a module is, if it lies in that folder."""
    spec: ModuleSpec | None = None
    for whole in with_packages(name):
        # Only packages in the folder are looked into, as that imports them.
        if spec is not None and spec.submodule_search_locations is None:
            return None
        spec = find_spec(whole)
        if spec is None:  # the name of a function, or of a library that is not here
            return None
        places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
        if not any(_lies_in(Path(place).resolve(), root) for place in places):
            return None
    return spec


def _lies_in(path: Path, root: Path) -> bool:
    """Whether it does, but not in an environment with libraries that the folder may hold."""
    return path.is_relative_to(root) and "site-packages" not in path.relative_to(root).parts
