"""The answers of the lab page: one SQLite file, each answer on the disk before it is confirmed.

Three tables: `answers`, what raters said; `raters`, who they are (a hash of a random token), which
block is theirs and what was put before them when; `study`, the questionnaire that all this is
about. An answer is written once: it can be neither changed nor given by somebody else.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import BenchError

# Who has been away for longer is not waited for when blocks are given out.
AWAY_SECONDS = 3600.0
CHOICES = ("left", "right")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  rater TEXT NOT NULL,
  question TEXT NOT NULL,
  choice TEXT NOT NULL CHECK (choice IN ('left', 'right')),
  seconds REAL NOT NULL,
  submitted TEXT NOT NULL,
  PRIMARY KEY (rater, question)
);
CREATE TABLE IF NOT EXISTS raters (
  rater TEXT PRIMARY KEY,
  block INTEGER NOT NULL,
  joined REAL NOT NULL,
  question TEXT,
  shown REAL
);
CREATE TABLE IF NOT EXISTS study (questionnaire TEXT NOT NULL);
"""
_COLUMNS = ["rater", "question", "choice", "seconds", "submitted"]
_Execute = Callable[..., sqlite3.Cursor]


class Outcome(Enum):
    """What became of an answer."""

    STORED = "stored"
    REPEATED = "repeated"  # the same answer once more: nothing to do
    CHANGED = "changed"  # refused: another answer is stored
    FOREIGN = "foreign"  # refused: not a question of this rater
    NOT_SHOWN = "not shown"  # refused: not the question that was put before the rater


class Place(NamedTuple):
    """Where a rater stands."""

    answered: int
    total: int  # questions of the rater's block
    question: str | None  # the next one; None at the end


class RaterProgress(NamedTuple):
    """How far a rater is; says nothing about who it is."""

    block: int
    answered: int
    total: int
    away_seconds: float  # since a question was put before the rater


class BlockProgress(NamedTuple):
    """How far a block is."""

    block: int
    raters: int
    finished: int  # of these raters
    answers: tuple[int, ...]  # by question, in their order


class Progress(NamedTuple):
    """How far a study is."""

    raters: tuple[RaterProgress, ...]  # in the order in which they joined
    blocks: tuple[BlockProgress, ...]

    @property
    def answers(self) -> int:
        """All answers."""
        return sum(sum(block.answers) for block in self.blocks)


class Answers:
    """The store; may be used by many threads, and by several processes."""

    def __init__(
        self,
        path: Path,
        questionnaire: str,
        blocks: Mapping[int, Sequence[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the file, or makes it.

        Args:
            path: the SQLite file.
            questionnaire: what identifies the questionnaire, such as a hash of its questions.
            blocks: the questions of each block, in the order in which they are asked.
            clock: seconds since 1970.

        Raises:
            BenchError: not such a file, of another questionnaire, or it cannot be written.
        """
        self.path = path
        self._blocks = {block: tuple(questions) for block, questions in blocks.items()}
        self._clock = clock
        # One connection for all: SQLite has one writer at a time anyway.
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            # Readers do not wait for the writer, and what is committed survives a power cut.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
            columns = [row[1] for row in self._connection.execute("PRAGMA table_info(answers)")]
        except (OSError, sqlite3.Error) as error:
            raise BenchError(
                f"{path}: not a file to store answers in ({error}): move it away, or choose "
                "another with --database"
            ) from error
        if columns != _COLUMNS:
            self.close()
            raise BenchError(
                f"{path}: its table `answers` has the columns {', '.join(columns)}, not "
                f"{', '.join(_COLUMNS)}: move it away, or choose another with --database"
            )
        with self._transaction() as execute:
            row = execute("SELECT questionnaire FROM study").fetchone()
            if row is None:
                execute("INSERT INTO study VALUES (?)", (questionnaire,))
        if row is not None and row[0] != questionnaire:
            self.close()
            raise BenchError(
                f"{path}: holds answers to another questionnaire: move it away, choose another "
                "with --database, or build that questionnaire again"
            )

    def close(self) -> None:
        """Closes the file; nothing may follow."""
        with self._lock:
            self._connection.close()

    def join(self, rater: str) -> None:
        """Gives a new rater the block that needs one most; who has a block keeps it.

        That is the block with the fewest answers, where a rater at work counts as if at the end
        already: raters who start together are spread over the blocks, and those who went away
        count only for what they did.
        """
        with self._transaction() as execute:
            if execute("SELECT 1 FROM raters WHERE rater = ?", (rater,)).fetchone():
                return
            now = self._clock()
            load = dict.fromkeys(self._blocks, 0.0)
            raters = dict.fromkeys(self._blocks, 0)
            for one in self._raters(execute, now):
                at_work = one.away_seconds <= AWAY_SECONDS
                load[one.block] += 1.0 if at_work else one.answered / one.total
                raters[one.block] += 1
            block = min(self._blocks, key=lambda b: (load[b], raters[b], b))
            execute(
                "INSERT INTO raters (rater, block, joined) VALUES (?, ?, ?)", (rater, block, now)
            )

    def place(self, rater: str) -> Place | None:
        """Where a rater stands; None if unknown."""
        with self._transaction() as execute:
            return self._place(execute, rater)

    def show(self, rater: str) -> Place | None:
        """As `place`, and notes that the next question is put before the rater now."""
        with self._transaction() as execute:
            place = self._place(execute, rater)
            if place is not None and place.question is not None:
                execute(
                    "UPDATE raters SET question = ?, shown = ? WHERE rater = ?",
                    (place.question, self._clock(), rater),
                )
            return place

    def answer(self, rater: str, question: str, choice: str) -> Outcome:
        """Stores an answer, with the seconds since its question was shown; once and for all.

        Args:
            rater: who gives it.
            question: must be the one that `show` gave last.
            choice: one of CHOICES.

        Returns:
            What became of it. After STORED it is on the disk.
        """
        with self._transaction() as execute:
            row = execute(
                "SELECT block, question, shown FROM raters WHERE rater = ?", (rater,)
            ).fetchone()
            if row is None or question not in self._blocks.get(row[0], ()):
                return Outcome.FOREIGN
            earlier = execute(
                "SELECT choice FROM answers WHERE rater = ? AND question = ?", (rater, question)
            ).fetchone()
            if earlier is not None:
                return Outcome.REPEATED if earlier[0] == choice else Outcome.CHANGED
            if row[1] != question:
                return Outcome.NOT_SHOWN
            now = self._clock()
            submitted = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
            seconds = round(max(0.0, now - row[2]), 3)
            execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                (rater, question, choice, seconds, submitted),
            )
            return Outcome.STORED

    def progress(self) -> Progress:
        """How far everybody is, without names."""
        with self._transaction() as execute:
            raters = tuple(self._raters(execute, self._clock()))
            counts = dict(execute("SELECT question, count(*) FROM answers GROUP BY question"))
        blocks = []
        for block, questions in self._blocks.items():
            of_block = [rater for rater in raters if rater.block == block]
            finished = sum(rater.answered == rater.total for rater in of_block)
            by_question = tuple(counts.get(question, 0) for question in questions)
            blocks.append(BlockProgress(block, len(of_block), finished, by_question))
        return Progress(raters, tuple(blocks))

    def _place(self, execute: _Execute, rater: str) -> Place | None:
        row = execute("SELECT block FROM raters WHERE rater = ?", (rater,)).fetchone()
        if row is None:
            return None
        questions = self._blocks[row[0]]
        done = {q for (q,) in execute("SELECT question FROM answers WHERE rater = ?", (rater,))}
        left = [question for question in questions if question not in done]
        return Place(len(questions) - len(left), len(questions), left[0] if left else None)

    def _raters(self, execute: _Execute, now: float) -> Iterator[RaterProgress]:
        rows = execute(
            "SELECT block, count(answers.rater), coalesce(shown, joined) FROM raters "
            "LEFT JOIN answers USING (rater) GROUP BY rater ORDER BY joined, rater"
        ).fetchall()
        for block, answered, seen in rows:
            yield RaterProgress(block, answered, len(self._blocks[block]), max(0.0, now - seen))

    @contextmanager
    def _transaction(self) -> Iterator[_Execute]:
        """All or nothing; no other writer comes between, of this process or of another."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk ends it by itself
                    self._connection.execute("ROLLBACK")
                raise
