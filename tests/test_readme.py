"""README against the files: no number and no verdict in it may differ from what was measured."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from eval.analyses.agreement import DRAWN, OTHERS
from eval.report.readme import END, START, with_results
from eval.style import words
from pipeline.common.errors import BenchError

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "reports" / "tables"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = r"-?\d+(?:\.\d+)?"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def as_printed(value: str | float, printed: str) -> str:
    return f"{float(value):.{len(printed.partition('.')[2])}f}"


def wrong_in_table(text: str) -> list[str]:
    """Numbers of the results table that are not those of comparison.csv, digit by digit."""
    part = text[text.index(START) : text.index(END)]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    shown = {cells[0]: cells[1:] for cells in lines[2:]}
    wrong = []
    found = rows(TABLES / "comparison.csv")
    assert list(shown) == [row["method"] for row in found]
    for row in found:
        columns = [
            key
            for key in row
            if re.fullmatch(r"\w+_(alignment|identity_map|kid|fid|subjects)", key)
        ]
        assert len(columns) == len(shown[row["method"]])
        for key, cell in zip(columns, shown[row["method"]]):
            if match := re.match(rf"({NUMBER})(?: ± ({NUMBER}))?", cell.replace("/", "; ")):
                values = [row[key].partition("/")[0], row.get(f"{key}_se", "")]
                for value, printed in zip(values, match.groups()):
                    if printed and (not value or as_printed(value, printed) != printed):
                        wrong.append(f"{row['method']} {key}: {printed}, not {value}")
            elif row[key] and row[key] not in cell:
                wrong.append(f"{row['method']} {key}: {cell}, not {row[key]}")
    return wrong


def wrong_in_sentences(text: str) -> list[str]:
    """Means that stand behind a method's name, and counts of verdicts, that no file has."""
    part = text[text.index(START) : text.index(END)]
    bullets = [line for line in part.splitlines() if line.startswith("- **")]
    assert len(bullets) == 5
    said, wrong = " ".join(bullets[:4]), []
    for row in rows(TABLES / "comparison.csv"):
        means = [
            row[key] for key in row if re.fullmatch(r"\w+_(alignment|identity_map|kid|fid)", key)
        ]
        name = rf"\b{words(row['method'])}"
        behind = (
            rf"{name} \(({NUMBER})\)|{name} ({NUMBER}) to ({NUMBER})"
            rf"|{name} has the best mean [^(]+\(({NUMBER})\)|{name}: [^,]+ ({NUMBER}), ahead"
        )
        for printed in filter(None, (g for m in re.findall(behind, said, re.I) for g in m)):
            if printed not in [as_printed(mean, printed) for mean in means if mean]:
                wrong.append(f"{row['method']}: {printed}")
    claims = rows(ROOT / "reports" / "claims.csv")
    verdicts = r"(\d+) holds?, (\d+) do(?:es)? not and (\d+) (?:is|are) undecided"
    counts = re.findall(verdicts, bullets[4])
    for column, count in zip(("verdict_here", "verdict"), counts, strict=True):
        real = Counter(row[column] for row in claims)
        if [int(n) for n in count] != [real[v] for v in ("holds", "does not hold", "undecided")]:
            wrong.append(f"{column}: {count}, not {dict(real)}")
    return wrong


def wrong_elsewhere(text: str) -> list[str]:
    """Numbers of other sentences and tables that are measured somewhere."""
    card = json.loads((ROOT / "models/toyland/scorecard.json").read_text())
    ranks = {
        (row["truth"], row["metric"]): float(row["rho"])
        for row in rows(ROOT / "reports/analyses/truth/ranks.csv")
        if row["subject"] == "all"
    }
    cells = rows(ROOT / "reports/analyses/agreement/cells.csv")

    def seen(method: str) -> float:
        """In what share of its pictures of single concepts the thing is recognised."""
        found = [r for r in cells if (r["method"], r["kind"]) == (method, "single")]
        return sum(float(row["thing"]) for row in found) / len(found)

    measured = {
        r"rank correlation of ([\d.]+)": ranks["identity", "image_alignment"],
        r"prompt they show with ([\d.]+)": ranks["prompt", "text_alignment"],
        r"drifted with (\d\.\d+)": ranks["class", "kid"],
        r"custom diffusion (\d+) %; in": 100 * seen("custom_diffusion"),
        r"; in (\d+) % of drawn scenes": 100 * seen(DRAWN),
        r"and (\d+) % of those with another": 100 * seen(OTHERS),
        r"Of the pairs (\d+) %": 100 * card["generated"]["pair_both"],
        r"(\d+) %\s+have the style": 100 * card["generated"]["style"],
        r"(\d+) % the accessory": 100 * card["generated"]["accessory"],
        r"([\d.]+) dB": card["autoencoder"]["psnr"],
        r"an AUC of ([\d.]+)\.\s": card["scorer"]["identity_auc"],
    }
    for row in rows(TABLES / "cost.csv"):
        if stored := row["single_bytes"]:
            kilo = float(stored) < 0.1
            line = rf"\| `{row['method']}` \|.*\| ([\d.]+) {'kB' if kilo else 'MB'} \|"
            measured[line] = float(stored) * (1000 if kilo else 1)
    measured.pop(r"\| `pretrained` \|.*\| ([\d.]+) kB \|", None)  # it stores nothing
    wrong = []
    for pattern, value in measured.items():
        (printed,) = re.findall(pattern, text)
        if as_printed(value, printed) != printed:
            wrong.append(f"{pattern}: {printed}, not {value}")
    perfect = ("category", "colour", "background", "size", "pair_colours", "relation_beside")
    wrong += [f"not all of {name}" for name in perfect if card["generated"][name] < 1]
    return wrong


def test_the_results_are_those_of_the_report() -> None:
    assert with_results(TEXT) == TEXT, "run `bench readme`"


def test_every_number_is_the_files() -> None:
    assert wrong_in_table(TEXT) == []
    assert wrong_in_sentences(TEXT) == []
    assert wrong_elsewhere(TEXT) == []


def test_a_changed_number_is_found() -> None:
    """Each number in the table, in the sentences and elsewhere, one digit off."""
    part = TEXT[: TEXT.index(END)]
    table = [m for m in re.finditer(rf"{NUMBER} ± {NUMBER}", part) if m.start() > part.index(START)]
    assert len(table) >= 10
    for match in table:
        assert len(wrong_in_table(_off(TEXT, match.end() - 1))) == 1, match
        assert len(wrong_in_table(_off(TEXT, match[0].index(" ") - 1 + match.start()))) == 1, match
    means = [m for m in re.finditer(rf"[a-z] \({NUMBER}\)", part) if m.start() > part.index(START)]
    assert len(means) >= 5
    for match in means:
        changed = _off(TEXT, match.end() - 2)
        assert wrong_in_sentences(changed), match
    for count in re.finditer(r"\d+(?= (?:hold|do not|are undecided))", part):
        assert wrong_in_sentences(_off(TEXT, count.end() - 1)), count
    for match in re.finditer(r"rank correlation of 0\.\d+|with 0\.\d+|\d+ % have|\d+\.\d dB", TEXT):
        digit = max(i for i in range(match.start(), match.end()) if TEXT[i].isdigit())
        assert len(wrong_elsewhere(_off(TEXT, digit))) == 1, match
    assert with_results(_off(TEXT, table[0].end() - 1)) == TEXT


def _off(text: str, at: int) -> str:
    """The text with another digit."""
    return f"{text[:at]}{(int(text[at]) + 5) % 10}{text[at + 1 :]}"


@pytest.mark.parametrize("damaged", [TEXT.replace(START, ""), TEXT + START, TEXT.replace(END, "")])
def test_missing_marks_are_told(damaged: str) -> None:
    with pytest.raises(BenchError, match=r"README.md: the lines .* have to stand in it once"):
        with_results(damaged)
