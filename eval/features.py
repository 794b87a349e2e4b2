"""Image features: the extractors, and a cache so that each image is encoded once for each."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from pipeline.clip.openclip import MICRO_BATCH, Clip
from pipeline.common.errors import BenchError
from pipeline.common.files import sha256
from pipeline.concepts.photos import to_rgb
from pipeline.settings.profile import Params

CACHE = Path(".cache") / "features"
PORTION = 512  # images that are decoded, encoded and stored at a time
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION_FILE
)
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
DINO_ARCHITECTURE = "vit_small_patch16_224"
DINO_URL = f"https://huggingface.co/timm/{DINO_ARCHITECTURE}.dino/resolve/main/model.safetensors"

Features = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Extractor:
    """Turns images into features."""

    identity: str  # "<model>@<first 12 hex digits of the weights' SHA-256>"
    transform: str  # what is done to an image first
    unit: bool  # features have the length 1
    encode: Callable[[Sequence[Image.Image]], Features]  # n >= 1 RGB images to float32 [n, d]

    def __call__(self, images: Sequence[bytes]) -> Features:
        """The features of encoded images (PNG, JPEG), float32 [n, d], those known from the cache.

        The last bits of a new image's features may depend on which others are new.

        Raises:
            BenchError: there are no images, one cannot be decoded, or one has no finite features.
        """
        if not images:
            raise BenchError(f"{self.identity}: no images to measure: sample again")
        keys = [hashlib.sha256(image).digest() for image in images]
        cache = _Cache(self._path())
        known = cache.read(set(keys))
        new = {key: i for i, key in enumerate(keys) if key not in known}
        for part in _portions(sorted(new.values()), PORTION):
            found = dict(zip((keys[i] for i in part), self.fresh({i: images[i] for i in part})))
            cache.write(found)
            known |= found
        return np.stack([known[key] for key in keys])

    def fresh(self, images: Mapping[int, bytes]) -> Features:
        """The features of images, float32 [n, d], whatever the cache holds.

        Raises:
            BenchError: one cannot be decoded or has no finite features; says its number, from 1.
        """
        rows = self.encode([_decoded(image, i) for i, image in images.items()])
        for i, row in zip(images, rows, strict=True):
            if not np.isfinite(row).all():
                raise BenchError(f"image {i + 1}: {self.identity} gives no finite features")
        return rows

    def _path(self) -> Path:
        name = hashlib.sha256(f"{self.identity}\n{self.transform}".encode()).hexdigest()[:24]
        return CACHE / f"{name}.sqlite"


class _Cache:
    """Rows of features by their image's SHA-256, in one file that several processes may use.

    A damaged file is made anew, and a damaged row counts as missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Features]:
        """The rows that are there."""

        def select(database: sqlite3.Connection) -> list[tuple[bytes, bytes, int]]:
            found = []
            for part in _portions(sorted(keys), 999):  # as many as any SQLite takes
                places = ",".join("?" * len(part))
                query = f"SELECT image, row, checksum FROM features WHERE image IN ({places})"
                found += database.execute(query, part).fetchall()
            return found

        return {
            key: np.frombuffer(row, np.float32)
            for key, row, checksum in self._do(select)
            if zlib.crc32(row) == checksum
        }

    def write(self, rows: dict[bytes, Features]) -> None:
        """Adds rows; what another process has added meanwhile is the same."""
        blobs = [(key, row.astype(np.float32).tobytes()) for key, row in rows.items()]
        values = [(key, blob, zlib.crc32(blob)) for key, blob in blobs]
        self._do(
            lambda database: database.executemany(
                "INSERT OR REPLACE INTO features VALUES (?, ?, ?)", values
            )
        )

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._attempt(work)
            except sqlite3.OperationalError:
                raise  # locked, read-only or no space: the file is not at fault
            except sqlite3.DatabaseError:
                for suffix in ("", "-journal"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                return self._attempt(work)
        except (sqlite3.Error, OSError) as error:
            raise BenchError(f"{self.path}: cannot be used: {error}: free or delete it") from error

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        waiting = 60.0  # seconds, for another process to write
        with closing(sqlite3.connect(self.path, timeout=waiting)) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS features "
                "(image BLOB PRIMARY KEY, row BLOB NOT NULL, checksum INTEGER NOT NULL) "
                "WITHOUT ROWID"
            )
            return work(database)


def clip_extractor(clip: Clip) -> Extractor:
    """CLIP's image features as unit vectors."""
    transform = json.dumps(clip.model.visual.preprocess_cfg, sort_keys=True)
    return Extractor(clip.identity, transform, True, clip.encode_images)


def dino_extractor(path: str | None) -> Extractor:
    """DINO's ViT-S/16: its class token as a unit vector, float32 [n, 384].

    Args:
        path: a safetensors file with the names of DINO's authors and of timm.

    Raises:
        BenchError: the file is missing, or holds other weights.
    """
    network, digest = dino_network(path)
    return vit_extractor(network, f"dino_vits16@{digest[:12]}")


def dino_network(path: str | None) -> tuple[nn.Module, str]:
    """DINO's ViT-S/16, which gives the class token, and its SHA-256; see `dino_extractor`."""
    from safetensors.torch import load_file
    from timm import create_model  # takes a second

    if path is None or not Path(path).is_file():
        raise BenchError(
            f"params.yaml: score.dino: {path or 'nothing'} is not a file: download {DINO_URL} and "
            "give its path"
        )
    model: nn.Module = create_model(DINO_ARCHITECTURE, num_classes=0)
    try:
        model.load_state_dict(load_file(path))
    # safetensors' own error is a plain Exception.
    except Exception as error:
        raise BenchError(
            f"{path}: truncated, or not DINO's ViT-S/16: download {DINO_URL} again"
        ) from error
    return model, sha256(path)


def vit_extractor(model: nn.Module, identity: str) -> Extractor:
    """The unit features of a model that sees images as DINO's authors show them to theirs.

    The shorter side is resized to 256 pixels, of which the central 224 x 224 are seen.
    """
    model = model.eval().requires_grad_(False).to(_device())
    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def encode(images: Sequence[Image.Image]) -> Features:
        batches = (torch.stack([transform(i) for i in p]) for p in _portions(images, MICRO_BATCH))
        return _encoded(lambda batch: F.normalize(model(batch), dim=1), batches)

    return Extractor(identity, "resize 256 bicubic, central 224, ImageNet", True, encode)


def inception_extractor(path: str | None) -> Extractor:
    """The features of KID's Inception network, [n, 2048], after clean-fid's exact resizing.

    Args:
        path: a file named inception-2015-12-05.pt.

    Raises:
        BenchError: the file is missing, has another name or is not the published one.
    """
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    if path is None or not Path(path).is_file() or Path(path).name != INCEPTION_FILE:
        raise BenchError(
            f"params.yaml: score.inception: {path or 'nothing'} is not the file {INCEPTION_FILE}: "
            f"download {INCEPTION_URL} and give its path"
        )
    digest = sha256(path)
    if digest != INCEPTION_SHA256:  # before it is opened: a TorchScript is a program
        raise BenchError(
            f"{path}: truncated, corrupt or another file (SHA-256 {digest[:12]}…, not "
            f"{INCEPTION_SHA256[:12]}…): download {INCEPTION_URL} again"
        )
    model = InceptionV3W(str(Path(path).parent), download=False).eval().to(_device())
    resize = build_resizer("clean")

    def batch_of(images: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([resize(np.asarray(image)) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def encode(images: Sequence[Image.Image]) -> Features:
        return _encoded(model, (batch_of(part) for part in _portions(images, MICRO_BATCH)))

    return Extractor(f"inception@{digest[:12]}", "clean-fid", False, encode)


def distance_extractor(params: Params, clip: Extractor) -> Extractor:
    """What KID and FID see images with: Inception or the protocol's CLIP.

    Raises:
        BenchError: it is Inception, whose file is missing or damaged.
    """
    if params.protocol.score.kid_features == "inception":
        return inception_extractor(params.score.inception)
    return clip


def kernel_features(extractor: Extractor, images: Sequence[bytes]) -> Features:
    """Features as KID's polynomial kernel expects them, float32 [n, d]: about one per channel.

    Inception's are so already. With CLIP's unit vectors the kernel would be all but linear and see
    nothing but means, so these get the length sqrt(d); the kernel is then (cosine + 1)^3.
    """
    features = extractor(images)
    return features * np.float32(np.sqrt(features.shape[1])) if extractor.unit else features


def too_long(clip: Clip, texts: Sequence[str]) -> int:
    """How many of the texts have more tokens than the CLIP reads: it ignores the rest of them."""
    if not texts:
        return 0
    context = clip.model.context_length
    tokenize: Any = clip.tokenize
    tokens = tokenize(["", *texts], context_length=context + 1)
    return int((tokens[1:, -1] != tokens[0, -1]).sum())


def _encoded(model: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Features:
    # Convolutions round to ten bits (TF32) on recent GPUs unless told not to.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        parts = [model(batch.to(_device())).cpu().numpy() for batch in batches]
    return np.concatenate(parts).astype(np.float32)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _portions(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _decoded(data: bytes, number: int) -> Image.Image:
    """The image as eight-bit RGB: what is transparent is white, sixteen bits are scaled.

    It is RGB before it is resized. CustomConcept101's script resizes first, which is the same for
    images that are RGB already; a palette would be resized without smoothing.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return to_rgb(opened)
    # Pillow's decoders raise what they like; a broken PNG, for one, is a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BenchError(
            f"image {number + 1} cannot be decoded ({error}): sample it again"
        ) from error
