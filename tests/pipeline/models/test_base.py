"""What the base answers: conditions, predictions and targets; and which bases are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pipeline.common.errors import BenchError
from pipeline.models.base import Base, check_base, load_base
from pipeline.models.texts import Condition
from pipeline.settings.profile import BaseParams
from tests.pipeline.tiny import new_base, write_base

VELOCITY = {"prediction_type": "v_prediction"}
FIRST, NEWEST = "a" * 40, "b" * 40  # commits


@pytest.fixture(scope="module")
def base() -> Base:
    return new_base()


@pytest.fixture(scope="module")
def velocity_base() -> Base:
    return new_base(**VELOCITY)


def drawn(base: Base) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean latents, noise and timesteps, the first and the last among them."""
    g = torch.Generator().manual_seed(5)
    clean, noise = (torch.randn((5, *base.latent_shape), generator=g) for _ in range(2))
    return clean, noise, torch.tensor([0, 1, 500, 777, 999])


def test_the_target_of_noise_is_the_noise(base: Base) -> None:
    clean, noise, timesteps = drawn(base)
    assert torch.equal(base.target(clean, noise, timesteps), noise)


def test_the_target_of_velocity_is_its_formula(velocity_base: Base) -> None:
    """In float64 from the betas' own formula, and by diffusers' DDPM scheduler."""
    clean, noise, timesteps = drawn(velocity_base)
    target = velocity_base.target(clean, noise, timesteps)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)[timesteps.numpy()].reshape(-1, 1, 1, 1)
    x, e = clean.double().numpy(), noise.double().numpy()
    expected = np.sqrt(kept) * e - np.sqrt(1 - kept) * x
    np.testing.assert_allclose(target.numpy(), expected, atol=1e-5)
    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **VELOCITY
    )
    torch.testing.assert_close(target, theirs.get_velocity(clean, noise, timesteps))
    # Whoever knows the velocity knows the clean latents.
    noisy = velocity_base.scheduler.add_noise(clean, noise, timesteps).double().numpy()
    recovered = np.sqrt(kept) * noisy - np.sqrt(1 - kept) * target.double().numpy()
    np.testing.assert_allclose(recovered, x, atol=1e-5)


def test_a_condition_is_that_of_each_of_its_texts(base: Base) -> None:
    texts = ["photo of a cat", "a dog", "a red house in the snow"]
    condition = base.condition(texts)
    assert condition.text.shape == (3, base.texts.context, 32)
    for text, one in zip(texts, condition.split(), strict=True):
        torch.testing.assert_close(one.text, base.condition([text]).text)
    again = Condition.joined([condition.split()[i] for i in (2, 0, 2)])
    assert torch.equal(again.text, condition.text[[2, 0, 2]])


def test_a_prediction_is_the_unets(base: Base) -> None:
    noisy, _, timesteps = drawn(base)
    condition = base.condition(["a cat"] * 5)
    expected = base.unet(noisy, timesteps, encoder_hidden_states=condition.text).sample
    predicted = base.predict(noisy, timesteps, condition)
    assert torch.equal(predicted, expected) and predicted.dtype == torch.float32


def test_texts_are_as_long_as_tokenizer_and_text_encoder_both_allow(
    tmp_path: Path, base: Base
) -> None:
    params, long = write_base(tmp_path), "a cat and " * 50
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    content = json.loads(path.read_text())
    assert content["model_max_length"] == base.texts.context == 32
    for said, context in ((7, 7), (10**30, 32)):
        path.write_text(json.dumps(content | {"model_max_length": said}))
        other = load_base(params, torch.device("cpu"))
        assert other.texts.context == context
        assert other.condition(["a cat", long]).text.shape == (2, context, 32)


@pytest.mark.parametrize("kind", ["sample", "flow_prediction", None])
def test_a_base_that_predicts_something_else_is_refused(tmp_path: Path, kind: str | None) -> None:
    params = write_base(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"prediction_type": kind}))
    fault = rf"^{path}: prediction_type: {kind!r} is not supported: choose a base that predicts"
    with pytest.raises(BenchError, match=fault):
        load_base(params)
    # Configurations from before there was a choice mean noise.
    del content["prediction_type"]
    path.write_text(json.dumps(content))
    assert load_base(params).scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    "config",
    [
        {},
        VELOCITY,
        {"rescale_betas_zero_snr": True, **VELOCITY},
        {"trained_betas": np.linspace(0.001, 0.02, 500).tolist(), "num_train_timesteps": 500},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    ],
)
def test_noise_grows_as_the_bases_configuration_says(
    tmp_path: Path, config: dict[str, object]
) -> None:
    ours = load_base(write_base(tmp_path, **config)).scheduler
    theirs = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.config.num_train_timesteps == theirs.config.num_train_timesteps
    assert ours.config.prediction_type == theirs.config.prediction_type


def test_latents_are_those_of_the_autoencoder(tmp_path: Path) -> None:
    """Eight channels, halved once: neither four nor eight times smaller."""
    params = write_base(tmp_path)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=8,
        norm_num_groups=4,
        scaling_factor=0.7,
    )
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(BenchError, match="unet makes 4 channels of 4, and latents have 8"):
        load_base(params)
    config = UNet2DConditionModel.load_config(tmp_path / "unet")
    config |= {"in_channels": 8, "out_channels": 8}
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "unet")
    base = load_base(params, torch.device("cpu"))
    assert (base.latent_shape, base.downsampling, base.scale) == ((8, 16, 16), 2, 0.7)
    mean, _ = base.encode_images(torch.zeros(1, 3, 32, 32))
    assert mean.shape[1:] == base.latent_shape
    assert base.decode_latents(mean).shape == (1, 3, 32, 32)


def test_a_base_that_paints_into_an_image_is_refused(tmp_path: Path) -> None:
    params = write_base(tmp_path)
    config = UNet2DConditionModel.load_config(tmp_path / "unet") | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "unet")
    with pytest.raises(BenchError, match=r"^base\.path: .* its unet makes 4 channels of 9"):
        load_base(params)


def test_a_resolution_that_latents_cannot_have_is_refused(tmp_path: Path) -> None:
    params = write_base(tmp_path).model_copy(update={"resolution": 30})
    with pytest.raises(BenchError, match=r"base\.resolution: 30 is no multiple of 4, the pixels"):
        load_base(params)


def test_a_revision_belongs_to_a_hub_id(tmp_path: Path) -> None:
    params = write_base(tmp_path).model_copy(update={"revision": "0123"})
    with pytest.raises(BenchError, match=r"^base\.revision: 0123 is of a hub id, and base\.path"):
        check_base(params)
    params = params.model_copy(update={"path": "owner/name"})
    check_base(params)


def test_weights_from_the_hub_are_those_of_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commits in a cache as the hub's client writes it; the network is off."""
    cache = tmp_path / "models--owner--name"
    params = write_base(cache / "snapshots" / FIRST)
    shutil.copytree(cache / "snapshots" / FIRST, cache / "snapshots" / NEWEST)
    for part, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = cache / "snapshots" / NEWEST / part / f"{file}.safetensors"
        save_file({n: t + 1 for n, t in load_file(path).items()}, path, {"format": "pt"})
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(NEWEST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path))

    def loaded(revision: str | None) -> Base:
        about = BaseParams(
            path="owner/name", resolution=32, modifier_token_ids=[0], revision=revision
        )
        return load_base(about, torch.device("cpu"))

    first, newest = loaded(FIRST), loaded(None)
    local = load_base(params, torch.device("cpu"))

    def models(base: Base) -> list[torch.nn.Module]:
        return [base.unet, base.vae, *base.texts.models]

    for part, *others in zip(models(local), models(first), models(newest)):
        (name, weight), *_ = part.named_parameters()
        for found, more in zip(others, (0, 1)):
            assert torch.equal(found.get_parameter(name), weight + more)
    # Adapters of one commit are not those of another.
    assert first.hash == f"owner/name@{FIRST}"
    assert newest.hash == "owner/name"
