"""`python -m benchmarks.speed`: training, sampling and merging, timed next to the usual way."""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import SIDES, record

# Heavy libraries are imported where they are used: the processes whose memory is measured begin
# with the memory of this one.
if TYPE_CHECKING:
    from pipeline.methods import TrainingSet
    from pipeline.models.adapter import Adapter
    from pipeline.models.base import Base

GOALS = {"training run": 1.5, "sampling": 1.5}  # times as fast as the other side, at least
MERGE_GOAL = 2.0  # seconds for two concepts
CONCEPT, METHOD = "cat", "custom_diffusion"
REGULARIZATION = 200
# The K and V matrices of Stable Diffusion v1: how many have how many rows; all have 768 columns.
MATRICES, COLUMNS = {320: 10, 640: 10, 1280: 12}, 768
MERGE_CAPTIONS, CAPTION_WORDS = 1000, 10

Results = dict[str, dict[str, float]]


def load(side: str) -> Base:
    """Toyland's base model, on the other side computing as usual."""
    import torch

    from pipeline.models.base import load_base
    from pipeline.settings.profile import load_params

    base = load_base(load_params().base, torch.device("cpu"))
    if side == "official":
        base.dtype = torch.float32
    return base


def training_set(side: int) -> TrainingSet:
    """The pictures of a concept, and drawn scenes with its class noun, as a shard holds them.

    Args:
        side: their width and height.
    """
    import numpy as np
    from PIL import Image

    from pipeline.concepts.concept import load_concept
    from pipeline.concepts.photos import read_photo, square
    from pipeline.methods import TrainingSet
    from pipeline.toyland.world.drawing import draw
    from pipeline.toyland.world.scenes import caption, random_scene, random_thing

    concept = load_concept(CONCEPT)
    images, captions = [], []
    for i in range(REGULARIZATION):
        rng = np.random.default_rng([11, i])
        scene = random_scene(rng, things=(random_thing(rng, concept.class_noun),))
        images.append(square(Image.fromarray(draw(scene)), side))
        captions.append(caption(scene, rng))
    targets = [square(read_photo(path), side) for path in concept.images]
    return TrainingSet(concept, targets, images, captions)


def train(side: str, base: Base, part: TrainingSet, steps: int) -> Adapter:
    """One whole run of Custom Diffusion, on either side."""
    from benchmarks import official
    from pipeline.methods import Trained, load_method
    from pipeline.models.adapter import Provenance
    from pipeline.settings.profile import load_params
    from pipeline.train import loop as training
    from pipeline.train.making import first_rows

    params, method = load_params(), load_method(METHOD).single
    seed = params.train.seeds[0]
    assert isinstance(method, Trained)
    rows, ids = first_rows(base, method, [part.concept], 0, params, seed)
    references = (f"<new1> {part.concept.class_noun}",)
    about = Provenance(METHOD, CONCEPT, base.path, base.hash, references, ids, seed=seed)
    train_through = {"ours": training, "official": official}[side].train_through
    hyper = params.methods[METHOD]
    return train_through(
        base, method, [part], references, rows, params.train, hyper, [steps], about
    )[-1]


@dataclass
class Stopwatch:
    """Seconds of each side's whole runs, its optimizer steps and its UNet's part of a step."""

    runs: list[float]
    steps: list[float]
    unet: list[float]


def compare_training(steps: int, repetitions: int) -> Results:
    """Whole runs, the time from one optimizer step to the next, and that of the UNet alone.

    Both sides need the UNet, which is the same: no run can be faster than its share.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from pipeline.settings.profile import load_params

    bases = {side: load(side) for side in SIDES}
    part, batch = training_set(bases["ours"].resolution), load_params().train.batch_size
    watches = {side: Stopwatch([], [], []) for side in SIDES}
    for repetition in range(repetitions + 1):
        for side in SIDES if repetition % 2 else SIDES[::-1]:
            stamps: list[float] = []
            hook = register_optimizer_step_post_hook(
                lambda *_, stamps=stamps: stamps.append(time.perf_counter())
            )
            start = time.perf_counter()
            train(side, bases[side], part, steps if repetition else 3)  # the first is a warm-up
            seconds = time.perf_counter() - start
            hook.remove()
            if repetition:
                with unet_of_a_step(bases[side], batch) as step:
                    watches[side].unet += [timed(step) for _ in range(10)]
                watches[side].runs.append(seconds)
                watches[side].steps += [b - a for a, b in zip(stamps, stamps[1:])]
    return {
        "UNet of a step": {s: statistics.median(w.unet) for s, w in watches.items()},
        "training step": {s: statistics.median(w.steps) for s, w in watches.items()},
        "training run": {s: statistics.median(w.runs) for s, w in watches.items()},
    }


@contextmanager
def unet_of_a_step(base: Base, batch: int) -> Iterator[Callable[[], object]]:
    """The UNet's part of a training step: its forward and backward pass on so many images."""
    import torch

    from pipeline.models.crossattn import key_value_names

    names = set(key_value_names(base.unet))
    trained = [w.requires_grad_(True) for n, w in base.unet.named_parameters() if n in names]
    noisy = torch.randn(batch, *base.latent_shape, device=base.device)
    condition = base.condition([""] * batch)
    text = condition.text.requires_grad_(True)

    def step() -> None:
        base.predict(noisy, 500, condition).sum().backward()
        for tensor in (*trained, text):
            tensor.grad = None

    try:
        yield step
    finally:
        base.unet.requires_grad_(False)


def compare_memory(steps: int) -> Results:
    """Peak memory of a run over that of the loaded model, in MB, each in a process of its own."""
    found = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.speed", "--memory", side, "--steps"]
        output = subprocess.run(
            [*command, str(steps)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        found[side] = float(output.split()[-1])
    return {"training memory": found}


def measure_memory(side: str, steps: int) -> float:
    """MB that a run takes at its peak, over what the process has before it."""
    base = load(side)
    part = training_set(base.resolution)
    with suppress(OSError):  # Linux: forget the peak so far
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(side, base, part, steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def compare_sampling(images: int, repetitions: int) -> Results:
    """One batch with the profile's steps, guidance and eta.

    Raises:
        AssertionError: the two sides do not make the same images in float32.
    """
    import numpy as np
    import torch

    from benchmarks import official
    from pipeline.concepts.concept import load_subject
    from pipeline.sample import sampler as sampling
    from pipeline.settings.profile import load_params

    params, bases = load_params().sampler(), {side: load(side) for side in SIDES}
    known = load_subject(CONCEPT).scored_prompts()
    prompts, seeds = [known[i % len(known)] for i in range(images)], list(range(images))
    makers = {"ours": sampling.sample, "official": official.sample}
    fast = bases["ours"].dtype
    bases["ours"].dtype = torch.float32  # both sides round alike
    made = {
        side: np.stack([np.asarray(i) for i in make(bases[side], prompts, seeds, params)])
        for side, make in makers.items()
    }
    difference = np.abs(made["ours"].astype(int) - made["official"]).max()
    assert difference <= 2, f"the images differ by {difference} of 255"
    bases["ours"].dtype = fast
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for repetition in range(repetitions):
        for side in SIDES if repetition % 2 else SIDES[::-1]:
            work = functools.partial(makers[side], bases[side], prompts, seeds, params)
            times[side].append(timed(work))
    return {"sampling": {side: statistics.median(values) for side, values in times.items()}}


def time_merging(repetitions: int) -> Results:
    """Merging two, three and five concepts at Stable Diffusion v1-4's sizes."""
    import torch

    from pipeline.train.merging import merger

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    regularization = random(MERGE_CAPTIONS * CAPTION_WORDS, COLUMNS)
    matrices = [random(rows, COLUMNS) for rows, count in MATRICES.items() for _ in range(count)]
    found: Results = {}
    for concepts in (2, 3, 5):
        # Words of the name and of the caption, the template's once; see `pipeline.train.merging`.
        constraints = random(6 * concepts + 3, COLUMNS)
        values = [random(len(constraints), len(matrix)) for matrix in matrices]

        def merge(constraints: torch.Tensor = constraints, values: list[Any] = values) -> None:
            prepared = merger(constraints, regularization, 1e-6)
            for matrix, goal in zip(matrices, values):
                prepared.merge(matrix, goal)

        merge()
        times = [timed(merge) for _ in range(repetitions)]
        found[f"merging {concepts} concepts"] = {"ours": statistics.median(times)}
    return found


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(results: Results) -> str:
    """The results as aligned lines, with ratios and goals."""
    lines = [f"{'':<20}{'ours':>10}{'official':>10}{'ratio':>8}  goal"]
    for name, sides in results.items():
        unit = "MB" if "memory" in name else "s "
        line = f"{name:<20}" + "".join(
            f"{sides[side]:>8.4g}{unit}" if side in sides else " " * 10 for side in SIDES
        )
        if "official" in sides:
            ratio = sides["official"] / max(sides["ours"], 1e-9)
            goal = GOALS.get(name)
            line += f"{ratio:>7.2f}x"
            line += f"  {goal}x: {'met' if ratio >= goal else 'missed'}" if goal else ""
        elif name == "merging 2 concepts":
            met = sides["ours"] <= MERGE_GOAL
            line += f"{'':>8}  {MERGE_GOAL} s: {'met' if met else 'missed'}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main() -> None:
    """Runs all comparisons, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--only", choices=("training", "memory", "sampling", "merging"))
    parser.add_argument("--steps", type=int, default=250, help="of each training run")
    parser.add_argument("--images", type=int, default=20, help="of each sampled batch")
    parser.add_argument("--repetitions", type=int, default=3, help="of each side")
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    if options.memory:
        print(measure_memory(options.memory, options.steps))
        return
    parts: dict[str, Callable[[], Results]] = {
        "memory": lambda: compare_memory(options.steps),  # before this process grows
        "training": lambda: compare_training(options.steps, options.repetitions),
        "sampling": lambda: compare_sampling(options.images, options.repetitions),
        "merging": lambda: time_merging(options.repetitions),
    }
    results: Results = {}
    for name, part in parts.items():
        if options.only in (None, name):
            results |= part()
    print(table(results))
    if options.json:
        settings = {name: getattr(options, name) for name in ("steps", "images", "repetitions")}
        options.json.write_text(record("speed", settings, results), encoding="utf-8")


if __name__ == "__main__":
    main()
