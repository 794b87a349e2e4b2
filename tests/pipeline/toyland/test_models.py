"""Toyland's models: how they are trained, measured and shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.errors import BenchError
from pipeline.toyland import scorecard
from pipeline.toyland.autoencoder import new_autoencoder, psnr, reconstruction_loss
from pipeline.toyland.budget import BUDGET
from pipeline.toyland.cards import write_cards
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
    hits,
    judge_loss,
    judged,
    labels_of,
    load_judge,
    save_judge,
)
from pipeline.toyland.personal import PERSONAL
from pipeline.toyland.pictures import held_out_scene, training_scene
from pipeline.toyland.vocabulary import CONTEXT_LENGTH, clip_tokenizer, write_open_clip
from pipeline.toyland.world import BACKGROUNDS, CATEGORIES, COLOURS, all_words, caption

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
    autoencoder, text = new_autoencoder(), text_encoder_of(clip)
    save_base(text, autoencoder, new_unet(autoencoder, text), folder / "base")
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


def test_shipped_text_encoder_was_trained_along_from_the_text_tower_of_the_shipped_clip() -> None:
    from pipeline.openclip import load_clip

    base = shipped("base")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").float()
    tower = text_encoder_of(load_clip(str(shipped("clip"))).model.cpu())
    ours, theirs = encoder.state_dict(), tower.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    for name in ("num_attention_heads", "hidden_act", "eos_token_id", "max_position_embeddings"):
        assert getattr(encoder.config, name) == getattr(tower.config, name)
    changed = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert len(changed) > len(ours) / 2
    # Not any weights, but those weights trained on.
    flat = [torch.cat([v.flatten().float() for v in s.values()]) for s in (ours, theirs)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.8


def test_shipped_tokenizer_is_the_world_s(tmp_path: Path) -> None:
    theirs = CLIPTokenizer.from_pretrained(shipped("base") / "tokenizer")
    assert theirs.get_vocab() == clip_tokenizer(tmp_path).get_vocab()


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


def test_judge_loss_equals_a_plain_computation() -> None:
    scenes = [training_scene(i) for i in range(12)]
    assert {len(scene.things) for scene in scenes} == {1, 2}
    rng = np.random.default_rng(4)
    sizes = {"category": 16, "colour": 11, "background": 9, "present": 16}
    logits = {name: rng.normal(size=(12, size)) for name, size in sizes.items()}
    loss = 0.0
    for name, names in (
        ("category", CATEGORIES),
        ("colour", tuple(COLOURS)),
        ("background", tuple(BACKGROUNDS)),
    ):
        terms = []
        for row, scene in zip(logits[name], scenes):
            if name == "background" or len(scene.things) == 1:
                source = scene if name == "background" else scene.things[0]
                chances = np.exp(row) / np.exp(row).sum()
                terms.append(-np.log(chances[names.index(getattr(source, name))]))
        loss += np.mean(terms)
    for row, scene in zip(logits["present"], scenes):
        for category, logit in zip(CATEGORIES, row):
            there = category in {thing.category for thing in scene.things}
            loss += np.log1p(np.exp(-logit if there else logit)) / 12
    tensors = {name: torch.from_numpy(values) for name, values in logits.items()}
    assert judge_loss(tensors, labels_of(scenes), np.arange(12)).item() == pytest.approx(
        loss, rel=1e-5
    )


def test_degrading_leaves_half_of_the_pictures_as_they_are() -> None:
    images = torch.rand(600, 3, 16, 16)
    out = degrade(images, np.random.default_rng(5))
    same = (out == images).flatten(1).all(1).float().mean()
    assert 0.4 < same < 0.6
    assert torch.equal(out, degrade(images, np.random.default_rng(5)))


def _units(rng: np.random.Generator, n: int, d: int) -> Any:
    rows = rng.normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ------------------------------------------------------------------------------ the judge


def test_judge_is_independent_of_the_batch_and_survives_being_saved(models: Path) -> None:
    judge = load_judge(models / "judge")
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(6)) * 2 - 1
    choices, present = judged(judge, images)
    for i in range(5):
        alone, there = judged(judge, images[i : i + 1])
        assert {k: v[i] for k, v in choices.items()} == {k: v[0] for k, v in alone.items()}
        assert present[i] == there[0]


def test_damaged_judge_is_one_clear_line(models: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"judge\.safetensors: the weights are missing"):
        load_judge(tmp_path)
    whole = (models / "judge" / "judge.safetensors").read_bytes()
    (tmp_path / "judge.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchError, match=r"judge\.safetensors: not the judge's weights"):
        load_judge(tmp_path)


class _Oracle(nn.Module):
    """A judge that is told what the scenes show, except for what is in `wrong`."""

    def __init__(self, scenes: list[Any]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        labels = labels_of(scenes)
        self.logits = {
            name: torch.nn.functional.one_hot(torch.from_numpy(v).clamp(min=0), 16).float()
            for name, v in labels.choices.items()
        } | {"present": torch.from_numpy(labels.present) * 2 - 1}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.logits


def test_hits_of_a_perfect_judge_are_all_and_each_error_counts_once() -> None:
    wanted = [*scorecard.single_prompts(20), *scorecard.pair_prompts(6)]
    scenes = [w.scene for w in wanted]
    oracle, images = _Oracle(scenes), torch.zeros(26, 3, 64, 64)
    right = hits(oracle, images, scenes)  # type: ignore[arg-type]
    assert {name: (len(v), v.all()) for name, v in right.items()} == {
        "category": (20, True),
        "colour": (20, True),
        "background": (26, True),
        "pair_both": (6, True),
    }
    # One thing of the first pair is overlooked; a third thing seen elsewhere does not matter.
    oracle.logits["present"][20, CATEGORIES.index(scenes[20].things[1].category)] = -1
    oracle.logits["present"][21] = 1
    right = hits(oracle, images, scenes)  # type: ignore[arg-type]
    assert right["pair_both"].tolist() == [False, True, True, True, True, True]


# ------------------------------------------------------------------------------ the scorecard


def test_prompts_of_the_scorecard_are_balanced_and_fit_their_scenes() -> None:
    wanted = scorecard.single_prompts(176)
    things = [w.scene.things[0] for w in wanted]
    assert len({(t.category, t.colour) for t in things}) == 176
    counts = [sum(w.scene.background == b for w in wanted) for b in BACKGROUNDS]
    assert max(counts) - min(counts) <= 1
    for w, thing in zip(wanted, things):
        words = f" {thing.colour} {thing.category} {BACKGROUNDS[w.scene.background][0]}"
        assert w.prompt in (f"photo of a{words}", f"photo of an{words}")
    pairs = scorecard.pair_prompts(64)
    assert len({w.prompt for w in pairs}) == 64
    for w in pairs:
        first, second = w.scene.things
        assert first.category != second.category and first.colour != second.colour
        assert f"{first.colour} {first.category} and " in w.prompt
        assert w.prompt.endswith(f"{second.colour} {second.category}")
    assert wanted == scorecard.single_prompts(176)


def test_errors_of_shares_and_clusters() -> None:
    measure = scorecard.share([True] * 30 + [False] * 70)
    assert measure.value == 0.3 and measure.n == 100
    assert measure.std_error == pytest.approx(np.sqrt(0.3 * 0.7 / 100), rel=0.02)
    assert scorecard.share([True] * 50).std_error > 0
    clusters = scorecard.clustered([0.2, 0.4, 0.9], 30)
    assert clusters.value == pytest.approx(0.5) and clusters.n == 30
    assert clusters.std_error == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3))


def test_retrieval_counts_captions_of_the_thing_alone() -> None:
    nouns = [thing.category for thing in PERSONAL.values()]

    def near(text: str, noun: str) -> bool:
        """Captions that end in "of a cat" or "and a cat": the latter are wrong."""
        return text.endswith((f" of a {noun}", f" and a {noun}"))

    def encode_texts(texts: list[str]) -> Any:
        rows = np.array([[near(text, noun) for noun in nouns] for text in texts], np.float32)
        return np.column_stack([rows, 1 - rows.sum(1)])

    clip: Any = SimpleNamespace(encode_texts=encode_texts)
    measured = scorecard.measure_retrieval(clip, 3000)
    found, right, wanted = np.zeros((3, 10), int)
    for i in range(3000):
        scene = held_out_scene(i)
        text = caption(scene, np.random.default_rng([scorecard.CAPTIONS_SEED, i]))
        for k, noun in enumerate(nouns):
            alone = [thing.category for thing in scene.things] == [noun] and scene.style == "photo"
            wanted[k] += alone
            found[k] += near(text, noun)
            right[k] += near(text, noun) and alone
    assert (found > 0).all() and (right < found).any()
    assert measured["retrieval.precision"].value == pytest.approx((right / found).mean())
    assert measured["retrieval.recall"].value == pytest.approx((right / wanted).mean())
    assert measured["retrieval.fewest"].value == found.min()


def test_identity_of_a_clip_that_sees_all_and_of_one_that_sees_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sees_all(_: object, scenes: list[Any]) -> Any:
        return np.array([[scene.things[0] in PERSONAL.values(), 1] for scene in scenes], np.float32)

    def sees_nothing(_: object, scenes: list[Any]) -> Any:
        return np.ones((len(scenes), 2), np.float32)

    clip: Any = None
    for features, expected in ((sees_all, 1.0), (sees_nothing, 0.5)):
        monkeypatch.setattr(scorecard, "_features", features)
        measured = scorecard.measure_identity(clip, 3)
        assert {m.value for m in measured.values()} == {expected}


def test_scorecard_has_all_it_should_and_cards_show_its_numbers(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pipeline.toyland.clip.pictures", lambda scene_of, count, work: _drawn(scene_of, 64)
    )
    monkeypatch.setattr(
        "pipeline.toyland.judge.pictures", lambda scene_of, count, work: _drawn(scene_of, 64)
    )
    sizes = scorecard.Sizes(held_out=64, captions=200, queries=2, singles=6, pairs=3)
    sampling = scorecard.SAMPLING.model_copy(update={"steps": 2})
    results = scorecard.scorecard(
        models, tmp_path / "s.json", tmp_path / "s.jpg", "a test", sizes, sampling
    )
    assert json.loads((tmp_path / "s.json").read_text()) == results
    assert (tmp_path / "s.jpg").stat().st_size > 1000
    table = capsys.readouterr().out
    shows = {"category", "colour", "background", "pair_both"}
    seen = {*shows - {"pair_both"}, "retrieval_r1", "identity_auc", "identity_accuracy"}
    expected = {
        **dict.fromkeys(("real", "reconstructed", "generated", "judge"), shows),
        **dict.fromkeys(("clip", "scorer"), seen),
        "autoencoder": {"psnr", "zero_shot_category", "zero_shot_kept"},
        "retrieval": {"precision", "recall", "fewest"},
    }
    for group, names in expected.items():
        assert set(results[group]) == names
        assert set(results["n"][group]) == set(results["std_error"][group]) == names
        assert all(f"{group}.{name}" in table for name in names)
    assert results["n"]["generated"] == {
        "category": 6, "colour": 6, "background": 6, "pair_both": 3,
    }  # fmt: skip
    assert set(results["models"]) == {"base", "clip", "scorer", "judge"}
    assert set(scorecard.GOALS) <= {
        f"{g}.{name}" for g, names in expected.items() for name in names
    }

    card = (models / "base" / "README.md").read_text()
    assert f"| generated.category | {results['generated']['category']:.3f} |" in card
    assert f"{BUDGET.denoiser:,} noised latents" in card and "a test" in card
    budget = replace(BUDGET, clip=1234)
    results["clip"]["category"] = 0.9876
    write_cards(results, models, budget, "another machine")
    card = (models / "clip" / "README.md").read_text()
    assert "1,234 steps" in card and "0.988" in card and "another machine" in card
    assert card.startswith("---\nlicense: apache-2.0")


_DRAWN: dict[int, Any] = {}


def _drawn(scene_of: Any, count: int) -> Any:
    from pipeline.toyland.drawing import draw

    if count not in _DRAWN:
        _DRAWN[count] = np.stack([draw(scene_of(i)) for i in range(count)])
    return _DRAWN[count]


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


def test_shipped_judge_knows_what_it_judges_by() -> None:
    judge = load_judge(shipped("judge"))
    assert sum(p.numel() for p in judge.parameters()) <= 1_200_000
    from pipeline.toyland.autoencoder import to_tensor

    scenes = [w.scene for w in [*scorecard.single_prompts(176), *scorecard.pair_prompts(64)]]
    from pipeline.toyland.drawing import draw

    right = hits(judge, to_tensor(np.stack([draw(scene) for scene in scenes])), scenes)
    assert right["category"].mean() >= 0.95
    assert right["colour"].mean() >= 0.93
    assert right["background"].mean() >= 0.97
