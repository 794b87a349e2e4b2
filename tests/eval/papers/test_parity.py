"""Parity with the official script, and with a program that computes the same in plain words."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from PIL import Image

from eval.papers import parity as module
from eval.papers.parity import (
    SCRIPT,
    TARGETS,
    Adapted,
    compare,
    draw_images,
    find_script,
    like_vit_b_32,
    parity,
)
from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError

# A checkout of adobe-research/custom-diffusion.
CHECKOUT = "CUSTOM_DIFFUSION_CHECKOUT"
METRICS = [
    "text-alignment",
    "image-alignment, cat",
    "image-alignment, chair",
    "DINO image-alignment, cat",
    "DINO image-alignment, chair",
    "KID × 10³, clean-fid's subsets",
    "KID × 10³, whole set",
    "FID",
]
# The three functions that are called, one pair of images at a time and in double precision.
PLAIN = """
    import json
    from pathlib import Path

    import clip
    import torch
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    SEEN_BY_CLIP = Compose([Resize(224, 3), CenterCrop(224), ToTensor(), Normalize(MEAN, STD)])
    IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    SEEN_BY_DINO = Compose([Resize(256, 3), CenterCrop(224), ToTensor(), IMAGENET])

    def unit(model, transform, path):
        with torch.no_grad():
            features = model(transform(Image.open(path))[None])[0].double()
        return features / features.norm()

    def mean_cosine(model, transform, first, second):
        folders = [sorted(Path(folder).iterdir()) for folder in (first, second)]
        pairs = [[unit(model, transform, path) for path in paths] for paths in folders]
        return float(torch.stack([a @ b for a in pairs[0] for b in pairs[1]]).mean())

    def clipeval(images, prompts, device):
        model, _ = clip.load("ViT-B/32", device=device, jit=False)
        found = []
        for name, prompt in json.loads(Path(prompts).read_text()).items():
            image = unit(model.encode_image, SEEN_BY_CLIP, Path(images) / f"{name}.png")
            text = model.encode_text(clip.tokenize(prompt, truncate=True))[0].double()
            found.append(2.5 * max(0.0, float(image @ text / text.norm())))
        return sum(found) / len(found), 0.0

    def clipeval_image(images, targets, device):
        model, _ = clip.load("ViT-B/32", device=device, jit=False)
        return mean_cosine(model.encode_image, SEEN_BY_CLIP, images, targets)

    def dinoeval_image(images, targets, device):
        model = torch.hub.load("facebookresearch/dino:main", "dino_vits16").to(device).eval()
        return mean_cosine(model, SEEN_BY_DINO, images, targets)
"""


@pytest.fixture
def plain(profile: Path) -> Path:
    """A checkout with a program of the same functions."""
    path = profile / "checkout" / SCRIPT
    path.parent.mkdir(parents=True)
    path.write_text(dedent(PLAIN), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images; and the other process, which runs in the profile's folder, finds the project."""
    monkeypatch.setattr(module, "IMAGES", 6)
    monkeypatch.setattr(module, "TARGET_IMAGES", 4)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


def test_agrees_with_plain_loops(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity(plain.parents[1], "toyland") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "theirs", "ours", "difference"]
    assert [line[:30].strip() for line in lines[1:9]] == METRICS
    assert lines[-1] == "all 8 agree"


def test_differences_are_seen(plain: Path) -> None:
    text = dedent(PLAIN)
    for before, after in {"2.5 * max": "1.0 * max", "Resize(256, 3)": "Resize(224, 3)"}.items():
        assert before in text
        text = text.replace(before, after)
    plain.write_text(text, encoding="utf-8")
    rows = compare(plain, "toyland")
    assert [row.metric for row in rows if not row.agrees] == [METRICS[i] for i in (0, 3, 4)]


@pytest.mark.skipif(CHECKOUT not in os.environ, reason=f"{CHECKOUT} names no checkout")
def test_agrees_with_the_official_script(profile: Path) -> None:
    rows = compare(find_script(Path(os.environ[CHECKOUT])), "toyland")
    assert [row.metric for row in rows] == METRICS
    for row in rows:
        assert row.ours == pytest.approx(row.theirs, rel=1e-5, abs=1e-5)


def test_wrong_paths_are_told(plain: Path, tmp_path: Path) -> None:
    assert find_script(plain.parents[1]) == find_script(plain) == find_script(plain.parent)
    with pytest.raises(BenchError, match=r"nowhere: holds no customconcept101/evaluate\.py: give"):
        find_script(tmp_path / "nowhere")
    plain.write_text("def clipeval(): pass\n")
    with pytest.raises(BenchError, match="no clipeval_image, dinoeval_image: another program"):
        find_script(plain)
    plain.write_text("def")
    with pytest.raises(BenchError, match="not a Python program"):
        find_script(plain)


def test_a_script_that_fails_is_quoted(plain: Path) -> None:
    text = dedent(PLAIN)
    plain.write_text(text.replace("import clip", "import a_module_that_nobody_has"))
    with pytest.raises(BenchError, match="failed: ModuleNotFoundError: .*a_module_that_nobody_has"):
        compare(plain, "toyland")


def test_images_vary_in_size_and_are_drawn_again_alike(tmp_path: Path) -> None:
    prompts = draw_images(tmp_path / "a")
    assert draw_images(tmp_path / "b") == prompts
    assert len(prompts) == 6
    paths = sorted((tmp_path / "a").rglob("*.png"))
    assert {path.parent.name for path in paths} == {"samples", *TARGETS}
    assert len({Image.open(path).size for path in paths}) == 4
    for path in paths:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.fixture
def clip(scored: Path) -> Clip:
    return load_clip(str(scored / "models" / "scorer"))


def test_a_clip_of_other_images_takes_those_of_vit_b_32(clip: Clip) -> None:
    """A smooth image is the same to it in its own size and in ViT-B/32's."""
    across = np.linspace(30, 220, 224)
    smooth = np.stack([np.broadcast_to(across, (224, 224)), *[np.full((224, 224), 90)] * 2], -1)
    image = Image.fromarray(smooth.astype(np.uint8))
    adapted = like_vit_b_32(clip)
    assert isinstance(adapted.model, Adapted)
    assert adapted.preprocess(image).shape == (3, 224, 224)
    own = clip.encode_images([image])
    assert adapted.encode_images([image]) @ own.T == pytest.approx(1, abs=1e-3)
    other = clip.encode_images([image.transpose(Image.Transpose.ROTATE_90)])
    assert (own @ other.T).item() < 0.99
    assert (adapted.encode_texts(["a cat"]) == clip.encode_texts(["a cat"])).all()


def test_a_clip_of_the_same_images_stays_as_it_is(clip: Clip) -> None:
    clip.model.visual.preprocess_cfg |= {
        "size": 224,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    }
    assert like_vit_b_32(clip) is clip
