"""Guidance scale, steps and eta by trial: what the base model draws, and how long it takes.

The prompts are those of the base model's scorecard ("photo of a red chair on the beach", "photo of
a red chair and a blue vase"), which no protocol has. Text-alignment is the profile's; whether the
right things are seen is told by Toyland's judge. All settings start from the same noise.
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from eval.analyses.common import Judge, folder_of, picture_table, write_results
from eval.analyses.sampler import Parameters
from eval.statistics import mean_over
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.models.base import load_base
from pipeline.settings.profile import SamplerParams, load_params
from pipeline.toyland.pretrain.autoencoder import to_tensor
from pipeline.toyland.pretrain.judge import hits, load_judge
from pipeline.toyland.pretrain.prompts import pair_prompts, single_prompts
from pipeline.toyland.pretrain.scorecard import MODELS, generate

SHOWN = 8  # pictures of each setting in the sheet, half of them pairs


def analyse_sampler(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `settings.csv`, a row for each, and a sheet of pictures.

    Raises:
        BenchError: the profile does not run it, or a model is missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    base, scorer, judge = load_base(params.base), Judge(params), load_judge(MODELS / "judge")
    wanted = [*single_prompts(about.singles), *pair_prompts(about.pairs)]
    prompts, scenes = [w.prompt for w in wanted], [w.scene for w in wanted]
    single = np.array([len(scene.things) == 1 for scene in scenes])
    shown = [*range(SHOWN // 2), *range(about.singles, about.singles + SHOWN // 2)]
    rows, sheet = [], {}
    for guidance, steps, eta in product(about.guidance_scales, about.steps, about.etas):
        setting = SamplerParams(
            steps=steps, guidance_scale=guidance, eta=eta, batch_size=params.sample.batch_size
        )
        started = time.process_time()
        pixels = generate(base, wanted, setting)
        seconds = (time.process_time() - started) / len(wanted)
        images = [Image.fromarray(p) for p in pixels]
        texts = scorer.text_alignment(images, prompts)
        seen = hits(judge, to_tensor(np.stack(pixels), base.device), scenes)
        seen["background"] = seen["background"][single]  # prompts of pairs name none
        alone, pairs = mean_over(texts[single]), mean_over(texts[~single])
        row = {
            "guidance_scale": guidance,
            "steps": steps,
            "eta": eta,
            "text_alignment": alone.mean,
            "text_alignment_se": alone.std_error,
            "text_alignment_pairs": pairs.mean,
            "text_alignment_pairs_se": pairs.std_error,
            **{name: float(right.mean()) for name, right in seen.items()},
            "cpu_seconds_per_image": seconds,
        }
        rows.append(row)
        print("sampler: " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
        sheet[f"{guidance:g}, {steps} steps, eta {eta:g}"] = [
            images[i] for i in shown if i < len(images)
        ]
    figure = picture_table(sheet, size=0.45)
    return write_results(
        folder_of(params, "sampler"), {"settings": pd.DataFrame(rows)}, {"pictures": figure}
    )
