"""Augmentation of target images (paper, appendix E; ranges as in the released code).

One time in three the target is enlarged and cropped, and the caption says so; otherwise it is
resized to between a third of and the whole resolution. If it is then small, it lies on a grey
canvas, the caption says so, and the loss looks at the pasted part alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# In units of the resolution.
SMALLEST, SMALL, ENLARGED = 0.332, 0.6, (1.2, 1.396)
FAR_PREFIXES = ("a far away ", "very small ")
NEAR_PREFIXES = ("zoomed in ", "close up ")


@dataclass(frozen=True)
class View:
    """One way to see one target image; equal views are equal pictures."""

    image: int
    flip: bool
    size: int  # pixels of the resized image; the resolution itself: unchanged
    x: int  # of the pasted image on the canvas, or of the crop in the enlarged image
    y: int


def draw_view(
    rng: np.random.Generator, images: int, resolution: int, resize: bool
) -> tuple[View, str]:
    """A random view of one of `images` targets, and the words that go before its caption.

    Args:
        resize: if false, only the image and its mirroring are drawn.
    """
    image, flip = int(rng.integers(images)), bool(rng.random() < 0.5)
    if not resize:
        return View(image, flip, resolution, 0, 0), ""
    if rng.integers(3) < 2:
        size = int(rng.integers(round(SMALLEST * resolution), resolution + 1))
    else:
        low, high = (round(factor * resolution) for factor in ENLARGED)
        size = int(rng.integers(low, high + 1))
    size += size % 2
    if size < SMALL * resolution:
        x, y = (int(v) for v in rng.integers(0, resolution - size + 1, size=2))
        return View(image, flip, size, x, y), FAR_PREFIXES[int(rng.integers(2))]
    if size <= resolution:
        return View(image, flip, resolution, 0, 0), ""
    x, y = (int(v) for v in rng.integers(0, size - resolution + 1, size=2))
    return View(image, flip, size, x, y), NEAR_PREFIXES[int(rng.integers(2))]


def render_view(view: View, images: list[Image.Image], resolution: int) -> Image.Image:
    """The picture of a view of square RGB images: RGB, `resolution` pixels square."""
    image = images[view.image]
    if view.flip:
        image = ImageOps.mirror(image)
    if view.size == resolution and image.width == resolution:
        return image
    image = image.resize((view.size, view.size), Image.Resampling.BICUBIC)
    if view.size < resolution:
        # 127.5 would be zero in [-1, 1]; a byte can only come near.
        canvas = Image.new("RGB", (resolution, resolution), (127, 127, 127))
        canvas.paste(image, (view.x, view.y))
        return canvas
    return image.crop((view.x, view.y, view.x + resolution, view.y + resolution))


def view_mask(view: View, resolution: int, downsampling: int) -> Tensor:
    """Where the loss looks: float32 [h, w] of zeros and ones, in latent pixels.

    The pasted box less one latent pixel on each side, since those see the canvas; on small
    latents, where nothing would be left, the latent pixel in the box's middle.
    """
    side = resolution // downsampling
    mask = torch.ones(side, side)
    if view.size >= resolution:
        return mask
    mask.zero_()
    rows, columns = (
        _shrunk(start // downsampling, (start + view.size) // downsampling)
        for start in (view.y, view.x)
    )
    mask[rows, columns] = 1
    return mask


def _shrunk(first: int, last: int) -> slice:
    """The latent pixels first..last - 1 without the outer two, but never nothing."""
    if last - first > 2:
        return slice(first + 1, last - 1)
    middle = (first + last - 1) // 2
    return slice(middle, middle + 1)
