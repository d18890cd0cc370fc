"""Jobs that run longer than they may: coroutines, commands, and threads, which cannot be ended."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import signal
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from idemreg import (
    AsyncRegistry,
    Registry,
    Status,
    TaskFailedError,
    TaskTimeoutError,
    current_claim,
    stopping,
)
from idemreg.command import CommandEnd, run_command
from idemreg.testing import ManualClock
from tests.support.paused import PAUSE, has_stopped
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Loop = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]

SH = "/bin/sh"


async def for_ever() -> None:
    """Wait for what never comes, under either library."""
    if trio.lowlevel.in_trio_task():
        await trio.sleep_forever()
    await asyncio.Event().wait()


def status_of(registry: Registry, task_id: str) -> tuple[Status, str]:
    task = registry.get(task_id)
    assert task is not None
    return task.status, (task.error or "").partition("\n")[0]


# --- coroutines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_crash", "status"), [("hold", Status.UNKNOWN), ("rerun", Status.PENDING)])
def test_a_coroutine_is_cancelled_when_its_time_is_over(
    registry: Registry, loop: Loop, on_crash: Any, status: Status
) -> None:
    """By the decorator, by run and by claim alike: it was interrupted, so its crash policy decides."""
    async_registry = AsyncRegistry.of(registry)
    limits: dict[str, Any] = {"on_crash": on_crash, "timeout": 0.01}

    @async_registry.idempotent("decorated", **limits)
    async def decorated() -> None:
        await for_ever()

    async def claimed() -> None:
        async with async_registry.claim("claimed", **limits):
            await for_ever()

    async def main() -> None:
        for run in (decorated, lambda: async_registry.run("run", for_ever, **limits), claimed):
            with pytest.raises(TaskTimeoutError, match=r"longer than 0\.01 s") as caught:
                await run()
            assert caught.value.retryable is (on_crash == "rerun")

    loop(main)
    for task_id in ("decorated", "run", "claimed"):
        got, error = status_of(registry, task_id)
        assert (got, "TaskTimeoutError" in error) == (status, True)


def test_a_time_out_of_the_last_attempt_is_not_retryable(registry: Registry, loop: Loop) -> None:
    """Its row has failed by then: nobody's call runs it again."""
    async_registry = AsyncRegistry.of(registry)
    told: list[tuple[bool, Status]] = []

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(TaskTimeoutError) as caught:
                await async_registry.run("t", for_ever, on_crash="rerun", timeout=0.01, max_attempts=2)
            told.append((caught.value.retryable, status_of(registry, "t")[0]))

    loop(main)
    assert told == [(True, Status.PENDING), (False, Status.FAILED)]


def test_a_coroutine_within_its_time_is_let_be(registry: Registry, loop: Loop) -> None:
    """Its result is stored; a time-out of its own, and a cancellation from elsewhere, stay what they are."""
    async_registry = AsyncRegistry.of(registry)

    async def fails() -> None:
        raise TimeoutError

    async def main() -> None:
        assert (await async_registry.run("t", lambda: 7, timeout=3_600)).result == 7
        with pytest.raises(TimeoutError):
            await async_registry.run("own", fails, timeout=3_600)
        async with async_registry.claim("block", timeout=3_600) as claim:
            claim.check()

    loop(main)
    assert status_of(registry, "own")[0] is Status.FAILED
    assert status_of(registry, "block")[0] is Status.SUCCEEDED


def test_a_cancellation_from_elsewhere_stays_one(registry: Registry) -> None:
    """It goes on its way, and counts as a crash."""

    async def main() -> None:
        begun = asyncio.Event()

        async def job() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(AsyncRegistry.of(registry).run("t", job, timeout=3_600))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert status_of(registry, "t") == (Status.UNKNOWN, "asyncio.exceptions.CancelledError")


def test_attempts_that_all_take_too_long_are_a_dead_letter(registry: Registry, loop: Loop) -> None:
    """Under rerun each counts; behind the last the task is failed for good, until retry allows one more."""
    options: dict[str, Any] = {"on_crash": "rerun", "timeout": 0.01, "max_attempts": 2}

    async def main() -> None:
        async_registry = AsyncRegistry.of(registry)
        for _ in range(2):
            with pytest.raises(TaskTimeoutError):
                await async_registry.run("t", for_ever, name="j", **options)
        with pytest.raises(TaskFailedError):
            await async_registry.run("t", for_ever, name="j", **options)

    loop(main)
    assert [task.task_id for task in registry.tasks(dead=True)] == ["t"]
    registry.retry("t")
    assert registry.run("t", lambda: 1, name="j", **options).result == 1


# --- threads ----------------------------------------------------------------------------------------------------


def test_a_thread_that_takes_too_long_is_overdue(open_registry: Callable[..., Registry]) -> None:
    """It cannot be ended: its row stays running, and says so, and its result counts when it comes."""
    clock = ManualClock()
    registry, other = open_registry(clock=clock), open_registry(clock=clock)

    def job() -> int:
        for passed, overdue_ms in ((60, 0), (5, 5_000)):
            clock.advance(passed)
            row = other.get("t")
            assert row is not None
            owner = other.owner(row)
            assert owner is not None
            assert (row.status, owner.overdue_ms, owner.is_overdue) == (Status.RUNNING, overdue_ms, overdue_ms > 0)
        return 7

    assert registry.run("t", job, timeout=60).result == 7
    assert status_of(registry, "t")[0] is Status.SUCCEEDED


def test_a_thread_that_asks_is_told(open_registry: Callable[..., Registry]) -> None:
    """`check` raises once the time is over; a job that stops by it was interrupted."""
    clock = ManualClock()
    registry = open_registry(clock=clock)

    def job() -> None:
        current_claim().check()
        clock.advance(60.001)
        current_claim().check()

    with pytest.raises(TaskTimeoutError):
        registry.run("t", job, timeout=60)
    assert status_of(registry, "t")[0] is Status.UNKNOWN


# --- commands ---------------------------------------------------------------------------------------------------


ENDS_WHEN_ASKED = "trap 'echo asked; kill $!; exit 0' TERM; tail -f /dev/null & echo begun; wait"
GOES_ON = "trap '' TERM; echo begun; exec tail -f /dev/null"


class Running:
    """A command under a registry whose time passes when the test says so."""

    def __init__(self, path: Path, script: str, **options: Any) -> None:
        self.clock = ManualClock()
        self.registry = Registry(path, durability="normal", clock=self.clock)
        self._out, to_us = os.pipe()
        self._ends: queue.SimpleQueue[CommandEnd] = queue.SimpleQueue()

        def run() -> None:
            self._ends.put(run_command(self.registry, "t", [SH, "-c", script], stdout=to_us, **options))
            os.close(to_us)

        threading.Thread(target=run).start()

    def said(self) -> bytes:
        return os.read(self._out, 100)

    def end(self) -> CommandEnd:
        end = self._ends.get(timeout=PATIENCE_S)
        self.registry.close()
        os.close(self._out)
        return end


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at soon behind a test that has set it."""
    monkeypatch.setattr(stopping, "LOOK_S", 0.001)


def test_a_command_is_asked_to_end_when_its_time_is_over(looking_often: None, path: Path, registry: Registry) -> None:
    """By SIGTERM: exit code 124, and its crash policy decides, whatever it exits with."""
    command = Running(path, ENDS_WHEN_ASKED, timeout=60)
    assert command.said() == b"begun\n"
    command.clock.advance(60.001)
    assert command.said() == b"asked\n"
    end = command.end()
    assert (end.exit_code, end.status, end.replayed) == (124, Status.UNKNOWN, False)
    assert status_of(registry, "t") == (Status.UNKNOWN, "task 't' ran longer than 60 s: the command was ended")


def test_a_stopped_command_hears_that_its_time_is_over(registry: Registry) -> None:
    """It is woken, or it could not."""
    end = run_command(registry, "t", [SH, "-c", "kill -STOP $$"], timeout=0.01, on_crash="rerun")
    assert (end.exit_code, end.status) == (124, Status.PENDING)


def test_a_command_that_does_not_end_is_killed(
    looking_often: None, path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has heard the question and goes on: SIGKILL. With its attempts used up it is a dead letter, and replayed."""
    monkeypatch.setattr(stopping, "KILL_AFTER_S", 0.01)
    options: dict[str, Any] = {"timeout": 60, "on_crash": "rerun", "max_attempts": 1}
    command = Running(path, GOES_ON, **options)
    assert command.said() == b"begun\n"
    command.clock.advance(60.001)
    end = command.end()
    assert (end.exit_code, end.status) == (124, Status.FAILED)
    assert [task.task_id for task in registry.tasks(dead=True)] == ["t"]
    end = run_command(registry, "t", [SH, "-c", GOES_ON], shows_replay=False, **options)
    assert (end.exit_code, end.replayed) == (124, True)


def test_a_command_whose_lease_is_over_is_ended(looking_often: None, path: Path) -> None:
    """Nobody has taken its task: exit code 75, and its crash policy decides."""
    command = Running(path, ENDS_WHEN_ASKED, lease=60, on_crash="rerun")
    assert command.said() == b"begun\n"
    command.clock.advance(60.001)
    assert command.said() == b"asked\n"
    end = command.end()
    assert (end.exit_code, end.status) == (75, Status.PENDING)


class BlockedSink:
    """A reader that does not read, until it is let to."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.reads = threading.Event()

    def write(self, _stream: int, data: bytes) -> bool:
        self.said.put(data)
        return self.reads.wait(PATIENCE_S)

    def close(self) -> None:
        """Nothing is kept."""


def test_a_reader_that_does_not_read_keeps_no_command_alive(
    looking_often: None, open_registry: Callable[..., Registry]
) -> None:
    """It is ended while its output cannot be passed on."""
    clock, sink, ends = ManualClock(), BlockedSink(), queue.SimpleQueue[CommandEnd]()
    registry, argv = open_registry(clock=clock), [SH, "-c", "echo $$; exec yes"]
    thread = threading.Thread(target=lambda: ends.put(run_command(registry, "t", argv, timeout=60, sink=sink)))
    thread.start()
    fd = os.pidfd_open(int(sink.said.get(timeout=PATIENCE_S).split()[0]))
    clock.advance(60.001)
    assert select.select([fd], [], [], PATIENCE_S)[0]
    os.close(fd)
    sink.reads.set()
    thread.join(PATIENCE_S)
    assert ends.get_nowait().exit_code == 124


def test_a_command_within_its_time_ends_as_it_does(registry: Registry) -> None:
    """Its exit code and its output are its own."""
    assert run_command(registry, "t", [SH, "-c", "exit 3"], timeout=3_600, lease=60).exit_code == 3
    assert run_command(registry, "u", ["true"], timeout=3_600, lease=60).status is Status.SUCCEEDED


def test_a_taken_over_command_is_ended_and_changes_nothing(path: Path) -> None:
    """Wrapper and command are stopped past the lease: the taker has the task, and the late ones are ended."""
    source = """
        from idemreg import Registry, ClaimLostError
        from idemreg.command import run_command
        def pause_when_told():
            wait()
            pause()
        threading.Thread(target=pause_when_told).start()
        script = "trap 'echo asked; kill $!; exit 0' TERM; tail -f /dev/null & echo $$; wait"
        try: run_command(Registry(sys.argv[1]), "t", ["/bin/sh", "-c", script], name="j", counts_argv=False, lease=1,
                         on_crash="rerun")
        except ClaimLostError as error: say("lost", error.exit_code)
    """
    with Script(PAUSE + textwrap.dedent(source), path) as wrapper, Registry(path) as registry:
        child = int(wrapper.line())
        wrapper.go()
        has_stopped(wrapper)
        os.kill(child, signal.SIGSTOP)
        outcome = registry.run("t", lambda: "the taker's", name="j", on_crash="rerun", lease=60, wait=PATIENCE_S)
        for pid in (child, wrapper.process.pid):
            os.kill(pid, signal.SIGCONT)
        wrapper.expect("asked")
        wrapper.expect("lost 75")
        assert wrapper.end() == 0
        assert registry.run("t", str, name="j").result == outcome.result == "the taker's"
