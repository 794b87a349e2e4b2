"""The store: every answer once, blocks in balance, whatever comes at the same time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Barrier

import pytest

from eval.study.answers import AWAY_SECONDS, Answers, Outcome, Place
from eval.study.read import read_answers
from pipeline.common.errors import BenchError

BLOCKS = {block: tuple(f"{block:x}{number:03x}" for number in range(5)) for block in range(4)}


class Clock:
    """Seconds that pass when told."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock) -> Callable[[], Answers]:
    return lambda: Answers(tmp_path / "study" / "answers.sqlite", "q1", BLOCKS, clock=clock)


@pytest.fixture
def store(open_store: Callable[[], Answers]) -> Answers:
    return open_store()


def rows(store: Answers, what: str = "*", table: str = "answers") -> list[tuple]:
    """What is on the disk, read by a connection of its own."""
    connection = sqlite3.connect(store.path)
    found = connection.execute(f"SELECT {what} FROM {table}").fetchall()
    connection.close()
    return found


def block_of(store: Answers, rater: str) -> int:
    return rows(store, "block", f"raters WHERE rater = '{rater}'")[0][0]


def finish(store: Answers, rater: str, answers: int = 100) -> None:
    for _ in range(answers):
        place = store.show(rater)
        if place is None or place.question is None:
            break
        assert store.answer(rater, place.question, "left") is Outcome.STORED


def test_a_rater_answers_a_block_question_by_question(store: Answers, clock: Clock) -> None:
    assert store.place("ann") is None
    store.join("ann")
    questions = BLOCKS[block_of(store, "ann")]
    for number, question in enumerate(questions):
        assert store.show("ann") == Place(number, 5, question)
        clock.now += 2.5
        assert store.answer("ann", question, "right") is Outcome.STORED
    assert store.show("ann") == store.place("ann") == Place(5, 5, None)
    times = [f"2023-11-14T22:13:{second}+00:00" for second in (22, 25, 27, 30, 32)]
    assert rows(store) == [("ann", q, "right", 2.5, t) for q, t in zip(questions, times)]


def test_an_answer_is_given_once_by_its_rater_to_what_was_shown(store: Answers) -> None:
    for rater in ("ann", "bob"):
        store.join(rater)
    mine, others = (BLOCKS[block_of(store, rater)] for rater in ("ann", "bob"))
    assert store.answer("ann", mine[0], "left") is Outcome.NOT_SHOWN
    store.show("ann")
    assert store.answer("ann", mine[1], "left") is Outcome.NOT_SHOWN
    assert store.answer("ann", others[0], "left") is Outcome.FOREIGN
    assert store.answer("ann", "unheard of", "left") is Outcome.FOREIGN
    assert store.answer("nobody", mine[0], "left") is Outcome.FOREIGN
    assert rows(store) == []
    assert store.answer("ann", mine[0], "left") is Outcome.STORED
    stored = rows(store)
    assert store.answer("ann", mine[0], "left") is Outcome.REPEATED
    assert store.answer("ann", mine[0], "right") is Outcome.CHANGED
    assert rows(store) == stored
    assert store.place("bob") == Place(0, 5, others[0])


def test_a_choice_is_left_or_right(store: Answers) -> None:
    store.join("ann")
    place = store.show("ann")
    assert place is not None and place.question is not None
    with pytest.raises(sqlite3.IntegrityError):
        store.answer("ann", place.question, "both")
    assert rows(store) == []
    assert store.answer("ann", place.question, "left") is Outcome.STORED  # the store still works


def test_joining_twice_changes_nothing(store: Answers) -> None:
    store.join("ann")
    finish(store, "ann", 2)
    before = rows(store, table="raters")
    store.join("ann")
    assert rows(store, table="raters") == before


def test_raters_who_start_together_are_spread_over_the_blocks(store: Answers) -> None:
    for number in range(10):
        store.join(f"rater {number}")
    counts = Counter(block for (block,) in rows(store, "block", "raters"))
    assert sorted(counts.values()) == [2, 2, 3, 3]


def test_who_went_away_counts_only_for_what_was_answered(store: Answers, clock: Clock) -> None:
    for name in ("a", "b", "c", "d"):
        store.join(name)
    blocks = {name: block_of(store, name) for name in "abcd"}
    assert sorted(blocks.values()) == [0, 1, 2, 3]
    finish(store, "a"), finish(store, "b", 3), finish(store, "c", 1), finish(store, "d", 4)
    clock.now += AWAY_SECONDS + 1
    for name, after in (("e", "c"), ("f", "b"), ("g", "d"), ("h", "a")):
        store.join(name)
        assert block_of(store, name) == blocks[after]


def neediest(store: Answers, now: float) -> int:
    """The block for the next rater, by a look at everybody."""
    answers = Counter(rater for (rater,) in rows(store, "rater"))
    load, raters = dict.fromkeys(BLOCKS, 0.0), dict.fromkeys(BLOCKS, 0)
    for rater, block, seen in rows(store, "rater, block, coalesce(shown, joined)", "raters"):
        at_work = now - seen <= AWAY_SECONDS
        load[block] += 1 if at_work else answers[rater] / len(BLOCKS[block])
        raters[block] += 1
    return min(BLOCKS, key=lambda b: (round(load[b], 9), raters[b], b))


@pytest.mark.parametrize("seed", range(6))
def test_blocks_are_chosen_as_if_everybody_was_looked_at(
    open_store: Callable[[], Answers], clock: Clock, seed: int
) -> None:
    """Whoever comes, goes, comes back and answers, in any order, at one of two servers."""
    rng, stores = random.Random(seed), [open_store(), open_store()]
    names: list[str] = []
    for _ in range(250):
        store = rng.choice(stores)
        clock.now += rng.choice([0.0, 5.0, 600.0, AWAY_SECONDS])
        if not names or rng.random() < 0.2:
            names.append(f"rater {len(names)}")
            expected = neediest(store, clock.now)
            assert store.join(names[-1])
            assert block_of(store, names[-1]) == expected
            continue
        rater = rng.choice(names)
        place = store.show(rater) if rng.random() < 0.5 else store.place(rater)
        if place is not None and place.question is not None and rng.random() < 0.7:
            store.answer(rater, place.question, "left")
        if rng.random() < 0.05:
            stores[0].close()
            stores = [open_store(), stores[1]]
    assert len(names) > 20


def steps(store: Answers, do: Callable[[], object]) -> int:
    """The steps that SQLite takes for something."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    store._connection.set_progress_handler(count, 1)
    do()
    store._connection.set_progress_handler(None, 0)
    return taken


@pytest.mark.parametrize("after", [0.0, AWAY_SECONDS + 1])
def test_joining_takes_as_long_with_few_as_with_many(
    store: Answers, clock: Clock, after: float
) -> None:
    """Be all others at work, or away."""
    taken = []
    for many in (10, 1000):
        while len(rows(store, "rater", "raters")) < many:
            store.join(f"rater {len(rows(store, 'rater', 'raters'))}")
        finish(store, "rater 0", 1)
        clock.now += after
        store.join(f"sees who is away, {many}")
        taken.append(steps(store, lambda many=many: store.join(f"late {many}")))
        taken.append(steps(store, lambda many=many: store.show(f"late {many}")))
    assert taken[2] <= taken[0] + 20
    assert taken[3] <= taken[1] + 20
    assert taken[0] < 600


def test_there_may_be_so_many_raters(store: Answers) -> None:
    assert [store.join(name, most=2) for name in "abc"] == [True, True, False]
    assert store.place("c") is None
    assert store.join("a", most=2)  # is in already
    assert store.join("c")  # was invited
    assert store.place("c") is not None


def test_what_comes_too_soon_is_refused(tmp_path: Path, clock: Clock) -> None:
    store = Answers(tmp_path / "a.sqlite", "q1", BLOCKS, minimum_seconds=1.5, clock=clock)
    store.join("ann")
    first, second, *_ = BLOCKS[0]
    store.show("ann")
    clock.now += 1.4
    assert store.answer("ann", first, "left") is Outcome.TOO_SOON
    assert rows(store) == []
    store.show("ann")  # a reload begins anew
    clock.now += 1.4
    assert store.answer("ann", first, "left") is Outcome.TOO_SOON
    clock.now += 0.1
    assert store.answer("ann", first, "left") is Outcome.STORED
    assert store.answer("ann", second, "left") is Outcome.NOT_SHOWN
    assert rows(store, "seconds") == [(1.5,)]


def test_files_of_before_invitations_are_gone_on_with(
    open_store: Callable[[], Answers], tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "study" / "answers.sqlite"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE answers (rater TEXT NOT NULL, question TEXT NOT NULL, choice TEXT NOT "
            "NULL CHECK (choice IN ('left', 'right')), seconds REAL NOT NULL, submitted TEXT NOT "
            "NULL, PRIMARY KEY (rater, question));"
            "CREATE TABLE raters (rater TEXT PRIMARY KEY, block INTEGER NOT NULL, joined REAL NOT "
            "NULL, question TEXT, shown REAL);"
            "CREATE TABLE study (questionnaire TEXT NOT NULL);"
            "INSERT INTO study VALUES ('q1');"
        )
        for block, name in enumerate("abc"):
            row = (name, block, clock.now - 10, BLOCKS[block][0], clock.now - 5)
            connection.execute("INSERT INTO raters VALUES (?, ?, ?, ?, ?)", row)
        row = ("a", BLOCKS[0][0], "left", 2.0, "2023-11-14T22:13:20+00:00")
        connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", row)
    connection.close()
    store = open_store()
    assert store.place("a") == Place(1, 5, BLOCKS[0][1])
    assert store.answer("b", BLOCKS[1][0], "right") is Outcome.STORED
    for name, block in (("d", 3), ("e", 0), ("f", 1)):
        store.join(name)
        assert block_of(store, name) == block
    assert [answer.question for answer in read_answers(path)] == [BLOCKS[0][0], BLOCKS[1][0]]


def test_progress_counts_raters_blocks_and_questions(store: Answers, clock: Clock) -> None:
    for name in ("a", "b", "c", "d", "e"):
        store.join(name)
        clock.now += 1
    finish(store, "a"), finish(store, "e", 2)
    clock.now += 60
    progress = store.progress()
    assert progress.answers == 7
    assert [(r.block, r.answered, r.total) for r in progress.raters] == [
        (0, 5, 5),
        (1, 0, 5),
        (2, 0, 5),
        (3, 0, 5),
        (0, 2, 5),
    ]
    assert [r.away_seconds for r in progress.raters] == [60, 64, 63, 62, 60]
    assert progress.blocks[0] == (0, 2, 1, (2, 2, 1, 1, 1))
    assert progress.blocks[1] == (1, 1, 0, (0, 0, 0, 0, 0))


def test_many_threads_answer_each_question_once(store: Answers) -> None:
    raters, copies = [f"rater {number}" for number in range(16)], 3
    barrier = Barrier(len(raters) * copies)

    def work(rater: str) -> Counter[Outcome]:
        outcomes: Counter[Outcome] = Counter()
        barrier.wait()
        store.join(rater)
        while True:
            place = store.show(rater)
            assert place is not None
            if place.question is None:
                return outcomes
            outcomes[store.answer(rater, place.question, "left")] += 1

    with ThreadPoolExecutor(len(raters) * copies) as pool:
        outcomes = sum(pool.map(work, raters * copies), Counter())
    assert outcomes[Outcome.STORED] == len(raters) * 5
    assert set(outcomes) <= {Outcome.STORED, Outcome.REPEATED}
    expected = {(r, q) for r in raters for q in BLOCKS[block_of(store, r)]}
    stored = rows(store, "rater, question")
    assert len(stored) == len(expected)
    assert set(stored) == expected
    blocks = Counter(block for (block,) in rows(store, "block", "raters"))
    assert set(blocks.values()) == {4}


def test_of_two_different_answers_at_once_one_wins(open_store: Callable[[], Answers]) -> None:
    stores = [open_store(), open_store()]  # as two servers on one file
    for number in range(20):
        rater = f"rater {number}"
        stores[0].join(rater)
        place = stores[1].show(rater)
        assert place is not None and place.question is not None
        barrier = Barrier(2)

        def say(i: int, rater: str = rater, q: str = place.question, b: Barrier = barrier):
            b.wait()
            return stores[i].answer(rater, q, ("left", "right")[i])

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(say, (0, 1)))
        assert set(outcomes) == {Outcome.STORED, Outcome.CHANGED}
        ((choice,),) = rows(stores[0], "choice", f"answers WHERE rater = '{rater}'")
        assert choice == ("left", "right")[outcomes.index(Outcome.STORED)]


def _answer_until_killed(path: Path, confirmed: Connection) -> None:
    store = Answers(path, "q1", {0: [str(number) for number in range(2000)]})
    store.join("ann")
    while True:
        place = store.show("ann")
        assert place is not None and place.question is not None
        store.answer("ann", place.question, "left")
        confirmed.send(place.question)


def test_what_was_confirmed_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_answer_until_killed, args=(path, there)
    )
    process.start()
    there.close()
    confirmed = [here.recv() for _ in range(200)]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while here.poll():
        try:
            confirmed.append(here.recv())
        except EOFError:
            break
    store = Answers(path, "q1", {0: [str(number) for number in range(2000)]})
    stored = [question for (question,) in rows(store, "question", "answers ORDER BY rowid")]
    assert stored[: len(confirmed)] == confirmed
    assert len(stored) - len(confirmed) in (0, 1)
    place = store.place("ann")
    assert place is not None and place.answered == len(stored)


def test_answers_lie_on_after_closing(open_store: Callable[[], Answers]) -> None:
    store = open_store()
    store.join("ann")
    finish(store, "ann", 3)
    store.close()
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["answers.sqlite"]
    again = open_store()
    assert again.place("ann") == Place(3, 5, BLOCKS[0][3])


def test_the_file_survives_a_power_cut_by_its_settings(store: Answers) -> None:
    pragma = store._connection.execute
    assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
    assert pragma("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_answers_to_another_questionnaire_are_not_mixed(store: Answers) -> None:
    store.close()
    with pytest.raises(BenchError, match="answers to another questionnaire: move it away"):
        Answers(store.path, "q2", BLOCKS)


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("rater,question\n" * 100)
    with pytest.raises(BenchError, match="not a file to store answers in"):
        Answers(path, "q1", BLOCKS)
    assert path.read_text() == "rater,question\n" * 100
    with pytest.raises(BenchError, match="not a file to store answers in"):
        Answers(tmp_path, "q1", BLOCKS)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE answers (worker, answer)")
    connection.close()
    with pytest.raises(BenchError, match="`answers` has the columns worker, answer, not rater"):
        Answers(other, "q1", BLOCKS)
