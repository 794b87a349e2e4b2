"""Data sets in small, in the layouts in which others published them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"  # the real ones, where somebody has them


def draw(folder: Path, count: int = 2, seed: int = 0) -> None:
    """Pictures that differ from each other and from those of another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        values = np.random.default_rng([seed, i]).integers(0, 256, (22, 20 + i, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")


def rewrite(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def states(said: str) -> dict[str, str]:
    """By name, the second column of the table that was printed."""
    rows = said.split("\n\n", maxsplit=1)[0].splitlines()[1:]
    return {row.split()[0]: row.split()[1] for row in rows}


def item(folder: str, noun: str, prompts: str, token: int = 1, **other: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a <new{token}> {noun}",
        "class_prompt": noun,
        "instance_data_dir": f"./benchmark_dataset/{folder}",
        "class_data_dir": f"./regularization/{folder}",
        "prompt_filename": f"prompts/{prompts}.txt",
        **other,
    }


INDEX = """Classes

subject_name,class
teapot,teapot
cat2,cat
can,can

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""
CREDITS = """References

teapot:
(credit: https://unsplash.com/@someone)
00: https://unsplash.com/photos/1

cat2: Photos taken by an author
"""
