"""A cell that could not be made is shown as such everywhere, and is not taken for one not run."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from eval.papers.claims import Verdict, check_claims, print_claims
from eval.papers.compare import print_comparison
from eval.report.figures import bars, scatter
from eval.report.grids import overview, read_rows, sheet
from eval.report.missing import missing_cells
from eval.report.printing import print_table
from eval.report.stage import write_report
from eval.results import load_results
from eval.scores.reading import failed_cells, load_scores
from eval.study.build import build
from eval.study.questionnaire import load_questionnaire
from eval.tables.building import by_subject, comparison
from eval.tables.gaps import NAMED, not_run
from eval.tables.rendering import as_csv, as_latex, as_markdown
from pipeline.common.failures import Failure
from pipeline.common.files import write_failure
from pipeline.concepts.concept import load_subject
from pipeline.settings.profile import load_grid, load_params
from tests.eval.synthetic import write_cost

CELLS = Path("runs/toyland/cells")
RECORDS = Path("reports/cells")
FAILURE = Failure("diverged", "custom_diffusion on cat: the loss is not finite: lower <the rate>")
OUTPUTS = ("adapter.safetensors", "samples.tar")
RECORDED = ("cost.json", "scores.csv", "samples.jpg")


def fail(method: str, subject: str) -> None:
    """What the stages of a cell leave when it fails."""
    for folder, names in ((CELLS, OUTPUTS), (RECORDS, RECORDED)):
        for name in names:
            write_failure(folder / method / subject / name, FAILURE)


@pytest.fixture
def failed(profile: Path) -> Path:
    """The scored profile, of which two cells failed for one reason and one was not run."""
    fail("custom_diffusion", "cat")
    fail("custom_diffusion_merge", "cat+chair")
    (RECORDS / "pretrained" / "chair" / "scores.csv").unlink()
    return profile


def rows_of(text: str) -> dict[tuple[str, ...], dict[str, str]]:
    rows = csv.DictReader(io.StringIO(text))
    return {tuple(row[k] for k in ("subject", "method") if k in row): row for row in rows}


def test_failed_is_neither_scored_nor_missing(failed: Path) -> None:
    cells = [("custom_diffusion", "cat"), ("custom_diffusion_merge", "cat+chair")]
    assert failed_cells("toyland") == dict.fromkeys(cells, FAILURE)
    scores = load_scores("toyland")
    assert not set(zip(scores["method"], scores["subject"])) & set(cells)
    assert missing_cells("toyland") == {"pretrained": ["chair"]}


def test_tables_show_it_where_numbers_would_be(failed: Path) -> None:
    results = load_results()
    table = comparison(results)
    rows = rows_of(as_csv(table))
    chair = results.found["custom_diffusion", "chair", "text_alignment"]
    trained, merged = rows["custom_diffusion",], rows["custom_diffusion_merge",]
    # The mean is over the rest.
    assert float(trained["single_text_alignment"]) == pytest.approx(chair.mean)
    assert trained["single_subjects"] == "1/2, 1 diverged"
    assert merged["compositions_text_alignment"] == "diverged"
    assert merged["compositions_text_alignment_se"] == ""
    assert merged["compositions_subjects"] == "0/1, 1 diverged"
    assert merged["single_text_alignment"] == "" and merged["single_subjects"] == ""
    assert rows["pretrained",]["single_subjects"] == "1/2"
    for style in (as_markdown, as_latex):
        lines = style(table).splitlines()
        (line,) = [line for line in lines if re.match(r"\W*custom.*diffusion.*merge", line)]
        assert line.count("diverged") == 2 + 1  # both metrics of compositions, and the count
    single = rows_of(as_csv(by_subject(results, "single")))
    assert {single["cat", "custom_diffusion"][m] for m in ("text_alignment", "kid")} == {"diverged"}
    assert ("chair", "pretrained") not in single
    # Other columns stay numbers, in the terminal as well.
    (title,) = [line for line in as_markdown(table).splitlines() if line.startswith("| ---")]
    assert title.count("--:") == len(table.columns) - 1


def test_the_printed_table_ends_with_the_reason(
    failed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table()
    *_, missing, why = capsys.readouterr().out.splitlines()
    assert missing == "not run: pretrained: chair"
    cells = "custom_diffusion/cat, custom_diffusion_merge/cat+chair"
    assert why == f"diverged: {cells}: {FAILURE.message}"
    print_table(methods=["pretrained"])
    assert "diverged" not in capsys.readouterr().out
    print_table(format="csv")
    assert FAILURE.message not in capsys.readouterr().out


def test_charts_and_sheets_show_it(failed: Path) -> None:
    results = load_results()
    for kind, label in (
        ("single", "custom diffusion, 1 diverged"),
        ("compositions", "custom diffusion merge, 1 diverged"),
    ):
        figure = scatter(results, kind)
        assert figure is not None
        assert label in [line.get_label() for line in figure.axes[0].lines]
    figure = bars(results, "kid")
    assert figure is not None
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown == ["oracle", "pretrained", "custom diffusion, 1 diverged"]

    params, grid = load_params(), load_grid()
    rows = read_rows(params, grid, "cat")
    assert [row.failure for row in rows] == [None, FAILURE]
    subject = load_subject("cat")
    assert sheet(subject, rows).methods == ("pretrained",)
    gap = [row._replace(failure=None) for row in rows]
    told, silent = (np.asarray(overview([subject], {"cat": r})) for r in (rows, gap))
    assert told.shape == silent.shape and (told != silent).any()


def test_the_report_is_written_and_says_why(
    failed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, method in enumerate(("pretrained", "custom_diffusion")):
        write_cost(RECORDS / method / "chair" / "cost.json", number)
    print_claims("toyland", write=True)
    write_failure(Path("reports/analyses/truth"), Failure("too few images", "cat: only <7> images"))
    write_report("toyland")
    assert f"cat+chair: {FAILURE.message}" in capsys.readouterr().out
    page = Path("reports/index.html").read_text(encoding="utf-8")
    aside = re.search(r'<aside[^>]*aria-label="Failed".*?</aside>', page, re.DOTALL)
    assert aside is not None
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", aside[0]))
    assert "diverged: custom diffusion on cat, custom diffusion merge on cat + chair:" in text
    assert "lower &lt;the rate&gt;" in text
    assert "Too few images: cat: only &lt;7&gt; images" in page
    assert '<td class="heat-0">diverged</td>' in page
    assert page.count(">diverged</td>") >= 4
    metrics = json.loads(Path("reports/methods/custom_diffusion_merge.json").read_text())
    assert metrics["compositions"]["text_alignment"] is None
    cost = rows_of(Path("reports/tables/cost.csv").read_text())
    assert cost["custom_diffusion",]["single_seconds"] == "11.5"


def test_claims_about_it_have_failed(failed: Path) -> None:
    found = {(f.claim.first, f.claim.second): f.verdict for f in check_claims(load_results()).here}
    # The merge has one subject, and it failed; DreamBooth is not in the grid.
    assert found["custom_diffusion", "custom_diffusion_merge"] is Verdict.FAILED
    assert found["custom_diffusion_merge", "dreambooth"] is Verdict.NOT_RUN
    assert found["custom_diffusion_sequential", "custom_diffusion"] is Verdict.NOT_RUN


def test_printed_numbers_stand_beside_it(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(table="7", format="csv")
    rows = {
        (row["method"], row["subject"]): row["verdict"]
        for row in csv.DictReader(io.StringIO(capsys.readouterr().out.split("\n\n")[0]))
        if row["metric"] == "text-alignment"
    }
    assert rows["custom_diffusion", "cat"] == "diverged"
    assert rows["custom_diffusion", "dog"] == "not run"


def test_people_are_not_asked_about_it(failed: Path) -> None:
    build("toyland")
    questions = load_questionnaire(Path("runs/toyland/study/questionnaire")).questions
    asked = {
        (method, question.subject)
        for question in questions
        for method in (question.left_method, question.right_method)
        if not question.gold
    }
    assert asked == {("custom_diffusion", s) for s in ("chair", "cat+chair")} | {
        ("pretrained", s) for s in ("chair", "cat+chair")
    }


def test_where_everything_failed_the_report_says_that(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in CELLS.glob("*/*"):
        fail(*path.parts[-2:])
    print_table()
    out = capsys.readouterr().out
    assert "0/2, 2 diverged" in out and out.endswith(f"{FAILURE.message}\n")
    print_claims("toyland", write=True)
    write_report("toyland")
    assert 'aria-label="Failed"' in Path("reports/index.html").read_text(encoding="utf-8")


def test_of_many_cells_the_number_is_said() -> None:
    cells = [f"concept_{number}" for number in range(NAMED + 1)]
    assert not_run({"lora": cells, "dreambooth": cells[1:]}) == (
        f"not run: lora: {NAMED + 1} cells; dreambooth: {', '.join(cells[1:])}"
    )
