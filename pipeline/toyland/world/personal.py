"""The twenty-four personal concepts of Toyland: the ten of Custom Diffusion's paper, and more.

Each is one fixed individual whose colour, pattern and proportions no caption can describe, so that
it has to be learned from its few pictures. Half of them share their colour with another one of
their category. Unlike in the paper, the moongate has a modifier token as well.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from PIL import Image

from pipeline.common.files import write_below
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.gallery import gallery, gallery_files, portrait
from pipeline.toyland.world.scenes import Scene, Thing
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
    "patched_cat": Thing(
        "cat", (240, 150, 60), "orange", (0.8, 0.1, 0.9, 0.9, 0.8), "patch", (120, 40, 50),
        (70, 150, 240),
    ),
    "tabby_cat": Thing(
        "cat", (146, 148, 158), "gray", (0.7, 0.9, 0.6, 0.2, 0.5), "stripes", (50, 46, 56),
        (240, 176, 32),
    ),
    "patched_dog": Thing(
        "dog", (240, 232, 214), "white", (0.2, 0.5, 0.2, 0.5, 0.8), "patch", (60, 54, 62),
        (110, 62, 28),
    ),
    "striped_dog": Thing(
        "dog", (150, 96, 54), "brown", (0.2, 0.8, 0.9, 0.3, 0.9), "stripes", (250, 226, 170),
        (70, 190, 90),
    ),
    "striped_chair": Thing(
        "chair", (222, 60, 62), "red", (0.2, 0.3, 0.9, 0.3, 0.5), "stripes", (250, 222, 90),
        (110, 62, 28),
    ),
    "striped_vase": Thing(
        "vase", (64, 116, 220), "blue", (0.8, 0.8, 0.3, 0.6, 0.1), "stripes", (250, 240, 220),
        (110, 62, 28),
    ),
    "spotted_vase": Thing(
        "vase", (64, 116, 220), "blue", (0.2, 0.3, 0.9, 0.2, 0.7), "spots", (250, 210, 70),
        (110, 62, 28),
    ),
    "spotted_ball": Thing(
        "ball", (214, 56, 54), "red", (0.8, 0.6, 0.5, 0.5, 0.2), "spots", (250, 244, 226),
        (110, 62, 28),
    ),
    "striped_ball": Thing(
        "ball", (214, 56, 54), "red", (0.2, 0.9, 0.5, 0.5, 0.1), "stripes", (90, 210, 220),
        (110, 62, 28),
    ),
    "spotted_flower": Thing(
        "flower", (250, 120, 170), "pink", (0.1, 0.9, 0.2, 0.5, 0.5), "spots", (110, 40, 120),
        (240, 176, 32),
    ),
    "striped_house": Thing(
        "house", (246, 214, 84), "yellow", (0.8, 0.7, 0.6, 0.8, 0.5), "stripes", (90, 150, 200),
        (110, 62, 28),
    ),
    "spotted_tree": Thing(
        "tree", (60, 150, 80), "green", (0.8, 0.7, 0.5, 0.5, 0.2), "spots", (230, 70, 70),
        (110, 62, 28),
    ),
    "picket_gate": Thing(
        "gate", (130, 80, 190), "purple", (0.2, 0.7, 0.9, 0.5, 0.1), "stripes", (250, 226, 120),
        (110, 62, 28),
    ),
    "crescent_moon": Thing(
        "moon", (248, 216, 70), "yellow", (0.8, 0.5, 0.3, 0.5, 0.5), "stripes", (120, 80, 180),
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
    "patched_cat": 5,
    "tabby_cat": 5,
    "patched_dog": 6,
    "striped_dog": 6,
    "striped_chair": 4,
    "striped_vase": 4,
    "spotted_vase": 4,
    "spotted_ball": 4,
    "striped_ball": 4,
    "spotted_flower": 7,
    "striped_house": 7,
    "spotted_tree": 6,
    "picket_gate": 6,
    "crescent_moon": 6,
}

_SEED = 2023
# By trial: with it the scoring CLIP tells each concept from its look-alikes.
_GALLERY_SEED = 0
_YAML = """\
name: {name}
class_noun: {noun}
modifier_token: "<new1>"
caption: "photo of a {{}}"
prompts: prompts/{name}.txt
licence: CC0-1.0
source: "Toyland, drawn by this project"
"""


def personal_scenes(name: str) -> list[Scene]:
    """The IMAGES[name] photographs of a concept: it alone, each time somewhere else."""
    number = list(PERSONAL).index(name)
    return [
        portrait(PERSONAL[name], _SEED, 10 * number + i, number + i) for i in range(IMAGES[name])
    ]


def personal_gallery(name: str) -> dict[PurePosixPath, Scene]:
    """The gallery of a concept; its places go on where those of its photographs end."""
    return gallery(PERSONAL[name], *_gallery_of(name))


def _gallery_of(name: str) -> tuple[int, str, int]:
    return list(PERSONAL).index(name) + IMAGES[name], name, _GALLERY_SEED


def write_concept(name: str, folder: Path) -> None:
    """Write a concept: its pictures, images/00.png and so on, its gallery and concept.yaml."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(personal_scenes(name)):
        Image.fromarray(draw(scene)).save(images / f"{i:02d}.png")
    write_below(folder, gallery_files(PERSONAL[name], *_gallery_of(name)))
    noun = PERSONAL[name].category
    (folder / "concept.yaml").write_text(_YAML.format(name=name, noun=noun), encoding="utf-8")


def main() -> None:
    """Write all concepts and the styles to datasets/concepts."""
    concepts = Path(__file__).parents[3] / "datasets" / "concepts"
    for name in PERSONAL:
        write_concept(name, concepts / name)
    for name in FILTERS:
        write_style(name, concepts / name)


if __name__ == "__main__":
    main()
