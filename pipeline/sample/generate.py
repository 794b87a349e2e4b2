"""Stage `generate`: the base model's own pictures of a class, as regularization images."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.common.failures import about
from pipeline.common.files import write_tar
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.common.unfinished import Unfinished
from pipeline.concepts.concept import load_concept
from pipeline.models.base import load_base, made_by
from pipeline.sample.requests import Request
from pipeline.sample.sampler import sample_pngs
from pipeline.settings.profile import load_params


def generate(concept: str, profile: str = DEFAULT_PROFILE) -> Path:
    """Writes images of "photo of a {class noun}" to `generated/<concept>.tar`.

    A concept with queries of its own gets images of these in turn. The paper's baselines use them
    (appendix E: 50 steps, guidance 6, 200 images). All trainings share those of the main seed.
    """
    started = time.perf_counter()
    params = load_params(profile)
    thing = load_concept(concept)
    prompts = thing.queries or (thing.caption.format(thing.class_noun),)
    requests = []
    for i in range(params.generate.images):
        prompt = prompts[i % len(prompts)]
        seed = seed_of(params.train.seeds[0], "generated", prompt, i)
        record: dict[str, str | int] = {"part": "generated", "prompt": prompt, "seed": seed}
        requests.append(Request(f"generated-{i:04d}", prompt, seed, record))
    base = load_base(params.base)
    path = params.runs() / "generated" / f"{concept}.tar"
    unfinished = Unfinished(
        params.unfinished("generate", path.with_suffix("")),
        lambda: (requests, params.generate, base.hash, *made_by(base)),
    )
    with unfinished.removed():
        with about(f"generated images of {concept}"):
            pngs = sample_pngs(base, [requests], params.generate, base, unfinished)
        write_tar(
            path,
            [
                {"__key__": r.key, "png": png, "txt": r.prompt, "json": r.record}
                for r, png in zip(requests, pngs)
            ],
        )
    seconds = time.perf_counter() - started
    more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
    print(f"generate: {len(pngs)} images of {prompts[0]!r}{more} in {seconds:.1f} s -> {path}")
    return path
