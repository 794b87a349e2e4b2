"""What was found, in five plain answers: the first thing a report says.

Each answer follows from tests that stand in the report's tables, and says "undecided" where none
decides. A test is for *these subjects* (would other prompts show the same?) or for *others* (would
other concepts?), and counts as decided at p ≤ 5 % after Holm's correction for its table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from eval.metrics.catalogue import METRICS
from eval.papers.claims import Verdict
from eval.report.evidence import Evidence, listed
from eval.scores.file import ORACLE
from eval.style import words
from eval.tables.table import SIGNIFICANT

PRETRAINED = "pretrained"
# What others are measured by: real pictures, no training at all, a word that stays as it is.
REFERENCES = (ORACLE, PRETRAINED, "custom_diffusion_frozen_token")


class Answer(NamedTuple):
    """A question that the benchmark asks, and what its tests say."""

    question: str
    text: str


class Lead(NamedTuple):
    """How far a method is better than another; negative if it is worse."""

    ahead: float
    here: bool  # decided for these subjects
    others: bool  # decided for other subjects of their kind


def answers(evidence: Evidence) -> list[Answer]:
    """Who is nearest, who follows the prompt, who forgets, what composing costs, how sure."""
    return [
        Answer("Who is nearest to the concept?", best(evidence, "single", "image_alignment")),
        Answer("Who follows the prompt?", best(evidence, "single", "text_alignment")),
        Answer("Who forgets?", drift(evidence)),
        Answer("What does composing cost?", composing(evidence)),
        Answer("How sure is this?", sureness(evidence)),
    ]


def lead(evidence: Evidence, kind: str, metric: str, first: str, second: str) -> Lead | None:
    """How far the first method is better than the second; None if they were not compared."""
    table = evidence.differences.get(kind)
    for name, sign in ((f"{first} − {second}", 1), (f"{second} − {first}", -1)):
        if table is not None and name in table.index and metric in table:
            row = table.loc[name]
            difference = float(pd.to_numeric(row[metric], errors="coerce"))
            better = sign if METRICS[metric].higher_is_better else -sign
            here, others = (
                bool(float(row.get(f"{metric}_{p}", float("nan"))) <= SIGNIFICANT)
                for p in ("p_here", "p")
            )
            return Lead(better * difference, here, others) if pd.notna(difference) else None
    return None


def means(evidence: Evidence, kind: str, metric: str) -> dict[str, float]:
    """The mean of each row that has one."""
    key = f"{kind}_{metric}"
    if key not in evidence.comparison:
        return {}
    values = pd.to_numeric(evidence.comparison[key], errors="coerce").dropna()
    return {str(method): float(value) for method, value in values.items()}


def contestants(evidence: Evidence, kind: str, metric: str) -> dict[str, float]:
    """The means of the methods that learn, the best first; of those over most subjects."""
    found = {m: v for m, v in means(evidence, kind, metric).items() if m not in REFERENCES}
    over = {
        method: int(str(evidence.comparison.loc[method, f"{kind}_subjects"]).partition("/")[0])
        for method in found
    }
    most = max(over.values(), default=0)
    better = METRICS[metric].higher_is_better
    order = sorted(found, key=lambda method: found[method], reverse=better)
    return {method: found[method] for method in order if over[method] == most}


def best(evidence: Evidence, kind: str, metric: str) -> str:
    """Which of the methods that learn is best by a metric, as far as tests say."""
    found = contestants(evidence, kind, metric)
    title = METRICS[metric].title
    if len(found) < 2:
        return f"Not measured: {title} has no two methods to compare."
    first, *rivals = found
    leads = {rival: lead(evidence, kind, metric, first, rival) for rival in rivals}
    here, others = (
        [rival for rival, by in leads.items() if by and by.ahead > 0 and by[place]]
        for place in (1, 2)
    )
    ahead = [rival for rival in rivals if rival in here or rival in others]
    open_ = [rival for rival in rivals if rival not in ahead]

    def named(methods: Sequence[str]) -> str:
        return listed(_with(method, found, metric) for method in methods)

    if open_:
        said = (
            f"Undecided: {words(first)} has the best mean {title} ({_value(found[first], metric)}), "
            f"but no test tells it from {named(open_)}."
        )
        if not ahead:
            return said
        said += f" It is ahead of {named(ahead)}"
    else:
        said = f"{_sentence(words(first))}: {title} {_value(found[first], metric)}"
        said += f", ahead of {named(ahead)}"
    return f"{said}, {_reach(ahead, here, others)}."


def _reach(ahead: Sequence[str], here: Sequence[str], others: Sequence[str]) -> str:
    """For which subjects a method is ahead of others."""
    if len(others) == len(ahead):
        return "for these subjects and for others" if len(here) == len(ahead) else "for any subject"
    if not others:
        return "for these subjects; for others it is undecided"
    return f"for these subjects; for others it is decided against {listed(map(words, others))} only"


def drift(evidence: Evidence) -> str:
    """Which methods have moved their class away from real images, further than the base model."""
    metric = next((m for m in ("kid", "fid") if means(evidence, "single", m)), None)
    found = contestants(evidence, "single", metric) if metric else {}
    base = means(evidence, "single", metric).get(PRETRAINED) if metric else None
    if metric is None or base is None or not found:
        return "Not measured: there is no distance to real images for the pretrained model and another."
    leads = {m: lead(evidence, "single", metric, m, PRETRAINED) for m in found}
    decided = {m: by for m, by in leads.items() if by and (by.here or by.others)}
    same = [m for m, by in leads.items() if by and by.ahead == 0]
    worse = [m for m, by in decided.items() if by.ahead < 0]
    better = [m for m, by in decided.items() if by.ahead > 0]
    open_ = [m for m in found if m not in (*worse, *better, *same)]
    title, of_base = METRICS[metric].title, f"the pretrained model's {_value(base, metric)}"

    def named(methods: Sequence[str]) -> str:
        return listed(_with(method, found, metric) for method in methods)

    def where(methods: Sequence[str]) -> str:
        here, others = ([m for m in methods if decided[m][place]] for place in (1, 2))
        return _reach(methods, here, others)

    said = []
    if worse:
        said.append(f"{_sentence(named(worse))} by {title}, against {of_base}, {where(worse)}")
    else:
        said.append(f"No method is shown to: none has a {title} that a test finds above {of_base}")
    if better:
        said.append(f"{_sentence(named(better))} is below it, {where(better)}")
    if same:
        said.append(
            f"{_sentence(listed(map(words, same)))} has exactly the pretrained model's value"
        )
    if open_:
        said.append(f"Undecided: {named(open_)}")
    return ". ".join(said) + "."


def composing(evidence: Evidence) -> str:
    """What is lost from single concepts to compositions, and which method is best at these."""
    metric = "image_alignment"
    single, composed = (means(evidence, kind, metric) for kind in ("single", "compositions"))
    if not any(method not in REFERENCES for method in composed):
        return "Not measured: no method composes concepts here."

    def changes(methods: Sequence[str]) -> str:
        return listed(
            f"{words(m)} {_value(single[m], metric)} to {_value(composed[m], metric)}"
            for m in methods
        )

    said = []
    both = [method for method in composed if method in single and method not in REFERENCES]
    title = METRICS[metric].title
    for way, methods in (
        ("falls", [m for m in both if composed[m] < single[m]]),
        ("does not fall", [m for m in both if composed[m] >= single[m]]),
    ):
        if methods:
            said.append(
                f"Mean {title} {way} from single concepts to compositions: {changes(methods)}"
            )
    if both:
        caveat = "These are other subjects and prompts, so no test compares them"
        if PRETRAINED in composed and composed[PRETRAINED] < single.get(PRETRAINED, float("-inf")):
            caveat += f", and part lies in the measure: {changes([PRETRAINED])}"
        said.append(caveat)
    parts = " ".join(
        f"{question} {best(evidence, 'compositions', metric)}"
        for question, metric in (
            ("Nearest to the concepts in compositions?", "image_alignment"),
            ("Following the prompt there?", "text_alignment"),
        )
    )
    return " ".join([*(f"{part}." for part in said), parts])


def sureness(evidence: Evidence) -> str:
    """On how much it rests, and how many of the paper's findings are decided."""
    said = [f"{_sentence('; '.join(evidence.basis))}"] if evidence.basis else []
    if evidence.claims is not None:
        counts = {
            column: evidence.claims[column].value_counts().to_dict()
            for column in ("verdict_here", "verdict")
        }
        tested = sum(counts["verdict"].get(v.value, 0) for v in _TESTED)
        said.append(
            f"Of {tested} comparisons that the paper makes and these scores can test, for these "
            f"subjects {_verdicts(counts['verdict_here'])}; for others {_verdicts(counts['verdict'])}"
        )
    return ". ".join(said) + "." if said else "Nothing is known about it."


_TESTED = (Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED)


def _verdicts(counts: Mapping[str, int]) -> str:
    names = {Verdict.HOLDS: "hold", Verdict.FAILS: "do not", Verdict.UNDECIDED: "are undecided"}
    return listed(f"{counts.get(verdict.value, 0)} {name}" for verdict, name in names.items())


def _value(value: float, metric: str) -> str:
    return f"{value:.{METRICS[metric].digits}f}"


def _with(method: str, values: Mapping[str, float], metric: str) -> str:
    """As "custom diffusion (0.585)"."""
    return f"{words(method)} ({_value(values[method], metric)})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
