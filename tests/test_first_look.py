"""Who only looks imports nothing that writes; what writes then finds the files open, and misses nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock, Registry
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.opening import Opening
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.sqlite.opened import Opened

LOOKS = """
import typing
from idemreg import Registry, Status
with Registry(sys.argv[1], create=False) as registry:
    tasks = [*registry.tasks(status=Status.SUCCEEDED), registry.get("t")]
    say(len(tasks), registry.owner(tasks[0]), registry.count())
rooms = [name for name in sys.modules if name.startswith("idemreg.")]
say(*rooms)
classes = [one for room in rooms for one in vars(sys.modules[room]).values() if isinstance(one, type)]
fields = [(one.__name__, kind) for one in classes if hasattr(one, "_fields") for kind in one.__annotations__.values()]
say(*{name for name, kind in fields if isinstance(kind, typing.ForwardRef)})
"""

WRITING = {
    "idemreg.store",
    "idemreg.deciding",
    *(f"idemreg.sqlite.{room}" for room in ("backend", "hot", "claiming", "settling", "tasks", "checkpoints", "rest")),
}

PAGES = 1_000  # after which a commit moves the -wal


@pytest.fixture
def looked_into(path: Path) -> Registry:
    """A registry of one task, whose file is open by a look."""
    with Registry(path, durability="normal") as first:
        first.run("t", lambda: 1)
    registry = Registry(path, durability="normal")
    assert registry.get("t") is not None
    return registry


def test_a_look_imports_nothing_that_writes(path: Path) -> None:
    """A process that only looks has none of the rooms that write: its start is most of its time.

    Nor has it what judges files at rest, where others have them open; nor a named tuple with an annotation that is
    text, which typing compiles: the first of them takes a millisecond.
    """
    with Registry(path) as registry:
        registry.run("t", lambda: 1)
        with Script(LOOKS, path) as script:
            script.expect("2 None {<Status.SUCCEEDED: 1>: 1}")
            loaded = set(script.line().split())
            script.expect("")
            assert script.end() == 0
    assert "idemreg.sqlite.reading" in loaded
    assert not loaded & WRITING


def test_files_that_a_look_has_opened_are_checkpointed(looked_into: Registry) -> None:
    """The commits of the first jobs behind it are heard of, so the -wal does not grow for ever."""
    wal = looked_into._store.wal
    for number in range(40):
        looked_into.run(f"large:{number}", lambda: "x" * 100_000)
    state = wal.state()
    assert state is not None
    assert state.moved > 0 or state.pages < PAGES
    looked_into.close()


def test_what_was_dropped_behind_a_look_is_settled(looked_into: Registry) -> None:
    """A claim that its finaliser could not settle is settled by whoever writes next."""
    heard = looked_into._opening.opened().database
    before = heard.after_write
    looked_into.run("first", lambda: 1)
    assert heard is looked_into._opening.opened().database
    assert heard.after_write is not before
    looked_into.close()


def test_threads_that_write_first_share_a_store(looked_into: Registry) -> None:
    """One of them, with one list of what is to be settled."""
    count = 8
    barrier, found = threading.Barrier(count), []

    def write() -> None:
        barrier.wait()
        found.append(looked_into.store)

    threads = [threading.Thread(target=write) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(one) for one in found} == {id(looked_into.store)}
    looked_into.close()


def test_threads_that_have_the_store_told_of_the_files_together_share_it(
    looked_into: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come as far as to have it hear of the commits, and then do so at once: it hears of them, and is one."""
    both, serve = threading.Barrier(2), SqliteStore.serve
    heard = looked_into._opening.opened().database
    before, found = (heard.after_write, heard.after_commit), list[object]()

    def meet(store: SqliteStore) -> SqliteStore:
        found.append(store)
        both.wait(PATIENCE_S)
        return serve(store)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "serve", meet)
        with ThreadPoolExecutor(2) as threads:
            written = [threads.submit(looked_into.run, f"first:{number}", lambda: 1) for number in range(2)]
            assert [one.result(PATIENCE_S).attempt for one in written] == [1, 1]
    assert found == [looked_into.store] * 2
    assert heard is looked_into._opening.opened().database
    assert heard.after_write is not before[0]
    assert heard.after_commit is not before[1]
    looked_into.close()


def test_a_first_write_that_is_interrupted_leaves_it_to_the_next(
    looked_into: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes a store that does not hear of the commits."""

    def interrupted(_store: SqliteStore) -> SqliteStore:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "serve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            looked_into.run("first", lambda: 1)
    before = looked_into._opening.opened().database.after_write
    assert looked_into.run("first", lambda: 1).attempt == 1
    assert looked_into._opening.opened().database.after_write is not before
    looked_into.close()


def test_an_interrupt_in_who_opens_leaves_who_writes_first_heard(path: Path) -> None:
    """Where a first write comes while another thread opens the files, that thread tells them of it, whatever comes."""
    heard: list[str] = []
    interrupts = [KeyboardInterrupt]

    def late() -> Callable[[Opened], None]:
        if interrupts:
            raise interrupts.pop()
        return lambda _opened: heard.append("late")

    def early() -> None:
        opening.serve(lambda: heard.append("write"), late)  # as another thread would here: nothing is open yet

    opening = Opening(path, create=True, busy_s=10, clock=Clock())
    opening.serve(lambda: None, early)
    with pytest.raises(KeyboardInterrupt):
        opening.opened()
    opening.opened().database.after_write()
    assert heard == ["late", "write"]
    opening.close()
