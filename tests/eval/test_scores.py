"""Scores of cells against open_clip used directly."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cleanfid.fid import kernel_distance
from PIL import Image

from eval.scores import COLUMNS, load_scores, missing_cells, score_cell, score_oracle
from pipeline.errors import BenchError
from pipeline.files import read_tar, write_tar
from pipeline.openclip import Clip, load_clip

RUNS = Path("runs/toyland")


@pytest.fixture(scope="module")
def clip(scored: Path) -> Clip:
    return load_clip(str(scored / "models" / "scorer"))


def directly(clip: Clip, samples: list[dict]) -> np.ndarray:
    """Features in double precision, one image at a time."""
    rows = []
    for sample in samples:
        image = clip.preprocess(Image.open(io.BytesIO(sample["png"])).convert("RGB"))
        with torch.no_grad():
            row = clip.model.encode_image(image[None]).double()[0].numpy()
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


def cell(subject: str, method: str = "custom_diffusion") -> tuple[pd.DataFrame, list[dict]]:
    folder = RUNS / "cells" / method / subject
    return pd.read_csv(folder / "scores.csv"), read_tar(folder / "samples.tar")


def part(samples: list[dict], name: str) -> list[dict]:
    return [s for s in samples if s["json"]["part"] == name]


def test_text_alignment_is_that_of_the_prompt_without_modifier_tokens(
    profile: Path, clip: Clip
) -> None:
    scores, samples = cell("cat")
    rows = scores[scores["metric"] == "text_alignment"]
    images = part(samples, "prompt")
    with torch.no_grad():
        tokens = clip.tokenize([s["json"]["scored_prompt"] for s in images])
        texts = clip.model.encode_text(tokens, normalize=True).double().numpy()
    expected = 2.5 * np.maximum((directly(clip, images) * texts).sum(1), 0)
    assert rows["value"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert list(rows["prompt"]) == [s["json"]["scored_prompt"] for s in images]
    assert not rows["prompt"].str.contains("<new1>").any()
    assert list(rows["sample"]) == [0, 1] * 3


@pytest.mark.parametrize(
    ("subject", "metric", "concept"),
    [
        ("cat", "image_alignment", "cat"),
        ("cat+chair", "image_alignment_1", "cat"),
        ("cat+chair", "image_alignment_2", "chair"),
    ],
)
def test_image_alignment_is_the_mean_over_targets(
    profile: Path, clip: Clip, subject: str, metric: str, concept: str
) -> None:
    scores, samples = cell(subject)
    targets = directly(clip, read_tar(RUNS / "shards" / f"{concept}.tar"))
    expected = (directly(clip, part(samples, "prompt")) @ targets.T).mean(1)
    found = scores.loc[scores["metric"] == metric, "value"].to_numpy()
    assert found == pytest.approx(expected, abs=1e-5)


def test_kid_is_that_of_clean_fid_on_the_held_out_images(profile: Path, clip: Clip) -> None:
    scores, samples = cell("cat")
    (row,) = scores[scores["metric"] == "kid"].to_dict("records")
    reals = directly(clip, read_tar(RUNS / "regularization" / "cat.tar"))
    fakes = directly(clip, part(samples, "caption"))
    scale = np.sqrt(reals.shape[1])
    expected = 1000 * kernel_distance(scale * reals, scale * fakes, 1)
    assert row["value"] == pytest.approx(expected, abs=1e-3)
    assert row["n"] == len(fakes)
    assert row["std_error"] > 0


def test_files_hold_the_documented_columns(profile: Path, clip: Clip) -> None:
    scores, _ = cell("cat")
    assert list(scores) == list(COLUMNS)
    assert set(scores["extractor"]) == {clip.identity}
    assert set(scores["protocol"]) == {"toyland-v1"}
    of_sets = scores["metric"] == "kid"
    assert scores.loc[of_sets, ["prompt_index", "prompt", "sample"]].isna().all(axis=None)
    assert scores.loc[~of_sets, ["std_error", "n"]].isna().all(axis=None)


def test_oracle_compares_real_images(profile: Path, clip: Clip) -> None:
    scores = pd.read_csv(RUNS / "cells" / "oracle" / "cat" / "scores.csv")
    targets = directly(clip, read_tar(RUNS / "shards" / "cat.tar"))
    pairs = targets @ targets.T
    expected = (pairs.sum() - len(pairs)) / (len(pairs) * (len(pairs) - 1))
    (row,) = scores[scores["metric"] == "image_alignment"].to_dict("records")
    assert (row["value"], row["n"]) == (pytest.approx(expected, abs=1e-5), len(targets))
    assert (scores["metric"] == "text_alignment").sum() == 8
    assert (scores["metric"] == "kid").sum() == 1


def test_scoring_again_gives_the_same_bytes(profile: Path) -> None:
    path = RUNS / "cells" / "custom_diffusion" / "cat" / "scores.csv"
    before = path.read_bytes()
    path.unlink()
    score_cell("custom_diffusion", "cat", "toyland")
    assert path.read_bytes() == before


def test_captions_have_to_be_those_of_the_held_out_images(profile: Path) -> None:
    path = RUNS / "regularization" / "cat.tar"
    write_tar(path, [s | {"txt": "another caption"} for s in read_tar(path)])
    with pytest.raises(BenchError, match="captions"):
        score_cell("custom_diffusion", "cat", "toyland")


def test_missing_inputs_are_told(profile: Path) -> None:
    (RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar").unlink()
    with pytest.raises(BenchError, match=r"samples\.tar"):
        score_cell("custom_diffusion", "cat", "toyland")
    (RUNS / "shards" / "cat.tar").unlink()
    with pytest.raises(BenchError, match=r"shards/cat\.tar"):
        score_oracle("cat", "toyland")


def test_all_scores_of_the_grid_are_read_in_its_order(profile: Path) -> None:
    scores = load_scores("toyland")
    assert list(scores["method"].unique()) == [
        "oracle", "pretrained", "custom_diffusion", "custom_diffusion_merge",
    ]  # fmt: skip
    assert missing_cells("toyland", scores) == {}
    (RUNS / "cells" / "pretrained" / "chair" / "scores.csv").unlink()
    scores = load_scores("toyland")
    assert missing_cells("toyland", scores) == {"pretrained": ["chair"]}


@pytest.mark.parametrize("column", ["protocol", "extractor"])
def test_unlike_scores_are_not_mixed(profile: Path, column: str) -> None:
    path = RUNS / "cells" / "pretrained" / "chair" / "scores.csv"
    scores = pd.read_csv(path, dtype=COLUMNS)
    scores[column] = "another"
    scores.to_csv(path, index=False)
    with pytest.raises(BenchError, match=rf"different {column}s .* another \(pretrained/chair\)"):
        load_scores("toyland")


def test_damaged_files_are_named(profile: Path) -> None:
    path = RUNS / "cells" / "pretrained" / "chair" / "scores.csv"
    for content in ("", "a,b\n1,2\n"):
        path.write_text(content)
        with pytest.raises(BenchError, match=r"chair/scores\.csv"):
            load_scores("toyland")
