"""`python -m benchmarks.full_size`: training and sampling at Stable Diffusion v1-4's true size.

The weights are random: images are noise, but time and memory are those of the real model. Beside
them stands the arithmetic floor: the operations of the UNet and the VAE alone, counted, at the
speed that a large matrix product has on the same device. No program can be faster.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.speed import CONCEPT, METHOD, training_set, unet_of_a_step
from pipeline.methods import Trained, TrainingSet, load_method
from pipeline.models.adapter import Provenance
from pipeline.models.base import Base
from pipeline.sample.sampler import sample
from pipeline.settings.profile import MethodParams, SamplerParams, TrainParams, load_params
from pipeline.toyland.pretrain.denoiser import scheduler
from pipeline.train.loop import draw_schedule, train_through

# Any words will do; the embedding table has its true size.
WORDS, CONTEXT, VOCABULARY = "models/toyland/base/tokenizer", 77, 49408
PRODUCT = {"cuda": 8192, "cpu": 2048}  # rows and columns of the matrices that are multiplied


@dataclass(frozen=True)
class Measured:
    """What one kind of work took, and the least that it could have taken."""

    name: str
    seconds: float
    floor: float  # seconds
    peak: float  # GB

    def line(self) -> str:
        """A row of the table."""
        numbers = f"{self.seconds:>9.1f}{self.floor:>9.1f}{self.floor / self.seconds:>9.0%}"
        return f"{self.name:<34}{numbers}{self.peak:>9.1f}"


def random_base(device: torch.device, resolution: int) -> Base:
    """A model with the published one's layers and widths, and random weights."""
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(
            sample_size=resolution // 8,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=resolution,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=CONTEXT,
            )
        )
    for model in (unet, vae, text):
        model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    words = CLIPTokenizer.from_pretrained(WORDS, model_max_length=CONTEXT)
    return Base("random/v1-4-size", unet, vae, text, words, scheduler(), resolution, device)


def measure(
    base: Base, part: TrainingSet, train_params: TrainParams, steps: int, sampler: SamplerParams
) -> list[Measured]:
    """A run of Custom Diffusion, then a batch of images."""
    method = load_method(METHOD).single
    assert isinstance(method, Trained)
    rate = product_rate(base.device)
    token = "<new1>"
    about = Provenance(
        METHOD, CONCEPT, base.path, base.hash, (f"{token} {part.concept.class_noun}",)
    )
    rows, hyper = {token: base.embedding_row(0)}, MethodParams(learning_rate=1e-5)
    arguments = (base, method, [part], about.references, rows, train_params, hyper)
    train_through(*arguments, [1], about)  # the first step chooses algorithms
    seconds, peak = watched(base.device, lambda: train_through(*arguments, [steps], about))

    schedule = draw_schedule(
        method, [part], about.references, train_params, base.resolution, steps, about.seed
    )
    pictures = len({row.picture for rows in schedule for row in rows})
    with unet_of_a_step(base, train_params.batch_size) as step:
        operations = steps * count(step)
    image = torch.zeros(1, 3, base.resolution, base.resolution, device=base.device)
    operations += pictures * count(lambda: base.encode_images(image))
    name = f"training, {steps} steps of {train_params.batch_size}"
    results = [Measured(name, seconds, operations / rate, peak)]

    images = sampler.batch_size
    prompts, seeds = [f"photo of a {part.concept.class_noun}"] * images, list(range(images))
    one = sampler.model_copy(update={"steps": 1})
    sample(base, prompts, seeds, one)
    seconds, peak = watched(base.device, lambda: sample(base, prompts, seeds, sampler))
    latent = torch.zeros(1, *base.latent_shape, device=base.device)
    condition = base.condition([""])
    unet = count(lambda: base.predict(latent, 500, condition))
    operations = images * (2 * sampler.steps * unet + count(lambda: base.decode_latents(latent)))
    name = f"sampling, {images} images of {sampler.steps} steps"
    return [*results, Measured(name, seconds, operations / rate, peak)]


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


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--steps", type=int, default=250, help="of the training run")
    parser.add_argument("--resolution", type=int, default=512, help="pixels")
    parser.add_argument("--batch-size", type=int, default=8, help="of training and sampling")
    parser.add_argument("--sampling-steps", type=int, default=50)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    params = load_params("paper")
    sampler = params.sampler().model_copy(
        update={"steps": asked.sampling_steps, "batch_size": asked.batch_size}
    )
    train_params = params.train.model_copy(update={"batch_size": asked.batch_size})
    base, part = random_base(device, asked.resolution), training_set(asked.resolution)
    print(f"Stable Diffusion v1-4's size, {asked.resolution} pixels, {name}")
    print(f"{'':<34}{'seconds':>9}{'floor':>9}{'reached':>9}{'peak GB':>9}")
    for result in measure(base, part, train_params, asked.steps, sampler):
        print(result.line())


if __name__ == "__main__":
    main()
