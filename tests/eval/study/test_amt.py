"""The files for Amazon Mechanical Turk, and the page in a browser."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from eval.study.amt import write_amt
from eval.study.questionnaire import Questionnaire, load_questionnaire
from tests.eval.study.conftest import QUESTIONNAIRE

CHROMIUM = Path("/usr/bin/chromium")
SECONDS = 0.3
# What Amazon's script would make of the page's form element.
CROWD = "customElements.define('crowd-form', class extends HTMLElement {})"


def hits(folder: Path = QUESTIONNAIRE) -> list[dict[str, str]]:
    with (folder / "amt_upload.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def filled(row: dict[str, str], folder: Path = QUESTIONNAIRE) -> str:
    """The page as Amazon shows it: variables are replaced without a look."""
    page = (folder / "amt.html").read_text(encoding="utf-8")
    return re.sub(r"\$\{(\w+)\}", lambda match: row[match[1]], page)


@pytest.fixture
def about(study: Path) -> Questionnaire:
    return load_questionnaire(QUESTIONNAIRE)


def test_a_hit_is_a_block(about: Questionnaire) -> None:
    rows = hits()
    assert [row["block"] for row in rows] == [str(block) for block in about.blocks()]
    for row, questions in zip(rows, about.blocks().values()):
        for i, question in enumerate(questions, 1):
            assert row[f"question_{i}"] == question.question
            assert row[f"left_{i}"] == f"images/{question.left_image}"
            assert row[f"right_{i}"] == f"images/{question.right_image}"
            assert row[f"targets_{i}"].split() == [f"images/{name}" for name in question.targets]
        for i in range(len(questions) + 1, about.block + 1):
            assert row[f"question_{i}"] == row[f"left_{i}"] == ""


def test_the_page_uses_every_column_and_no_other(about: Questionnaire) -> None:
    used = set(re.findall(r"\$\{(\w+)\}", (QUESTIONNAIRE / "amt.html").read_text()))
    assert used | {"block"} == set(hits()[0])


def test_texts_are_markup_and_no_formulas(about: Questionnaire, tmp_path: Path) -> None:
    prompts = ['=HYPERLINK("x")', "<script>alert(1)</script>", '" onload="x', "-a & b", "@x"]
    questions = [replace(q, prompt=p) for q, p in zip(about.questions, prompts)]
    write_amt(tmp_path, replace(about, questions=tuple(questions)), "https://example.org/i/")
    (row,) = hits(tmp_path)
    cells = [row[f"prompt_{i}"] for i in range(1, 6)]
    assert cells[0] == "&#61;HYPERLINK(&quot;x&quot;)"
    assert cells[1] == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert cells[3:] == ["&#45;a &amp; b", "&#64;x"]
    assert '"' not in cells[2]
    assert row["left_1"] == f"https://example.org/i/{questions[0].left_image}"


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1100, "height": 800})
        browser.close()


@pytest.fixture
def page(browser_page: Page, about: Questionnaire, study: Path) -> Iterator[Page]:
    """A browser that fetches nothing from the network, and fails at any error of a page."""
    errors: list[str] = []
    browser_page.on("pageerror", lambda error: errors.append(str(error)))
    browser_page.on(
        "console", lambda said: errors.append(said.text) if said.type == "error" else None
    )
    browser_page.route(
        "https://assets.crowd.aws/*",
        lambda route: route.fulfill(body=CROWD, content_type="text/javascript"),
    )
    write_amt(QUESTIONNAIRE, replace(about, minimum_seconds=SECONDS), "images/")
    yield browser_page
    assert errors == []


def opened(page: Page, row: dict[str, str]) -> int:
    path = QUESTIONNAIRE.resolve() / "shown.html"
    path.write_text(filled(row), encoding="utf-8")
    page.goto(path.as_uri())
    return sum(bool(row[name]) for name in row if name.startswith("question_"))


def ready(page: Page) -> None:
    page.locator("fieldset:visible:not(.waiting)").wait_for()


def test_a_worker_answers_with_keys_and_clicks(page: Page, about: Questionnaire) -> None:
    row = hits()[0]
    count = opened(page, row)
    assert page.locator("fieldset").count() == count
    for i in range(1, count + 1):
        assert page.locator("#place").inner_text() == f"Question {i} of {count}"
        assert page.locator("fieldset:visible").count() == 1
        assert page.locator("fieldset:visible blockquote").inner_text() == row[f"prompt_{i}"]
        ready(page)
        if i % 2:
            page.keyboard.press("ArrowLeft")
        else:
            page.locator("fieldset:visible label").nth(1).click()
        page.locator(f"fieldset:nth-of-type({i})").wait_for(state="hidden")
    assert page.locator("#done").is_visible()
    answers = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('input')]"
        ".filter(i => !i.disabled && (i.type !== 'radio' || i.checked))"
        ".map(i => [i.name, i.value]))"
    )
    for i in range(1, count + 1):
        assert answers[f"choice_{i}"] == ("left" if i % 2 else "right")
        assert SECONDS <= float(answers[f"seconds_{i}"]) < 20


def test_an_answer_waits_for_the_images_to_be_seen(page: Page) -> None:
    opened(page, hits()[0])
    page.keyboard.press("ArrowLeft")
    assert page.locator(":checked").count() == 0
    ready(page)
    page.keyboard.press("ArrowRight")
    assert page.locator("fieldset:first-of-type :checked").get_attribute("value") == "right"


def test_going_back_changes_an_answer(page: Page) -> None:
    opened(page, hits()[0])
    ready(page)
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Question 2 of").wait_for()
    page.get_by_role("button", name="Back").click()
    ready(page)
    page.keyboard.press("ArrowRight")
    page.get_by_text("Question 2 of").wait_for()
    assert page.locator(":checked").count() == 1
    assert page.locator(":checked").get_attribute("value") == "right"


def test_gaps_are_not_submitted(page: Page) -> None:
    opened(page, hits()[0])
    sent = page.evaluate(
        "document.querySelector('crowd-form')"
        ".dispatchEvent(new Event('submit', {cancelable: true}))"
    )
    assert not sent
    assert page.locator("#place").inner_text().startswith("Question 1 of")


def test_targets_are_shown_in_place_of_the_text(page: Page) -> None:
    row = next(row for row in hits() if row["targets_1"])
    opened(page, row)
    assert page.locator("fieldset:visible blockquote").count() == 1
    assert not page.locator("fieldset:visible blockquote").is_visible()
    images = page.locator("fieldset:visible .targets img")
    assert images.count() == 4
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_the_page_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    opened(page, next(row for row in hits() if row["targets_1"]))
    ready(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    bottom = page.locator("fieldset:visible .sides").bounding_box()
    assert bottom is not None
    assert bottom["y"] + bottom["height"] < 1000
    page.set_viewport_size({"width": 1100, "height": 800})
