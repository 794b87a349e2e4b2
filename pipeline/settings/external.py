"""Methods whose images were made elsewhere: `datasets/external/<method>/`.

There `method.yaml` says what made them, and a tar for each subject holds them. `bench samples
import` writes both.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.common.schema import Section, parse, read_yaml

EXTERNAL = Path("datasets") / "external"
ABOUT = "method.yaml"


class External(Section):
    """`method.yaml`."""

    source: str = Field(min_length=1, description="what made the images: system, version, by whom")
    licence: str = Field(min_length=1, description="of the images")
    url: str | None = Field(default=None, description="where to read more")

    def credit(self) -> str:
        """All of it on one line."""
        return ", ".join(filter(None, (self.source, f"licence {self.licence}", self.url)))


def external_folder(method: str) -> Path:
    """Where a method's images lie, if they were made elsewhere."""
    return EXTERNAL / method


def external_tar(method: str, subject: str) -> Path:
    """Where its images of a subject lie."""
    return external_folder(method) / f"{subject}.tar"


def is_external(method: str) -> bool:
    """Whether the method is one whose images were made elsewhere."""
    return (external_folder(method) / ABOUT).is_file()


def load_external(method: str) -> External:
    """What `method.yaml` says.

    Raises:
        BenchError: it is missing, or not of this form.
    """
    path = external_folder(method) / ABOUT
    return parse(path, External, read_yaml(path))
