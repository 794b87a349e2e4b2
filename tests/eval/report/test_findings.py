"""What was found: true of the tables that it is made of, in each direction, or undecided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.report.evidence import Evidence, listed, rates, read_evidence
from eval.report.findings import REFERENCES, answers, best, drift, lead, single
from pipeline.common.errors import BenchError
from pipeline.settings.profile import load_grid, load_params

Tests = dict[str, tuple[float, float | None, float | None]]  # a difference, p here, p for others


def evidence(
    means: dict[str, float], tests: Tests, metric: str = "image_alignment", kind: str = "single"
) -> Evidence:
    """One column of means, and tests of "second − first"."""
    rows = {
        method: {f"{kind}_{metric}": str(mean), f"{kind}_subjects": "4/4"}
        for method, mean in means.items()
    }
    found = {
        pair: {metric: str(d), f"{metric}_p_here": _text(here), f"{metric}_p": _text(others)}
        for pair, (d, here, others) in tests.items()
    }
    return Evidence(rows, {kind: found})


def _text(p: float | None) -> str:
    return "" if p is None else str(p)


MEANS = {"oracle": 0.9, "pretrained": 0.7, "dreambooth": 0.5, "lora": 0.6}


@pytest.mark.parametrize(
    ("difference", "here", "others", "said"),
    [
        (0.1, 0.01, 0.02, "Lora: image-alignment 0.600, ahead of dreambooth (0.500) for these "
                          "subjects and for others."),
        (0.1, 0.01, 0.3, "Lora: image-alignment 0.600, ahead of dreambooth (0.500) for these "
                         "subjects; for others it is undecided."),
        (0.1, 0.2, 0.01, "Lora: image-alignment 0.600, ahead of dreambooth (0.500) for any "
                         "subject."),
        (0.1, 0.2, 0.3, "Undecided: lora has the best mean image-alignment (0.600), but no test "
                        "tells it from dreambooth (0.500)."),
        (0.1, None, None, "Undecided: lora has the best mean image-alignment (0.600), but no test "
                          "tells it from dreambooth (0.500)."),
        # Means are over other subjects than the test's.
        (-0.1, 0.01, 0.3, "Undecided: lora has the best mean image-alignment (0.600), but "
                          "dreambooth (0.500) beat it where both were scored."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_the_best_is_named_if_a_test_decides(
    difference: float, here: float | None, others: float | None, said: str, turned: bool
) -> None:
    """Whichever of the two methods the table subtracts; references win nothing."""
    pair = "dreambooth − lora" if turned else "lora − dreambooth"
    found = evidence(MEANS, {pair: (-difference if turned else difference, here, others)})
    assert best(found, "single", "image_alignment") == said


def test_an_oracle_of_text_has_captions_of_its_own() -> None:
    """It scores pictures of the class, not the concept's, and by none of the methods' prompts."""
    said = {m: single(evidence(MEANS, {}, m), m) for m in ("image_alignment", "text_alignment")}
    ends = "have 0.900 and the pretrained model has 0.700."
    assert said["image_alignment"].endswith(f"Beside them, real pictures of the concept {ends}")
    assert said["text_alignment"].endswith(
        f"Beside them, real pictures of the class, with captions of their own, {ends}"
    )


def test_of_a_distance_the_least_is_best() -> None:
    found = evidence(
        {"dreambooth": 5.0, "lora": 6.0}, {"lora − dreambooth": (1.0, 0.01, 0.3)}, "kid"
    )
    assert best(found, "single", "kid").startswith("Dreambooth: KID × 10³ 5.00, ahead of lora")
    assert lead(found, "single", "kid", "lora", "dreambooth") == (-1.0, True, False)
    assert lead(found, "single", "fid", "lora", "dreambooth") is None


def test_what_is_decided_of_some_is_said_of_these_only() -> None:
    means = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    tests: Tests = {
        "b − a": (-0.1, 0.5, 0.5), "c − a": (-0.2, 0.01, 0.5), "d − a": (-0.3, 0.01, 0.01),
    }  # fmt: skip
    assert best(evidence(means, tests), "single", "image_alignment") == (
        "Undecided: a has the best mean image-alignment (0.900), but no test tells it from "
        "b (0.800). It is ahead of c (0.700) and d (0.600) for these subjects; for others it is "
        "decided of d only."
    )


FEWER, ALL = frozenset({"cat", "dog"}), frozenset({"cat", "dog", "chair"})


def over(found: Evidence, metric: str, **subjects: frozenset[str]) -> Evidence:
    """The same, where means are over these subjects."""
    scored = {method: subjects.get(method, ALL) for method in found.comparison}
    return replace(found, scored={("single", metric): scored})


def test_a_mean_over_fewer_subjects_is_not_ranked_and_is_named() -> None:
    tests: Tests = {"c − b": (-0.2, 0.01, 0.5), "b − a": (-0.1, 0.5, 0.5)}
    found = over(evidence({"a": 0.9, "b": 0.8, "c": 0.6}, tests), "image_alignment", a=FEWER)
    assert best(found, "single", "image_alignment") == (
        "B: image-alignment 0.800, ahead of c (0.600) for these subjects; for others it is "
        "undecided. Not ranked, as other subjects of theirs were scored: a (0.900)."
    )
    tests["b − a"] = (-0.1, 0.01, 0.5)
    beaten = replace(found, differences=evidence({}, tests).differences)
    assert best(beaten, "single", "image_alignment") == (
        "Undecided: b has the best mean image-alignment (0.800), but a (0.900) beat it where both "
        "were scored. It is ahead of c (0.600) for these subjects; for others it is undecided."
    )


def test_without_two_means_over_the_same_nothing_is_compared() -> None:
    found = over(evidence(MEANS, {}), "image_alignment", lora=FEWER)
    assert best(found, "single", "image_alignment") == (
        "Not ranked: the means of lora (0.600) and dreambooth (0.500) are over different subjects."
    )
    rows = {m: {**found.comparison[m]} for m in found.comparison}
    rows["lora"]["single_image_alignment"] = "diverged"
    assert best(replace(found, comparison=rows), "single", "image_alignment") == (
        "Nothing to compare: image-alignment is of dreambooth (0.500) alone."
    )
    rows["dreambooth"]["single_image_alignment"] = ""
    said = best(replace(found, comparison=rows), "single", "image_alignment")
    assert said == "Not measured: no method that learns has image-alignment."


def test_a_method_with_a_cell_that_failed_is_told_to_forget() -> None:
    """It has a paired test on what it shares with the base, and no place in a race of means."""
    means = {"pretrained": 5.0, "lora": 6.0, "dreambooth": 4.5}  # others are harder
    tests: Tests = {
        "lora − pretrained": (1.0, 0.5, 0.5),
        "dreambooth − pretrained": (4.0, 0.01, 0.01),
    }
    found = over(evidence(means, tests, "kid"), "kid", dreambooth=FEWER)
    assert drift(found) == (
        "Dreambooth (4.50) of other subjects by KID × 10³, against the pretrained model's 5.00, "
        "for these subjects and for others. Undecided: lora (6.00)."
    )


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [
        (4.0, 0.01, "Lora (6.00) by KID × 10³, against the pretrained model's 5.00, for these "
                    "subjects; for others it is undecided."),
        (-4.0, 0.01, "No method is shown to: none has a KID × 10³ that a test finds above the "
                     "pretrained model's 5.00. Lora (6.00) is below it for these subjects; for "
                     "others it is undecided."),
        (4.0, 0.2, "No method is shown to: none has a KID × 10³ that a test finds above the "
                   "pretrained model's 5.00. Undecided: lora (6.00)."),
        (0.0, 1.0, "No method is shown to: none has a KID × 10³ that a test finds above the "
                   "pretrained model's 5.00. Lora has exactly the pretrained model's value."),
    ],
)  # fmt: skip
def test_who_forgets_is_told_by_tests_with_the_pretrained_model(
    difference: float, p: float, said: str
) -> None:
    means = {"pretrained": 5.0, "lora": 6.0}
    assert drift(evidence(means, {"lora − pretrained": (difference, p, 0.9)}, "kid")) == said


def test_without_a_pretrained_model_nothing_is_said_of_forgetting() -> None:
    assert drift(evidence({"lora": 6.0}, {}, "kid")).startswith("Not measured")
    assert drift(evidence({"pretrained": 6.0}, {}, "text_alignment")).startswith("Not measured")


def test_what_composing_costs_is_no_test_and_says_so() -> None:
    single = evidence({"pretrained": 0.3, "lora": 0.6, "dreambooth": 0.2}, {})
    pairs = evidence({"pretrained": 0.1, "lora": 0.4, "dreambooth": 0.25}, {}, kind="compositions")
    rows = {m: {**row, **pairs.comparison[m]} for m, row in single.comparison.items()}
    said = answers(Evidence(rows))[3].text
    assert said.startswith(
        "Mean image-alignment falls from single concepts to compositions (lora 0.600 to 0.400); "
        "mean image-alignment does not fall from single concepts to compositions (dreambooth 0.200 "
        "to 0.250); these are other subjects and prompts, so no test compares them; it falls where "
        "nothing was learned too (pretrained 0.300 to 0.100). Nearest in compositions? Undecided: "
    )
    assert "Not measured: no method composes" in answers(single)[3].text


def test_claims_are_counted() -> None:
    verdicts = ["holds", "holds", "does not hold", "undecided", "not run", "failed"]
    claims = {str(i): {"verdict_here": v, "verdict": v} for i, v in enumerate(verdicts)}
    found = replace(evidence(MEANS, {}), claims=claims, basis=("two concepts", "one seed"))
    assert answers(found)[4].text == (
        "Two concepts; one seed. Of 4 comparisons of the paper that these scores can test, 2 hold, "
        "1 does not and 1 is undecided for these subjects, and 2 hold, 1 does not and 1 is "
        "undecided for others."
    )
    of_weights = {"verdict_here": "–", "verdict": "holds"}
    more = replace(found, claims={**claims, "weights": of_weights})
    assert answers(more)[4].text.endswith(
        "Of 5 comparisons of the paper that these scores can test, 2 hold, 1 does not and 1 is "
        "undecided for these subjects (1 without prompts aside), and 3 hold, 1 does not and 1 is "
        "undecided for others."
    )


def test_answers_are_those_of_the_reports_files(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(complete)
    found = read_evidence("toyland")
    page = Path("reports/index.html").read_text(encoding="utf-8")
    said = answers(found)
    assert len(said) == 5
    for answer in said:
        assert f"<dt>{answer.question}</dt><dd>{answer.text}</dd>" in page.replace("&#39;", "'")
    assert "2 concepts, 20 prompts each, 3 images a prompt" in said[4].text
    assert not {"custom_diffusion", "custom_diffusion_merge"} & {*REFERENCES}


def test_a_damaged_table_is_named(profile: Path) -> None:
    path = Path("reports/tables/comparison.csv")
    path.parent.mkdir(parents=True)
    for content in ("", "method,single_kid\n", "method,single_kid\nlora\n"):
        path.write_text(content)
        with pytest.raises(BenchError, match=r"comparison.csv: not a table of a report: run `dvc "):
            read_evidence("toyland")
    path.unlink()
    with pytest.raises(BenchError, match=r"comparison.csv: .*: run `dvc repro`"):
        read_evidence("toyland")


def test_how_rates_were_tuned_is_read_from_the_trials() -> None:
    """The committed trials, and parameters that they do not mark."""
    params, grid = load_params(), load_grid()
    assert rates(params, grid) == (
        "learning rates chosen by one rule on other concepts (teddybear, table, striped dog and "
        "picket gate)"
    )
    other = params.methods["dreambooth"].model_copy(update={"steps": 126})
    changed = params.model_copy(update={"methods": {**params.methods, "dreambooth": other}})
    assert rates(changed, grid).endswith("but for dreambooth not tuned")
    variant = "custom_diffusion_no_augmentation"  # of Custom Diffusion, whose rate it has or not
    for rate, said in ((1e-3, "picket gate)"), (2e-3, "but for custom diffusion no aug")):
        about = params.methods["custom_diffusion"].model_copy(update={"learning_rate": rate})
        both = params.model_copy(update={"methods": {**params.methods, variant: about}})
        more = grid.model_copy(update={"rows": [*grid.methods, variant]})
        assert said in rates(both, more)
    alone = params.methods["custom_diffusion"].model_copy(update={"steps": 999})
    other = params.model_copy(update={"methods": {**params.methods, "custom_diffusion_all": alone}})
    more = grid.model_copy(update={"rows": [*grid.methods, "custom_diffusion_all"]})
    assert rates(other, more).endswith("but for custom diffusion all not tuned")  # it has its own
    elsewhere = params.base.model_copy(update={"path": "another/base"})
    moved = params.model_copy(update={"base": elsewhere})
    assert rates(moved, grid) == "learning rates that were not tuned here"


def test_names_are_listed() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed("abc")] == ["a", "a and b", "a, b and c"]
