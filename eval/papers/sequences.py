"""What is said of concepts learned one after the other, put to the test on our own sequences.

As `eval.papers.claims`, but paired by prompt within a sequence: two methods after the last task, or
a method then and when each concept was just learned. For any concept (a sequence has few), and for
other prompts of these. Of image-alignment, which is where concepts are lost.
"""

from __future__ import annotations

import math

from eval.continual import SequenceResults
from eval.metrics.continual import Terms, known, transfer
from eval.papers.claims import (
    Claim,
    Relation,
    comparison_text,
    findings,
    interval_text,
    margin,
)
from eval.results import LEAST_SUBJECTS, Differences
from eval.style import words
from eval.tables.stale import marked
from eval.tables.table import Cell, Column, Table

JUST_LEARNED = "when just learned"  # stands for the second method
KIND, METRIC = "sequence", "image_alignment"
RIVALS = (
    "custom_diffusion_sequential",
    "custom_diffusion_ewc",
    "custom_diffusion_lwf",
    "lora_merge",
    "lora_compose",
    "c_lora",
)
# A row of CIDM's ablation has all that the row before has, and a part more.
ABLATION = (
    ("weights by prompt beat equal ones", "ed_lora_ewa", "lora_merge"),
    ("the term on factors helps", "cidm", "ed_lora_ewa"),
    ("the shared subspace helps", "cidm_subspace", "ed_lora_ewa"),
    ("both terms beat that on factors", "cidm_paper", "cidm"),
    ("both terms beat the shared subspace", "cidm_paper", "cidm_subspace"),
)


def _claim(name: str, says: str, where: str, first: str, relation: Relation, second: str) -> Claim:
    return Claim(name, says, where, KIND, METRIC, first, relation, second)


SEQUENCE_CLAIMS: tuple[Claim, ...] = (
    *(
        _claim(
            f"CIDM keeps most: {words(rival)}",
            "After the last task CIDM is at least as near to the concepts as any rival.",
            "CIDM, Table 1",
            "cidm",
            Relation.AT_LEAST,
            rival,
        )
        for rival in RIVALS
    ),
    *(
        _claim(
            name,
            "Each part of CIDM brings the last model nearer to the concepts.",
            "CIDM, Table 4",
            first,
            Relation.GREATER,
            second,
        )
        for name, first, second in ABLATION
    ),
    *(
        _claim(
            f"means dilute: {words(method)}",
            "A mean over more and more adapters shows less and less of each.",
            "CIDM, Table 1 (LoRA-M, LoRA-C)",
            method,
            Relation.LESS,
            JUST_LEARNED,
        )
        for method in ("lora_merge", "lora_compose")
    ),
    _claim(
        "words forget nothing",
        "Textual Inversion changes no weight, so that no concept costs another anything.",
        "by construction",
        "textual_inversion",
        Relation.ON_A_PAR,
        JUST_LEARNED,
    ),
    _claim(
        "one after the other forgets",
        "Weights that simply go on training lose what they learned before.",
        "Custom Diffusion, section 4.2; CIDM, Table 1",
        "custom_diffusion_sequential",
        Relation.LESS,
        JUST_LEARNED,
    ),
    _claim(
        "the constrained merge keeps what CIDM keeps",
        "Custom Diffusion's merge, for which a row and a few values of each concept would do, is "
        "as near to the concepts as CIDM after the last task.",
        "published nowhere",
        "custom_diffusion_merge",
        Relation.AT_LEAST,
        "cidm",
    ),
)


def _difference(sequence: SequenceResults, claim: Claim) -> Differences | None:
    """First less second; None if one of them lacks a value."""
    if claim.metric not in sequence.metrics:
        return None
    if claim.second == JUST_LEARNED:
        return sequence.estimate(transfer(sequence.matrix(claim.first, claim.metric)))
    one, other = (_last(sequence, m, claim.metric) for m in (claim.first, claim.second))
    return sequence.estimate([a - b for a, b in zip(one, other)])


def _last(sequence: SequenceResults, method: str, metric: str) -> Terms:
    r = sequence.matrix(method, metric)
    return known(r, len(r) - 1)


def sequence_claims(sequence: SequenceResults) -> Table:
    """A row for each claim of which a method at least is in the sequence, with its verdicts."""
    there = set(sequence.methods)
    claims = [c for c in SEQUENCE_CLAIMS if {c.first, c.second} - {JUST_LEARNED} <= there]
    found = [_difference(sequence, claim) for claim in claims]
    margins = [margin(sequence.results, claim.metric) for claim in claims]
    anywhere, here = (findings(claims, [f and f[i] for f in found], margins) for i in (0, 1))
    columns = (
        Column("claim", "claim"),
        Column("says", "what is said"),
        Column("where", "where"),
        Column("comparison", "as measured"),
        Column("difference", "difference", digits=3),
        Column("margin", "counts as none", digits=3),
        Column("interval", "95 % interval, any concept"),
        Column("p", "p (Holm)", digits=3, p_value=True),
        Column("interval_here", "95 % interval, these concepts"),
        Column("p_here", "p (Holm), these", digits=3, p_value=True),
        Column("verdict_here", "for these concepts"),
        Column("verdict", "for any concept"),
    )
    rows: list[tuple[Cell, ...]] = []
    for one, two in zip(anywhere, here):
        directed = one.claim.relation in (Relation.GREATER, Relation.LESS)
        rows.append(
            (
                one.claim.name,
                one.claim.says,
                one.claim.where,
                comparison_text(one.claim),
                two.difference,
                None if directed or math.isnan(one.margin) else one.margin,
                interval_text(one),
                None if math.isnan(one.p) else one.p,
                interval_text(two),
                None if math.isnan(two.p) else two.p,
                two.verdict.value,
                one.verdict.value,
            )
        )
    caption = (
        "Differences (first − second) ± standard error over prompts. “Any concept”: would others "
        f"show the same? With fewer than {LEAST_SUBJECTS} nobody can tell. “These concepts”: would "
        "other prompts? The order of the concepts is one of many"
    )
    table = Table(caption, columns, tuple(rows), heading=sequence.results.heading())
    about = [{(method, sequence.name) for method in (c.first, c.second)} for c in claims]
    return marked(sequence.fresh, table, about)
