"""Loading CLIPs, against open_clip used directly, and what goes wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.clip import openclip
from pipeline.clip.openclip import load_clip, register
from pipeline.common.errors import BenchError
from pipeline.toyland.pretrain.clip import SCORING, model_config, new_clip, save_clip
from pipeline.toyland.pretrain.vocabulary import CONTEXT_LENGTH, write_open_clip

TEXTS = ["photo of a cat", "a dog on the beach", "a very small watercolor painting of a barn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "scorer"
    save_clip(new_clip(SCORING, write_open_clip(path)), SCORING, path)
    return path


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def images(count: int, size: tuple[int, int] = (64, 64)) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def test_features_are_those_of_open_clip_itself(folder: Path) -> None:
    vocabulary = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**model_config(SCORING, vocabulary["text_cfg"]["vocab_size"]))
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    model.eval()
    tokenize = open_clip.SimpleTokenizer(
        bpe_path=str(folder / "bpe_simple_vocab.txt.gz"), context_length=CONTEXT_LENGTH
    )
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images(3)])
    with torch.no_grad():
        texts = model.encode_text(tokenize(TEXTS), normalize=True).numpy()
        pictures = model.encode_image(pixels / 127.5 - 1, normalize=True).numpy()
    clip = load_clip(str(folder))
    assert clip.encode_texts(TEXTS) == pytest.approx(texts, abs=1e-6)
    assert clip.encode_images(images(3)) == pytest.approx(pictures, abs=1e-6)


def test_features_do_not_depend_on_what_else_is_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip(str(folder))
    many = clip.encode_images(images(9))
    monkeypatch.setattr(openclip, "MICRO_BATCH", 2)
    assert clip.encode_images(images(9)) == pytest.approx(many, abs=1e-6)
    assert clip.encode_texts(TEXTS)[2:] == pytest.approx(clip.encode_texts(TEXTS[2:]), abs=1e-6)
    assert np.linalg.norm(many, axis=1) == pytest.approx(1, abs=1e-6)
    assert many.dtype == np.float32
    assert clip.encode_images([]).shape == (0, many.shape[1])


def test_identity_names_the_weights_and_not_where_they_lie(folder: Path, broken: Path) -> None:
    digest = openclip.sha256(folder / "open_clip_model.safetensors")[:12]
    assert load_clip(str(folder)).identity == f"scorer@{digest}"
    assert load_clip(str(broken)).identity == f"broken@{digest}"


def test_model_is_in_full_precision_and_frozen(folder: Path) -> None:
    model = load_clip(str(folder)).model
    assert not model.training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, False)}


def test_registered_names_serve_open_clips_own_functions(folder: Path) -> None:
    name, weights = register(folder)
    model = open_clip.create_model(name, pretrained=str(weights)).eval()
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        texts = model.encode_text(tokens, normalize=True).numpy()
    assert load_clip(str(folder)).encode_texts(TEXTS) == pytest.approx(texts, abs=1e-6)
    assert register(folder) == (name, weights)


@pytest.mark.parametrize(
    "name", ["open_clip_config.json", "open_clip_model.safetensors", "bpe_simple_vocab.txt.gz"]
)
def test_missing_files_are_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(BenchError, match=name):
        load_clip(str(broken))


def test_damaged_files_are_named_in_one_line(broken: Path) -> None:
    weights = broken / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BenchError, match=weights.name) as error:
        load_clip(str(broken))
    assert "\n" not in str(error.value)
    (broken / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(BenchError, match=r"open_clip_config.json: not a configuration"):
        load_clip(str(broken))


def test_weights_of_quick_gelu_are_refused_without_it() -> None:
    with pytest.raises(BenchError, match=r"ViT-B-32-quickgelu/openai"):
        load_clip("ViT-B-32/openai")


def test_failed_downloads_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: object) -> str:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(openclip, "download_pretrained", offline)
    with pytest.raises(BenchError, match=r"ViT-B-32-quickgelu/openai: could not") as error:
        load_clip("ViT-B-32-quickgelu/openai")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/openai", "ViT-B-32/nothing", "ViT-B-32"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(BenchError, match=name):
        load_clip(name)
