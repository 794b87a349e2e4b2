"""How Toyland's models are trained: the loop, the base's recipe, what it is trained on."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from pipeline.bench import doctor
from pipeline.common.errors import BenchError
from pipeline.models.base import check_base, load_base
from pipeline.settings.profile import BaseParams
from pipeline.toyland.pretrain import autoencoder, denoiser, fitting, pool
from pipeline.toyland.pretrain import recipe as pretrain
from pipeline.toyland.pretrain.budget import BUDGET
from pipeline.toyland.pretrain.clip import RETRIEVAL, new_clip
from pipeline.toyland.pretrain.denoiser import Denoising, new_unet, text_encoder_of, train_denoiser
from pipeline.toyland.pretrain.pictures import PAIRS_SHARE, mixed_scene, portrait, training_scene
from pipeline.toyland.pretrain.ranks import agreed, together
from pipeline.toyland.pretrain.vocabulary import LETTERS, clip_tokenizer, token_ids, write_open_clip
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import full_caption
from tests.pipeline.toyland import pairwork

CPU = torch.device("cpu")
MODELS = Path(__file__).parents[4] / "models" / "toyland"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at the size of a test."""
    monkeypatch.setattr(pool, "BLOCK", 8)
    monkeypatch.setattr(pool, "FIRST", 16)
    monkeypatch.setattr(autoencoder, "BATCH", {"cpu": 2})
    monkeypatch.setattr(autoencoder, "CROPS", 8)
    monkeypatch.setattr(autoencoder, "pictures", lambda scene_of, n, work: drawn(16).pictures)
    monkeypatch.setattr(denoiser, "BATCH", {"cpu": 4})
    monkeypatch.setattr(denoiser, "WARMUP", 1)
    monkeypatch.setattr(fitting, "SAVE_EVERY", 2)


_DRAWN: dict[int, Any] = {}


def drawn(scenes: int) -> Any:
    """A pool that is there already, with latents of noise."""
    if scenes not in _DRAWN:
        blocks = [pool.draw_block(k) for k in range(scenes // pool.BLOCK)]
        generator = torch.Generator().manual_seed(1)
        _DRAWN[scenes] = SimpleNamespace(
            pictures=torch.from_numpy(np.concatenate([b[0] for b in blocks])),
            ids=torch.from_numpy(np.concatenate([b[1] for b in blocks])),
            latents=torch.randn(scenes, 6, 16, 16, generator=generator).half(),
            reach=lambda seen: scenes,
        )
    return SimpleNamespace(**vars(_DRAWN[scenes]))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> CLIPTextModel:
    """An untrained text tower."""
    return text_encoder_of(new_clip(RETRIEVAL, write_open_clip(tmp_path_factory.mktemp("words"))))


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
    monkeypatch.setattr(pretrain, "PROCESSES", 1)
    monkeypatch.setattr(pretrain, "train_clip", lambda *_: new_clip(RETRIEVAL, 777))
    monkeypatch.setattr(pretrain, "train_autoencoder", lambda *_: None)
    monkeypatch.setattr(pretrain, "reconstruct", lambda _, images: images * 0.5)
    with pytest.raises(BenchError, match=r"autoencoder: PSNR in dB is 1\d\.\d+, at least 35 is"):
        pretrain.pretrain(tmp_path / "work", tmp_path / "out", CPU, only="base")
    # The gate before it was passed, so that model is there; a second time it is not trained.
    assert (tmp_path / "out" / "clip" / "open_clip_model.safetensors").is_file()
    assert not (tmp_path / "out" / "base").exists()
    monkeypatch.setattr(pretrain, "train_clip", None)
    with pytest.raises(BenchError, match="autoencoder: PSNR"):
        pretrain.pretrain(tmp_path / "work", tmp_path / "out", CPU, only="base")


def test_pretraining_an_unknown_model_or_for_no_time_is_refused() -> None:
    with pytest.raises(BenchError, match="--only unet: no such model: choose one of clip, scorer"):
        pretrain.pretrain(only="unet")
    for minutes in (0.0, -1.0, float("nan")):
        with pytest.raises(BenchError, match="--minutes .*: has to be more than 0"):
            pretrain.pretrain(only="base", minutes=minutes)


def test_personal_concepts_are_not_in_the_training_scenes() -> None:
    marks = {(thing.category, thing.shape) for thing in PERSONAL.values()}
    for scene_of, step in ((training_scene, 1), (portrait, 2), (mixed_scene, 1)):
        scenes = [scene_of(step * i) for i in range(2000)]
        assert not any((t.category, t.shape) in marks for s in scenes for t in s.things)


# ------------------------------------------------------------------------------ the loop


def test_two_processes_train_as_one_does_and_agree_when_the_time_is_over() -> None:
    alone, _ = pairwork.train()
    with together(2, pairwork.follow):
        shared, _ = pairwork.train()
        _, steps = pairwork.train(seconds=0.2)
        agreed(steps)  # the other one compares
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-6)
    assert steps > 0


def test_a_rate_warms_up_stays_and_falls_to_nothing() -> None:
    net = nn.Linear(1, 1, bias=False)
    seen = []

    def loss(step: int) -> Tensor:
        seen.append(net.weight.item())
        return net.weight.sum()

    settings: Any = {"checkpoint": None, "label": "", "weight_decay": 0.0}
    fitting.fit(net, loss, steps=100, learning_rate=0.1, warmup=10, constant=0.35, **settings)
    # AdamW moves by the rate where the gradient is always the same.
    rates = -np.diff(seen)
    assert rates[:10] == pytest.approx(0.01 * np.arange(1, 11), rel=1e-3)
    assert rates[10:35] == pytest.approx(0.1, rel=1e-3)
    falling = 0.05 * (1 + np.cos(np.pi * (np.arange(36, 99) / 100 - 0.35) / 0.65))
    assert rates[36:] == pytest.approx(falling, rel=1e-2, abs=1e-5)


def test_attention_is_in_float32_where_a_cpu_casts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Elsewhere nothing is cast; what a CPU emulates it computes nonetheless.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    rows = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16)
    with fitting.mixed_precision(CPU):
        assert F.scaled_dot_product_attention(rows, rows, rows).dtype == torch.float32
        assert F.linear(rows.float(), torch.ones(3, 8)).dtype == torch.get_autocast_dtype("cpu")


def test_a_module_that_cannot_be_captured_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("not while\ncapturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    sample: Any = SimpleNamespace(device=torch.device("cuda"))
    fitting.replay(nn.Linear(1, 1), sample)
    assert capsys.readouterr().out == "pretrain: without CUDA graphs: not while capturing\n"


# ------------------------------------------------------------------------------ what is drawn


def test_scenes_and_captions_of_the_base_are_mixed_as_they_should_be() -> None:
    pairs = np.mean([len(mixed_scene(i).things) == 2 for i in range(1500)])
    assert pairs == pytest.approx(PAIRS_SHARE, abs=0.04)
    full = lettered = 0
    for i in range(1500):
        scene = mixed_scene(i)
        words = pool.training_caption(scene, np.random.default_rng(i)).split()
        letters = [k for k, word in enumerate(words) if word in LETTERS]
        if letters:
            lettered += 1
            (place,) = letters
            assert words[place + 1] == scene.things[0].category.split()[0]
        full += " ".join(w for w in words if w not in LETTERS) == full_caption(scene)
    assert lettered / 1500 == pytest.approx(0.15, abs=0.03)
    assert full / 1500 > 0.43


def test_ids_from_the_drawing_processes_are_the_tokenizer_s(tmp_path: Path) -> None:
    encode = clip_tokenizer(tmp_path)
    with pool.Pool(20, CPU) as scenes:
        assert scenes.reach(0) == 16 and scenes.reach(10**6) == 24
        captions = []
        for i in range(24):
            rng = np.random.default_rng([pool.MIXED + 1, i])
            captions += [pool.training_caption(mixed_scene(i), rng) for _ in range(pool.CAPTIONS)]
        assert any(word in LETTERS for text in captions for word in text.split())
        ids = encode(captions, padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(scenes.ids.flatten(0, 1).long(), ids.input_ids)
        expected = np.stack([pool.draw(mixed_scene(i)) for i in range(24)])
        assert np.array_equal(scenes.pictures.numpy(), expected)
    for text in ("", "q", "photo of a q cat", " ".join(["cat"] * 40)):
        padded = encode(text, padding="max_length", truncation=True).input_ids
        assert token_ids(text) == padded


def test_a_pool_draws_what_a_step_demands_or_by_the_clock_takes_what_is_there() -> None:
    def encode(pictures: Tensor) -> Tensor:
        return pictures[:, ::16, ::16, :1].permute(0, 3, 1, 2).float() / 256

    with pool.Pool(64, CPU) as scenes:
        assert [scenes.reach(seen) for seen in (0, 16, 40)] == [16, 20, 26]
        pictures = scenes.pictures.clone()
        scenes.encode(encode)
        # It does not matter that there are more already.
        assert scenes.reach(0) == 16 and scenes.reach(80) == 36
        more = np.stack([pool.draw(mixed_scene(i)) for i in range(32, 36)])
        pictures[32:36] = torch.from_numpy(more)
        assert torch.equal(scenes.latents[:36], encode(pictures[:36]).half())
    with pool.Pool(64, CPU, by_clock=True) as scenes:
        reached = scenes.reach(0)
        assert reached >= 16
        while reached < 64:
            reached = scenes.reach(0)


# ------------------------------------------------------------------------------ the recipe


def test_an_autoencoder_learns_and_going_on_is_as_good_as_never_stopping(tmp_path: Path) -> None:
    def train(folder: str, stop: int = 10**9) -> Any:
        scenes = drawn(16)

        def reach(seen: int) -> int:
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(seen)
            return 16

        calls: list[int] = []
        scenes.reach = reach
        return autoencoder.train_autoencoder(scenes, tmp_path / folder, CPU, 12)

    net = train("whole")
    untrained = autoencoder.new_autoencoder()
    images = autoencoder.to_tensor(drawn(16).pictures)
    before, after = (
        autoencoder.psnr(images, autoencoder.reconstruct(n, images)) for n in (untrained, net)
    )
    assert after > before
    scaled = autoencoder.latents_of(net, drawn(16).pictures)
    assert scaled.shape == (16, 6, 16, 16)
    assert scaled.std().item() == pytest.approx(1, abs=0.02)
    for stop in (1, 5):  # among the crops, among the pictures
        with pytest.raises(KeyboardInterrupt):
            train(f"parts{stop}", stop)
        assert same(train(f"parts{stop}").state_dict(), net.state_dict())


def trained(
    tower: CLIPTextModel, scenes: Any, work: Path, steps: int = 4
) -> tuple[nn.Module, CLIPTextModel]:
    text = copy.deepcopy(tower)
    coder = autoencoder.new_autoencoder()
    return train_denoiser(text, coder, scenes, work, CPU, 4 * steps), text


def test_a_denoiser_learns_and_going_on_is_as_good_as_never_stopping(
    tower: CLIPTextModel, tmp_path: Path
) -> None:
    scenes = drawn(16)
    unet, text = trained(tower, scenes, tmp_path / "whole", steps=6)

    torch.manual_seed(31)
    untrained = new_unet(autoencoder.new_autoencoder(), tower)
    noise = torch.randn(8, 6, 16, 16, generator=torch.Generator().manual_seed(2))
    batch = (
        scenes.latents[:8].float(),
        noise,
        torch.arange(0, 1000, 125),
        scenes.ids[:8, 0].long(),
    )
    with torch.no_grad():
        before, after = (
            Denoising(u, t)(*batch).item() for u, t in ((untrained, tower), (unet, text))
        )
    assert after < before

    def reach(seen: int) -> int:
        if seen == 12:
            raise KeyboardInterrupt
        return 16

    scenes.reach = reach
    with pytest.raises(KeyboardInterrupt):
        trained(tower, scenes, tmp_path / "parts", steps=6)
    again, text_again = trained(tower, drawn(16), tmp_path / "parts", steps=6)
    assert same(again.state_dict(), unet.state_dict())
    assert same(text_again.state_dict(), text.state_dict())


def lettered_ids(count: int) -> Tensor:
    texts = [f"photo of a {LETTERS[k]} cat on the beach" for k in range(count)]
    return torch.tensor([token_ids(text) for text in texts])


def gradients(net: Denoising, *batch: Tensor) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    net(*batch).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}


def test_captions_with_letters_teach_the_unet_alone(
    tower: CLIPTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "CAPTION_DROPOUT", 0.0)
    scenes = drawn(16)
    scenes.ids = lettered_ids(16)[:, None].repeat(1, pool.CAPTIONS, 1).to(torch.int16)
    torch.manual_seed(31)
    untrained = new_unet(autoencoder.new_autoencoder(), tower)
    unet, text = trained(tower, scenes, tmp_path, steps=3)
    assert same(text.state_dict(), tower.state_dict())
    assert not same(unet.state_dict(), untrained.state_dict())


def test_in_a_mixed_batch_the_text_encoder_learns_from_the_other_captions_alone(
    tower: CLIPTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "arithmetic", lambda device: torch.float32)
    net = Denoising(
        new_unet(autoencoder.new_autoencoder(), tower), copy.deepcopy(tower).requires_grad_(True)
    )
    plain = torch.tensor([token_ids(t) for t in ("photo of a cat", "", "a red chair at night")])
    ids = torch.cat([plain, lettered_ids(3)])[[0, 3, 4, 1, 2, 5]]
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 6, 6, 16, 16, generator=generator)
    batch = (clean, noise, torch.tensor([3, 900, 400, 120, 700, 60]), ids)
    mixed = gradients(net, *batch)
    alone = gradients(net, *(part[[0, 3, 4]] for part in batch))
    # Means of six and of three.
    for name, value in mixed.items():
        if name.startswith("text."):
            torch.testing.assert_close(2 * value, alone[name], rtol=1e-4, atol=1e-7)
    assert any(v.abs().max() > 0 for n, v in alone.items() if n.startswith("text."))
    # The UNet learns from all of them: as from the mean of two halves, whichever they are.
    halves = [gradients(net, *(part[k::2] for part in batch)) for k in range(2)]
    for name, value in mixed.items():
        mean = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-3, atol=1e-6)


def test_rows_of_letters_stay_where_they_are_and_apart(
    tower: CLIPTextModel, tmp_path: Path
) -> None:
    _, text = trained(tower, drawn(16), tmp_path, steps=3)
    letters = torch.tensor([token_ids(letter)[1] for letter in LETTERS])
    rows = text.get_input_embeddings().weight
    assert torch.equal(rows[letters], tower.get_input_embeddings().weight[letters])
    assert not torch.equal(rows, tower.get_input_embeddings().weight)
    cosines = F.normalize(rows[letters]) @ F.normalize(rows[letters]).T
    assert (cosines - torch.eye(len(letters))).abs().max() < 0.5


def test_the_shipped_clip_s_text_tower_tells_letters_apart() -> None:
    """Where a new base starts from: its CLIP has never seen a letter in a caption."""
    if not (MODELS / "clip").is_dir():
        pytest.skip("models/toyland/clip is not here")
    from pipeline.clip.openclip import load_clip

    features = text_encoder_of(load_clip(str(MODELS / "clip")).model.cpu())(lettered_ids(20))[0]
    at_letter = F.normalize(features[:, 4], dim=-1)
    cosines = (at_letter @ at_letter.T)[~torch.eye(20, dtype=torch.bool)]
    assert cosines.mean() < 0.9


def test_pretraining_by_the_clock_writes_a_base_that_diffusers_and_this_project_read(
    tower: CLIPTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "PROCESSES", 1)
    monkeypatch.setattr(pretrain, "text_encoder_of", lambda _: copy.deepcopy(tower))
    monkeypatch.setattr(pretrain._Pretraining, "clip", None)
    monkeypatch.setattr(pretrain._Pretraining, "_check_autoencoder", lambda *_: None)
    budget = replace(BUDGET, base_scenes_by_clock=32)
    out = tmp_path / "out"
    pretrain.pretrain(tmp_path / "work", out, CPU, only="base", minutes=0.05, budget=budget)

    base = out / "base"
    pipe = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("photo of a q cat", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert max(path.stat().st_size for path in base.rglob("*")) <= 16 * 10**6
    params = BaseParams(path=str(base), resolution=64, modifier_token_ids=[0])
    ours = load_base(params, CPU)
    assert same(ours.unet.state_dict(), pipe.unet.state_dict())
    assert ours.latent_shape == (6, 16, 16) and ours.unet.config.sample_size == 16
    # The text encoder is the one that was trained, not where it started from.
    assert not same(ours.texts.models[0].state_dict(), tower.half().float().state_dict())

    checks = list(doctor._base(params, Path("params.yaml")))
    assert {check.state for check in checks} == {"ready"}
    next((base / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(BenchError, match=r"unet.*safetensors: missing, .*index\.json names it"):
        check_base(params)
    assert "missing" in {check.state for check in doctor._base(params, Path("params.yaml"))}
