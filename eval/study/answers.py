"""The answers of the lab page: one SQLite file, each answer on the disk before it is confirmed.

Three tables: `answers`, what raters said; `raters`, who they are (a hash of a random code), which
block is theirs and what was put before them when; `study`, the questionnaire that all this is
about. An answer is written once: it can be neither changed nor given by somebody else.

Two more follow from these, so that a rater who joins is given a block without a look at all the
others: `blocks`, how many raters and answers each has or is about to have, and `at_work`, who is
waited for, in the order in which they were last seen. They are made anew whenever a file is
opened.
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
CREATE TABLE IF NOT EXISTS blocks (
  block INTEGER PRIMARY KEY,
  questions INTEGER NOT NULL,
  raters INTEGER NOT NULL,
  answers INTEGER NOT NULL  -- and those to come of raters at work
);
CREATE TABLE IF NOT EXISTS at_work (rater TEXT PRIMARY KEY, seen REAL NOT NULL);
CREATE INDEX IF NOT EXISTS at_work_seen ON at_work (seen);
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
    TOO_SOON = "too soon"  # refused: it was put before the rater only just now


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
        minimum_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the file, or makes it.

        Args:
            path: the SQLite file.
            questionnaire: what identifies the questionnaire, such as a hash of its questions.
            blocks: the questions of each block, in the order in which they are asked.
            minimum_seconds: between showing a question and taking its answer, by `clock`.
            clock: seconds since 1970.

        Raises:
            BenchError: not such a file, of another questionnaire, or it cannot be written.
        """
        self.path = path
        self._blocks = {block: tuple(questions) for block, questions in blocks.items()}
        self._minimum_seconds = minimum_seconds
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
        with self._transaction() as execute:
            self._count(execute)

    def close(self) -> None:
        """Closes the file; nothing may follow."""
        with self._lock:
            self._connection.close()

    def join(self, rater: str, most: int | None = None) -> bool:
        """Gives a new rater the block that needs one most; who has a block keeps it.

        That is the block with the fewest answers, where a rater at work counts as if at the end
        already: raters who start together are spread over the blocks, and those who went away
        count only for what they did. How long it takes does not depend on how many raters there
        are: everybody who went away is looked at once.

        Args:
            rater: who joins.
            most: how many raters there may be for a new one to join; any number if None.

        Returns:
            Whether the rater has a block now.
        """
        with self._transaction() as execute:
            if execute("SELECT 1 FROM raters WHERE rater = ?", (rater,)).fetchone():
                return True
            if most is not None and execute("SELECT sum(raters) FROM blocks").fetchone()[0] >= most:
                return False
            now = self._clock()
            away = "SELECT rater FROM at_work WHERE seen < ?"
            for (name,) in execute(away, (now - AWAY_SECONDS,)).fetchall():
                self._expect(execute, name, -1)
                execute("DELETE FROM at_work WHERE rater = ?", (name,))
            (block,) = execute(
                "SELECT block FROM blocks ORDER BY 1.0 * answers / questions, raters, block"
            ).fetchone()
            execute(
                "INSERT INTO raters (rater, block, joined) VALUES (?, ?, ?)", (rater, block, now)
            )
            execute("UPDATE blocks SET raters = raters + 1 WHERE block = ?", (block,))
            self._at_work(execute, rater, now)
            return True

    def place(self, rater: str) -> Place | None:
        """Where a rater stands; None if unknown."""
        with self._transaction() as execute:
            return self._place(execute, rater)

    def show(self, rater: str) -> Place | None:
        """As `place`, and notes that the next question is put before the rater now."""
        with self._transaction() as execute:
            place = self._place(execute, rater)
            if place is not None and place.question is not None:
                now = self._clock()
                execute(
                    "UPDATE raters SET question = ?, shown = ? WHERE rater = ?",
                    (place.question, now, rater),
                )
                self._at_work(execute, rater, now)
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
            if seconds < self._minimum_seconds:
                return Outcome.TOO_SOON
            execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                (rater, question, choice, seconds, submitted),
            )
            if not execute("SELECT 1 FROM at_work WHERE rater = ?", (rater,)).fetchone():
                execute("UPDATE blocks SET answers = answers + 1 WHERE block = ?", (row[0],))
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

    def _at_work(self, execute: _Execute, rater: str, now: float) -> None:
        """Notes that a rater is here, and expects all answers of those who were not."""
        known = execute("SELECT 1 FROM at_work WHERE rater = ?", (rater,)).fetchone()
        if known is None:
            self._expect(execute, rater, 1)
        execute("INSERT OR REPLACE INTO at_work VALUES (?, ?)", (rater, now))

    def _expect(self, execute: _Execute, rater: str, sign: int) -> None:
        """Counts, or no longer counts, the answers that a rater has yet to give."""
        execute(
            "UPDATE blocks SET answers = answers + ? * (questions - "
            "(SELECT count(*) FROM answers WHERE rater = ?)) "
            "WHERE block = (SELECT block FROM raters WHERE rater = ?)",
            (sign, rater, rater),
        )

    def _count(self, execute: _Execute) -> None:
        """Makes `blocks` and `at_work` of what the other tables say."""
        execute("DELETE FROM blocks")
        execute("DELETE FROM at_work")
        for block, questions in self._blocks.items():
            execute("INSERT INTO blocks VALUES (?, ?, 0, 0)", (block, len(questions)))
        counts = execute(
            "SELECT count(DISTINCT raters.rater), count(answers.rater), block FROM raters "
            "LEFT JOIN answers USING (rater) GROUP BY block"
        ).fetchall()
        for row in counts:
            execute("UPDATE blocks SET raters = ?, answers = ? WHERE block = ?", row)
        now = self._clock()
        seen = "SELECT rater, coalesce(shown, joined) AS seen FROM raters WHERE seen >= ?"
        for rater, when in execute(seen, (now - AWAY_SECONDS,)).fetchall():
            self._at_work(execute, rater, when)

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
