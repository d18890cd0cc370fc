"""What hardly ever happens, asked of each room by itself: contention without end, no thread, no memory, old kernels."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import resource
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import apsw
import pytest

import idemreg
from idemreg import (
    AsyncRegistry,
    Checkpointer,
    ClaimLostError,
    Clock,
    IdemregError,
    Registry,
    ResultError,
    ScheduleError,
    Status,
    StoreBusyError,
    StoreFullError,
    StorePathError,
    TransitionError,
    demo,
    faults,
    signals,
)
from idemreg import attempt as attempts
from idemreg import checkpointer as checkpointers
from idemreg import command as commands
from idemreg import (
    purge as purges,
)
from idemreg.child import Descriptors, _Stream
from idemreg.claim import Claim, current
from idemreg.clockcheck import check as checks
from idemreg.clockcheck.check import _too_many
from idemreg.clockcheck.verdict import ClockBands
from idemreg.demo.witness import Witness
from idemreg.doctor import salvage as salvages
from idemreg.each import Each, Kind
from idemreg.each import End as LineEnd
from idemreg.ext.http import problem_of
from idemreg.feed import Line
from idemreg.heartbeat import Heart, Lease
from idemreg.lane import Item, _arrive
from idemreg.ledger import Schedule, State
from idemreg.offload import Offload
from idemreg.output import Output
from idemreg.pausing import TRIES, pause
from idemreg.progress import Step
from idemreg.scheduler import keep
from idemreg.starting import spawn
from idemreg.step_command import _replay
from idemreg.stopping import Stopping
from idemreg.store import End, Lost, Unsure
from idemreg.testing import ManualClock
from idemreg.turn import Turns
from tests.support.processes import PATIENCE_S, ROOT, Script
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def test_the_package_lists_its_names() -> None:
    """Though none is imported yet."""
    assert dir(idemreg) == sorted(idemreg.__all__)


def test_an_ignored_interrupt_stays_ignored(path: Path) -> None:
    """As under nohup."""
    done = subprocess.run(
        [sys.executable, "-m", "idemreg", "--db", str(path), "run", "t", "--", "sh", "-c", "kill -INT $PPID; echo on"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        cwd=ROOT, capture_output=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"on\n")


def test_a_demonstration_finds_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says which."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert demo.main(workers=1, tasks=1, seed=3) == 0
    (folder,) = tmp_path.iterdir()
    assert str(folder) in capsys.readouterr().out


def test_a_witness_that_takes_half_a_line_says_so(path: Path) -> None:
    """The disk is full in the middle of it; and one that saw nothing knows of nothing."""
    source = """
        import resource
        from idemreg.demo.witness import Witness
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        witness = Witness(sys.argv[1])
        before = witness.effects()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, resource.RLIM_INFINITY))
        try: witness.record("coupon:1", "x")
        except OSError as error: told = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        say(dict(before), "took 5 of 11 bytes" in told)
    """
    with Script(source, path) as script:
        script.expect("{} True")
        assert script.end() == 0
    assert Witness(str(path)).evidence("coupon:1") is None


def test_a_worker_whose_crew_is_gone_ends_in_the_middle(path: Path) -> None:
    """No effect happens that nobody would deliver again."""
    words = [sys.executable, "-c", "from idemreg.demo.worker import main; main()", str(path), f"{path}.witness"]
    done = subprocess.run(
        words, input=b"letter 1 before\n", cwd=ROOT, capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (1, b"ready\nat before\n")
    assert Witness(f"{path}.witness").effects() == {}
    with Registry(path) as registry:
        task = registry.get("letter:1")
        assert task is not None
        assert registry.owner(task) is not None


def test_a_salvage_that_may_not_be_written_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of many tasks is written piece by piece."""
    with Registry(path, durability="normal") as registry:
        list(registry.consume(range(7), lambda n: n, task_id="t:{}".format, name="job"))
    with pytest.raises(StorePathError):
        salvages.salvage(path, path.parent / "missing" / "out.db")
    monkeypatch.setattr(salvages, "CHUNK_TASKS", 3)
    assert salvages.salvage(path, path.parent / "out.db").copied == 7


def test_no_other_fault_points() -> None:
    """A test that names one that is not passed would prove nothing."""
    with pytest.raises(ValueError, match="no fault point"):
        faults.arm("nowhere", faults.disarm)


# --- leases and threads -----------------------------------------------------------------------------------------


def test_a_heart_has_one_thread_and_outlives_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a step raises is told once, and the next step comes; without a thread there is nothing to be ended."""
    Heart().stop()
    heart, steps = Heart(), threading.Event()
    told: list[type[BaseException]] = []

    def fail(*, by_hand: bool) -> float:
        assert not by_hand
        if told:
            steps.set()
            return 60
        heart.ring()
        msg = "a callback"
        raise LookupError(msg)

    monkeypatch.setattr(heart, "step", fail)
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    for _ in range(2):
        heart._start()
    thread = heart._thread
    heart.ring()
    assert steps.wait(PATIENCE_S)
    heart.stop()
    assert thread is heart._thread
    assert told == [LookupError]
    assert not heart.is_running


def test_a_lost_lease_is_told_once() -> None:
    """By whoever finds it first."""
    told: list[str] = []
    lease = Lease(cast("Any", None), Clock(), cast("Any", SimpleNamespace(lease_ms=3)), 0, told.append)
    lease.lose("late")
    lease.lose("later")
    for _ in range(2):
        lease.tell()
    assert told == ["late"]


def test_effects_of_a_claim_with_a_time_limit_alone(registry: Registry) -> None:
    """There is no lease that the transaction would hold; and a coroutine's with a lease alone has no time."""
    with registry.claim("t", timeout=60) as claim, claim.transaction() as effects:
        effects.execute("CREATE TABLE effect (n)")
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.SUCCEEDED


def test_a_descriptor_is_not_needed_to_end_a_command() -> None:
    """Where there is none to be had it is ended by its number, while nobody has waited for it."""
    child = spawn(["/bin/cat", "/dev/zero"], {}, None, None)

    class Over:
        def check(self) -> None:
            msg = "over"
            raise ClaimLostError(msg, task_id="t")

        def changes_in_s(self) -> float:
            return 60

    lowest = os.dup(0)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    stopping = Stopping(Over(), child)
    try:
        with stopping:
            code = child.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        child.close_pipes()
    assert code == -signal.SIGTERM
    assert isinstance(stopping.why, ClaimLostError)
    child.send_signal(signal.SIGKILL)  # which does nothing: its number may be another's
    ended = Stopping(Over(), child)
    assert not ended._may_run()
    assert ended.why is None  # it had ended before that could be its reason


def test_a_command_is_not_watched_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the system's, and no descriptor is left."""

    def fail(_thread: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    child = spawn(["/bin/true"], {}, None, None)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError), Stopping(cast("Any", None), child):
            pytest.fail("the block was entered")
    assert len(os.listdir("/proc/self/fd")) == before
    child.wait()
    child.close_pipes()


def test_a_turn_of_a_file_that_is_closed_is_dropped_already(path: Path, registry: Registry) -> None:
    """Nothing is left to be given back."""
    registry.open()
    turns = Turns(f"{path}-lock", Clock())
    assert turns.write.try_take()
    turns.close()
    turns.write.drop()
    other = Turns(f"{path}-lock", Clock())
    assert other.write.try_take()
    other.close()


def test_all_of_it_is_written_to_a_slow_reader() -> None:
    """Also where the descriptor does not block, by another program's will."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink, got = Descriptors(writing, 2), bytearray()

    def read() -> None:
        while data := os.read(reading, 4_096):
            got.extend(data)

    reader = threading.Thread(target=read)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writing, bytes(65_536))
    writer = threading.Thread(target=lambda: told.append(sink.write(1, b"x" * 300_000)))
    told: list[bool] = []
    writer.start()
    reader.start()
    writer.join(PATIENCE_S)
    os.close(writing)
    reader.join(PATIENCE_S)
    os.close(reading)
    assert told == [True]
    assert got == bytes(filled) + b"x" * 300_000


def test_a_checkpointer_whose_disk_hangs_is_left(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is inside SQLite: the end of the process does not wait for it for ever. One that is dropped ends."""
    monkeypatch.setattr(checkpointers, "STOP_S", 0.001)
    hangs, goes = threading.Event(), threading.Event()

    def hang(_self: Checkpointer) -> None:
        hangs.set()
        assert goes.wait(PATIENCE_S)

    monkeypatch.setattr(Checkpointer, "step", hang)
    registry.run("t", lambda: 1)
    checkpointer = Checkpointer(registry, timer=0.001)
    checkpointer.start()
    assert hangs.wait(PATIENCE_S)
    thread = checkpointer._thread
    assert thread is not None
    checkpointer.stop()
    assert thread.is_alive()
    goes.set()
    thread.join(PATIENCE_S)
    checkpointer.close()
    bell = SimpleNamespace(wait=lambda _timer: True)
    assert checkpointers._serve(lambda: None, cast("Any", bell), 0) is None  # type: ignore[arg-type,func-returns-value]


# --- claims ------------------------------------------------------------------------------------------------------


def test_a_claim_that_cannot_be_entered_is_put_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory goes before its block: the job has not begun, and nothing is `current_claim`."""

    def fail(_claim: Claim) -> None:
        raise MemoryError

    claim = registry.claim("t", name="job")
    with monkeypatch.context() as patch:
        patch.setattr(Claim, "hold", fail)
        with pytest.raises(MemoryError), claim:
            pytest.fail("the block was entered")
    assert current() is None
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)


def test_an_attempt_that_cannot_be_made_is_put_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was granted before memory went is nobody's."""

    def fail(*_words: object, is_absent: bool) -> object:
        raise MemoryError(is_absent)

    registry.run("warm", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "attempt", fail)
        with pytest.raises(MemoryError):
            registry.run("t", lambda: pytest.fail("the job started"), name="job")
        with pytest.raises(MemoryError):
            registry.run("warm", lambda: pytest.fail("ran again"), name="other")
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.PENDING


def test_a_result_that_is_lost_with_its_effects(registry: Registry) -> None:
    """They are committed with the success of the task, whose result cannot be stored."""
    with pytest.raises(ResultError), registry.claim("t") as claim, claim.transaction():
        claim.result = object()
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.result) == (Status.SUCCEEDED, None)


def test_a_late_owner_leaves_no_effects(registry: Registry) -> None:
    """Its claim is another's by the time that its transaction opens, or ends."""
    claim = registry.claim("t", on_crash="rerun")
    registry.store.abandon(End.release(claim.grant, durable=False))
    with pytest.raises(ClaimLostError), claim.transaction() as effects:
        effects.execute("CREATE TABLE effect (n)")
    claim.settled()
    with registry.claim("look") as look, look.transaction() as found:
        assert found.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'effect'") == [(0,)]


# --- many of something ------------------------------------------------------------------------------------------


def test_jobs_of_many_names_are_counted_together(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge tells of so many names, and of all others as one."""
    monkeypatch.setattr(purges, "MOST_GROUPS", 2)
    for number in range(5):
        registry.run(f"t:{number}", lambda: 1, name=f"job {number}")
    plan = registry.purge(older_than=0, dry_run=True)
    assert plan.total == 5
    assert sorted(group.tasks for group in plan.groups) == [1, 1, 3]


def test_others_who_change_a_schedule_all_the_time() -> None:
    """A bound on everything: it is told after some tries."""
    tries = []
    schedule = Schedule("s", 1, "* * * * *", "UTC", 0, None, 0, 0, None, State.GOING, None)

    class Busy:
        def waiting(self, _name: str) -> Any:
            return SimpleNamespace(schedule=schedule)

        def plan(self, *words: object) -> bool:
            tries.append(words)
            return False

    with pytest.raises(StoreBusyError, match="all the time"):
        pause(cast("Any", Busy()), "s")
    assert len(tries) == TRIES


def test_others_who_look_at_the_clock_all_the_time() -> None:
    """It is told so."""
    assert isinstance(_too_many(), StoreBusyError)


def test_what_a_coroutine_does_not_take_is_put_back_if_it_was_granted(registry: Registry) -> None:
    """Whatever else the answer was is nothing to be put back; nor does one that was dropped wake anybody."""
    lane = Offload(registry.store).lane
    for answer in ([Lost(None), None], Lost(None), ValueError()):
        item = Item(cast("Any", None), None, cast("Any", None), cast("Any", None))
        item.answer(answer)
        lane.drop(item)
        assert not item.is_answered
    woken: list[int] = []
    wakes = [functools.partial(woken.append, number) for number in range(2)]
    items = [Item(cast("Any", None), None, cast("Any", None), wake) for wake in wakes]
    items[0].is_dropped = True
    _arrive(items)
    assert woken == [1]


def test_serial_numbers_say_what_they_are(registry: Registry) -> None:
    """And one whose line another thread has is not waited for."""
    serials = registry.serials("A")
    assert repr(serials) == "Serials('A')"
    assert repr(AsyncRegistry.of(registry).serials("A")) == "AsyncSerials('A')"
    first = next(serials)
    with serials._line.lock, contextlib.ExitStack():
        held: list[object] = []
        thread = threading.Thread(target=lambda: held.append(serials.next_held()))
        thread.start()
        thread.join(PATIENCE_S)
    assert held == [None]
    assert next(serials) > first


def test_a_superseded_schedule_keeps_no_other_from_running(registry: Registry) -> None:
    """Of coroutines: the others run first, and then it is told."""
    jobs, ran = AsyncRegistry.of(registry), []

    async def main() -> None:
        @jobs.scheduled("b", cron="* * * * *")
        async def job() -> None:
            ran.append(1)

        with pytest.raises(ScheduleError):
            await jobs.run_due("no such schedule")

    asyncio.run(main())


def test_a_stored_output_that_is_none_is_replayed_as_nothing() -> None:
    """A step that was saved without one, or by a job in Python."""
    assert _replay(None, cast("Any", None)) == (0, True)
    assert _replay("7", cast("Any", None)) == (0, True)
    assert Step("s", 1, 1, 0, None).result is None


def test_where_there_is_no_terminal_nothing_is_in_front() -> None:
    """Of a process without one, until it has one."""
    source = """
        import pty, fcntl, termios
        from idemreg.signals import _is_foreground
        os.setsid()
        said = [_is_foreground()]
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        said.append(_is_foreground())
        say(*said)
    """
    with Script(source) as script:
        script.expect("False True")
        assert script.end() == 0
    assert signals._is_told(signal.SIGTERM) is False


def test_a_terminal_that_hangs_up_is_not_in_front() -> None:
    """Also where it does so in the middle of the question: nobody is told anything by it any more."""
    source = """
        import pty, fcntl, termios
        from idemreg.signals import _is_foreground
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.setsid()
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        ask = os.tcgetpgrp
        def hang_up_and_ask(terminal):
            os.close(ours)
            return ask(terminal)
        os.tcgetpgrp = hang_up_and_ask
        said = [_is_foreground()]
        os.tcgetpgrp = ask
        said.append(_is_foreground())
        say(*said)
    """
    with Script(source) as script:
        script.expect("False False")
        assert script.end() == 0


# --- the clock --------------------------------------------------------------------------------------------------


class Contended:
    """A store to which another process is always faster, or that gives what it is told to give."""

    def __init__(self, store: Any, **answers: Any) -> None:
        self._store, self._answers = store, answers

    def __getattr__(self, name: str) -> Any:
        return self._answers.get(name) or getattr(self._store, name)


@pytest.fixture
def watched(open_registry: Callable[..., Registry]) -> Registry:
    registry = open_registry(clock=ManualClock())
    registry.check_clock()
    return registry


def test_a_clock_that_others_look_at_all_the_time(watched: Registry) -> None:
    """There is a bound; whoever confirms it, too."""
    store: Any = Contended(watched.store, note_watch=lambda *_: False)
    cast("ManualClock", watched.clock).set(wall_us=watched.clock.wall_us() + 10**13)
    with pytest.raises(StoreBusyError):
        checks.check(store, watched.clock, None, None)
    with pytest.raises(StoreBusyError):
        checks.confirm(store, watched.clock, None, None, "", "me")


def test_an_alarm_that_was_forgotten_is_confirmed_all_the_same(watched: Registry) -> None:
    """There is no row to be settled."""
    store: Any = watched.store
    seen = checks._look(store, watched.clock, ClockBands()).watch
    assert store.note_watch(seen, seen._replace(alarm="clock@gone"))
    assert not watched.confirm_clock(evidence="the operator").is_suspended


def test_an_alarm_that_cannot_be_stored_is_told(watched: Registry) -> None:
    """Unsure at its claim or at its end; an interrupt between the two leaves it to the next look."""
    look = checks._look(cast("Any", watched.store), watched.clock, ClockBands())
    unsure = StoreFullError("the disk is full")
    ended: list[End] = []

    def raise_alarm(name: str, **answers: Any) -> None:
        checks._raise_alarm(cast("Any", Contended(watched.store, **answers)), look, name, None)

    with pytest.raises(StoreFullError):
        raise_alarm("clock@1", claim=lambda _: [Unsure(unsure)])
    assert watched.get("clock@1") is None

    def finish(some: list[End]) -> list[Unsure]:
        ended.extend(some)
        return [Unsure(unsure)]

    with pytest.raises(StoreFullError):
        raise_alarm("clock@2", finish=finish)
    watched.store.abandon(ended[0])

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raise_alarm("clock@3", finish=interrupt)
    task = watched.get("clock@3")
    assert task is not None
    assert task.status is Status.UNKNOWN
    running: Any = Contended(watched.store, settle=lambda *_: Lost(task))
    with pytest.raises(TransitionError):
        checks._settle_or_raise(running, task, "", "me")


def test_the_newest_time_is_looked_for_piece_by_piece(watched: Registry) -> None:
    """Of many tasks."""
    pieces = iter([SimpleNamespace(newest=None, after="a"), SimpleNamespace(newest=5, after=None)])
    store: Any = Contended(watched.store, survey=lambda *_: next(pieces))
    assert checks._newest_of_all(store) == 5


# --- commands, lines, steps -------------------------------------------------------------------------------------


def test_a_command_that_is_not_admitted_is_put_back(registry: Registry) -> None:
    """Nothing ran."""

    def refuse() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands._admit(registry.claim("t"), refuse)
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)


def test_lines_that_cannot_be_read_end_it() -> None:
    """The error is the reader's, in the caller's thread."""

    def lines() -> Iterator[Line]:
        yield Line(1, b"{}", 3)
        raise OSError(errno.EIO, "the pipe")

    with pytest.raises(OSError, match="the pipe"):
        list(Each(lines(), lambda line: LineEnd(line, Kind.DONE), jobs=1))


def test_what_is_read_by_another_is_not_waited_for() -> None:
    """Another process may have the same pipe: what is not there any more is nobody's here."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb") as pipe:
        stream = _Stream(1, pipe, cast("Any", None), Output())
        assert not stream.pass_on()
        os.write(writing, b"x")
        stream.pass_on = lambda _left=0: False  # type: ignore[method-assign,assignment]
        stream.pass_rest_on()
        assert stream.passed == 0
    os.close(writing)


def test_readers_that_cannot_be_told_have_no_ages(registry: Registry) -> None:
    """Nobody knows who they are."""
    assert Checkpointer(registry)._with_ages(None, 0.0) is None


def test_a_claim_that_has_ended_is_not_put_back(registry: Registry) -> None:
    """Nor is a block left that was never entered."""
    claim = registry.claim("t")
    claim._leave_block()
    claim.succeed(7)
    claim.not_begun()
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.result) == (Status.SUCCEEDED, "7")


def test_a_step_of_a_coroutine_that_fails_is_not_saved(registry: Registry) -> None:
    """The next attempt runs it again."""

    async def main() -> None:
        async with AsyncRegistry.of(registry).claim("t", on_crash="rerun") as claim:
            with contextlib.suppress(LookupError):
                async with claim.step("s"):
                    raise LookupError

    asyncio.run(main())
    assert registry.steps("t") == []


def test_a_step_of_a_type_that_nobody_knows_any_more(path: Path, registry: Registry) -> None:
    """It is done, and its result is lost to whoever asks."""
    claim = registry.claim("t")
    claim.run_step("s", lambda: 1)
    claim.fail(LookupError())
    with contextlib.closing(connect(path)) as connection:
        connection.execute("UPDATE idempotent_step SET result = 'no JSON'")
        reseal(connection)
    with registry.claim("t") as claim, claim.step("s") as step:
        assert step.done
        with pytest.raises(ResultError):
            _ = step.result


def test_a_scheduler_goes_on_behind_an_error_of_the_store(path: Path, open_registry: Callable[..., Registry]) -> None:
    """It is told, and the next look tries again."""
    clock = ManualClock()
    registry = open_registry(clock=clock, busy_timeout=0.01)
    registry.scheduled("s", cron="* * * * *")(lambda: None)
    assert registry.run_due() == [], "it begins now"
    clock.advance(60)
    told: list[Any] = []
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")

    def pause(seconds: float) -> bool:
        if other.in_transaction:
            other.execute("ROLLBACK")
        clock.advance(max(seconds, 0.001))
        return len(told) > 1

    keep(registry, "s", told.append, lambda: None, pause)
    other.close()
    assert type(told[0]) is StoreBusyError
    assert [run.error for run in told[1:]] == [None]


def test_a_version_that_another_process_has_begun(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Of coroutines as well: whoever has the older one is told, behind the others that are due."""
    clock = ManualClock()
    older, newer = open_registry(clock=clock), open_registry(clock=clock)

    async def job() -> None:
        """There is nothing to do."""

    AsyncRegistry.of(older).scheduled("s", cron="* * * * *")(job)
    AsyncRegistry.of(newer).scheduled("s", cron="*/2 * * * *")(job)
    for registry in (older, newer):
        clock.advance(60)
        asyncio.run(AsyncRegistry.of(registry).run_due())
    clock.advance(60)
    with pytest.raises(ScheduleError):
        asyncio.run(AsyncRegistry.of(older).run_due())
    assert path.exists()


def test_what_is_no_problem_of_a_client_is_raised() -> None:
    """An error that no request can come to."""
    error = IdemregError("none")
    with pytest.raises(IdemregError) as caught:
        problem_of(error)
    assert caught.value is error
