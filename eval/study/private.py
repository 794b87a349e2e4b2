"""What must not be published of a study: the codes of its raters, and the key of their hashes.

    invitations.csv   a code for each rater, written by `bench study invite`
    worker.key        by which workers of Mechanical Turk are hashed, made when it is first needed

Both lie beside the questionnaire in `runs/`, which git ignores, and are outputs of no stage: they
are drawn by the system's secure source and not by a seed, so that the questionnaire can be built
anew to the last byte and nobody can compute them. Only their owner may read them.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import re
import secrets
from collections import Counter
from pathlib import Path

from pipeline.common.errors import BenchError
from pipeline.common.files import atomic, check_file
from pipeline.settings.profile import load_params

INVITATIONS, KEY = "invitations.csv", "worker.key"
# Neither of two that look alike. Sixteen of them are 79 bits: nobody comes upon a code by trying.
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
CODE = re.compile(rf"[{ALPHABET}]{{4}}(-[{ALPHABET}]{{4}}){{3}}")
MOST_RATERS = 10_000


def new_code() -> str:
    """A code that nobody can guess: four groups of four letters and digits."""
    return canonical("".join(secrets.choice(ALPHABET) for _ in range(16)))


def canonical(typed: str) -> str:
    """A code as `new_code` writes it, however somebody typed it."""
    return "-".join(re.findall(".{1,4}", re.sub(r"[\W_]", "", typed.lower())))


def invite(profile: str, raters: int) -> None:
    """Adds to the invitations of a profile until there are as many as raters; none is taken back.

    Args:
        profile: the name of a profile.
        raters: how many there will be, at least 1.

    Raises:
        BenchError: the number is none of raters, or the file is damaged or cannot be written.
    """
    if not 1 <= raters <= MOST_RATERS:
        raise BenchError(f"--raters {raters}: give a number from 1 to {MOST_RATERS}")
    from eval.study.build import questionnaire_folder  # imports what makes questionnaires

    path = questionnaire_folder(load_params(profile)).with_name(INVITATIONS)
    codes = read_invitations(path)
    known = len(codes)
    codes += [new_code() for _ in range(raters - known)]
    if len(codes) > known:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([["code"], *([code] for code in codes)])
        _write(path, out.getvalue())
    print(f"{len(codes)} invitations, {len(codes) - known} of them new -> {path}")
    print("give each rater one of them; `bench study serve` says how")


def read_invitations(path: Path) -> list[str]:
    """The codes of a file of invitations, in its order; none without the file.

    Raises:
        BenchError: it is damaged.
    """
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise BenchError(f"{path}: cannot be read as CSV ({error}): restore it") from error
    header = lines[0] if lines else []
    if "code" not in header:
        raise BenchError(f"{path}: has no column `code`: restore it, or remove it to invite anew")
    codes, column = [], header.index("code")
    for number, line in enumerate(lines[1:], 2):
        if any(line):
            code = line[column].strip() if column < len(line) else ""
            if not CODE.fullmatch(code):
                raise BenchError(f"{path}:{number}: code: {code[:40]!r} is none: restore the line")
            codes.append(code)
    if repeated := [code for code, count in Counter(codes).items() if count > 1]:
        raise BenchError(f"{path}: code: {repeated[0]} is there twice: remove one of them")
    return codes


def worker_key(path: Path, hashed: Path) -> bytes:
    """The key by which workers are hashed, 32 bytes; made if there is none yet.

    Args:
        path: its file.
        hashed: the file of responses; where that has workers already, they need their own key.

    Raises:
        BenchError: it is damaged, or it is missing and there are workers hashed by it.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if _has_workers(hashed):
            raise BenchError(
                f"{path}: the key is missing by which the workers in {hashed} were hashed: put it "
                "back, or remove that file to give all of them other hashes"
            ) from None
        text = secrets.token_hex(32)
        _write(path, f"{text}\n")
        print(f"made {path}: keep it, and keep it private: without it workers get other hashes")
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read ({error}): restore it") from error
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise BenchError(f"{path}: is not a key of 64 hexadecimal digits: restore it")
    return bytes.fromhex(text)


def hashed_worker(worker: str, key: bytes) -> str:
    """Under which name a worker is known: without the key, not to be found by trying names."""
    return hmac.new(key, worker.encode(), hashlib.sha256).hexdigest()[:16]


def _has_workers(responses: Path) -> bool:
    """Whether a file of responses has any of Mechanical Turk."""
    try:
        with responses.open(encoding="utf-8", newline="") as file:
            return any(row.get("source") == "amt" for row in csv.DictReader(file))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, csv.Error) as error:
        raise BenchError(f"{responses}: cannot be read ({error}): remove it") from error


def _write(path: Path, text: str) -> None:
    """Writes a file that at no time anybody but its owner may read."""
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    finally:
        os.umask(before)
