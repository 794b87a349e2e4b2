"""What tests of the data stages share: a project whose CLIP is made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from pipeline.settings.profile import Params, load_params
from pipeline.settings.protocol import protocol_path

if TYPE_CHECKING:
    from pipeline.models.base import Base

Settings = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def float32() -> Iterator[None]:
    """Models compute in float32, as what they are compared with, whatever this machine has."""
    from pipeline.models import base  # imports torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "arithmetic", lambda device: base.torch.float32)
        yield


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the hand-made CLIP."""
    from tests.pipeline.corpora import bag_of_words  # imports open_clip

    folder = tmp_path_factory.mktemp("clip")
    bag_of_words(folder)
    return folder


@pytest.fixture(scope="module")
def base() -> Base:
    """The small base with random weights."""
    from tests.pipeline.tiny import new_base  # imports torch

    return new_base()


@pytest.fixture(scope="module")
def params() -> Params:
    """Those of the default profile."""
    return load_params()


@pytest.fixture
def settings(project: Path) -> Settings:
    """Replaces values in the default profile's `params.yaml`, by section.

    The section `protocol` holds sections of the profile's protocol.
    """
    yaml = YAML(typ="safe", pure=True)
    params = project / "params.yaml"

    def change(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
        content = yaml.load(path.read_text(encoding="utf-8"))
        for section, values in sections.items():
            content[section] = {**content.get(section, {}), **values}
        with open(path, "w", encoding="utf-8") as file:
            yaml.dump(content, file)

    def write(protocol: Mapping[str, Mapping[str, Any]] | None = None, **sections: Any) -> None:
        change(params, sections)
        if protocol:
            name = yaml.load(params.read_text(encoding="utf-8"))["protocol"]
            change(project / protocol_path(name), protocol)

    return write
