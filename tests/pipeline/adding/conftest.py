"""Copies of published data sets as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.adding.copies import CREDITS, INDEX, draw, item, rewrite


@pytest.fixture
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CustomConcept101 in small, with its peculiarities; images of all but `pet_dog1`."""
    folder = tmp_path_factory.mktemp("copy") / "customconcept101"
    prompts = {
        "plushie": "photo of a {}. \n{} on a café table  \n\nA {} at sea.",
        "dog": "photo of a {}.\na {} in the snow",
        "sofa": "a {} by a window\n",
        "scene_pet": "photo of {0} and the {1}.\n"
        "A photo of {0} at dawn with {0} sleeping peacefully. ",
        "moongate": "photo of a moongate.",
    }
    (folder / "prompts").mkdir(parents=True)
    for name, text in prompts.items():
        (folder / "prompts" / f"{name}.txt").write_bytes(text.encode())
    singles = [
        item("plushie_dice", "dice plushie", "plushie", class_prompt="dice"),
        item(
            "wearable_sunglasses2",
            "sunglasses",
            "sofa",
            instance_prompt="photo of <new1> sunglasses",
        ),
        item("furniture_chair3", "chair", "sofa"),
        item("scene_barn", "barn", "sofa"),
        item("pet_dog1", "dog", "dog"),
    ]
    composed = {"prompt_filename_compose": "prompts/scene_pet.txt"}
    pairs = [
        [item("scene_barn", "barn", "sofa"), item("furniture_chair3", "sofa", "sofa", 2), composed],
        [item("scene_barn", "barn", "sofa"), item("pet_dog1", "dog", "dog", 2), composed],
    ]
    rewrite(folder / "dataset.json", singles)
    rewrite(folder / "dataset_multiconcept.json", pairs)
    for seed, name in enumerate(["plushie_dice", "wearable_sunglasses2", "scene_barn"]):
        draw(folder / "benchmark_dataset" / name, seed=seed)
    draw(folder / "benchmark_dataset" / "furniture_chair3", 3, seed=9)
    return folder


@pytest.fixture
def dreambooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of DreamBooth's data set; `can` has no images."""
    folder = tmp_path_factory.mktemp("dreambooth")
    (folder / "prompts_and_classes.txt").write_text(INDEX)
    (folder / "references_and_licenses.txt").write_text(CREDITS)
    draw(folder / "teapot", 3)
    draw(folder / "cat2", seed=1)
    return folder
