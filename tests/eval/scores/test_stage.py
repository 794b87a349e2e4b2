"""Scores of cells against open_clip used directly."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cleanfid.fid import fid_from_feats, kernel_distance
from PIL import Image
from ruamel.yaml import YAML

from eval.encoders.dino import dino_extractor
from eval.report.missing import missing_cells
from eval.report.stage import write_report
from eval.scores.file import COLUMNS
from eval.scores.reading import check_comparable, load_scores
from eval.scores.stage import score_cell, score_oracle
from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, read_tar, sha256, write_tar
from pipeline.settings.profile import load_params
from pipeline.settings.protocol import protocol_path
from tests.eval.encoders.test_extractors import dino_file

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
    ("subject", "target", "concept"),
    [("cat", 1, "cat"), ("cat+chair", 1, "cat"), ("cat+chair", 2, "chair")],
)
def test_image_alignment_is_the_mean_over_targets(
    profile: Path, clip: Clip, subject: str, target: int, concept: str
) -> None:
    scores, samples = cell(subject)
    targets = directly(clip, read_tar(RUNS / "shards" / f"{concept}.tar"))
    expected = (directly(clip, part(samples, "prompt")) @ targets.T).mean(1)
    rows = scores[scores["metric"] == "image_alignment"]
    found = rows.loc[rows["target"] == target, "value"].to_numpy()
    assert found == pytest.approx(expected, abs=1e-5)
    assert set(rows["target"]) == set(range(1, 2 + subject.count("+")))
    assert scores.loc[scores["metric"] != "image_alignment", "target"].isna().all()


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
    assert set(scores["protocol"]) == {"toyland-v2"}
    scales = scores.groupby("metric")["scale"].unique().map(list).to_dict()
    assert scales == {"text_alignment": [2.5], "image_alignment": [1.0], "kid": [1000.0]}
    of_texts = scores["metric"] == "text_alignment"
    assert set(scores.loc[of_texts, "text_rule"]) == {"class_noun"}
    assert scores.loc[~of_texts, "text_rule"].isna().all()
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


@pytest.mark.parametrize(
    ("column", "other", "said"),
    [
        ("protocol", "another", r"scores of different protocols .* another \(pretrained/chair\)"),
        ("extractor", "another", r"different extractors .*, as features of other .* another \(pre"),
        ("scale", 1, r"text-alignment of different scales .*: 2.5 \(\S+\) and 1.0 \(pretrained/c"),
        ("text_rule", "token", r"different text rules .* texts made .* token \(pretrained/chair\)"),
    ],
)
def test_unlike_scores_are_not_mixed(profile: Path, column: str, other: object, said: str) -> None:
    path = RUNS / "cells" / "pretrained" / "chair" / "scores.csv"
    scores = pd.read_csv(path, dtype=COLUMNS)
    scores[column] = other
    scores.to_csv(path, index=False)
    with pytest.raises(BenchError, match=said):
        load_scores("toyland")


@pytest.mark.parametrize("method", ["pretrained", "oracle"])
def test_scores_that_were_cut_off_anywhere(profile: Path, method: str) -> None:
    path = RUNS / "cells" / method / "chair" / "scores.csv"
    whole = path.read_bytes()
    load_scores("toyland")
    # After each line, and within one, the last included.
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")][:-1]
    for end in [*ends, 0, 5, len(whole) - 1, len(whole) - 3, *(i - 4 for i in ends[-3:])]:
        path.write_bytes(whole[:end])
        with pytest.raises(BenchError, match=rf"{method}/chair/scores\.csv: .*delete it and run"):
            load_scores("toyland")


def test_scores_without_the_column_of_targets_have_to_be_made_again(profile: Path) -> None:
    path = RUNS / "cells" / "custom_diffusion" / "cat+chair" / "scores.csv"
    pd.read_csv(path).drop(columns="target").to_csv(path, index=False)
    said = r"scores\.csv: scores of an earlier version, .* score it again: delete it and run `dvc"
    with pytest.raises(BenchError, match=said):
        load_scores("toyland")


def test_scores_of_another_cell_are_refused(profile: Path) -> None:
    cells = RUNS / "cells"
    shutil.copy(cells / "pretrained/cat/scores.csv", cells / "custom_diffusion/cat/scores.csv")
    with pytest.raises(BenchError, match="not the scores of custom_diffusion/cat: delete"):
        load_scores("toyland")


@pytest.mark.parametrize("other", ["custom_diffusion/chair", "pretrained/cat"])
def test_samples_of_another_cell_are_not_scored(profile: Path, other: str) -> None:
    cells, path = RUNS / "cells", RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar"
    shutil.copy(cells / other / "samples.tar", path)
    scores = path.with_name("scores.csv").read_bytes()
    said = r"cat/samples\.tar: sample caption-000-000 is of (method pretr|subject chair).*, not c"
    with pytest.raises(BenchError, match=said):
        score_cell("custom_diffusion", "cat", "toyland")
    assert path.with_name("scores.csv").read_bytes() == scores
    with pytest.raises(BenchError, match=r"cat/samples\.tar: sample .* is of"):
        write_report("toyland")


def test_samples_of_another_protocol_are_not_scored(profile: Path) -> None:
    path = RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar"
    samples = read_tar(path)
    for fields, said in (({"protocol": "other"}, "other"), ({"protocol": None}, r"\(none\)")):
        write_tar(path, [sample | {"json": sample["json"] | fields} for sample in samples])
        with pytest.raises(BenchError, match=f"is of protocol {said}, not toyland-v2"):
            score_cell("custom_diffusion", "cat", "toyland")


def test_targets_of_a_composition_are_of_one_metric(profile: Path) -> None:
    scores = load_scores("toyland")
    check_comparable(scores)
    scores.loc[scores["target"] == 2, "extractor"] = "another"
    with pytest.raises(BenchError, match="image-alignment of different extractors"):
        check_comparable(scores)


def with_protocol(**score: Any) -> None:
    """Changes how the profile's protocol measures."""
    path, yaml = protocol_path(load_params().protocol.name), YAML()
    content = yaml.load(path)
    content["score"] |= score
    yaml.dump(content, path)


def test_metrics_are_those_of_the_protocol(profile: Path, clip: Clip) -> None:
    path, _ = dino_file(profile)
    yaml = YAML()
    params = yaml.load(profile / "params.yaml")
    params["score"] = {"dino": path.name}
    yaml.dump(params, profile / "params.yaml")
    with_protocol(metrics=["dino_image_alignment", "fid"])
    for subject in ("cat", "cat+chair"):
        score_cell("custom_diffusion", subject, "toyland")
    scores, samples = cell("cat+chair")
    assert set(scores["metric"]) == {"dino_image_alignment"}
    dino = dino_extractor(str(path))
    generated = dino([s["png"] for s in part(samples, "prompt")])
    targets = dino([s["png"] for s in read_tar(RUNS / "shards" / "chair.tar")])
    found = scores[scores["target"] == 2]
    assert found["value"].to_numpy() == pytest.approx((generated @ targets.T).mean(1), abs=1e-5)
    assert set(scores["extractor"]) == {f"dino_vits16@{sha256(path)[:12]}"}

    scores, samples = cell("cat")
    assert set(scores["metric"]) == {"dino_image_alignment", "fid"}
    (row,) = scores[scores["metric"] == "fid"].to_dict("records")
    reals = directly(clip, read_tar(RUNS / "regularization" / "cat.tar"))
    fakes = directly(clip, part(samples, "caption"))
    expected = reals.shape[1] * fid_from_feats(reals, fakes)
    assert row["value"] == pytest.approx(expected, rel=1e-3)
    assert (row["n"], row["scale"]) == (len(fakes), 1)
    assert row["std_error"] > 0

    score_oracle("cat", "toyland")
    scores = pd.read_csv(RUNS / "cells" / "oracle" / "cat" / "scores.csv")
    assert list(scores["metric"]) == ["dino_image_alignment", "fid"]


def test_dino_needs_its_weights(profile: Path) -> None:
    with_protocol(metrics=["dino_image_alignment"])
    with pytest.raises(BenchError, match=r"score\.dino: nothing is not a file: download"):
        score_cell("custom_diffusion", "cat", "toyland")


def test_scale_and_prefix_are_those_of_the_protocol(profile: Path, clip: Clip) -> None:
    with_protocol(metrics=["text_alignment"], text_scale=1.0, text_prefix="picture of ")
    score_cell("custom_diffusion", "cat", "toyland")
    scores, samples = cell("cat")
    images = part(samples, "prompt")
    texts = clip.encode_texts(["picture of " + s["json"]["scored_prompt"] for s in images])
    expected = np.maximum((directly(clip, images) * texts).sum(1), 0)
    assert scores["value"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert set(scores["scale"]) == {1.0}
    assert set(scores["text_rule"]) == {'class_noun after "picture of"'}
    assert list(scores["prompt"]) == [s["json"]["scored_prompt"] for s in images]
    with pytest.raises(BenchError, match=r"of different scales cannot be compared"):
        load_scores("toyland")


def test_prompts_that_the_clip_cuts_are_counted_once(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar"
    samples = read_tar(path)
    for sample in part(samples, "prompt"):
        if sample["json"]["prompt_index"] < 2:
            sample["json"]["scored_prompt"] += " cat" * 40
    write_tar(path, samples)
    score_cell("custom_diffusion", "cat", "toyland")
    said = capsys.readouterr().out
    assert said.count("2 of 3 prompts are longer than the 32 tokens") == 1
    score_cell("custom_diffusion", "chair", "toyland")
    assert "longer" not in capsys.readouterr().out


def test_images_that_are_all_alike_have_scores(profile: Path) -> None:
    """As of a model that makes nothing but black images."""
    path = RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar"
    samples = read_tar(path)
    black = png_bytes(Image.new("RGB", (64, 64)))
    write_tar(path, [sample | {"png": black} for sample in samples])
    with_protocol(metrics=["text_alignment", "image_alignment", "kid", "fid"])
    score_cell("custom_diffusion", "cat", "toyland")
    scores, _ = cell("cat")
    assert np.isfinite(scores["value"]).all()
    assert scores[scores["metric"] == "image_alignment"]["value"].nunique() == 1


@pytest.mark.parametrize("count", [0, 1])
def test_sets_of_too_few_images_are_told(profile: Path, count: int) -> None:
    path = RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar"
    samples = read_tar(path)
    write_tar(path, part(samples, "prompt")[:count] + part(samples, "caption")[:count])
    said = "KID needs two images on either side, not 8 real and 1" if count else "no images of pro"
    with pytest.raises(BenchError, match=said):
        score_cell("custom_diffusion", "cat", "toyland")


def test_one_target_image_has_no_oracle(profile: Path) -> None:
    path = RUNS / "shards" / "cat.tar"
    write_tar(path, read_tar(path)[:1])
    score_oracle("cat", "toyland")
    scores = pd.read_csv(RUNS / "cells" / "oracle" / "cat" / "scores.csv")
    assert set(scores["metric"]) == {"text_alignment", "kid"}


def test_damaged_files_are_named(profile: Path) -> None:
    path = RUNS / "cells" / "pretrained" / "chair" / "scores.csv"
    for content in ("", "a,b\n1,2\n"):
        path.write_text(content)
        with pytest.raises(BenchError, match=r"chair/scores\.csv"):
            load_scores("toyland")


def test_scores_without_their_number_of_rows_are_refused(profile: Path) -> None:
    path = RUNS / "cells" / "custom_diffusion" / "cat" / "scores.csv"
    pd.read_csv(path).assign(rows=None).to_csv(path, index=False)
    with pytest.raises(BenchError, match=r"cat/scores\.csv: the file was cut off"):
        load_scores("toyland")
