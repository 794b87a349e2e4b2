"""Toyland's models: how they are trained, measured and shipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pipeline.errors import BenchError
from pipeline.toyland import fitting, pretrain
from pipeline.toyland.autoencoder import psnr, reconstruction_loss
from pipeline.toyland.clip import (
    RETRIEVAL,
    SCORING,
    degrade,
    instance_loss,
    matching_loss,
    new_clip,
    save_clip,
    tokenizer,
)
from pipeline.toyland.denoiser import new_unet, save_base, text_encoder_of
from pipeline.toyland.judge import (
    Judge,
    save_judge,
)
from pipeline.toyland.personal import PERSONAL
from pipeline.toyland.pictures import held_out_scene, portrait, training_scene
from pipeline.toyland.vocabulary import CONTEXT_LENGTH, clip_tokenizer, write_open_clip
from pipeline.toyland.world import all_words, caption

MODELS = Path(__file__).parents[3] / "models" / "toyland"
MEBIBYTE = 2**20


def shipped(name: str) -> Path:
    """The folder of a shipped model."""
    if not (MODELS / name).is_dir():
        pytest.skip(f"models/toyland/{name} is not here")
    return MODELS / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained models, laid out as the shipped ones."""
    folder = tmp_path_factory.mktemp("models")
    size = write_open_clip(folder / "clip")
    clip = new_clip(RETRIEVAL, size)
    save_clip(clip, RETRIEVAL, folder / "clip")
    save_clip(new_clip(SCORING, size), SCORING, folder / "scorer")
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=24,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )
    save_base(clip, autoencoder, new_unet(), folder / "base")
    save_judge(Judge(), folder / "judge")
    return folder


# ------------------------------------------------------------------------------ vocabulary


def test_both_tokenizers_give_the_same_ids(tmp_path: Path) -> None:
    write_open_clip(tmp_path)
    ours, theirs = tokenizer(tmp_path), clip_tokenizer(tmp_path)
    rng = np.random.default_rng(0)
    texts = [caption(held_out_scene(i), rng) for i in range(300)] + ["", "a zebra, an Äpfel & 42!"]
    ids = theirs(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    end = theirs.eos_token_id
    for text, one, other in zip(texts, ours(texts).numpy(), ids):
        # They pad differently; nothing reads what comes behind the end.
        length = list(other).index(end) + 1
        assert one[:length].tolist() == other[:length].tolist(), text
        assert one.argmax() == length - 1


def test_every_word_of_the_world_is_one_token_and_any_word_can_be_written(tmp_path: Path) -> None:
    encode = clip_tokenizer(tmp_path)
    assert all(len(encode.tokenize(word)) == 1 for word in all_words())
    for text in ("xylophone", "ktn", "naïve façade", "東京", "🙂", "<new1>"):
        ids = encode(text, add_special_tokens=False).input_ids
        assert len(ids) >= 1
        assert encode.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_text_encoder_is_the_text_tower(tmp_path: Path) -> None:
    clip = new_clip(RETRIEVAL, write_open_clip(tmp_path)).eval()
    _same_text_features(clip, tmp_path, clip_tokenizer(tmp_path), text_encoder_of(clip))


def test_shipped_text_encoder_is_the_text_tower_of_the_shipped_clip() -> None:
    folder, base = shipped("clip"), shipped("base")
    from pipeline.openclip import load_clip

    encoder = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32).text_encoder
    tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")
    _same_text_features(load_clip(str(folder)).model.cpu(), folder, tokens, encoder)


@torch.no_grad()
def _same_text_features(
    clip: open_clip.CLIP, merges: Path, tokens: CLIPTokenizer, encoder: nn.Module
) -> None:
    texts = [caption(held_out_scene(i), np.random.default_rng(i)) for i in range(20)]
    ids = tokens(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (20, CONTEXT_LENGTH)
    features = encoder(ids).pooler_output @ clip.text_projection
    expected = clip.encode_text(tokenizer(merges)(texts))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------ losses


def test_matching_loss_equals_a_plain_computation() -> None:
    rng = np.random.default_rng(1)
    images, texts = (_units(rng, 6, 4) for _ in range(2))
    names = np.array([0, 1, 2, 1, 0, 3])
    same = names[:, None] == names
    logits = 7.5 * images @ texts.T
    loss = 0.0
    for i in range(6):
        for row in (logits[i], logits[:, i]):
            chances = np.exp(row) / np.exp(row).sum()
            loss -= np.log(chances[same[i]]).mean() / 12
    tensors = (torch.from_numpy(images), torch.from_numpy(texts), torch.tensor(7.5))
    assert matching_loss(*tensors, torch.from_numpy(same)).item() == pytest.approx(loss)


def test_instance_loss_equals_a_plain_computation() -> None:
    rows = _units(np.random.default_rng(2), 8, 5)
    loss = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        chances = np.exp(rows[others] @ rows[i] / 0.1)
        partner = i + 1 if i % 2 == 0 else i - 1
        loss -= np.log(chances[others.index(partner)] / chances.sum()) / 8
    assert instance_loss(torch.from_numpy(rows)).item() == pytest.approx(loss)


def test_reconstruction_loss_equals_a_plain_computation() -> None:
    rng = np.random.default_rng(3)
    error = rng.normal(size=(2, 3, 16, 16))
    areas = error.reshape(2, 3, 2, 8, 2, 8).mean((3, 5))
    edges = np.abs(np.diff(error)).mean() + np.abs(np.diff(error, axis=2)).mean()
    expected = np.abs(error).mean() + 5 * (error**2).mean() + edges / 2
    expected += np.abs(areas).mean() + 5 * (areas**2).mean()
    target = torch.from_numpy(rng.normal(size=error.shape))
    loss = reconstruction_loss(target + torch.from_numpy(error), target)
    # It works in single precision.
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2)) == pytest.approx(20)


def test_degrading_leaves_half_of_the_pictures_as_they_are() -> None:
    images = torch.rand(600, 3, 16, 16)
    out = degrade(images, np.random.default_rng(5))
    same = (out == images).flatten(1).all(1).float().mean()
    assert 0.4 < same < 0.6
    assert torch.equal(out, degrade(images, np.random.default_rng(5)))


def _units(rng: np.random.Generator, n: int, d: int) -> Any:
    rows = rng.normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ------------------------------------------------------------------------------ training


def test_training_that_was_stopped_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY", 4)

    def train(checkpoint: str, stop: int = 99) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))

        def loss(step: int) -> Tensor:
            if step == stop:
                raise KeyboardInterrupt
            batch = torch.randn(7, 3, generator=torch.Generator().manual_seed(step))
            return (net(batch) - batch.sum(1, keepdim=True)).pow(2).mean()

        def monitor(_: int) -> str:
            net.eval()(torch.ones(1, 3))  # must not change what is trained
            net.train()
            return ""

        path = tmp_path / checkpoint
        fitting.fit(
            net, loss, steps=12, learning_rate=0.1, checkpoint=path, label="", monitor=monitor
        )
        return net.state_dict()

    whole = train("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train("parts.pt", stop=6)
    resumed = train("parts.pt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    # Trained to the end already: nothing happens.
    assert all(torch.equal(train("whole.pt", stop=0)[k], v) for k, v in whole.items())


@pytest.mark.parametrize("part", pretrain.GATES)
def test_gates_stop_what_is_not_good_enough(part: str) -> None:
    enough = dict(pretrain.GATES[part])
    pretrain.gate(part, enough)
    for name in enough:
        with pytest.raises(BenchError, match=rf"{part}: {name} is 0\.5.* at least"):
            pretrain.gate(part, enough | {name: 0.5})
        with pytest.raises(BenchError, match="at least"):
            pretrain.gate(part, enough | {name: float("nan")})


def test_an_autoencoder_that_blurs_stops_the_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = torch.rand(4, 3, 64, 64) * 2 - 1

    def measure(clip: nn.Module, images: Tensor = scenes) -> dict[str, float]:
        return {"category": 0.95}

    monkeypatch.setattr(
        pretrain, "HeldOut", lambda *_: SimpleNamespace(images=scenes, measure=measure)
    )
    monkeypatch.setattr(pretrain, "tokenizer", lambda _: None)
    monkeypatch.setattr(pretrain, "train_clip", lambda *_: new_clip(RETRIEVAL, 800))
    monkeypatch.setattr(pretrain, "train_autoencoder", lambda *_: None)
    monkeypatch.setattr(pretrain, "reconstruct", lambda _, images: images * 0.5)
    with pytest.raises(BenchError, match=r"autoencoder: PSNR in dB is 1\d\.\d+, at least 28 is"):
        pretrain.pretrain(tmp_path / "work", tmp_path / "out", only="denoiser")
    # The gate before it was passed, so that model is there.
    assert (tmp_path / "out" / "clip" / "open_clip_model.safetensors").is_file()
    assert not (tmp_path / "out" / "base").exists()


def test_pretraining_an_unknown_model_is_refused() -> None:
    with pytest.raises(BenchError, match="--only unet: no such model: choose one of clip, scorer"):
        pretrain.pretrain(only="unet")


def test_personal_concepts_are_not_in_the_training_scenes() -> None:
    marks = {(thing.category, thing.shape) for thing in PERSONAL.values()}
    scenes = [training_scene(i) for i in range(2000)] + [portrait(2 * i) for i in range(2000)]
    assert not any((t.category, t.shape) in marks for scene in scenes for t in scene.things)


# ------------------------------------------------------------------------------ what is shipped


def test_shipped_base_makes_an_image_in_diffusers_own_pipeline() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(shipped("base"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe("photo of a red cat on the beach", num_inference_steps=10, generator=generator)
    image = np.asarray(images.images[0])
    assert image.shape == (64, 64, 3)
    assert image.std() > 10


def test_shipped_models_are_small_safe_and_described() -> None:
    folder = shipped("base").parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 45 * MEBIBYTE
    assert (folder / "judge" / "judge.safetensors").stat().st_size <= 2.5 * MEBIBYTE
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    for name in ("base", "clip", "scorer", "judge"):
        assert "Apache-2.0" in (folder / name / "README.md").read_text()
