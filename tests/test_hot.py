"""The hot path guesses that a task is new where many were: right or wrong, each answer is what a look would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

from idemreg import ChecksumMismatchError, Clock, StoreBusyError, oslock
from idemreg.ends import success_end
from idemreg.request import wanted
from idemreg.sqlite import hot
from idemreg.sqlite.connection import NORMAL
from idemreg.store import Granted, Recorded, Stored
from idemreg.turn import Turn, Turns
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Registry
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.database import Database


@pytest.fixture
def many_new(registry: Registry) -> Registry:
    """A registry that was asked for new tasks only."""
    for number in range(hot.SURELY_NEW + 1):
        registry.run(f"new:{number}", lambda: 1, name="job")
    return registry


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that were looked for before anything was written."""
    looks: list[str] = []
    look = hot.Claim.look

    def noted(claim: hot.Claim, connection: apsw.Connection) -> object:
        looks.append(claim._wanted.task_id)
        return look(claim, connection)  # type: ignore[arg-type]

    monkeypatch.setattr(hot.Claim, "look", noted)
    return looks


def database(registry: Registry) -> Database:
    opened = cast("SqliteStore", registry.store)._opening.current
    assert opened is not None
    return opened.database


def test_behind_many_new_tasks_the_next_is_claimed_without_a_look(many_new: Registry, looks: list[str]) -> None:
    """One statement less: the claim that inserts is the look."""
    assert many_new.run("t", lambda: 7, name="job").result == 7
    assert looks == []
    assert many_new.run("t", lambda: pytest.fail("it ran twice"), name="job").result == 7


def test_a_guess_that_was_wrong_is_answered_by_a_look(many_new: Registry, looks: list[str]) -> None:
    """A duplicate behind many new tasks is replayed or refused as ever, and the next tasks are looked for again."""
    assert many_new.run("new:1", lambda: pytest.fail("it ran twice"), name="job").replayed
    with pytest.raises(ChecksumMismatchError):
        many_new.run("new:1", lambda: pytest.fail("it ran twice"), name="job", payload={"other": 1})
    many_new.run("t", lambda: 1)
    assert looks == ["new:1", "new:1", "t"]


def test_what_the_hot_path_makes_has_all_its_fields(many_new: Registry) -> None:
    """Their number is counted by nobody, where `of_fields` takes the place of the class."""
    store, options = many_new.store, many_new.checked({})
    request = wanted("t", "job", b"", options)
    grant: Any = store.begin(request)
    assert type(grant) is Granted
    end, _ = success_end(grant, options, 7)
    assert type(store.finish_one(end)) is Recorded
    stored: Any = store.begin(request)
    assert type(stored) is Stored
    ran, replayed = (many_new.run("other", lambda: 7) for _ in range(2))
    for made in (request, grant, end, stored, ran, replayed):
        assert made == type(made)(*made)
        assert len(made) == len(made._fields)


@pytest.mark.parametrize("who", ["another process", "another program"])
def test_a_guess_waits_for_nobody(who: str, many_new: Registry, path: Path, looks: list[str]) -> None:
    """Where somebody writes, and be he stopped, a stored answer is given at once."""
    assert database(many_new).busy_s >= 1
    if who == "another process":
        turns = Turns(f"{path}-lock", Clock())
        assert turns.write.try_take()
        let_go: Callable[[], object] = turns.close
    else:
        other = database(many_new)._open(1)
        other.execute("BEGIN IMMEDIATE")
        let_go = other.close
    began = Clock().monotonic()
    assert many_new.run("new:1", lambda: pytest.fail("it ran twice"), name="job").replayed
    assert Clock().monotonic() - began < database(many_new).busy_s / 2
    let_go()
    assert looks == ["new:1"]
    assert many_new.run("t", lambda: 7).result == 7


def test_a_look_that_breaks_off_leaves_no_read_open(registry: Registry) -> None:
    """Memory may go between two rows of it; an open read would keep the -wal from beginning anew."""
    registry.run("t", lambda: 7, name="job")

    def breaks(_cursor: object, _row: object) -> None:
        raise MemoryError

    pool = database(registry)
    connection = pool.take(NORMAL)
    connection.hot.row_trace = breaks
    pool.give_back(connection, NORMAL)
    with pytest.raises(MemoryError):
        registry.run("t", lambda: pytest.fail("it ran twice"), name="job")
    assert connection.txn_state("main") == apsw.SQLITE_TXN_NONE
    assert registry.run("t", lambda: pytest.fail("it ran twice"), name="job").result == 7


def test_a_turn_whose_taking_breaks_off_is_given_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may go, or an interrupt come, behind the lock: the next checkpoint of anybody has the turn."""
    registry.run("t", lambda: 7, name="job")
    turn = database(registry).turns.checkpoint

    def breaks(_turn: Turn) -> bool:
        assert oslock.obey(turn.fd, turn.lock)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Turn, "try_take", breaks)
        with pytest.raises(MemoryError), cast("Any", database(registry).after_commit)._turn():
            pytest.fail("nobody knows whose the turn is")
    others = Turns(database(registry).lock_file.path, Clock())
    try:
        assert others.checkpoint.try_take()
    finally:
        others.close()


@pytest.mark.parametrize("is_free", [True, False])
def test_a_claim_that_has_waited_for_the_turn_is_one_statement(
    open_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch, *, is_free: bool
) -> None:
    """Not a transaction of three. Where another program writes, nothing is claimed, and the caller is told."""
    registry = open_registry(busy_timeout=PATIENCE_S if is_free else 0.05)
    registry.run("warm", lambda: 1)
    ours = database(registry)
    turns, other, general = Turns(ours.lock_file.path, Clock()), ours._open(1), list[object]()
    monkeypatch.setattr(ours, "write_one", general.append)
    take_turn, is_waited_for = ours.gate._take_turn, list[float]()

    def free_the_turn(until: float) -> None:
        is_waited_for.append(until)
        turns.close()
        take_turn(until)

    monkeypatch.setattr(ours.gate, "_take_turn", free_the_turn)
    assert turns.write.try_take()
    if is_free:
        assert registry.run("t", lambda: 7, name="job").result == 7
    else:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError):
            registry.run("t", lambda: pytest.fail("the job started"), name="job")
    other.close()
    assert (len(is_waited_for), general) == (1, [])
    monkeypatch.undo()
    assert registry.run("t", lambda: 7, name="job").replayed is is_free
