"""What was found, in a few plain answers: the first thing a report says.

Each answer follows from tests that stand in the report's tables, and says "undecided" where none
decides. A test is for *these subjects* (would other prompts show the same?) or for *others* (would
other concepts?). It counts as decided at p ≤ 5 % after Holm's correction for its table, a claim of
"no worse" or "on a par" by its interval. Where cells are trained with several seeds, it is told
what is decided for *other trainings*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval.metrics.catalogue import METRICS, OfPrompts
from eval.papers.claims import Verdict
from eval.report.evidence import Evidence, counted, listed, number
from eval.results import REFERENCES, rankable
from eval.scores.file import ORACLE
from eval.style import words
from eval.tables.table import SIGNIFICANT

PRETRAINED = "pretrained"

# What is said of one claim, and of several.
VERDICTS = {
    Verdict.HOLDS: ("holds", "hold"),
    Verdict.FAILS: ("does not", "do not"),
    Verdict.UNDECIDED: ("is undecided", "are undecided"),
}


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
        difference = number(table.get(name, {}).get(metric))
        if difference is not None:
            better = sign if METRICS[metric].higher_is_better else -sign
            p_here, p = (number(table[name].get(f"{metric}_{of}")) for of in ("p_here", "p"))
            here, others = (p is not None and p <= SIGNIFICANT for p in (p_here, p))
            return Lead(better * difference, here, others)
    return None


def means(evidence: Evidence, kind: str, metric: str) -> dict[str, float]:
    """The mean of each row that has one."""
    found = {m: number(row.get(f"{kind}_{metric}")) for m, row in evidence.comparison.items()}
    return {method: value for method, value in found.items() if value is not None}


def learners(evidence: Evidence, kind: str, metric: str) -> dict[str, float]:
    """The means of the methods that learn, the best first."""
    found = {m: v for m, v in means(evidence, kind, metric).items() if m not in REFERENCES}
    better = METRICS[metric].higher_is_better
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=better))


def best(evidence: Evidence, kind: str, metric: str) -> str:
    """Which of the methods that learn is best by a metric, as far as tests say."""
    found, title = learners(evidence, kind, metric), METRICS[metric].title
    over = evidence.scored.get((kind, metric), {})
    ranked = rankable({method: over.get(method, frozenset()) for method in found})

    def named(methods: Sequence[str]) -> str:
        return listed(_with(method, found, metric) for method in methods)

    if not found:
        return f"Not measured: no method that learns has {title}."
    if len(found) == 1:
        return f"Nothing to compare: {title} is of {named(ranked)} alone."
    if len(ranked) == 1:
        return f"Not ranked: the means of {named([*found])} are over different subjects."
    first, *rivals = ranked
    others = [method for method in found if method not in ranked]
    leads = {rival: lead(evidence, kind, metric, first, rival) for rival in (*rivals, *others)}
    decided = {rival: by for rival, by in leads.items() if by and (by.here or by.others)}
    ahead = [rival for rival in rivals if rival in decided and decided[rival].ahead > 0]
    # Where methods lack different subjects, a test of those they share may say the reverse.
    behind = [rival for rival, by in decided.items() if by.ahead < 0]
    open_ = [rival for rival in rivals if rival not in decided]
    value = _value(found[first], metric)
    where = _reach(ahead, decided) if ahead else ""
    if not open_ and not behind:
        said = [f"{_sentence(words(first))}: {title} {value}, ahead of {named(ahead)} {where}"]
    else:
        buts = [f"no test tells it from {named(open_)}"] if open_ else []
        buts += [f"{named(behind)} beat it where both were scored"] if behind else []
        best_mean = f"{words(first)} has the best mean {title} ({value})"
        said = [f"Undecided: {best_mean}, but {', and '.join(buts)}"]
        said += [f"It is ahead of {named(ahead)} {where}"] if ahead else []
    if left := [method for method in others if method not in behind]:
        said.append(f"Not ranked, as other subjects of theirs were scored: {named(left)}")
    return ". ".join(said) + "."


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
    # Paired tests are of the subjects that two methods share, so no method has to be left out.
    found = learners(evidence, "single", metric) if metric else {}
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
    over = evidence.scored.get(("single", metric), {})
    fewer = [m for m in found if over.get(m) != over.get(PRETRAINED)]

    def named(methods: Sequence[str]) -> str:
        return listed(
            f"{_with(m, found, metric)}{' of other subjects' * (m in fewer)}" for m in methods
        )

    said = []
    if worse:
        said.append(
            f"{_sentence(named(worse))} by {title}, against {of_base}, {_reach(worse, decided)}"
        )
    else:
        said.append(f"No method is shown to: none has a {title} that a test finds above {of_base}")
    if better:
        is_ = "is" if len(better) == 1 else "are"
        said.append(f"{_sentence(named(better))} {is_} below it {_reach(better, decided)}")
    if same:
        has = "has" if len(same) == 1 else "have"
        said.append(
            f"{_sentence(listed(map(words, same)))} {has} exactly the pretrained model's value"
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
        what = f"Of {counted(tested, 'comparison')} of the paper that these scores can test"
        apart = f" ({n} without prompts aside)" if (n := here[Verdict.NOT_ASKED.value]) else ""
        said.append(
            f"{what}, {_verdicts(here)} for these subjects{apart}, and {_verdicts(others)} for "
            "others"
        )
        if any(trainings[verdict.value] for verdict in VERDICTS):
            said[-1] += f"; {_verdicts(trainings)} for other trainings on these subjects"
    return ". ".join(said) + "." if said else "Nothing is known about it."


def _verdicts(counts: Mapping[str, int]) -> str:
    return listed(
        f"{(count := counts[verdict.value])} {names[count != 1]}"
        for verdict, names in VERDICTS.items()
    )


def _value(value: float, metric: str) -> str:
    return f"{value:.{METRICS[metric].digits}f}"


def _with(method: str, values: Mapping[str, float], metric: str) -> str:
    """As "custom diffusion (0.585)"."""
    return f"{words(method)} ({_value(values[method], metric)})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
