from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.analyses.common import Judge, by_prompt, requests_of, summary
from eval.analyses.compression.stage import analyse_compression, saved_bytes
from eval.papers.claims import CLAIMS, check_claims
from eval.results import Results
from eval.scores.reading import load_scores
from pipeline.concepts.concept import load_subject
from pipeline.exchange.compression import compress
from pipeline.models.adapter import applied
from pipeline.models.base import Base
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import load_grid, load_params
from tests.eval.analyses.conftest import Adapt, Configure


def test_images_become_prompts() -> None:
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(2, 6))
    prompts = [0, 0, 1, 1, 2, 2]
    images = pd.DataFrame({"subject": "s", "prompt_index": prompts})
    found = by_prompt(images.assign(text_alignment=text, image_alignment=image))
    for name, values in (("text_alignment", text), ("image_alignment", image)):
        rows = found[found["metric"] == name].sort_values("prompt_index")
        assert rows["value"].to_numpy() == pytest.approx(values.reshape(3, 2).mean(1))


@pytest.mark.parametrize("subjects", [1, 3])
def test_errors_are_over_subjects_or_the_prompts_of_the_only_one(subjects: int) -> None:
    values = np.random.default_rng(1).normal(size=(subjects, 5))
    rows = [
        {"method": "m", "share": 1, "subject": s, "prompt_index": p, "metric": metric, "value": x}
        for (s, p), x in np.ndenumerate(values)
        for metric in ("text_alignment", "image_alignment")
    ]
    (found,) = summary(pd.DataFrame(rows), ["method"], "share").to_dict("records")
    assert found["text_alignment"] == pytest.approx(values.mean())
    expected = stats.sem(values.mean(1) if subjects > 1 else values[0])
    assert found["image_alignment_se"] == pytest.approx(expected)


def test_stage(configure: Configure, adapt: Adapt, base: Base) -> None:
    configure(compression={"concepts": ["cat"], "shares": [1, 0.6, 0]})
    adapter = adapt("custom_diffusion", "cat")
    folder = analyse_compression()
    table = pd.read_csv(folder / "compression.csv").set_index("share")
    cell = "runs/toyland/cells/custom_diffusion/cat/adapter.safetensors"
    with open(cell, "rb") as file:
        assert table.loc[1, "bytes"] == len(file.read()) == saved_bytes(adapter)
    assert table.loc[0, "parameters"] == adapter.tokens["<new1>"].numel()
    assert table.loc[1, "bytes"] > table.loc[0.6, "bytes"] > table.loc[0, "bytes"]

    params, subject = load_params(), load_subject("cat")
    requests = requests_of(params, subject, adapter.provenance.references, 1)
    with applied(base, compress(adapter, 0.6)):
        images = sample_all(base, requests, params.sampler())
    expected = Judge(params).image_alignment(images, "cat")
    assert table.loc[0.6, "image_alignment"] == pytest.approx(expected.mean(), abs=1e-5)
    assert (folder / "compression.png").is_file()

    results = Results(load_scores("toyland"), load_grid(), params.protocol)
    names = [claim.name for claim in CLAIMS]
    number = names.index("60 % is enough: image-alignment")
    here = check_claims(results).here[number].difference
    prompts = pd.read_csv(folder / "prompts.csv").query("metric == 'image_alignment'")
    prompts = prompts.pivot(index="prompt_index", columns="share", values="value")
    assert here is not None
    assert here.mean == pytest.approx((prompts[0.6] - prompts[1]).mean())
    assert here.std_error == pytest.approx(stats.sem(prompts[0.6] - prompts[1]))
    assert here.clusters == len(prompts) == 20
