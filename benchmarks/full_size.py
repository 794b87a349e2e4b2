"""`python -m benchmarks.full_size`: training and sampling at a published model's true size.

The weights are random: images are noise, but time and memory are those of the real model. Beside
ours stand diffusers' example script (`script.py`, for v1-4: there is none for XL) and its pipeline,
in the same precision, and the arithmetic floor: the operations of the UNet and the VAE alone,
counted, at the speed that a large matrix product has on the same device. No program can be faster.
Then where a step's time goes, and from how many steps compiling pays.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import official, script
from benchmarks.results import machine, record
from benchmarks.sizes import SIZES, WIDTH, random_base
from benchmarks.speed import CONCEPT, METHOD, training_set, unet_of_a_step
from pipeline.methods import Trained, TrainingSet, load_method
from pipeline.models import compiling as compiling_module
from pipeline.models.adapter import Provenance
from pipeline.models.base import Base
from pipeline.sample.sampler import sample
from pipeline.settings.profile import MethodParams, SamplerParams, TrainParams, load_params
from pipeline.train.encoder import Encoder
from pipeline.train.loop import PICTURES_AT_ONCE, draw, draw_schedule, train_through

TOKEN = "<new1>"
REFERENCES = (f"{TOKEN} {CONCEPT}",)
PRODUCT = {"cuda": 8192, "cpu": 2048}  # rows and columns of the matrices that are multiplied


@dataclass(frozen=True)
class Measured:
    """What one kind of work took, and the least that it could have taken."""

    name: str
    seconds: float
    floor: float  # seconds
    peak: float  # GB
    official: float | None = None  # seconds of the other side
    official_peak: float | None = None  # GB

    def line(self) -> str:
        """A row of the table."""
        numbers = f"{self.seconds:>9.2f}{self.floor:>9.2f}{self.floor / self.seconds:>9.0%}"
        line = f"{self.name:<34}{numbers}{self.peak:>9.1f}"
        if self.official is not None:
            ratio = self.official / self.seconds
            line += f"{self.official:>11.2f}{self.official_peak or 0:>9.1f}{ratio:>8.2f}x"
        return line


HEADER = f"{'':<34}{'seconds':>9}{'floor':>9}{'reached':>9}{'peak GB':>9}{'official':>11}{'GB':>9}"


def measure(
    base: Base, part: TrainingSet, train_params: TrainParams, steps: int, sampler: SamplerParams
) -> list[Measured]:
    """A run of Custom Diffusion, then a batch of images, on both sides."""
    rate = product_rate(base.device)
    trained = trainer(base, part, train_params)
    trained(1)  # the first step chooses algorithms
    seconds, peak = watched(base.device, lambda: trained(steps))
    other, other_peak = None, None
    if not base.texts.pooled:
        script.train(base, part, train_params, 1)
        other, other_peak = watched(
            base.device, lambda: script.train(base, part, train_params, steps)
        )
    method = load_method(METHOD).single
    assert isinstance(method, Trained)
    schedule = draw_schedule(
        method, [part], REFERENCES, train_params, base.resolution, steps, seed=0
    )
    pictures = len({row.picture for rows in schedule for row in rows})
    with unet_of_a_step(base, train_params.batch_size) as step:
        operations = steps * count(step)
    image = torch.zeros(1, 3, base.resolution, base.resolution, device=base.device)
    operations += pictures * count(lambda: base.encode_images(image))
    name = f"training, {steps} steps of {train_params.batch_size}"
    results = [Measured(name, seconds, operations / rate, peak, other, other_peak)]

    images = sampler.batch_size
    prompts, seeds = [f"photo of a {part.concept.class_noun}"] * images, list(range(images))
    one = sampler.model_copy(update={"steps": 1})
    times = []
    for side in (sample, official.sample):
        side(base, prompts, seeds, one)
        times.append(watched(base.device, partial(side, base, prompts, seeds, sampler)))
    latent = torch.zeros(1, *base.latent_shape, device=base.device)
    condition = base.condition([""])
    with torch.no_grad():
        unet = count(lambda: base.predict(latent, 500, condition))
        decoding = count(lambda: base.decode_latents(latent))
    operations = images * (2 * sampler.steps * unet + decoding)
    name = f"sampling, {images} images of {sampler.steps} steps"
    (seconds, peak), (other, other_peak) = times
    return [*results, Measured(name, seconds, operations / rate, peak, other, other_peak)]


def trainer(base: Base, part: TrainingSet, params: TrainParams) -> Callable[[int], object]:
    """What trains so many steps, as stage `train` does."""
    method = load_method(METHOD).single
    assert isinstance(method, Trained)
    about = Provenance(METHOD, CONCEPT, base.path, base.hash, REFERENCES)
    rows, hyper = {TOKEN: base.texts.embedding_row(0)}, MethodParams(learning_rate=1e-5)
    return lambda steps: train_through(
        base, method, [part], REFERENCES, rows, params, hyper, [steps], about
    )


def parts_of_a_step(base: Base, part: TrainingSet, params: TrainParams) -> dict[str, float]:
    """Seconds that parts of a step of training take by themselves.

    Some overlap in training: rendering is done by threads meanwhile.
    """
    method = load_method(METHOD).single
    assert isinstance(method, Trained)
    schedule = draw_schedule(method, [part], REFERENCES, params, base.resolution, 20, seed=0)
    encode = Encoder(base, [part], schedule, PICTURES_AT_ONCE)
    groups = {step: len(pictures) for step, pictures in encode.groups.items()}
    shown = sum(groups.values()) / len(schedule)  # pictures of a step that are new
    first = max(groups, key=lambda step: groups[step])
    images = torch.zeros(groups[first], 3, base.resolution, base.resolution, device=base.device)
    captions = part.captions[: params.batch_size // 2]  # as many as targets' own
    generator = torch.Generator().manual_seed(0)
    weights = [base.unet.get_parameter(name) for name in method.weights(base.unet)]
    masters = [weight.detach().float() for weight in weights]
    for master in masters:
        master.grad = torch.zeros_like(master)
    adam = torch.optim.AdamW(masters, fused=True if base.device.type == "cuda" else None)

    def each(work: Callable[[], object], share: float = 1.0) -> float:
        work()
        return share * min(watched(base.device, work)[0] for _ in range(3))

    with unet_of_a_step(base, params.batch_size) as unet, torch.no_grad():
        found = {
            "rendering (a thread)": each(lambda: encode.rendered(first), shown / groups[first]),
            "draws (a thread)": each(lambda: draw(base, params.batch_size, generator)),
            "VAE": each(lambda: base.encode_images(images), shown / groups[first]),
            "text of the targets, forward": each(lambda: base.condition(captions)),
            "AdamW": each(adam.step),
        }
        with torch.enable_grad():
            found["UNet, forward and backward"] = each(unet)
    return found


def compiling(train: Callable[[int], object], steps: int, device: torch.device) -> str:
    """From how many steps compiling pays, in words; tries it whatever the device."""
    plain = watched(device, lambda: train(steps))[0]
    with mock.patch.object(compiling_module, "pays", lambda *_: True):
        first = watched(device, lambda: train(steps))[0]
        again = watched(device, lambda: train(steps))[0]
    saved = (plain - again) / steps
    said = f"compiling: {max(first - again, 0):.1f} s, then {1000 * saved:.1f} ms less a step"
    return f"{said}: pays from {(first - again) / saved:.0f} steps" if saved > 0 else said


def watched(device: torch.device, work: Callable[[], object]) -> tuple[float, float]:
    """The seconds that it takes, and the GB that are taken at most: a GPU's, or the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated() / 1e9
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def count(work: Callable[[], object]) -> int:
    """Floating-point operations of its matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def product_rate(device: torch.device) -> float:
    """Operations a second of a large matrix product, in bfloat16 on a GPU as in training."""
    side = PRODUCT[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(side, side, device=device, dtype=kind)
    seconds = min(watched(device, lambda: matrix @ matrix)[0] for _ in range(10))
    return 2 * side**3 / seconds


def _sides(ours: float, other: float | None) -> dict[str, float]:
    return {"ours": ours} if other is None else {"ours": ours, "official": other}


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--steps", type=int, default=250, help="of the training run")
    parser.add_argument("--model", choices=SIZES, default="v1-4", help="whose size")
    parser.add_argument("--resolution", type=int, help="pixels; the published model's if absent")
    parser.add_argument("--batch-size", type=int, default=8, help="of training and sampling")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--width", type=int, default=WIDTH, help="channels; 320 is the true size")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--micro-batch-size", type=int, default=None)
    parser.add_argument("--compiling", action="store_true", help="also measure whether it pays")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    params = load_params("paper")
    sampler = params.sampler().model_copy(
        update={"steps": asked.sampling_steps, "batch_size": asked.batch_size}
    )
    memory = ("batch_size", "gradient_checkpointing", "micro_batch_size")
    train_params = params.train.model_copy(update={name: getattr(asked, name) for name in memory})
    size = SIZES[asked.model]
    base = random_base(size, device, asked.resolution, asked.width)
    part = training_set(base.resolution)
    wide = "size" if asked.width == WIDTH else f"layout, {asked.width} wide"
    print(f"{size.title}'s {wide}, {base.resolution} pixels, {base.stored}, {machine()}")
    print(HEADER)
    results = measure(base, part, train_params, asked.steps, sampler)
    for result in results:
        print(result.line())
    print("\nmilliseconds of a training step, each part by itself")
    parts = parts_of_a_step(base, part, train_params)
    for name, seconds in parts.items():
        print(f"{name:<34}{1000 * seconds:>9.2f}")
    if asked.compiling:
        print(compiling(trainer(base, part, train_params), asked.steps, device))
    if asked.json:
        found = {r.name: _sides(r.seconds, r.official) for r in results}
        found |= {f"GB of {r.name}": _sides(r.peak, r.official_peak) for r in results}
        found |= {f"of a step: {name}": {"ours": seconds} for name, seconds in parts.items()}
        settings = {name: value for name, value in vars(asked).items() if name != "json"}
        asked.json.write_text(record("full_size", settings, found), encoding="utf-8")


if __name__ == "__main__":
    main()
