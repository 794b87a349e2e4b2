"""The feature cache and the extractors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from eval.encoders import extractor, inception
from eval.encoders.clip import clip_extractor, too_long
from eval.encoders.dino import dino_extractor
from eval.encoders.distance import kernel_features
from eval.encoders.extractor import Extractor
from eval.encoders.inception import inception_extractor
from pipeline.bench import doctor
from pipeline.clip.openclip import load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, sha256
from tests.eval.synthetic import save_scorer


def images(count: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 16, 20, 3), dtype=np.uint8)
    return [png_bytes(Image.fromarray(image)) for image in pixels]


class Counting:
    """Encodes images as mean colours and counts them."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, batch: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(batch)
        return np.stack([np.asarray(image).mean((0, 1)) for image in batch]).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_are_encoded_once() -> None:
    encode = Counting()
    first = Extractor("a@1", "none", False, encode)(images(3))
    again = Extractor("a@1", "none", False, encode)(images(3))
    assert encode.seen == 3
    assert (first == again).all()


@pytest.mark.parametrize(("identity", "transform"), [("a@2", "none"), ("a@1", "crop")])
def test_other_weights_and_transforms_are_other_features(identity: str, transform: str) -> None:
    encode = Counting()
    Extractor("a@1", "none", False, encode)(images(3))
    Extractor(identity, transform, False, encode)(images(3))
    assert encode.seen == 6


def test_order_of_images_is_kept() -> None:
    extract = Extractor("a@1", "none", False, Counting())
    assert (extract(images(3)[::-1]) == extract(images(3))[::-1]).all()


def test_sets_that_overlap_share_their_images() -> None:
    encode = Counting()
    extract = Extractor("a@1", "none", False, encode)
    first = extract(images(5)[:3])
    assert (extract(images(5)[1:])[:2] == first[1:]).all()
    assert (extract([images(5)[4], images(5)[0], images(5)[4]])[1] == first[0]).all()
    assert encode.seen == 5


def cache_file(here: Path) -> Path:
    (path,) = (here / ".cache" / "features").iterdir()
    return path


def test_damaged_cache_files_are_made_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = images(300)
    first = Extractor("a@1", "none", False, Counting())(many)
    whole = cache_file(here).read_bytes()
    half = len(whole) // 2
    for damage in (b"", whole[:-4096], whole[:half], b"nothing" * 500, whole[:100] + whole[200:]):
        cache_file(here).write_bytes(damage)
        encode = Counting()
        assert (Extractor("a@1", "none", False, encode)(many) == first).all()
        assert encode.seen > 0
        again = Counting()
        assert (Extractor("a@1", "none", False, again)(many) == first).all()
        assert again.seen == 0


def test_a_row_with_a_wrong_bit_is_made_again(here: Path) -> None:
    first = Extractor("a@1", "none", False, Counting())(images(3))
    content = cache_file(here).read_bytes()
    row = first[1].tobytes()
    assert row in content
    cache_file(here).write_bytes(content.replace(row, row[:-1] + bytes([row[-1] ^ 1])))
    encode = Counting()
    assert (Extractor("a@1", "none", False, encode)(images(3)) == first).all()
    assert encode.seen == 1


def extract_in_a_process(numbers: list[int]) -> np.ndarray:
    """Encodes some of the images, one after the other."""
    all_images, extract = images(40), Extractor("a@1", "none", False, Counting())
    return np.concatenate([extract([all_images[i]]) for i in numbers])


def test_several_processes_may_use_the_cache_at_once(here: Path) -> None:
    orders = [np.random.default_rng(i).permutation(40).tolist() for i in range(4)]
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        found = list(pool.map(extract_in_a_process, orders))
    encode = Counting()
    known = Extractor("a@1", "none", False, encode)(images(40))
    assert encode.seen == 0
    for order, rows in zip(orders, found):
        assert (rows == known[order]).all()


def test_a_cache_that_cannot_be_written_is_named(here: Path) -> None:
    (here / ".cache").write_text("a file")
    with pytest.raises(BenchError, match=r"\.cache/features/\w+\.sqlite: cannot be used"):
        Extractor("a@1", "none", False, Counting())(images(1))


def test_work_that_was_done_before_an_error_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractor, "PORTION", 2)
    encode = Counting()
    with pytest.raises(BenchError, match="image 5 cannot be decoded"):
        Extractor("a@1", "none", False, encode)([*images(4), b"", *images(7)[5:]])
    Extractor("a@1", "none", False, encode)(images(4))
    assert encode.seen == 4


def test_nothing_to_measure_and_nothing_measured_are_told() -> None:
    with pytest.raises(BenchError, match="a@1: no images"):
        Extractor("a@1", "none", False, Counting())([])

    def broken(batch: Sequence[Image.Image]) -> np.ndarray:
        rows = np.ones((len(batch), 2), np.float32)
        rows[1] = np.nan
        return rows

    with pytest.raises(BenchError, match="image 2: a@1 gives no finite features"):
        Extractor("a@1", "none", False, broken)(images(3))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), (200, 40, 20))


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (saved(red()), (200, 40, 20)),
        (saved(red().quantize(4)), (200, 40, 20)),
        (saved(red().quantize(4), transparency=0), (255, 255, 255)),
        (saved(Image.new("RGBA", (8, 8), (200, 40, 20, 0))), (255, 255, 255)),
        (saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), (127, 127, 127)),
        (saved(Image.new("LA", (8, 8), (100, 255))), (100, 100, 100)),
        (saved(Image.new("1", (8, 8), 1)), (255, 255, 255)),
        (saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
        (saved(Image.fromarray(np.full((8, 8), 100 * 256 + 7, np.uint16))), (100, 100, 100)),
    ],
    ids="rgb palette clear-palette clear half-clear gray-alpha bit cmyk sixteen-bit".split(),
)
def test_images_of_any_mode_are_seen_as_people_see_them(
    data: bytes, colour: tuple[int, int, int]
) -> None:
    (found,) = Extractor("a@1", "none", False, Counting())([data])
    assert found == pytest.approx(colour, abs=1.5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_are_told(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(pixels), kind)
    for part in (len(data) // 2, len(data) * 9 // 10, 30, 3):
        with pytest.raises(BenchError, match="image 2 cannot be decoded"):
            Extractor("a@1", "none", False, Counting())([images(1)[0], data[:part]])
    broken = data[:40] + bytes(20) + data[60:]
    if kind == "PNG":
        with pytest.raises(BenchError, match="image 1 cannot be decoded"):
            Extractor("a@1", "none", False, Counting())([broken])


def test_damaged_images_are_told() -> None:
    with pytest.raises(BenchError, match="cannot be decoded"):
        Extractor("a@1", "none", False, Counting())([images(1)[0][:50]])


def test_unit_features_are_scaled_for_the_kernel() -> None:
    plain = Extractor("a@1", "none", False, Counting())
    unit = Extractor("a@1", "none", True, Counting())
    assert kernel_features(unit, images(2)) == pytest.approx(np.sqrt(3) * plain(images(2)))
    assert (kernel_features(plain, images(2)) == plain(images(2))).all()


class Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the right size, which tell where an image is bright."""
        return torch.nn.functional.adaptive_avg_pool2d(x, (32, 64)).mean(1).reshape(-1, 2048)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.register_buffer("nothing", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def small_vit(seed: int = 0) -> ViTModel:
    """DINO's ViT-S/16 by another library, with random weights."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=12,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return model


def as_the_authors_name_them(model: ViTModel) -> dict[str, torch.Tensor]:
    """The weights with DINO's own names: query, key and value are one matrix."""
    theirs = {}
    given = dict(model.state_dict())
    for name, weight in given.items():
        name = name.replace("embeddings.cls_token", "cls_token")
        name = name.replace("embeddings.position_embeddings", "pos_embed")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("encoder.layer", "blocks").replace("layernorm_before", "norm1")
        name = name.replace("layernorm_after", "norm2").replace("layernorm.", "norm.")
        name = name.replace("attention.output.dense", "attn.proj")
        name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        if "attention.attention" not in name:
            theirs[name] = weight
        elif "query" in name:
            parts = [given[_layer_of(name, part)] for part in ("query", "key", "value")]
            theirs[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return theirs


def _layer_of(name: str, part: str) -> str:
    return name.replace("blocks", "encoder.layer").replace("query", part)


def dino_file(folder: Path) -> tuple[Path, ViTModel]:
    model = small_vit()
    save_file(as_the_authors_name_them(model), folder / "dino.safetensors")
    return folder / "dino.safetensors", model


def test_dino_is_the_class_token_of_the_authors_transform(here: Path) -> None:
    path, model = dino_file(here)
    extractor = dino_extractor(str(path))
    assert extractor.identity == f"dino_vits16@{sha256(path)[:12]}"
    pixels = np.random.default_rng(2).integers(0, 256, (2, 300, 270, 3), dtype=np.uint8)
    found = extractor([png_bytes(Image.fromarray(image)) for image in pixels])
    # By hand: 270 x 300 becomes 256 x 284, of which 16 are cut on the sides, 30 above and below.
    for row, image in zip(found, pixels):
        resized = Image.fromarray(image).resize((256, 284), Image.Resampling.BICUBIC)
        cut = np.asarray(resized, np.float32)[30:254, 16:240] / 255
        normal = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            token = model(torch.tensor(normal.transpose(2, 0, 1)[None]).float())[0][0, 0]
        expected = token / token.norm()
        assert row == pytest.approx(expected.numpy(), abs=2e-6)
        assert abs(expected).max() > 0.05


def test_missing_or_other_dino_weights_say_where_to_get_them(here: Path) -> None:
    for path in (None, "nowhere.safetensors"):
        with pytest.raises(BenchError, match=r"score\.dino: .* download https://\S+safetensors"):
            dino_extractor(path)
    (here / "half.safetensors").write_bytes(dino_file(here)[0].read_bytes()[:-8])
    save_file({"weight": torch.zeros(2)}, here / "other.safetensors")
    for name in ("half", "other"):
        with pytest.raises(BenchError, match=rf"{name}.safetensors: truncated, or not DINO"):
            dino_extractor(f"{name}.safetensors")


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_features_do_not_depend_on_the_other_images_of_a_batch(kind: str, here: Path) -> None:
    if kind == "clip":
        save_scorer(here / "scorer")
        extractor = clip_extractor(load_clip(str(here / "scorer")))
    else:
        extractor = dino_extractor(str(dino_file(here)[0]))
    opened = [Image.open(io.BytesIO(image)) for image in images(5)]
    together = extractor.encode(opened)
    alone = np.concatenate([extractor.encode([image]) for image in opened])
    assert together == pytest.approx(alone, abs=2e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert abs(together[0] - together[1]).max() > 1e-4


def test_texts_that_are_cut_are_counted(here: Path) -> None:
    save_scorer(here / "scorer")
    clip = load_clip(str(here / "scorer"))
    context = clip.model.context_length
    fits, cut = "cat " * (context - 2), "cat " * (context - 1)
    assert too_long(clip, [fits, cut, "cat", "", cut + "dog"]) == 2
    assert too_long(clip, []) == 0
    assert (clip.encode_texts([cut]) == clip.encode_texts([cut + "dog"])).all()
    assert (clip.encode_texts([fits]) != clip.encode_texts([fits[4:]])).any()


def test_inception_sees_images_as_clean_fid_resizes_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = here / inception.INCEPTION_FILE
    torch.jit.script(Network()).save(str(path))
    monkeypatch.setattr(inception, "INCEPTION_SHA256", sha256(path))
    monkeypatch.setattr(inception, "MICRO_BATCH", 2)
    extractor = inception_extractor(str(path))
    assert extractor.identity == f"inception@{sha256(path)[:12]}"
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    resized = np.stack([build_resizer("clean")(image) for image in pixels]).transpose(0, 3, 1, 2)
    expected = Layers()((torch.from_numpy(resized) - 128) / 128).numpy()
    assert extractor(images(3)) == pytest.approx(expected, abs=1e-5)


def test_missing_or_corrupt_inception_says_where_to_get_it(here: Path) -> None:
    for path in (None, "nowhere.pt", "inception-2015-12-05.pt"):
        with pytest.raises(BenchError, match=r"download https://\S+/inception-2015-12-05.pt"):
            inception_extractor(path)
    torch.jit.script(Network()).save(inception.INCEPTION_FILE)
    with pytest.raises(BenchError, match="truncated, corrupt or another file"):
        inception_extractor(inception.INCEPTION_FILE)
    assert (inception.INCEPTION_FILE, inception.INCEPTION_URL, inception.INCEPTION_SHA256) == (
        doctor.INCEPTION_FILE, doctor.INCEPTION_URL, doctor.INCEPTION_SHA256
    )  # fmt: skip
