"""Stable Diffusion v1-4's layout: every stage that touches the base runs on it, for every method.

The checkpoint has random weights, small widths and 64 x 64 pixels; its blocks, names, files and
configurations are those of the published one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from pipeline.common.files import png_bytes, read_tar, write_tar
from pipeline.concepts.concept import load_subject
from pipeline.methods import Merged, Trained, load_method, method_names
from pipeline.models.adapter import applied, dense, load_adapter
from pipeline.models.base import Base, load_base
from pipeline.models.crossattn import attention_names, key_value_names
from pipeline.sample.generate import generate
from pipeline.sample.sampler import sample_cell
from pipeline.settings.profile import load_params
from pipeline.settings.protocol import PROTOCOLS
from pipeline.toyland.pretrain.vocabulary import END, START, learn_merges, vocabulary
from pipeline.train.stage import train_cell

RESOLUTION, WIDTH, CONTEXT = 64, 16, 77
IMAGES, CAPTIONS = 2, 2
CONCEPTS, PAIR = {"cat": "cat", "pot": "wooden pot"}, "cat+pot"
WORDS = "photo of a cat wooden pot in the snow and very small far away zoomed in close up".split()
WIDTHS = (8, 16, 32, 32)  # 320, 640, 1280 and 1280 in the published one


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's two files, with far fewer merges; 77 tokens, padded with the end token."""
    merges = learn_merges(WORDS)
    folder.mkdir(parents=True)
    ids = {token: i for i, token in enumerate(vocabulary(merges))}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    (folder / "merges.txt").write_text(lines + "\n", encoding="utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=CONTEXT,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )


def write_checkpoint(folder: Path) -> None:
    """Writes all seven components as the published checkpoint has them."""
    torch.manual_seed(0)
    words = tokenizer(folder.with_name("words"))
    size = len(words)
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    text = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2}
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    vision = {**text, "num_hidden_layers": 1, "patch_size": 32}
    checker = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=size, num_hidden_layers=1, **text, **ends).to_dict(),
        vision_config=CLIPVisionConfig(**vision).to_dict(),
        projection_dim=WIDTH,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=RESOLUTION,
            scaling_factor=0.18215,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size,
                num_hidden_layers=2,
                max_position_embeddings=CONTEXT,
                hidden_act="quick_gelu",
                **text,
                **ends,
            )
        ),
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=RESOLUTION // 8,
            block_out_channels=WIDTHS,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=2,
            attention_head_dim=8,  # the number of heads, in spite of its name
            cross_attention_dim=WIDTH,
            norm_num_groups=8,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=StableDiffusionSafetyChecker(checker),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    ).save_pretrained(folder)
    # As published: no `clip_sample` for a sampler to take over.
    path = folder / "scheduler" / "scheduler_config.json"
    assert "clip_sample" not in json.loads(path.read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with this base, two concepts and the shards of a corpus that never was."""
    root = tmp_path_factory.mktemp("v1-4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_checkpoint(root / "models" / "own" / "base")
        write_profile(root)
        write_inputs()
        yield root


def write_profile(root: Path) -> None:
    rare = [vocabulary(learn_merges(WORDS)).index(f"{letter}</w>") for letter in "qxj"]
    hyper = {"learning_rate": 1e-2, "steps": 2, "composition_steps": 1, "rank": 2, "ridge": 1e-6}
    sampler = {"guidance_scale": 6.0, "eta": 1.0}
    images = {"images_per_prompt": IMAGES, "steps": 2}
    protocol = {
        "about": "a test",
        "sample": {"single": images, "composition": images, "images_per_caption": 1, **sampler},
        "score": {
            "metrics": ["text_alignment", "image_alignment", "kid"],
            "clip": "models/own/clip",
            "text_scale": 2.5,
            "kid_features": "clip",
        },
    }
    params = {
        "profile": "toyland",
        "corpus": {"url_table": "urls.parquet", "resolution": RESOLUTION},
        "retrieve": {
            "clip": "models/own/clip",
            "query": "photo of a {}",
            "threshold": 0.85,
            "images": 4,
            "held_out_images": CAPTIONS,
        },
        "generate": {"images": 3, "steps": 2, "batch_size": 4, **sampler},
        "base": {
            "path": "models/own/base",
            "resolution": RESOLUTION,
            "modifier_token_ids": rare,
        },
        "train": {
            "batch_size": 4,
            "weight_decay": 0.01,
            "seed": 42,
            "regularization_captions": 5,
        },
        "methods": {name: hyper for name in method_names()},
        "protocol": "test",
        "sample": {"batch_size": 4},
    }
    grid = {
        "concepts": {name: {"class_noun": noun} for name, noun in CONCEPTS.items()},
        "compositions": {PAIR: {"first": "cat", "second": "pot"}},
        "methods": method_names(),
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.dump(params, root / "params.yaml")
    yaml.dump(grid, root / "grid.yaml")
    (root / PROTOCOLS).mkdir(parents=True)
    yaml.dump(protocol, root / PROTOCOLS / "test.yaml")
    for name, noun in CONCEPTS.items():
        folder = root / "datasets" / "concepts" / name
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "0.png").write_bytes(picture(0))
        concept = {
            "name": name,
            "class_noun": noun,
            "modifier_token": "<new1>",
            "caption": "photo of a {}",
            "prompts": f"prompts/{name}.txt",
            "licence": "CC0-1.0",
            "source": "random",
        }
        yaml.dump(concept, folder / "concept.yaml")
    prompts = root / "datasets" / "prompts"
    prompts.mkdir()
    for name in CONCEPTS:
        (prompts / f"{name}.txt").write_text("a {} in the snow\n")
    (prompts / f"{PAIR}.txt").write_text("a {0} and a {1}\n")


def write_inputs() -> None:
    """Shards, held-out captions and the index's captions, as the stages before would leave them."""
    runs = load_params().runs()
    for name, noun in CONCEPTS.items():
        targets = [sample("target", i, f"photo of a {noun}") for i in range(2)]
        others = [sample("regularization", i, f"a {noun} in the snow") for i in range(4)]
        held_out = [sample("held_out", i, f"the {noun} and {i}") for i in range(CAPTIONS)]
        write_tar(runs / "shards" / f"{name}.tar", targets + others)
        write_tar(runs / "regularization" / f"{name}.tar", others + held_out)
    captions = [f"a {word} in the snow" for word in WORDS]
    table = pa.table({"caption": captions, "split": ["train"] * len(captions)})
    (runs / "index").mkdir(parents=True)
    pq.write_table(table, str(runs / "index" / "metadata.parquet"))


def sample(part: str, number: int, text: str) -> dict[str, object]:
    key = f"{part}-{number:04d}"
    return {"__key__": key, "png": picture(number), "txt": text, "json": {"part": part}}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    return png_bytes(Image.fromarray(pixels))


@pytest.fixture(scope="module")
def cells(project: Path) -> dict[tuple[str, str], Path]:
    """The adapters of all methods on a concept, on the other where something needs it, and both."""
    for name in CONCEPTS:
        generate(name)
    found = {}
    kinds = [(m, "single", name) for m in method_names() for name in CONCEPTS]
    kinds += [(m, "composition", PAIR) for m in method_names()]
    needed = {
        how.of for m in method_names() if isinstance(how := load_method(m).composition, Merged)
    }
    for method, kind, subject in kinds:
        if getattr(load_method(method), kind) is None:
            continue
        if subject == "pot" and method not in needed:
            continue
        found[method, subject] = train_cell(method, subject)
        sample_cell(method, subject)
    return found


@pytest.fixture(scope="module")
def base(project: Path) -> Base:
    return load_base(load_params().base)


def test_the_layout_is_that_of_v1_4(project: Path, base: Base) -> None:
    folder = project / "models" / "own" / "base"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model_index.json",
        "feature_extractor",
        "safety_checker",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    }
    weights = {path.suffix for path in folder.rglob("*") if "model" in path.stem} - {".json"}
    assert weights == {".safetensors"}
    assert len(key_value_names(base.unet)) == 32
    assert len(attention_names(base.unet)) == 128
    assert len([n for n, _ in base.unet.named_parameters()]) == 686  # as the published UNet has
    assert base.latent_shape == (4, RESOLUTION // 8, RESOLUTION // 8)
    assert base.scale == pytest.approx(0.18215)
    assert base.encode_text(["a cat"]).shape == (1, CONTEXT, WIDTH)
    base.scheduler.set_timesteps(50)
    assert base.scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert base.scheduler.config.clip_sample is False


def test_generated_images_are_made(cells: object) -> None:
    for name in CONCEPTS:
        samples = read_tar(load_params().runs() / "generated" / f"{name}.tar")
        assert len(samples) == 3
        check_image(samples[0]["png"])


@pytest.mark.parametrize("method", method_names())
def test_adapters_apply_and_images_are_made(
    cells: dict[tuple[str, str], Path], base: Base, method: str
) -> None:
    subjects = [subject for name, subject in cells if name == method]
    assert subjects
    for subject in subjects:
        path = cells[method, subject]
        kinds = {file.suffix for file in path.parent.iterdir()}
        assert kinds <= {".safetensors", ".tar", ".json"}
        with safe_open(path, "pt") as file:
            assert "adapter" in file.metadata()
        adapter = load_adapter(path)
        about = load_subject(subject)
        how = load_method(method).how(about, method)
        if isinstance(how, Trained):
            assert set(adapter.deltas) == set(how.weights(base.unet))
        elif method not in ("pretrained", "textual_inversion"):
            assert set(adapter.deltas) == set(key_value_names(base.unet))
        weights = dict(base.unet.named_parameters())
        before = {name: weights[name].clone() for name in adapter.deltas}
        with applied(base, adapter):
            changes = {name: weights[name] - before[name] for name in adapter.deltas}
        for name, delta in adapter.deltas.items():
            torch.testing.assert_close(changes[name], dense(delta), atol=1e-6, rtol=0)
        assert any(change.any() for change in changes.values()) is bool(adapter.deltas)
        samples = read_tar(path.with_name("samples.tar"))
        extra = CAPTIONS if len(about.concepts) == 1 else 0
        assert len(samples) == IMAGES * len(about.prompts) + extra
        for one in samples:
            check_image(one["png"])


def check_image(png: bytes) -> None:
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (RESOLUTION, RESOLUTION)
        assert image.mode == "RGB"
