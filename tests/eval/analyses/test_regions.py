"""Boxes of pictures: what is seen in them, and whether that tells right ones from wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval.analyses.common import Judge, adapter_of
from eval.analyses.regions.looking import WHOLE, Looker, alone, enlarged, without
from eval.analyses.regions.stage import MODES, analyse_regions, summary
from eval.analyses.regions.truth import DRAWN, drawn, told_apart, validated
from pipeline.common.errors import BenchError
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import load_subject
from pipeline.models.adapter import applied
from pipeline.models.base import Base
from pipeline.regions.layouts import Box, load_layouts
from pipeline.regions.sessions import Place, regional
from pipeline.sample.sampler import sample
from pipeline.settings.profile import load_params
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.scenes import random_scene
from tests.eval.analyses.conftest import Adapt, Configure

JUDGE = str(Path(__file__).parents[3] / "models" / "toyland" / "judge")
SECTION = {"subjects": ["cat+chair"], "methods": ["custom_diffusion"], "images": 2, "judge": JUDGE}
BOX = Box(0.25, 0.5, 0.75, 1.0)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(draw(random_scene(np.random.default_rng(seed))))


def test_parts_of_a_picture() -> None:
    image = picture()
    whole, (left, top, right, bottom) = np.asarray(image), (16, 32, 48, 64)
    assert BOX.pixels(64) == (left, top, right, bottom)
    kept = np.array(alone(image, BOX))
    assert np.array_equal(kept[top:bottom, left:right], whole[top:bottom, left:right])
    kept[top:bottom, left:right] = kept[0, 0]
    assert (kept == kept[0, 0]).all()  # nothing of the rest is to be seen
    rest = np.array(without(image, BOX))
    assert (rest[top:bottom, left:right] == rest[top, left]).all()
    rest[top:bottom, left:right] = whole[top:bottom, left:right]
    assert np.array_equal(rest, whole)
    flat = Image.new("RGB", (64, 64), (10, 200, 30))
    assert without(flat, BOX) == flat and alone(flat, BOX) == flat
    assert np.asarray(without(flat, Box(0, 0, 1, 1)))[0, 0].tolist() == [127, 127, 127]
    wide = np.asarray(enlarged(flat, Box(0, 0.25, 1, 0.75)))
    assert (wide[:16] == 127).all() and (wide[48:] == 127).all() and (wide[16:48] != 127).all()
    assert enlarged(flat, Box(0.5, 0.5, 0.6, 0.6)) == flat  # its shape stays


def test_pairs_that_are_told_apart_are_counted() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.integers(0, 5, 20) + 1, rng.integers(0, 5, 30)
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert told_apart(right, wrong) == pytest.approx(np.mean(pairs))
    assert told_apart([2, 3], [0, 1]) == 1


def test_drawn_layouts_are_wrong_where_they_say(profile: Path) -> None:
    subject = load_subject("cat+chair")
    layout = load_layouts(subject)[0]
    found = list(drawn(subject, layout, 2, 64))
    assert [(kind, regions) for kind, regions, _ in found] == [
        ("drawn", [0, 1]), ("swapped", [0, 1]), ("missing", [0]), ("another", [0]),
        ("missing", [1]), ("another", [1]),
    ]  # fmt: skip
    right = found[0].images
    assert np.array_equal(right[0], drawn(subject, layout, 1, 64).__next__().images[0])
    for _, regions, images in found[2:]:
        (place,) = regions
        left, top, end, bottom = layout.regions[1 - place].box.pixels(64)
        for image, whole in zip(images, right):
            changed = np.abs(np.asarray(image, int) - np.asarray(whole, int)).max(-1)
            left_of = slice(left + 4, end - 4)  # edges are soft
            assert changed.max() > 100 and changed[top:bottom, left_of].max() < 30


def test_measures_of_layouts_are_validated_by_drawings(profile: Path) -> None:
    """By the classifier and what the drawings are; image-alignment's CLIP is an untrained one."""
    subject = load_subject("cat+chair")
    looker = Looker(Judge(load_params()), subject, JUDGE)
    parts = []
    for number, layout in enumerate(load_layouts(subject)):
        for kind, regions, images in drawn(subject, layout, 2, 64):
            found = looker.measured(images, layout)
            found = found[found["region"].isin([*regions, WHOLE])]
            parts.append(found.assign(mode=kind, method="", subject=subject.name, layout=number))
    values = pd.concat(parts, ignore_index=True)
    table = validated(values)
    auc = table.set_index(["measure", "wrong"])["auc"]
    assert auc["present", "missing"] > 0.9 and auc["leak", "swapped"] > 0.9
    assert table.set_index("measure").loc[["present", "leak"], "valid"].all()
    for measure, wrong, one in table[["measure", "wrong", "auc"]].itertuples(index=False):
        of = values[values["measure"] == measure]
        sign = -1 if measure in ("other", "leak") else 1
        right, bad = (sign * of.loc[of["mode"] == kind, "value"] for kind in (DRAWN, wrong))
        assert one == pytest.approx(told_apart(right, bad))
    means = summary(values, table).set_index(["mode", "measure"])
    shown = values[(values["mode"] == DRAWN) & (values["measure"] == "own")]
    layouts = shown.groupby("layout")["value"].mean()
    row = means.loc[DRAWN, "own"]
    assert row["mean"] == pytest.approx(shown["value"].mean()) and row["clusters"] == 4
    assert row["high"] - row["mean"] == pytest.approx(3.182446 * layouts.std() / 2, rel=1e-5)


def test_what_is_not_known_is_not_measured(profile: Path) -> None:
    subject = load_subject("cat+chair")
    judge, (layout, *_) = Judge(load_params()), load_layouts(subject)
    image = picture()
    found = Looker(judge, subject, None).measured([image], layout)
    assert set(found["measure"]) == {"own", "other", "bound", "text_alignment"}
    twice = layout.model_copy(
        update={"regions": [r.model_copy(update={"concept": 0}) for r in layout.regions]}
    )
    found = Looker(judge, subject, JUDGE).measured([image], twice)
    assert set(found["measure"]) == {"own", "present", "all_in", "text_alignment"}


def test_stage(configure: Configure, adapt: Adapt, base: Base) -> None:
    configure(regions=SECTION)
    adapt("custom_diffusion", "cat+chair")
    folder = analyse_regions()
    assert {path.name for path in folder.iterdir()} == {
        "values.csv", "means.csv", "truth.csv", "regions.png", "custom_diffusion_cat+chair.png",
    }  # fmt: skip
    values = pd.read_csv(folder / "values.csv", keep_default_na=False)
    means = pd.read_csv(folder / "means.csv", keep_default_na=False)
    ours = values[values["method"] == "custom_diffusion"]
    assert set(ours["mode"]) == set(MODES)
    # A picture of one mode, made by hand.
    params, subject = load_params(), load_subject("cat+chair")
    layout = load_layouts(subject)[1]
    adapter = adapter_of(params, "custom_diffusion", "cat+chair")
    seeds = [seed_of(params.protocol.name, "regions", layout.prompt, i) for i in range(2)]
    references = adapter.provenance.references
    places = [Place(r.prompt.format(references[r.concept]), r.box) for r in layout.regions]
    with applied(base, adapter):
        session = regional(base, base, "cidm", places)
        prompts = [layout.prompt.format(*references)] * 2
        images = sample(base, prompts, seeds, params.sampler(2), session)
    expected = Looker(Judge(params), subject, JUDGE).measured(images, layout)
    one = ours[(ours["mode"] == "cidm") & (ours["layout"] == 1)]
    assert list(one["measure"]) == list(expected["measure"])
    assert one["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), abs=1e-4)
    # What boxes add, image by image.
    own = ours[ours["measure"] == "own"].groupby("mode")["value"].mean()
    row = means[(means["mode"] == "cidm") & (means["measure"] == "own")].iloc[0]
    assert float(row["difference_mean"]) == pytest.approx(own["cidm"] - own["none"], abs=1e-6)


def test_a_box_that_is_too_small_is_told_before_sampling(
    configure: Configure, base: Base, profile: Path
) -> None:
    configure(regions=SECTION)
    path = Path("datasets/layouts/cat+chair.yaml")
    path.write_text(path.read_text().replace("[0.0, 0.4, 0.5, 0.95]", "[0.0, 0.4, 0.1, 0.95]", 1))
    with pytest.raises(BenchError, match=r"cat\+chair\.yaml: 0\.regions\.0\.box: .* smallest box"):
        analyse_regions()


def test_a_method_that_makes_no_such_adapters_is_told_before_sampling(
    configure: Configure, base: Base
) -> None:
    configure(regions={**SECTION, "methods": ["pretrained", "custom_diffusion_merge", "ed_lora"]})
    with pytest.raises(BenchError, match=r"'ed_lora' makes no adapters of compositions"):
        analyse_regions()
