"""The lab page in a real browser: keys, touch, resuming, a server that dies, looks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eval.study.private import INVITATIONS, new_code
from tests.eval.study.lab import make_questionnaire, serving

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")

PHONE = {
    "viewport": {"width": 375, "height": 667},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
READY = "button[aria-disabled=false]"
# The lowest contrast of any text with what is behind it, as WCAG 2 reckons it.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const [r, g, b] = rgba(color).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return rgba(color)[3] > 0 ? color : behind(element.parentElement);
  };
  let lowest = 21;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [getComputedStyle(element).color, behind(element)].map(light);
    lowest = Math.min(lowest, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return lowest;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Study:
    """A server, the browsers at it, and all that they complain about."""

    def __init__(self, folder: Path, browser: Any) -> None:
        self.folder, self.browser = folder, browser
        self.database = folder.with_name("answers.sqlite")
        self.questionnaire = make_questionnaire(folder, seconds=0.3)
        self.complaints: list[str] = []
        self.url = ""
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = ExitStack()
        self.process, self.url = self.server.enter_context(
            serving(self.folder, self.database, self.port)
        )
        self.admin = self.process.stdout.readline().split()[1]
        self.port = int(self.url.rpartition(":")[2])

    def page(self, **device: Any) -> Any:
        context = self.browser.new_context(**device)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._request)
        return page

    def _request(self, request: Any) -> None:
        if not request.url.startswith(f"{self.url}/"):
            self.complaints.append(f"left the site: {request.url}")

    def begin(self, **device: Any) -> Any:
        page = self.page(**device)
        page.goto(self.url)
        page.get_by_role("button", name="Start").click()
        page.wait_for_selector(READY)
        return page

    def answers(self) -> list[tuple[str, str, float]]:
        connection = sqlite3.connect(self.database)
        query = "SELECT question, choice, seconds FROM answers ORDER BY rowid"
        found = connection.execute(query).fetchall()
        connection.close()
        return found


@pytest.fixture
def study(tmp_path: Path, chromium: Any) -> Iterator[Study]:
    study = Study(tmp_path / "questionnaire", chromium)
    yield study
    for context in chromium.contexts:
        context.close()
    study.server.close()


def at(page: Any, number: int) -> None:
    """Waits until a question is there and may be answered."""
    page.locator("header p", has_text=f"{number} of 4").wait_for()
    page.wait_for_selector(READY)


def test_a_block_by_keyboard(study: Study) -> None:
    page = study.begin(viewport={"width": 1280, "height": 800})
    for number, key in enumerate(("ArrowLeft", "2", "1", "ArrowRight"), 1):
        at(page, number)
        for image in page.query_selector_all("img"):
            assert image.evaluate("image => image.naturalWidth") == 64
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        page.keyboard.press(f"Control+{key}")  # the browser's own shortcut, not an answer
        page.keyboard.press(key)
    page.wait_for_selector("text=All 4 answers are stored")
    given = study.answers()
    assert [choice for _, choice, _ in given] == ["left", "right", "left", "right"]
    block = study.questionnaire.blocks()[0]
    assert [question for question, _, _ in given] == [question.question for question in block]
    assert min(seconds for *_, seconds in given) >= 0.3
    assert study.complaints == []


def test_focus_moves_from_left_to_right_and_is_seen(study: Study) -> None:
    page = study.begin()
    for side in ("left", "right"):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "[document.activeElement.value, getComputedStyle(document.activeElement).outlineWidth]"
        )
        assert focused == [side, "3px"]
    page.keyboard.press("Enter")
    at(page, 2)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    at(page, 3)
    assert [choice for _, choice, _ in study.answers()] == ["right", "left"]
    assert study.complaints == []


def test_a_block_by_touch_on_a_phone(study: Study) -> None:
    page = study.begin(**PHONE)
    for number, side in enumerate(("right", "right", "left", "left"), 1):
        at(page, number)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for target in page.query_selector_all("form button"):
            box = target.bounding_box()
            assert min(box["width"], box["height"]) >= 120
            assert box["y"] + box["height"] <= 667
        page.get_by_alt_text(f"{side} image").tap()
    page.wait_for_selector("text=All 4 answers are stored")
    assert [choice for _, choice, _ in study.answers()] == ["right", "right", "left", "left"]
    assert study.complaints == []


def test_looking_comes_before_choosing(study: Study) -> None:
    page = study.page()
    page.goto(study.url)
    # Images that are slow to come are not looked at yet.
    late: list[Any] = []

    def hold(route: Any) -> None:
        late.append(route)

    page.route("**/images/*", hold)
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=Look at both images first")
    page.keyboard.press("1")
    page.get_by_alt_text("left image").click(force=True)
    page.wait_for_timeout(600)
    assert page.query_selector(READY) is None
    start = time.monotonic()
    for route in late:
        route.continue_()
    page.wait_for_selector(READY)
    assert time.monotonic() - start >= 0.3
    assert study.answers() == []


def test_a_missing_image_is_told_and_cannot_be_judged(study: Study) -> None:
    page = study.page()
    page.goto(study.url)
    page.route("**/images/*", lambda route: route.abort())
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=An image did not arrive")
    page.keyboard.press("1")
    page.wait_for_timeout(200)
    assert study.answers() == []


def test_a_rater_stops_and_continues(study: Study) -> None:
    page = study.begin()
    page.keyboard.press("1")
    at(page, 2)
    page.reload()
    at(page, 2)
    page.go_back()  # to the welcome
    page.wait_for_selector("text=You have answered 1 of 4")
    page.get_by_role("link", name="Continue").click()
    at(page, 2)
    page.get_by_text("Stop now and continue later").click()
    link = page.get_by_label("Your link to continue").input_value()
    elsewhere = study.page(**PHONE)
    # As in an e-mail: a link on a page of another site.
    elsewhere.goto(f"data:text/html,<a href='{link}'>study</a>")
    elsewhere.get_by_text("study").click()
    elsewhere.get_by_role("button", name="Continue here").click()
    at(elsewhere, 2)
    elsewhere.get_by_alt_text("right image").tap()
    at(elsewhere, 3)
    page.keyboard.press("1")  # the old page, which does not know: refused, and said why
    page.wait_for_selector("text=You have answered this question already")
    page.get_by_role("link", name="To the study").click()
    page.wait_for_selector("text=You have answered 2 of 4")
    assert [choice for _, choice, _ in study.answers()] == ["left", "right"]


def test_who_is_invited_types_a_code_or_opens_a_link(tmp_path: Path, chromium: Any) -> None:
    folder = tmp_path / "questionnaire"
    make_questionnaire(folder, seconds=0.3)
    codes = [new_code() for _ in range(2)]
    (tmp_path / INVITATIONS).write_text("\n".join(["code", *codes]) + "\n")
    with serving(folder, tmp_path / "answers.sqlite", open_to=0) as (_, url):
        context = chromium.new_context(**PHONE)
        page = context.new_page()
        page.goto(url)
        page.get_by_label("The code of your invitation").fill(codes[0].upper())
        assert page.evaluate(CONTRAST) >= 4.5
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="Start").click()
        at(page, 1)
        context.clear_cookies()
        page.goto(f"{url}/rater/{codes[1]}")
        page.get_by_role("button", name="Start").click()
        at(page, 1)
        page.keyboard.press("1")
        at(page, 2)
        context.clear_cookies()
        page.goto(f"{url}/rater/{codes[1]}")
        page.get_by_role("button", name="Continue here").click()
        at(page, 2)
        context.close()


def test_a_server_that_dies_costs_nothing(study: Study) -> None:
    page = study.begin()
    page.keyboard.press("1")
    at(page, 2)
    study.process.kill()
    study.process.wait()
    page.keyboard.press("2")
    page.wait_for_selector("text=The study cannot be reached just now")
    study.server.close()
    study.start()
    page.wait_for_selector(READY)
    page.keyboard.press("2")
    at(page, 3)
    assert [choice for _, choice, _ in study.answers()] == ["left", "right"]


def test_it_works_without_scripts(study: Study) -> None:
    page = study.page(java_script_enabled=False)
    page.goto(study.url)
    page.get_by_role("button", name="Start").click()
    for side in ("left", "right", "left", "right"):
        page.wait_for_timeout(300)  # the server does not take an answer sooner
        page.get_by_alt_text(f"{side} image").click()
    page.wait_for_selector("text=All 4 answers are stored")
    assert [choice for _, choice, _ in study.answers()] == ["left", "right"] * 2
    assert study.complaints == []


def test_markup_stays_text(study: Study) -> None:
    page = study.begin()
    evil = "<img src=x onerror='document.title=1'><script>document.title=1</script>"
    for path in (f"/{evil}", f"/rater/{evil}", f"/admin?token={evil}", f"/images/{evil}"):
        page.goto(study.url + path)
        assert "1" not in page.title()
        assert page.query_selector("img, script") is None
    # Even markup that found its way into a page could do nothing: the policy forbids it.
    page.goto(study.url)
    page.evaluate("document.body.innerHTML = `<img src=x onerror='document.title=1'>`")
    page.wait_for_timeout(200)
    assert "1" not in page.title()
    assert any("Content Security Policy" in complaint for complaint in study.complaints)


def test_the_admin_sees_progress_as_it_comes(study: Study) -> None:
    admin = study.page()
    admin.goto(study.admin)
    assert admin.url == f"{study.url}/admin"
    assert admin.inner_text(".figures").split()[1] == "0"
    assert "Nobody has started yet" in admin.inner_text("main")
    rater = study.begin()
    rater.keyboard.press("1")
    at(rater, 2)
    admin.wait_for_selector("text=1 of 4")  # by itself
    assert admin.locator(".counts").first.inner_text().split() == ["1", "0", "0", "0"]
    assert study.complaints == []
    locked = study.page()
    locked.goto(f"{study.url}/admin")
    locked.get_by_label("Token").fill(study.admin.partition("=")[2])
    locked.get_by_role("button", name="Open").click()
    locked.wait_for_selector("text=1 of 4")


@pytest.mark.parametrize(
    ("scheme", "name", "device"),
    [("light", "wide", {"viewport": {"width": 1280, "height": 800}}), ("dark", "narrow", PHONE)],
)
def test_pages_can_be_read(study: Study, scheme: str, name: str, device: dict[str, Any]) -> None:
    page = study.page(color_scheme=scheme, reduced_motion="reduce", **device)
    folder = os.environ.get("BENCH_SCREENSHOTS")

    def look(what: str) -> None:
        assert page.evaluate(CONTRAST) >= 4.5, what
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), what
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.locator("h1").count() == 1
        for image in page.query_selector_all("img"):
            assert image.get_attribute("alt")
        if folder:
            path = Path(folder) / f"{name}-{scheme}-{what}.png"
            page.screenshot(path=path, full_page=what == "admin")

    page.goto(study.url)
    look("welcome")
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=Look at both images first")
    look("waiting")
    for number, what in enumerate(("text", "image", "text2", "image2"), 1):
        at(page, number)
        look(what)
        page.keyboard.press("1")
    page.wait_for_selector("text=All 4 answers are stored")
    look("done")
    for path, what in (("/nothing", "missing"), ("/admin", "locked")):
        page.goto(study.url + path)
        look(what)
    page.goto(study.admin)
    look("admin")
