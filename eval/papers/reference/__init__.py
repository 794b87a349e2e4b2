"""Numbers that papers print, as data: one file for each source, checked when it is read.

A printed number is a fact about a table: of which protocol, base model and extractors it is, and
what is known to be wrong with it, stands beside it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from eval.metrics.catalogue import METRICS, Metric
from eval.style import words
from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse, read_yaml

FOLDER = Path(__file__).parent
# What papers print and nothing here measures.
PRINTED_ONLY: dict[str, Metric] = {
    "prefers_by_text": Metric("preferred by text, %", "% of answers", 2, True),
    "prefers_by_image": Metric("preferred by image, %", "% of answers", 2, True),
    "coco_fid": Metric("FID on MS-COCO", "squared Fréchet distance", 2, False),
}
ORDINALS = ("first", "second", "third")


class PrintedRow(Section):
    """What a table prints about one method."""

    method: str
    against: str | None = Field(default=None, description="the rival that people compared it with")
    target: int | None = Field(
        default=None,
        ge=1,
        le=len(ORDINALS),
        description="the number of the concept whose targets images are compared with",
    )
    values: dict[str, list[float]] = Field(
        default_factory=dict, description="by metric, of the table's subjects in their order"
    )
    means: dict[str, float] = Field(default_factory=dict, description="by metric")
    errors: dict[str, float] = Field(default_factory=dict, description="what stands behind ±")


class PrintedTable(Section):
    """One kind of subjects of a printed table."""

    table: str = Field(description="its number in arXiv's last version")
    cvpr: str | None = Field(default=None, description="its number in the proceedings")
    title: str
    kind: Literal["single", "compositions", "sequence"]
    steps: int | None = Field(
        default=None, description="of the sampler, if the protocol has others"
    )
    digits: int = Field(default=3, description="of alignments")
    subjects: list[str] = Field(default_factory=list)
    count: int | None = Field(default=None, description="of subjects, where they are not named")
    leave_out: dict[str, list[str]] = Field(
        default_factory=dict, description="by metric, the subjects that its means leave out"
    )
    errata: list[str] = Field(default_factory=list)
    rows: list[PrintedRow]

    def digits_of(self, metric: str) -> int:
        """How many digits the table prints: of alignments its own."""
        measured = METRICS.get(metric)
        if measured and measured.per_image:
            return self.digits
        return (measured or PRINTED_ONLY[metric]).digits

    def step(self, metric: str) -> float:
        """The last printed digit, which may have been cut off or rounded."""
        return float(f"1e-{self.digits_of(metric)}")

    def name(self) -> str:
        """As "Table 7 (CVPR: 6): Single concepts one by one"."""
        other = f" (CVPR: {self.cvpr})" if self.cvpr not in (None, self.table) else ""
        return f"Table {self.table}{other}: {self.title}"

    def mean_of_values(self, row: PrintedRow, metric: str) -> float:
        """The mean of a row's values by the table's own rule."""
        left_out = self.leave_out.get(metric, [])
        pairs = zip(self.subjects, row.values[metric])
        values = [value for subject, value in pairs if subject not in left_out]
        return sum(values) / len(values)

    @model_validator(mode="after")
    def _check(self) -> PrintedTable:
        for row in self.rows:
            for metric in {*row.values, *row.means} - METRICS.keys() - PRINTED_ONLY.keys():
                raise ValueError(f"{row.method}: {metric!r} is no metric")
            for metric, values in row.values.items():
                if len(values) != len(self.subjects):
                    raise ValueError(
                        f"{row.method}: {metric}: {len(values)} values of {len(self.subjects)} "
                        "subjects"
                    )
                if metric not in row.means:
                    continue
                mean, printed = self.mean_of_values(row, metric), row.means[metric]
                if abs(mean - printed) > self.step(metric) * (1 + 1e-6):
                    raise ValueError(
                        f"{row.method}: {metric}: the mean of the values is {mean:.5f}, not "
                        f"{printed}"
                    )
        return self


class Source(Section):
    """A paper or a README, and what its numbers were measured with."""

    source: str
    url: str
    protocol: str
    base: str = Field(description="a hub id")
    extractors: dict[str, str] = Field(description="by metric, how the model's name begins")
    never_comparable: dict[str, str] = Field(
        default_factory=dict, description="by metric, why no number can stand beside it"
    )
    errata: list[str] = Field(default_factory=list)
    tables: list[PrintedTable]


def load_source(path: Path) -> Source:
    """A file of printed numbers.

    Raises:
        BenchError: a field is missing or unknown, or the means of a table are not those of its
            values up to the last digit.
    """
    return parse(path, Source, read_yaml(path))


@cache
def sources() -> tuple[Source, ...]:
    """All that is known, Custom Diffusion first."""
    return tuple(load_source(path) for path in sorted(FOLDER.glob("*.yaml")))


@cache
def sequence_sources() -> tuple[Source, ...]:
    """What is known of concepts learned one after the other, where only an order can be compared.

    The subjects of its tables are the tasks, and numbers those after the last one.
    """
    return tuple(load_source(path) for path in sorted(FOLDER.glob("sequences/*.yaml")))


def printed_tables(table: str | None = None) -> list[tuple[Source, PrintedTable]]:
    """The printed tables in the order of their numbers, or those of one number.

    Raises:
        BenchError: there is no table of that number.
    """
    found = [(source, printed) for source in sources() for printed in source.tables]
    found.sort(key=lambda pair: pair[1].table)
    if table is None:
        return found
    chosen = [pair for pair in found if pair[1].table == table]
    if not chosen:
        known = ", ".join(dict.fromkeys(printed.table for _, printed in found))
        raise BenchError(f"table {table!r} is unknown: choose one of {known} (arXiv's numbers)")
    return chosen


def printed_name(subject: str) -> str:
    """How the paper calls a subject: photographs of its concepts end in "_photo" here."""
    return "+".join(concept.removesuffix("_photo") for concept in subject.split("+"))


def metric_title(metric: str, target: int | None = None) -> str:
    """How a metric is called, also one that is not measured here: "image-alignment, first"."""
    about = METRICS.get(metric) or PRINTED_ONLY.get(metric)
    title = about.title if about else words(metric)
    return title if target is None else f"{title}, {ORDINALS[target - 1]}"
