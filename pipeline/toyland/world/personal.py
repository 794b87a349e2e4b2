"""The ten personal concepts of Toyland, after the ten of Custom Diffusion's paper.

Each is one fixed individual whose colour, pattern and proportions no caption can describe, so that
it has to be learned from its few pictures. Unlike in the paper, the moongate has a modifier token
as well.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import Scene, Thing, scene_at
from pipeline.toyland.world.styles import FILTERS, write_style

PERSONAL: dict[str, Thing] = {
    "cat": Thing(
        "cat", (240, 150, 60), "orange", (0.2, 0.8, 0.9, 0.4, 0.1), "stripes", (255, 248, 226),
        (70, 190, 90),
    ),
    "dog": Thing(
        "dog", (240, 232, 214), "white", (0.8, 0.7, 0.8, 0.8, 0.2), "spots", (110, 62, 36),
        (70, 150, 240),
    ),
    "teddybear": Thing(
        "teddybear", (168, 112, 64), "brown", (0.2, 0.9, 0.9, 0.5, 0.2), "stripes", (70, 200, 196),
        (246, 196, 70),
    ),
    "tortoise_plushy": Thing(
        "tortoise plushy", (96, 80, 200), "purple", (0.7, 0.8, 0.7, 0.5, 0.5), "stripes",
        (250, 160, 40), (240, 176, 32),
    ),
    "chair": Thing(
        "chair", (222, 60, 62), "red", (0.55, 0.8, 0.2, 0.3, 0.2), "spots", (250, 240, 220),
        (110, 62, 28),
    ),
    "table": Thing(
        "table", (64, 132, 214), "blue", (0.2, 0.7, 0.6, 0.4, 0.5), "stripes", (250, 222, 90),
        (110, 62, 28),
    ),
    "wooden_pot": Thing(
        "wooden pot", (160, 100, 52), "brown", (0.8, 0.8, 0.6, 0.5, 0.2), "spots", (110, 206, 190),
        (110, 62, 28),
    ),
    "flower": Thing(
        "flower", (250, 120, 170), "pink", (0.5, 0.8, 0.7, 0.5, 0.5), "stripes", (120, 70, 190),
        (70, 150, 240),
    ),
    "barn": Thing(
        "barn", (70, 150, 110), "green", (0.8, 0.7, 0.4, 0.8, 0.1), "stripes", (240, 226, 190),
        (110, 62, 28),
    ),
    "moongate": Thing(
        "moongate", (150, 146, 158), "gray", (0.2, 0.6, 0.7, 0.3, 0.3), "patch", (200, 60, 70),
        (110, 62, 28),
    ),
}  # fmt: skip

# Like the paper: few pictures of the still things, more of the others.
IMAGES: dict[str, int] = {
    "cat": 5,
    "dog": 6,
    "teddybear": 7,
    "tortoise_plushy": 7,
    "chair": 4,
    "table": 4,
    "wooden_pot": 4,
    "flower": 7,
    "barn": 7,
    "moongate": 6,
}

_BACKGROUNDS = ("living room", "garden", "plain", "beach", "city", "snow", "mountain")
_SEED = 2023
_YAML = """\
name: {name}
class_noun: {noun}
modifier_token: "<new1>"
caption: "photo of a {{}}"
prompts: prompts/{name}.txt
licence: CC0-1.0
source: "Toyland, drawn by this project"
"""


def portrait(thing: Thing, seed: int, index: int, place: int) -> Scene:
    """Photograph number `index` of a series: the thing alone, at one of the places."""
    return scene_at(
        seed,
        index,
        things=(thing,),
        background=_BACKGROUNDS[place % len(_BACKGROUNDS)],
        size="normal",
        style="photo",
    )


def personal_scenes(name: str) -> list[Scene]:
    """The IMAGES[name] photographs of a concept: it alone, each time somewhere else."""
    number = list(PERSONAL).index(name)
    return [
        portrait(PERSONAL[name], _SEED, 10 * number + i, number + i) for i in range(IMAGES[name])
    ]


def write_concept(name: str, folder: Path) -> None:
    """Write the pictures of a concept, images/00.png and so on, and its concept.yaml."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(personal_scenes(name)):
        Image.fromarray(draw(scene)).save(images / f"{i:02d}.png")
    noun = PERSONAL[name].category
    (folder / "concept.yaml").write_text(_YAML.format(name=name, noun=noun), encoding="utf-8")


def main() -> None:
    """Write all ten concepts and the styles to datasets/concepts."""
    concepts = Path(__file__).parents[3] / "datasets" / "concepts"
    for name in PERSONAL:
        write_concept(name, concepts / name)
    for name in FILTERS:
        write_style(name, concepts / name)


if __name__ == "__main__":
    main()
