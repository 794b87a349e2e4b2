"""The report: everything it shows is there, and says what the tables say."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from eval.claims import write_claims
from eval.report import write_report
from pipeline.errors import BenchError

REPORTS = Path("reports")


class Page(HTMLParser):
    """Collects images, links and the texts of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.numbers: list[str] = []
        self.bold = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        self.bold = tag == "b"
        if tag == "img":
            self.images.append(found)
        elif tag == "a":
            self.links.append(found["href"] or "")

    def handle_data(self, data: str) -> None:
        if self.bold:
            self.numbers.append(data.strip())
            self.bold = False


@pytest.fixture(scope="module")
def complete(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with its report; only to be read."""
    root = tmp_path_factory.mktemp("reported") / "profile"
    shutil.copytree(scored, root)
    before = Path.cwd()
    os.chdir(root)
    try:
        write_claims("toyland")
        write_report("toyland")
    finally:
        os.chdir(before)
    return root


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
        "figures/overview.png", "figures/scatter.png", "figures/kid.png", "figures/subjects.png",
        "grids/cat.jpg", "grids/chair.jpg", "grids/cat+chair.jpg",
    }  # fmt: skip
    for image in page.images:
        with Image.open(REPORTS / str(image["src"])) as opened:
            opened.load()
            assert min(opened.size) > 200
        assert len(str(image["alt"])) > 20
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (REPORTS / link).is_file()
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    assert "<script" not in text
    assert "{{" not in text


def test_page_numbers_are_those_of_the_tables(reported: None) -> None:
    numbers = read_page().numbers
    for name in ("comparison", "single", "compositions"):
        with open(REPORTS / "tables" / f"{name}.csv") as file:
            rows = list(csv.DictReader(file))
        assert rows
        for row in rows:
            for key, value in row.items():
                if value and re.search(r"(alignment|kid)$", key):
                    shown = f"{float(value):.{2 if 'kid' in key else 3}f}"
                    assert shown in numbers, (name, key)


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


def test_reporting_again_gives_the_same_bytes_and_nothing_stale(
    profile: Path, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(complete)
    before = files()
    shutil.copytree(complete / REPORTS, profile / REPORTS)
    monkeypatch.chdir(profile)
    for stale in ("figures/old.png", "grids/old.jpg", "methods/old.json", "tables/old.csv"):
        (REPORTS / stale).write_text("stale")
    write_report("toyland")
    assert files() == before


def test_missing_cells_are_said_plainly(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/toyland/cells/pretrained/chair")
    (folder / "scores.csv").unlink()
    (folder / "samples.tar").unlink()
    write_report("toyland")
    assert "not run: pretrained: chair" in capsys.readouterr().out
    text = (REPORTS / "index.html").read_text(encoding="utf-8")
    assert "<li>pretrained: chair</li>" in text


def test_scores_without_samples_are_reported_without_grids(profile: Path) -> None:
    for samples in Path("runs").rglob("samples.tar"):
        samples.unlink()
    write_report("toyland")
    assert {image["src"] for image in read_page().images} == {
        "figures/scatter.png", "figures/kid.png", "figures/subjects.png",
    }  # fmt: skip
    assert list((REPORTS / "grids").iterdir()) == []


def test_nothing_to_report_is_told(project: Path) -> None:
    with pytest.raises(BenchError, match="no scores yet"):
        write_report("toyland")
