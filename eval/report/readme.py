"""The results in README.md: a marked part of it, written from the files of the default report."""

from __future__ import annotations

from pathlib import Path

from eval.analyses.agreement import DRAWN, OTHERS
from eval.report.evidence import read_evidence
from eval.report.findings import answers
from eval.report.seen import orders, recognised, rows_of
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.files import atomic
from pipeline.common.places import DEFAULT_PROFILE, folder_of, repro_command

README = Path("README.md")
START, END = "<!-- results: written by `bench readme` -->", "<!-- end of the results -->"


def results_part() -> str:
    """The comparison, and what was found, as Markdown.

    Raises:
        BenchError: the default profile has no report yet, or a file of it is damaged.
    """
    reports = folder_of(DEFAULT_PROFILE) / "reports"
    table = reports / "tables" / "comparison.md"
    try:
        comparison = table.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BenchError(f"{table}: {error}: run `{repro_command(DEFAULT_PROFILE)}`") from error
    found = answers(read_evidence(DEFAULT_PROFILE))
    said = [f"- **{answer.question}** {answer.text}" for answer in found]
    return "\n\n".join(
        [comparison.strip(), "\n".join(said), _truth(reports), _seen(reports)]
    ).strip()


def _truth(reports: Path) -> str:
    """How metrics rank pictures whose truth is known; empty if the analysis was not run."""
    rho = {
        (row["truth"], row["metric"]): float(row["rho"])
        for row in rows_of(reports / "analyses" / "truth" / "ranks.csv")
        if row["subject"] == "all"
    }
    if not rho:
        return ""
    identity, prompt = rho["identity", "image_alignment"], rho["prompt", "text_alignment"]
    return (
        "Since every drawn scene has known parameters, Toyland also tests the metrics (analysis "
        "`truth`): image-alignment orders pictures by their distance from the concept with a rank "
        f"correlation of {identity:.2f}, text-alignment by how much of the prompt they show with "
        f"{prompt:.2f}, KID sets by how far their class has drifted with {rho['class', 'kid']:.2f}."
    )


def _seen(reports: Path) -> str:
    """What methods really draw of single concepts, and which metrics see it; empty if not run."""
    folder = reports / "analyses" / "agreement"
    shares = {method: f"{100 * share:.0f} %" for method, share in recognised(folder).items()}
    if not shares:
        return ""
    drawn, others = shares.pop(DRAWN), shares.pop(OTHERS)
    said = ", ".join(f"{words(method)} {share}" for method, share in shares.items())
    return " ".join(
        [
            "What methods really draw is told by classifiers that learned from drawn scenes "
            f"(analysis `agreement`). They recognise the very thing in so many pictures: {said}; "
            f"in {drawn} of drawn scenes with it, and {others} of those with another of its "
            "category.",
            orders(folder),
        ]
    )


def with_results(text: str) -> str:
    """README's text with its marked part as it has to be.

    Raises:
        BenchError: the marks are not there, once each and in their order.
    """
    before, found, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not (found and ended) or START in rest or END in before + after:
        raise BenchError(f"{README}: the lines {START!r} and {END!r} have to stand in it once")
    return f"{before}{START}\n\n{results_part()}\n\n{END}{after}"


def write_readme() -> None:
    """Writes the results of the default profile's report into README.md.

    Raises:
        BenchError: see `results_part` and `with_results`.
    """
    text = with_results(README.read_text(encoding="utf-8"))
    with atomic(README) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"results -> {README}")
