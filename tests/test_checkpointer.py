"""The background checkpointer: what it does when, whom it names, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import AsyncRegistry, Clock, Registry, checkpointer
from idemreg.checkpointer import NET_PAGES, PATIENCE_S, RESTART_PAUSE_S, Bell, Checkpointer
from idemreg.processes import locks_on
from idemreg.sqlite.connection import AUTOCHECKPOINT_PAGES
from idemreg.sqlite.readers import OPEN_BYTE, wal_readers
from idemreg.testing import ManualClock
from idemreg.turn import Turns
from tests.support.processes import PATIENCE_S as LONG_S
from tests.support.processes import Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.checkpoints import Checkpoint, WalState

SMALL = 40  # pages; the schema of a new file, and a few commits
RESTART_BYTES = 100_000  # about 48 pages
NEVER = 2**40

READER = """
    from tests.support.raw import connect
    connection = connect(sys.argv[1])
    connection.execute("begin")
    connection.execute("select count(*) from idempotent_log").fetchall()
    say("reading")
    wait()
    connection.execute("commit")
    say("done")
    wait()
"""


def commits(registry: Registry, count: int, prefix: str = "t") -> None:
    for number in range(count):
        registry.add(f"{prefix}:{number}")


def runs(one: Checkpointer) -> bool:
    """Asked anew each time: a type checker takes a property that was true once for true ever after."""
    return one.is_running


def by_hand(registry: Registry, **options: Any) -> Checkpointer:
    """A checkpointer without a thread, its commits taken over: a test calls `step`."""
    made = Checkpointer(registry, **{"passive_pages": SMALL, "restart_bytes": NEVER, **options})
    made._wal.watch(made._grown, lambda: None)
    registry.open()
    return made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def slow(open_registry: Callable[..., Registry], clock: ManualClock) -> Registry:
    return open_registry(clock=clock)


# --- one step ---------------------------------------------------------------------------------------------------


def test_a_step_does_nothing_before_it_is_due(slow: Registry) -> None:
    """A short -wal is left alone, and so is a file that is not open."""
    hand = Checkpointer(slow, passive_pages=SMALL)
    assert hand.step() is None
    assert not hand._wal.is_open
    commits(slow, 2)
    assert hand.step() is None


def test_a_step_never_opens_what_was_closed(slow: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed between its look and its checkpoint, the file stays closed; nor does a stop open it."""
    hand = by_hand(slow)
    commits(slow, SMALL)
    look = hand._wal.state

    def look_and_close() -> WalState | None:
        state = look()
        slow.close()
        return state

    monkeypatch.setattr(hand._wal, "state", look_and_close)
    assert hand.step() is None
    assert hand._wal.file_bytes() == 0
    assert not hand._wal.is_open


def test_passive_moves_what_waits(slow: Registry) -> None:
    """Past the number of pages a PASSIVE moves them all; the next step finds nothing to do."""
    hand = by_hand(slow)
    commits(slow, SMALL)
    done = hand.step()
    assert done is not None
    assert (done.mode, done.busy, done.readers) == ("PASSIVE", False, ())
    assert done.moved_pages == done.wal_pages >= SMALL
    assert hand.step() is None


def test_commits_do_not_checkpoint_by_themselves(slow: Registry) -> None:
    """While one is at work, commits of this process leave the -wal alone, also where SQLite would not."""
    hand = by_hand(slow, passive_pages=NEVER)
    slow.claim("big").succeed("x" * 900_000)
    commits(slow, AUTOCHECKPOINT_PAGES)
    state = hand._wal.state()
    assert state is not None
    assert state.moved == 0
    assert state.pages > AUTOCHECKPOINT_PAGES


def test_checkpoints_go_back_to_the_commits(slow: Registry) -> None:
    """Once it is closed, a long -wal is the business of commits again."""
    hand = by_hand(slow, passive_pages=NEVER)
    slow.add("before")
    hand.close()
    for number in range(5):
        slow.claim(f"big:{number}").succeed("x" * 900_000)
    state = hand._wal.state()
    assert state is not None
    assert state.moved > 0


def test_restart_lets_the_wal_begin_anew(slow: Registry) -> None:
    """Past the size a RESTART completes, the next commit begins at the first page, and none follows in between."""
    hand = by_hand(slow, passive_pages=NEVER, restart_bytes=RESTART_BYTES)
    commits(slow, 60)
    done = hand.step()
    assert done is not None
    assert (done.mode, done.busy) == ("RESTART", False)
    assert hand.step() is None
    slow.add("next")
    state = hand._wal.state()
    assert state is not None
    assert state.pages < SMALL


def test_a_reader_that_starves_it_is_named(slow: Registry, clock: ManualClock, path: Path) -> None:
    """A process inside a read transaction is named by pid and command, with its age and since when it was seen."""
    hand = by_hand(slow, restart_bytes=RESTART_BYTES)
    commits(slow, 5)
    with Script(READER, path) as reader:
        reader.expect("reading")
        commits(slow, 60, "more")
        first = hand.step()
        clock.advance(40)
        commits(slow, 60, "again")
        second = hand.step()
        assert first is not None
        assert second is not None
        for done, seen_s in ((first, 0), (second, 40)):
            assert done.mode == "RESTART"
            assert done.busy
            assert done.moved_pages < done.wal_pages
            assert done.readers is not None
            (named,) = done.readers
            assert named.pid == reader.process.pid
            assert " -c import os, signal, sys" in named.command
            assert named.seen_s == pytest.approx(seen_s, abs=1)
            assert named.process_s is not None
            assert str(named.pid) in named.describe()
        reader.go()
        reader.expect("done")
        clock.advance(RESTART_PAUSE_S)
        third = hand.step()
        assert third is not None
        assert (third.mode, third.busy, third.readers) == ("RESTART", False, ())


def test_a_reader_of_this_process_is_named_as_such(slow: Registry, path: Path) -> None:
    """A read transaction that this very process forgot is told from those of strangers."""
    hand = by_hand(slow, restart_bytes=RESTART_BYTES)
    commits(slow, 5)
    reader = connect(path)
    reader.execute("begin")
    reader.execute("select count(*) from idempotent_log").fetchall()
    commits(slow, 60, "more")
    done = hand.step()
    reader.close()
    assert done is not None
    assert done.readers is not None
    assert [one.pid for one in done.readers] == [os.getpid()]
    assert "which is this process" in done.readers[0].describe()


def test_a_reader_costs_writers_little(slow: Registry, clock: ManualClock, path: Path) -> None:
    """A defeated RESTART waits its 50 ms, and leaves writers alone until the pause is over; PASSIVE goes on."""
    hand = by_hand(slow, restart_bytes=RESTART_BYTES)
    commits(slow, 5)
    with Script(READER, path) as reader:
        reader.expect("reading")
        commits(slow, 60, "more")
        before = clock.monotonic()
        first = hand.step()
        assert clock.monotonic() - before == pytest.approx(PATIENCE_S, abs=0.01)
        commits(slow, SMALL, "again")
        second = hand.step()
        clock.advance(RESTART_PAUSE_S)
        third = hand.step()
        assert [done.mode for done in (first, second, third) if done] == ["RESTART", "PASSIVE", "RESTART"]


def test_where_proc_does_not_tell(slow: Registry, path: Path) -> None:
    """Without /proc/locks the readers are None, which is another answer than nobody."""
    slow.open()
    assert wal_readers(str(path), slow.clock, locks_path="/nonexistent") is None
    slow.add("t")
    assert wal_readers(str(path), slow.clock) == ()


def test_locks_of_a_device_that_stat_does_not_give(slow: Registry, path: Path, tmp_path: Path) -> None:
    """On btrfs and overlays the kernel lists another device number; our own lock on the file tells which."""
    slow.add("t")
    inode = os.stat(f"{path}-shm").st_ino
    listed = tmp_path / "locks"
    listed.write_text(
        f"1: POSIX  ADVISORY  READ {os.getpid()} 00:2f:{inode} 128 128\n"
        f"2: POSIX  ADVISORY  READ 4242 00:2f:{inode} 124 124\n"
        f"2: POSIX  ADVISORY  READ 4242 00:2f:{inode} 124 124\n"  # as where locks change during the look
        f"2: -> POSIX  ADVISORY  WRITE 4243 00:2f:{inode} 124 124\n"
        f"3: POSIX  ADVISORY  READ 4244 00:30:{inode} 124 EOF\n"
        "4: nonsense\n"
    )
    locks = locks_on(f"{path}-shm", own_byte=OPEN_BYTE, locks_path=str(listed))
    assert locks is not None
    assert [lock.pid for lock in locks] == [os.getpid(), 4242]
    readers = wal_readers(str(path), slow.clock, locks_path=str(listed))
    assert readers is not None
    assert [(reader.pid, reader.command, reader.process_s) for reader in readers] == [(4242, "", None)]


def test_a_reader_costs_no_more_looks_than_are_due(slow: Registry, path: Path) -> None:
    """Commits during a checkpoint ring for what they add to it, and not for what it has found futile."""
    hand = by_hand(slow)
    commits(slow, 5)
    checkpoint = hand._wal.checkpoint_open

    def while_others_commit(count: int) -> bool:
        """Whether another step is due after one in the middle of which others commit."""

        def busy(*args: Any, **options: Any) -> Checkpoint | None:
            commits(slow, count, f"during {count}")
            return checkpoint(*args, **options)

        hand._wal.checkpoint_open = busy  # type: ignore[method-assign] # a real one, at a moment that a test can name
        commits(slow, SMALL, f"before {count}")
        done = hand.step()
        assert done is not None
        assert done.busy
        return hand._bell._rung.is_set()

    with Script(READER, path) as reader:
        reader.expect("reading")
        assert not while_others_commit(1)
        assert while_others_commit(SMALL)
    assert not hand._bell.is_stopped
    hand._bell.stop()
    hand._bell.rest()
    assert hand._bell._rung.is_set()  # the last ring is never taken back


# --- the bell ---------------------------------------------------------------------------------------------------


def test_the_bell_rings_once_a_portion() -> None:
    """It rings when enough pages wait, after a rest only with as many again, and from the start when the -wal does."""
    bell = Bell(SMALL, NET_PAGES)

    def rings(pages: int) -> bool:
        bell.grown(pages)
        found = bell._rung.is_set()
        bell._rung.clear()
        return found

    assert [rings(pages) for pages in (1, SMALL - 1, SMALL)] == [False, False, True]
    bell.rest(SMALL)
    assert [rings(pages) for pages in (SMALL + 1, 2 * SMALL)] == [False, True]
    bell.rest()
    assert [rings(pages) for pages in (5, SMALL)] == [False, True]


def test_the_net_bounds_the_wal_without_a_thread(slow: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, the commit that finds the -wal long checkpoints by itself, and not each one after it."""
    monkeypatch.setattr(checkpointer, "NET_PAGES", 3 * SMALL)
    hand = by_hand(slow)
    commits(slow, 200)
    state = hand._wal.state()
    assert state is not None
    assert state.pages < 5 * SMALL
    bell = Bell(SMALL, 3 * SMALL)
    assert [bell.grown(pages) for pages in (119, 120, 121, 159, 160)] == [False, True, False, False, True]


# --- the thread -------------------------------------------------------------------------------------------------


class Heard:
    """What a checkpointer's callback was told; a test waits for it."""

    def __init__(self, *, fails: type[BaseException] | None = None) -> None:
        self.fails = fails
        self.all: list[Checkpoint] = []
        self._more = threading.Semaphore(0)

    def __call__(self, done: Checkpoint) -> None:
        self.all.append(done)
        self._more.release()
        if self.fails is not None:
            raise self.fails

    def next(self) -> Checkpoint:
        assert self._more.acquire(timeout=LONG_S)
        return self.all[-1]


def test_commits_wake_the_thread(registry: Registry) -> None:
    """In a `with` block a thread checkpoints when commits of this process made it due, and is gone after it."""
    heard = Heard()
    with Checkpointer(registry, on_checkpoint=heard, passive_pages=SMALL, timer=3_600) as running:
        assert runs(running)
        commits(registry, 2 * SMALL)
        assert heard.next().mode == "PASSIVE"
    assert not runs(running)
    assert "idemreg-checkpointer" not in {thread.name for thread in threading.enumerate()}


def test_the_timer_finds_what_others_wrote(registry: Registry, path: Path) -> None:
    """Commits of another process ring no bell here; the timer looks after them."""
    heard = Heard()
    source = """
        from idemreg import Registry
        registry = Registry(sys.argv[1], durability="normal")
        for number in range(60): registry.add(f"t:{number}")
        say("written")
        wait()
    """
    registry.open()
    with Script(source, path) as other:
        other.expect("written")
        with Checkpointer(registry, on_checkpoint=heard, passive_pages=SMALL, timer=0.01):
            assert heard.next().mode == "PASSIVE"


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_a_callback_that_fails_does_not_stop_the_thread(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Its error goes to threading.excepthook, once as long as it is the same, and the next checkpoint comes."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    heard = Heard(fails=error)
    with Checkpointer(registry, on_checkpoint=heard, passive_pages=SMALL, timer=3_600) as running:
        for number in range(3):
            commits(registry, 3 * SMALL, f"n{number}")
            heard.next()
        assert runs(running)
    assert [one.exc_type for one in told] == [error]


def test_the_registry_brings_one(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Registry(checkpointer=True) touches nothing before its first use, and has the thread from open to close."""
    registry = open_registry(checkpointer=True)
    running = registry._checkpointer
    assert running is not None
    assert not path.exists()
    assert not runs(running)
    registry.add("t")
    assert runs(running)
    registry.close()
    assert not runs(running)
    assert not running._wal.is_open
    registry.add("u")
    assert runs(running)


def test_a_block_gives_the_commits_back(open_registry: Callable[..., Registry]) -> None:
    """What the registry brought has the commits again after a block, as an outer block has them after an inner one."""
    registry, heard = open_registry(checkpointer=True), Heard()
    own = registry._checkpointer
    assert own is not None
    own._passive_pages, own.on_checkpoint = SMALL, heard
    one, two, three = (Checkpointer(registry, timer=3_600) for _ in range(3))

    def hearing() -> list[Checkpointer]:
        """Whom a commit tells, which it does before it returns."""
        every = (own, one, two, three)
        for each in every:
            each._bell._pages = -1
        registry.add(f"t:{registry.count()}")
        return [each for each in every if each._bell._pages >= 0]

    with one:
        assert hearing() == [one]
        with two:
            assert hearing() == [two]
        assert hearing() == [one]
        two.start()
        three.start().start()
        two.close()  # not the last one
        assert hearing() == [three]
        three.close()
        assert hearing() == [one]
    assert [runs(each) for each in (own, one, two, three)] == [True, False, False, False]
    assert hearing() == [own]
    registry.close()
    assert hearing() == [own]
    commits(registry, 2 * SMALL)
    assert heard.next().mode == "PASSIVE"


def test_what_was_not_told_is_made_up_for(open_registry: Callable[..., Registry]) -> None:
    """One that rested while another had the commits is rung by the first that it is told of, not long afterwards."""
    registry, heard = open_registry(checkpointer=True), Heard()
    own = registry._checkpointer
    assert own is not None
    own._passive_pages, own.on_checkpoint = SMALL, heard
    with Checkpointer(registry, timer=3_600):
        own._bell.rest(NEVER)
    commits(registry, 2 * SMALL)
    assert heard.next().mode == "PASSIVE"


def test_stop_gives_the_disk_back(
    open_registry: Callable[..., Registry], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A -wal that a reader made grow beyond its working size is truncated when it stops; a callback changes nothing."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    registry, other = open_registry(), open_registry()
    other.add("keeps the -wal's files")
    heard = Heard(fails=SystemExit)
    with Checkpointer(registry, on_checkpoint=heard, passive_pages=NEVER, restart_bytes=NEVER, timer=3_600) as running:
        commits(registry, 100)
        grown = running._wal.file_bytes()
        running._restart_bytes = RESTART_BYTES
    assert grown > RESTART_BYTES
    assert running._wal.file_bytes() == 0
    assert heard.all[-1].mode == "TRUNCATE"  # a look before it may have found the new bound, and begun the -wal anew
    assert {one.exc_type for one in told} == {SystemExit}


def test_a_dropped_registry_takes_its_thread_along(path: Path) -> None:
    """The thread holds nobody: without a close it ends when the registry is gone."""
    registry = Registry(path, durability="normal", checkpointer=True)
    registry.add("t")
    assert registry._checkpointer is not None
    thread = registry._checkpointer._thread
    assert thread is not None
    del registry
    gc.collect()
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_stop_from_its_own_callback(registry: Registry) -> None:
    """The callback may stop the checkpointer that calls it; stopping twice is nothing."""
    heard = Heard()
    running = Checkpointer(registry, passive_pages=SMALL, timer=3_600)

    def stop(done: Checkpoint) -> None:
        running.stop()
        heard(done)

    running.on_checkpoint = stop
    with running:
        thread = running._thread
        assert thread is not None
        commits(registry, 2 * SMALL)
        heard.next()
        thread.join(LONG_S)
        assert not runs(running)


@pytest.mark.parametrize(
    "options", [{"timer": 0}, {"timer": -1}, {"passive_pages": 0}, {"passive_pages": -5}, {"restart_bytes": 0}]
)
def test_wrong_options_show_at_once(registry: Registry, options: dict[str, Any]) -> None:
    """What would checkpoint without a pause, or always, is a ValueError."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Checkpointer(registry, **options)


def test_other_stores_are_refused(registry: Registry) -> None:
    """A store without a -wal, or an AsyncRegistry, is a TypeError that says what to give."""

    class Other:
        store = object()
        clock = registry.clock

    with pytest.raises(TypeError):
        Checkpointer(Other())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the `\.registry` of an AsyncRegistry"):
        Checkpointer(AsyncRegistry.of(registry))  # type: ignore[arg-type]


# --- exit and fork ----------------------------------------------------------------------------------------------


def test_the_interpreter_ends_cleanly(path: Path) -> None:
    """A process that never closes its registry ends with 0, says nothing, and leaves a file in order."""
    source = """
        from idemreg import Registry
        from idemreg.checkpointer import Checkpointer
        registry = Registry(sys.argv[1], durability="normal", checkpointer=True)
        for number in range(100): registry.add(f"t:{number}")
        Checkpointer(registry, passive_pages=1, timer=0.0001).__enter__()
        for number in range(300): registry.add(f"u:{number}")
        os.dup2(1, 2)
        say(registry._checkpointer.is_running)
    """
    with Script(source, path) as script:
        script.expect("True")
        assert script.end() == 0
        assert script._buffer == b""
        assert script.process.stdout is not None
        assert script.process.stdout.read() == b""
    connection = connect(path)
    assert connection.execute("select count(*) from idempotent_log").fetchall() == [(400,)]
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


def test_the_thread_ends_before_the_files_are_closed(path: Path) -> None:
    """At the end of the interpreter the thread is gone when the registry closes its connections."""
    source = """
        from idemreg import Registry
        from idemreg.sqlite.opening import Opening
        registry = Registry(sys.argv[1], durability="normal", checkpointer=True)
        registry.add("t")
        close = Opening.close
        def closing(self):
            say("closing", registry._checkpointer.is_running)
            close(self)
        Opening.close = closing
        say(registry._checkpointer.is_running)
    """
    with Script(source, path) as script:
        script.expect("True")
        script.expect("closing False")
        assert script.end() == 0


def test_no_thread_begins_at_the_end(path: Path) -> None:
    """A registry that is used once more by an exit function, after the threads were stopped, starts none."""
    source = """
        import atexit

        def late():  # what is registered first is called last
            registry.add("late")
            say("late", registry._checkpointer.is_running)

        atexit.register(late)
        from idemreg import Registry
        registry = Registry(sys.argv[1], durability="normal", checkpointer=True)
        registry.add("t")
        say(registry._checkpointer.is_running)
    """
    with Script(source, path) as script:
        script.expect("True")
        script.expect("late False")
        assert script.end() == 0


def test_opening_anew_leaves_nothing_behind(open_registry: Callable[..., Registry]) -> None:
    """However often the thread is started, one exit function stops it."""
    registry = open_registry(checkpointer=True)
    registry.add("t:0")
    before = atexit._ncallbacks()
    for number in range(1, 5):
        registry.close()
        registry.add(f"t:{number}")
    assert registry._checkpointer is not None
    assert runs(registry._checkpointer)
    assert atexit._ncallbacks() == before


def test_a_forked_child_has_its_own(path: Path) -> None:
    """After a fork the child starts a thread at its first use, also when the fork came while a step held the locks."""
    source = """
        import threading
        from idemreg import Registry
        registry = Registry(sys.argv[1], durability="normal", checkpointer=True)
        registry.add("parent")
        parents = registry._checkpointer
        parents._stepping.acquire(); parents._lock.acquire()
        pid = os.fork()
        if pid == 0:
            before = parents.is_running, threading.active_count()
            registry.add("child")
            say(*before, parents.is_running, threading.active_count(), parents.step())
            registry.close()
            say(parents.is_running)
            os._exit(0)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        parents._stepping.release(); parents._lock.release()
        say(parents.is_running)
    """
    with Script(source, path) as script:
        script.expect("False 1 True 2 None")
        script.expect("False")
        script.expect("ended 0")
        script.expect("True")
        assert script.end() == 0


def test_forks_in_the_middle_of_steps(path: Path) -> None:
    """Forked again and again while its thread is at work, each child works, ends, and never hangs on a lock."""
    source = """
        from idemreg import Checkpointer, Registry
        registry = Registry(sys.argv[1], durability="normal", checkpointer=True)
        with Checkpointer(registry, passive_pages=1, timer=0.0001):
            ends = set()
            for number in range(20):
                registry.add(f"parent:{number}")
                pid = os.fork()
                if pid == 0:
                    registry.add(f"child:{number}")
                    registry.close()
                    os._exit(0)
                ends.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        say(ends, sum(registry.count().values()))
    """
    with Script(source, path) as script:
        script.expect("{0} 40")
        assert script.end() == 0


@pytest.mark.parametrize("has_own", [False, True], ids=["alone", "over the registry's"])
def test_a_block_stays_with_the_parent(path: Path, has_own: bool) -> None:  # noqa: FBT001
    """In a child forked inside a `with Checkpointer` block the registry's own goes on, or the commits checkpoint."""
    source = """
        from idemreg import Registry
        from idemreg.checkpointer import Checkpointer
        registry = Registry(sys.argv[1], durability="normal", checkpointer=sys.argv[2] == "True")
        with Checkpointer(registry) as running:
            registry.add("parent")
            pid = os.fork()
            if pid == 0:
                own, watchers = registry._checkpointer, registry._store.wal._watchers
                registry.add("child")
                say(running.is_running, own and own.is_running, [one.__self__ is own for one in watchers])
                os._exit(0)
            say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), running.is_running)
    """
    with Script(source, path, has_own) as script:
        script.expect("False True [True]" if has_own else "False None []")
        script.expect("ended 0 True")
        assert script.end() == 0


def test_a_checkpoint_waits_no_longer_than_it_may(path: Path, registry: Registry) -> None:
    """Another process writes: the answer is that it was busy, nothing is moved, and the tasks are as they were."""
    registry.run("t", lambda: 1, name="job")
    with contextlib.closing(Turns(f"{path}-lock", Clock())) as other:
        assert other.write.try_take()
        done = cast("SqliteStore", registry.store).wal.checkpoint("RESTART", busy_s=0.01)
    assert (done.busy, done.mode) == (True, "RESTART")
    assert registry.run("t", lambda: 2, name="job").replayed


@pytest.mark.parametrize("who", ["another process", "another thread"])
def test_a_commit_leaves_a_checkpoint_to_who_is_at_it(path: Path, registry: Registry, who: str) -> None:
    """The -wal is long, and somebody moves it already: the commit goes on at once, and moves nothing itself."""
    registry.run("warm", lambda: 1)
    database = cast("SqliteStore", registry.store)._opening.opened().database
    after = cast("Any", database.after_commit)
    before = database.index.moved  # type: ignore[union-attr]
    with contextlib.ExitStack() as stack:
        if who == "another thread":
            stack.enter_context(after._turn())
        else:
            other = stack.enter_context(contextlib.closing(Turns(f"{path}-lock", Clock())))
            assert other.checkpoint.try_take()
        after._due_at = 0
        assert registry.run("t", lambda: 2, name="job").result == 2
        assert database.index.moved == before  # type: ignore[union-attr]
    after._due_at = 0
    registry.run("u", lambda: 3)
    assert database.index.moved > before  # type: ignore[union-attr]


def test_who_hears_of_the_commits_anew_leaves_a_checkpoint_to_who_is_at_it(path: Path, registry: Registry) -> None:
    """As behind first writes of two threads at once: one place is before the turn, so nobody gives back another's."""
    registry.run("warm", lambda: 1)
    store = cast("SqliteStore", registry.store)
    database = store._opening.opened().database
    before = cast("Any", database.after_commit)
    with contextlib.closing(Turns(f"{path}-lock", Clock())) as other, before._turn() as is_ours:
        assert is_ours
        store.serve()
        again = cast("Any", database.after_commit)
        assert again is not before
        with again._turn() as is_theirs:
            assert not is_theirs
        assert not other.checkpoint.try_take()
