"""How a command's claim ends where its end cannot be stored, or an error comes in between: once, and never in doubt."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import selectors
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import (
    FinishNotRecordedError,
    Liveness,
    Registry,
    Status,
    StoreError,
    TaskRunningError,
    TaskUnknownError,
    child,
    command,
    command_parts,
    faults,
    starting,
    woken,
)
from idemreg.child import Child
from idemreg.command import run_command
from idemreg.errors import CommandNotFoundError
from idemreg.output import Output
from idemreg.signals import Inbox
from idemreg.starting import Start, spawn
from tests.support.descriptors import left_open
from tests.support.interruptions import interrupt_at
from tests.support.interrupts import each_interrupt
from tests.support.processes import PATIENCE_S, Script
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal, TypeAlias

    from idemreg import OwnerInfo, Task

    OnCrashWord: TypeAlias = Literal["hold", "rerun"]

SH = "/bin/sh"


def task_of(registry: Registry, task_id: str) -> Task:
    task = registry.get(task_id)
    assert task is not None
    return task


def owner_of(registry: Registry, task_id: str) -> OwnerInfo:
    owner = registry.owner(task_of(registry, task_id))
    assert owner is not None
    return owner


# --- an end that cannot be stored ---------------------------------------------------------------------------------

# Another program, which knows nothing of turns, has SQLite's write lock.
FOREIGN = """
    import apsw
    connection = apsw.Connection(sys.argv[1])
    wait()
    connection.execute("BEGIN IMMEDIATE")
    say("holds"); wait()
    connection.execute("ROLLBACK")
"""


class Unrecorded:
    """A command that has succeeded, and whose end could not be stored; ``store_again`` lets it be."""

    def __init__(self, registry: Registry, path: Path, on_crash: OnCrashWord) -> None:
        self.registry, self.on_crash = registry, on_crash
        self.witness = path.parent / "witness"
        registry.run("warm", int)
        with Script(FOREIGN, path) as holder:

            def hold() -> None:
                holder.go()
                holder.expect("holds")

            faults.arm("command.ended", hold)
            with pytest.raises(FinishNotRecordedError):
                self.run()
            with Registry(path) as other:
                self.owner = owner_of(other, "t")
                with pytest.raises(TaskRunningError):
                    self.run(other)
            holder.go()
            assert holder.end() == 0

    def run(self, registry: Registry | None = None) -> None:
        argv = [SH, "-c", f"echo ran >>{self.witness}"]
        run_command(registry or self.registry, "t", argv, on_crash=self.on_crash)

    def check(self, registry: Registry) -> None:
        """It is unknown, says why, and does not run again."""
        task = task_of(registry, "t")
        assert task.status is Status.UNKNOWN
        assert task.error is not None
        assert task.error.startswith("FinishNotRecorded: the job ended as succeeded")
        with pytest.raises(TaskUnknownError):
            self.run(registry)
        assert self.witness.read_text() == "ran\n"


@pytest.mark.parametrize("on_crash", ["rerun", "hold"])
def test_a_command_whose_end_could_not_be_stored_does_not_run_again(
    on_crash: OnCrashWord, path: Path, open_registry: Callable[..., Registry]
) -> None:
    """Until its end is stored its owner lives, and then it is unknown; nothing stays open for it."""
    registry = open_registry(busy_timeout=0.05)
    unrecorded = Unrecorded(registry, path, on_crash)
    assert unrecorded.owner.liveness is Liveness.ALIVE
    registry.add("another")  # whoever writes stores what waits
    unrecorded.check(registry)
    registry.close()
    assert left_open(path) == []


def test_nor_where_the_registry_is_closed_meanwhile(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Its files stay open behind the close for as long as its end waits, and no longer."""
    registry = open_registry(busy_timeout=0.05)
    unrecorded = Unrecorded(registry, path, "rerun")
    registry.close()
    assert left_open(path)
    other = open_registry()
    assert owner_of(other, "t").liveness is Liveness.ALIVE
    other.close()
    registry.add("another")
    unrecorded.check(registry)
    registry.close()
    assert left_open(path) == []


def test_a_registry_that_is_dropped_keeps_no_command(path: Path) -> None:
    """Nobody is left who could store the end: the command counts as that of a dead owner once its process is gone."""
    unrecorded = Unrecorded(Registry(path, busy_timeout=0.05), path, "hold")
    del unrecorded
    gc.collect()
    assert left_open(path) == []


def test_a_child_has_no_part_in_a_command_whose_end_waits(path: Path, open_registry: Callable[..., Registry]) -> None:
    """Forked meanwhile, it has nothing of it open, and ends nothing; its parent does."""
    registry = open_registry(busy_timeout=0.05)
    unrecorded = Unrecorded(registry, path, "rerun")
    child = os.fork()
    if not child:
        try:
            registry.add("of the child")
            lives = owner_of(registry, "t").liveness is Liveness.ALIVE
            registry.close()
            os._exit(0 if lives and task_of(registry, "t").status is Status.RUNNING else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    registry.add("another")
    unrecorded.check(registry)


# --- an error in between ------------------------------------------------------------------------------------------


def deaf_inbox() -> Inbox:
    """So that the handlers of signals are those of the test."""
    return Inbox(lambda _: KeyboardInterrupt())


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def children() -> set[str]:
    """Those of this process that nobody has waited for, be they of a test before."""
    found: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # of a thread that has ended since: its children are another's
            found.update(file.read_text().split())
    return found


@pytest.fixture
def others() -> set[str]:
    """The children that were there before the test."""
    return children()


# One that comes in a finaliser is heard by nobody; a claim that is dropped says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_command_leaves_no_task_running(
    registry: Registry, null: int, tmp_path: Path, others: set[str]
) -> None:
    """Wherever its run is interrupted it has ended by then, and so has its claim: as it did, or by its crash policy."""

    def run(task_id: str) -> None:
        argv = [SH, "-c", ': >"$0"', str(tmp_path / task_id)]
        run_command(registry, task_id, argv, inbox=deaf_inbox(), stdin=null, stdout=null, stderr=null, on_crash="rerun")

    run("warm")
    # `woken` has a test of its own: CPython 3.11 loses count of its stack where that, too, is traced opcode by opcode.
    for number, interrupter in enumerate(each_interrupt(command, command_parts, child, starting)):
        task_id = f"task:{number}"
        interrupter.carry_out(run, task_id)
        assert children() <= others
        has_run = (tmp_path / task_id).exists()
        task = registry.get(task_id)
        if task is None:
            assert not has_run
        elif task.status is Status.PENDING:
            assert task.attempt == 1 or not has_run
        else:
            assert (task.status, has_run) == (Status.SUCCEEDED, True)
    assert not registry.store._opening.current.owners.commands  # type: ignore[attr-defined]


@pytest.fixture
def wakeup() -> Iterator[int]:
    """The wakeup descriptor of the program, as an event loop has one."""
    ours, pythons = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(pythons, warn_on_full_buffer=False)
    yield pythons
    signal.set_wakeup_fd(before)
    os.close(ours)
    os.close(pythons)


# As above.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_wait_leaves_no_descriptor(wakeup: int, null: int) -> None:
    """Neither one of its own open, nor another than the program's where Python tells of signals."""

    def wait(one: Child) -> None:
        child.pump(one, Output(), None, lambda: None)

    def begun() -> Child:
        return spawn([SH, "-c", "echo line; echo other >&2"], os.environ, None, null)

    before = set(os.listdir("/proc/self/fd"))
    for interrupter in each_interrupt(child, woken):
        one = begun()
        interrupter.carry_out(wait, one)
        assert signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False) == wakeup
        one.close_pipes()
        one.wait()
        gc.collect()  # of a selector that was not entered yet, or was left already
        assert set(os.listdir("/proc/self/fd")) == before


class NotRegisteredError(Exception):
    """What a handler raises as ours is about to be listened to."""


class Deaf(selectors.DefaultSelector):
    def register(self, *_: object) -> Any:
        raise NotRegisteredError


def test_a_wait_that_is_interrupted_as_it_begins_leaves_the_programs_wakeup(wakeup: int) -> None:
    """Ours was not in its place yet: nothing is set, and nothing stays open."""
    before = set(os.listdir("/proc/self/fd"))
    with Deaf() as selector, pytest.raises(NotRegisteredError), woken.woken_by_signals(selector):
        pytest.fail("it waits")
    assert signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False) == wakeup
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_wait_that_is_interrupted_as_it_ends_closes_both_ends(wakeup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that Python had is closed already: no other file that may have its number by now is closed as well."""
    before = set(os.listdir("/proc/self/fd"))
    pass_on, calls = woken.Woken.pass_on, iter(range(1))

    def interrupted(one: woken.Woken) -> bool:
        if next(calls, None) is not None:
            raise ToldError
        return pass_on(one)

    monkeypatch.setattr(woken.Woken, "pass_on", interrupted)
    with pytest.raises(ToldError), selectors.DefaultSelector() as selector, woken.woken_by_signals(selector):
        pass
    assert signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False) == wakeup
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_wakeup_that_the_program_has_closed_meanwhile_is_not_set_again() -> None:
    """That of an event loop which has ended in another thread, say: Python tells nobody of signals then."""
    ours, pythons = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(pythons)
    try:
        with selectors.DefaultSelector() as selector, woken.woken_by_signals(selector):
            os.close(ours)
            os.close(pythons)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)


# `Popen` itself leaves pipes for the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_start_tells_what_it_has_started(null: int, others: set[str]) -> None:
    """Also where the interrupt comes within `Popen`: no command is lost, not even one whose number it did not learn."""
    for interrupter in each_interrupt(starting, subprocess):
        start = Start()
        fd = os.dup(null)

        def begin(start: Start = start, fd: int = fd) -> None:
            spawn(["/bin/true"], {}, fd, null, None, start)

        interrupter.carry_out(begin)
        left = start.left(KeyboardInterrupt())
        assert not start.is_unclear
        if left is not None:
            left.close_pipes()
            assert left.wait() == 0
        assert children() <= others
        os.close(fd)


class ToldError(Exception):
    """What a handler raises."""


ERRORS: dict[str, Callable[[], Exception]] = {
    "interrupt": ToldError,
    "time limit": TimeoutError,
    "error of a call": lambda: OSError(5, "I/O error"),
}


@pytest.fixture
def interrupts_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Exception]], None]]:
    """Lets a handler raise behind the fork, before `Popen` knows of it."""
    before = signal.getsignal(signal.SIGUSR1)
    fork_exec = subprocess._fork_exec  # type: ignore[attr-defined] # where Popen leaves Python

    def then_signal(*args: object) -> int:
        pid: int = fork_exec(*args)
        signal.raise_signal(signal.SIGUSR1)
        return pid

    def interrupt_by(error: Callable[[], Exception]) -> None:
        def handle(_number: int, _frame: object) -> None:
            raise error()

        signal.signal(signal.SIGUSR1, handle)
        monkeypatch.setattr(subprocess, "_fork_exec", then_signal)

    yield interrupt_by
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("error", ERRORS)
def test_a_command_whose_start_is_interrupted_is_seen_to_its_end(
    error: str,
    registry: Registry,
    null: int,
    interrupts_the_start: Callable[[Callable[[], Exception]], None],
    others: set[str],
) -> None:
    """It ran: what it ended as is stored, and the error goes on its way, also one as `Popen` raises."""
    interrupts_the_start(ERRORS[error])
    with pytest.raises((ToldError, OSError)):
        run_command(registry, "t", [SH, "-c", "exit 3"], inbox=deaf_inbox(), stdout=null, stderr=null)
    task = task_of(registry, "t")
    assert (task.status, task.error) == (Status.FAILED, "exit code 3")
    assert children() <= others


def test_a_command_that_may_have_been_started_is_unknown(
    registry: Registry,
    null: int,
    tmp_path: Path,
    interrupts_the_start: Callable[[Callable[[], Exception]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the system does not tell of children, an interrupted start is never run again by itself."""
    monkeypatch.setattr(starting, "CHILDREN", str(tmp_path / "none"))
    interrupts_the_start(ToldError)
    for expected in (ToldError, TaskUnknownError):
        with pytest.raises(expected):
            run_command(registry, "t", [SH, "-c", ""], inbox=deaf_inbox(), stdout=null, stderr=null, on_crash="rerun")
    assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0
    assert task_of(registry, "t").status is Status.UNKNOWN


def raise_it(make: Callable[[], Exception]) -> None:
    raise make()


@pytest.mark.parametrize("error", ERRORS)
def test_one_whose_number_is_known_already_is_seen_to_its_end(
    error: str, registry: Registry, null: int, others: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Popen` learned it, and was interrupted before its caller did: as above."""
    begin = subprocess.Popen._execute_child  # type: ignore[attr-defined] # where it forks

    def then_raise(*args: object) -> None:
        begin(*args)
        raise_it(ERRORS[error])

    monkeypatch.setattr(subprocess.Popen, "_execute_child", then_raise)
    with pytest.raises((ToldError, OSError)):
        run_command(registry, "t", [SH, "-c", "exit 3"], inbox=deaf_inbox(), stdout=null, stderr=null)
    task = task_of(registry, "t")
    assert (task.status, task.error) == (Status.FAILED, "exit code 3")
    assert children() <= others


def test_an_interrupt_behind_a_program_that_is_not_there_begins_nothing(
    registry: Registry, null: int, others: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Popen` has seen the end of the child that could not become it, and was interrupted before it could say so."""
    begin = subprocess.Popen._execute_child  # type: ignore[attr-defined] # as above

    def then_interrupted(*args: object) -> None:
        with pytest.raises(FileNotFoundError):
            begin(*args)
        raise ToldError

    monkeypatch.setattr(subprocess.Popen, "_execute_child", then_interrupted)
    with pytest.raises(ToldError):
        run_command(registry, "t", ["/nonexistent"], inbox=deaf_inbox(), stdout=null, stderr=null, on_crash="rerun")
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == (Status.PENDING, 0)
    assert children() <= others


@pytest.mark.parametrize(
    ("reaped", "expected"), [(False, (Status.PENDING, 0)), (True, (Status.UNKNOWN, 1))], ids=["by nobody", "by others"]
)
def test_a_start_that_is_interrupted_before_the_fork(
    reaped: bool,  # noqa: FBT001 - a parameter of the test
    expected: tuple[Status, int],
    registry: Registry,
    null: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No child is there: nothing ran. Where the program itself waits for children, one may have come and gone."""

    def interrupted(*_: object) -> int:
        raise ToldError

    before = signal.signal(signal.SIGCHLD, (lambda *_: None) if reaped else signal.SIG_DFL)
    monkeypatch.setattr(subprocess, "_fork_exec", interrupted)
    try:
        with pytest.raises(ToldError):
            run_command(registry, "t", ["/bin/true"], inbox=deaf_inbox(), stdout=null, stderr=null, on_crash="rerun")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == expected


@pytest.mark.parametrize(("on_crash", "status"), [("rerun", Status.PENDING), ("hold", Status.UNKNOWN)])
def test_an_interrupt_behind_the_end_of_a_command_counts_as_a_crash(
    on_crash: OnCrashWord, status: Status, registry: Registry, null: int, tmp_path: Path
) -> None:
    """It has run, and how it ended is not stored: its claim ends by its crash policy, and no owner is left."""
    interrupt_at("command.ended", ToldError())
    argv = [SH, "-c", f"echo ran >>{tmp_path}/ran"]
    with pytest.raises(ToldError):
        run_command(registry, "t", argv, inbox=deaf_inbox(), stdout=null, stderr=null, on_crash=on_crash)
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == (status, 1)
    assert not registry.store._opening.current.owners.commands  # type: ignore[attr-defined]


class Interrupting(dict[Any, Any]):
    """Interrupts whoever takes something out of it, once."""

    is_armed = True

    def pop(self, *words: Any) -> Any:
        if self.is_armed:
            self.is_armed = False
            raise ToldError
        return super().pop(*words)


def test_an_interrupt_as_a_commands_owner_goes_leaves_none(registry: Registry, null: int, path: Path) -> None:
    """Its descriptor is closed and it is still listed: it goes all the same, and the end of its command is stored."""
    registry.run("warm", int)
    before = sorted(left_open(path))
    owners = registry.store._opening.current.owners  # type: ignore[attr-defined]
    owners.commands = Interrupting()
    with pytest.raises(ToldError):
        run_command(registry, "t", ["/bin/true"], inbox=deaf_inbox(), stdout=null, stderr=null)
    assert not owners.commands
    assert owners.are_idle
    assert sorted(left_open(path)) == before
    assert task_of(registry, "t").status is Status.SUCCEEDED


def test_what_is_refused_where_others_take_every_status_is_put_back(registry: Registry, null: int) -> None:
    """Nothing ran, and a child whose status nobody gets is no sign of the contrary."""
    refused: list[BaseException] = []

    def run() -> None:
        try:
            run_command(registry, "t", ["/none"], stdout=null, stderr=null)
        except CommandNotFoundError as error:
            refused.append(error)

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert refused
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == (Status.PENDING, 0)


def test_an_error_of_the_store_before_the_start_puts_the_task_back(registry: Registry, null: int) -> None:
    """The file is to be read once more behind the claim: where that fails, nothing ran."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def admit() -> None:  # no descriptor is left to open the file anew with
        registry.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))

    try:
        with pytest.raises(StoreError):
            run_command(registry, "t", ["/bin/true"], stdout=null, stderr=null, admit=admit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (task_of(registry, "t").status, task_of(registry, "t").attempt) == (Status.PENDING, 0)


# `Popen` says of a command that goes on that it does.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_command_that_is_not_waited_for_keeps_its_task(
    path: Path, registry: Registry, null: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted again and again, its run is left before it ends: nobody runs its task as long as it lives."""
    gates = [tmp_path / name for name in ("1", "2", "3", "4")]  # one each: a writer may be slow to close
    for gate in gates:
        os.mkfifo(gate)
    script = f"for n in 1 2 3; do kill -USR1 $PPID; read x <{tmp_path}/$n; done; read x <{gates[3]}"

    waits: list[Child] = []

    def wait(one: Child, wait: Callable[[Child], int | None] = Child.wait) -> int | None:
        waits.append(one)
        return wait(one)

    def handle(_number: int, _frame: object) -> None:
        raise ToldError

    def let_it_go_on() -> None:
        for number in (1, 2):
            until(lambda number=number: len(waits) == number)  # type: ignore[misc]
            gates[number - 1].write_text("on\n")  # it sends the next one

    def run() -> None:
        argv = [SH, "-c", f"[ -e {tmp_path}/again ] || {{ >{tmp_path}/again; {script}; }}"]
        run_command(registry, "t", argv, inbox=deaf_inbox(), stdout=null, stderr=null, on_crash="rerun")

    before = signal.signal(signal.SIGUSR1, handle)
    monkeypatch.setattr(Child, "wait", wait)
    thread = threading.Thread(target=let_it_go_on)
    thread.start()
    try:
        with pytest.raises(ToldError):
            run()
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join()
    gates[2].write_text("on\n")
    gc.collect()
    with Registry(path) as other:
        for one in (registry, other):
            assert owner_of(one, "t").reason == "its lock is held"
    pid = owner_of(registry, "t").pid
    assert pid is not None
    registry.close()
    assert left_open(path) == []
    gates[3].write_text("end\n")
    with contextlib.suppress(ChildProcessError):  # `subprocess` has waited for it
        os.waitpid(pid, 0)
    run()
    task = task_of(registry, "t")
    assert (task.status, task.attempt) == (Status.SUCCEEDED, 2)


def test_a_number_does_not_go_under_somebody_who_is_about_to_send_a_signal(
    null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends behind the look whether it has: who waits for it takes its status once the signal was sent."""
    child = spawn(["/bin/cat", "/dev/zero"], os.environ, None, null)
    told: list[str] = []
    looked = threading.Event()

    def has_ended(one: Child, has_ended: Callable[[Child], bool] = Child.has_ended) -> bool:
        answer = has_ended(one)
        looked.set()
        until(lambda: told[:1] == ["waiting"] and child_is_left(one))
        return answer

    def child_is_left(one: Child) -> bool:
        """Whether who waits for it has come as far as he can."""
        return one._is_taken or one._process.returncode is not None

    def send() -> None:
        try:
            child.send_signal(signal.SIGCONT)
            told.append("sent")
        except ProcessLookupError:
            told.append("gone")

    monkeypatch.setattr(Child, "has_ended", has_ended)
    sender = threading.Thread(target=send)
    sender.start()
    assert looked.wait(PATIENCE_S)
    os.kill(child.pid, signal.SIGKILL)
    told.append("waiting")
    assert child.wait() == -signal.SIGKILL
    told.append("taken")
    sender.join(PATIENCE_S)
    child.close_pipes()
    assert told == ["waiting", "sent", "taken"]
