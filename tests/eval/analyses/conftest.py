"""The scored profile with a base model of random weights and adapters that were never trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.concepts.concept import load_subject
from pipeline.methods import all_weights
from pipeline.models.adapter import Adapter, Provenance, save_adapter
from pipeline.models.base import Base, load_base
from pipeline.models.crossattn import key_value_names
from pipeline.settings.profile import load_params
from pipeline.settings.protocol import protocol_path
from tests.pipeline.conftest import float32  # noqa: F401  (for all tests here)
from tests.pipeline.tiny import RARE_TOKENS, RESOLUTION, write_base

JUDGE = Path(__file__).parents[3] / "models" / "toyland" / "judge"
Configure = Callable[..., None]
Adapt = Callable[..., Adapter]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


@pytest.fixture
def configure(profile: Path, base_folder: Path) -> Configure:
    """Makes the base and its sampling small, lays the judge there, writes section `analyses`."""
    shutil.copytree(base_folder, profile / "models" / "base")
    (profile / "models" / "toyland").mkdir()
    (profile / "models" / "toyland" / "judge").symlink_to(JUDGE)
    yaml = YAML()

    def write(**analyses: Any) -> None:
        params = yaml.load(profile / "params.yaml")
        params["base"] |= {"path": "models/base", "resolution": RESOLUTION}
        params["base"]["modifier_token_ids"] = RARE_TOKENS
        path = profile / protocol_path(params["protocol"])
        protocol = yaml.load(path)
        for kind in ("single", "composition"):
            protocol["sample"][kind]["steps"] = 2
        yaml.dump(protocol, path)
        params["sample"]["batch_size"] = 100
        params["analyses"] = analyses
        yaml.dump(params, profile / "params.yaml")

    return write


@pytest.fixture
def base(configure: Configure) -> Base:
    """The base of the profile."""
    configure()
    return load_base(load_params().base, torch.device("cpu"))


@pytest.fixture
def adapt(base: Base) -> Adapt:
    """Writes the adapter of a cell: random changes of a size, of K and V or of all weights."""

    def write(method: str, subject: str, size: float = 0.5, whole: bool = False) -> Adapter:
        g = torch.Generator().manual_seed(3)
        weights = dict(base.unet.named_parameters())
        names = all_weights(base.unet) if whole else key_value_names(base.unet)
        deltas = {n: size * torch.randn(weights[n].shape, generator=g) for n in names if size}
        concepts = load_subject(subject).concepts
        tokens = {f"<new{i}>": torch.randn(32, generator=g) for i in range(1, len(concepts) + 1)}
        references = tuple(f"{t} {c.class_noun}" for t, c in zip(tokens, concepts))
        made = Provenance(method, subject, base.path, base.hash, references)
        adapter = Adapter(tokens, {**deltas}, made)
        save_adapter(adapter, Path("runs/toyland/cells", method, subject, "adapter.safetensors"))
        return adapter

    return write
