"""The report: everything it shows is there, and says what the tables say."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from eval.papers.claims import print_claims
from eval.report.maps import LEVELS, shades
from eval.report.origin import CODE, origin
from eval.report.profiles import neighbours
from eval.report.stage import write_report
from eval.statistics import Estimate
from eval.tables.rendering import texts_of
from eval.tables.table import Column, Table
from pipeline.common.errors import BenchError
from pipeline.settings.profile import load_params

REPORTS = Path("reports")


class Page(HTMLParser):
    """Collects images, links and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.numbers: list[tuple[float, str]] = []  # in full, and as shown
        self.sheets: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if tag == "data":
            self.data = str(found["value"])
        if "--sheet" in (found.get("style") or ""):
            self.sheets.append(str(found["style"]))
        if tag == "img":
            self.images.append(found)
        elif tag == "a":
            self.links.append(found["href"] or "")

    def handle_data(self, data: str) -> None:
        if self.data:
            self.numbers.append((float(self.data), data.strip()))
            self.data = ""


@pytest.fixture
def reported(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in it."""
    monkeypatch.chdir(complete)


def read_page() -> Page:
    page = Page()
    page.feed((REPORTS / "index.html").read_text(encoding="utf-8"))
    return page


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(REPORTS.rglob("*")) if p.is_file()}


def test_page_shows_images_and_links_that_exist(reported: None) -> None:
    page = read_page()
    assert {image["src"] for image in page.images} == {
        "figures/overview.png", "figures/scatter_single.svg", "figures/scatter_compositions.svg",
        "figures/kid.svg",
    }  # fmt: skip
    for image in page.images:
        assert (REPORTS / str(image["src"])).is_file()
        assert len(str(image["alt"])) > 20
    assert {re.search(r"url\('sprites/([^']+)'\)", style)[1] for style in page.sheets} == {
        "cat.jpg", "chair.jpg", "cat%2Bchair.jpg",
    }  # fmt: skip
    assert {path.name for path in (REPORTS / "grids").iterdir()} == {
        "cat.jpg", "chair.jpg", "cat+chair.jpg",
    }  # fmt: skip
    for path in (*(REPORTS / "grids").iterdir(), *(REPORTS / "sprites").iterdir()):
        with Image.open(path) as opened:
            opened.load()
            assert min(opened.size) > 100
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (REPORTS / link).is_file()
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    assert "{{" not in text
    assert "None" not in text


def test_page_numbers_are_those_of_the_tables(reported: None) -> None:
    numbers = read_page().numbers
    digits = {"kid": 2}
    for name in ("comparison", "single", "compositions", "differences_single"):
        with open(REPORTS / "tables" / f"{name}.csv") as file:
            rows = list(csv.DictReader(file))
        assert rows
        for row in rows:
            for key, value in row.items():
                if value and re.search(r"(alignment|kid)$", key):
                    shown = f"{float(value):.{digits.get(key.split('_')[-1], 3)}f}"
                    assert (float(value), shown) in numbers, (name, key)


def test_printed_numbers_stand_beside_ours_where_they_can_be_compared_only(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside() -> list[str]:
        write_report("toyland")
        text = (REPORTS / "index.html").read_text(encoding="utf-8")
        assert "rank correlation" in text  # the order can be compared anyway
        row = text.split('data-row="custom_diffusion"')[1].split("</tr>")[0]
        return re.findall(r"paper ([\d.]+)", row)

    assert beside() == []
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "define-paper" not in text
    assert ">printed<" not in text
    # As if protocol, models and subjects were the paper's.
    monkeypatch.setattr("eval.papers.compare.obstacle", lambda *_: "")
    monkeypatch.setattr("eval.papers.compare._other_subjects", lambda *_: "")
    assert beside() == ["0.795", "0.775", "20.96", "0.801", "0.706"]
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "is what Custom Diffusion (arXiv:2212.04488)" in text
    assert ">printed<" in text


def test_the_page_begins_with_what_was_found(reported: None) -> None:
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="([^"]+)"', text)[:4] == [
        "findings", "trade-off", "look", "comparison",
    ]  # fmt: skip
    assert text.index("figures/scatter_single.svg") < text.index("figures/overview.png")


def test_other_profiles_with_results_are_linked_from_the_start_page(profile: Path) -> None:
    for name in ("made", "bare"):
        folder = Path("profiles", name)
        folder.mkdir(parents=True)
        params = Path("params.yaml").read_text().replace("profile: toyland", f"profile: {name}")
        (folder / "params.yaml").write_text(params)
    figures = Path("profiles/made/reports/figures")
    figures.mkdir(parents=True)
    (figures / "scatter_single.svg").write_text("<svg/>")
    (figures.parent / "index.html").write_text("a page")
    print_claims("toyland", write=True)
    write_report("toyland")
    page = read_page()
    assert "../profiles/made/reports/index.html" in page.links
    shown = {image["src"] for image in page.images}
    assert "../profiles/made/reports/figures/scatter_single.svg" in shown
    assert not any("bare" in str(link) for link in page.links)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (REPORTS / link).is_file()


def test_the_committed_page_is_light() -> None:
    """With all pictures that it shows: 6 MB at most."""
    reports = Path(__file__).parents[3] / "reports"
    shown = [reports / "index.html", *reports.glob("figures/*"), *reports.glob("sprites/*")]
    shown += reports.glob("analyses/**/*.png")
    assert len(shown) > 3
    assert sum(path.stat().st_size for path in shown) < 6e6


def test_other_profiles_lead_back_to_the_start_page(project: Path) -> None:
    params = load_params().model_copy(update={"profile": "another"})
    assert neighbours(params) == []
    Path("reports/index.html").parent.mkdir()
    Path("reports/index.html").write_text("a page")
    (found,) = neighbours(params)
    assert (found.profile, found.page, found.plot) == (
        "toyland", "../../../reports/index.html", "",
    )  # fmt: skip


def test_the_extremes_of_each_metric_are_shown(reported: None) -> None:
    """Of the pictures of the cat on its sheet, which are all of its two methods."""
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    part = text.split('<details class="subject" id="cat">')[1].split("</details>")[0]
    frames = [
        pd.read_csv(f"reports/cells/{method}/cat/scores.csv")
        for method in ("pretrained", "custom_diffusion")
    ]
    scores = pd.concat(frames)
    for metric in ("text_alignment", "image_alignment"):
        values = scores[(scores["metric"] == metric) & scores["sample"].notna()]["value"]
        title = metric.replace("_", "-")
        for side, value in (("best", values.max()), ("worst", values.min())):
            shown = part.split(f"<b>{side} {title}</b>")[1].split("</data>")[0]
            assert shown.endswith(f">{value:.3f}")


def test_every_metric_opens_its_definition(reported: None) -> None:
    page = read_page()
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    targets = set(re.findall(r'popovertarget="([^"]+)"', text))
    wanted = "text_alignment image_alignment kid oracle mark error pretrained"
    assert targets == {f"define-{name}" for name in wanted.split()}
    assert targets <= page.ids
    assert "2.5 · max(0, cosine)" in text
    assert "Measured with scorer@" in text


def test_page_says_how_it_was_made(reported: None) -> None:
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "bench report --profile toyland" in text
    assert "not in a git repository" in text
    assert "images_per_prompt: 3" in text  # the protocol's file
    assert "composition_steps: 500" in text  # params.yaml
    assert re.search(r"torch \d+\.\d+", text)
    assert "a processor, 2 cores (cpu, float32)" in text


def test_costs_are_means_over_cells(reported: None) -> None:
    with open(REPORTS / "tables" / "cost.csv") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    folder = Path("reports/cells/custom_diffusion")
    costs = [json.loads((folder / s / "cost.json").read_text()) for s in ("cat", "chair")]
    row = rows["custom_diffusion"]
    assert float(row["single_seconds"]) == sum(cost["seconds"] for cost in costs) / 2
    assert float(row["single_bytes"]) == pytest.approx(sum(c["bytes"] for c in costs) / 2e6)
    assert float(row["single_peak_bytes"]) == 2
    merge = rows["custom_diffusion_merge"]
    assert merge["single_seconds"] == ""
    own = json.loads(
        (folder.with_name("custom_diffusion_merge") / "cat+chair/cost.json").read_text()
    )
    made_of = sum(cost["seconds"] for cost in costs)
    assert float(merge["compositions_seconds"]) == pytest.approx(own["seconds"] + made_of)


def test_prompts_are_in_a_file(reported: None) -> None:
    with open(REPORTS / "tables" / "prompts.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2 + 3 * 3  # concepts, prompts and methods; the composition
    assert list(rows[0]) == [
        "subject", "prompt_index", "prompt", "method", "text_alignment", "image_alignment",
    ]  # fmt: skip


def test_chooser_has_the_scores_of_each_picture(reported: None) -> None:
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    content = json.loads(re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)[1])
    assert [subject["name"] for subject in content] == ["cat", "chair", "cat + chair"]
    cat = content[0]
    method = next(m for m in cat["methods"] if m["name"] == "custom diffusion")
    with open("reports/cells/custom_diffusion/cat/scores.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "text_alignment"]
    assert method["scores"][0] == [round(float(row["value"]), 3) for row in rows]
    assert (cat["samples"], len(cat["prompts"])) == (2, 3)
    assert method["seeds"] == [str(p * 1000 + s) for p in range(3) for s in range(2)]


def test_without_responses_the_page_says_so(reported: None) -> None:
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "There are no responses" in text


def test_what_people_said_is_shown(profile: Path) -> None:
    folder = REPORTS / "study"
    folder.mkdir(parents=True)
    print_claims("toyland", write=True)
    (folder / "summary.json").write_text('{"responses": 0, "raters": 0, "excluded": {}}')
    write_report("toyland")
    assert "There are no responses" in (REPORTS / "index.html").read_text(encoding="utf-8")
    table = Table(
        "Shares of answers",
        (Column("method", "method"), Column("preferred", "preferred, %", digits=1)),
        (("custom_diffusion", Estimate(61.25, 3.0, 80, 8)),),
    )
    (folder / "tables.json").write_text(json.dumps({"ranking": texts_of(table)._asdict()}))
    (folder / "summary.json").write_text('{"responses": 80, "raters": 8, "excluded": {"fast": 3}}')
    write_report("toyland")
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "<strong>80</strong> responses of 8 raters" in text
    assert "3 (the rater was too fast)" in text
    assert "<td>custom diffusion</td><td>61.2 ± 3.0</td>" in text
    assert '<span>Shares of answers. (<a href="study/ranking.csv">CSV</a>)</span>' in text
    (folder / "tables.json").unlink()
    with pytest.raises(BenchError, match="not what `bench study analyse` writes"):
        write_report("toyland")
    (folder / "summary.json").write_text("{}")
    with pytest.raises(BenchError, match="not what `bench study analyse` writes"):
        write_report("toyland")


def test_metrics_have_the_same_keys_for_every_method(reported: None) -> None:
    contents = {p.stem: json.loads(p.read_text()) for p in (REPORTS / "methods").glob("*.json")}
    assert set(contents) == {
        "oracle", "pretrained", "custom_diffusion", "custom_diffusion_merge",
    }  # fmt: skip
    shapes = {tuple((k, tuple(v)) for k, v in content.items()) for content in contents.values()}
    assert len(shapes) == 1
    assert contents["custom_diffusion_merge"]["single"]["kid"] is None
    with open(REPORTS / "tables" / "comparison.csv") as file:
        row = next(r for r in csv.DictReader(file) if r["method"] == "custom_diffusion")
    values = contents["custom_diffusion"]
    assert values["single"]["image_alignment"] == float(row["single_image_alignment"])
    assert values["compositions"]["text_alignment_se"] == float(
        row["compositions_text_alignment_se"]
    )


def test_summary_has_the_means_of_the_methods_alone(reported: None) -> None:
    summary = json.loads((REPORTS / "summary.json").read_text())
    assert list(summary) == ["pretrained", "custom_diffusion", "custom_diffusion_merge"]
    for method, values in summary.items():
        whole = json.loads((REPORTS / "methods" / f"{method}.json").read_text())
        means = {
            f"{prefix}{metric.removesuffix('_alignment')}": value
            for kind, prefix in (("single", ""), ("compositions", "composed_"))
            for metric, value in whole[kind].items()
            if not metric.endswith("_se") and metric != "subjects" and value is not None
        }
        assert values == means


def test_reporting_again_gives_the_same_bytes_and_nothing_stale(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(complete)
    before = files()
    shutil.copytree(complete, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    for stale in (
        "figures/old.png", "grids/old.jpg", "sprites/old.jpg", "methods/old.json", "tables/old.csv",
    ):  # fmt: skip
        (REPORTS / stale).write_text("stale")
    write_report("toyland")
    assert files() == before


def test_missing_cells_are_said_plainly(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("reports/cells/pretrained/chair")
    (folder / "scores.csv").unlink()
    (folder / "samples.jpg").unlink()
    write_report("toyland")
    assert "not run: pretrained: chair" in capsys.readouterr().out
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "<li>pretrained: chair</li>" in text.split('<h2 id="gaps">')[1]
    assert '<a href="#gaps">1 cell of the grid not run</a>' in text.split('id="comparison"')[1]
    assert "not run" not in text.split('<h2 id="trade-off">')[0]


def test_scores_without_pictures_are_reported_without_grids(profile: Path) -> None:
    for pictures in Path("reports").rglob("samples.jpg"):
        pictures.unlink()
    write_report("toyland")
    page = read_page()
    assert {image["src"] for image in page.images} == {
        "figures/scatter_single.svg", "figures/scatter_compositions.svg", "figures/kid.svg",
    }  # fmt: skip
    assert page.sheets == []
    assert "look" not in page.ids
    assert list((REPORTS / "grids").iterdir()) == list((REPORTS / "sprites").iterdir()) == []


def test_nothing_to_report_is_told(project: Path) -> None:
    with pytest.raises(BenchError, match="no scores yet"):
        write_report("toyland")


def test_a_protocol_with_every_metric_is_reported(profile: Path) -> None:
    """DINO's image-alignment and FID stand where the protocol asks for them."""
    yaml = YAML()
    path = Path("datasets/protocols/toyland-v2.yaml")
    protocol = yaml.load(path)
    protocol["score"]["metrics"] += ["dino_image_alignment", "fid"]
    yaml.dump(protocol, path)
    for file in Path("reports/cells").rglob("scores.csv"):
        frame = pd.read_csv(file)
        more = frame[frame["metric"].str.contains("image_alignment|kid")].copy()
        more["metric"] = more["metric"].str.replace("image", "dino_image").replace("kid", "fid")
        both = pd.concat([frame, more])
        both.assign(rows=len(both)).to_csv(file, index=False)
    write_report("toyland")
    with open(REPORTS / "tables" / "comparison.csv") as file:
        row = next(r for r in csv.DictReader(file) if r["method"] == "custom_diffusion")
    for kind in ("single", "compositions"):
        assert row[f"{kind}_dino_image_alignment"] == row[f"{kind}_image_alignment"]
    assert row["single_fid"] == row["single_kid"]
    assert "compositions_fid" not in row
    page = read_page()
    assert {"define-fid", "define-dino_image_alignment"} <= page.ids
    assert "figures/fid.svg" in {image["src"] for image in page.images}
    assert json.loads((REPORTS / "methods" / "pretrained.json").read_text())["single"]["fid"]


def test_commit_is_the_last_of_the_code_and_not_of_the_report(project: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("add", "params.yaml", "grid.yaml")
    git("commit", "-qm", "code")
    first = git("rev-parse", "HEAD")
    Path("reports").mkdir()
    Path("reports/index.html").write_text("a page")
    git("add", "reports")
    git("commit", "-qm", "report")
    found = origin(load_params())
    assert found.commit == first
    assert "grid.yaml" in CODE
    with open("grid.yaml", "a") as file:
        file.write("# changed\n")
    assert "grid.yaml" in origin(load_params()).changed
    assert "reports/index.html" not in origin(load_params()).changed


def test_shades_span_the_values_and_darker_is_better() -> None:
    found = shades([1.0, None, 3.0, 2.0], higher_is_better=True)
    assert [shade.level for shade in found] == [0, 0, LEVELS, LEVELS // 2]
    assert [s.level for s in shades([1.0, 3.0], higher_is_better=False)] == [LEVELS, 0]
    assert [s.level for s in shades([2.0, 2.0, None], higher_is_better=True)] == [0, 0, 0]
