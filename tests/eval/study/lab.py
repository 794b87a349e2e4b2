"""A drawn questionnaire, and raters who answer it over HTTP."""

from __future__ import annotations

import http.client
import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from PIL import Image, ImageDraw

from eval.study.questionnaire import (
    Question,
    Questionnaire,
    image_name_of,
    named,
    write_questionnaire,
)
from pipeline.common.seeds import seed_of

ROOT = Path(__file__).parents[3]
METHODS = ("custom_diffusion", "dreambooth")
PROMPTS = (
    "photo of a cat in the snow",
    "an oil painting of a cat",
    "a cat wearing sunglasses & a hat, <b>bold</b>",
)


def drawn(*purpose: object, size: int = 64) -> bytes:
    """A picture of its own for each purpose."""
    seed = seed_of(*purpose)
    sky, thing = (tuple((seed >> shift + 8 * i) % 200 + 40 for i in range(3)) for shift in (0, 24))
    picture = Image.new("RGB", (size, size), sky)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, size * 0.7, size, size), fill=tuple(c // 2 for c in sky))
    x, y, r = (seed % 23 + 18) * size / 64, (seed // 23 % 17 + 24) * size / 64, size / 6
    draw.ellipse((x - r, y - r, x + r, y + r), fill=thing, outline="black")
    for side in (-1, 1):
        draw.polygon(
            [(x + side * r, y - r * 0.3), (x + side * r * 0.9, y - r * 1.6), (x, y - r)], fill=thing
        )
        draw.ellipse((x + side * r / 2 - 3, y - 3, x + side * r / 2 + 3, y + 3), fill="white")
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def make_questionnaire(
    folder: Path,
    blocks: int = 3,
    size: int = 4,
    seconds: float = 0.0,
    title: str = "Which image is better?",
) -> Questionnaire:
    """Blocks of questions of both kinds in turn, the methods on either side in turn."""
    images: dict[str, bytes] = {}

    def add(*purpose: object) -> str:
        png = drawn(*purpose)
        images[image_name_of(png)] = png
        return image_name_of(png)

    of_cat = tuple(add("target", number) for number in range(3))
    questions = []
    for block in range(blocks):
        for position in range(size):
            kind = ("text", "image")[position % 2]
            prompt = PROMPTS[position % len(PROMPTS)]
            methods = METHODS if (block + position) % 2 else METHODS[::-1]
            left, right = (add(block, position, method) for method in methods)
            shown = of_cat if kind == "image" else ()
            check = "left" if position == size - 1 else ""
            question = Question(
                "", block, position, kind, "cat", position, 0, prompt, *methods, left, right,
                shown, check,
            )  # fmt: skip
            questions.append(named(question))
    study = Questionnaire(
        title=title,
        profile="toyland",
        protocol="toyland-v2",
        seed=1,
        kinds=("text", "image"),
        block=size,
        minimum_seconds=seconds,
        questions=tuple(questions),
    )
    return write_questionnaire(folder, study, images)


class Reply(NamedTuple):
    """What a server said."""

    status: int
    location: str
    text: str


class Rater:
    """A browser of the simplest kind: cookies and forms, over a connection of its own."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=60)
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **form: str) -> Reply:
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        if method == "POST":
            headers |= {
                "Origin": f"http://{self.host}",
                "Content-Type": "application/x-www-form-urlencoded",
            }
        self.connection.request(method, path, urlencode(form), headers)
        response = self.connection.getresponse()
        text = response.read().decode()
        for cookie in response.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return Reply(response.status, response.getheader("Location", ""), text)

    def question(self) -> str | None:
        """What the page calls the question that it shows; None at the end."""
        return shown(self.ask("GET", "/rate").text)


def shown(page: str) -> str | None:
    """What a page calls its question."""
    found = re.search(r'name="question" value="([\w-]+)"', page)
    return found and found[1]


@contextmanager
def serving(
    folder: Path, database: Path, port: int = 0, open_to: int = 1000
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server as a process of its own, and its address; it is terminated at the end."""
    code = (
        "import sys; from pathlib import Path; from eval.study.serve import serve; "
        "folder, database, port, open_to = sys.argv[1:]; "
        "serve(Path(folder), Path(database), port=int(port), open_to=int(open_to))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(database), str(port), str(open_to)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield process, line.split()[1].rstrip("/")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        process.stdout.close()
