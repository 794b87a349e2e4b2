"""`bench concept add`: a user's images become a concept of the benchmark, wholly or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from pipeline.concepts import DATASETS, IMAGE_SUFFIXES, open_image, read_prompts
from pipeline.errors import BenchError
from pipeline.files import atomic, png_bytes
from pipeline.params import DEFAULT_PROFILE, load_grid, profile_folder, read_yaml

# Scenes, styles, sizes and companions, in words that Toyland's models know.
DEFAULT_PROMPTS = (
    "photo of a {} in the snow",
    "a {} on the beach",
    "photo of a {} in the forest",
    "photo of a {} in the garden",
    "a {} in front of a mountain",
    "photo of a {} in the city",
    "a {} in the living room",
    "photo of a {} at night",
    "a watercolor painting of a {}",
    "a pencil sketch of a {}",
    "a {} next to a red ball",
    "a {} and a tree in the garden",
    "very small photo of a {} in the city",
    "zoomed in photo of a {} on the beach",
    "close up photo of a {} in the forest",
    "a {} next to a yellow house",
    "a watercolor painting of a {} on the beach",
    "a pencil sketch of a {} in the forest",
    "a {} and an orange ball on the beach",
    "a {} next to a blue vase at night",
)


def add_concept(
    name: str,
    sources: list[Path],
    class_noun: str,
    prompts: Path | None = None,
    caption: str = "photo of a {}",
    profile: str = DEFAULT_PROFILE,
) -> None:
    """Adds a concept to `datasets/` and to the profile's grid, and tells what will run.

    Images are turned as their EXIF orientation says and kept at their size, as RGB PNG. Everything
    is checked before the first write; if a write fails, what was written before it is removed.

    Args:
        sources: image files, or folders whose images are taken in the order of their names.
        prompts: a file of prompts with {}; DEFAULT_PROMPTS if None.
        caption: template of training captions, with {} once.

    Raises:
        BenchError: a bad or taken name, no images, an image that cannot be decoded, a template
            without its placeholder, or a full disk.
    """
    grid = load_grid(profile)
    grid_path = profile_folder(profile) / "grid.yaml"
    folder = DATASETS / "concepts" / name
    prompt_path = DATASETS / "prompts" / f"{name}.txt"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise BenchError(
            f"name {name!r}: needs a letter first, then letters, digits, _ or - (such as my_cat)"
        )
    listed = grid.concepts.get(name)  # a profile may name concepts whose images users bring
    if name in grid.subjects() and (listed is None or folder.exists()):
        raise BenchError(f"{grid_path}: {name!r} is there already: choose another name")
    for path in (folder, prompt_path):
        if path.exists():
            raise BenchError(
                f"{path}: exists already: choose another name, or add {name!r} to {grid_path} "
                "by hand"
            )
    class_noun = " ".join(class_noun.split())
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", class_noun):
        raise BenchError(f"--class {class_noun!r}: needs a noun in plain words (wooden pot)")
    if listed and listed.class_noun != class_noun:
        raise BenchError(
            f"--class {class_noun!r}: {grid_path} says that {name!r} is a {listed.class_noun!r}"
        )
    caption = " ".join(caption.split())
    if caption.count("{}") != 1 or caption.count("{") != 1 or caption.count("}") != 1:
        raise BenchError(f"--caption {caption!r}: needs the placeholder {{}} once")
    templates = read_prompts(prompts, 1) if prompts else DEFAULT_PROMPTS
    images = [open_image(path) for path in find_images(sources)]

    with ExitStack() as undo:
        _write(folder, lambda path: _write_concept(path, name, class_noun, caption, images), undo)
        _write(prompt_path, lambda path: _write_text(path, "\n".join(templates) + "\n"), undo)
        with atomic(grid_path) as temporary:
            _write_yaml(temporary, _grid_with(grid_path, name, class_noun))
        undo.pop_all()  # all went well: nothing to undo

    print(
        f"added {name}: {len(images)} images and {len(templates)} prompts for {class_noun!r} "
        f"-> {folder}, {prompt_path}, {grid_path}"
    )
    _tell_stages(name, profile)


def find_images(sources: list[Path]) -> list[Path]:
    """The image files among and in `sources`, without hidden ones.

    Raises:
        BenchError: a source is missing or named twice, or a folder holds no images.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(
                path
                for path in source.iterdir()
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            )
            if not inside:
                kinds = ", ".join(sorted(IMAGE_SUFFIXES))
                raise BenchError(f"{source}: the folder holds no images ({kinds})")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise BenchError(f"{source}: no such file or folder")
    for i, path in enumerate(found):
        if path.resolve() in {earlier.resolve() for earlier in found[:i]}:
            raise BenchError(f"{path}: is given twice")
    if not found:
        raise BenchError("no images: give image files, or folders of them")
    return found


def new_stages(name: str, profile: str) -> dict[str, list[str]]:
    """By the folder of its dvc.yaml: the stages that the profile's pipeline has for a concept."""
    folder = profile_folder(profile)
    stages = {}
    for path in (folder / "dvc.yaml", *sorted(folder.glob("cells/*/dvc.yaml"))):
        content = read_yaml(path)["stages"]
        names = [s for s, stage in content.items() if stage.get("foreach") == "${concepts}"]
        if names:
            stages[str(path)] = [f"{stage}@{name}" for stage in names]
    return stages


def _tell_stages(name: str, profile: str) -> None:
    stages = new_stages(name, profile)
    command = (
        "dvc repro" if profile == DEFAULT_PROFILE else f"dvc repro profiles/{profile}/dvc.yaml"
    )
    count = sum(len(names) for names in stages.values())
    print(f"`{command}` will run these {count} stages, and then the report:")
    for path, names in stages.items():
        print(f"  {path}: {' '.join(names)}")


def _write(path: Path, write: Callable[[Path], None], undo: ExitStack) -> None:
    """Writes a file or a folder that was not there, and has `undo` remove it."""
    with atomic(path) as temporary:
        write(temporary)
        undo.callback(_remove, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_concept(
    folder: Path, name: str, class_noun: str, caption: str, images: list[Image.Image]
) -> None:
    (folder / "images").mkdir(parents=True)
    digits = max(2, len(str(len(images) - 1)))
    for i, image in enumerate(images):
        (folder / "images" / f"{i:0{digits}d}.png").write_bytes(png_bytes(image))
    content = {
        "name": name,
        "class_noun": class_noun,
        "modifier_token": "<new1>",
        "caption": caption,
        "prompts": f"prompts/{name}.txt",
        "licence": "unknown",
        "source": "added with `bench concept add`",
    }
    _write_yaml(folder / "concept.yaml", content)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _grid_with(path: Path, name: str, class_noun: str) -> Any:
    """The grid with one more concept; comments, order and quotes stay."""
    grid = _yaml().load(path.read_text(encoding="utf-8"))
    grid["concepts"][name] = {"class_noun": class_noun}
    return grid


def _write_yaml(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        _yaml().dump(content, file)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml
