"""Interrupted at any step of a write, a thread leaves the registry to all others as if it had never come."""

from __future__ import annotations

import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import (
    Clock,
    Liveness,
    Registry,
    Status,
    acquiring,
    attempt,
    base_claim,
    batch,
    claim,
    descriptors,
    ends,
    futex,
    lockfile,
    oslock,
    placing,
    sweeping,
    turn,
    walk,
)
from idemreg.attempt import run_walk
from idemreg.clockcheck import check
from idemreg.errors import TaskDoneError
from idemreg.options import Options
from idemreg.recovery import Kept
from idemreg.request import wanted
from idemreg.sqlite import backend, claiming, forking, hot, opened, opening, pool, settling, syncing, wal, writing
from idemreg.sqlite import database as databases
from idemreg.sqlite.writing import Gate, Ticket, Write
from idemreg.store import End, Granted
from idemreg.testing import ManualClock
from idemreg.turn import Turns
from tests.support.descriptors import left_open
from tests.support.interrupts import each_interrupt
from tests.support.processes import PATIENCE_S
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from idemreg.deciding import Wanted
    from idemreg.model import Task
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.database import Database
    from idemreg.store import Answer
    from tests.support.interrupts import Interrupter

    Claims = Callable[[Sequence[Wanted]], list[Answer]]

ROOMS = (writing, hot, databases, turn, pool)


def database(registry: Registry) -> Database:
    return cast("SqliteStore", registry.store)._opening.opened().database


def asked(task_id: str) -> Wanted:
    return wanted(task_id, "job", b"{}", Options.of({"on_crash": "rerun"}, "normal"))


def claim_and_finish(registry: Registry, task_id: str) -> None:
    grant = registry.store.begin(asked(task_id))
    assert isinstance(grant, Granted)
    end = End(task_id, grant.token, grant.owner, Status.SUCCEEDED, 1, "1", durable=False)
    try:
        registry.store.finish_one(end)
    except KeyboardInterrupt:
        registry.store.finish_one(end)  # whoever has the claim can end it again
        raise


def claim_at_once(registry: Registry, task_id: str) -> None:
    """As behind many new tasks: without a look."""
    cast("SqliteStore", registry.store)._opening.opened().new_in_a_row = hot.SURELY_NEW
    claim_and_finish(registry, task_id)


def add(registry: Registry, task_id: str) -> None:
    registry.store.add(asked(task_id))


def get(registry: Registry, _task_id: str) -> None:
    registry.store.get(["warm"])


def keep_others_out(registry: Registry, _task_id: str) -> None:
    with database(registry).alone(Clock().monotonic() + PATIENCE_S) as connection:
        connection.execute("BEGIN IMMEDIATE")


def write_long(registry: Registry, _task_id: str) -> None:
    with database(registry).long_write(durable=False) as write:
        write.connection.execute("UPDATE idempotent_registry SET floor = floor")
        write.commit()


def is_free(path: Path) -> bool:
    """Whether another process could take the write turn."""
    turns = Turns(f"{path}-lock", Clock())
    try:
        return turns.write.try_take()
    finally:
        turns.close()


@pytest.mark.parametrize("interrupted", [claim_and_finish, claim_at_once, add, get, keep_others_out, write_long])
def test_an_interrupt_leaves_nothing_held(
    interrupted: Callable[[Registry, str], None], open_registry: Callable[..., Registry], path: Path
) -> None:
    """Wherever a write is interrupted, the gate, the turn and all connections are free; this and others go on."""
    registry, other = open_registry(busy_timeout=1), open_registry(busy_timeout=1)
    for one in (registry, other):
        one.run("warm", lambda: 1)
        one.run(f"warm:{id(one)}", lambda: 1)
    gate = database(registry).gate
    for number, interrupter in enumerate(each_interrupt(*ROOMS)):
        interrupter.carry_out(interrupted, registry, f"task:{number}")
        assert not gate.is_taken
        assert is_free(path)
        assert not forking.inside
        assert not any(connection.in_transaction for connection in database(registry)._idle[1])
        claim_and_finish(registry, f"next:{number}")
        claim_and_finish(other, f"other:{number}")
        (task,) = registry.store.get([f"task:{number}"])
        if task is not None and task.status is Status.RUNNING:  # no caller has the claim, and nobody takes it for alive
            owner = registry.store.owner(task)
            assert owner is not None
            assert owner.liveness is Liveness.DEAD


def checkpoint_next(database: Database) -> None:
    """By the next commit, as if the -wal were long."""
    after = cast("Any", database.after_commit)
    after._due_at = after._frames = 0


def test_an_interrupted_checkpoint_of_a_commit_leaves_the_next_to_anybody(registry: Registry, path: Path) -> None:
    """Wherever it is interrupted, this process and others can checkpoint, and its commits go on to do so."""
    registry.run("warm", lambda: 1)
    ours = database(registry)
    assert ours.index is not None
    for number, interrupter in enumerate(each_interrupt(wal, turn, syncing)):
        checkpoint_next(ours)
        interrupter.carry_out(add, registry, f"task:{number}")
        assert not ours.turns.checkpointing
        with contextlib.closing(Turns(f"{path}-lock", Clock())) as other:
            assert other.checkpoint.try_take()
            assert other.sync.try_take()
        checkpoint_next(ours)
        add(registry, f"next:{number}")
        assert ours.index.moved == ours.index.frames


def directly(registry: Registry, _task: Task) -> Claims:
    return registry.store.claim


def of_a_batch(registry: Registry, _task: Task) -> Claims:
    return batch._noted(registry.store)


def of_a_sweep(registry: Registry, task: Task) -> Claims:
    return sweeping._Following(registry.store, task).claim


# One that comes while a generator is closed is heard by nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", [directly, of_a_batch, of_a_sweep])
def test_an_interrupted_claim_is_nobodys(
    way: Callable[[Registry, Task], Claims], open_registry: Callable[..., Registry]
) -> None:
    """Wherever the claim of a task with a row is interrupted, on its way out as well, the next claims the task."""
    registry = open_registry(busy_timeout=1)
    store = registry.store
    registry.run("warm", lambda: 1)
    for number, interrupter in enumerate(each_interrupt(batch, sweeping, backend, opened, opening, claiming, settling)):
        task_id = f"task:{number}"
        add(registry, task_id)
        (task,) = store.get([task_id])
        assert task is not None
        request = asked(task_id)._replace(kept=Kept(is_command=False, arguments=""))
        answers: list[object] = []  # who has the answer has the claim
        claims = way(registry, task)

        def claim(claims: Claims = claims, request: Wanted = request, to: list[object] = answers) -> None:
            to.extend(claims([request]))

        interrupter.carry_out(claim)
        assert isinstance(store.claim([asked(task_id)])[0], Granted) == (not answers)
        (task,) = store.get([task_id])
        assert task is not None
        if task.owner is not None:
            store.abandon(End(task_id, task.token, task.owner, Status.PENDING, 0, durable=False))


def run_new(registry: Registry, task_id: str) -> None:
    registry.run(task_id, int, on_crash="rerun")


def run_known(registry: Registry, task_id: str) -> None:
    registry.add(task_id, name="int")
    registry.run(task_id, int, on_crash="rerun")


def run_slot(registry: Registry, task_id: str) -> None:
    """As `Registry.run_slot` runs a slot, and a sweep what it runs again."""
    request, terms = asked(task_id), registry.terms(registry.checked({"on_crash": "rerun"}))
    walk.drive(run_walk(terms, request, int, (), {}))


def fail_new(registry: Registry, task_id: str) -> None:
    with contextlib.suppress(LookupError):
        registry.run(task_id, [].pop, on_crash="rerun")


def claim_new(registry: Registry, task_id: str) -> None:
    with contextlib.suppress(TaskDoneError), registry.claim(task_id, on_crash="rerun"):
        pass


# A claim that is dropped says so. One that is interrupted while it is dropped is heard by nobody.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("interrupted", [run_new, run_known, run_slot, fail_new, claim_new])
def test_an_interrupted_walk_leaves_no_task_running(
    interrupted: Callable[[Registry, str], None], registry: Registry
) -> None:
    """Wherever it is interrupted, from the claim to the end: its end is stored, or the next call runs it."""
    gc.disable()  # which would find what nobody else does, but who knows when
    try:
        leave_no_task_running(interrupted, registry)
    finally:
        gc.enable()


def leave_no_task_running(interrupted: Callable[[Registry, str], None], registry: Registry) -> None:
    interrupted(registry, "warm")
    for number, interrupter in enumerate(each_interrupt(acquiring, attempt, walk, base_claim, claim, ends)):
        task_id = f"task:{number}"
        interrupter.carry_out(interrupted, registry, task_id)
        interrupted(registry, task_id)
        task = registry.get(task_id)
        assert task is not None
        assert task.status is (Status.FAILED if interrupted is fail_new else Status.SUCCEEDED)


# One that comes while a generator is closed is heard by nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_opening_leaves_nothing_open(path: Path) -> None:
    """Wherever it is interrupted: what is open behind it is closed with the registry, which opens anew."""
    Registry(path, durability="normal").open().close()
    for interrupter in each_interrupt(opening, lockfile):
        registry = Registry(path, durability="normal")
        interrupter.carry_out(registry.open)
        registry.close()
        assert left_open(path) == []
        with registry:
            assert registry.count() == {}
        assert left_open(path) == []


def place(path: Path, number: int) -> None:
    with placing.new_file(f"{path}.{number}"):
        pass


def try_locks(path: Path, number: int) -> None:
    oslock.self_test(f"{path}-lock", lockfile.owner_byte(number))


def wake(path: Path, _number: int) -> None:
    with (
        open(f"{path}-lock", "rb", 0) as file,
        contextlib.closing(futex.Futex(f"{path}-lock", file.fileno(), 0, Clock())) as word,
    ):
        word.wake(0)


def look(path: Path, _number: int) -> None:
    assert lockfile.tells_of_database(f"{path}-lock")


# One that comes while a generator is closed is heard by nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("interrupted", [place, try_locks, wake, look])
def test_an_interrupted_look_at_a_file_leaves_nothing_open(
    interrupted: Callable[[Path, int], None], path: Path
) -> None:
    """What is open for a moment only is closed with it, wherever that is interrupted."""
    Registry(path, durability="normal").open().close()
    rooms = (placing, oslock, futex, lockfile, descriptors)
    for number, interrupter in enumerate(each_interrupt(*rooms)):
        interrupter.carry_out(interrupted, path, number)
        assert left_open(path) == []


def test_what_is_dropped_while_the_gate_decides_is_settled_later(registry: Registry) -> None:
    """A finaliser may come while its own thread lets the next writer in: it waits for nothing that thread holds."""
    registry.run("warm", lambda: 1)
    grant = registry.store.begin(asked("t"))
    assert isinstance(grant, Granted)
    with database(registry).gate._states:
        registry.store.abandon(End.release(grant, durable=False, nothing_ran=True))
    assert registry.store.get(["t"])[0].status is Status.RUNNING  # type: ignore[union-attr]
    registry.add("another")
    assert registry.store.get(["t"])[0].status is Status.PENDING  # type: ignore[union-attr]


def test_an_interrupted_look_at_the_clock_keeps_no_alarm_to_itself(open_registry: Callable[..., Registry]) -> None:
    """The next look finds it unknown, or raises it, and it can be confirmed: no claim of it stays with the process."""
    clock = ManualClock()
    registry = open_registry(clock=clock, durability="normal")
    registry.check_clock()
    for interrupter in each_interrupt(check, stride=2):
        clock.set(wall_us=clock.wall_us() + 3_600_000_000)
        interrupter.carry_out(registry.check_clock)
        alarm = registry.check_clock().alarm
        assert alarm is not None
        (task,) = registry.store.get([alarm])
        assert task is not None
        assert task.status is Status.UNKNOWN
        assert not registry.confirm_clock().is_suspended


# --- others wait ----------------------------------------------------------------------------------------------------


class Crowd:
    """Threads that write, each a line of its own, and so does the main thread: it has waited longest, or shortest."""

    OTHERS = 3

    def __init__(self, registry: Registry, *, is_first: bool) -> None:
        write(registry, "CREATE TABLE line (text)")
        self._registry, self._gate = registry, database(registry).gate
        self._is_first = is_first
        self._pool = ThreadPoolExecutor(self.OTHERS + 2)
        self._held, self._gathered, self._go = threading.Event(), threading.Event(), threading.Event()

    def _hold(self) -> None:
        with database(self._registry).alone(Clock().monotonic() + PATIENCE_S):
            self._held.set()
            assert self._go.wait(PATIENCE_S)

    def _until_there_wait(self, number: int, interrupter: Interrupter) -> None:
        while sum(one.state == "waiting" for one in list(self._gate.waiting)) < number:
            if interrupter.has_raised:  # the main thread has come, and gone
                return
            self._go.wait(0.0002)

    def _gather(self, name: str, interrupter: Interrupter) -> list[Future[None]]:
        written = []
        for other in range(self.OTHERS):
            self._until_there_wait(other + self._is_first, interrupter)
            written.append(self._pool.submit(write, self._registry, INSERT, f"{name}:{other}"))
        if not self._is_first:
            self._until_there_wait(self.OTHERS, interrupter)
            self._gathered.set()
        self._until_there_wait(self.OTHERS + 1, interrupter)
        self._go.set()
        return written

    def run(self, name: str, interrupter: Interrupter) -> list[str]:
        """All at once, the main thread to be interrupted; the lines that were written."""
        for event in (self._held, self._gathered, self._go):
            event.clear()
        holder = self._pool.submit(self._hold)
        assert self._held.wait(PATIENCE_S)
        gathering = self._pool.submit(self._gather, name, interrupter)
        if not self._is_first:
            assert self._gathered.wait(PATIENCE_S)
        interrupter.carry_out(write, self._registry, INSERT, f"{name}:mine")
        for written in [holder, *gathering.result(PATIENCE_S)]:
            written.result(PATIENCE_S)
        rows = database(self._registry).read(lambda connection: connection.execute("SELECT text FROM line").fetchall())
        return [line for line in (str(text) for (text,) in rows) if line.startswith(f"{name}:")]

    def close(self) -> None:
        self._pool.shutdown()


INSERT = "INSERT INTO line VALUES (?)"


def write(registry: Registry, sql: str, *bindings: str) -> None:
    database(registry).write(lambda connection: connection.execute(sql, bindings).fetchall(), durable=False)


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_interrupt_takes_nobody_along(
    place: str, open_registry: Callable[..., Registry], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leading others or led by them, wherever a thread is interrupted: theirs is written once, and nobody hangs."""
    monkeypatch.setattr(writing, "LOOK_AGAIN_S", 0.002)
    registry = open_registry(busy_timeout=PATIENCE_S)
    crowd = Crowd(registry, is_first=place == "first")
    try:
        for number, interrupter in enumerate(each_interrupt(*ROOMS)):
            lines = crowd.run(str(number), interrupter)
            others = {f"{number}:{other}" for other in range(Crowd.OTHERS)}
            assert len(lines) == len(set(lines))
            assert others <= set(lines) <= others | {f"{number}:mine"}
            assert not database(registry).gate.is_taken
            assert is_free(path)
            assert not forking.inside
    finally:
        crowd.close()


def test_a_gate_that_was_left_behind_is_taken_over(open_registry: Callable[..., Registry], path: Path) -> None:
    """Interrupted again and again, also in leaving, a thread may keep the gate: the next who waits comes through."""
    registry = open_registry(busy_timeout=PATIENCE_S)
    registry.run("warm", lambda: 1)
    assert database(registry).gate.try_enter(Ticket())  # and nobody has the ticket
    assert not is_free(path)
    with ThreadPoolExecutor(2) as threads:
        for added in [threads.submit(registry.add, f"task:{number}") for number in range(2)]:
            assert added.result(PATIENCE_S).status is Status.PENDING
    registry.add("of this thread")
    assert is_free(path)


def test_a_leader_who_is_gone_is_waited_for_by_nobody(registry: Registry) -> None:
    """Who was taken along by a leader that left and told nothing waits again, and is carried out."""
    registry.run("warm", lambda: 1)
    gate = database(registry).gate
    leader = Write(lambda _: None, durable=False)
    assert gate.enter(leader, Clock().monotonic() + 1)
    with ThreadPoolExecutor(1) as threads:
        added = threads.submit(registry.add, "task")
        until(lambda: gate.waiting)
        gate._collect(leader)
        assert len(leader.taken) == 1
        gate.leave(leader)
        assert added.result(PATIENCE_S).status is Status.PENDING


# --- the gate by itself, as an interrupt has left it ----------------------------------------------------------------


def come(gate: Gate) -> Write:
    """What a thread leaves at the gate that wants to write, and is about to sleep."""
    write = Write(lambda _: None, durable=False)
    write.state = "waiting"
    gate.waiting.append(write)
    return write


@pytest.fixture
def gate(registry: Registry) -> Gate:
    registry.run("warm", lambda: 1)
    return database(registry).gate


def test_who_finds_the_turn_taken_lets_in_who_came_meanwhile(gate: Gate, path: Path) -> None:
    """He who leaves at once since another process writes may have been waited for, be it for a moment."""
    turns = Turns(f"{path}-lock", Clock())
    assert turns.write.try_take()
    other = come(gate)
    assert not gate.enter_at_once(Ticket())
    assert other.state == "leads"
    assert other.sleep(0)
    turns.close()
    gate.done(other)
    assert not gate.is_taken


def test_who_comes_as_the_last_one_leaves_comes_through(gate: Gate) -> None:
    """He saw the gate taken, and it was free before he could be seen: nobody else would wake him."""
    late = Write(lambda _: None, durable=False)
    assert gate._wait(late, Clock().monotonic() + PATIENCE_S)
    assert late.state == "leads"
    gate.done(late)
    assert not gate.is_taken


def test_what_fell_out_of_the_queue_is_put_into_it_again(registry: Registry, gate: Gate) -> None:
    """Whoever took it out was interrupted: the thread that waits for it sees so by itself."""
    ticket = Ticket()
    assert gate.try_enter(ticket)
    with ThreadPoolExecutor(1) as threads:
        added = threads.submit(registry.add, "task")
        until(lambda: gate.waiting)
        gate.waiting.clear()
        until(lambda: gate.waiting)
        gate.leave(ticket)
        assert added.result(PATIENCE_S).status is Status.PENDING


def test_who_is_interrupted_while_another_writes_for_him_sees_it_through(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He leaves no earlier than the leader has told what became of it, however often he looks."""
    monkeypatch.setattr(writing, "LOOK_AGAIN_S", 0.002)
    leader = Write(lambda _: None, durable=False)
    assert gate.enter(leader, Clock().monotonic() + PATIENCE_S)
    mine = come(gate)
    gate._collect(leader)
    assert mine.state == "taken"
    looks: list[Write] = []

    def look_after(write: Write, look: Callable[[Write], None] = gate._look_after) -> None:
        looks.append(write)
        look(write)

    monkeypatch.setattr(gate, "_look_after", look_after)
    with ThreadPoolExecutor(1) as threads:
        leaving = threads.submit(gate.done, mine)
        until(lambda: len(looks) > 1)
        assert not leaving.done()
        leader.round.is_told = True
        mine.wake()
        assert leaving.result(PATIENCE_S) is None
    assert mine.is_carried_out
    gate.done(leader)
    assert not gate.is_taken


def test_what_an_interrupted_leader_took_along_waits_again_before_all_others(gate: Gate) -> None:
    """He has carried out nothing of it; what has come back to the queue by itself stays where it is."""
    leader = Write(lambda _: None, durable=False)
    assert gate.enter(leader, Clock().monotonic() + PATIENCE_S)
    taken = [come(gate), come(gate)]
    gate._collect(leader)
    assert leader.taken == taken
    gate._back_to_front(taken[1])
    last = come(gate)
    gate.done(leader)
    for write in (*taken, last):
        assert write.state == "leads"
        assert write.sleep(0)
        gate.done(write)
    assert not gate.is_taken


def test_who_leaves_a_file_that_was_closed_meanwhile_leaves(path: Path, registry: Registry) -> None:
    """There is no turn to be given back any more: the kernel has taken it."""
    registry.open()
    turns, ticket = Turns(f"{path}-lock", Clock()), Ticket()
    alone = Gate(turns.write, Clock(), 1.0)
    assert alone.try_enter(ticket)
    turns.close()
    alone.leave(ticket)
    assert not alone.is_taken
    assert is_free(path)
