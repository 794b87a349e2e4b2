"""`python -m benchmarks.metrics`: KID, FID and the score of a cell, next to the usual way.

KID and FID stand next to clean-fid's functions, on features of the sizes that are usual for them. A
score stands next to the way of CustomConcept101's script: for text-alignment, and for every target
again, the CLIP is loaded and all generated images are read and encoded by a loader with eight
workers. Each side is checked to compute what the other does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cleanfid.fid import fid_from_feats, kernel_distance
from PIL import Image
from torch import Tensor

from benchmarks.speed import timed
from eval.encoders.cache import CACHE
from eval.metrics.fid import fid
from eval.metrics.kid import kid
from eval.scores.file import SCORES
from eval.scores.stage import score_cell
from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.files import png_bytes, write_tar
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import load_params
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import random_scene

GOALS = {"KID": 20.0, "FID": 20.0, "score": 5.0}  # times as fast as the other side, at least
WIDTH = 2048  # of Inception's features
METHOD = "custom_diffusion"
IMAGES = 100  # of a cell, as in CustomConcept101
WORKERS, BATCH = 8, 64  # of the script's loader
PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """What was timed: seconds of both sides."""

    name: str
    ours: float
    usual: float


def features(count: int, shift: float, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Features [count, WIDTH] as Inception's are: not negative, few directions that vary much."""
    rng = np.random.default_rng(seed)
    scales = 1 / np.sqrt(1 + np.arange(WIDTH))
    rows = np.maximum(0.4 + shift * scales + scales * rng.normal(size=(count, WIDTH)), 0)
    return rows.astype(np.float32)


def compare_kid(reals: int, generated: int, repetitions: int) -> Row:
    """The whole set and its error, next to a hundred subsets of a thousand without one."""
    x, y = features(reals, 0, 0), features(generated, 0.3, 1)
    of_x, of_y = np.arange(reals) // 2, np.arange(generated) // 2
    found, times = kid(x, y, of_x, of_y).value, []
    for _ in range(repetitions):
        times.append(timed(lambda: kid(x, y, of_x, of_y)))
    theirs: list[float] = []
    usual = timed(lambda: theirs.append(1000 * kernel_distance(x, y)))
    assert math.isclose(found, theirs[0], rel_tol=0.02), (found, theirs)
    return Row(f"KID, {reals} x {generated}", statistics.median(times), usual)


def compare_fid(reals: int, generated: int, repetitions: int) -> Row:
    """By singular values, with an error, next to the square root of a product of covariances."""
    x, y = features(reals, 0, 0), features(generated, 0.3, 1)
    of_x, of_y = np.arange(reals) // 2, np.arange(generated) // 2
    found = fid(x, y, of_x, of_y).value
    times = [timed(lambda: fid(x, y, of_x, of_y)) for _ in range(repetitions)]
    theirs: list[float] = []
    usual = timed(lambda: theirs.append(float(fid_from_feats(x, y))))
    assert math.isclose(found, theirs[0], abs_tol=1e-3), (found, theirs)
    return Row(f"FID, {reals} x {generated}", statistics.median(times), usual)


def compare_scores(subject: str, repetitions: int) -> list[Row]:
    """A cell of the default profile, scored for the first time and again."""
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        for name in ("params.yaml", "grid.yaml", "datasets", "models"):
            Path(name).symlink_to(PROJECT / name)
        cell = write_cell(subject)
        usual: list[float] = []
        first: list[float] = []
        again: list[float] = []
        found: list[dict[tuple[str, int], float]] = []
        for _ in range(repetitions):
            usual.append(timed(lambda: found.append(the_usual_way(cell))))
            for path in Path(CACHE).glob("*"):
                path.unlink()
            for times in (first, again):
                times.append(timed(lambda: score_cell(METHOD, subject, DEFAULT_PROFILE)))
            scores = pd.read_csv(load_params().cell(METHOD, subject) / SCORES)
            means = scores.fillna({"target": 0}).groupby(["metric", "target"])["value"].mean()
            for what, value in found[-1].items():
                assert math.isclose(value, means[what], abs_tol=1e-5), (what, value, means[what])
        middle = [statistics.median(times) for times in (first, again, usual)]
        targets = len(cell.targets)
        title = f"score, {IMAGES} images, {targets} target{'s' if targets > 1 else ''}"
        return [Row(title, middle[0], middle[2]), Row(f"{title}, again", middle[1], middle[2])]


@dataclass(frozen=True)
class Cell:
    """The files of a cell as the script reads them."""

    images: list[Path]
    prompts: list[str]
    targets: list[list[Path]]  # of each concept


def write_cell(subject: str) -> Cell:
    """Drawn samples and targets, as the tars that the stage reads and as files."""
    about, params = load_subject(subject), load_params()
    known = about.scored_prompts()
    samples, images, prompts = [], [], []
    for i in range(IMAGES):
        png = png_bytes(Image.fromarray(draw(random_scene(np.random.default_rng([21, i])))))
        prompts.append(known[i % len(known)])
        record = {"part": "prompt", "prompt_index": i % len(known), "sample": i // len(known)}
        record |= {"scored_prompt": prompts[-1], **params.identity(METHOD, subject)}
        samples.append({"__key__": f"prompt-{i:03d}", "png": png, "json": record})
        images.append(_written(Path("samples") / f"{i:03d}.png", png))
    write_tar(params.cell(METHOD, subject) / "samples.tar", samples)
    targets = []
    for concept in about.concepts:
        files = [path.read_bytes() for path in concept.images]
        path = params.runs() / "shards" / f"{concept.name}.tar"
        write_tar(path, [{"__key__": f"target-{i:03d}", "png": png} for i, png in enumerate(files)])
        targets.append(
            [_written(Path(concept.name) / f"{i:03d}.png", png) for i, png in enumerate(files)]
        )
    return Cell(images, prompts, targets)


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


class _Files(torch.utils.data.Dataset[Tensor]):
    """Images as the CLIP takes them."""

    def __init__(self, paths: Sequence[Path], clip: Clip) -> None:
        self.paths, self.clip = paths, clip

    def __getitem__(self, i: int) -> Tensor:
        return self.clip.preprocess(Image.open(self.paths[i]))

    def __len__(self) -> int:
        return len(self.paths)


def the_usual_way(cell: Cell) -> dict[tuple[str, int], float]:
    """The metrics of a cell, by name and target (0 without one).

    Everything is loaded and encoded again for each of them.
    """

    def encoded(clip: Clip, paths: Sequence[Path]) -> Tensor:
        loader = torch.utils.data.DataLoader(_Files(paths, clip), BATCH, num_workers=WORKERS)
        with torch.no_grad():
            rows = torch.cat([clip.model.encode_image(batch) for batch in loader])
        return rows / rows.norm(dim=1, keepdim=True)

    name = load_params().protocol.score.clip
    clip = load_clip(name)
    images = encoded(clip, cell.images)
    with torch.no_grad():
        texts = clip.model.encode_text(clip.tokenize(cell.prompts))
    texts = texts / texts.norm(dim=1, keepdim=True)
    found = {("text_alignment", 0): float(2.5 * (images * texts).sum(1).clamp(min=0).mean())}
    for number, paths in enumerate(cell.targets, 1):
        clip = load_clip(name)
        found["image_alignment", number] = float(
            (encoded(clip, cell.images) @ encoded(clip, paths).T).mean()
        )
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned lines, with ratios and goals."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}{'ours':>12}{'usual':>12}{'ratio':>9}  goal"]
    for row in rows:
        ratio, goal = row.usual / row.ours, GOALS[row.name.split(",")[0]]
        met = "met" if ratio >= goal else "missed"
        seconds = f"{row.ours:>10.4g} s{row.usual:>10.4g} s"
        lines.append(f"{row.name:<{width}}{seconds}{ratio:>8.1f}x  {goal:g}x: {met}")
    return "\n".join(lines)


def main() -> None:
    """Runs all comparisons, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--only", choices=("kid", "fid", "scores"))
    parser.add_argument("--repetitions", type=int, default=3, help="of our side")
    options = parser.parse_args()
    count = options.repetitions
    parts: dict[str, Callable[[], Sequence[Row]]] = {
        "kid": lambda: [compare_kid(1000, 1000, count)],
        "fid": lambda: [compare_fid(500, 1000, count)],
        "scores": lambda: [*compare_scores("cat", count), *compare_scores("cat+chair", count)],
    }
    rows = [row for name, part in parts.items() if options.only in (None, name) for row in part()]
    print(table(rows))
    if options.json:
        content = {row.name: {"ours": row.ours, "usual": row.usual} for row in rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
