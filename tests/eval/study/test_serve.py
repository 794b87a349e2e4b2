"""The lab page over HTTP: its contract, what it refuses, and a server with many raters at once."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from threading import Barrier, Thread
from urllib.request import urlopen

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from eval.study.answers import Answers
from eval.study.private import ALPHABET, CODE, INVITATIONS, new_code
from eval.study.questionnaire import Question, Questionnaire, load_questionnaire
from eval.study.serve import create_app, serve
from pipeline.common.errors import BenchError
from tests.eval.study.lab import METHODS, Rater, make_questionnaire, serving, shown

HERE = {"Origin": "http://localhost"}
RATERS = 1000  # may join without an invitation
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "questionnaire"
    make_questionnaire(folder)
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def app(folder: Path, database: Path) -> Iterator[Flask]:
    app = create_app(folder, database, open_to=RATERS)
    yield app
    app.extensions["answers"].close()


@pytest.fixture
def study(folder: Path) -> Questionnaire:
    return load_questionnaire(folder)


def rows(database: Path, what: str = "rater, question, choice", table: str = "answers") -> list:
    connection = sqlite3.connect(database)
    found = connection.execute(f"SELECT {what} FROM {table}").fetchall()
    connection.close()
    return found


def joined(app: Flask) -> FlaskClient:
    client = app.test_client()
    assert client.post("/join", headers=HERE).location == "/rate"
    return client


def say(client: FlaskClient, where: str | None, choice: str = "left") -> TestResponse:
    return client.post("/answer", data={"question": where, "choice": choice}, headers=HERE)


def enter(client: FlaskClient, code: str) -> TestResponse:
    return client.post("/join", data={"code": code}, headers=HERE)


def asked(client: FlaskClient) -> str | None:
    return shown(client.get("/rate").text)


def at(study: Questionnaire, where: str | None) -> Question:
    (found,) = [q for q in study.questions if f"{q.block}-{q.position}" == where]
    return found


def code_of(client: FlaskClient) -> str:
    found = re.search(r"/rater/([\w-]+)", client.get("/rate").text)
    assert found
    return found[1]


def test_a_rater_answers_a_block_and_is_thanked(
    app: Flask, study: Questionnaire, database: Path
) -> None:
    client = joined(app)
    said = []
    for number in range(1, 5):
        page = client.get("/rate").text
        question = at(study, where := shown(page))
        assert f"{number} of 4" in page
        images = re.findall(r'<img src="/images/(\w+\.png)" alt="(\w+ image[ \d]*)"', page)
        targets = [(name, f"target image {i}") for i, name in enumerate(question.targets, 1)]
        pair = [(question.left_image, "left image"), (question.right_image, "right image")]
        assert images == targets + pair
        assert ("in the snow" in page) == (question.kind == "text" and number == 1)
        choice = ("left", "right")[number % 2]
        assert say(client, where, choice).location == "/rate"
        said.append((question.question, choice))
    page = client.get("/rate").text
    assert "All 4 answers are stored" in page
    assert "<form" not in page
    assert [row[1:] for row in rows(database)] == said
    assert [q for q, _ in said] == [q.question for q in study.blocks()[0]]
    assert "You have answered all 4 questions" in client.get("/").text


def test_seconds_are_those_of_the_servers_clock(
    app: Flask, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Answers = app.extensions["answers"]
    now = 1000.0
    monkeypatch.setattr(answers, "_clock", lambda: now)
    client = joined(app)
    where = asked(client)
    now += 4.25
    client.post(
        "/answer", data={"question": where, "choice": "left", "seconds": "99"}, headers=HERE
    )
    assert rows(database, "seconds") == [(4.25,)]


def test_the_code_is_a_secret_of_the_rater(app: Flask, database: Path) -> None:
    clients = [joined(app) for _ in range(20)]
    codes = {code_of(client) for client in clients}
    assert len(codes) == 20
    assert all(CODE.fullmatch(code) for code in codes)
    letters = [len(set(place)) for place in zip(*codes, strict=True)]
    assert sum(count > 8 for count in letters) == 16  # all but the hyphens are drawn
    assert len(ALPHABET) ** 16 > 2**79
    response = app.test_client().post("/join", headers=HERE)
    (cookie,) = response.headers.getlist("Set-Cookie")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    stored = database.read_bytes() + database.with_name("answers.sqlite-wal").read_bytes()
    assert not [code for code in codes if code.encode() in stored]


def test_joining_again_keeps_the_place(app: Flask, database: Path) -> None:
    client = joined(app)
    say(client, asked(client))
    where = asked(client)
    assert "Welcome back. You have answered 1 of 4" in client.get("/").text
    client.post("/join", headers=HERE)
    assert asked(client) == where
    assert len(rows(database, "rater", "raters")) == 1


def test_the_link_continues_elsewhere_after_a_click(app: Flask) -> None:
    client = joined(app)
    say(client, asked(client))
    code = code_of(client)
    other = app.test_client()
    page = other.get(f"/rater/{code}")
    assert "1 of 4 questions are answered" in page.text
    assert f'name="code" value="{code}"' in page.text
    assert "Set-Cookie" not in page.headers
    assert other.get("/rate").location == "/"
    assert enter(other, code).location == "/rate"
    assert asked(other) == asked(client)
    assert other.get("/rater/guessed").status_code == 404
    assert enter(other, "guessed").status_code == 403
    assert asked(other) == asked(client)


@pytest.fixture
def codes(tmp_path: Path) -> list[str]:
    """The invitations of three raters to a questionnaire of their own."""
    make_questionnaire(tmp_path / "by invitation" / "questionnaire")
    codes = [new_code() for _ in range(3)]
    path = tmp_path / "by invitation" / INVITATIONS
    path.write_text("\n".join(["code", *codes]) + "\n")
    return codes


@pytest.fixture
def closed(codes: list[str], tmp_path: Path, database: Path) -> Iterator[Flask]:
    """The page of that study."""
    app = create_app(tmp_path / "by invitation" / "questionnaire", database)
    yield app
    app.extensions["answers"].close()


def test_a_code_is_a_rater_however_often_it_is_used(
    closed: Flask, codes: list[str], database: Path
) -> None:
    """Nobody becomes another rater by losing the cookie."""
    said = []
    for _ in range(3):  # each time as a browser that knows nothing
        client = closed.test_client()
        assert enter(client, codes[0]).location == "/rate"
        say(client, where := asked(client))
        said.append(where)
    assert said == ["0-0", "0-1", "0-2"]
    assert len(rows(database, "rater", "raters")) == 1
    assert len({rater for rater, *_ in rows(database)}) == 1
    other = closed.test_client()
    assert enter(other, codes[1]).location == "/rate"
    assert asked(other) == "1-0"
    # Who enters a code in the browser of another goes on as who was invited by it.
    assert enter(other, codes[0]).location == "/rate"
    assert asked(other) == "0-3"
    assert len(rows(database, "rater", "raters")) == 2


def test_nobody_joins_without_an_invitation(
    closed: Flask, codes: list[str], database: Path
) -> None:
    client = closed.test_client()
    assert 'name="code"' in client.get("/").text
    enter(closed.test_client(), codes[0])
    stored = rows(database, "rater", "raters")[0][0]
    for wrong in ("", new_code(), codes[0][:-1], stored, SCRIPT, "' OR 1=1 --", codes[1] + "a"):
        response = enter(client, wrong)
        assert response.status_code == 403
        assert "This invitation is not one of this study" in response.text
        assert SCRIPT not in response.text
        assert "Set-Cookie" not in response.headers
    response = client.post("/join", headers=HERE)
    assert response.status_code == 403
    assert "This study is by invitation" in response.text
    assert client.get(f"/rater/{new_code()}").status_code == 404
    assert client.get("/rate").location == "/"
    assert len(rows(database, "rater", "raters")) == 1


def test_an_invitation_is_a_link_or_a_code_to_type(closed: Flask, codes: list[str]) -> None:
    link = closed.test_client()
    page = link.get(f"/rater/{codes[0]}")
    assert "You will see 4 questions" in page.text
    assert f'<input type="hidden" name="code" value="{codes[0]}">' in page.text
    assert "Set-Cookie" not in page.headers  # who only looks has not joined
    assert link.get("/rate").location == "/"
    typed = closed.test_client()
    assert enter(typed, f" {codes[0].replace('-', '').upper()} ").location == "/rate"
    assert code_of(typed) == codes[0]
    assert "0 of 4 questions are answered" in link.get(f"/rater/{codes[0]}").text


def test_invitations_hold_beside_an_open_study(
    codes: list[str], tmp_path: Path, database: Path
) -> None:
    app = create_app(tmp_path / "by invitation" / "questionnaire", database, open_to=2)
    for _ in range(2):
        joined(app)
    late = app.test_client()
    response = late.post("/join", headers=HERE)
    assert response.status_code == 403
    assert "all the raters that it asked for" in response.text
    assert "Set-Cookie" not in response.headers
    assert enter(late, codes[0]).location == "/rate"  # has a place of his or her own
    assert enter(app.test_client(), new_code()).status_code == 403
    assert len(rows(database, "rater", "raters")) == 3
    app.extensions["answers"].close()


def test_a_page_that_nobody_may_join_is_not_served(folder: Path, database: Path) -> None:
    with pytest.raises(BenchError, match=r"nobody is invited: run `bench study invite --raters N`"):
        create_app(folder, database)
    with pytest.raises(BenchError, match="--open -1: give how many"):
        create_app(folder, database, open_to=-1)
    assert not database.exists()


def test_who_answers_too_soon_is_told_whatever_the_browser_claims(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_questionnaire(tmp_path / "questionnaire", seconds=1.5)
    app = create_app(tmp_path / "questionnaire", database, open_to=1)
    now = 1000.0
    monkeypatch.setattr(app.extensions["answers"], "_clock", lambda: now)
    client = joined(app)
    claim = {"question": asked(client), "choice": "left", "seconds": "9", "shown": "0"}
    for passes, status in ((1.4, 409), (0.2, 303)):
        now += passes
        response = client.post("/answer", data=claim, headers=HERE)
        assert response.status_code == status
        assert ("That was too fast" in response.text) == (status == 409)
    assert rows(database, "seconds") == [(1.6,)]
    app.extensions["answers"].close()


def test_an_answer_is_given_once(app: Flask, database: Path) -> None:
    client = joined(app)
    where = asked(client)
    assert say(client, where).status_code == 303
    stored = rows(database)
    assert say(client, where).status_code == 303  # a second tap
    response = say(client, where, "right")
    assert response.status_code == 409
    assert "You have answered this question already" in response.text
    assert rows(database) == stored


@pytest.mark.parametrize(
    ("where", "choice", "status"),
    [
        ("0-1", "left", 409),  # is not shown yet
        ("1-0", "left", 403),  # of another rater's block
        ("9-9", "left", 403),
        (SCRIPT, "left", 403),
        ("0-0' OR 1=1 --", "left", 403),
        ("0-0", "both", 400),
        ("0-0", SCRIPT, 400),
        ("0-0", "", 400),
        ("", "left", 403),
    ],
)
def test_what_is_no_answer_is_refused(
    app: Flask, database: Path, where: str, choice: str, status: int
) -> None:
    client = joined(app)
    assert asked(client) == "0-0"
    response = say(client, where, choice)
    assert response.status_code == status
    assert "<h1>Sorry</h1>" in response.text
    assert SCRIPT not in response.text
    assert rows(database) == []


def test_nobody_answers_for_or_sees_another(app: Flask, database: Path) -> None:
    ann, bob = joined(app), joined(app)
    hers, his = asked(ann), asked(bob)
    assert hers != his
    assert say(bob, hers).status_code == 403
    assert say(app.test_client(), hers).status_code == 403  # no cookie
    thief = app.test_client()
    (hashed,) = {row[0] for row in rows(database, "rater", "raters WHERE block = 0")}
    cookie = ann._cookies[next(iter(ann._cookies))].key
    thief.set_cookie(cookie, hashed)  # what the file of answers knows opens nothing
    assert thief.get("/rate").location == "/"
    assert say(thief, hers).status_code == 403
    assert rows(database) == []
    say(ann, hers, "right")
    assert ann.get("/rate").text.count(code_of(ann)) == 1
    assert code_of(ann) not in bob.get("/rate").text


def test_other_sites_cannot_send_forms(app: Flask, database: Path) -> None:
    client = joined(app)
    where = asked(client)
    for origin in (
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:8001"},
        {"Origin": "http://localhost.evil.example"},
    ):
        for path in ("/answer", "/join"):
            data = {"question": where, "choice": "left"}
            assert client.post(path, data=data, headers=origin).status_code == 403
    assert rows(database) == []
    assert len(rows(database, "rater", "raters")) == 1


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.0.2.7:8000", "["])
def test_other_names_for_this_machine_are_refused(
    app: Flask, folder: Path, database: Path, host: str
) -> None:
    response = app.test_client().get("/", headers={"Host": host})
    assert response.status_code == 400
    for name in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert app.test_client().get("/", headers={"Host": name}).status_code == 200
    public = create_app(folder, database, hosts=None, open_to=RATERS)
    if host != "[":
        assert public.test_client().get("/", headers={"Host": host}).status_code == 200
    public.extensions["answers"].close()


def test_every_answer_carries_the_headers_of_safety(app: Flask, study: Questionnaire) -> None:
    client = joined(app)
    image = f"/images/{study.questions[0].left_image}"
    for path in ("/", "/rate", "/nothing", "/admin", image, "/static/study.css", "/rater/x"):
        response = client.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "same-origin"
        stored = response.headers["Cache-Control"]
        assert ("no-store" in stored) == (path not in (image, "/static/study.css"))


def test_nothing_tells_the_method(app: Flask, study: Questionnaire) -> None:
    secrets = [*METHODS, "gold"] + [question.question for question in study.questions]
    for _ in study.blocks():
        client = joined(app)
        while where := asked(client):
            response = client.get("/rate")
            everything = f"{response.headers}{response.text}"
            assert not [word for word in secrets if word in everything]
            say(client, where)
        assert not [word for word in secrets if word in client.get("/").text]


def test_images_come_from_the_list_alone(app: Flask, folder: Path, study: Questionnaire) -> None:
    client = app.test_client()
    for name in {name for question in study.questions for name in question.images()}:
        response = client.get(f"/images/{name}")
        assert response.data == (folder / "images" / name).read_bytes()
        assert response.mimetype == "image/png"
        assert "immutable" in response.headers["Cache-Control"]
        assert "max-age=31536000" in response.headers["Cache-Control"]
    extra = folder / "images" / "0123456789abcdef.png"
    extra.write_bytes(b"not of a question")
    for path in (
        extra.name,
        "../questions.csv",
        "..%2fquestions.csv",
        "%2e%2e/questions.csv",
        "..\\questions.csv",
        "%00",
        "",
        "/etc/passwd",
        str(folder / "questions.csv"),
    ):
        assert client.get(f"/images/{path}").status_code in (308, 404)
    extra.unlink()


def test_nothing_sent_or_built_is_rendered_as_markup(tmp_path: Path, database: Path) -> None:
    folder = tmp_path / "questionnaire"
    make_questionnaire(folder, title=f"A {SCRIPT} study")
    app = create_app(folder, database, open_to=RATERS)
    client = joined(app)
    pages = [client.get("/").text]
    while where := asked(client):
        pages.append(client.get("/rate").text)
        say(client, where)
    assert any("&lt;b&gt;bold&lt;/b&gt;" in page for page in pages)
    bad = {"Referer": SCRIPT, "User-Agent": SCRIPT}
    for path in (f"/rater/{SCRIPT}", f"/admin?token={SCRIPT}", f"/{SCRIPT}", f"/images/{SCRIPT}"):
        pages.append(client.get(path, headers=bad).text)
    for name in (f"rater-{'0' * 8}", next(iter(client._cookies.values())).key):
        client.set_cookie(name, SCRIPT)
        pages.append(client.get("/rate", headers=bad).text)
    pages.append(
        client.get(f"/admin?token={app.config['ADMIN_TOKEN']}", follow_redirects=True).text
    )
    assert "&lt;script&gt;" in pages[0]
    assert not [page for page in pages if SCRIPT in page or "<b>" in page]
    app.extensions["answers"].close()


def test_only_the_token_opens_the_view_of_progress(app: Flask, database: Path) -> None:
    for _ in range(4):
        client = joined(app)
    say(client, asked(client))
    admin = app.test_client()
    for path in ("/admin", "/admin?token=", "/admin?token=guess", "/admin?token=%ff"):
        response = admin.get(path)
        assert response.status_code == 403
        assert "answers" not in response.text
    opened = admin.get(f"/admin?token={app.config['ADMIN_TOKEN']}")
    assert opened.location == "/admin"
    assert "HttpOnly" in opened.headers["Set-Cookie"]
    page = admin.get("/admin").text
    assert re.findall(r"<dd>(\d+)", page) == ["4", "0", "1", "1"]
    found = re.findall(r'<th scope="row">(\d)</th><td>(\d)</td><td>(\d)</td><td>(\d)</td>', page)
    assert found == [("0", "2", "0", "1"), ("1", "1", "0", "0"), ("2", "1", "0", "0")]
    assert re.findall(r'class="level-(\d)">(\d)', page)[:2] == [("4", "1"), ("0", "0")]
    personal = [code_of(client), *(row[0] for row in rows(database, "rater", "raters"))]
    assert not [word for word in (*personal, *METHODS) if word in page]


def test_mistakes_end_on_plain_pages(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    client = joined(app)
    cases = [
        (client.get("/nothing"), 404, "There is no such page."),
        (client.get("/answer"), 405, "There is no such page."),
        (client.delete("/rate"), 405, "There is no such page."),
        (
            client.post("/answer", data={"question": "x" * 5000}, headers=HERE),
            413,
            "more than an answer",
        ),
    ]
    answers = app.extensions["answers"]
    for error, status, text in (
        (sqlite3.OperationalError("database or disk is full"), 503, "Please try again in a moment"),
        (RuntimeError("broken"), 500, "Something went wrong here"),
    ):

        def fail(*arguments: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(answers, "answer", fail)
        cases.append((say(client, "0-0"), status, text))
    for response, status, text in cases:
        assert response.status_code == status
        assert text in response.text
        assert "<h1>Sorry</h1>" in response.text
        assert "Traceback" not in response.text


def test_studies_on_one_machine_do_not_share_cookies(app: Flask, tmp_path: Path) -> None:
    make_questionnaire(tmp_path / "other", blocks=1, size=2)
    other = create_app(tmp_path / "other", tmp_path / "other.sqlite", open_to=RATERS)
    names = {next(iter(joined(one)._cookies.values())).key for one in (app, other)}
    assert len(names) == 2
    other.extensions["answers"].close()


def test_what_cannot_be_served_is_told(folder: Path, database: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run `bench study build`"):
        serve(tmp_path / "nothing", database, open_to=1)
    make_questionnaire(tmp_path / "empty", blocks=0)
    with pytest.raises(BenchError, match="holds no questions: two methods need samples"):
        serve(tmp_path / "empty", database, open_to=1)
    with pytest.raises(BenchError, match="--host 'lab.example' is not an IP address"):
        serve(folder, database, open_to=1, host="lab.example")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BenchError, match="in use: choose another with --port"):
            serve(folder, database, open_to=1, port=taken.getsockname()[1])
    with pytest.raises(BenchError, match="--port 70000: give one from 0 to 65535"):
        serve(folder, database, open_to=1, port=70_000)
    with pytest.raises(BenchError, match="choose others with --host and --port"):
        serve(folder, database, open_to=1, host="192.0.2.1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_graceful_and_summed_up(
    folder: Path, database: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def end_it() -> None:
        for _ in range(600):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                break  # it answers, so it is at work
            time.sleep(0.1)
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    # In the background of a script SIGINT is ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    ending = Thread(target=end_it)
    ending.start()
    try:
        serve(folder, database, open_to=1, port=port)
    finally:
        ending.join()
        signal.signal(signal.SIGINT, inherited)
    assert signal.getsignal(signal.SIGTERM) is before
    out = capsys.readouterr().out
    assert re.match(rf"raters: http://127\.0\.0\.1:{port}/\nadmin:  http://\S+/admin\?token=", out)
    assert f"ended: 0 raters, 0 answers -> {database}\n" in out
    assert [path.name for path in database.parent.glob("answers*")] == [database.name]


def test_a_hundred_raters_at_once_lose_nothing(tmp_path: Path, database: Path) -> None:
    """By invitation, each on a connection of its own."""
    study = make_questionnaire(tmp_path / "questionnaire", blocks=5, size=4)
    codes = [new_code() for _ in range(100)]
    (tmp_path / INVITATIONS).write_text("\n".join(["code", *codes]) + "\n")
    barrier = Barrier(100)

    def rate(number: int) -> None:
        rater = Rater(url)
        barrier.wait()
        assert rater.ask("POST", "/join", code=codes[number]).status == 303
        if number % 5 == 0:  # loses the cookie
            rater.cookies.clear()
            assert rater.ask("POST", "/join", code=codes[number]).status == 303
        while where := rater.question():
            assert rater.ask("POST", "/answer", question=where, choice="left").status == 303
            if number % 2:  # a double tap
                assert rater.ask("POST", "/answer", question=where, choice="left").status == 303

    with serving(tmp_path / "questionnaire", database, open_to=0) as (process, url):
        with ThreadPoolExecutor(100) as pool:
            list(pool.map(rate, range(100)))
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        said = process.stdout.read()
        assert f"by invitation: {url}/rater/CODE" in said
        assert "ended: 100 raters, 400 answers" in said
        assert process.wait(60) == 0
    blocks = {block: [q.question for q in some] for block, some in study.blocks().items()}
    given = dict(rows(database, "rater, block", "raters"))
    assert set(Counter(given.values()).values()) == {20}
    expected = {(rater, q, "left") for rater, block in given.items() for q in blocks[block]}
    stored = rows(database)
    assert len(stored) == len(expected) == 400
    assert set(stored) == expected


def test_a_killed_server_loses_at_most_the_answers_in_flight(
    tmp_path: Path, database: Path
) -> None:
    folder = tmp_path / "questionnaire"
    study = make_questionnaire(folder, blocks=2, size=20)
    confirmed: Counter[int] = Counter()
    raters: list[Rater] = []

    def rate(number: int) -> None:
        rater = raters[number]
        try:
            while where := rater.question():
                choice = ("left", "right")[number % 2]
                if rater.ask("POST", "/answer", question=where, choice=choice).status == 303:
                    confirmed[number] += 1
                if sum(confirmed.values()) >= 40 and process.poll() is None:
                    process.kill()
        except (OSError, HTTPException):
            rater.connection.close()  # the server is gone

    with serving(folder, database) as (process, url):
        raters = [Rater(url) for _ in range(8)]
        for rater in raters:
            rater.ask("POST", "/join")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(rate, range(8)))
        assert process.wait(60) == -signal.SIGKILL
    assert 40 <= sum(confirmed.values()) < 160
    port = int(url.rpartition(":")[2])
    with serving(folder, database, port) as (_, again):
        assert again == url
        for number, rater in enumerate(raters):
            place = re.search(r"(\d+) of 20", rater.ask("GET", "/rate").text)
            assert place
            assert int(place[1]) - 1 - confirmed[number] in (0, 1)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(rate, range(8)))
    expected = Counter(q.question for q in study.questions for _ in range(4))
    stored = rows(database)
    assert Counter(question for _, question, _ in stored) == expected
    assert len({choice for _, _, choice in stored}) == 2
    assert all(len({c for r, _, c in stored if r == rater}) == 1 for rater, _, _ in stored[:10])


def test_the_command_is_there() -> None:
    from typer.testing import CliRunner

    from pipeline.bench.cli import app as bench

    assert "--raters" in CliRunner().invoke(bench, ["study", "invite", "--help"]).output
    text = CliRunner().invoke(bench, ["study", "serve", "--help"]).output
    assert "--open" in text
    assert "--port" in text
    assert "127.0.0.1" in text
