from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from pipeline.common import unfinished
from pipeline.common.failures import FailureError
from pipeline.common.files import png_bytes
from pipeline.common.unfinished import Unfinished
from pipeline.models.adapter import Adapter, Provenance, applied
from pipeline.models.base import Base
from pipeline.models.crossattn import key_value_names
from pipeline.sample import sampler
from pipeline.sample.requests import Request, caption_requests, prompt_requests
from pipeline.sample.sampler import sample, sample_all, sample_pngs
from pipeline.settings.profile import SamplerParams
from tests.pipeline.tiny import RARE_TOKENS, new_base

PARAMS = SamplerParams(steps=5, guidance_scale=6, eta=1, batch_size=4)


def random_adapter(base: Base) -> Adapter:
    """A change that is large enough to be seen."""
    g = torch.Generator().manual_seed(3)
    weights = dict(base.unet.named_parameters())
    deltas = {
        n: 0.5 * torch.randn(weights[n].shape, generator=g) for n in key_value_names(base.unet)
    }
    rows = {token: torch.randn(base.texts.width, generator=g) for token in ("<new1>", "<new2>")}
    ids = {"<new1>": RARE_TOKENS[0], "<new2>": RARE_TOKENS[1]}
    provenance = Provenance("m", "s", base.path, base.hash, ("<new1> cat", "<new2> dog"), ids)
    return Adapter(rows, deltas, provenance)


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def diffusers_images(base: Base, prompts: list[str], seeds: list[int]) -> np.ndarray:
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.texts.models[0],
        base.texts.tokenizer,
        base.unet,
        DDIMScheduler.from_config(base.scheduler.config),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pixels(
        pipeline(
            prompts,
            num_inference_steps=PARAMS.steps,
            guidance_scale=PARAMS.guidance_scale,
            eta=PARAMS.eta,
            generator=generators,
        ).images
    )


def test_images_are_those_of_diffusers_own_pipeline(base):
    prompts, seeds = ["photo of a cat", "a dog on the beach"], [1, 2]
    ours = pixels(sample(base, prompts, seeds, PARAMS))
    assert np.abs(ours - diffusers_images(base, prompts, seeds)).max() <= 1
    assert ours.std() > 5


def test_an_adapter_put_into_diffusers_by_hand_gives_the_same_images(base):
    """Weights written and tokens added as diffusers' users do, without `applied`."""
    adapter = random_adapter(base)
    prompts, seeds = ["photo of a <new1> cat and a <new2> dog"], [5]
    with applied(base, adapter):
        ours = pixels(sample(base, prompts, seeds, PARAMS))
    other = new_base()
    plain = diffusers_images(other, ["photo of a q cat and a x dog"], seeds)
    other.unet.load_state_dict(
        {
            name: value + adapter.deltas.get(name, 0)
            for name, value in other.unet.state_dict().items()
        }
    )
    other.texts.tokenizer.add_tokens(list(adapter.tokens))
    other.texts.models[0].resize_token_embeddings(len(other.texts.tokenizer), mean_resizing=False)
    table = other.texts.models[0].get_input_embeddings().weight
    with torch.no_grad():
        for token, row in adapter.tokens.items():
            table[other.texts.tokenizer.convert_tokens_to_ids(token)] = row
    theirs = diffusers_images(other, prompts, seeds)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - plain).max() > 20


def test_an_image_depends_neither_on_the_batch_nor_on_the_order(base):
    prompts, seeds = ["a cat", "a dog", "a red house", "a tree"], [11, 12, 13, 14]
    together = pixels(sample(base, prompts, seeds, PARAMS))
    alone = np.concatenate([pixels(sample(base, [p], [s], PARAMS)) for p, s in zip(prompts, seeds)])
    backwards = pixels(sample(base, prompts[::-1], seeds[::-1], PARAMS))[::-1]
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together - backwards).max() <= 1


def test_an_image_that_is_not_finite_is_refused_and_its_prompt_named(base):
    adapter = random_adapter(base)
    adapter.tokens["<new2>"].fill_(3e38)  # finite, but not what comes of it
    prompts = ["a <new1> cat", "a <new2> dog", "a tree"]
    with applied(base, adapter):
        with pytest.raises(FailureError, match="^the image of 'a <new2> dog' has values") as error:
            sample(base, prompts, [1, 2, 3], PARAMS)
        assert len(sample(base, prompts[::2], [1, 3], PARAMS)) == 2
    assert error.value.failure.kind == "diverged"


def test_seeds_are_the_same_for_every_method_and_differ_between_images():
    arguments = ("p", "cat", ("a {} in the snow", "a {} on the beach"))
    ours = prompt_requests(*arguments, ("<new1> cat",), ("cat",), 3)
    theirs = prompt_requests(*arguments, ("cat",), ("cat",), 3)
    assert [r.seed for r in ours] == [r.seed for r in theirs]
    assert len({r.seed for r in ours}) == len({r.key for r in ours}) == 6
    assert {r.record["scored_prompt"] for r in ours} == {"a cat in the snow", "a cat on the beach"}
    other = prompt_requests("q", *arguments[1:], ("cat",), ("cat",), 3)
    assert not {r.seed for r in ours} & {r.seed for r in other}
    joined = prompt_requests(
        "p", "cat+chair", ("a {0} and a {1}",), ("A", "B"), ("cat", "chair"), 1
    )
    assert joined[0].prompt == "a A and a B"
    captions = caption_requests("p", "cat", ["a cat", "a cat"], 2)
    assert len({r.seed for r in captions}) == 4


def test_stored_in_bfloat16_images_are_the_same_within_its_rounding():
    """All of them: through the text encoder, the UNet and the VAE. The weights are the same."""
    base = new_base()
    base.store(torch.bfloat16)
    made = {}
    for stored in (torch.bfloat16, torch.float32):
        base.store(stored)
        made[stored] = pixels(sample(base, ["a cat", "a dog"], [1, 2], PARAMS))
    exact, rounded = made[torch.float32], made[torch.bfloat16]
    error = np.sqrt(((exact - rounded) ** 2).mean())
    assert 0 < error < 0.1 * exact.std()


class Killed(BaseException):
    """As a signal, nothing catches it."""


def test_killed_sampling_goes_on_and_gives_the_same_bytes(base, tmp_path, monkeypatch):
    groups = [
        [Request(f"{name}-{i}", f"a {name}", i, {}) for i in range(count)]
        for name, count in (("cat", 5), ("dog", 3))
    ]
    params = SamplerParams(steps=2, guidance_scale=6, eta=1, batch_size=3)
    plain = [png_bytes(i) for group in groups for i in sample_all(base, group, params)]
    sizes: list[int] = []
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 0.0)

    def run(about: str, kill: int | None = None) -> list[bytes]:
        def spy(base, prompts, *more):
            if len(sizes) == kill:
                raise Killed
            sizes.append(len(prompts))
            return sample(base, prompts, *more)

        sizes.clear()
        monkeypatch.setattr(sampler, "sample", spy)
        return sample_pngs(base, groups, params, None, Unfinished(tmp_path, lambda: about))

    assert run("a") == plain
    assert sizes == [3, 2, 3]  # batches of different groups are apart
    with pytest.raises(Killed):
        run("b", 2)
    assert run("b") == plain
    assert sizes == [3]
    # Other content, and a damaged batch, are made again.
    assert run("c") == plain
    assert sizes == [3, 2, 3]
    first = sorted(tmp_path.glob("*/batch-0000.tar"))
    for path in first:
        path.write_bytes(path.read_bytes()[:700])
    assert run("c") == plain
    assert sizes == [3]
    monkeypatch.setattr(unfinished, "KEPT_EVERY", 60.0)
    monkeypatch.setattr(sampler, "_file", None)  # what is short has no use for a key
    tmp_path = tmp_path / "none"
    assert run("d") == plain
    assert not tmp_path.exists()


def test_an_error_of_writing_is_raised_before_the_batch_after_the_next(base, tmp_path, monkeypatch):
    requests = [Request(f"cat-{i}", "a cat", i, {}) for i in range(6)]
    params = SamplerParams(steps=1, guidance_scale=6, eta=0, batch_size=1)
    made: list[int] = []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished, "KEPT_EVERY", 0.0)
    monkeypatch.setattr(sampler, "write_tar", full)
    plain = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *a: made.append(1) or plain(*a))
    with pytest.raises(OSError, match="No space"):
        sample_pngs(base, [requests], params, None, Unfinished(tmp_path, lambda: "a"))
    assert len(made) == 2
