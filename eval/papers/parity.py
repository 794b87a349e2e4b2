"""`bench doctor --parity`: our metrics next to the reference implementations, on the same images.

The other side is CustomConcept101's `customconcept101/evaluate.py` in a checkout that the user has
(it is under a licence of its own, and nothing of it is part of this project), run in a process of
its own, and clean-fid's functions for KID and FID. Both sides get the same weights: the profile's
CLIP, and DINO's ViT-S/16 if the profile names a file of it, otherwise random ones. A CLIP that
takes other images than ViT-B/32 does, such as Toyland's, is put behind a layer that takes what
ViT-B/32 takes, so that the script's own transforms are part of the comparison.
"""

from __future__ import annotations

import ast
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from cleanfid.fid import fid_from_feats, kernel_distance
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor, nn

from eval.encoders.dino import dino_network, vit_extractor
from eval.encoders.extractor import Extractor
from eval.encoders.published import DINO_ARCHITECTURE
from eval.metrics.fid import fid
from eval.metrics.image_alignment import image_alignment
from eval.metrics.kid import kid, kid_subsets
from eval.metrics.text_alignment import text_alignment
from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import write_json
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.settings.profile import Params, load_params
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import full_caption, random_scene, random_thing

SCRIPT = Path("customconcept101") / "evaluate.py"
FUNCTIONS = ("clipeval", "clipeval_image", "dinoeval_image")
SIDE = 224  # pixels, of ViT-B/32
TARGETS = ("cat", "chair")
IMAGES, TARGET_IMAGES = 24, 5
SIZES = ((64, 64), (512, 512), (320, 240), (250, 400))
SUBSETS, SUBSET_SIZE = 20, 8
TOLERANCE = 1e-4  # of rounding in single precision


@dataclass(frozen=True)
class Comparison:
    """A metric by both sides."""

    metric: str
    theirs: float
    ours: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than rounding."""
        return math.isclose(self.theirs, self.ours, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


@dataclass(frozen=True)
class Models:
    """What both sides measure with."""

    clip: Clip
    dino: nn.Module


def parity(path: Path, profile: str = DEFAULT_PROFILE) -> int:
    """Prints each metric by the reference and by us, and their difference.

    Args:
        path: a checkout of adobe-research/custom-diffusion, or its evaluate.py.
        profile: whose weights are put in place of theirs.

    Returns:
        The exit status: 0 if all agree, otherwise 1.

    Raises:
        BenchError: there is no such script, it fails, or a model of the profile is missing.
    """
    rows = compare(find_script(path), profile)
    width = max(len(row.metric) for row in rows)
    print(f"{'metric':<{width}}  {'theirs':>12}  {'ours':>12}  {'difference':>10}")
    for row in rows:
        values = f"{row.theirs:>12.6f}  {row.ours:>12.6f}  {row.ours - row.theirs:>10.1e}"
        print(f"{row.metric:<{width}}  {values}{'' if row.agrees else '  differs'}")
    bad = sum(not row.agrees for row in rows)
    print(f"\n{bad} of {len(rows)} differ" if bad else f"\nall {len(rows)} agree")
    return 1 if bad else 0


def find_script(path: Path) -> Path:
    """The official script in a checkout.

    Raises:
        BenchError: it is not there, or is another program.
    """
    places = (path, path / SCRIPT, path / SCRIPT.name)
    script = next((place for place in places if place.is_file()), None)
    if script is None:
        raise BenchError(
            f"--parity {path}: holds no {SCRIPT}: give a checkout of "
            "https://github.com/adobe-research/custom-diffusion"
        )
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise BenchError(f"--parity {script}: not a Python program: {error}") from None
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if lacking := [name for name in FUNCTIONS if name not in defined]:
        raise BenchError(f"--parity {script}: defines no {', '.join(lacking)}: another program")
    return script.resolve()


def compare(script: Path, profile: str) -> list[Comparison]:
    """All metrics by both sides, on drawn images of several sizes and shapes.

    Raises:
        BenchError: the script fails, or a model of the profile is missing.
    """
    models = load_models(load_params(profile))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prompts = draw_images(folder)
        theirs = _run(script, profile, folder)
        generated = _contents(folder / "samples")
        targets = {name: _contents(folder / name) for name in TARGETS}
    clip = Extractor("clip", "", True, models.clip.encode_images)
    dino = vit_extractor(models.dino, "dino")
    images, texts = clip.fresh(generated), models.clip.encode_texts(list(prompts.values()))
    ours = {"text-alignment": text_alignment(images, texts)}
    for title, extractor in (("image-alignment", clip), ("DINO image-alignment", dino)):
        features = extractor.fresh(generated)
        for name, pictures in targets.items():
            ours[f"{title}, {name}"] = image_alignment(features, extractor.fresh(pictures))
    rows = [Comparison(name, theirs[name], float(v.mean())) for name, v in ours.items()]
    return [*rows, *distances(images * math.sqrt(images.shape[1]))]


def distances(features: npt.NDArray[np.float32]) -> list[Comparison]:
    """KID and FID of the two halves of a set of features by clean-fid and by us."""
    x, y = features[::2], features[1::2]
    labels = np.arange(len(x)), np.arange(len(y))
    seed = seed_of("parity", "subsets") % 2**32
    before = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws from the global generator
    theirs = kernel_distance(x, y, SUBSETS, SUBSET_SIZE)
    np.random.set_state(before)
    ours = kid_subsets(x, y, seed, SUBSETS, SUBSET_SIZE)
    whole = kernel_distance(x, y, 1, len(x))
    return [
        Comparison("KID × 10³, clean-fid's subsets", 1000 * theirs, ours.value),
        Comparison("KID × 10³, whole set", 1000 * whole, kid(x, y, *labels).value),
        Comparison("FID", float(fid_from_feats(x, y)), fid(x, y, *labels).value),
    ]


def draw_images(folder: Path) -> dict[str, str]:
    """Draws what the script reads: `samples/`, `prompts.json`, and a folder for each target.

    Returns:
        The prompt of each sample by its name, in the order of names.
    """
    prompts = {}
    for i in range(IMAGES):
        rng = np.random.default_rng(seed_of("parity", "sample", i))
        thing = random_thing(rng, PERSONAL[TARGETS[i % len(TARGETS)]].category)
        scene = random_scene(rng, things=(thing,))
        prompts[f"{i:03d}"] = full_caption(scene)
        _save(draw(scene), folder / "samples", i)
    write_json(folder / "prompts.json", prompts)
    for name in TARGETS:
        for i in range(TARGET_IMAGES):
            rng = np.random.default_rng(seed_of("parity", name, i))
            _save(draw(random_scene(rng, things=(PERSONAL[name],))), folder / name, i)
    return prompts


def _save(pixels: npt.NDArray[np.uint8], folder: Path, i: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    size = SIZES[i % len(SIZES)]
    Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).save(folder / f"{i:03d}.png")


def _contents(folder: Path) -> dict[int, bytes]:
    return {i: path.read_bytes() for i, path in enumerate(sorted(folder.iterdir()))}


def load_models(params: Params) -> Models:
    """The profile's models, or random weights in place of DINO's; the same in every process.

    Raises:
        BenchError: a model is missing or damaged.
    """
    from timm import create_model  # takes a second

    clip = like_vit_b_32(load_clip(params.protocol.score.clip))
    if params.score.dino is not None:
        return Models(clip, dino_network(params.score.dino)[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("parity", "dino"))
        return Models(clip, create_model(DINO_ARCHITECTURE, num_classes=0))


def like_vit_b_32(clip: Clip) -> Clip:
    """The CLIP as one that takes the images of OpenAI's ViT-B/32: its size, mean and deviation."""
    how = clip.model.visual.preprocess_cfg
    theirs = (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    if (*_pair(how["size"]), tuple(how["mean"]), tuple(how["std"])) == (SIDE, SIDE, *theirs):
        return clip
    transform = open_clip.image_transform(
        SIDE, is_train=False, mean=theirs[0], std=theirs[1], interpolation="bicubic"
    )
    adapted = cast(open_clip.CLIP, Adapted(clip.model).eval())
    return Clip(adapted, transform, clip.tokenize, clip.identity)


class Adapted(nn.Module):
    """A CLIP behind a layer that takes images as OpenAI's ViT-B/32 takes them."""

    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.model, how = model, model.visual.preprocess_cfg
        self.side = _pair(how["size"])
        self.logit_scale, self.text_projection = model.logit_scale, model.text_projection
        numbers = (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, how["mean"], how["std"])
        rows = torch.tensor(numbers, device=model.logit_scale.device)
        self.numbers = rows.reshape(4, 3, 1, 1)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Features [n, d] of images [n, 3, SIDE, SIDE]."""
        mean, std, own_mean, own_std = self.numbers
        pixels = F.interpolate(images * std + mean, self.side, mode="bilinear", antialias=True)
        features: Tensor = self.model.encode_image((pixels - own_mean) / own_std, normalize)
        return features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Features [n, d] of tokens [n, context]."""
        features: Tensor = self.model.encode_text(tokens, normalize)
        return features


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# ---------------------------------------------------------------------- the other process


def _run(script: Path, profile: str, folder: Path) -> dict[str, float]:
    """What the script measures on the images in the folder, by our names of metrics.

    Raises:
        BenchError: it fails; says its last words.
    """
    result = folder / "theirs.json"
    command = [
        sys.executable,
        "-m",
        "eval.papers.parity",
        str(script),
        profile,
        str(folder),
        str(result),
    ]
    # Where there is a GPU the script takes images in half precision.
    ran = subprocess.run(
        command,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        last = (ran.stderr.strip() or "no message").splitlines()[-1]
        raise BenchError(f"--parity {script}: failed: {last}")
    measured: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return measured


def _main(script: str, profile: str, images: str, result: str) -> None:
    """Runs the script's functions with our models in place of the modules that it imports."""
    models, folder = load_models(load_params(profile)), Path(images)
    stand_in = cast(Any, types.ModuleType("clip"))
    stand_in.load = lambda *_, **__: (models.clip.model, models.clip.preprocess)
    stand_in.tokenize = lambda text, truncate: models.clip.tokenize([text])
    sys.modules["clip"] = stand_in
    torch.hub.load = lambda *_, **__: models.dino
    loading = cast(Any, torch.utils.data)
    loader = loading.DataLoader
    # Its eight workers change no number, and take longer than the work.
    loading.DataLoader = lambda *a, **k: loader(*a, **k | {"num_workers": 0})
    official = runpy.run_path(script, run_name="evaluate")

    samples = str(folder / "samples")
    text, _ = official["clipeval"](samples, str(folder / "prompts.json"), "cpu")
    measured = {"text-alignment": text}
    for name in TARGETS:
        target = str(folder / name)
        measured |= {
            f"image-alignment, {name}": official["clipeval_image"](samples, target, "cpu"),
            f"DINO image-alignment, {name}": official["dinoeval_image"](samples, target, "cpu"),
        }
    write_json(result, {name: float(value) for name, value in measured.items()})


if __name__ == "__main__":
    _main(*sys.argv[1:])
