"""What a fork waits for, who waits for a fork, and what a forked child leaves behind."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import warnings
from typing import TYPE_CHECKING, cast

import apsw
import pytest

from idemreg import (
    ClaimLostError,
    Clock,
    Registry,
    Status,
    StoreError,
    TaskRunningError,
    TaskUnknownError,
    faults,
)
from idemreg.lockfile import LockFile
from idemreg.sqlite import forking
from idemreg.sqlite.connection import NORMAL
from idemreg.sqlite.guard import FilesReplacedError
from idemreg.turn import Turns
from tests.support.forked import in_child
from tests.support.processes import PATIENCE_S, Script
from tests.support.raw import connect
from tests.support.waiting import until
from tests.test_races import database_of, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.connection import Connection

CHILDREN = 10  # of a process whose threads are at work


@pytest.fixture(params=["normal", "full"])
def parents(request: pytest.FixtureRequest, open_registry: Callable[..., Registry]) -> Registry:
    """The registry of a process that forks; at full it has a sync of its own, and a turn for it."""
    return open_registry(durability=request.param)


def test_a_forked_child_does_not_own_its_parents_claim(parents: Registry) -> None:
    """In the child the claim is lost; in the parent it is still alive, during the child's life and after."""

    def finish_in_child() -> str:
        try:
            claim.succeed("child")
        except ClaimLostError:
            return f"lost, and my own is {parents.run('of the child', os.getpid).replayed}"
        return "finished"

    with parents.claim("task", name="job", on_crash="rerun") as claim:
        assert in_child(finish_in_child) == "lost, and my own is False"
        with pytest.raises(TaskRunningError):
            run(parents)
        claim.result = "parent"
    assert run(parents).result == "parent"


def test_what_a_forked_child_claims_is_its_own(parents: Registry) -> None:
    """Also where its parent has claimed before: it may go on, and what it drops is settled at once."""

    def claim_in_child() -> str:
        with parents.claim("checked", name="job") as claim:
            claim.check()
        dropped = parents.claim("dropped", name="job", on_crash="rerun").__enter__()
        with pytest.warns(ResourceWarning, match="was dropped"):
            del dropped
        return f"{parents.get('checked').status.word}, {parents.get('dropped').status.word}"  # type: ignore[union-attr]

    assert parents.run("of the parent", lambda: 1).result == 1
    assert in_child(claim_in_child) == "succeeded, pending"


CLAIMS_IN_CHILD = """
from idemreg import Registry

def claims():
    with registry.claim("checked") as claim:
        claim.check()
    dropped = registry.claim("dropped", on_crash="rerun")
    del dropped
    say(registry.get("checked").status.word, registry.get("dropped").status.word)
"""
BY_ANOTHER = """
import ctypes  # as hosts do that are no Python programs
registry = Registry(sys.argv[1])
registry.idempotent("{x}")(abs)
if not (child := ctypes.PyDLL(None).fork()):
    claims()
    os._exit(0)
os.waitpid(child, 0)
"""
IN_HOOK = """
registry = Registry(sys.argv[1])
os.register_at_fork(after_in_child=claims)
registry.run("t", int)
if not (child := os.fork()):
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("forks", [BY_ANOTHER, IN_HOOK])
def test_what_a_forked_child_claims_is_its_own_whoever_forked_it(path: Path, forks: str) -> None:
    """Past Python's hooks, where the files are opened behind the fork; and in a hook of the program's own."""
    with Script(CLAIMS_IN_CHILD + forks, path) as script:
        script.expect("succeeded pending")
        assert script.end() == 0


def test_the_index_of_a_parent_shows_a_child_nothing(registry: Registry) -> None:
    """What the parent mapped is gone in the child: a look at it, as a signal's handler may leave one, gives zeros."""
    registry.run("t", lambda: 1)
    index = cast("SqliteStore", registry.store)._opening.opened().database.index
    assert index is not None
    assert index.frames > 0
    assert in_child(lambda: f"{index.frames} {index.moved}") == "0 0"


def test_what_a_child_stores_survives_its_parents_close(path: Path, registry: Registry) -> None:
    """A child has locks of its own on the files: closed by the parent, they are not taken from under the child."""
    registry.run("of the parent", lambda: 1)
    (from_child, to_parent), (from_parent, to_child) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            registry.run("before", lambda: 1)
            os.write(to_parent, b"1")
            os.read(from_parent, 1)
            registry.run("after", lambda: 1)
            registry.close()
        finally:
            os._exit(0)
    os.read(from_child, 1)
    registry.close()
    os.write(to_child, b"1")
    os.waitpid(pid, 0)
    for fd in (from_child, to_parent, from_parent, to_child):
        os.close(fd)
    with Registry(path) as other:
        assert [task.task_id for task in other.tasks()] == ["after", "before", "of the parent"]


def test_forks_while_threads_work_and_close(switching: None, path: Path, registry: Registry) -> None:
    """Among two threads at work and one that closes, twenty children each finish a task: nothing is lost or damaged."""
    done = threading.Event()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            try:
                registry.run(f"thread:{number}:{count}", lambda: 1)
            except BaseException as error:  # noqa: BLE001 - whatever it is, there is to be none
                errors.append(error)

    def close() -> None:
        while not done.is_set():
            registry.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    threads.append(threading.Thread(target=close))
    for thread in threads:
        thread.start()
    try:
        said = [in_child(lambda n=n: str(registry.run(f"child:{n}", lambda: n).result)) for n in range(CHILDREN)]  # type: ignore[misc]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert said == [str(n) for n in range(CHILDREN)]
    assert errors == []
    tasks = {task.task_id for task in registry.tasks(status=Status.SUCCEEDED, prefix="child:")}
    assert tasks == {f"child:{n}" for n in range(CHILDREN)}
    registry.close()
    connection = connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_fork_waits_for_a_thread_in_the_middle_of_sqlite(
    path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for a job in its transaction: its child would hang for ever on a mutex of SQLite that is locked."""
    monkeypatch.setattr(forking, "FORK_PATIENCE_S", 0.0)
    registry.run("warm", int)
    with Script(HOLDER, path) as holder:
        holder.expect("writes")
        thread = threading.Thread(target=registry.add, args=("task",))
        thread.start()
        until(lambda: thread.ident in forking.inside.values())

        def let_it_write() -> None:
            until(lambda: forking.fork.thread)
            holder.go()

        releasing = threading.Thread(target=let_it_write)
        releasing.start()
        said = in_child(lambda: str(registry.get("task") is not None))
        for one in (thread, releasing):
            one.join(PATIENCE_S)
    assert said == "True"


def test_a_fork_waits_for_no_thread_that_waits_for_another_process(
    path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has it a connection: the other may be a registry of this process, which waits for the very fork."""
    monkeypatch.setattr(forking, "FORK_PATIENCE_WITH_OURS_S", math.inf)
    registry.run("warm", int)
    with Script(TURN_HOLDER, path) as holder:
        holder.expect("has the turn")
        claiming = threading.Thread(target=registry.run, args=("task", int))
        claiming.start()
        until(lambda: registry.store._opening.current.database.gate.is_taken)  # type: ignore[attr-defined]
        assert in_child(lambda: str(registry.get("task"))) == "None"
        assert claiming.is_alive()
        holder.go()
        claiming.join(PATIENCE_S)
    assert registry.get("task").status is Status.SUCCEEDED  # type: ignore[union-attr]


def test_who_is_inside_waits_for_no_fork(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that reads the registry in its transaction: the fork waits for its end, and would wait in vain."""
    monkeypatch.setattr(forking, "FORK_PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(forking, "FORK_PATIENCE_WITH_OURS_S", PATIENCE_S / 10)
    seen: list[bool] = []

    def job() -> None:
        with registry.claim("task") as claim, claim.transaction():
            entered.set()
            until(lambda: forking.fork.thread)
            registry.get("task")
            seen.append(bool(forking.fork.thread))

    entered = threading.Event()
    thread = threading.Thread(target=job)
    thread.start()
    entered.wait(PATIENCE_S)
    assert in_child(lambda: "forked") == "forked"
    thread.join(PATIENCE_S)
    assert seen == [True]


# Has the turn to write until it is told to give it back.
TURN_HOLDER = """
from idemreg import Registry, faults
def hold():
    say("has the turn")
    wait()
faults.arm("turn.taken", hold)
Registry(sys.argv[1]).add("its own")
wait()
"""


# Has SQLite's write lock until it is told to give it back.
HOLDER = """
from tests.support.raw import connect
connection = connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
say("writes")
wait()
connection.execute("ROLLBACK")
wait()
"""


def test_a_forked_child_cannot_touch_an_open_transaction(parents: Registry) -> None:
    """It can neither write in it nor commit it; the parent's effects and finish are one commit all the same."""
    with parents.claim("task", name="job", on_crash="rerun") as claim, claim.transaction() as tx:
        tx.execute("create table effect (n)")

        def write_in_child() -> str:
            try:
                tx.execute("insert into effect values (2)")
            except ClaimLostError:
                return "lost"
            return "written"

        assert in_child(write_in_child) == "lost"
        tx.execute("insert into effect values (1)")
    with parents.claim("look") as look, look.transaction() as tx:
        assert tx.execute("select n from effect") == [(1,)]


def test_a_child_killed_in_its_job_leaves_unknown(parents: Registry) -> None:
    """A forked child is an owner of its own: its death is seen though its parent lives."""
    parents.run("of the parent", lambda: 1)
    pid = os.fork()
    if not pid:
        parents.run("task", lambda: os.kill(os.getpid(), signal.SIGKILL), name="job")
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(TaskUnknownError):
        run(parents)


def test_a_fork_waits_for_a_file_that_is_being_made(open_registry: Callable[..., Registry]) -> None:
    """Another thread creates the file: a child forked in the middle would take that thread's locks for its own."""
    registry = open_registry(busy_timeout=5)
    reached = threading.Event()

    def until_somebody_forks() -> None:
        reached.set()
        for _ in range(5_000_000):  # until the fork waits for this thread
            if forking.fork.thread:
                return

    faults.arm("create.in-transaction", until_somebody_forks)
    opener = threading.Thread(target=registry.open)
    opener.start()
    assert reached.wait(PATIENCE_S)
    assert in_child(lambda: str(registry.run("of the child", lambda: 7).result)) == "7"
    opener.join(PATIENCE_S)
    assert registry.run("of the parent", lambda: 8).result == 8


def test_whoever_comes_while_another_is_about_to_fork_stays_out(
    open_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is inside SQLite, a second waits for it to fork; whoever wants to read or to open then waits for both."""
    monkeypatch.setattr(forking, "FORK_PATIENCE_S", PATIENCE_S)
    naps, leave = [threading.Event(), threading.Event()], threading.Event()

    class Napping(Clock):
        def __init__(self, napped: threading.Event) -> None:
            self.napped = napped

        def sleep(self, pause: float) -> None:
            self.napped.set()
            if all(nap.is_set() for nap in naps):
                leave.set()
            super().sleep(pause)

    busy, reading, opening = open_registry(), *(open_registry(clock=Napping(nap)) for nap in naps)
    busy.run("t", lambda: 7, name="job")
    reading.open()

    def stay(_connection: Connection) -> bool:
        return leave.wait(PATIENCE_S)

    said: dict[object, object] = {}

    def note(what: object, call: Callable[..., object], *words: object) -> threading.Thread:
        thread = threading.Thread(target=lambda: said.update({what: call(*words)}))
        thread.start()
        return thread

    threads = [note("inside", database_of(busy).read, stay)]
    until(lambda: forking.inside)
    threads.append(note("forked", in_child, lambda: "in a child"))
    until(lambda: forking.fork.thread)
    threads += [note(one, one.get, "t") for one in (reading, opening)]
    for thread in threads:
        thread.join(PATIENCE_S)
    task = busy.get("t")
    assert said == {"inside": True, "forked": "in a child", reading: task, opening: task}


AMID_AN_IMPORT = """
import importlib.abc, signal, threading
from idemreg import Registry
from idemreg.clock import Clock
from idemreg.sqlite import forking

reached, forks = threading.Event(), threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "idemreg.calls":
            reached.set()
            forks.wait(5)

class Waiting(Clock):
    def sleep(self, seconds):
        forks.set()
        super().sleep(seconds)

sys.meta_path.insert(0, Slow())
forking.Clock = Waiting
registry = Registry(sys.argv[1])
thread = threading.Thread(target=registry.run, args=("of the parent", lambda: 8))
thread.start()
reached.wait()
if not (pid := os.fork()):
    signal.alarm(10)  # which ends a child that hangs
    os._exit(registry.run("of the child", lambda: 7).result)
thread.join()
say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), registry.run("of the parent", lambda: 9).result)
"""


def test_a_fork_waits_for_an_import_of_ours(path: Path) -> None:
    """The first call of another thread imports what it needs: in the child nobody would end that import."""
    with Script(AMID_AN_IMPORT, path) as process:
        process.expect("7 8")


# Somebody is in the middle of SQLite until an exception of a signal's handler has come.
INTERRUPTED_BEFORE_A_FORK = """
import signal, threading
from idemreg import Clock
from idemreg.sqlite import forking
from idemreg.sqlite.forking import fork, inside
from tests.support.waiting import until
somebody, came, waits_on = object(), threading.Event(), threading.Event()
inside[somebody] = -1
class StopError(Exception): pass
def stop(*_):
    came.set()
    raise StopError
class Waiting(Clock):
    def sleep(self, seconds):
        if came.is_set():
            waits_on.set()
        super().sleep(seconds)
forking.Clock = Waiting
def interrupt():
    until(lambda: fork.thread)
    os.kill(os.getpid(), signal.SIGUSR1)
    waits_on.wait(10)
    del inside[somebody]
signal.signal(signal.SIGUSR1, stop)
sys.unraisablehook = lambda told: say(told.exc_type.__name__, "told behind the wait:", not inside)
thread = threading.Thread(target=interrupt)
thread.start()
if not os.fork():
    os._exit(0)
thread.join()
say("done")
"""


def test_an_exception_of_a_signal_ends_no_waiting_of_a_fork(path: Path) -> None:
    """Python ignores it in the hook, and would fork at once: the child would inherit SQLite's mutexes locked."""
    with Script(INTERRUPTED_BEFORE_A_FORK, path) as process:
        process.expect("StopError told behind the wait: True")
        process.expect("done")


# Each wait of the fork for somebody is ended by an exception.
INTERRUPTED_AT_EACH_WAIT = """
from idemreg import Clock
from idemreg.sqlite import forking
from idemreg.sqlite.forking import fork, inside
somebody, naps = object(), []
inside[somebody] = -1
class NapError(Exception): pass
class Interrupted(Clock):
    def sleep(self, seconds):
        naps.append(seconds)
        raise NapError
forking.Clock = Interrupted
sys.unraisablehook = lambda told: say(told.exc_type.__name__)
if not os.fork():
    os._exit(0 if not inside and not fork.thread else 1)
say(len(naps), os.waitstatus_to_exitcode(os.wait()[1]), fork.thread, fork.threads)
del inside[somebody]
"""


def test_a_fork_that_is_interrupted_without_end_does_not_wait_without_end(path: Path) -> None:
    """It meets a bounded number of exceptions, then it forks, and tells of one; the child has nobody inside."""
    with Script(INTERRUPTED_AT_EACH_WAIT, path) as process:
        process.expect("NapError")
        process.expect(f"{forking.MOST_EXCEPTIONS} 0 0 {{}}")
        assert process.end() == 0


# A hook that is registered before ours is called behind it, so that all that a fork waits for has been waited for.
LATE_BEFORE_A_FORK = """
import threading
import apsw
late = threading.Event()
def before():
    if reader.ident is None:
        there = len(apsw.connections())
        reader.start()
        late.wait()
        say("opened", len(apsw.connections()) - there)
os.register_at_fork(before=before)
from idemreg import Clock, Registry
class Waiting(Clock):
    def sleep(self, seconds):
        if threading.current_thread() is reader:
            late.set()
        super().sleep(seconds)
def read():
    registry.get("outer")
    say("read")
    late.set()
reader = threading.Thread(target=read)
registry = Registry(sys.argv[1], clock=Waiting())
with registry.claim("outer") as claim, claim.transaction():  # has the only connection
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    reader.join()
say("done")
"""


def test_no_connection_is_opened_amid_a_fork(path: Path) -> None:
    """The child would inherit a mutex of SQLite's that is locked: its first call would wait for it for ever."""
    with Script(LATE_BEFORE_A_FORK, path) as process:
        process.expect("opened 0")
        process.expect("read")
        process.expect("done")


def test_forks_among_busy_threads_do_not_hang(switching: None, parents: Registry) -> None:
    """While four threads write, some children each open the registry anew and finish a task of their own."""
    done = threading.Event()

    def work(number: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            parents.run(f"thread:{number}:{count}", lambda: 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        said = [in_child(lambda n=n: str(parents.run(f"child:{n}", lambda: n).result)) for n in range(CHILDREN)]  # type: ignore[misc]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert said == [str(n) for n in range(CHILDREN)]


def test_a_child_forked_amid_a_settlement_settles_what_it_drops(parents: Registry) -> None:
    """The forking thread was about to settle a dropped claim: in the child it is not, and settles the child's own."""
    (from_child, to_parent), (from_parent, to_child) = os.pipe(), os.pipe()
    children: list[int] = []

    def drop(task_id: str) -> bytes:
        with pytest.warns(ResourceWarning):
            parents.claim(task_id, name="job", on_crash="rerun").drop("for the test")
        return next(parents.tasks(prefix=task_id)).status.word.encode()

    def fork() -> None:
        faults.disarm()
        children.append(os.fork())
        if not children[0]:
            try:
                os.read(from_parent, 1)  # until its parent has left the gate and the turn
                os.write(to_parent, drop("of the child"))
            finally:
                os._exit(0)

    parents.run("first", lambda: 1)
    claim = parents.claim("of the parent", name="job", on_crash="rerun")
    faults.arm("turn.taken", fork)
    with pytest.warns(ResourceWarning):
        claim.drop("for the test")
    os.write(to_child, b"1")
    os.waitpid(children[0], 0)
    for fd in (to_parent, from_parent, to_child):
        os.close(fd)
    with open(from_child, "rb") as said:
        assert said.read() == b"pending"
    assert drop("of the parent") == b"pending"


def test_a_child_forked_amid_a_sync_leaves_it_to_its_parent(path: Path, open_registry: Callable[..., Registry]) -> None:
    """It syncs for itself, and publishes nothing; the sync turn stays the parent's, whose sync counts."""
    registry = open_registry(durability="full")
    registry.run("first", lambda: 1)
    begun, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        begun.set()
        go_on.wait(PATIENCE_S)

    def work_in_child() -> str:
        faults.disarm()
        result = registry.run("of the child", lambda: 7, on_crash="rerun").result
        registry.close()
        return f"{result} {record(path) == before}"

    faults.arm("sync.begun", stop)
    writer = threading.Thread(target=registry.run, args=("of the parent", lambda: 8), kwargs={"on_crash": "rerun"})
    writer.start()
    try:
        assert begun.wait(PATIENCE_S)
        before = record(path)
        assert in_child(work_in_child) == "7 True"
        turns = Turns(f"{path}-lock", Clock())
        assert not turns.sync.try_take()
        turns.close()
    finally:
        faults.disarm()
        go_on.set()
        writer.join(PATIENCE_S)
    assert record(path) != before
    assert {task.task_id for task in registry.tasks(status=Status.SUCCEEDED)} == {
        "first",
        "of the child",
        "of the parent",
    }


def record(path: Path) -> bytes:
    """What the lock file says about the syncs."""
    with open(f"{path}-lock", "rb") as lock_file:
        return lock_file.read(160)


def test_a_child_forked_inside_a_transaction_leaves_the_write_turn_to_its_parent(path: Path, parents: Registry) -> None:
    """Neither its start, its own try to write, nor its end drops what the parent holds."""
    with parents.claim("task", on_crash="rerun") as claim, claim.transaction() as tx:
        tx.execute("create table effect (n)")

        def write_in_child() -> str:
            try:
                with Registry(path) as own:
                    own.add("of the child")
            except StoreError as error:
                return type(error).__name__
            return "written"

        assert in_child(write_in_child) == "StoreError"
        turns = Turns(f"{path}-lock", Clock())
        assert not turns.write.try_take()
        turns.close()
    assert parents.get("of the child") is None


def test_a_child_forked_inside_a_transaction_reads_nothing_without_locks(path: Path, parents: Registry) -> None:
    """It has no locks of its own, so it is refused the file, also by a registry of its own, and its own child's too."""
    parents.run("t", lambda: 1)

    def look() -> str:
        said = []
        for registry in (parents, Registry(path)):
            try:
                said.append(str(registry.get("t")))
            except StoreError as error:
                said.append(f"{type(error).__name__} {error.retryable}")
        return "; ".join(said)

    with parents.claim("task", on_crash="rerun") as claim, claim.transaction():
        assert in_child(look) == "StoreError False; StoreError False"
        assert in_child(lambda: in_child(look)) == "StoreError False; StoreError False"
    assert "StoreError" not in in_child(look)


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
