"""Identity from samples and galleries to tables; and whether it sees what drawn truth says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from eval.continual import SequenceResults
from eval.encoders.clip import clip_extractor
from eval.encoders.extractor import Extractor
from eval.encoders.windows import MIDDLE, by_window, windows_extractor
from eval.metrics.identity import Gallery, average_precision, average_precision_by_chance, top1
from eval.papers.claims import margin
from eval.report.maps import heat_maps
from eval.report.printing import print_table
from eval.report.prompts import of_images, prompt_lines
from eval.report.stage import write_report
from eval.results import load_results
from eval.tables.building import by_prompt, by_subject, comparison, differences
from eval.tables.rendering import as_csv
from pipeline.clip.openclip import load_clip
from pipeline.common.files import read_tar
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import Thing, random_scene, random_thing
from tests.eval.conftest import IDENTITY_METRICS, Score
from tests.eval.read import read_csv
from tests.eval.synthetic import PROJECT

RUNS = Path("runs/toyland")


def seen(pngs: list[bytes]) -> np.ndarray:
    """Features [n, 9, d] of the nine windows of 40 x 40 pixels of images of 64 x 64."""
    clip = load_clip("models/scorer")
    rows = []
    for png in pngs:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        parts = [pixels[y : y + 40, x : x + 40] for y in (0, 12, 24) for x in (0, 12, 24)]
        rows.append(clip.encode_images([Image.fromarray(part) for part in parts]).astype(float))
    return np.stack(rows)


def test_rows_are_those_of_scikit_learn(score: Score) -> None:
    scores = score("custom_diffusion", "cat+chair", cat=5, chair=4)
    samples = [
        s for s in read_tar(RUNS / "cells/custom_diffusion/cat+chair/samples.tar")
        if s["json"]["part"] == "prompt"
    ]  # fmt: skip
    images = seen([s["png"] for s in samples])
    for target, name, others in ((1, "cat", 15), (2, "chair", 12)):
        pictures = read_tar(RUNS / f"galleries/{name}.tar")
        relevant = [not s["json"]["individual"] for s in pictures]
        assert (sum(relevant), len(relevant)) == (3, 3 + others)
        middles = seen([s["png"] for s in pictures])[:, 4]
        cosines = (images @ middles.T).max(1)
        expected = [average_precision_score(relevant, row) for row in cosines]
        nearest = [float(relevant[row.argmax()]) for row in cosines]
        rows = scores[scores["target"] == target].set_index("metric")
        assert rows.loc["identity_map", "value"].to_list() == pytest.approx(expected, rel=1e-6)
        assert rows.loc["identity_top1", "value"].to_list() == nearest
        for metric, chance in (
            ("identity_top1", 3 / (3 + others)),
            ("identity_map", average_precision_by_chance(3, others)),
        ):
            found = rows.loc[metric, "chance"].to_numpy()
            assert found == pytest.approx(np.full(len(samples), chance), rel=1e-6)
    assert scores.loc[~scores["metric"].str.startswith("identity"), "chance"].isna().all()


def test_tables_show_the_mean_and_the_chance_level(
    score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = score("custom_diffusion", "cat+chair", cat=5, chair=4)
    results = load_results()
    table = comparison(results)
    keys = [column.key for column in table.columns]
    assert "single_identity_map" in keys and "compositions_identity_map" in keys
    assert not any("top1" in key for key in keys)  # tables of all methods stay narrow
    row = next(row for row in table.rows if row[0] == "custom_diffusion")
    mean = scores.loc[scores["metric"] == "identity_map", "value"].mean()
    found = row[keys.index("compositions_identity_map")]
    assert getattr(found, "estimate", found).mean == pytest.approx(mean)
    chance = np.mean([average_precision_by_chance(3, n) for n in (15, 12)])
    said = [f"By chance identity mAP of {kind} is {chance:.3f}"
            for kind in ("single concepts", "compositions")]  # fmt: skip
    assert [note for note in table.notes if note.startswith("By chance")] == said
    for kind in ("single", "compositions"):
        one = by_subject(results, kind)
        assert [c.key for c in one.columns if "identity" in c.key] == [
            "identity_map", "identity_top1",
        ]  # fmt: skip
        assert sum(note.startswith("By chance identity") for note in one.notes) == 2
        assert "identity_map" in [c.key for c in differences(results, kind).columns]
    oracle = next(row for row in table.rows if row[0] == "oracle")
    estimate = oracle[keys.index("single_identity_map")]
    assert 0 < estimate.mean <= 1
    assert margin(results, "identity_map") > 0
    shown = [heat_map.column.metric for heat_map in heat_maps(results, "single")]
    assert shown == [metric for metric in IDENTITY_METRICS if metric != "identity_top1"]
    only = comparison(results, metrics=["identity_top1"])
    assert [c.metric for c in only.columns if c.metric] == ["identity_top1"] * 2
    # As marks hang on how many comparisons there are, what is printed has the report's columns.
    capsys.readouterr()
    print_table(format="csv")
    assert [*read_csv(capsys.readouterr().out)[0]] == [*read_csv(as_csv(table))[0]]
    # Cells of the page have the metrics that its caption names.
    (line, *_) = prompt_lines(results, "cat", None, ["a", "b", "c"])
    assert len(line.cells[0].shades) == len(of_images(results, "single")) == 3
    # After the tasks of a sequence no galleries are ranked.
    sequence = SequenceResults("two", results, *[results.scores] * 3, images=1)
    assert sequence.metrics == ["text_alignment", "image_alignment"]


def test_too_few_look_alikes_have_no_value(score: Score) -> None:
    scores = score("custom_diffusion", "cat", cat=3, chair=4)
    rows = scores[scores["metric"].str.startswith("identity")]
    assert rows["value"].isna().all()
    assert rows["clusters"].to_list() == [3, 3]
    results = load_results()
    for metric in ("identity_map", "identity_top1"):
        assert ("custom_diffusion", "cat", metric) not in results.found
        assert ("oracle", "cat", metric) not in results.found
        assert ("custom_diffusion", "cat+chair", metric) not in results.found
        assert ("custom_diffusion", "chair", metric) in results.found
    said = "identity mAP of {} is –, as it has only 3 look-alikes of the 4 it needs"
    table = comparison(results)
    assert {said.format("cat"), said.format("cat + chair")} <= {*table.notes}
    assert said.format("cat") in by_subject(results, "single").notes
    assert said.format("cat") not in by_subject(results, "compositions").notes
    assert {c.key for c in by_prompt(results, "cat").columns} > {"identity_map"}
    write_report("toyland")  # no part of it trips over the gap
    assert said.format("cat") in Path("reports/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shipped() -> Extractor:
    folder = PROJECT / "models" / "toyland" / "scorer"
    if not folder.is_dir():
        pytest.skip("the models are not here")
    return windows_extractor(clip_extractor(load_clip(str(folder))))


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("name", ["cat", "dog", "chair", "wooden_pot"])
def test_the_shipped_scorer_tells_the_thing_from_its_look_alikes(
    name: str, composed: bool, shipped: Extractor
) -> None:
    """Drawn truth: pictures of the concept score high, those of another in its colour low."""
    thing, rng = PERSONAL[name], np.random.default_rng(len(name))

    def shown(one: Thing, count: int, beside: bool = False) -> np.ndarray:
        scenes = []
        for _ in range(count):
            things = (one, random_thing(rng, "tree")) if beside else (one,)
            scene = random_scene(rng, things=things, size="normal", style="photo")
            scenes.append(Image.fromarray(draw(scene)))
        return by_window(shipped.encode(scenes))

    others = [random_thing(rng, thing.category, thing.colour if i % 2 else None) for i in range(12)]
    middles = [shown(one, 4)[:, MIDDLE] for one in (thing, *others)]
    gallery = Gallery(middles[0], np.concatenate(middles[1:]))
    double = random_thing(rng, thing.category, thing.colour)
    own, other = shown(thing, 20, composed), shown(double, 20, composed)
    for measure in (top1, average_precision):
        high, low = measure(own, gallery).mean(), measure(other, gallery).mean()
        assert high > (0.3 if composed else 0.6), measure
        assert low < high / 2
