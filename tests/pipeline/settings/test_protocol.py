"""Protocols: what they hold, what they fix, and what is refused with one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common.errors import BenchError
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import load_grid, load_params, profile_names
from pipeline.settings.protocol import load_protocol, prompts_digest, protocol_names, protocol_path


def test_each_protocol_is_valid_and_each_profile_has_one(project: Path) -> None:
    names = protocol_names()
    assert {"toyland-v2", "paper-v1", "customconcept101-v1", "dreambench-v1"} <= set(names)
    for name in names:
        assert load_protocol(name).name == name
    assert {load_params(profile).protocol.name for profile in profile_names()} <= set(names)


def test_the_paper_samples_pairs_with_more_steps(project: Path) -> None:
    params = load_params("paper")
    assert (params.sampler(1).steps, params.sampler(2).steps) == (50, 200)
    assert params.protocol.score.leave_out == {
        "text_alignment": ["moongate_photo"],
        "image_alignment": ["moongate_photo"],
    }


def test_the_shipped_prompts_are_those_that_protocols_fix(project: Path) -> None:
    for profile in ("toyland", "toyland-full", "toyland-tuning"):
        protocol = load_params(profile).protocol
        for name in load_grid(profile).subjects():
            assert name in protocol.prompts
            protocol.check_prompts(name, load_subject(name, profile).prompts)


def test_other_prompts_are_refused_for_a_subject_that_is_fixed(project: Path) -> None:
    protocol = load_protocol("toyland-v3")
    with pytest.raises(BenchError, match=r"^datasets/prompts/cat\.txt: not the prompts .*copy"):
        protocol.check_prompts("cat", ["a {} on the moon"])
    protocol.check_prompts("my_cat", ["a {} on the moon"])


def test_order_and_division_of_prompts_matter() -> None:
    assert prompts_digest(["a", "b"]) != prompts_digest(["b", "a"])
    assert prompts_digest(["ab"]) != prompts_digest(["a", "b"])


def test_unknown_protocol(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("protocol: toyland-v3", "protocol: toyland-v9"))
    with pytest.raises(BenchError, match="'toyland-v9' is unknown: choose one of custom.*toyland"):
        load_params()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("eta: 0.0", "eta: 2.0", "sample.eta"),
        ("text_scale: 2.5", "text_scale: 0", "score.text_scale"),
        ("kid_features: clip", "kid_features: dino", "score.kid_features"),
        ("    - kid\n", "    - kidd\n", "score.metrics.4"),
    ],
)
def test_bad_value(project: Path, old: str, new: str, field: str) -> None:
    path = protocol_path("toyland-v3")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BenchError, match=rf"toyland-v3\.yaml: {field}: ") as error:
        load_params()
    assert "\n" not in str(error.value)
