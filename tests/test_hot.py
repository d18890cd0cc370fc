"""The hot path guesses that a task is new where many were: right or wrong, each answer is what a look would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from idemreg import ChecksumMismatchError, Clock
from idemreg.sqlite import hot
from idemreg.turn import Turns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import apsw

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
