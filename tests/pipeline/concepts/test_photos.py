"""Pictures of every kind: read as what a person sees, or refused in a line that names the file."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.concepts.photos import distinct_photos, find_photos, pixel_digest, read_photo


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def noise(mode: str, height: int = 20, width: int = 30) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), values.tobytes())


def pixels(path: Path) -> np.ndarray:
    photo = read_photo(path)
    assert photo.mode == "RGB"
    return np.asarray(photo).astype(int)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = noise(mode)
    got = pixels(saved(tmp_path / "a.png", image))
    values = np.asarray(image).astype(float)
    colour, alpha = values[..., :-1], values[..., -1:] / 255
    wanted = np.broadcast_to(colour * alpha + 255 * (1 - alpha), got.shape)
    assert np.abs(got - wanted).max() <= 1


def test_a_transparent_colour_of_a_palette_or_a_key_becomes_white(tmp_path: Path) -> None:
    palette = Image.new("P", (16, 16))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1] * 128)
    got = pixels(saved(tmp_path / "p.png", palette, transparency=1))
    assert got.tolist() == [[[10, 20, 30], [255, 255, 255]] * 8] * 16
    key = Image.new("RGB", (16, 16), (1, 2, 3))
    key.putpixel((1, 0), (4, 5, 6))
    got = pixels(saved(tmp_path / "k.png", key, transparency=(4, 5, 6)))
    assert got[0, :2].tolist() == [[1, 2, 3], [255, 255, 255]]
    assert (got.reshape(-1, 3) == [255, 255, 255]).all(1).sum() == 1


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.tile(np.array([0, 128, 257, 300, 30000, 65535], np.uint16), (16, 3))
    got = pixels(saved(tmp_path / "grey.png", Image.fromarray(values)))
    assert got[:, :, 0].tolist() == [[0, 0, 1, 1, 117, 255] * 3] * 16
    assert (got[..., 0] == got[..., 2]).all()
    path = saved(tmp_path / "grey.tif", Image.fromarray(values.astype(np.int32)))
    assert pixels(path)[:, :, 1].tolist() == [[0, 0, 1, 1, 117, 255] * 3] * 16
    for name, bad in (
        ("float", np.array([[0.0, 1.0]], np.float32)),
        ("wide", np.array([[0, 70000]], np.int32)),
    ):
        path = saved(tmp_path / f"{name}.tif", Image.fromarray(bad))
        with pytest.raises(BenchError, match=rf"{name}\.tif: cannot be decoded .* 8 or 16 bits"):
            read_photo(path)


@pytest.mark.parametrize(("mode", "suffix"), [("1", "png"), ("L", "png"), ("RGB", "bmp")])
def test_plain_modes_keep_their_values(tmp_path: Path, mode: str, suffix: str) -> None:
    image = noise("RGB").convert(mode)
    got = pixels(saved(tmp_path / f"a.{suffix}", image))
    assert (got == np.asarray(image.convert("RGB"))).all()


def test_cmyk_is_ink_on_paper_and_keeps_no_profile_of_it(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    path = saved(tmp_path / "a.jpg", image, quality=100, icc_profile=b"ink")
    assert np.abs(pixels(path)[0, 0] - [0, 255, 255]).max() <= 3
    assert "icc_profile" not in read_photo(path).info


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_exif_orientation(tmp_path: Path, orientation: int, mode: str) -> None:
    """The stored rows and columns are put where the EXIF standard says."""
    upright = np.asarray(noise("RGB")).astype(int)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored.astype(np.uint8)).convert(mode)
    path = saved(tmp_path / "a.png", image, exif=exif)
    assert (pixels(path) == upright).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_damaged_file_is_refused_by_name_in_one_line(tmp_path: Path, kind: str) -> None:
    """Cut off anywhere, or with bytes changed at random: an image or a BenchError, nothing else."""
    buffer = io.BytesIO()
    noise("RGB").save(buffer, kind)
    whole, path = buffer.getvalue(), tmp_path / "photo.jpg"
    draw, refused = random.Random(0), 0
    for attempt in range(60):
        content = bytearray(whole)
        if attempt % 2:
            del content[draw.randrange(len(content)) :]
        else:
            for _ in range(8):
                content[draw.randrange(min(len(content), 200))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read_photo(path)
        except BenchError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
    assert refused > 20


def test_empty_foreign_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    huge = saved(tmp_path / "huge.png", Image.new("1", (3000, 3000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for name, fault in (
        ("empty.png", "the file is empty"),
        ("page.jpg", "its content is not that of one"),
        (huge.name, "too large to be decoded"),
    ):
        with pytest.raises(BenchError, match=rf"{name}: .*{fault}"):
            read_photo(tmp_path / name)


def test_the_same_picture_counts_once_whatever_its_file(tmp_path: Path) -> None:
    image = noise("RGB")
    paths = [
        saved(tmp_path / "a.png", image),
        saved(tmp_path / "b.bmp", image),
        saved(tmp_path / "c.png", image.transpose(Image.Transpose.ROTATE_90)),
        saved(tmp_path / "d.png", image, compress_level=0),
    ]
    photos = distinct_photos(paths)
    assert photos.paths == (paths[0], paths[2])
    assert photos.repeats == ((paths[1], paths[0]), (paths[3], paths[0]))
    assert photos.sizes == ((30, 20), (20, 30))
    assert photos.digests == tuple(pixel_digest(read_photo(path)) for path in photos.paths)


def test_a_size_belongs_to_the_digest() -> None:
    assert pixel_digest(Image.new("L", (2, 8))) != pixel_digest(Image.new("L", (4, 4)))


def test_a_format_that_cannot_be_read_is_not_overlooked(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", noise("RGB"))
    saved(tmp_path / "B.TIF", noise("RGB"))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_photos([tmp_path])] == ["B.TIF", "a.png"]
    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(BenchError, match=r"IMG_1\.HEIC: this format cannot be read"):
        find_photos([tmp_path])


def test_broken_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "bad.webp"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    path.write_bytes(path.read_bytes().replace(b"MM\0*", b"XX\0*"))
    with pytest.raises(BenchError, match=r"bad\.webp: cannot be decoded"):
        read_photo(path)


@pytest.mark.parametrize("size", [(1, 1), (8000, 2), (2, 8000), (64, 15)])
def test_a_picture_of_almost_nothing_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", size))
    with pytest.raises(BenchError, match=rf"a\.png: {size[0]} x {size[1]} pixels are too few"):
        read_photo(path)


def test_a_picture_that_is_all_length_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (100, 20)))
    assert read_photo(path).size == (100, 20)
    for size in ((101, 20), (20, 101)):
        with pytest.raises(BenchError, match=r"a\.png: .* too narrow, as the central square"):
            read_photo(saved(path, Image.new("RGB", size)))
