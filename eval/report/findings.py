"""What was found, in a few plain answers: the first thing a report says.

Each answer follows from tests that stand in the report's tables, and says "undecided" where none
decides. A test is for *these subjects* (would other prompts show the same?) or for *others* (would
other concepts?), and counts as decided at p ≤ 5 % after Holm's correction for its table. Where
cells are trained with several seeds, it is told what is decided for *other trainings*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval.metrics.catalogue import METRICS, OfPrompts
from eval.papers.claims import Verdict
from eval.report.evidence import Evidence, listed
from eval.results import REFERENCES
from eval.scores.file import ORACLE
from eval.style import words
from eval.tables.table import SIGNIFICANT

PRETRAINED = "pretrained"

VERDICTS = {Verdict.HOLDS: "hold", Verdict.FAILS: "do not", Verdict.UNDECIDED: "are undecided"}


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
        Answer("Who is nearest to the concept?", single(evidence, "image_alignment")),
        Answer("Who follows the prompt?", single(evidence, "text_alignment")),
        Answer("Who forgets?", drift(evidence)),
        Answer("What does composing cost?", composing(evidence)),
        *([Answer("Who learns styles?", styles(evidence))] if _has_styles(evidence) else []),
        Answer("How sure is this?", sureness(evidence)),
    ]


def lead(evidence: Evidence, kind: str, metric: str, first: str, second: str) -> Lead | None:
    """How far the first method is better than the second; None if they were not compared."""
    table = evidence.differences.get(kind, {})
    for name, sign in ((f"{first} − {second}", 1), (f"{second} − {first}", -1)):
        difference = _number(table.get(name, {}).get(metric))
        if difference is not None:
            better = sign if METRICS[metric].higher_is_better else -sign
            p_here, p = (_number(table[name].get(f"{metric}_{of}")) for of in ("p_here", "p"))
            here, others = (p is not None and p <= SIGNIFICANT for p in (p_here, p))
            return Lead(better * difference, here, others)
    return None


def means(evidence: Evidence, kind: str, metric: str) -> dict[str, float]:
    """The mean of each row that has one."""
    found = {m: _number(row.get(f"{kind}_{metric}")) for m, row in evidence.comparison.items()}
    return {method: value for method, value in found.items() if value is not None}


def contestants(evidence: Evidence, kind: str, metric: str) -> dict[str, float]:
    """The means of the methods that learn, the best first; of those over most subjects."""
    found = {m: v for m, v in means(evidence, kind, metric).items() if m not in REFERENCES}
    over = {
        method: int(evidence.comparison[method][f"{kind}_subjects"].partition("/")[0])
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
    decided = {rival: by for rival, by in leads.items() if by and (by.here or by.others)}
    ahead = [rival for rival, by in decided.items() if by.ahead > 0]
    # Where two methods lack different subjects, a test of those they share may say the reverse.
    behind = [rival for rival in decided if rival not in ahead]
    open_ = [rival for rival in rivals if rival not in decided]

    def named(methods: Sequence[str]) -> str:
        return listed(_with(method, found, metric) for method in methods)

    value = _value(found[first], metric)
    where = _reach(ahead, decided) if ahead else ""
    if not open_ and not behind:
        return f"{_sentence(words(first))}: {title} {value}, ahead of {named(ahead)} {where}."
    buts = [f"no test tells it from {named(open_)}"] if open_ else []
    buts += [f"{named(behind)} beat it where both were scored"] if behind else []
    said = f"Undecided: {words(first)} has the best mean {title} ({value}), but {listed(buts)}."
    return f"{said} It is ahead of {named(ahead)} {where}." if ahead else said


def _reach(ahead: Sequence[str], decided: Mapping[str, Lead]) -> str:
    """For which subjects it is decided that some methods are ahead or behind."""
    here, others = ([m for m in ahead if decided[m][place]] for place in (1, 2))
    if len(others) == len(ahead):
        return "for these subjects and for others" if len(here) == len(ahead) else "for any subject"
    if not others:
        return "for these subjects; for others it is undecided"
    return f"for these subjects; for others it is decided of {listed(map(words, others))} only"


def single(evidence: Evidence, metric: str) -> str:
    """Which method is best on single concepts, and what those have that are no contestants."""
    # Of text-alignment an oracle has pictures of the class and their own captions.
    real = "real pictures of the concept have"
    if isinstance(METRICS[metric], OfPrompts):
        real = "real pictures of the class, with captions of their own, have"
    said = {ORACLE: real, PRETRAINED: "the pretrained model has"}
    values = means(evidence, "single", metric)
    scale = [f"{text} {_value(values[m], metric)}" for m, text in said.items() if m in values]
    found = best(evidence, "single", metric)
    return f"{found} Beside them, {listed(scale)}." if scale else found


def drift(evidence: Evidence) -> str:
    """Which methods have moved their class away from real images, further than the base model."""
    metric = next((m for m in ("kid", "fid") if means(evidence, "single", m)), None)
    found = contestants(evidence, "single", metric) if metric else {}
    base = means(evidence, "single", metric).get(PRETRAINED) if metric else None
    if metric is None or base is None or not found:
        return "Not measured: the pretrained model's distance to real images, and another's."
    leads = {m: lead(evidence, "single", metric, m, PRETRAINED) for m in found}
    decided = {m: by for m, by in leads.items() if by and (by.here or by.others)}
    same = [m for m, by in leads.items() if by and by.ahead == 0]
    worse = [m for m, by in decided.items() if by.ahead < 0]
    better = [m for m, by in decided.items() if by.ahead > 0]
    open_ = [m for m in found if m not in (*worse, *better, *same)]
    title, of_base = METRICS[metric].title, f"the pretrained model's {_value(base, metric)}"

    def named(methods: Sequence[str]) -> str:
        return listed(_with(method, found, metric) for method in methods)

    said = []
    if worse:
        said.append(
            f"{_sentence(named(worse))} by {title}, against {of_base}, {_reach(worse, decided)}"
        )
    else:
        said.append(f"No method is shown to: none has a {title} that a test finds above {of_base}")
    if better:
        said.append(f"{_sentence(named(better))} is below it {_reach(better, decided)}")
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
    alone, composed = (means(evidence, kind, metric) for kind in ("single", "compositions"))
    if not any(method not in REFERENCES for method in composed):
        return "Not measured: no method composes concepts here."

    def changes(methods: Sequence[str]) -> str:
        return listed(
            f"{words(m)} {_value(alone[m], metric)} to {_value(composed[m], metric)}"
            for m in methods
        )

    both = [m for m in composed if m in alone and m not in REFERENCES]
    falls = [m for m in both if composed[m] < alone[m]]
    rises = [m for m in both if m not in falls]
    title = METRICS[metric].title
    said = [
        f"mean {title} {way} from single concepts to compositions ({changes(which)})"
        for way, which in (("falls", falls), ("does not fall", rises))
        if which
    ]
    if said:
        said.append("these are other subjects and prompts, so no test compares them")
        if composed.get(PRETRAINED, math.inf) < alone.get(PRETRAINED, -math.inf):
            said.append(f"it falls where nothing was learned too ({changes([PRETRAINED])})")
    cost = f"{_sentence('; '.join(said))}. " if said else ""
    nearest, follows = (
        best(evidence, "compositions", name) for name in ("image_alignment", "text_alignment")
    )
    return f"{cost}Nearest in compositions? {nearest} Following the prompt there? {follows}"


def _has_styles(evidence: Evidence) -> bool:
    return any("styles_subjects" in row for row in evidence.comparison.values())


def styles(evidence: Evidence) -> str:
    """Which method is best at styles, alone or composed; the other answers leave them out."""
    nearest, follows = (
        best(evidence, "styles", name) for name in ("image_alignment", "text_alignment")
    )
    return (
        f"Styles, alone or composed, are in no other answer. Nearest? {nearest} Following the "
        f"prompt? {follows}"
    )


def sureness(evidence: Evidence) -> str:
    """On how much it rests, and how many of the paper's findings are decided."""
    said = [f"{_sentence('; '.join(evidence.basis))}"] if evidence.basis else []
    here, others, trainings = (
        Counter(row.get(column, "") for row in evidence.claims.values())
        for column in ("verdict_here", "verdict", "verdict_trainings")
    )
    if tested := sum(others[verdict.value] for verdict in VERDICTS):
        said.append(
            f"Of {tested} comparisons of the paper that these scores can test, {_verdicts(here)} "
            f"for these subjects, and {_verdicts(others)} for others"
        )
        if any(trainings[verdict.value] for verdict in VERDICTS):
            said[-1] += f"; {_verdicts(trainings)} for other trainings on these subjects"
    return ". ".join(said) + "." if said else "Nothing is known about it."


def _verdicts(counts: Mapping[str, int]) -> str:
    return listed(f"{counts[verdict.value]} {name}" for verdict, name in VERDICTS.items())


def _number(text: str | None) -> float | None:
    """The number in a cell; None for a gap, and for what stands there if a cell failed."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _value(value: float, metric: str) -> str:
    return f"{value:.{METRICS[metric].digits}f}"


def _with(method: str, values: Mapping[str, float], metric: str) -> str:
    """As "custom diffusion (0.585)"."""
    return f"{words(method)} ({_value(values[method], metric)})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
