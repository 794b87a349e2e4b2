"""Digests of rooms of code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.bench import closure, digest
from pipeline.bench.digest import digest_path, write_digests
from pipeline.common.errors import BenchError
from pipeline.settings.profile import load_params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a room of two files."""
    room = tmp_path / "pipeline" / "room"
    (room / "__pycache__").mkdir(parents=True)
    (room / "a.py").write_text("a = 1\n")
    (room / "page.css").write_text("p {}\n")
    (room / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    (tmp_path / "pipeline" / "alone.py").write_text("")
    for name in ("params.yaml", "grid.yaml", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    for module in (closure, digest):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_source_has_a_line(project: Path) -> None:
    write_digests(["pipeline/room"], "toyland")
    path = digest_path(load_params(), "pipeline/room")
    assert path == Path("runs/toyland/code/pipeline.room.txt")
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"a = 1\n", b"p {}\n")]
    assert path.read_text() == (
        f"{hashes[0]}  pipeline/room/a.py\n{hashes[1]}  pipeline/room/page.css\n"
    )
    before = path.read_bytes()
    (project / "pipeline/room/__pycache__/b.pyc").touch()
    write_digests(["pipeline/room"], "toyland")
    assert path.read_bytes() == before
    (project / "pipeline/room/a.py").write_text("a = 2\n")
    write_digests(["pipeline/room"], "toyland")
    assert path.read_bytes() != before


@pytest.mark.parametrize("room", ["pipeline/cellar", "pipeline/alone.py", "datasets", "."])
def test_what_is_no_room_is_refused(project: Path, room: str) -> None:
    with pytest.raises(BenchError, match="no folder of code"):
        write_digests(["pipeline/room", room], "toyland")
    assert not Path("runs").exists()
