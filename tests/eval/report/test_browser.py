"""The page in a real browser: it works, fits a phone, and shows what the files say."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, complete: Path) -> Iterator[Any]:
    """The report; fails if the page logs an error or asks for anything but files that exist."""
    context = browser.new_context(viewport=WIDE)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    opened.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url),
    )
    opened.goto(f"file://{complete}/reports/index.html", wait_until="load")
    yield opened
    assert wrong == []
    context.close()


def test_every_picture_is_there(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    sizes = page.evaluate("[...document.images].map((i) => i.complete && i.naturalWidth)")
    assert len(sizes) == 4
    assert all(sizes)
    urls = page.evaluate(
        """[...new Set([...document.querySelectorAll('.tile')]
            .filter((t) => !t.closest('dialog'))  // which is empty until a picture is enlarged
            .map((t) => getComputedStyle(t).backgroundImage.slice(5, -2)))]"""
    )
    assert len(urls) == 3
    for url in urls:
        loaded = page.evaluate(
            """(url) => new Promise((done) => {
                const image = new Image();
                image.onload = () => done(image.naturalWidth);
                image.onerror = () => done(0);
                image.src = url;
            })""",
            url,
        )
        assert loaded >= 384


@pytest.mark.parametrize("size", [WIDE, NARROW, {"width": 320, "height": 640}])
def test_the_page_never_scrolls_sideways(page: Any, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_tables_are_those_of_the_files(page: Any, complete: Path) -> None:
    tables = page.evaluate(
        """[...document.querySelectorAll('table[data-csv]')].map((t) => ({
            csv: t.dataset.csv,
            keys: [...t.querySelectorAll('[data-key]')].map((h) => h.dataset.key),
            rows: [...t.querySelectorAll('tbody tr')].map((r) => ({
                name: r.dataset.row,
                values: [...r.children].map((c) => c.querySelector('data')?.value ?? null),
                texts: [...r.children].map((c) => c.querySelector('data')?.textContent ?? null),
            })),
        }))"""
    )
    assert {table["csv"] for table in tables} == {
        "tables/comparison.csv", "tables/differences_single.csv",
        "tables/differences_compositions.csv", "tables/cost.csv", "claims.csv",
    }  # fmt: skip
    for table in tables:
        with open(complete / "reports" / table["csv"], encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if table["csv"] == "claims.csv":
            by_name = {row["claim"]: row["difference"] for row in rows if row["difference"]}
            assert {r["name"]: float(next(filter(None, r["values"]))) for r in table["rows"]} == {
                name: float(value) for name, value in by_name.items()
            }
            continue
        assert len(rows) == len(table["rows"])
        for row, shown in zip(rows, table["rows"]):
            assert next(iter(row.values())) == shown["name"]
            for key, value, text in zip(table["keys"], shown["values"], shown["texts"]):
                if value is None:
                    assert row[key] == "" or not re.fullmatch(r"-?[\d.]+", row[key])
                    continue
                assert float(value) == float(row[key])
                digits = len(text.partition(".")[2])
                assert text == f"{float(row[key]):.{digits}f}"


def test_the_chooser_works_by_keyboard(page: Any) -> None:
    pictures = page.locator("#chooser .methods figure")
    asked = page.locator("#chooser .asked")
    assert pictures.count() == 2
    first = asked.inner_text()
    page.locator("select[name=subject]").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert asked.inner_text() != first
    assert "--x: 2" in pictures.first.locator(".tile").get_attribute("style")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # the second sample
    assert "--x: 3" in pictures.first.locator(".tile").get_attribute("style")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the previous prompt
    assert asked.inner_text() == first
    page.keyboard.press("Enter")  # round to the last
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # and on to the first
    assert asked.inner_text() == first
    page.locator("select[name=subject]").focus()
    page.keyboard.press("End")
    assert pictures.count() == 3  # the composition has a merge
    label = pictures.last.locator(".tile").get_attribute("aria-label")
    assert label == f"cat + chair · custom diffusion merge · {asked.inner_text()[1:-1]}"
    assert f"cat + chair: {asked.inner_text()}" in pictures.last.inner_text()
    assert "image-alignment" in pictures.last.inner_text()


def test_a_click_enlarges_a_picture_and_says_what_it_is(page: Any) -> None:
    page.locator("#cat > summary").click()
    tile = page.locator("#cat .prompts .tile").last
    tile.click()
    dialog = page.locator("#enlarged")
    assert dialog.is_visible()
    label = tile.get_attribute("aria-label")
    shown = dialog.locator(".tile").first
    assert shown.get_attribute("aria-label") == label
    assert dialog.locator(".asked").inner_text() == (
        f"cat: “{label.split(' · ')[2]}”, picture 1 of 2"
    )
    said = dialog.locator("figcaption").first.inner_text()
    assert re.search(r"text-alignment \d\.\d{3}\s+image-alignment \d\.\d{3}\s+seed 2000", said)
    assert tile.get_attribute("aria-label").startswith("cat · custom diffusion · ")
    assert tile.get_attribute("title") == tile.get_attribute("aria-label")
    style = shown.get_attribute("style")
    assert "--x: 4" in style or "--x:4" in style
    assert shown.bounding_box()["width"] > tile.bounding_box()["width"] * 2
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_two_methods_stand_side_by_side_by_keyboard(page: Any) -> None:
    page.locator("select[name=subject]").focus()
    page.keyboard.press("End")  # the composition, of three methods
    page.locator("#chooser .methods .tile").first.click()
    dialog = page.locator("#enlarged")

    def shown() -> list[str]:
        return [t.get_attribute("aria-label") for t in dialog.locator(".tile").all()]

    def of(*methods: str, prompt: str) -> list[str]:
        return [f"cat + chair · {method} · {prompt}" for method in methods]

    prompt = shown()[0].split(" · ")[2]
    assert shown() == of("pretrained", "custom diffusion", prompt=prompt)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    assert shown() == of("custom diffusion", "custom diffusion merge", prompt=prompt)
    page.keyboard.press("Shift+ArrowDown")  # round to the first
    assert shown() == of("custom diffusion", "pretrained", prompt=prompt)
    page.keyboard.press("ArrowRight")
    assert "picture 2 of 2" in dialog.locator(".asked").inner_text()
    page.keyboard.press("ArrowRight")
    other = shown()[0].split(" · ")[2]
    assert other != prompt
    assert shown() == of("custom diffusion", "pretrained", prompt=other)
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert shown() == of("custom diffusion", "pretrained", prompt=prompt)
    page.keyboard.press("Escape")
    page.locator("#chooser .targets .tile").last.click()  # a target image has no rival
    assert dialog.locator(".asked").inner_text() == "target image of chair"
    assert dialog.locator("figure:visible").count() == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert dialog.locator(".asked").inner_text() == "target image of cat"


def test_it_reads_with_images_switched_off(browser: Any, complete: Path) -> None:
    context = browser.new_context(viewport=NARROW)
    opened = context.new_page()
    opened.route("**/*.{jpg,png,svg}", lambda route: route.abort())
    opened.goto(f"file://{complete}/reports/index.html")
    assert opened.locator("#chooser .methods figcaption").first.inner_text()
    alts = opened.evaluate("[...document.images].map((i) => i.alt.length)")
    assert min(alts) > 20
    assert opened.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    context.close()


def test_definitions_open_with_one_key(page: Any) -> None:
    button = page.locator("th .define", has_text="KID").first
    button.focus()
    page.keyboard.press("Enter")
    shown = page.locator("#define-kid")
    assert shown.is_visible()
    assert "maximum mean discrepancy" in shown.inner_text()
    page.keyboard.press("Escape")
    assert not shown.is_visible()


def test_it_reads_without_a_script(browser: Any, complete: Path) -> None:
    context = browser.new_context(viewport=NARROW, java_script_enabled=False)
    opened = context.new_page()
    opened.goto(f"file://{complete}/reports/index.html")
    assert not opened.locator("#chooser").is_visible()
    assert opened.locator("#look-note").is_visible()
    opened.locator("#cat > summary").click()
    assert opened.locator("#cat .prompts .tile").first.is_visible()
    assert opened.locator("#cat .prompts .tile").count() == 6
    opened.locator("th .define", has_text="text-alignment").first.click()
    assert opened.locator("#define-text_alignment").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page: Any, scheme: str) -> None:
    """WCAG's contrast of 4.5, for every text on what lies behind it."""
    page.emulate_media(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_luminance(paper) > 0.5) == (scheme == "light")
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    pairs = page.evaluate(
        """(() => {
            const clear = (c) => c === 'rgba(0, 0, 0, 0)';
            const found = new Set();
            for (const e of document.querySelectorAll('body *')) {
                const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
                if (!own || !e.checkVisibility()) continue;
                let behind = e;
                while (behind && clear(getComputedStyle(behind).backgroundColor))
                    behind = behind.parentElement;
                const back = behind ? getComputedStyle(behind).backgroundColor : 'rgb(255,255,255)';
                found.add(getComputedStyle(e).color + '|' + back);
            }
            return [...found];
        })()"""
    )
    assert len(pairs) > 8
    for pair in pairs:
        ink, back = (_luminance(colour) for colour in pair.split("|"))
        assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) >= 4.5, pair


def _luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_everything_has_a_name(page: Any) -> None:
    """Headings follow each other, pictures and controls have names, identifiers are unique."""
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    levels = page.evaluate(
        "[...document.querySelectorAll('header, main')]"
        ".flatMap((p) => [...p.querySelectorAll('h1,h2,h3,h4')]).map((h) => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    nameless = page.evaluate(
        """[...document.querySelectorAll('[role=img], img, button, select, table, [role=region]')]
            .filter((e) => !e.closest('[aria-hidden=true]'))
            .filter((e) => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim()
                             || e.labels?.length)).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_it_prints(page: Any, tmp_path: Path) -> None:
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.emulate_media(media="print", color_scheme="dark")  # paper is white
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert _luminance(paper) == 1
    assert not page.locator("nav").is_visible()
    assert page.locator("h1").is_visible()
