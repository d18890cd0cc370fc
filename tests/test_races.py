"""Many processes and threads at one task; owners that are stopped, undead, or have lost their lock."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import (
    Clock,
    Liveness,
    Registry,
    Status,
    StoreError,
    TaskFailedError,
    TaskRunningError,
    faults,
)
from idemreg.options import Options
from idemreg.query import Instant, Query
from idemreg.request import wanted
from idemreg.sqlite import queries, rows
from idemreg.sqlite.writing import Write
from idemreg.store import End, Granted
from tests.support.descriptors import left_open
from tests.support.forked import in_child
from tests.support.interruptions import interrupt_at
from tests.support.processes import PATIENCE_S, ROOT, Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from idemreg.deciding import Wanted
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database

PROCESSES = 8
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


# --- claims that nobody ends --------------------------------------------------------------------------------------


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
            return rows.read(connection, 1, "t")
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
