"""Many processes and threads at one task; owners that are stopped, undead, or have lost their lock."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import (
    ClaimLostError,
    Clock,
    Liveness,
    Registry,
    Status,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
    faults,
)
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.sqlite import forking
from idemreg.store import End, Granted
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from idemreg.model import Wanted

PROCESSES = 8

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
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_a_forked_child_does_not_own_its_parents_claim(registry: Registry) -> None:
    """In the child the claim is lost; in the parent it is still alive, during the child's life and after."""

    def finish_in_child() -> str:
        try:
            claim.succeed("child")
        except ClaimLostError:
            return f"lost, and my own is {registry.run('of the child', os.getpid).replayed}"
        return "finished"

    with registry.claim("task", name="job", on_crash="rerun") as claim:
        assert in_child(finish_in_child) == "lost, and my own is False"
        with pytest.raises(TaskRunningError):
            run(registry)
        claim.result = "parent"
    assert run(registry).result == "parent"


def test_a_forked_child_cannot_touch_an_open_transaction(registry: Registry) -> None:
    """It can neither write in it nor commit it; the parent's effects and finish are one commit all the same."""
    with registry.claim("task", name="job", on_crash="rerun") as claim, claim.transaction() as tx:
        tx.execute("create table effect (n)")

        def write_in_child() -> str:
            try:
                tx.execute("insert into effect values (2)")
            except ClaimLostError:
                return "lost"
            return "written"

        assert in_child(write_in_child) == "lost"
        tx.execute("insert into effect values (1)")
    with registry.claim("look") as look, look.transaction() as tx:
        assert tx.execute("select n from effect") == [(1,)]


def test_a_child_killed_in_its_job_leaves_unknown(registry: Registry) -> None:
    """A forked child is an owner of its own: its death is seen though its parent lives."""
    registry.run("of the parent", lambda: 1)
    pid = os.fork()
    if not pid:
        registry.run("task", lambda: os.kill(os.getpid(), signal.SIGKILL), name="job")
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(TaskUnknownError):
        run(registry)


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


def test_forks_among_busy_threads_do_not_hang(switching: None, registry: Registry) -> None:
    """While four threads write, thirty children each open the registry anew and finish a task of their own."""
    done = threading.Event()

    def work(number: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            registry.run(f"thread:{number}:{count}", lambda: 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        said = [in_child(lambda n=n: str(registry.run(f"child:{n}", lambda: n).result)) for n in range(30)]  # type: ignore[misc]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert said == [str(n) for n in range(30)]


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
    """Interrupted before or behind the one statement of a new claim: the task is free, or counts as dropped."""
    registry.run("warm", lambda: 1)
    for point, expected in (("claim.in-transaction", None), ("claim.committed", TaskUnknownError)):

        def interrupt() -> None:
            faults.disarm()
            raise KeyboardInterrupt

        faults.arm(point, interrupt)
        with pytest.raises(KeyboardInterrupt):
            registry.run(point, lambda: pytest.fail("entered"), name="job")
        if expected is None:
            assert registry.run(point, lambda: 2, name="job").attempt == 1
        else:
            with pytest.raises(expected):
                registry.run(point, lambda: pytest.fail("entered"), name="job")
