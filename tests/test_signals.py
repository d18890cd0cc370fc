"""Signals at every moment of a command: none raises in the middle of anything, none is lost, none comes twice."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from idemreg import Registry, Status, faults
from idemreg.child import Child, pump
from idemreg.command import run_command
from idemreg.command_parts import attend
from idemreg.each import Each, End, Kind
from idemreg.feed import Line
from idemreg.output import Output
from idemreg.signals import Inbox, Interrupted, Relay, Signals
from tests.support.processes import PATIENCE_S, ROOT, Script

if TYPE_CHECKING:
    from pathlib import Path

SH = "/bin/sh"
ROUNDS = 20


def test_a_run_behind_a_shell_tries_signals_as_one_at_a_terminal_does() -> None:
    """What a shell puts behind it ignores them, and its children would: `make test &` waited for ever."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    code = (
        f"import signal, tests.conftest; print([signal.getsignal(n) is signal.SIG_IGN for n in {[*map(int, numbers)]}])"
    )
    ignored = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers] and None,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ignored.stdout == "[False, False, False]\n"


# --- before the command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["claim.in-transaction", "claim.committed"])
@pytest.mark.parametrize(("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_between_claim_and_start_puts_the_task_back(
    registry: Registry, tmp_path: Path, point: str, number: signal.Signals, ending: type[BaseException]
) -> None:
    """It ends this process in order: nothing ran, the attempt does not count, and the next call runs it."""
    argv = [SH, "-c", f"echo ran >>{tmp_path / 'witness'}"]
    faults.arm(point, lambda: signal.raise_signal(number))
    with pytest.raises(ending) as ended:
        run_command(registry, "t", argv)
    assert ending is KeyboardInterrupt or ended.value.args == (128 + number,)
    faults.disarm()
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt) == (Status.PENDING, 0)
    assert not (tmp_path / "witness").exists()
    assert run_command(registry, "t", argv).exit_code == 0


def test_a_signal_ends_the_wait_for_a_twin(registry: Registry, path: Path) -> None:
    """A wait of an hour ends at once by SIGTERM; the twin is not touched."""
    twin = """
        from idemreg import Registry
        from idemreg.command import run_command
        from idemreg.clock import Clock
        class Told(Clock):
            def sleep(self, pause):
                say("naps")
                super().sleep(pause)
        run_command(Registry(sys.argv[1], clock=Told()), "t", ["true"], wait=3_600)
    """
    gate_read, gate_write = os.pipe()
    runner = threading.Thread(target=run_command, args=(registry, "t", ["true"]))

    def block() -> None:
        os.read(gate_read, 1)

    faults.arm("command.spawned", block)
    runner.start()
    with Script(twin, path) as script:
        script.expect("naps")
        script.signal(signal.SIGTERM)
        assert script.end() == 128 + signal.SIGTERM
    os.write(gate_write, b"x")
    runner.join(PATIENCE_S)
    os.close(gate_read)
    os.close(gate_write)
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.SUCCEEDED


def test_a_signal_reaches_the_verify_command(registry: Registry, tmp_path: Path) -> None:
    """A verify command that hangs is told as well; then this process ends, and the task is as unknown as before."""
    os.mkfifo(tmp_path / "gate")
    check_no_verdict_of(registry, f"kill -TERM $PPID; exec cat {tmp_path / 'gate'}")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_what_a_verify_command_exits_with_by_our_signal_is_no_verdict(registry: Registry, code: int) -> None:
    """One that was told to end may have looked at nothing: neither did it happen by that, nor did it not."""
    check_no_verdict_of(registry, f"tail -f /dev/null & trap 'kill $!; exit {code}' TERM; kill -TERM $PPID; wait")


def check_no_verdict_of(registry: Registry, hook: str) -> None:
    run_command(registry, "t", [SH, "-c", "kill -9 $$"], on_crash="verify", verify="exit 2")
    with pytest.raises(SystemExit) as ended:
        run_command(registry, "t", [SH, "-c", "kill -9 $$"], on_crash="verify", verify=hook)
    assert ended.value.args == (128 + signal.SIGTERM,)
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.attempt, task.verdict) == (Status.UNKNOWN, 1, None)


def test_a_failure_of_ours_is_none_of_the_command(registry: Registry, tmp_path: Path) -> None:
    """Where passing its output on breaks, the command goes on to its end, and that is what is stored."""

    class Broken:
        def write(self, stream: int, data: bytes) -> bool:
            raise MemoryError

        def close(self) -> None:
            pass

    with pytest.raises(MemoryError):
        run_command(registry, "t", [SH, "-c", "trap '' PIPE; echo out; exit 0"], sink=Broken())
    task = registry.get("t")
    assert task is not None
    assert task.status is Status.SUCCEEDED


# --- delivery ---------------------------------------------------------------------------------------------------------


class Process:
    """In place of a command: what was sent to it."""

    def __init__(self) -> None:
        self.got: list[int] = []

    def send_signal(self, number: int) -> None:
        self.got.append(number)


def test_signals_are_kept_until_the_command_is_known() -> None:
    """Each is delivered once, in order, whether it came before or after; what the terminal told is not told again."""
    with Signals() as inbox:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGWINCH)
        process = Process()
        inbox.pass_to(process)
        signal.raise_signal(signal.SIGTERM)
        inbox.send(signal.SIGINT, is_told=True)
    assert process.got == [signal.SIGUSR1, signal.SIGWINCH, signal.SIGTERM]


def test_a_change_of_the_window_ends_nothing() -> None:
    """SIGWINCH before the command is kept for it, and asks nobody to end."""
    with Signals() as inbox:
        signal.raise_signal(signal.SIGWINCH)
        inbox.check()


def test_a_relay_tells_all_and_then_kills() -> None:
    """The first signal goes to every command once, also to those that come to be known later; a second one kills."""
    early, late = Process(), Process()
    with Relay() as relay, relay.inbox() as first, relay.inbox() as second:
        first.pass_to(early)
        signal.raise_signal(signal.SIGTERM)
        with relay.inbox() as third, pytest.raises(Interrupted):
            third.check()
        signal.raise_signal(signal.SIGTERM)
        second.pass_to(late)
    assert early.got == late.got == [signal.SIGTERM, signal.SIGKILL]
    assert relay.received == signal.SIGTERM


def meet(both: threading.Barrier, inbox: Inbox, process: Process) -> None:
    both.wait()
    inbox.pass_to(process)


def test_two_threads_deliver_a_signal_once() -> None:
    """The handler and the command's own thread may deliver at the same moment: each signal goes out once."""
    for _ in range(200):
        inbox, process = Inbox(lambda _: KeyboardInterrupt()), Process()
        both = threading.Barrier(2)
        thread = threading.Thread(target=meet, args=(both, inbox, process))
        thread.start()
        both.wait()
        inbox.send(signal.SIGTERM)
        thread.join()
        assert process.got == [signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR2, signal.SIGWINCH])
def test_the_other_signals_reach_the_command(path: Path, number: signal.Signals) -> None:
    """Whatever asks a program to do something is passed on."""
    command = f"""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])
print("ready", flush=True)
signal.sigwait([{int(number)}])
"""
    with start(path, sys.executable, "-c", command, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0


def test_a_signal_that_another_thread_gets_is_passed_on(tmp_path: Path) -> None:
    """As one is that comes right before the wait for the command's output: neither interrupts it."""
    ready, gate = tmp_path / "ready", tmp_path / "gate"
    os.mkfifo(ready)
    os.mkfifo(gate)

    def interrupt() -> None:
        ready.read_text()
        until_main_sleeps()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    other = threading.Thread(target=interrupt)
    other.start()
    with Signals() as inbox:
        process = subprocess.Popen([SH, "-c", f"echo >{ready}; read x <{gate}"], stdout=subprocess.PIPE)
        assert attend(Child(process), inbox, Output(100), None) == -signal.SIGTERM
    other.join()


def test_a_wait_for_a_command_takes_no_signal_from_an_event_loop(registry: Registry) -> None:
    """A program that runs a command within a coroutine loses no signal that its loop is to handle."""
    handled: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        loop.add_signal_handler(signal.SIGALRM, told.set_result, None)
        run_command(registry, "t", [SH, "-c", f"kill -ALRM {os.getpid()}"])
        await asyncio.wait_for(told, PATIENCE_S)
        handled.append(1)
        loop.remove_signal_handler(signal.SIGALRM)

    asyncio.run(main())
    assert handled == [1]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_wait_that_is_broken_off_leaves_no_descriptor_to_signals() -> None:
    """Python would write to whatever file gets its number next, be it a registry."""

    def break_off() -> None:
        raise LookupError

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with pytest.raises(LookupError):
            pump(Child(process), Output(100), None, break_off)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE_S)
    assert signal.set_wakeup_fd(-1) == -1


def test_an_ignored_signal_stays_ignored(path: Path, tmp_path: Path) -> None:
    """Under nohup a hangup ends neither the wrapper nor the command."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    shell = [SH, "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-m", "idemreg", "--db", str(path)]
    command = ["run", "t", "--", SH, "-c", f"echo ready; read x <{gate}; exit 7"]
    with subprocess.Popen([*shell, *command], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        gate.write_text("go\n")
        assert process.wait(PATIENCE_S) == 7


def test_ctrl_c_reaches_the_command_once(path: Path) -> None:
    """The terminal tells the whole group, so nothing is passed on: the command hears each Ctrl-C once."""
    # Of several signals that wait the lowest comes first: what was passed on before USR1 is heard before it. Two that
    # wait at once count as one, so it takes some rounds to hear one that was passed on.
    command = """
import signal
heard = [signal.SIGINT, signal.SIGUSR1]
signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # a signal right before signal.pause() would not end that
print("ready", flush=True)
while True: print(signal.Signals(signal.sigwait(heard)).name, flush=True)
"""
    screen, line = pty.openpty()
    process = on_terminal(path, line, "t", "--", sys.executable, "-c", command)
    seen = read_until(screen, b"ready")
    for _ in range(ROUNDS):
        os.write(screen, b"\x03")
        seen += read_until(screen, b"INT")
        process.send_signal(signal.SIGUSR1)
        seen += read_until(screen, b"USR1")
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    os.close(screen)
    assert seen.count(b"INT") == ROUNDS


def on_terminal(path: Path, line: int, *words: str) -> subprocess.Popen[bytes]:
    """In the foreground of a terminal of its own."""
    leader = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "idemreg", "run", *sys.argv[1:]])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": str(path)}
    command = [sys.executable, "-c", leader, *words]
    process = subprocess.Popen(command, env=environment, stdin=line, stdout=line, stderr=line)
    os.close(line)
    return process


def read_until(fd: int, words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        seen += os.read(fd, 4_096)
    return seen


def start(path: Path, *command: str, **options: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IDEMREG_DB": str(path)}
    words = [sys.executable, "-m", "idemreg", "run", "t", "--", *command]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


# --- handlers take no lock --------------------------------------------------------------------------------------------


def test_a_handler_may_stop_at_any_step() -> None:
    """`stop` is called in a signal handler, in the middle of any step of the iteration: it waits for none of them."""
    program = """
        import itertools
        from idemreg.each import Each, End, Kind
        from idemreg.feed import Line

        def stopped_at(step):
            every = Each((Line(n, b"", n) for n in range(8)), lambda line: End(line, Kind.DONE), jobs=2)
            steps = itertools.count()
            def trace(frame, event, argument):
                if "idemreg/each.py" in frame.f_code.co_filename or "threading.py" in frame.f_code.co_filename:
                    if next(steps) == step:
                        every.stop()  # as a handler would here
                return trace
            sys.settrace(trace)
            try:
                for _ in every:
                    pass
            finally:
                sys.settrace(None)
            return next(steps) <= step

        for step in itertools.count():
            say(step)
            if stopped_at(step):
                break
        say("over")
    """
    with Script(program) as script:
        while (line := script.line()) != "over":
            assert line.isdigit()
        assert script.end() == 0


def test_a_signal_that_a_worker_gets_is_handled() -> None:
    """The kernel may give a signal to any thread; its handler runs all the same, though the main thread waits."""
    handled = threading.Event()

    def handle(line: Line) -> End:
        until_main_sleeps()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        return End(line, Kind.DONE if handled.wait(PATIENCE_S) else Kind.FAILED)

    every = Each((Line(n, b"", n) for n in range(1, 2)), handle, jobs=1)
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
    try:
        assert [end.kind for end in every] == [Kind.DONE]
    finally:
        signal.signal(signal.SIGUSR1, before)


def until_main_sleeps() -> None:
    """Each look lets the main thread go on, as far as it can."""
    looks = 0
    while looks < ROUNDS:
        with open(f"/proc/self/task/{os.getpid()}/stat", encoding="utf-8") as stat:
            looks = looks + 1 if stat.read().rpartition(")")[2].split()[0] == "S" else 0


def test_a_caller_that_fails_waits_for_those_begun() -> None:
    """Whoever closes the iterator has no line in the middle when that returns."""
    begun, ended = threading.Semaphore(0), []

    def handle(line: Line) -> End:
        begun.release()
        ended.append(line.number)
        return End(line, Kind.DONE)

    ends = iter(Each((Line(n, b"", n) for n in range(1, 100)), handle, jobs=3))
    next(ends)
    ends.close()
    so_far = list(ended)
    assert begun.acquire(timeout=PATIENCE_S)
    assert len(so_far) == len(ended)
