"""What is said of concepts learned one after the other, put to the test on our own sequences.

As `eval.papers.claims`, but paired by prompt within a sequence: two methods after the last task, or
a method then and when each concept was just learned. For any concept (a sequence has few), and for
other prompts of these. Of image-alignment, which is where concepts are lost; what the same
comparison is of text-alignment stands beside it. The last few were written down before anything was
run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from eval.continual import SequenceResults
from eval.metrics.continual import Terms, known, learned, transfer
from eval.papers.claims import (
    DIRECTIONS,
    Claim,
    Relation,
    comparison_text,
    findings,
    interval_text,
    margin,
    margin_cells,
)
from eval.results import LEAST_SUBJECTS, Differences
from eval.style import words
from eval.tables.stale import marked
from eval.tables.table import Cell, Column, Table

JUST_LEARNED = "when just learned"  # stands for the second method
ALONE = "its concepts' own adapters"  # likewise
# What is compared of two methods: a claim's `kind`.
LAST, LEARNED, TRANSFER = "after the last task", "just learned", "backward transfer"
METRIC, TEXT = "image_alignment", "text_alignment"
RIVALS = (
    "custom_diffusion_sequential",
    "custom_diffusion_ewc",
    "custom_diffusion_lwf",
    "lora_merge",
    "lora_compose",
    "c_lora",
)
# A row of CIDM's ablation has all that the row before has, and a part more, and nothing else.
ABLATION = (
    ("weights by prompt beat equal ones", "ed_lora_ewa", "ed_lora_equal"),
    ("the term on factors helps", "cidm", "ed_lora_ewa"),
    ("the shared subspace helps", "cidm_subspace", "ed_lora_ewa"),
    ("both terms beat that on factors", "cidm_both", "cidm"),
    ("both terms beat the shared subspace", "cidm_both", "cidm_subspace"),
)
GUARDED = {
    "custom_diffusion_ewc": "Drawing weights to what they were",
    "custom_diffusion_lwf": "Drawing predictions for old prompts to what they were",
}
EXPECTED = "expected here"


def _claim(
    name: str,
    says: str,
    where: str,
    first: str,
    relation: Relation,
    second: str,
    kind: str = LAST,
) -> Claim:
    return Claim(name, says, where, kind, METRIC, first, relation, second)


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
    _claim(
        "the constrained merge loses little",
        "A merge is made anew of all adapters, so that each further one costs the others little.",
        EXPECTED,
        "custom_diffusion_merge",
        Relation.AT_LEAST,
        JUST_LEARNED,
    ),
    _claim(
        "weights by prompt fall short of one adapter",
        "Mixed for a prompt, adapters show a concept less than its own does alone.",
        EXPECTED,
        "ed_lora_ewa",
        Relation.LESS,
        ALONE,
    ),
    *(
        _claim(
            f"what guards {guards}: {words(method)}",
            f"{how} {says} than training on.",
            EXPECTED,
            method,
            relation,
            "custom_diffusion_sequential",
            kind,
        )
        for method, how in GUARDED.items()
        for guards, says, relation, kind in (
            ("keeps more", "keeps more of earlier concepts", Relation.GREATER, TRANSFER),
            ("learns less", "learns new ones less", Relation.LESS, LEARNED),
        )
    ),
)


def _has_own(claim: Claim, alone: Mapping[str, str]) -> bool:
    return claim.second == ALONE and claim.first in alone


def _difference(
    sequence: SequenceResults, claim: Claim, metric: str, alone: Mapping[str, str]
) -> Differences | None:
    """First less second; None if one of them lacks a value."""
    if metric not in sequence.metrics:
        return None
    if claim.second == JUST_LEARNED:
        return sequence.estimate(transfer(sequence.matrix(claim.first, metric)))
    one = _terms(sequence, claim.first, metric, claim.kind)
    if claim.second == ALONE:
        found = sequence.of_singles(alone[claim.first], metric)
        other = None if found is None else list(found)
    else:
        other = _terms(sequence, claim.second, metric, claim.kind)
    return sequence.estimate([a - b for a, b in zip(one, other)]) if other else None


def _terms(sequence: SequenceResults, method: str, metric: str, kind: str) -> Terms:
    r = sequence.matrix(method, metric)
    if kind == LAST:
        return known(r, len(r) - 1)
    # The first task is the same adapter for all that go on from it: nothing was learned on top.
    return transfer(r) if kind == TRANSFER else learned(r)[1:]


def sequence_claims(sequence: SequenceResults, alone: Mapping[str, str]) -> Table:
    """A row for each claim whose methods are in the sequence, with its verdicts.

    Args:
        sequence: what was scored.
        alone: by method, that whose adapters of single concepts it could have used instead.
    """
    there = {*sequence.methods, JUST_LEARNED}
    claims = [
        claim
        for claim in SEQUENCE_CLAIMS
        if claim.first in there and (claim.second in there or _has_own(claim, alone))
    ]
    found = [_difference(sequence, claim, claim.metric, alone) for claim in claims]
    of_text = [_difference(sequence, claim, TEXT, alone) for claim in claims]
    margins = [margin(sequence.results, claim.metric) for claim in claims]
    anywhere, here = (findings(claims, [f and f[i] for f in found], margins) for i in (0, 1))
    columns = (
        Column("claim", "claim"),
        Column("says", "what is said"),
        Column("where", "where"),
        Column("comparison", "as measured"),
        Column("difference", "difference", digits=3),
        Column("margin", "counts as none", digits=3),
        Column("text", "the same of text-alignment", digits=3),
        Column("interval", "95 % interval, any concept"),
        Column("p", "p (Holm)", digits=3, p_value=True),
        Column("interval_here", "95 % interval, these concepts"),
        Column("p_here", "p (Holm), these", digits=3, p_value=True),
        Column("verdict_here", "for these concepts"),
        Column("verdict", "for any concept"),
    )
    rows: list[tuple[Cell, ...]] = []
    for one, two, text in zip(anywhere, here, of_text):
        directed = one.claim.relation in DIRECTIONS
        rows.append(
            (
                one.claim.name,
                one.claim.says,
                one.claim.where,
                f"{one.claim.kind}, {comparison_text(one.claim)}",
                two.difference,
                None if directed or math.isnan(one.margin) else one.margin,
                text.here if text else None,
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
        "other prompts? The order of the concepts is one of many, and all are of one training of "
        "each task, whose luck nobody knows"
    )
    table = Table(caption, columns, tuple(rows), heading=sequence.results.heading())
    about = [
        {
            *((method, sequence.name) for method in (c.first, c.second)),
            *((alone[c.first], s) for s in sequence.concepts if c.second == ALONE),
            *(() if c.relation in DIRECTIONS else margin_cells(sequence.results, c.metric)),
        }
        for c in claims
    ]
    return marked(sequence.fresh, table, about)
