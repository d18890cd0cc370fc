"""The pool of connections: what was borrowed comes back, is used by nobody else meanwhile, and is never lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import apsw
import pytest

from idemreg import StoreError, StorePathError
from idemreg.sqlite import forking
from idemreg.sqlite import pool as pools
from idemreg.sqlite.connection import NORMAL
from tests.support.faulted import FaultedScript

if TYPE_CHECKING:
    from pathlib import Path

    from idemreg import Registry
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database


@pytest.fixture
def database(registry: Registry) -> Database:
    registry.run("warm", lambda: 1, name="job")
    return cast("SqliteStore", registry.store)._opening.opened().database


def write_though_it_may_only_read(connection: Connection) -> None:
    connection.pragma("query_only", 1)
    connection.execute("DELETE FROM idempotent_log")


def test_one_that_may_only_read_takes_all_others_of_its_time_along(registry: Registry, database: Database) -> None:
    """None of them is used again: the idle are closed at once, and a borrowed one when it comes back."""
    taken = [database.take(NORMAL) for _ in range(3)]
    borrowed = taken[0]
    for connection in taken[1:]:
        database.give_back(connection, NORMAL)
    with pytest.raises(StorePathError):
        database.read(write_though_it_may_only_read)
    assert database._idle[NORMAL] == []
    database.give_back(borrowed, NORMAL)
    assert not set(taken) & set(database._all)
    assert not forking.inside
    assert registry.run("warm", lambda: pytest.fail("ran again"), name="job").replayed
    assert registry.run("next", lambda: 2).result == 2
    assert len(database._idle[NORMAL]) == 1


def test_who_is_interrupted_as_he_borrows_has_nothing(
    registry: Registry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody counts as inside SQLite then, for whom a fork would wait."""

    class Interrupted:
        @property
        def thread(self) -> int:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pools, "fork", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            database.take(NORMAL)
    assert not forking.inside
    assert registry.run("next", lambda: 2).result == 2


def test_one_that_cannot_be_noted_is_closed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory goes behind its opening: no connection is left that a forked child would not part with."""

    class Full:
        def add(self, _connection: Connection) -> None:
            raise MemoryError

    before = set(apsw.connections())
    with monkeypatch.context() as patch:
        patch.setattr(database, "_all", Full())
        with pytest.raises(MemoryError):
            database._open(NORMAL)
    assert set(apsw.connections()) == before
    assert not forking.inside


def test_a_closed_file_is_not_used(registry: Registry, database: Database) -> None:
    """What was borrowed is closed when it comes back, and nobody gets another: that would be a fault of ours."""
    borrowed = database.take(NORMAL)
    registry.close()
    database.give_back(borrowed, NORMAL)
    assert not forking.inside
    with pytest.raises(StoreError, match="after it was closed"):
        database.take(NORMAL)


def test_what_is_given_back_twice_is_given_back_once(database: Database) -> None:
    """As by whoever was interrupted in the middle of it."""
    connection = database.take(NORMAL)
    before = len(database._idle[NORMAL])
    for _ in range(2):
        database.surely_give_back(connection, NORMAL)
        database.give_back(connection, NORMAL)
    assert len(database._idle[NORMAL]) == before + 1


def test_one_that_cannot_be_rolled_back_is_closed(registry: Registry, database: Database) -> None:
    """Which rolls back as well: what it wrote is nowhere, and nobody waits for its lock."""

    def refuse(action: int, word: str | None, *_: str | None) -> int:
        is_rollback = action == apsw.SQLITE_TRANSACTION and word == "ROLLBACK"
        return apsw.SQLITE_DENY if is_rollback else apsw.SQLITE_OK

    connection = database.take(NORMAL)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM idempotent_log")
    connection.authorizer = refuse
    database.give_back(connection, NORMAL)
    assert connection not in set(database._all)
    assert not forking.inside
    assert registry.run("warm", lambda: pytest.fail("ran again"), name="job").replayed
    assert registry.run("next", lambda: 2).result == 2


UNREADABLE = """
from idemreg import Registry, StoreError
from tests.torture.injected.shim import LASTING
registry = Registry(sys.argv[1], durability="normal")
registry.run("t", lambda: 7, name="job")
database = registry.store._opening.opened().database
fail("read", errno.EIO, lasting=LASTING)
try: told = database.is_whole()
except StoreError as error: told = error.code
say(told, hits() > 0)
say(database.is_whole(), registry.run("t", lambda: 9, name="job").replayed)
"""


@pytest.mark.usefixtures("compiler")
def test_a_fault_says_nothing_about_the_file(path: Path) -> None:
    """What cannot be read is not called damaged."""
    with FaultedScript(UNREADABLE, path) as script:
        script.expect("store True")
        script.expect("True True")
        assert script.end() == 0


NO_MEMORY = """
from idemreg import Registry, StoreError
from tests.torture.injected.shim import watch_sqlite
watch_sqlite(_functions)
registry = Registry(sys.argv[1], durability="normal")
registry.run("t", lambda: 7, name="job")
database = registry.store._opening.opened().database
told = set()
for number in range(1, 1_000):
    fail("sqlite", errno.ENOMEM, number=number)
    try: told.add(database.is_whole())
    except StoreError as error: told.add(type(error).__name__)
    if not hits(): break
say(sorted(map(str, told)), number < 1_000)
"""


@pytest.mark.usefixtures("compiler")
def test_nor_does_a_lack_of_memory(path: Path) -> None:
    """Wherever SQLite meets it in the look at all tables."""
    with FaultedScript(NO_MEMORY, path) as script:
        script.expect("['StoreError', 'True'] True")
        assert script.end() == 0


def test_a_file_that_is_none_any_more_is_not_whole(path: Path, registry: Registry, database: Database) -> None:
    """Damage is told from what cannot be read."""
    registry.checkpoint("TRUNCATE")
    assert database.is_whole()
    with path.open("r+b") as file:
        head = file.read(100)
        file.seek(0)
        file.write(bytes(100))
        file.flush()
        is_whole = database.is_whole()
        file.seek(0)
        file.write(head)
    assert not is_whole
    assert database.is_whole()
