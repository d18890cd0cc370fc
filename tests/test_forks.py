"""What a fork waits for, who waits for a fork, and what a forked child leaves behind."""

from __future__ import annotations

import gc
import threading
import warnings
from typing import TYPE_CHECKING, cast

import apsw
import pytest

from idemreg import Clock, Registry, StoreError
from idemreg.lockfile import LockFile
from idemreg.sqlite import forking
from idemreg.sqlite.connection import NORMAL
from idemreg.sqlite.guard import FilesReplacedError
from tests.support.processes import PATIENCE_S
from tests.test_races import in_child

if TYPE_CHECKING:
    from idemreg.sqlite.backend import SqliteStore


def test_files_that_are_lost_while_a_fork_is_waited_for_are_not_opened(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that needs a further connection waits for the fork: meanwhile the files may be another registry's."""
    registry.run("task", int)
    database = cast("SqliteStore", registry.store)._opening.opened().database
    errors: list[BaseException] = []

    def read() -> None:
        try:
            registry.get("task")
        except StoreError as error:
            errors.append(error)

    class Waiting(Clock):
        def sleep(self, seconds: float) -> None:
            if threading.current_thread() is thread:
                waits.set()
            super().sleep(seconds)

    thread, waits = threading.Thread(target=read), threading.Event()
    monkeypatch.setattr(database, "_clock", Waiting())
    held = database.take(NORMAL)
    monkeypatch.setattr(forking.fork, "thread", -1)
    thread.start()
    assert waits.wait(PATIENCE_S)
    there = len(apsw.connections())
    database.lose(FilesReplacedError("for the test"))
    monkeypatch.setattr(forking.fork, "thread", 0)
    thread.join(PATIENCE_S)
    database.give_back(held, NORMAL)
    assert [type(error) for error in errors] == [FilesReplacedError]
    assert len(apsw.connections()) <= there


def test_a_fork_that_goes_leaves_another_that_is_to_come() -> None:
    """Two threads that fork at once: whoever would be inside waits for both."""
    forking.fork.threads.update({-1: True})
    try:
        assert in_child(lambda: str((forking.fork.thread, forking.fork.threads))) == "(0, {})"
        assert forking.fork.thread == -1
    finally:
        forking.fork.threads.clear()
        forking.fork.thread = 0


def test_one_that_cannot_be_forgotten_keeps_no_other_from_it(registry: Registry) -> None:
    """In a forked child all that is the parent's is left behind, whatever an interrupted opening has left."""

    class Stubborn:
        def forget(self) -> None:
            msg = "not now"
            raise ValueError(msg)

    class Forgotten:
        is_so = False

        def forget(self) -> None:
            self.is_so = True

    some: list[Stubborn | Forgotten] = [Stubborn(), Forgotten(), Stubborn(), Forgotten()]
    for one in some:
        forking.forgets(one)

    def seen() -> str:
        return str([one.is_so for one in some if isinstance(one, Forgotten)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnraisableExceptionWarning)
        assert in_child(seen) == "[True, True]"


@pytest.mark.parametrize("at", ["note_database", "share"])
def test_an_interrupt_as_the_file_was_brought_up_leaves_nothing_open(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Its connection is closed at once, and not when the garbage is collected: a fork in between would inherit it."""

    def interrupt(_lock_file: LockFile) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LockFile, at, interrupt)
    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.open()
        assert apsw.connections() == []
    finally:
        gc.enable()
