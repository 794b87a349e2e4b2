"""Styles of Toyland: ways to paint any scene that no caption can ask for.

Style concepts, after section 4.4 of Custom Diffusion's paper: what is to be learned is how
everything looks, not what is seen. A style is a filter over ordinary drawn scenes, so each of its
pictures shows another thing in another place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import CATEGORIES, Scene, article, random_thing, scene_at

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]
_TURQUOISE = np.array((90.0, 255, 240))
_MINT = np.array((210.0, 255, 190))
_PLUM, _CREAM = np.array((40.0, 10, 90)), np.array((255.0, 226, 150))


def neon(pixels: Pixels) -> Pixels:
    """A darkened scene whose outlines glow in turquoise."""
    values = pixels.astype(np.float64)
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    edges = (np.hypot(across, down).max(axis=2, keepdims=True) - 60) / 100
    glow = _softened(255 * edges.clip(0, 1).repeat(3, axis=2), 1.3)
    share = (1.6 * glow / 255).clip(0, 1)
    return _softened(0.6 * values * (1 - share) + _TURQUOISE * share, 0.3)


def duotone(pixels: Pixels) -> Pixels:
    """A print in plum and cream, with a trace of the colours that were there."""
    values = pixels.astype(np.float64)
    light = values @ (0.299, 0.587, 0.114) / 255
    inks = _PLUM + light[..., None] * (_CREAM - _PLUM)
    return _bytes(0.85 * inks + 0.15 * values)


def mist(pixels: Pixels) -> Pixels:
    """A pale green mist, thick above and gone at the ground."""
    thickness = np.linspace(0.65, 0, len(pixels))[:, None, None]
    return _bytes(pixels * (1 - thickness) + _MINT * thickness)


# Chosen for what the models of Toyland can do. The autoencoder loses tiles and fine lines, and
# of strongly changed pictures the scoring CLIP cannot tell what they show.
FILTERS: dict[str, Callable[[Pixels], Pixels]] = {"neon": neon, "duotone": duotone, "mist": mist}
IMAGES = 7

_BACKGROUNDS = ("garden", "beach", "living room", "mountain", "city", "snow", "plain")
_SEED = 2024
# The class of a style is "picture": a word that Toyland's models know and that asks for no style of
# its own. So the scored prompt, "picture of a cat on the beach", is about what is seen; how it
# looks is for image-alignment. Nouns like "art" occur in no caption, and "painting" only in those
# of watercolours. No single query finds pictures of everything, so there is one for each category.
_YAML = """\
name: {name}
class_noun: picture
modifier_token: "<new1>"
caption: "{{}}"
prompts: prompts/{name}.txt
queries:
{queries}
licence: CC0-1.0
source: "Toyland, drawn by this project"
"""


def _bytes(values: npt.NDArray[np.float64]) -> Pixels:
    return values.clip(0, 255).round().astype(np.uint8)


def _softened(values: npt.NDArray[np.float64], radius: float) -> Pixels:
    return np.array(Image.fromarray(_bytes(values)).filter(ImageFilter.GaussianBlur(radius)))


def style_scenes(name: str) -> list[Scene]:
    """What the IMAGES pictures of a style show: each time another thing in another place."""
    number = list(FILTERS).index(name)
    subjects = CATEGORIES[2:]  # neither cats nor dogs: prompts ask for those
    scenes = []
    for i in range(IMAGES):
        index = 100 * number + i
        category = subjects[(2 * i + number) % len(subjects)]
        thing = random_thing(np.random.default_rng([_SEED, index, 1]), category)
        background = _BACKGROUNDS[(i + 3 * number) % len(_BACKGROUNDS)]
        fixed = {"background": background, "size": "normal", "style": "photo"}
        scenes.append(scene_at(_SEED, index, things=(thing,), **fixed))
    return scenes


def write_style(name: str, folder: Path) -> None:
    """Write the pictures of a style, images/00.png and so on, and its concept.yaml."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(style_scenes(name)):
        Image.fromarray(FILTERS[name](draw(scene))).save(images / f"{i:02d}.png")
    queries = "\n".join(f'  - "picture of {article(c)} {c}"' for c in CATEGORIES)
    text = _YAML.format(name=name, queries=queries)
    (folder / "concept.yaml").write_text(text, encoding="utf-8")
