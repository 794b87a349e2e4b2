"""Which learning rate suits a method: tried on concepts that no default table reports.

`python -m benchmarks.learning_rates custom_diffusion 5e-4 1e-3 2e-3 --concept teddybear`

The profile's corpus, index and shards must be there: `dvc repro` makes them. Prints text- and
image-alignment of each rate; the params files say which rate was taken.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from eval.features import clip_extractor
from eval.metrics.image_alignment import image_alignment
from eval.metrics.text_alignment import text_alignment
from pipeline.adapters import Provenance, applied
from pipeline.base import load_base
from pipeline.cells import trained
from pipeline.concepts import load_concept
from pipeline.files import png_bytes
from pipeline.methods import Trained, load_method
from pipeline.openclip import load_clip
from pipeline.params import load_params
from pipeline.sampling import prompt_requests, sample_all
from pipeline.training import load_training_set


def main() -> None:
    """Trains, samples and scores one adapter for each rate and concept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method")
    parser.add_argument("rates", type=float, nargs="+")
    parser.add_argument("--concept", action="append", required=True)
    parser.add_argument("--profile", default="toyland-full")
    parser.add_argument("--images-per-prompt", type=int, default=1)
    asked = parser.parse_args()

    params = load_params(asked.profile)
    how = load_method(asked.method).single
    if not isinstance(how, Trained):
        parser.error(f"{asked.method} does not train")
    base, clip = load_base(params.base), load_clip(params.protocol.score.clip)
    extract = clip_extractor(clip)
    print("rate        concept          text-alignment  image-alignment  seconds")
    for rate in asked.rates:
        products = []
        for name in asked.concept:
            concept = load_concept(name)
            part = load_training_set(concept, params.runs(), how)
            hyper = params.methods[asked.method].model_copy(update={"learning_rate": rate})
            about = Provenance(asked.method, name, base.path, base.hash, (concept.class_noun,))
            started = time.perf_counter()
            adapter = trained(base, how, [part], params, hyper, about)
            seconds = time.perf_counter() - started
            requests = prompt_requests(
                "learning-rates",
                name,
                concept.prompts,
                adapter.provenance.references,
                [concept.class_noun],
                asked.images_per_prompt,
            )
            with applied(base, adapter):
                images = sample_all(base, requests, params.sampler())
            features = extract([png_bytes(image) for image in images])
            texts = clip.encode_texts([str(r.record["scored_prompt"]) for r in requests])
            text = float(np.mean(text_alignment(features, texts).values))
            targets = extract([png_bytes(image) for image in part.targets])
            image = float(np.mean(image_alignment(features, targets).values))
            products.append(text * image)
            print(f"{rate:<11g} {name:<16} {text:14.3f} {image:16.3f} {seconds:8.1f}", flush=True)
        print(f"{rate:<11g} mean product     {np.mean(products):.3f}", flush=True)


if __name__ == "__main__":
    main()
