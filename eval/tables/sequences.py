"""Tables of concepts that are learned one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eval.continual import SequenceResults
from eval.metrics import Values
from eval.metrics.catalogue import METRICS
from eval.metrics.continual import (
    Terms,
    averages,
    damage,
    forgetting,
    intransigence,
    known,
    learned,
    mean_of,
    share_left,
    transfer,
)
from eval.results import Differences
from eval.statistics import Estimate, clustered_mean, holm, interval, p_value
from eval.style import words
from eval.tables.stale import marked
from eval.tables.table import (
    ANYWHERE,
    HERE,
    SIGNIFICANT,
    Cell,
    Column,
    Compared,
    Table,
)

SEPARATE, PRETRAINED = "separate", "pretrained"
MEASURES = {
    "average": "average at the end",
    "course": "average over the course",
    "learned": "just learned",
    "transfer": "backward transfer",
    "forgetting": "forgetting, by the best",
    "intransigence": "intransigence",
    "share": "share left",
    "own": "looks like its own",
    "base": "lost of the base",
}


def matrix(sequence: SequenceResults, metric: str, alone: Mapping[str, str]) -> Table:
    """A metric after each task, concept by concept.

    Args:
        sequence: what was scored.
        metric: of images.
        alone: by method, that whose adapters of single concepts it could have used instead.
    """
    concepts, digits = sequence.concepts, METRICS[metric].digits
    columns = [Column("method", "method"), Column("after", "after task")]
    columns += [Column(c, words(c), "asked for", digits, metric) for c in concepts]
    columns.append(Column("average", "average", "", digits, metric))
    rows: list[tuple[Cell, ...]] = []
    about: list[set[tuple[str, str]]] = []
    for method in sequence.methods:
        r = sequence.matrix(method, metric)
        for task, average in enumerate(averages(r)):
            failure = sequence.failed.get((method, task + 1))
            cells: list[Cell] = [
                failure or _of_prompts(r[task, j]) if j <= task else None
                for j in range(len(concepts))
            ]
            mean = sequence.estimate(known(r, task))
            whole = mean.here if mean else failure or (None if np.isnan(average) else average)
            rows.append((method, f"{task + 1}: {words(concepts[task])}", *cells, whole))
            about.append({(method, sequence.name)})
    for name, of in references(sequence, metric, alone).items():
        found = sequence.of_singles(of, metric)
        if found is not None:
            terms = list(found)
            mean = sequence.estimate(terms)
            rows.append((name, "", *map(_of_prompts, terms), mean.here if mean else None))
            about.append({(of, concept) for concept in concepts})
    caption = (
        f"{METRICS[metric].title} of each concept after each task of {words(sequence.name)} ± "
        "standard error clustered by prompt; separate: each concept's own adapter alone"
    )
    heading = sequence.results.heading()
    table = Table(caption, tuple(columns), tuple(rows), heading=heading)
    return marked(sequence.fresh, table, about)


def references(sequence: SequenceResults, metric: str, alone: Mapping[str, str]) -> dict[str, str]:
    """What sequences are compared with, and whose cells of single concepts that is."""
    separate = sorted({alone[method] for method in sequence.methods if method in alone})
    found = {f"{SEPARATE} ({words(of)})": of for of in separate}
    return found | {PRETRAINED: PRETRAINED}


def _of_prompts(values: Values) -> Estimate | None:
    there = values[~np.isnan(values)]
    return clustered_mean(there, np.arange(len(there))) if len(there) else None


def measures(sequence: SequenceResults, alone: Mapping[str, str]) -> Table:
    """What each method keeps, metric by metric; see `eval.metrics.continual`.

    Errors are those of the sample of prompts; of backward transfer it is tested whether it is none.
    """
    columns = [Column("method", "method"), Column("metric", "metric")]
    columns += [
        Column(key, title, digits=2 if key in ("share", "own") else 3)
        for key, title in MEASURES.items()
    ]
    lines = [(method, metric) for metric in sequence.metrics for method in sequence.methods]
    transfers = {
        line: found
        for line in lines
        if (found := sequence.estimate(transfer(sequence.matrix(*line))))
    }
    tested = _tested(transfers)
    rows = [
        (method, METRICS[metric].title, *_measures(sequence, method, metric, alone, tested))
        for method, metric in lines
    ]
    notes = [
        "Forgetting by the best takes the largest of noisy numbers, so that it is above zero where "
        "nothing is forgotten",
        "Looks like its own: the share of images after the last task that are nearest to the "
        "targets of the concept that was asked for",
        "Lost of the base: what the pretrained model has and the last model has not when asked for "
        "class nouns alone; of image-alignment, below zero where the noun now shows the concept",
        *(
            f"{words(method)} has nothing after task {number}: {failure.kind}"
            for (method, number), failure in sequence.failed.items()
        ),
    ]
    caption = (
        f"{words(sequence.name).capitalize()}: {' → '.join(map(words, sequence.concepts))} ± "
        f"standard error of these concepts' prompts; {ANYWHERE[0]} more or {ANYWHERE[1]} less "
        f"than when just learned, {' or '.join(HERE)} for these concepts only, p ≤ "
        f"{SIGNIFICANT:g} after Holm's correction for {len(tested)} tests"
    )
    heading = sequence.results.heading()
    table = Table(caption, tuple(columns), tuple(rows), {}, tuple(notes), heading)
    # What is set against single concepts is as old as these.
    about = [
        {
            (method, sequence.name),
            *((of, c) for of in (alone.get(method, method), PRETRAINED) for c in sequence.concepts),
        }
        for method, _ in lines
    ]
    return marked(sequence.fresh, table, about)


def _tested(found: Mapping[tuple[str, str], Differences]) -> dict[tuple[str, str], Compared]:
    """Backward transfers, the p-values of none corrected for all of them."""
    p, p_here = (
        holm(np.array([p_value(two[i]) for two in found.values()])).tolist() for i in (0, 1)
    )
    return {
        line: Compared(two.here, *both, better=two.here.mean > 0)
        for (line, two), both in zip(found.items(), zip(p, p_here))
    }


def _measures(
    sequence: SequenceResults,
    method: str,
    metric: str,
    alone: Mapping[str, str],
    tested: Mapping[tuple[str, str], Compared],
) -> list[Cell]:
    r = sequence.matrix(method, metric)
    separate = sequence.of_singles(alone[method], metric) if method in alone else None
    pretrained = sequence.of_singles(PRETRAINED, metric)

    def here(terms: Terms) -> Estimate | None:
        found = sequence.estimate(terms)
        return found.here if found else None

    share: float | None = None
    if pretrained is not None:
        left = share_left(r, pretrained)
        gained = here(left.learned)
        # Of what may be nothing, or less, there is no share.
        sure = gained is not None and interval(gained).low > 0
        share = left.value if sure and not np.isnan(left.value) else None
    whole = averages(r)
    looks, plain = sequence.confusion(method, metric), sequence.of_nouns(method, metric)
    return [
        here(known(r, len(r) - 1)),
        None if np.isnan(whole).any() else float(whole.mean()),
        here(learned(r)),
        tested.get((method, metric)),
        _finite(mean_of(forgetting(r))),
        here(intransigence(r, separate)) if separate is not None else None,
        share,
        float(looks.accuracy.mean()) if looks else None,
        here(damage(plain, pretrained)) if plain is not None and pretrained is not None else None,
    ]


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value


def confusions(sequence: SequenceResults, metric: str) -> Table:
    """How like the images of each concept are to the targets of every one, after the last task."""
    digits = METRICS[metric].digits
    columns = [Column("method", "method"), Column("asked", "asked for")]
    columns += [Column(c, words(c), "targets of", digits, metric) for c in sequence.concepts]
    columns.append(Column("own", "nearest to its own", "", 2))
    rows: list[tuple[Cell, ...]] = []
    for method in sequence.methods:
        found = sequence.confusion(method, metric)
        for j, concept in enumerate(sequence.concepts if found else ()):
            assert found is not None
            alike = found.alignment[j].tolist()
            rows.append((method, words(concept), *alike, float(found.accuracy[j])))
    table = Table(
        f"{METRICS[metric].title} of images after the last task with the targets of each concept",
        tuple(columns),
        tuple(rows),
        heading=sequence.results.heading(),
    )
    return marked(sequence.fresh, table, [{(str(row[0]), sequence.name)} for row in rows])
