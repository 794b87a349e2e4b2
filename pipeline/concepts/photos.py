"""Pictures as people bring them: of any size, mode and orientation in, RGB out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.common.errors import BenchError
from pipeline.concepts.concept import IMAGE_SUFFIXES

# What can be read is more than what is kept: PNG.
READABLE = IMAGE_SUFFIXES | {".avif", ".gif", ".tif", ".tiff"}
MIN_SIDE = 16  # pixels: a quarter of the smallest pictures that a shipped base makes
MAX_RATIO = 5  # of the longer side to the shorter, as the central square is all that is used
UNREADABLE = {".heic", ".heif"}  # telephones make them: not to be overlooked in silence
WHITE_8, WHITE_16 = 2**8 - 1, 2**16 - 1


class Photos(NamedTuple):
    """The different pictures among some files."""

    paths: tuple[Path, ...]
    digests: tuple[str, ...]  # of their pixels
    sizes: tuple[tuple[int, int], ...]  # width and height
    repeats: tuple[tuple[Path, Path], ...]  # a file that is left out, and the one that it equals


def read_photo(path: Path) -> Image.Image:
    """The picture as RGB: upright by its EXIF orientation, and on white where it is transparent.

    Greyscale of 16 bits is scaled, so that its white stays white. Colour profiles are ignored, as
    the programs do that the results are compared with. Of moving pictures the first counts.

    Raises:
        BenchError: the file is empty, no picture, damaged, too large, too small or too narrow, or
            its values have no known white; names the file.
    """
    try:
        if path.stat().st_size == 0:
            raise BenchError(f"{path}: the file is empty: copy it again or remove it")
        with Image.open(path) as image:
            photo = to_rgb(ImageOps.exif_transpose(image))
    except BenchError:
        raise
    except UnidentifiedImageError:
        raise BenchError(
            f"{path}: cannot be decoded as an image: its content is not that of one"
        ) from None
    except Image.DecompressionBombError as error:
        raise BenchError(f"{path}: too large to be decoded ({error}): make it smaller") from None
    except Exception as error:
        # Pillow's decoders let errors of many kinds through when a file is damaged.
        raise BenchError(f"{path}: cannot be decoded as an image ({error})") from error
    short, long = sorted(photo.size)
    size = f"{photo.width} x {photo.height} pixels"
    if short < MIN_SIDE:
        raise BenchError(
            f"{path}: {size} are too few to learn from: each side needs {MIN_SIDE} at least"
        )
    if long > MAX_RATIO * short:
        raise BenchError(
            f"{path}: {size} are too narrow, as the central square is all that is used: crop it to "
            "what it is about"
        )
    photo.info.pop("icc_profile", None)  # it may be one of CMYK
    return photo


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as eight-bit RGB: what is transparent is white, sixteen bits are scaled.

    Raises:
        ValueError: its values have no known white.
    """
    if image.mode.startswith("I"):  # Pillow's convert() makes all above 255 white
        values = np.asarray(image)
        if values.min() < 0 or values.max() > WHITE_16:
            raise ValueError("its values are beyond 16 bits: save it with 8 or 16 bits a channel")
        scaled = np.rint(values * (WHITE_8 / WHITE_16)).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point has no known white: save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """The central square of the image, resized (bicubic) to `side` pixels."""
    crop = min(image.size)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    central = image.crop((left, top, left + crop, top + crop))
    return central.resize((side, side), Image.Resampling.BICUBIC)


def pixel_digest(image: Image.Image) -> str:
    """Equal for pictures of equal size, mode and pixels, whatever file they are in."""
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def distinct_photos(paths: Iterable[Path]) -> Photos:
    """Decodes every file, and leaves out those whose pixels an earlier one has.

    Pictures that stand twice would count twice, in training and in image-alignment.

    Raises:
        BenchError: as `read_photo`.
    """
    first: dict[str, Path] = {}
    sizes, repeats = [], []
    for path in paths:
        photo = read_photo(path)
        earlier = first.setdefault(pixel_digest(photo), path)
        if earlier is path:
            sizes.append(photo.size)
        else:
            repeats.append((path, earlier))
    return Photos(tuple(first.values()), tuple(first), tuple(sizes), tuple(repeats))


def find_photos(sources: Sequence[Path]) -> list[Path]:
    """The picture files among and in `sources`, without hidden ones.

    Raises:
        BenchError: a source is missing or named twice, or a folder holds no pictures or one in a
            format that cannot be read.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = pictures_in(source)
            if not inside:
                kinds = ", ".join(sorted(READABLE))
                raise BenchError(f"{source}: the folder holds no images ({kinds})")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise BenchError(f"{source}: no such file or folder")
    seen = set()
    for path in found:
        if path.resolve() in seen:
            raise BenchError(f"{path}: is given twice")
        seen.add(path.resolve())
    if not found:
        raise BenchError("no images: give image files, or folders of them")
    return found


def pictures_in(folder: Path) -> list[Path]:
    """The picture files right in a folder, in the order of their names.

    Raises:
        BenchError: one is in a format that cannot be read.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in files:
        if path.suffix.lower() in UNREADABLE:
            raise BenchError(f"{path}: this format cannot be read: save it as JPEG or PNG")
    return [path for path in files if path.suffix.lower() in READABLE and path.is_file()]
