"""The lab page: raters answer a questionnaire in their browsers, the answers go to one file.

A rater is whoever holds a code, which is an invitation, or drawn at the start where the study is
open to all; it stays in a cookie, and in a link to continue elsewhere. The file of answers knows
its hash only. So nobody becomes another rater by forgetting the cookie, unless the study is open.
The page says nothing of methods: a question is known there by its
place, as its name is a hash of its methods too, and images by hashes of what they show.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import logging
import secrets
import signal
import socket
import sqlite3
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from flask import (
    Flask,
    Response,
    abort,
    redirect,
    render_template,
    request,
    send_from_directory,
    url_for,
)
from waitress import create_server
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from eval.study.answers import CHOICES, Answers, Outcome
from eval.study.private import INVITATIONS, canonical, new_code, read_invitations
from eval.study.questionnaire import ASKED, Question, load_questionnaire
from pipeline.common.errors import BenchError
from pipeline.settings.profile import load_params

# What a browser calls this machine. Any other name for it is another site's that points here.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE_SECONDS = 60 * 86400
BODY_BYTES = 4096
THREADS = 8
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Nothing to other sites. With "no-referrer" browsers would leave out Origin too: `_check`.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# What to tell a rater whose answer was not taken, and the status.
REFUSED = {
    Outcome.CHANGED: (
        HTTPStatus.CONFLICT,
        "You have answered this question already. An answer cannot be changed.",
    ),
    Outcome.FOREIGN: (HTTPStatus.FORBIDDEN, "This question is not one of yours."),
    Outcome.NOT_SHOWN: (HTTPStatus.CONFLICT, "This is not the question that you are at."),
    Outcome.TOO_SOON: (
        HTTPStatus.CONFLICT,
        "That was too fast: please go back, look at both images, and choose again.",
    ),
}
# Why somebody may not join.
UNKNOWN = "This invitation is not one of this study. Was it copied as a whole?"
BY_INVITATION = "This study is by invitation: open the link of yours, or type in its code."
FULL = "This study has all the raters that it asked for. Thank you for coming!"
# What went wrong, in words; others are told as a mistake of the page.
EXPLAINED = {
    HTTPStatus.BAD_REQUEST: "The server did not understand what your browser sent.",
    HTTPStatus.FORBIDDEN: "This is not open to you.",
    HTTPStatus.NOT_FOUND: "There is no such page.",
    HTTPStatus.METHOD_NOT_ALLOWED: "There is no such page.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Your browser sent more than an answer.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The study cannot store answers just now. Please try again in "
    "a moment; your earlier answers are safe.",
}


def create_app(
    questionnaire: Path,
    database: Path,
    hosts: frozenset[str] | None = LOOPBACK,
    open_to: int = 0,
) -> Flask:
    """The lab page of a questionnaire.

    Its `config["ADMIN_TOKEN"]` opens /admin; its `extensions["answers"]` is the store, to be closed
    at the end.

    Args:
        questionnaire: the folder of the questionnaire; the invitations lie beside it.
        database: the SQLite file of the answers; made if it is not there.
        hosts: the names under which it may be called; any if None.
        open_to: how many raters there may be for one without an invitation to join.

    Raises:
        BenchError: the questionnaire is missing or damaged, the file is not one of its answers, or
            there is nobody who may join.
    """
    study = load_questionnaire(questionnaire)
    if not study.questions:
        raise BenchError(
            f"{questionnaire}: holds no questions: two methods need samples, and then "
            "`bench study build`"
        )
    if open_to < 0:
        raise BenchError(f"--open {open_to}: give how many raters may join without an invitation")
    invitations = questionnaire.with_name(INVITATIONS)
    invited = frozenset(map(_rater, read_invitations(invitations)))
    if not invited and not open_to:
        raise BenchError(
            f"{invitations}: nobody is invited: run `bench study invite --raters N`, or serve with "
            "`--open N` where whoever reaches the page may join, up to so many"
        )
    questions, of_block = study.by_name(), study.blocks()
    blocks = {block: tuple(one.question for one in some) for block, some in of_block.items()}
    by_place = {_place(question): question.question for question in study.questions}
    images = {image for question in study.questions for image in question.images()}
    folder = (questionnaire / "images").resolve()
    answers = Answers(database, study.sha256, blocks, study.minimum_seconds)
    # Cookies do not know ports: two studies on one machine must not take each other's.
    rater_cookie, admin_cookie = (f"{name}-{study.sha256[:8]}" for name in ("rater", "admin"))

    app = Flask(__name__)
    app.config.update(
        ADMIN_TOKEN=secrets.token_urlsafe(16),
        MAX_CONTENT_LENGTH=BODY_BYTES,
        MAX_FORM_MEMORY_SIZE=BODY_BYTES,
        MAX_FORM_PARTS=8,
    )
    app.extensions["answers"] = answers
    app.jinja_env.globals.update(title=study.title, longest=max(map(len, blocks.values())))
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

    @app.before_request
    def _check() -> None:
        if hosts is not None and urlsplit(f"//{request.host}").hostname not in hosts:
            abort(HTTPStatus.BAD_REQUEST, "This address is not the one of the study.")
        # A form of another site would say so here; SameSite=Strict keeps our cookies from it too.
        origin = request.headers.get("Origin", "").partition("://")[2]
        if request.method == "POST" and (not origin or origin != request.host):
            abort(HTTPStatus.FORBIDDEN, "This did not come from the study's own page.")

    @app.after_request
    def _headers(response: Response) -> Response:
        response.headers.extend(HEADERS)
        if request.endpoint not in ("image", "static"):
            response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    def welcome() -> str:
        place = answers.place(_rater(request.cookies.get(rater_cookie, "")))
        return render_template("welcome.html", place=place, code="", open=bool(open_to))

    @app.get("/rater/<code>")
    def invitation(code: str) -> str:
        place = answers.place(_rater(code))
        if place is None and _rater(code) not in invited:
            abort(HTTPStatus.NOT_FOUND, UNKNOWN)
        # Not at once: a redirect after a click in an e-mail would go without the new cookie.
        if place is None:
            return render_template("welcome.html", place=None, code=code, open=False)
        return render_template("continue.html", place=place, code=code)

    @app.post("/join")
    def join() -> BaseResponse:
        response = redirect(url_for("rate"), HTTPStatus.SEE_OTHER)
        if "code" in request.form:
            code = canonical(request.form["code"])
            rater = _rater(code)
            if not (answers.join(rater) if rater in invited else answers.place(rater)):
                abort(HTTPStatus.FORBIDDEN, UNKNOWN)
            _set_cookie(response, rater_cookie, code)
        elif answers.place(_rater(request.cookies.get(rater_cookie, ""))) is None:
            code = new_code()
            if not answers.join(_rater(code), most=open_to):
                abort(HTTPStatus.FORBIDDEN, FULL if open_to else BY_INVITATION)
            _set_cookie(response, rater_cookie, code)
        return response

    @app.get("/rate")
    def rate() -> str | BaseResponse:
        code = request.cookies.get(rater_cookie, "")
        place = answers.show(_rater(code))
        if place is None:
            return redirect(url_for("welcome"), HTTPStatus.SEE_OTHER)
        if place.question is None:
            return render_template("done.html", place=place)
        question = questions[place.question]
        coming = of_block[question.block][place.answered + 1 : place.answered + 2]
        return render_template(
            "question.html",
            question=question,
            where=_place(question),
            asked=ASKED[question.kind],
            place=place,
            milliseconds=round(1000 * study.minimum_seconds),
            link=url_for("invitation", code=code, _external=True),
            coming=[image for one in coming for image in one.images()],
        )

    @app.post("/answer")
    def answer() -> BaseResponse:
        where, choice = request.form.get("question"), request.form.get("choice")
        if where is None or choice not in CHOICES:
            abort(HTTPStatus.BAD_REQUEST)
        rater = _rater(request.cookies.get(rater_cookie, ""))
        outcome = answers.answer(rater, by_place.get(where, ""), choice)
        if outcome in REFUSED:
            abort(*REFUSED[outcome])
        return redirect(url_for("rate"), HTTPStatus.SEE_OTHER)

    @app.get("/images/<name>")
    def image(name: str) -> Response:
        if name not in images:
            abort(HTTPStatus.NOT_FOUND)
        response = send_from_directory(folder, name, mimetype="image/png", max_age=365 * 86400)
        response.cache_control.immutable = True
        return response

    @app.get("/admin")
    def admin() -> str | BaseResponse | tuple[str, int]:
        secret = app.config["ADMIN_TOKEN"]
        if (said := request.args.get("token")) is not None and _same(said, secret):
            # So that the token does not stay in the address bar.
            response = redirect(url_for("admin"), HTTPStatus.SEE_OTHER)
            _set_cookie(response, admin_cookie, secret)
            return response
        if not _same(request.cookies.get(admin_cookie, ""), secret):
            return render_template("locked.html", wrong=said is not None), HTTPStatus.FORBIDDEN
        return render_template("admin.html", progress=answers.progress(), study=study)

    @app.errorhandler(HTTPException)
    def _told(error: HTTPException) -> tuple[str, int]:
        status = HTTPStatus(error.code or 500)
        general = EXPLAINED.get(status, "Something went wrong here. Please try again.")
        own = error.description if error.description != type(error).description else None
        return render_template("message.html", message=own or general), status

    @app.errorhandler(sqlite3.Error)
    def _not_stored(error: sqlite3.Error) -> tuple[str, int]:
        app.logger.error("%s: %s", database, error)
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return render_template("message.html", message=EXPLAINED[status]), status

    return app


def serve_profile(
    profile: str, host: str, port: int, database: Path | None = None, open_to: int = 0
) -> None:
    """Serves the questionnaire of a profile: see `serve`; its answers lie beside it by default."""
    from eval.study.build import questionnaire_folder  # imports what makes questionnaires

    folder = questionnaire_folder(load_params(profile))
    serve(folder, database or folder.with_name("answers.sqlite"), host, port, open_to)


def serve(
    questionnaire: Path,
    database: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    open_to: int = 0,
) -> None:
    """Serves the lab page until it is interrupted or terminated, then says what came in.

    Args:
        questionnaire: the folder of the questionnaire.
        database: the SQLite file of the answers.
        host: the IP address to listen at; "0.0.0.0" opens the page to the network.
        port: 0 takes a free one.
        open_to: see `create_app`.

    Raises:
        BenchError: see `create_app`; or the address cannot be listened at.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise BenchError(
            f"--host {host!r} is not an IP address: give 127.0.0.1 for this machine alone, 0.0.0.0 "
            "for its network"
        ) from None
    if not 0 <= port <= 65535:
        raise BenchError(f"--port {port}: give one from 0 to 65535")
    local = address.is_loopback
    app = create_app(questionnaire, database, LOOPBACK if local else None, open_to)
    answers: Answers = app.extensions["answers"]
    try:
        server = _listening(app, host, port)
        name = _own_address(address.version) if address.is_unspecified else host
        url = f"http://{f'[{name}]' if ':' in name else name}:{server.effective_port}"
        print(f"raters: {url}/")
        print(f"admin:  {url}/admin?token={app.config['ADMIN_TOKEN']}")
        if open_to:
            print(f"whoever reaches it may join, up to {open_to} raters")
        else:
            codes = questionnaire.with_name(INVITATIONS)
            print(f"by invitation: {url}/rater/CODE, with a code of {codes} for each rater")
        if not local:
            print("open to the network, and not encrypted: only for a network that you trust")
        print(f"answers go to {database}; Ctrl-C ends", flush=True)
        # That requests wait for a moment is no news to anybody.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            server.run()  # returns when interrupted, after the requests at work
        finally:
            signal.signal(signal.SIGTERM, before)
            server.close()
        progress = answers.progress()
        print(f"\nended: {len(progress.raters)} raters, {progress.answers} answers -> {database}")
    finally:
        answers.close()


def _listening(app: Flask, host: str, port: int) -> Any:
    try:
        return create_server(
            app,
            host=host,
            port=port,
            threads=THREADS,
            connection_limit=1000,
            max_request_body_size=16 * BODY_BYTES,  # up to there `create_app` says it nicely
            max_request_header_size=16384,
            ident=None,
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        way = "choose another with --port" if taken else "choose others with --host and --port"
        raise BenchError(f"cannot listen at {host}, port {port}: {error}: {way}") from error


def _own_address(version: int) -> str:
    """The address of this machine in its network, or its name where there is none."""
    family, target = {
        4: (socket.AF_INET, "192.0.2.1"),  # reserved for documentation; nothing is sent to it
        6: (socket.AF_INET6, "2001:db8::1"),
    }[version]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _rater(code: str) -> str:
    """Under which name the holder of a code is known: no way back from it to the code."""
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _place(question: Question) -> str:
    """What the page calls a question."""
    return f"{question.block}-{question.position}"


def _same(said: str, secret: str) -> bool:
    return hmac.compare_digest(said.encode("utf-8", "surrogatepass"), secret.encode())


def _set_cookie(response: BaseResponse, name: str, value: str) -> None:
    response.set_cookie(
        name,
        value,
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="Strict",
        secure=request.is_secure,
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
