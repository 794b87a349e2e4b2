"""What methods really draw, and which metrics see it: analysis `agreement` in a table and words."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from eval.analyses.agreement import FACTS, THING
from eval.metrics.catalogue import METRICS
from eval.report.evidence import counted, listed
from eval.results import KINDS
from eval.statistics import Estimate, mean_over_groups
from eval.tables.table import Column, Table

COLUMNS = {THING: "the very thing", FACTS: "what prompts ask for"}


def seen_table(folder: Path) -> Table | None:
    """The shares of pictures that show it, by method; None if the analysis was not run.

    Args:
        folder: of the analysis.
    """
    shares = _shares(folder)
    known = [
        (kind, what)
        for kind in KINDS
        for what in COLUMNS
        if any(k[1:] == (kind, what) for k in shares)
    ]
    columns = [
        Column(f"{kind}_{what}", f"{COLUMNS[what]} ↑", KINDS[kind], 2) for kind, what in known
    ]
    body = []
    for method in dict.fromkeys(method for method, *_ in shares):
        found = [shares.get((method, kind, what)) for kind, what in known]
        body.append((method, *(_mean(subjects) if subjects else None for subjects in found)))
    caption = (
        "Shares of pictures that show the very thing, and of what prompts ask for, as classifiers "
        "see it that learned from drawn scenes; mean over subjects ± standard error over subjects, "
        "those that share a concept as one"
    )
    return Table(caption, (Column("method", "method"), *columns), tuple(body)) if body else None


def orders(folder: Path) -> str:
    """How many pairs of methods each metric has in the order of what is there; empty if not run."""
    rows = [r for r in rows_of(folder / "methods.csv") if METRICS[r["metric"]].headline]
    said = []
    for kind, title in KINDS.items():
        found = [row for row in rows if row["kind"] == kind]
        if found:
            counts = listed(f"{METRICS[r['metric']].title} {_pairs(r)}" for r in found)
            said.append(f"of {counted(int(found[0]['pairs']), 'pair')} on {title} {counts}")
    if not said:
        return ""
    return (
        "How many pairs of methods that learn does a metric put in the order in which classifiers "
        "do (image-alignment and identity by how often the thing is there, text-alignment by how "
        f"much of the prompt)? {_sentence('; '.join(said))}; in brackets 95 % of draws of subjects."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pairs(row: dict[str, str]) -> str:
    number, low, high = (
        f"{float(row[name]) * int(row['pairs']):.3g}" if row[name] else ""
        for name in ("alike", "low", "high")
    )
    return f"{number} [{low}, {high}]" if low else number


def recognised(folder: Path) -> dict[str, float]:
    """In what share of its pictures of single concepts the very thing is, by method."""
    return {
        method: _mean(subjects).mean
        for (method, kind, what), subjects in _shares(folder).items()
        if (kind, what) == ("single", THING)
    }


def _shares(folder: Path) -> dict[tuple[str, str, str], list[tuple[float, int]]]:
    """By method, kind and what is to be seen: the share of each subject, and its group."""
    shares = defaultdict(list)
    for row in rows_of(folder / "cells.csv"):
        for what in COLUMNS:
            share = float(row[what]), int(row["group"])
            shares[row["method"], row["kind"], what].append(share)
    return dict(shares)


def _mean(subjects: Sequence[tuple[float, int]]) -> Estimate:
    return mean_over_groups([share for share, _ in subjects], [group for _, group in subjects])


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table of an analysis; none if it was not run."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
