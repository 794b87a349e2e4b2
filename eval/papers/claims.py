"""What the paper of Custom Diffusion (arXiv:2212.04488) finds, put to the test on our own scores.

A claim compares two methods by one metric, and is tested twice. For subjects of this kind, by the
differences of the two paired by subject: would other concepts show the same? And for the subjects
at hand, by the differences paired by prompt, or by caption for KID: would other prompts? The second
is decided far more easily and says far less. Where cells are trained with several seeds, there is a
third, for the subjects and prompts at hand: would other trainings? A comparison that claims a
direction counts as decided if it is significant after Holm's correction for all of them; one that
claims no more than a margin is decided by its interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from eval.freshness import stale_analyses
from eval.metrics.catalogue import METRICS, OfPrompts
from eval.papers.reference import metric_title
from eval.results import LEAST_SUBJECTS, Results, load_results
from eval.scores.file import ORACLE
from eval.statistics import Estimate, holm, interval, p_value
from eval.style import words
from eval.tables.rendering import FORMATS
from eval.tables.table import STALE, Cell, Column, Table
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.common.places import DEFAULT_PROFILE, repro_command_for
from pipeline.settings.profile import Params, load_params

LEVEL = 0.95
# What "on a par" allows, as a share of a metric's range, which is from the pretrained model to the
# oracle, in the mean over single concepts, as others have none. Of text-alignment an oracle has
# prompts of its own, so it is a share of the pretrained model's value. The paper calls rows alike
# that differ by 0.011 in image-alignment and 0.014 in text-alignment, of 0.795 (Table 1, where
# there is no pretrained model).
MARGIN = 0.05
TEXT_MARGIN = 0.0175
# How much a group of weights changes, by the column of analysis `weights`: the mean in which each
# layer counts alike, as the paper plots it, and that in which each weight does.
WEIGHT_CHANGES = {
    "mean": "weight_change_(mean_over_layers)",
    "weighted_mean": "weight_change_(mean_over_weights)",
}
ANALYSED = ("compression", "weights")  # the analyses whose results claims read
MARKED = (
    "difference",
    "verdict_here",
    "verdict_trainings",
    "verdict",
)  # columns, where cells are stale


class Relation(Enum):
    """How the first method relates to the second."""

    GREATER = ">"
    LESS = "<"
    AT_LEAST = "≥"  # or less by no more than the margin
    ON_A_PAR = "≈"  # differs by no more than the margin


DIRECTIONS = (Relation.GREATER, Relation.LESS)


class Verdict(Enum):
    """What the scores say about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_RUN = "not run"
    FAILED = "failed"  # there is nothing to compare, as cells could not be made
    NOT_ASKED = "–"  # "would other prompts?", of what is measured without any


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as a relation of two methods."""

    name: str
    says: str
    where: str  # in the paper
    kind: str  # of subjects: a key of `eval.results.KINDS`
    metric: str
    first: str
    relation: Relation
    second: str
    target: int | None = None  # the number of the concept, if it is about one of several


@dataclass(frozen=True)
class Finding:
    """A claim and what the scores say about it."""

    claim: Claim
    difference: Estimate | None  # first - second
    margin: float  # that counts as none; NaN where it is not known
    p: float  # of no difference, two-sided, after Holm's correction; NaN without a direction
    verdict: Verdict

    @property
    def digits(self) -> int:
        """Of its numbers."""
        about = METRICS.get(self.claim.metric)
        return about.digits if about else 3


def _each(rivals: Sequence[str], claim: Claim) -> tuple[Claim, ...]:
    """The claim against each of several methods."""
    return tuple(
        Claim(**{**vars(claim), "name": f"{claim.name}: {words(rival)}", "second": rival})
        for rival in rivals
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "keys and values suffice",
        "Training keys and values alone follows the prompt as well as DreamBooth does.",
        "section 4.1, Table 1",
        "single",
        "text_alignment",
        "custom_diffusion",
        Relation.AT_LEAST,
        "dreambooth",
    ),
    Claim(
        "keys and values forget less",
        "Training keys and values alone keeps the class nearer to real images than DreamBooth.",
        "section 4.1, Table 1",
        "single",
        "kid",
        "custom_diffusion",
        Relation.LESS,
        "dreambooth",
    ),
    Claim(
        "all weights are no better",
        "Training all weights brings the images no nearer to the concept than keys and values.",
        "section 4.1, Table 1",
        "single",
        "image_alignment",
        "custom_diffusion",
        Relation.AT_LEAST,
        "custom_diffusion_all",
    ),
    *_each(
        ("custom_diffusion", "custom_diffusion_all", "dreambooth"),
        Claim(
            "a word alone is nearest",
            "Of the methods that train, Textual Inversion is nearest to the concept.",
            "section 4.1, Table 1",
            "single",
            "image_alignment",
            "textual_inversion",
            Relation.GREATER,
            "",
        ),
    ),
    *_each(
        ("custom_diffusion", "custom_diffusion_all", "dreambooth"),
        Claim(
            "a word alone forgets the prompt",
            "Of the methods that train, Textual Inversion follows the prompt least.",
            "section 4.1, Table 1",
            "single",
            "text_alignment",
            "textual_inversion",
            Relation.LESS,
            "",
        ),
    ),
    Claim(
        "regularization prevents forgetting",
        "With retrieved regularization images the class stays nearer to real ones than without.",
        "section 4.4, Table 3",
        "single",
        "kid",
        "custom_diffusion",
        Relation.LESS,
        "custom_diffusion_no_regularization",
    ),
    Claim(
        "real images regularize better",
        "Retrieved regularization images keep the class nearer to real ones than generated ones.",
        "section 4.4, Table 3",
        "single",
        "kid",
        "custom_diffusion",
        Relation.LESS,
        "custom_diffusion_generated",
    ),
    Claim(
        "augmentation helps",
        "Without resized targets the images are less like the concept.",
        "section 4.4, Table 3",
        "single",
        "image_alignment",
        "custom_diffusion",
        Relation.GREATER,
        "custom_diffusion_no_augmentation",
    ),
    Claim(
        "the word should train",
        "A trained modifier token brings the images nearer to the concept than a frozen one.",
        "appendix, Table 5",
        "single",
        "image_alignment",
        "custom_diffusion",
        Relation.GREATER,
        "custom_diffusion_frozen_token",
    ),
    *(
        Claim(
            f"joint training is no worse than merging: {METRICS[metric].title}",
            "Concepts trained jointly compose at least as well as those merged by optimization.",
            "section 4.2, Table 1",
            "compositions",
            metric,
            "custom_diffusion",
            Relation.AT_LEAST,
            "custom_diffusion_merge",
        )
        for metric in ("text_alignment", "image_alignment")
    ),
    Claim(
        "merging follows the prompt better than DreamBooth",
        "Merging by optimization follows the prompt better than DreamBooth's joint training.",
        "section 4.2, Table 1",
        "compositions",
        "text_alignment",
        "custom_diffusion_merge",
        Relation.GREATER,
        "dreambooth",
    ),
    Claim(
        "merging is as near as DreamBooth",
        "Merging by optimization is as near to the concepts as DreamBooth's joint training.",
        "section 4.2, Table 1",
        "compositions",
        "image_alignment",
        "custom_diffusion_merge",
        Relation.ON_A_PAR,
        "dreambooth",
    ),
    Claim(
        "one after the other forgets",
        "Trained one after the other, the first concept is lost more than in joint training.",
        "section 4.2, Table 8",
        "compositions",
        "image_alignment",
        "custom_diffusion_sequential",
        Relation.LESS,
        "custom_diffusion",
        target=1,
    ),
    *(
        Claim(
            f"constraints beat the mean: {METRICS[metric].title}",
            "Merging by constrained optimization composes better than the mean of the weights.",
            "section 3.2, implied",
            "compositions",
            metric,
            "custom_diffusion_merge",
            Relation.GREATER,
            "custom_diffusion_average",
        )
        for metric in ("text_alignment", "image_alignment")
    ),
    *(
        Claim(
            f"60 % is enough: {METRICS[metric].title}",
            "Changes cut to 60 % of the sum of their singular values are as good as whole ones.",
            "appendix C, Fig. 21",
            "single",
            metric,
            "compressed to 0.6",
            Relation.ON_A_PAR,
            "compressed to 1",
        )
        for metric in ("text_alignment", "image_alignment")
    ),
    *(
        claim
        for metric in WEIGHT_CHANGES.values()
        for claim in _each(
            ("self-attention", "other"),
            Claim(
                f"cross-attention changes most {words(metric).removeprefix('weight change ')}",
                "When all weights train, those of cross-attention change most, relative to their "
                "size.",
                "section 3.1, Fig. 3",
                "single",
                metric,
                "cross-attention",
                Relation.GREATER,
                "",
            ),
        )
    ),
)


def findings(
    claims: Sequence[Claim], differences: Sequence[Estimate | None], margins: Sequence[float]
) -> list[Finding]:
    """The verdict on each claim from its difference, first - second.

    Of the claims of a direction none is decided, either way, unless Holm's correction for all of
    them that could be tested leaves p at 5 % or less: where no two methods differ, the chance
    that any is decided is 5 % at most. A claim up to a margin holds if the 95 % interval of the
    difference lies within its margin, and does not if it lies outside; with a margin of NaN, which
    is not known, neither.
    """
    raw = [
        p_value(found) if found and claim.relation in DIRECTIONS else float("nan")
        for claim, found in zip(claims, differences)
    ]
    corrected = holm(raw)
    return [
        Finding(claim, found, margin, float(p), _verdict(claim, found, margin, float(p)))
        for claim, found, margin, p in zip(claims, differences, margins, corrected)
    ]


def _verdict(claim: Claim, found: Estimate | None, margin: float, p: float) -> Verdict:
    if found is None:
        return Verdict.NOT_RUN
    if claim.relation in DIRECTIONS:
        claimed = (found.mean > 0) == (claim.relation is Relation.GREATER)
        within, outside = (claimed, not claimed) if p <= 1 - LEVEL else (False, False)
    else:
        low, high = interval(found, LEVEL)
        at_most = margin if claim.relation is Relation.ON_A_PAR else math.inf
        within = -margin < low and high < at_most
        outside = high < -margin or low > at_most
    return Verdict.HOLDS if within else Verdict.FAILS if outside else Verdict.UNDECIDED


class Findings(NamedTuple):
    """What is found about every claim, in their order."""

    anywhere: list[Finding]  # for subjects of their kinds
    here: list[Finding]  # for the subjects at hand
    trainings: list[Finding]  # for other trainings on them; undecided where there is one of each
    stale: list[bool]  # whether cells that it rests on are; see `eval.freshness`


def check_claims(results: Results) -> Findings:
    """The verdicts on every claim, from what has been scored and analysed so far."""
    params = load_params(results.profile)
    analysed, old = _analysed(params), stale_analyses(params, ANALYSED)
    everything = replace(
        results, scores=pd.concat([results.scores, *analysed.values()], ignore_index=True)
    )
    doubtful = {m for name, frame in analysed.items() if name in old for m in frame["method"]}
    found, stale, lost = [], [], []
    for claim in CLAIMS:
        subjects, methods = results.averaged(claim.kind, claim.metric), (claim.first, claim.second)
        found.append(everything.difference(*methods, claim.kind, claim.metric, claim.target))
        cells = {(method, subject) for method in methods for subject in subjects}
        ends = set() if claim.relation in DIRECTIONS else margin_cells(results, claim.metric)
        of_old = not doubtful.isdisjoint(methods)
        stale.append(of_old or not results.fresh.stale.keys().isdisjoint(cells | ends))
        failed = not results.failed.keys().isdisjoint(cells)
        lost.append(failed and {*methods} <= {*results.grid.methods})
    margins = [margin(results, claim.metric) for claim in CLAIMS]
    anywhere, here, trainings = (
        _of_failed(findings(CLAIMS, [each and each[i] for each in found], margins), lost)
        for i in range(3)
    )
    here = [
        replace(finding, verdict=Verdict.NOT_ASKED)
        if finding.difference and finding.claim.metric in WEIGHT_CHANGES.values()
        else finding
        for finding in here
    ]
    return Findings(anywhere, here, trainings, stale)


def seeds_said(results: Results, claim: Claim) -> str:
    """How many trainings of each method a claim rests on, those paired by seed: "3 training seeds".

    Of methods in which nothing is random there is nothing to repeat.
    """
    counts = [1]
    for subject in results.averaged(claim.kind, claim.metric):
        one, other = ({*results.seeds.get((m, subject), ())} for m in (claim.first, claim.second))
        counts.append(len(one & other if one and other else one | other))
    return seeds_text(max(counts))


def seeds_text(count: int) -> str:
    """As "one training seed", "3 training seeds"."""
    return "one training seed" if count < 2 else f"{count} training seeds"


def margin(results: Results, metric: str) -> float:
    """What counts as no difference; see MARGIN. NaN where that is not known."""
    ends = [results.mean(method, "single", metric) for method in _measured_by(metric)]
    if not ends or None in ends:
        return math.nan
    means = [end.mean for end in ends if end]
    return TEXT_MARGIN * means[0] if len(means) == 1 else MARGIN * abs(means[1] - means[0])


def margin_cells(results: Results, metric: str) -> set[tuple[str, str]]:
    """The cells that a margin is measured by, as methods and subjects."""
    singles = results.averaged("single", metric)
    return {(method, subject) for method in _measured_by(metric) for subject in singles}


def _measured_by(metric: str) -> tuple[str, ...]:
    if metric not in METRICS:
        return ()
    of_text = isinstance(METRICS[metric], OfPrompts)
    return ("pretrained",) if of_text else ("pretrained", ORACLE)


def _of_failed(found: Sequence[Finding], lost: Sequence[bool]) -> list[Finding]:
    """The findings, of which those say "failed" that compare nothing where cells failed."""
    return [
        replace(finding, verdict=Verdict.FAILED)
        if failed and finding.verdict is Verdict.NOT_RUN
        else finding
        for finding, failed in zip(found, lost)
    ]


def _analysed(params: Params) -> dict[str, pd.DataFrame]:
    """By analysis, what it measured, as scores of the "methods" that claims name."""
    folder = params.reports() / "analyses"
    frames = {}
    if (path := folder / "compression" / "prompts.csv").is_file():
        frame = _read(path, ["subject", "share", "metric", "prompt_index", "value"])
        of = [f"compressed to {share:g}" for share in frame["share"]]
        frames["compression"] = frame.assign(method=of)
    if (path := folder / "weights" / "groups.csv").is_file():
        frame = _read(path, ["subject", "group", *WEIGHT_CHANGES])
        frame = frame.rename(columns={"group": "method", **WEIGHT_CHANGES})
        means = frame.groupby(["subject", "method"], as_index=False).mean()  # over methods
        frames["weights"] = means.melt(["subject", "method"], var_name="metric")
    columns = ["method", "subject", "metric", "prompt_index", "value"]
    return {name: frame.reindex(columns=columns) for name, frame in frames.items()}


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, usecols=list(columns))
    except (ValueError, OSError):
        raise BenchError(
            f"{path}: not the file of an analysis: run `{repro_command_for(path)}`"
        ) from None


def claims_table(results: Results) -> Table:
    """A row for each claim: the difference with its error and interval, p and the verdict."""
    repeated = results.trainings > 1
    of_trainings = (
        Column("interval_trainings", "95 % interval, other trainings"),
        Column("p_trainings", "p (Holm), trainings", digits=3, p_value=True),
    )
    columns = (
        Column("claim", "claim"),
        Column("says", "the paper"),
        Column("where", "where"),
        Column("comparison", "as measured"),
        Column("difference", "difference", digits=3, by_row=True),
        Column("margin", "counts as none", digits=3, by_row=True),
        Column("interval", "95 % interval, any subject"),
        Column("subjects", "independent subjects"),
        Column("p", "p (Holm)", digits=3, p_value=True),
        Column("interval_here", "95 % interval, these subjects"),
        Column("p_here", "p (Holm), these", digits=3, p_value=True),
        *(of_trainings if repeated else ()),
        Column("seeds", "of"),
        Column("verdict_here", "for these subjects"),
        *([Column("verdict_trainings", "for other trainings")] if repeated else []),
        Column("verdict", "for any subject"),
    )
    rows: list[tuple[Cell, ...]] = []
    marks: dict[tuple[int, int], str] = {}
    checked = check_claims(results)
    for finding, here, trained, stale in zip(*checked):
        claim, found = finding.claim, finding.difference
        directed = claim.relation in DIRECTIONS
        row: tuple[Cell, ...] = (
            claim.name,
            claim.says,
            claim.where,
            comparison_text(claim),
            found,
            None if directed or math.isnan(finding.margin) else finding.margin,
            interval_text(finding),
            str(found.clusters) if found else None,
            None if math.isnan(finding.p) else finding.p,
            interval_text(here),
            None if math.isnan(here.p) else here.p,
            *(
                (interval_text(trained), None if math.isnan(trained.p) else trained.p)
                if repeated
                else ()
            ),
            seeds_said(results, claim) if found else None,
            here.verdict.value,
            *([trained.verdict.value] if repeated else []),
            finding.verdict.value,
        )
        if stale and found:
            marks |= {(len(rows), j): STALE for j, c in enumerate(columns) if c.key in MARKED}
        rows.append(row)
    caption = (
        "Differences (first − second) ± standard error over subjects, of which those that share a "
        "concept are one. “Any subject”: would other concepts show the same? With fewer than "
        f"{LEAST_SUBJECTS} independent subjects nobody can tell. “These subjects”: would other "
        f"prompts for the same concepts? On a par is what differs by {100 * MARGIN:g} % of the way "
        f"from the pretrained model to the oracle at most, in text-alignment by "
        f"{100 * TEXT_MARGIN:g} % of the pretrained model's value. "
    )
    caption += (
        "“Other trainings”: would trainings with other seeds on the same concepts, for the same "
        "prompts? It takes two of each method that is trained. Values are means over trainings"
        if repeated
        else f"All are of {seeds_text(1)}"
    )
    notes = results.fresh.notes(STALE, results.grid.methods, results.grid.subjects())
    notes += analyses_said(stale_analyses(load_params(results.profile), ANALYSED))
    notes += (*results.fresh.unverified(), *results.refused())
    digits = tuple(finding.digits for finding in checked.anywhere)
    return Table(caption, columns, tuple(rows), marks, notes, results.heading(), digits)


def analyses_said(stale: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each analysis that is stale, and why."""
    return tuple(f"{STALE} stale, {why}: analysis {name}" for name, why in stale.items())


def comparison_text(claim: Claim) -> str:
    """The claim as a relation: "image-alignment: custom diffusion > dreambooth"."""
    title = metric_title(claim.metric, claim.target)
    return f"{title}: {words(claim.first)} {claim.relation.value} {words(claim.second)}"


def interval_text(finding: Finding) -> str | None:
    """Of its difference, as "[0.012, 0.034]"; None without an error."""
    if finding.difference is None or math.isnan(finding.difference.std_error):
        return None
    low, high = interval(finding.difference, LEVEL)
    return f"[{low:.{finding.digits}f}, {high:.{finding.digits}f}]"


def print_claims(profile: str = DEFAULT_PROFILE, *, write: bool = False) -> None:
    """Prints the verdicts.

    Args:
        profile: the name of a profile.
        write: also write `claims.csv` and `claims.md` into the report's folder.

    Raises:
        BenchError: scores are damaged or cannot be compared, or nothing was scored yet.
    """
    table = claims_table(load_results(profile))
    print(table.heading)
    titles = {"verdict_here": "these", "verdict_trainings": "trainings", "verdict": "any"}
    shown = [j for j, column in enumerate(table.columns) if column.key in titles]
    print("".join(f"{titles[table.columns[j].key]:>13}  " for j in shown) + "subjects")
    for i, row in enumerate(table.rows):
        mark = table.marks.get((i, len(row) - 1), "")
        print("".join(f"{row[j]:>13}  " for j in shown) + f"{row[0]} {mark}".rstrip())
    for note in table.notes:
        print(note)
    if write:
        folder = load_params(profile).reports()
        for style, name in (("csv", "claims.csv"), ("markdown", "claims.md")):
            with atomic(folder / name) as temporary:
                temporary.write_text(FORMATS[style](table), encoding="utf-8")
        print(f"{len(table.rows)} claims -> {folder / 'claims.csv'}, {folder / 'claims.md'}")
