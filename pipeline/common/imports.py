"""What a file of Python code imports, read from its text: nothing is run."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import resolve_name
from pathlib import Path


def names_imported(file: Path, package: str = "") -> list[str]:
    """The dotted names that a file imports, at its top or within a function, and their packages.

    Of `from a import b` both a and a.b are there, whether or not b is a module.

    Args:
        file: of Python code.
        package: that the file is in; without it relative imports are left out.
    """
    return [*_names(file, package, file.stat().st_mtime_ns)]


@cache
def _names(file: Path, package: str, _changed: int) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return tuple(dict.fromkeys(whole for name in names for whole in with_packages(name)))


def with_packages(name: str) -> list[str]:
    """The packages that a module lies in, the outermost first, and the module."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
