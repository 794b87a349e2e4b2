"""Invitations and the key of workers: secret, kept, and no part of what is published or built."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from eval.study.build import build
from eval.study.private import (
    ALPHABET,
    CODE,
    INVITATIONS,
    KEY,
    canonical,
    hashed_worker,
    invite,
    new_code,
    read_invitations,
    worker_key,
)
from pipeline.common.errors import BenchError
from tests.eval.study.conftest import QUESTIONNAIRE, SMALL
from tests.eval.study.lab import ROOT

FILE = QUESTIONNAIRE.with_name(INVITATIONS)
ALIKE = {"0", "o", "1", "i", "l"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_codes_are_drawn_evenly_and_cannot_be_misread() -> None:
    codes = [new_code() for _ in range(2000)]
    assert len(set(codes)) == 2000
    assert all(CODE.fullmatch(code) for code in codes)
    counts = Counter("".join(codes).replace("-", ""))
    assert counts.keys() == set(ALPHABET)
    assert not ALIKE & counts.keys()
    expected = 2000 * 16 / len(ALPHABET)
    assert max(abs(count - expected) for count in counts.values()) < 6 * expected**0.5


def test_codes_may_be_typed_in_any_way() -> None:
    code = new_code()
    bare = code.replace("-", "")
    for typed in (code, code.upper(), f"  {code}\n", bare, bare.upper(), code.replace("-", " ")):
        assert canonical(typed) == code
    assert canonical(code[:-1]) != code
    assert canonical("") == ""


def test_there_are_as_many_invitations_as_raters(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_invitations(FILE) == []
    invite("toyland", 3)
    first = read_invitations(FILE)
    assert len(set(first)) == 3
    assert "3 invitations, 3 of them new" in capsys.readouterr().out
    invite("toyland", 5)
    codes = read_invitations(FILE)
    assert (len(set(codes)), codes[:3]) == (5, first)
    before = FILE.stat().st_mtime_ns
    invite("toyland", 4)  # none is taken back
    assert read_invitations(FILE) == codes
    assert FILE.stat().st_mtime_ns == before
    for number in (0, -1, 10_001):
        with pytest.raises(BenchError, match=f"--raters {number}: give a number from 1 to 10000"):
            invite("toyland", number)


def test_invitations_survive_a_build_and_are_no_part_of_it(study: Path) -> None:
    def built() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in QUESTIONNAIRE.rglob("*") if path.is_file()}

    before = built()
    invite("toyland", 3)
    codes = read_invitations(FILE)
    build("toyland", SMALL)
    assert built() == before
    assert read_invitations(FILE) == codes
    everything = b"".join(before.values())
    assert not [code for code in codes if code.encode() in everything]


@pytest.mark.parametrize("folder", ["runs/toyland", "profiles/smoke/runs/smoke"])
def test_git_and_dvc_do_not_know_what_is_private(folder: str) -> None:
    for name in (INVITATIONS, KEY):
        path = f"{folder}/study/{name}"
        subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=True)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = [str(out) for stage in stages.values() for out in stage.get("outs", [])]
    assert "${runs}/study/questionnaire" in outs
    assert not [out for out in outs if out in ("${runs}", "${runs}/study")]


def test_only_the_owner_may_read_what_is_private(study: Path) -> None:
    before = mode(QUESTIONNAIRE / "questions.csv")
    invite("toyland", 2)
    invite("toyland", 3)  # written a second time
    worker_key(Path("new/folder") / KEY, Path("none.csv"))
    assert mode(FILE) == mode(Path("new/folder") / KEY) == 0o600
    assert mode(Path("new/folder")) & 0o755 == 0o755  # folders are as all others
    build("toyland", SMALL)
    assert mode(QUESTIONNAIRE / "questions.csv") == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column `code`"),
        ("name\nx\n", "has no column `code`"),
        ("code\nabcd-efgh-jkmn-pqr\n", ":2: code: 'abcd-efgh-jkmn-pqr' is none"),
        ("code\nABCD-efgh-jkmn-pqrs\n", ":2: code"),
        ("seat,code\n1\n", ":2: code: '' is none"),
        (f"code\n{'abcd-efgh-jkmn-pqrs'}\n\n{'abcd-efgh-jkmn-pqrs'}\n", "is there twice"),
    ],
)
def test_damaged_invitations_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / INVITATIONS
    path.write_text(text)
    with pytest.raises(BenchError, match=message) as error:
        read_invitations(path)
    assert str(path) in str(error.value)


def test_invitations_may_have_columns_of_their_owner(tmp_path: Path) -> None:
    path = tmp_path / INVITATIONS
    path.write_text("seat,code\n1,abcd-efgh-jkmn-pqrs\n\n2,bbcd-efgh-jkmn-pqrs\n")
    assert read_invitations(path) == ["abcd-efgh-jkmn-pqrs", "bbcd-efgh-jkmn-pqrs"]


def test_the_key_is_made_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, responses = tmp_path / KEY, tmp_path / "responses.csv"
    key = worker_key(path, responses)
    assert len(key) == 32
    assert f"made {path}: keep it" in capsys.readouterr().out
    responses.write_text("source,rater\namt,0123\n")
    assert worker_key(path, responses) == key
    assert capsys.readouterr().out == ""
    assert worker_key(tmp_path / "other.key", tmp_path / "none.csv") != key
    path.unlink()
    with pytest.raises(BenchError, match=r"the key is missing by which the workers in .* put it"):
        worker_key(path, responses)
    assert not path.exists()
    responses.write_text("source,rater\nlab,0123\n")  # needs no key
    worker_key(path, responses)
    for text in ("", "abc\n", "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(BenchError, match=rf"{KEY}: "):
            worker_key(path, responses)


def test_hashes_of_workers_are_hmacs() -> None:
    """As RFC 2104 defines them, from the hash alone."""
    key, worker = bytes(range(32)), "A1SECRET"
    inner, outer = (bytes(k ^ pad for k in key.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    inside = hashlib.sha256(inner + worker.encode()).digest()
    assert hashed_worker(worker, key) == hashlib.sha256(outer + inside).hexdigest()[:16]
    assert hashed_worker(worker, bytes(32)) != hashed_worker(worker, key)
