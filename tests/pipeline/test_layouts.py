"""Published layouts: every stage that touches the base runs on each, for every method.

The checkpoints have random weights, small widths and 64 x 64 pixels; their blocks, names, files
and configurations are those of the published ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open

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
from pipeline.toyland.pretrain.vocabulary import learn_merges, vocabulary
from pipeline.train.stage import train_cell
from tests.pipeline.checkpoints import (
    CONTEXT,
    LAYOUTS,
    RESOLUTION,
    WORDS,
    Layout,
    write_checkpoint,
)

IMAGES, CAPTIONS = 2, 2
CONCEPTS, PAIR = {"cat": "cat", "pot": "wooden pot"}, "cat+pot"
# The paper's, and a method whose rows differ by layer, with those adapters mixed by prompt. The
# others need sequences, or parameters of their own.
METHODS = [*load_grid("paper").methods, "ed_lora", "ed_lora_ewa"]
# One of each kind; all of them are in `methods/test_two_encoders.py`.
FEW = [
    "pretrained", "textual_inversion", "dreambooth", "custom_diffusion", "custom_diffusion_merge",
    "ed_lora", "ed_lora_ewa",
]  # fmt: skip
METHODS_OF = {name: FEW if name == "XL" else METHODS for name in LAYOUTS}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    """Each layout in turn."""
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def methods(layout: Layout) -> list[str]:
    """Those that run on the layout."""
    return next(METHODS_OF[name] for name, one in LAYOUTS.items() if one is layout)


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, methods: list[str]
) -> Iterator[Path]:
    """A project with such a base, two concepts and the shards of a corpus that never was."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("pipeline.common.unfinished.KEPT_EVERY", 0.0)  # all stages keep their state
        write_checkpoint(root / "models" / "own" / "base", layout)
        write_profile(root, methods)
        write_inputs()
        yield root


def write_profile(root: Path, methods: Sequence[str]) -> None:
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
        "methods": {name: hyper for name in methods},
        "protocol": "test",
        "sample": {"batch_size": 4},
    }
    grid = {
        "concepts": {name: {"class_noun": noun} for name, noun in CONCEPTS.items()},
        "compositions": {PAIR: {"first": "cat", "second": "pot"}},
        "methods": list(methods),
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
def cells(project: Path, methods: list[str]) -> dict[tuple[str, str], Path]:
    """The adapters of all methods on a concept, on the other where something needs it, and both."""
    for name in CONCEPTS:
        generate(name)
    found = {}
    kinds = [(m, "single", name) for m in methods for name in CONCEPTS]
    kinds += [(m, "composition", PAIR) for m in methods]
    needed = {
        how.of for m in methods if isinstance(how := load_method(m).composition, Merged | Bundled)
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
    assert len(key_value_names(base.unet)) == 2 * layout.layers
    assert len(attention_names(base.unet)) == 8 * layout.layers
    # As the published UNets have.
    assert len([n for n, _ in base.unet.named_parameters()]) == layout.weights
    assert base.latent_shape == (4, RESOLUTION // 8, RESOLUTION // 8)
    assert base.scale == pytest.approx(layout.scale)
    assert base.condition(["a cat"]).text.shape == (1, CONTEXT, layout.width)
    paddings = [vocabulary(learn_merges(WORDS)).index(text.padding) for text in layout.texts]
    assert [tokenizer.pad_token_id for tokenizer in base.texts.tokenizers] == paddings
    assert base.texts.tokenize(["a cat"])[0, 4:].unique().tolist() == paddings[:1]
    base.scheduler.set_timesteps(50)
    assert base.scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert base.scheduler.config.clip_sample is False
    # As published, v1-4 has no `clip_sample` for a sampler to take over.
    path = folder / "scheduler" / "scheduler_config.json"
    assert json.loads(path.read_text()).get("clip_sample", False) is False


def test_images_are_those_of_diffusers_own_pipeline(
    project: Path, layout: Layout, base: Base
) -> None:
    """Nothing of ours loads or samples on the other side."""
    unsafe = {"safety_checker": None} if "safety_checker" in layout.folders else {}
    pipeline = DiffusionPipeline.from_pretrained("models/own/base", **unsafe)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    prompts, seeds = ["photo of a cat", "a wooden pot in the snow"], [1, 2]
    theirs = pipeline(
        prompts,
        height=RESOLUTION,
        width=RESOLUTION,
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


def test_adapters_apply_and_images_are_made(
    cells: dict[tuple[str, str], Path], methods: list[str], base: Base
) -> None:
    assert {method for method, _ in cells} == set(methods)
    for (method, subject), path in cells.items():
        print(method, subject)  # shown if one fails
        check_cell(path, method, load_subject(subject), base)


def check_cell(path: Path, method: str, about: Subject, base: Base) -> None:
    kinds = {file.suffix for file in path.parent.iterdir()}
    assert kinds <= {".safetensors", ".tar", ".json"}
    with safe_open(path, "pt") as file:
        assert "adapter" in file.metadata()
    adapter = load_adapter(path)
    how = load_method(method).how(about, method)
    if isinstance(how, Trained):
        assert set(adapter.deltas) == set(how.weights(base.unet))
    elif method not in ("pretrained", "textual_inversion") and not isinstance(how, Bundled):
        assert set(adapter.deltas) == set(key_value_names(base.unet))
    check_images(path, about)
    if isinstance(how, Bundled):  # cannot be installed
        parts = unbundled(adapter)
        assert all(set(part) == set(cross_attention_names(base.unet)) for part in parts)
        return
    weights = dict(base.unet.named_parameters())
    before = {name: weights[name].clone() for name in adapter.deltas}
    with applied(base, adapter):
        changes = {name: weights[name] - before[name] for name in adapter.deltas}
    for name, delta in adapter.deltas.items():
        torch.testing.assert_close(changes[name], dense(delta), atol=1e-6, rtol=0)
    assert any(change.any() for change in changes.values()) is bool(adapter.deltas)


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
