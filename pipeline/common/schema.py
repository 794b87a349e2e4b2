"""Files of settings as typed objects: read as YAML 1.2, as DVC reads them, and checked.

In YAML 1.2 `1e-4` is a number and `no` a word.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.common.errors import BenchError


class Section(BaseModel):
    """A part of such a file: unknown fields are refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain Python values.

    Raises:
        BenchError: the file is missing, cannot be read or is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path}: the file is missing") from None
    except OSError as error:
        raise BenchError(f"{path}: could not be read: {error.strerror}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # an impossible date: ValueError
        line = str(error).replace("\n", " ")
        raise BenchError(f"{path}: not valid YAML: {line}") from error


T = TypeVar("T")


def parse(path: Path, kind: type[T], content: Any, within: str = "") -> T:
    """`content`, read from `path`, as a checked model or dataclass.

    Args:
        path: where it is from.
        kind: what it should be.
        content: plain values.
        within: the dotted name of the field that it is, if it is a part of the file.

    Raises:
        BenchError: names the file, the field and what is wrong with it.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [*filter(None, [within]), *map(str, first["loc"])]
        field = ".".join(parts) or "the file"
        shown = textwrap.shorten(repr(first["input"]), 80, placeholder=" ...")
        given = "" if first["type"] == "missing" else f" (got {shown})"
        raise BenchError(f"{path}: {field}: {first['msg'].lower()}{given}") from error
