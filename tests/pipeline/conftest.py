"""What tests of the data stages share: a project whose CLIP is made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

Settings = Callable[..., None]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the hand-made CLIP."""
    from tests.pipeline.corpora import bag_of_words  # imports open_clip

    folder = tmp_path_factory.mktemp("clip")
    bag_of_words(folder)
    return folder


@pytest.fixture
def settings(project: Path) -> Settings:
    """Replaces values in the default profile's `params.yaml`, by section."""
    yaml = YAML(typ="safe", pure=True)
    path = project / "params.yaml"

    def write(**sections: Mapping[str, Any]) -> None:
        params = yaml.load(path.read_text(encoding="utf-8"))
        for section, values in sections.items():
            params[section] = {**params[section], **values}
        with open(path, "w", encoding="utf-8") as file:
            yaml.dump(params, file)

    return write
