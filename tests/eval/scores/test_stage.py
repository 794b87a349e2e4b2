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
from eval.metrics.kid import kid, kid_by_caption
from eval.report.missing import missing_cells
from eval.results import load_results
from eval.scores.file import COLUMNS
from eval.scores.reading import check_comparable, load_scores
from eval.scores.stage import halves, score_cell, score_oracle
from eval.tables.building import by_subject, comparison
from pipeline.clip.openclip import Clip, load_clip
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, read_tar, sha256, write_tar
from pipeline.settings.profile import load_params
from pipeline.settings.protocol import protocol_path
from tests.eval.encoders.test_extractors import dino_file

RUNS = Path("runs/toyland")
RECORDS = Path("reports/cells")


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
    scores = pd.read_csv(RECORDS / method / subject / "scores.csv")
    return scores, read_tar(RUNS / "cells" / method / subject / "samples.tar")


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
    row, *without = scores[scores["metric"] == "kid"].to_dict("records")
    held_out = read_tar(RUNS / "regularization" / "cat.tar")
    reals = directly(clip, held_out)
    fakes = directly(clip, part(samples, "caption"))
    scale = np.sqrt(reals.shape[1])
    expected = 1000 * kernel_distance(scale * reals, scale * fakes, 1)
    assert row["value"] == pytest.approx(expected, abs=1e-3)
    captions = [sample["txt"] for sample in held_out]
    assert (row["n"], row["clusters"]) == (len(fakes), len(set(captions)))
    # A row for each caption, of what there is without its images.
    assert [one["prompt"] for one in without] == sorted(set(captions))
    values = np.array([one["value"] for one in without])
    for caption, value in zip(sorted(set(captions)), values):
        rest = np.array([text != caption for text in captions])
        expected = 1000 * kernel_distance(scale * reals[rest], scale * fakes[rest], 1)
        assert value == pytest.approx(expected, abs=1e-3)
    count = len(values)
    assert row["std_error"] == pytest.approx(np.sqrt((count - 1) * values.var()), rel=1e-4)


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
    assert scores.loc[of_sets, ["prompt_index", "sample"]].isna().all(axis=None)
    left_out = of_sets & scores["prompt"].notna()
    about_sets = scores[["std_error", "n", "clusters"]]
    assert about_sets[of_sets & ~left_out].notna().all(axis=None)
    assert about_sets[~of_sets | left_out].isna().all(axis=None)


def test_oracle_compares_real_images(profile: Path, clip: Clip) -> None:
    scores = pd.read_csv(RECORDS / "oracle" / "cat" / "scores.csv")
    targets = directly(clip, read_tar(RUNS / "shards" / "cat.tar"))
    pairs = targets @ targets.T
    expected = (pairs.sum() - len(pairs)) / (len(pairs) * (len(pairs) - 1))
    (row,) = scores[scores["metric"] == "image_alignment"].to_dict("records")
    assert (row["value"], row["n"]) == (pytest.approx(expected, abs=1e-5), len(targets))
    assert (scores["metric"] == "text_alignment").sum() == 12
    (row,) = scores[(scores["metric"] == "kid") & scores["prompt"].isna()].to_dict("records")
    pairs = len(halves(read_tar(RUNS / "regularization" / "cat.tar"), np.random.default_rng())[0])
    assert (row["n"], row["clusters"]) == (pairs, pairs)  # no caption has two pairs
    assert pairs >= 5
    assert row["std_error"] > 0


def real(caption: str, number: int) -> dict[str, Any]:
    return {"txt": caption, "json": {"number": number}}


def test_halves_of_real_images_share_their_captions() -> None:
    captions = [*"aaaaa", *"bb", *"ccc", "alone", "single", "odd"]
    reals = [real(caption, i) for i, caption in enumerate(captions)]
    first, second, labels = halves(reals, np.random.default_rng(0))
    assert sorted(labels) == ["a", "a", "alone / single", "b", "c"]
    for a, b, label in zip(first, second, labels):
        assert {a["txt"], b["txt"]} == {*label.split(" / ")}
    numbers = [sample["json"]["number"] for sample in (*first, *second)]
    assert len({*numbers}) == 10
    # By lot: each image is in either half.
    seen = {
        sample["json"]["number"]
        for seed in range(20)
        for sample in halves(reals, np.random.default_rng(seed))[0]
    }
    assert seen == {*numbers}


@pytest.mark.parametrize("captions", [[*"aaaaaabbbbbbccccddddeeffff"], [*"abcdefghijkl", *"zzzz"]])
def test_the_oracles_kid_is_zero_in_expectation(captions: list[str]) -> None:
    """Over lots, whatever the images are; once halves had different captions, and it never was."""
    rng = np.random.default_rng(len(captions))
    asked = {caption: rng.normal(size=6) for caption in captions}
    features = np.stack([asked[c] + 0.5 * rng.normal(size=6) for c in captions])
    reals = [real(caption, i) for i, caption in enumerate(captions)]

    def distance(first: list[dict], second: list[dict], labels: list[str]) -> float:
        x, y = ([features[s["json"]["number"]] for s in half] for half in (first, second))
        return kid_by_caption(np.stack(x), np.stack(y), labels).value

    found = [distance(*halves(reals, np.random.default_rng(seed))) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    # By every other caption it is far from zero.
    order = sorted(set(captions))
    side = np.array([order.index(c) % 2 for c in captions], bool)
    if len(order) < 10:
        labels = [np.array(captions)[s] for s in (side, ~side)]
        other = kid(features[side], features[~side], *labels)
        assert other.value > 5 * np.std(found)


def test_sets_of_few_captions_are_refused(profile: Path) -> None:
    for name in (RUNS / "regularization/cat.tar", RUNS / "cells/custom_diffusion/cat/samples.tar"):
        samples = read_tar(name)
        for sample in samples:
            if sample["json"]["part"] in ("held_out", "caption"):
                number = int(sample["__key__"].split("-")[1]) % 4
                sample |= {"txt": f"caption {number}"} if "txt" in sample else {}
                sample["json"] |= {"scored_prompt": f"caption {number}"}
        write_tar(name, samples)
    score_cell("custom_diffusion", "cat", "toyland")
    score_oracle("cat", "toyland")
    for method, images in (("custom_diffusion", 12), ("oracle", 4)):
        scores = pd.read_csv(RECORDS / method / "cat" / "scores.csv")
        (row,) = scores[scores["metric"] == "kid"].to_dict("records")
        assert np.isnan(row["value"])
        assert (row["n"], row["clusters"]) == (images, 4)
    results = load_results()
    assert ("custom_diffusion", "cat", "kid") not in results.found
    assert ("custom_diffusion", "chair", "kid") in results.found
    said = "KID × 10³ of cat is –, as it has only 4 distinct held-out captions of the 5 it needs"
    for table in (comparison(results), by_subject(results, "single")):
        assert said in table.notes
    assert said not in by_subject(results, "compositions").notes


def test_scoring_again_gives_the_same_bytes(profile: Path) -> None:
    path = RECORDS / "custom_diffusion" / "cat" / "scores.csv"
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
    assert missing_cells("toyland") == {}
    (RECORDS / "pretrained" / "chair" / "scores.csv").unlink()
    scores = load_scores("toyland")
    assert missing_cells("toyland") == {"pretrained": ["chair"]}


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
    path = RECORDS / "pretrained" / "chair" / "scores.csv"
    scores = pd.read_csv(path, dtype=COLUMNS)
    scores[column] = other
    scores.to_csv(path, index=False)
    with pytest.raises(BenchError, match=said):
        load_scores("toyland")


@pytest.mark.parametrize("method", ["pretrained", "oracle"])
def test_scores_that_were_cut_off_anywhere(profile: Path, method: str) -> None:
    path = RECORDS / method / "chair" / "scores.csv"
    whole = path.read_bytes()
    load_scores("toyland")
    # After each line, and within one, the last included.
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")][:-1]
    for end in [*ends, 0, 5, len(whole) - 1, len(whole) - 3, *(i - 4 for i in ends[-3:])]:
        path.write_bytes(whole[:end])
        with pytest.raises(BenchError, match=rf"{method}/chair/scores\.csv: .*delete it and run"):
            load_scores("toyland")


def test_scores_without_the_column_of_targets_have_to_be_made_again(profile: Path) -> None:
    path = RECORDS / "custom_diffusion" / "cat+chair" / "scores.csv"
    pd.read_csv(path).drop(columns="target").to_csv(path, index=False)
    said = r"scores\.csv: scores of an earlier version, .* score it again: delete it and run `dvc"
    with pytest.raises(BenchError, match=said):
        load_scores("toyland")


def test_scores_of_another_cell_are_refused(profile: Path) -> None:
    path = RECORDS / "custom_diffusion/cat/scores.csv"
    shutil.copy(RECORDS / "pretrained/cat/scores.csv", path)
    with pytest.raises(BenchError, match="not the scores of custom_diffusion/cat: delete"):
        load_scores("toyland")


@pytest.mark.parametrize("other", ["custom_diffusion/chair", "pretrained/cat"])
def test_samples_of_another_cell_are_not_scored(profile: Path, other: str) -> None:
    cells, path = RUNS / "cells", RUNS / "cells" / "custom_diffusion" / "cat" / "samples.tar"
    shutil.copy(cells / other / "samples.tar", path)
    record = RECORDS / "custom_diffusion" / "cat"
    before = {file: file.read_bytes() for file in record.iterdir()}
    said = r"cat/samples\.tar: sample caption-000-000 is of (method pretr|subject chair).*, not c"
    with pytest.raises(BenchError, match=said):
        score_cell("custom_diffusion", "cat", "toyland")
    assert {file: file.read_bytes() for file in record.iterdir()} == before


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
    (row,) = scores[(scores["metric"] == "fid") & scores["prompt"].isna()].to_dict("records")
    reals = directly(clip, read_tar(RUNS / "regularization" / "cat.tar"))
    fakes = directly(clip, part(samples, "caption"))
    expected = reals.shape[1] * fid_from_feats(reals, fakes)
    assert row["value"] == pytest.approx(expected, rel=1e-3)
    assert (row["n"], row["scale"]) == (len(fakes), 1)
    assert row["std_error"] > 0

    score_oracle("cat", "toyland")
    scores = pd.read_csv(RECORDS / "oracle" / "cat" / "scores.csv")
    assert list(scores.loc[scores["prompt"].isna(), "metric"]) == ["dino_image_alignment", "fid"]


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
    said = "KID needs two images on either side, not 12 real and 1" if count else "no images of pro"
    with pytest.raises(BenchError, match=said):
        score_cell("custom_diffusion", "cat", "toyland")


def test_one_target_image_has_no_oracle(profile: Path) -> None:
    path = RUNS / "shards" / "cat.tar"
    write_tar(path, read_tar(path)[:1])
    score_oracle("cat", "toyland")
    scores = pd.read_csv(RECORDS / "oracle" / "cat" / "scores.csv")
    assert set(scores["metric"]) == {"text_alignment", "kid"}


def test_damaged_files_are_named(profile: Path) -> None:
    path = RECORDS / "pretrained" / "chair" / "scores.csv"
    for content in ("", "a,b\n1,2\n"):
        path.write_text(content)
        with pytest.raises(BenchError, match=r"chair/scores\.csv"):
            load_scores("toyland")


def test_scores_without_their_number_of_rows_are_refused(profile: Path) -> None:
    path = RECORDS / "custom_diffusion" / "cat" / "scores.csv"
    pd.read_csv(path).assign(rows=None).to_csv(path, index=False)
    with pytest.raises(BenchError, match=r"cat/scores\.csv: the file was cut off"):
        load_scores("toyland")
