"""The pictures of Toyland's corpus: of its scenes those are drawn that a concept may get."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pipeline.common.files import atomic
from pipeline.corpus.candidates import load_candidates
from pipeline.settings.profile import load_params
from pipeline.toyland.world.corpus import captioned_scene, world_of
from pipeline.toyland.world.drawing import draw


def draw_pictures(concept: str, profile: str) -> None:
    """Draws the pictures that a concept may get, its candidates, to where their URLs say.

    Raises:
        BenchError: the profile has no drawn world, or the candidates are missing.
        FailureError: stage `retrieve` found too few.
    """
    started = time.perf_counter()
    params = load_params(profile)
    world = world_of(params)
    folder = params.runs() / "world"
    candidates = load_candidates(params, concept)
    urls = [one.url for some in candidates.values() for one in some]
    for url in tqdm(urls, "draw", leave=False):
        path = Path(url)
        scene, _ = captioned_scene(world.seed, path.parts[1], int(path.stem))
        with atomic(folder / path) as temporary:
            Image.fromarray(draw(scene)).save(temporary, "PNG")
    print(f"draw: {len(urls)} pictures in {time.perf_counter() - started:.0f} s: {folder}")
