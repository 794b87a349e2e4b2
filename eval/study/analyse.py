"""Stage `study_analyse`: what people preferred, how sure that is, and which metric agrees.

A preference is the share of answers that choose one method of a pair (Custom Diffusion, Table 2),
with an interval of answers that are clustered by rater and by question. Attention checks are no
answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.results import KINDS as SUBJECTS
from eval.results import subjects_of
from eval.scores.reading import load_scores, main_training
from eval.statistics import Estimate, holm, two_way_mean
from eval.study.build import questionnaire_folder
from eval.study.measures import (
    LEVEL,
    Share,
    alpha,
    amt_error,
    answers_needed,
    bradley_terry,
    design_effect,
    others_agree,
    share_of,
)
from eval.study.outcome import SUMMARY, TABLES
from eval.study.questionnaire import (
    KINDS,
    load_questionnaire,
    method_pairs,
)
from eval.study.read import REASONS, load_responses
from eval.tables.rendering import FORMATS, texts_of
from eval.tables.table import Cell, Column, Table
from pipeline.common.files import atomic_folder, write_json
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import styles_of
from pipeline.settings.profile import Grid, Params, load_grid, load_params
from pipeline.settings.study import StudyParams

MARGINS = (2, 3, 5, 10)  # percentage points
ANOTHER_RATER = "another rater"
# Reasons that are about a rater and not about an answer.
RATERS_LEFT_OUT = ("checks", "fast")


class Part(NamedTuple):
    """Answers that are analysed together."""

    kind: str  # of questions: a key of ASKED
    subjects: str  # a key of eval.results.KINDS
    answers: pd.DataFrame


def study_folder(params: Params) -> Path:
    """Where the results of the human study go."""
    return params.reports() / "study"


def analyse(profile: str, study: StudyParams | None = None) -> None:
    """Writes tables and summary.json about the responses that were read for a profile.

    Without responses there is summary.json alone, which says so.

    Args:
        profile: the name of a profile.
        study: `references` come first in their pairs, `seed` is that of all draws; the defaults if
            not given.

    Raises:
        BenchError: responses, questionnaire or scores are damaged.
    """
    params, grid = load_params(profile), load_grid(profile)
    study = study or params.study
    sifted = load_responses(profile)
    answers = analysed(sifted.responses, grid, study)
    left_out = sifted.excluded[sifted.excluded["reason"].isin(RATERS_LEFT_OUT)]
    everyone = pd.concat([answers, analysed(left_out, grid, study)])
    folder = study_folder(params)
    with atomic_folder(folder, (".csv", ".md", ".json")) as temporary:
        summary = _summary(answers, sifted.excluded, profile)
        if len(answers):
            agreeing = _with_metrics(answers, params, profile)
            tables = {
                "preferences": preferences(answers, everyone, grid, study),
                "ranking": ranking(answers, grid),
                "agreement": agreement(agreeing),
                "raters": raters(answers, sifted.responses),
                "power": power(answers, grid),
            }
            summary["answers_on_present_images"] = int(agreeing["present"].sum())
            # For the report's page, which need not read what is written for people.
            texts = {name: texts_of(table)._asdict() for name, table in tables.items()}
            write_json(temporary / TABLES, texts)
            for name, table in tables.items():
                for style, suffix in (("csv", ".csv"), ("markdown", ".md")):
                    text = FORMATS[style](table)
                    (temporary / f"{name}{suffix}").write_text(text, encoding="utf-8")
        write_json(temporary / SUMMARY, summary)
    if not len(answers):
        print(f"profile {profile!r} has no responses -> {folder}")
        return
    heading = f"Profile {profile}, protocol {params.protocol.name}"
    print(FORMATS["text"](replace(tables["preferences"], heading=heading)), end="")
    print(f"{len(answers)} answers of {summary['raters']} raters -> {folder}")


def preferences(
    answers: pd.DataFrame, everyone: pd.DataFrame, grid: Grid, study: StudyParams
) -> Table:
    """How often one method of each pair was preferred to the other.

    Args:
        answers: see `analysed`.
        everyone: those and the ones of raters that were left out.
        grid: says which subjects are single.
        study: `seed` is used.
    """
    found = [(part, pair, rows) for part in _parts(answers, grid) for pair, rows in _pairs(part)]
    shares = [share_of(r["win"], r["rater"], r["trial"]) for _, _, r in found]
    p = holm([share.p for share in shares])
    rows: list[tuple[Cell, ...]] = []
    for (part, (first, second), own), share, corrected in zip(found, shares, p.tolist()):
        purpose = ("study amt", study.seed, part.kind, part.subjects, first, second)
        amt = amt_error(own["win"], own["rater"], _rng(*purpose))
        same = (everyone["kind"] == part.kind) & everyone["subject"].isin(
            subjects_of(grid, part.subjects, styles_of(grid))
        )
        same &= (everyone["first"] == first) & (everyone["second"] == second)
        rows.append(
            (
                part.kind,
                SUBJECTS[part.subjects],
                first,
                second,
                100 * share.mean,
                _or_none(100 * share.std_error),
                *_interval(share),
                100 * amt,
                _or_none(corrected),
                100 * float(everyone.loc[same, "win"].mean()),
                float(len(own)),
                float(own["rater"].nunique()),
                float(own["trial"].nunique()),
            )
        )
    columns = (
        Column("kind", "question"),
        Column("subjects", "subjects"),
        Column("method", "method"),
        Column("against", "against"),
        Column("preferred", "preferred, %", digits=1),
        Column("preferred_se", "±", digits=1),
        *_interval_columns("preferred"),
        Column("amt_pm", "± as in Table 2", digits=1),
        Column("p", "p of no preference", digits=4, p_value=True),
        Column("preferred_all_raters", "with all raters, %", digits=1),
        Column("answers", "answers"),
        Column("raters", "raters"),
        Column("questions", "questions"),
    )
    caption = (
        "Share of answers that prefer the method ± standard error clustered by rater and by "
        "question, and the exact interval of as many independent answers as these are worth; p "
        "after Holm's correction"
    )
    return Table(caption, columns, tuple(rows))


def ranking(answers: pd.DataFrame, grid: Grid) -> Table:
    """The strength of each method in the Bradley–Terry model, strongest first."""
    rows: list[tuple[Cell, ...]] = []
    for part in _parts(answers, grid):
        own = part.answers
        names = sorted({*own["left_method"], *own["right_method"]})
        other = own["left_method"].where(own["choice"] == "right", own["right_method"])
        strengths = bradley_terry(
            own["chosen_method"].map(names.index).to_numpy(int),
            other.map(names.index).to_numpy(int),
            len(names),
            own["rater"],
            own["trial"],
        )
        if strengths is None:
            continue
        clusters = min(own["rater"].nunique(), own["trial"].nunique())
        for i in np.argsort(-strengths.values):
            value, error = float(strengths.values[i]), float(strengths.std_errors[i])
            compared = (own[["left_method", "right_method"]] == names[i]).any(axis=1).sum()
            estimate = Estimate(value, error, len(own), clusters)
            rows.append((part.kind, SUBJECTS[part.subjects], names[i], estimate, float(compared)))
    columns = (
        Column("kind", "question"),
        Column("subjects", "subjects"),
        Column("method", "method"),
        Column("strength", "strength", digits=2),
        Column("answers", "answers"),
    )
    caption = (
        "Bradley–Terry strength, the log-odds of being preferred to an average method, ± standard "
        "error clustered by rater and by question"
    )
    return Table(caption, columns, tuple(rows))


def agreement(answers: pd.DataFrame) -> Table:
    """How often the image that people choose is the one that a metric puts first.

    Args:
        answers: see `_with_metrics`; its columns `metric:<name>` hold the difference between the
            left and the right image.
    """
    rows: list[tuple[Cell, ...]] = []
    metrics = [name for name in answers.columns if name.startswith("metric:")]
    for kind in KINDS:
        own = answers[answers["kind"] == kind]
        left = (own["choice"] == "left").to_numpy(float)
        found = {ANOTHER_RATER: others_agree(left, own["question"])} if len(own) else {}
        for name in metrics:
            difference = own[name].to_numpy(float)
            tie = np.where(difference == 0, 0.5, (difference > 0) == (left == 1))
            found[name.removeprefix("metric:")] = np.where(np.isnan(difference), np.nan, tie)
        for name, values in found.items():
            known = ~np.isnan(values)
            if known.any():
                used = own[known]
                share = share_of(values[known], used["rater"], used["trial"])
                cells = 100 * share.mean, *_interval(share), float(known.sum())
                rows.append((kind, name, *cells))
    columns = (
        Column("kind", "question"),
        Column("metric", "metric"),
        Column("agreement", "agreement, %", digits=1),
        *_interval_columns("agreement"),
        Column("answers", "answers"),
    )
    caption = (
        "Share of answers that choose the image with the higher score, with an interval as that of "
        "preferences; 50 is chance, and another rater the same question's answers"
    )
    return Table(caption, columns, tuple(rows))


def raters(answers: pd.DataFrame, responses: pd.DataFrame) -> Table:
    """Who answered, how alike, and whether either side was preferred."""
    rows: list[tuple[Cell, ...]] = []
    for kind in KINDS:
        own = answers[answers["kind"] == kind]
        if own.empty:
            continue
        left = (own["choice"] == "left").astype(float)
        side = share_of(left, own["rater"], own["trial"])
        checks = responses[(responses["kind"] == kind) & (responses["gold"] != "")]
        passed = (checks["choice"] == checks["gold"]).astype(float)
        attention: tuple[Cell, ...] = (None, None, None)
        if len(checks):
            share = share_of(passed, checks["rater"], checks["question"])
            attention = 100 * share.mean, *_interval(share)
        rows.append(
            (
                kind,
                float(own["rater"].nunique()),
                float(len(own)),
                float(own["seconds"].median()),
                *attention,
                100 * side.mean,
                *_interval(side),
                _or_none(side.p),
                alpha(left, own["question"]),
            )
        )
    columns = (
        Column("kind", "question"),
        Column("raters", "raters"),
        Column("answers", "answers"),
        Column("seconds", "seconds, median", digits=1),
        Column("checks", "checks passed, %", digits=1),
        *_interval_columns("checks"),
        Column("left", "left chosen, %", digits=1),
        *_interval_columns("left"),
        Column("left_p", "p of no side bias", digits=4, p_value=True),
        Column("alpha", "Krippendorff's alpha", digits=2),
    )
    caption = (
        "Raters that were kept; intervals as those of preferences; alpha ± standard error by "
        "leaving out questions"
    )
    return Table(caption, columns, tuple(rows))


def power(answers: pd.DataFrame, grid: Grid) -> Table:
    """How many answers to a pair of methods a wanted margin needs."""
    rows: list[tuple[Cell, ...]] = []
    for part in _parts(answers, grid):
        shares = [two_way_mean(r["win"], r["rater"], r["trial"]) for _, r in _pairs(part)]
        effects = [e for share in shares if not math.isnan(e := design_effect(share))]
        if effects:
            effect = float(np.mean(effects))
            needed = [math.ceil(answers_needed(effect, margin / 100)) for margin in MARGINS]
            there = float(np.mean([share.n for share in shares]))
            rows.append((part.kind, SUBJECTS[part.subjects], effect, there, *map(float, needed)))
    columns = (
        Column("kind", "question"),
        Column("subjects", "subjects"),
        Column("design_effect", "design effect", digits=2),
        Column("answers", "answers a pair"),
        *(Column(f"within_{margin}", f"for ± {margin} points") for margin in MARGINS),
    )
    caption = (
        "Answers that a pair of methods needs for a 95 % interval of such a half-width; the design "
        "effect is the mean over pairs"
    )
    return Table(caption, columns, tuple(rows))


def analysed(responses: pd.DataFrame, grid: Grid, study: StudyParams) -> pd.DataFrame:
    """The answers that are analysed: about the grid's subjects, and no attention checks.

    Returns:
        Columns of responses and more: `first` and `second` are the methods in the order of their
        pair, `win` whether the first was chosen (1.0 or 0.0), `trial` what both images are of.
        Questions that share a trial, with other methods, share an image and are one cluster.
    """
    real = (responses["gold"] == "") & responses["subject"].isin(grid.subjects())
    answers = responses[real].copy()
    strangers = {*answers["left_method"], *answers["right_method"]} - {*grid.methods}
    methods = [*grid.methods, *sorted(strangers)]
    order = {frozenset(pair): pair for pair in method_pairs(methods, methods)}
    order |= {frozenset(pair): pair for pair in method_pairs(methods, study.references)}
    pairs = [order[frozenset(p)] for p in zip(answers["left_method"], answers["right_method"])]
    answers["first"] = [first for first, _ in pairs]
    answers["second"] = [second for _, second in pairs]
    answers["win"] = (answers["chosen_method"] == answers["first"]).astype(float)
    place = ("subject", "prompt_index", "sample")
    answers["trial"] = ["/".join(map(str, t)) for t in zip(*(answers[name] for name in place))]
    return answers


def _parts(answers: pd.DataFrame, grid: Grid) -> Iterator[Part]:
    styles = styles_of(grid)
    for kind in KINDS:
        for subjects in SUBJECTS:
            about = answers["subject"].isin(subjects_of(grid, subjects, styles))
            own = answers[(answers["kind"] == kind) & about]
            if len(own):
                yield Part(kind, subjects, own)


def _pairs(part: Part) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    for (first, second), rows in part.answers.groupby(["first", "second"], sort=True):
        yield (str(first), str(second)), rows


def _with_metrics(answers: pd.DataFrame, params: Params, profile: str) -> pd.DataFrame:
    """The answers with the difference of each metric between left and right.

    Columns `present`, whether the questionnaire has the question, so that its images are those
    that were scored; and `metric:<name>`, NaN where there is no score. A metric of several target
    concepts is their mean.
    """
    folder = questionnaire_folder(params)
    if not (folder / "questionnaire.json").is_file():
        return answers.assign(present=False)
    present = answers["question"].isin(list(load_questionnaire(folder).by_name()))
    scores = main_training(load_scores(profile))
    scores = scores[scores["sample"].notna()]
    place = ["subject", "prompt_index", "sample"]
    means = scores.groupby(["metric", "method", *place])["value"].mean()
    joined = answers.assign(present=present.to_numpy(bool))
    for metric in means.index.unique("metric"):
        values = means.loc[metric]
        sides = [
            values.reindex(pd.MultiIndex.from_frame(answers[[side, *place]])).to_numpy(float)
            for side in ("left_method", "right_method")
        ]
        joined[f"metric:{metric}"] = np.where(present, sides[0] - sides[1], np.nan)
    return joined


def _summary(answers: pd.DataFrame, excluded: pd.DataFrame, profile: str) -> dict[str, object]:
    counts = excluded["reason"].value_counts()
    return {
        "profile": profile,
        "responses": len(answers),
        "raters": int(answers["rater"].nunique()),
        "sources": sorted(answers["source"].unique().tolist()),
        "excluded": {reason: int(counts[reason]) for reason in REASONS if reason in counts},
    }


def _interval(share: Share) -> tuple[float | None, float | None]:
    """The cells below `_interval_columns`."""
    return _or_none(100 * share.low), _or_none(100 * share.high)


def _interval_columns(key: str) -> tuple[Column, Column]:
    """The interval of a share, which is no ±: near 100 % it is wider on one side."""
    return (
        Column(f"{key}_low", f"{100 * LEVEL:.0f} % from", digits=1),
        Column(f"{key}_high", "to", digits=1),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rng(*purpose: object) -> np.random.Generator:
    return np.random.default_rng(seed_of(*purpose))
