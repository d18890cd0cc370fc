"""Many processes and threads at one task; owners that are stopped, undead, or have lost their lock."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import (
    ClaimLostError,
    Clock,
    Liveness,
    Registry,
    Status,
    StoreError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    faults,
)
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.sqlite import forking, queries, tasks
from idemreg.sqlite.writing import Write
from idemreg.store import End, Granted, Instant, Query
from idemreg.turn import Turns
from tests.support.descriptors import left_open
from tests.support.interruptions import interrupt_at
from tests.support.processes import PATIENCE_S, ROOT, Script
from tests.support.raw import connect
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from idemreg.model import Wanted
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database

PROCESSES = 8
CHILDREN = 10  # of a process whose threads are at work; `make torture` forks many more
UNSHARE = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--pid", "--fork", "--mount-proc")


def _may_unshare() -> bool:
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


RACER = """
from idemreg import IdemregError, Registry
path, witness = sys.argv[1:3]
registry = Registry(path, durability="normal")
def job():
    with open(witness, "a") as file: file.write("entered\\n")
    return os.getpid()
say("ready")
wait()
try: say("got", registry.run("task", job, name="race", wait=float(sys.argv[3])).result)
except IdemregError as error: say("got", error.code)
"""

OWNER = """
from idemreg import Registry
registry = Registry(sys.argv[1], durability="normal", busy_timeout=0.2)
claim = registry.claim("task", name="job", on_crash="rerun")
say("claimed")
while word := wait():
    if word == "drop-lock": os.close(registry.store._opening.opened().lock_file.fd); say("dropped")
    if word == "finish":
        try: claim.succeed("mine"); say("finished")
        except Exception as error: say(type(error).__name__)
"""


CLOSED_MEANWHILE = """
import threading
from idemreg import Registry
from tests.support.descriptors import left_open
path, witness, threads, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.setswitchinterval(1e-5)
registry = Registry(path, durability="normal")
errors = []
def work(first):
    for number in [*range(first, tasks), *range(first)]:
        def job():
            with open(witness, "a") as file: file.write(f"{number}\\n")
        try: registry.run(f"task:{number}", job, name="race", on_crash="rerun", wait=60)
        except BaseException as error: errors.append(repr(error))
workers = [threading.Thread(target=work, args=(tasks * n // threads,)) for n in range(threads)]
say("ready")
wait()
for worker in workers: worker.start()
while threads > 1 and any(worker.is_alive() for worker in workers): registry.close()
for worker in workers: worker.join()
registry.close()
say(errors[:3], left_open(path))
"""


@pytest.fixture
def owner(path: Path) -> Iterator[Script]:
    """A process that holds the claim of ``task`` under rerun."""
    with Script(OWNER, path) as script:
        script.expect("claimed")
        yield script


def run(registry: Registry, **options: Any) -> Any:
    return registry.run("task", lambda: "other", name="job", **{"on_crash": "rerun", **options})


@pytest.mark.parametrize("wait_s", [0, 30])
def test_of_many_processes_one_enters_the_body(path: Path, tmp_path: Path, wait_s: int) -> None:
    """Behind a barrier on a fresh path: one body; the others are told that it runs, or wait and get its result."""
    witness = tmp_path / "witness"
    racers = [Script(RACER, path, witness, wait_s) for _ in range(PROCESSES)]
    for racer in racers:
        racer.expect("ready")
    for racer in racers:
        racer.go()
    got = [racer.line().removeprefix("got ") for racer in racers]
    for racer in racers:
        assert racer.end() == 0
        racer.__exit__(None, None, None)
    assert witness.read_text() == "entered\n"
    results = {one for one in got if one.isdigit()}
    assert len(results) == 1
    assert set(got) - results <= ({"running"} if wait_s == 0 else set())


def test_a_stopped_owner_is_not_replaced(owner: Script, registry: Registry) -> None:
    """SIGSTOP of any length leaves the task the owner's: no time-out decides; after SIGCONT it finishes."""
    owner.signal(signal.SIGSTOP)
    with pytest.raises(TaskRunningError) as running:
        run(registry)
    assert running.value.owner is not None
    assert running.value.owner.liveness is Liveness.ALIVE
    owner.signal(signal.SIGCONT)
    owner.go("finish")
    owner.expect("finished")
    assert run(registry).result == "mine"


def test_a_zombie_is_dead(owner: Script, registry: Registry) -> None:
    """A process that was killed and not yet reaped still has its number, and holds nothing."""
    owner.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and left unreaped
    outcome = run(registry)
    assert (outcome.result, outcome.attempt) == ("other", 2)


def test_a_live_process_without_its_lock_is_not_replaced(owner: Script, registry: Registry) -> None:
    """The second condition: the lock is free, but the process is still there, so nobody can tell."""
    owner.go("drop-lock")
    owner.expect("dropped")
    with pytest.raises(TaskRunningError) as running:
        run(registry)
    assert running.value.owner is not None
    assert running.value.owner.liveness is Liveness.CANNOT_TELL


def test_a_new_lock_file_proves_nobody_dead(owner: Script, path: Path, open_registry: Callable[..., Registry]) -> None:
    """Where the lock file was replaced, free bytes say nothing: cannot tell, also once the owner is dead."""
    os.unlink(f"{path}-lock")
    owner.kill()
    with pytest.raises(TaskRunningError) as running:
        run(open_registry())
    assert running.value.owner is not None
    assert running.value.owner.liveness is Liveness.CANNOT_TELL


class LaterBoot(Clock):
    def boot_id(self) -> str:
        return "a later boot"


def test_a_late_owner_changes_nothing(owner: Script, path: Path, open_registry: Callable[..., Registry]) -> None:
    """Taken over under a larger token (here by a later boot, where its lock was lost), it can no longer finish."""
    owner.go("drop-lock")
    owner.expect("dropped")
    before = open_registry().get("task")
    after_boot = open_registry(clock=LaterBoot())
    outcome = run(after_boot)
    assert before is not None
    assert outcome.token > before.token
    assert outcome.token >> 40 == (before.token >> 40) + 1
    owner.go("finish")
    owner.expect("ClaimLostError")
    task = after_boot.get("task")
    assert task is not None
    assert (task.status, task.result) == (Status.SUCCEEDED, '"other"')


def test_attempts_end(path: Path, registry: Registry) -> None:
    """A job that kills its process each time becomes a dead letter, which `retry` revives for one attempt."""
    for _ in range(2):
        with Script(OWNER, path) as dying:
            dying.expect("claimed")
            dying.kill()
    with pytest.raises(TaskFailedError):
        run(registry, max_attempts=2)
    task = registry.get("task")
    assert task is not None
    assert task.error is not None
    assert task.error.startswith("OwnerDied")
    registry.retry("task")
    assert run(registry, max_attempts=2).attempt == 3


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_of_many_threads_one_enters_the_body(switching: None, registry: Registry) -> None:
    """16 threads at 40 tasks, all at once: one body a task, and one result for all who waited."""
    entered: list[int] = []
    results: list[tuple[int, int]] = []
    barrier = threading.Barrier(16)

    @registry.idempotent("task:{n}", wait=PATIENCE_S)
    def job(n: int) -> int:
        entered.append(n)
        return n * n

    def work() -> None:
        barrier.wait(PATIENCE_S)
        results.extend((n, job(n)) for n in range(40))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entered) == list(range(40))
    assert len(results) == 640
    assert all(result == n * n for n, result in results)


# --- fork -------------------------------------------------------------------------------------------------------


def in_child(body: Callable[[], str]) -> str:
    """What ``body`` says in a forked child, which ends without clean-up."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, body().encode())
        except BaseException:  # noqa: BLE001 - it is told to the parent
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


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


@pytest.mark.parametrize("count", [1, 500])
def test_what_is_dropped_while_another_writes_is_settled_by_him(registry: Registry, count: int) -> None:
    """A claim that nobody refers to any more cannot be ended under another's write, which does so when it is done."""
    registry.run("gone", lambda: 1)
    claims = [registry.store.begin(_asked(f"dropped:{number}")) for number in range(count)]
    held, done = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        assert done.wait(PATIENCE_S)

    faults.arm("forget.in-transaction", wait)
    writer = threading.Thread(target=lambda: registry.forget("gone"))
    writer.start()
    assert held.wait(PATIENCE_S)
    for claim in claims:
        assert isinstance(claim, Granted)
        registry.store.abandon(End.release(claim, durable=False, nothing_ran=True))
    assert _statuses(registry, count) == {Status.RUNNING}
    done.set()
    writer.join()
    assert _statuses(registry, count) == {Status.PENDING}


def _asked(task_id: str) -> Wanted:
    return wanted(task_id, "job", b"{}", Options.of({"on_crash": "rerun"}, "normal"))


def _statuses(registry: Registry, count: int) -> set[Status | None]:
    return {task and task.status for task in registry.store.get([f"dropped:{number}" for number in range(count)])}


def test_a_claim_that_fails_in_its_statement_leaves_nothing_claimed(registry: Registry) -> None:
    """Interrupted before or behind the one statement of a new claim: the task is free, since nothing has run."""
    registry.run("warm", lambda: 1)
    for point in ("claim.in-transaction", "claim.committed"):
        interrupt_at(point, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            registry.run(point, lambda: pytest.fail("entered"), name="job")
        assert registry.run(point, lambda: 2, name="job").attempt == 1


# --- close --------------------------------------------------------------------------------------------------------


def test_threads_go_on_while_another_closes(path: Path, tmp_path: Path) -> None:
    """Closed again and again under three threads, a second process at the same tasks: one body a task, no error."""
    tasks, witness = 600, tmp_path / "witness"
    with (
        Script(CLOSED_MEANWHILE, path, witness, 3, tasks) as closing,
        Script(CLOSED_MEANWHILE, path, witness, 1, tasks) as other,
    ):
        for script in (closing, other):
            script.expect("ready")
        for script in (closing, other):
            script.go()
        for script in (closing, other):
            script.expect("[] []")
            assert script.end() == 0
    assert sorted(map(int, witness.read_text().split())) == list(range(tasks))
    with Registry(path) as registry:
        assert registry.count() == {Status.SUCCEEDED: tasks}


@pytest.mark.parametrize("point", ["owner.byte-held", "turn.taken", "claim.committed"])
def test_a_close_waits_for_a_claim_in_flight(point: str, path: Path, open_registry: Callable[..., Registry]) -> None:
    """Closed by one thread while another is on its way into a claim: its byte stays held, and its task runs once."""
    registry, other = open_registry(), open_registry()
    reached, go, entered, end = (threading.Event() for _ in range(4))
    results: list[Any] = []

    def pause() -> None:
        if threading.current_thread() is worker and not reached.is_set():
            reached.set()
            assert go.wait(PATIENCE_S)

    def job() -> str:
        entered.set()
        assert end.wait(PATIENCE_S)
        return "mine"

    worker = threading.Thread(target=lambda: results.append(registry.run("task", job, name="job", on_crash="rerun")))
    faults.arm(point, pause)
    worker.start()
    assert reached.wait(PATIENCE_S)
    registry.close()
    go.set()
    assert entered.wait(PATIENCE_S)
    with pytest.raises(TaskRunningError) as running:
        run(other)
    assert running.value.owner is not None
    assert running.value.owner.liveness is Liveness.ALIVE
    end.set()
    worker.join(PATIENCE_S)
    assert [outcome.result for outcome in results] == ["mine"]
    other.close()
    assert left_open(path) == []


def test_a_dropped_registry_leaves_nothing_open(path: Path, registry: Registry) -> None:
    """Without a close its descriptors go with the last reference, and its owner's record; a claim is a reference."""
    Registry(path, durability="normal").run("task", lambda: 1, name="job")
    assert left_open(path) == []
    claim = Registry(path, durability="normal").claim("claimed", name="job")
    with pytest.raises(TaskRunningError) as running:
        registry.run("claimed", lambda: 2, name="job", on_crash="rerun")
    assert running.value.owner is not None
    assert running.value.owner.liveness is Liveness.ALIVE
    claim.succeed(1)
    del claim, running
    registry.close()
    assert left_open(path) == []
    connection = connect(path)
    assert connection.execute("SELECT count(*) FROM idempotent_owner").fetchall() == [(0,)]
    connection.close()


def test_a_registry_dropped_in_a_child_stays_its_parents(
    registry: Registry, open_registry: Callable[..., Registry]
) -> None:
    """What a forked child drops of its parent's is neither closed nor unlocked: the claim is the parent's."""
    holder = [open_registry()]
    claim = holder[0].claim("task", name="job", on_crash="rerun")

    def drop() -> str:
        nonlocal claim
        holder.clear()
        del claim
        gc.collect()
        return "dropped"

    assert in_child(drop) == "dropped"
    with pytest.raises(TaskRunningError):
        run(registry)
    claim.succeed(1)


@pytest.mark.parametrize("is_page", [False, True], ids=["row", "page"])
def test_large_values_are_read_with_their_row(registry: Registry, path: Path, *, is_page: bool) -> None:
    """What another process does in the middle of a read takes no large result away, and puts no other in its place."""
    registry.run("t", lambda: "first" * 100)
    first = registry.get("t")
    statements: list[str] = []

    def disturb(_cursor: object, sql: str, _bindings: object) -> bool:
        if any("FROM idempotent_log" in before for before in statements):
            with Registry(path) as other:
                other.forget("t")
        statements.append(sql)
        return True

    def read(connection: Any) -> Any:
        connection.exec_trace = disturb
        try:
            if is_page:
                return queries.page(connection, 1, Query(), Instant(0, 0, 0), None, 10).tasks[0]
            return tasks.read(connection, 1, "t")
        finally:
            connection.exec_trace = None

    assert cast("SqliteStore", registry.store)._opening.opened().database.read(read) == first


# In a pid namespace of its own, with its /proc: some processes, whose numbers the namespace inside has as well.
AROUND = """
import subprocess, sys
strangers = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(8)]
inner = subprocess.run(["unshare", "--pid", "--fork", sys.executable, "-c", sys.argv[1], sys.argv[2]])
for stranger in strangers: stranger.communicate()
sys.exit(inner.returncode)
"""
IN_BARE_NAMESPACE = """
import os, signal, sys
from idemreg import Registry, TaskUnknownError
reading, writing = os.pipe()
child = os.fork()
if not child:
    claim = Registry(sys.argv[1]).claim("t")
    os.write(writing, b"claimed")
    signal.pause()
os.read(reading, 7)
assert os.path.exists(f"/proc/{child}"), "no stranger has the number"
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
try: Registry(sys.argv[1]).run("t", lambda: 1, name="")
except TaskUnknownError: sys.exit(0)
sys.exit("it was run again")
"""


@pytest.mark.skipif("CI" not in os.environ and not _may_unshare(), reason="needs a pid namespace")
def test_strangers_do_not_speak_for_the_dead(path: Path) -> None:
    """A namespace may have the /proc of the one around it, where the number of a dead owner is a living stranger's."""
    command = [*UNSHARE, sys.executable, "-c", AROUND, IN_BARE_NAMESPACE, str(path)]
    assert subprocess.run(command, cwd=ROOT, timeout=PATIENCE_S, check=False).returncode == 0


def database_of(registry: Registry) -> Database:
    return cast("SqliteStore", registry.store)._opening.opened().database


def test_a_rollback_of_sqlite_itself_is_told_to_all_who_wrote_together(registry: Registry) -> None:
    """One statement undoes the transaction: nothing of the others is stored either, and each has the error."""
    registry.add("there")
    database = database_of(registry)

    def insert(connection: Connection) -> None:
        connection.execute("UPDATE idempotent_registry SET floor = floor + 1")

    def undo(connection: Connection) -> None:
        connection.execute("INSERT OR ROLLBACK INTO idempotent_log SELECT * FROM idempotent_log")

    before = database.read(lambda connection: connection.execute("SELECT floor FROM idempotent_registry").fetchall())
    writes = [Write(insert, durable=False), Write(undo, durable=False)]
    database.write_all(writes)
    assert all(isinstance(write.error, StoreError) for write in writes)
    assert writes[0].error is not writes[1].error
    after = database.read(lambda connection: connection.execute("SELECT floor FROM idempotent_registry").fetchall())
    assert after == before


def test_an_error_of_ones_own_is_not_replaced_by_that_of_all(registry: Registry) -> None:
    """Of several who write together the one whose body failed is told so, also where nothing was stored in the end."""
    registry.add("there")

    def fail(_connection: Connection) -> None:
        msg = "its own"
        raise ValueError(msg)

    def undo(connection: Connection) -> None:
        connection.execute("INSERT OR ROLLBACK INTO idempotent_log SELECT * FROM idempotent_log")

    writes = [Write(fail, durable=False), Write(undo, durable=False)]
    database_of(registry).write_all(writes)
    assert isinstance(writes[0].error, ValueError)
    assert isinstance(writes[1].error, StoreError)
