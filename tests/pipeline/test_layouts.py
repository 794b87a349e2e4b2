"""Published layouts: every stage that touches the base runs on each, for every method.

The checkpoints have random weights, small widths and 64 x 64 pixels; their blocks, names, files
and configurations are those of the published ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
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

from pipeline.common.files import png_bytes, read_tar, write_json, write_tar
from pipeline.concepts.concept import Subject, load_subject
from pipeline.methods import Merged, Trained, load_method
from pipeline.methods.bundles import Bundled
from pipeline.models.adapter import applied, dense, load_adapter
from pipeline.models.base import Base, load_base
from pipeline.models.bundle import unbundled
from pipeline.models.crossattn import (
    attention_names,
    cross_attention_names,
    key_value_names,
)
from pipeline.sample.generate import generate
from pipeline.sample.sampler import sample as make_images
from pipeline.sample.sampler import sample_cell
from pipeline.settings.profile import SamplerParams, load_grid, load_params
from pipeline.settings.protocol import PROTOCOLS
from pipeline.toyland.pretrain.vocabulary import END, START, learn_merges, vocabulary
from pipeline.train.stage import train_cell

RESOLUTION, CONTEXT = 64, 77
IMAGES, CAPTIONS = 2, 2
CONCEPTS, PAIR = {"cat": "cat", "pot": "wooden pot"}, "cat+pot"
WORDS = "photo of a cat wooden pot in the snow and very small far away zoomed in close up".split()
WIDTHS = (8, 16, 32, 32)  # 320, 640, 1280 and 1280 in the published ones
# Those of profile `paper`: the others need sequences, or parameters of their own.
# The paper's, and a method whose rows differ by layer, with those adapters mixed by prompt.
METHODS = [*load_grid("paper").methods, "ed_lora", "ed_lora_ewa"]
FOLDERS = frozenset(("feature_extractor", "scheduler", "text_encoder", "tokenizer", "unet", "vae"))


@dataclass(frozen=True)
class Layout:
    """What tells a published checkpoint from others."""

    width: int  # of text features: 768 and 1024
    padding: str  # the token that texts are padded with
    predicts: str
    text: Mapping[str, Any]
    unet: Mapping[str, Any]
    scheduler: type
    folders: frozenset[str] = FOLDERS


LAYOUTS = {
    "v1-4": Layout(
        width=16,
        padding=END,
        predicts="epsilon",
        text={"hidden_act": "quick_gelu", "num_attention_heads": 2},
        unet={"attention_head_dim": 8},  # the number of heads, in spite of its name
        scheduler=PNDMScheduler,
        folders=FOLDERS | {"safety_checker"},
    ),
    "2.1": Layout(
        width=32,
        padding="!",
        predicts="v_prediction",
        text={"hidden_act": "gelu", "num_attention_heads": 4, "projection_dim": 16},
        unet={
            "attention_head_dim": [1, 2, 4, 4],  # 5, 10, 20 and 20: numbers of heads, too
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        scheduler=DDIMScheduler,
    ),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    """Each layout in turn."""
    return LAYOUTS[request.param]


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


def write_checkpoint(folder: Path, layout: Layout) -> None:
    """Writes all components as the published checkpoint has them."""
    torch.manual_seed(0)
    words = tokenizer(folder.with_name("words"))
    size = len(words)
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    text = {"hidden_size": layout.width, "intermediate_size": 4 * layout.width, **layout.text}
    ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    checked = "safety_checker" in layout.folders
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
            cross_attention_dim=layout.width,
            norm_num_groups=8,
            **layout.unet,
        ),
        scheduler=layout.scheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=layout.predicts,
            **({"skip_prk_steps": True} if checked else {"clip_sample": False}),
        ),
        safety_checker=safety_checker(size, text, ends) if checked else None,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        requires_safety_checker=checked,
    ).save_pretrained(folder)
    write_old_tokenizer(folder / "tokenizer", layout.padding)


def safety_checker(
    size: int, text: Mapping[str, Any], ends: Mapping[str, int]
) -> StableDiffusionSafetyChecker:
    width = text["hidden_size"]
    vision = {key: value for key, value in text.items() if key != "hidden_act"}
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=size, num_hidden_layers=1, **text, **ends).to_dict(),
        vision_config=CLIPVisionConfig(num_hidden_layers=1, patch_size=32, **vision).to_dict(),
        projection_dim=width,
    )
    return StableDiffusionSafetyChecker(config)


def write_old_tokenizer(folder: Path, padding: str) -> None:
    """Writes the configuration as it was when the models were published.

    Two files name the padding, and that of the special tokens has the last word.
    """
    special = {"bos_token": START, "eos_token": END, "unk_token": END}
    config = {"model_max_length": CONTEXT, "pad_token": END, "tokenizer_class": "CLIPTokenizer"}
    config |= {"special_tokens_map_file": "./special_tokens_map.json", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": padding, **special}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, layout: Layout) -> Iterator[Path]:
    """A project with such a base, two concepts and the shards of a corpus that never was."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("pipeline.common.unfinished.KEPT_EVERY", 0.0)  # all stages keep their state
        write_checkpoint(root / "models" / "own" / "base", layout)
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
            "seeds": [42],
            "regularization_captions": 5,
        },
        "methods": {name: hyper for name in METHODS},
        "protocol": "test",
        "sample": {"batch_size": 4},
    }
    grid = {
        "concepts": {name: {"class_noun": noun} for name, noun in CONCEPTS.items()},
        "compositions": {PAIR: {"first": "cat", "second": "pot"}},
        "methods": METHODS,
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
    """Shards, held-out captions and those of merges, as the stages before would leave them."""
    runs = load_params().runs()
    for name, noun in CONCEPTS.items():
        targets = [sample("target", i, f"photo of a {noun}") for i in range(2)]
        others = [sample("regularization", i, f"a {noun} in the snow") for i in range(4)]
        held_out = [sample("held_out", i, f"the {noun} and {i}") for i in range(CAPTIONS)]
        write_tar(runs / "shards" / f"{name}.tar", targets + others)
        write_tar(runs / "regularization" / f"{name}.tar", others + held_out)
    captions = [f"a {word} in the snow" for word in WORDS]
    write_json(runs / "captions.json", captions)


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
    kinds = [(m, "single", name) for m in METHODS for name in CONCEPTS]
    kinds += [(m, "composition", PAIR) for m in METHODS]
    needed = {
        how.of for m in METHODS if isinstance(how := load_method(m).composition, Merged | Bundled)
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


def test_the_layout_is_the_published_one(project: Path, layout: Layout, base: Base) -> None:
    folder = project / "models" / "own" / "base"
    assert {path.name for path in folder.iterdir()} == {"model_index.json", *layout.folders}
    weights = {path.suffix for path in folder.rglob("*") if "model" in path.stem} - {".json"}
    assert weights == {".safetensors"}
    assert len(key_value_names(base.unet)) == 32
    assert len(attention_names(base.unet)) == 128
    assert len([n for n, _ in base.unet.named_parameters()]) == 686  # as the published UNets have
    assert base.latent_shape == (4, RESOLUTION // 8, RESOLUTION // 8)
    assert base.scale == pytest.approx(0.18215)
    assert base.condition(["a cat"]).text.shape == (1, CONTEXT, layout.width)
    padding = vocabulary(learn_merges(WORDS)).index(layout.padding)
    assert base.texts.tokenize(["a cat"])[0, 4:].unique().tolist() == [padding]
    base.scheduler.set_timesteps(50)
    assert base.scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert base.scheduler.config.clip_sample is False
    # As published, v1-4 has no `clip_sample` for a sampler to take over.
    path = folder / "scheduler" / "scheduler_config.json"
    assert json.loads(path.read_text()).get("clip_sample", False) is False


def test_images_are_those_of_diffusers_own_pipeline(project: Path, base: Base) -> None:
    """Nothing of ours loads or samples on the other side."""
    pipeline = StableDiffusionPipeline.from_pretrained("models/own/base", safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    prompts, seeds = ["photo of a cat", "a wooden pot in the snow"], [1, 2]
    theirs = pipeline(
        prompts,
        RESOLUTION,
        RESOLUTION,
        num_inference_steps=5,
        guidance_scale=6.0,
        eta=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
    how = SamplerParams(steps=5, guidance_scale=6, eta=1, batch_size=2)
    ours, theirs = (
        np.stack([np.asarray(image) for image in images]).astype(int)
        for images in (make_images(base, prompts, seeds, how), theirs)
    )
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 5


def test_generated_images_are_made(cells: object) -> None:
    for name in CONCEPTS:
        samples = read_tar(load_params().runs() / "generated" / f"{name}.tar")
        assert len(samples) == 3
        check_image(samples[0]["png"])


def test_nothing_half_done_is_left(cells: object) -> None:
    """Though every stage has kept its state: see `project`."""
    assert not list((load_params().runs() / "unfinished").iterdir())


@pytest.mark.parametrize("method", METHODS)
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
        elif method not in ("pretrained", "textual_inversion") and not isinstance(how, Bundled):
            assert set(adapter.deltas) == set(key_value_names(base.unet))
        if isinstance(how, Bundled):  # cannot be installed
            parts = unbundled(adapter)
            assert all(set(part) == set(cross_attention_names(base.unet)) for part in parts)
            check_images(path, about)
            continue
        weights = dict(base.unet.named_parameters())
        before = {name: weights[name].clone() for name in adapter.deltas}
        with applied(base, adapter):
            changes = {name: weights[name] - before[name] for name in adapter.deltas}
        for name, delta in adapter.deltas.items():
            torch.testing.assert_close(changes[name], dense(delta), atol=1e-6, rtol=0)
        assert any(change.any() for change in changes.values()) is bool(adapter.deltas)
        check_images(path, about)


def check_images(path: Path, about: Subject) -> None:
    samples = read_tar(path.with_name("samples.tar"))
    extra = CAPTIONS if len(about.concepts) == 1 else 0
    assert len(samples) == IMAGES * len(about.prompts) + extra
    for one in samples:
        check_image(one["png"])


def check_image(png: bytes) -> None:
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (RESOLUTION, RESOLUTION)
        assert image.mode == "RGB"
