"""Claims about sequences and the order of printed numbers, on values that were drawn to hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from eval.continual import SequenceResults
from eval.metrics import Values
from eval.papers.compare import sequence_orders
from eval.papers.reference import FOLDER, load_source, sequence_sources
from eval.papers.sequences import ALONE, JUST_LEARNED, SEQUENCE_CLAIMS, sequence_claims
from pipeline.common.errors import BenchError
from pipeline.methods import method_names

PROMPTS, TASKS = 20, 4
CIDM = FOLDER / "sequences" / "cidm.yaml"


@dataclass(frozen=True)
class Drawn(SequenceResults):
    """Values in place of scores."""

    values: dict[str, Values] = field(default_factory=dict)
    concepts: ClassVar = [f"c{n}" for n in range(TASKS)]
    metrics: ClassVar = ["image_alignment"]
    templates: ClassVar = [[f"{p} of {n}" for p in range(PROMPTS)] for n in range(TASKS)]

    @property
    def methods(self) -> list[str]:
        return [*self.values]

    def matrix(self, method: str, metric: str) -> Values:
        return self.values[method]

    def of_singles(self, method: str, metric: str) -> Values:
        assert (method, metric) == ("ed_lora", "image_alignment")
        return self.values["ed_lora_ewa"].diagonal().T


def drawn(**about: tuple[float, float]) -> Drawn:
    """By method, the mean of what was just learned, and what is lost by the end."""
    rng, values = np.random.default_rng(5), {}
    for name, (learned, lost) in about.items():
        r = np.full((TASKS, TASKS, PROMPTS), np.nan)
        noise = rng.normal(0, 0.02, (TASKS, PROMPTS))
        for g in range(TASKS):
            for j in range(g + 1):
                share = (g - j) / max(TASKS - 1 - j, 1)
                r[g, j] = learned + noise[j] - lost * share
        values[name] = r
    # The metric's range is from 0.3 to 0.9, of which 5 % count as nothing.
    results: Any = SimpleNamespace(
        mean=lambda method, *_: SimpleNamespace(mean=0.3 if method == "pretrained" else 0.9),
        averaged=lambda *_: [],
        heading=lambda: "",
    )
    empty = pd.DataFrame()
    return Drawn("toys", results, empty, empty, empty, 1, values=values)


def test_verdicts_follow_the_values() -> None:
    sequence = drawn(
        cidm=(0.8, 0.0), lora_merge=(0.8, 0.3), ed_lora_ewa=(0.8, 0.02), ed_lora_equal=(0.8, 0.3),
        custom_diffusion_ewc=(0.85, 0.0), textual_inversion=(0.6, 0.0),
        custom_diffusion_sequential=(0.8, -0.1), custom_diffusion_merge=(0.8, 0.001),
    )  # fmt: skip
    table = sequence_claims(sequence, {})
    keys = [column.key for column in table.columns]
    found = {row[0]: dict(zip(keys, row)) for row in table.rows}
    verdicts = {name: (row["verdict_here"], row["verdict"]) for name, row in found.items()}
    holds, fails = ("holds", "holds"), ("does not hold", "does not hold")
    assert verdicts["CIDM keeps most: lora merge"][0] == "holds"
    assert verdicts["CIDM keeps most: custom diffusion ewc"] == fails
    assert verdicts["words forget nothing"] == holds  # exactly
    assert found["words forget nothing"]["difference"].mean == 0
    assert verdicts["one after the other forgets"] == fails  # it gained
    assert verdicts["means dilute: lora merge"] == holds
    assert verdicts["the constrained merge keeps what CIDM keeps"][0] == "holds"
    assert verdicts["weights by prompt beat equal ones"][0] == "holds"
    # Nothing was forgotten by what went on unguarded either, which gained, and learned less.
    assert verdicts["what guards keeps more: custom diffusion ewc"] == fails
    assert verdicts["what guards learns less: custom diffusion ewc"] == fails
    assert verdicts["the constrained merge loses little"] == holds
    guarded = found["what guards learns less: custom diffusion ewc"]
    assert guarded["difference"].mean == pytest.approx(0.05, abs=0.01)
    assert guarded["comparison"].startswith("just learned, image-alignment: custom diffusion ewc <")
    # Without both methods nothing is said.
    assert "both terms beat that on factors" not in found


def test_what_no_value_decides_is_undecided() -> None:
    sequence = drawn(cidm=(0.8, 0.0), ed_lora_ewa=(0.8, 0.0))
    ((*_, here, anywhere),) = sequence_claims(sequence, {}).rows
    assert (here, anywhere) == ("undecided", "undecided")


def test_a_mix_is_set_against_each_concepts_own_adapter() -> None:
    """Of the method whose adapters it is made of."""
    sequence = drawn(ed_lora_ewa=(0.8, 0.3), ed_lora_equal=(0.8, 0.0))
    assert len(sequence_claims(sequence, {}).rows) == 1
    (_, row) = sequence_claims(sequence, {"ed_lora_ewa": "ed_lora"}).rows
    assert (row[0], row[-2]) == ("weights by prompt fall short of one adapter", "holds")


def test_claims_are_of_methods_that_there_are() -> None:
    named = {name for claim in SEQUENCE_CLAIMS for name in (claim.first, claim.second)}
    assert named - {JUST_LEARNED, ALONE} <= set(method_names())
    assert len({claim.name for claim in SEQUENCE_CLAIMS}) == len(SEQUENCE_CLAIMS)


def test_printed_means_are_those_of_their_rows_or_left_out(tmp_path: Path) -> None:
    (source,) = sequence_sources()
    without = [
        (printed.table, row.method)
        for printed in source.tables
        for row in printed.rows
        if not row.means
    ]
    assert without == [("1", "cidm"), ("2", "c_lora"), ("2", "cidm")]
    for (table, method), printed in zip(without, (0.780, 0.736, 0.748)):
        content = YAML().load(CIDM)
        row = next(
            row
            for part in content["tables"] if part["table"] == table
            for row in part["rows"] if row["method"] == method
        )  # fmt: skip
        row["means"] = {next(iter(row["values"])): printed}
        with open(tmp_path / "cidm.yaml", "w", encoding="utf-8") as file:
            YAML().dump(content, file)
        with pytest.raises(BenchError, match=f"{method}: .*the mean of the values is"):
            load_source(tmp_path / "cidm.yaml")


def test_the_order_of_methods_is_compared_and_no_value() -> None:
    """CIDM's image-alignment with SD-1.5: sequential < merge < C-LoRA < CIDM."""
    same = drawn(
        cidm=(0.9, 0.0), c_lora=(0.8, 0.0), lora_merge=(0.7, 0.0),
        custom_diffusion_sequential=(0.6, 0.0),
    )  # fmt: skip
    table = sequence_orders(same)
    assert "values cannot be compared" in table.caption
    first = table.rows[0]
    assert first[2:] == ("4", 1.0, "6/6")
    other = drawn(cidm=(0.6, 0.0), c_lora=(0.7, 0.0), lora_merge=(0.8, 0.0))
    assert sequence_orders(other).rows[0][2:] == ("3", -1.0, "0/3")
    assert not sequence_orders(drawn(cidm=(0.6, 0.0))).rows
