"""Interrupted at any step on the thread of an event loop, or left to the garbage collector: no task stays running."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import (
    AsyncRegistry,
    Registry,
    Status,
    acquiring,
    async_claim,
    attempt,
    base_claim,
    ends,
    lane,
    offload,
    walk,
)
from idemreg.errors import TaskDoneError
from idemreg.later import Later
from tests.support.interrupts import each_interrupt
from tests.support.processes import PATIENCE_S, Script
from tests.support.settled import left_is_done
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    Call = Callable[[AsyncRegistry, str], Coroutine[Any, Any, None]]

ROOMS = (walk, attempt, acquiring, offload, lane, ends, base_claim, async_claim)

# Of so many steps one is interrupted, each kind of call from another on: all of them take half a minute.
STRIDE = 3


@pytest.fixture
def areg(path: Path) -> Iterator[AsyncRegistry]:
    registry = AsyncRegistry(path, durability="normal")
    yield registry
    left_is_done(registry.registry.offload)
    registry.registry.close()


async def job() -> int:
    return 1


async def failing() -> None:
    raise LookupError


async def run(areg: AsyncRegistry, task_id: str) -> None:
    await areg.run(task_id, job, on_crash="rerun", wait=PATIENCE_S)


async def fail(areg: AsyncRegistry, task_id: str) -> None:
    with contextlib.suppress(LookupError):
        await areg.run(task_id, failing, on_crash="rerun", wait=PATIENCE_S)


async def claim(areg: AsyncRegistry, task_id: str) -> None:
    with contextlib.suppress(TaskDoneError):
        async with areg.claim(task_id, on_crash="rerun", wait=PATIENCE_S) as claim:
            claim.result = 1


def under_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it. Whatever has interrupted asyncio's own code, that may have lost the very step that would wake it."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(coroutine)
    finally:
        coroutine.close()  # as the garbage collector would
        loop.close()


# A claim that is dropped says so, and so does a coroutine of an `async with` that was made and not awaited. One that is
# interrupted while it is dropped is heard by nobody.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("interrupted", "first"), [(run, 1), (fail, 2), (claim, 3)])
def test_an_interrupted_walk_leaves_no_task_running(areg: AsyncRegistry, interrupted: Call, first: int) -> None:
    """Wherever the loop's thread is interrupted, from the claim to the end: it is stored, or the next call runs it."""
    under_loop(interrupted(areg, "warm"))
    for number, interrupter in enumerate(each_interrupt(*ROOMS, first=first, stride=STRIDE)):
        task_id = f"task:{number}"
        interrupter.carry_out(under_loop, interrupted(areg, task_id))
        gc.collect()  # asyncio keeps an interrupt in a circle: task, error, traceback, frame of `run_until_complete`
        under_loop(interrupted(areg, task_id))
        task = areg.registry.get(task_id)
        assert task is not None
        assert task.status is (Status.FAILED if interrupted is fail else Status.SUCCEEDED)


# --- dropped --------------------------------------------------------------------------------------------------------


def test_a_dropped_claim_is_found_while_its_thread_submits(path: Path) -> None:
    """A collection inside of an executor's `submit`, whose locks are taken: nobody hangs, and the task is settled."""
    with Script(
        """
        import asyncio, gc, sys, warnings
        from concurrent.futures import Future, ThreadPoolExecutor
        from idemreg import AsyncRegistry
        warnings.simplefilter("ignore")
        registry = AsyncRegistry(sys.argv[1], durability="normal")

        def collect(frame, event, _argument):  # as an allocation in there may
            if event == "call" and frame.f_code is Future.__init__.__code__:
                if frame.f_back.f_code is ThreadPoolExecutor.submit.__code__:
                    sys.setprofile(None)
                    gc.collect()

        async def main():
            await registry.run("warm", int)
            gc.disable()
            circle = [await registry.claim("t")]
            circle.append(circle)
            del circle
            sys.setprofile(collect)
            await registry.get("warm")
            say("through")
            wait()

        asyncio.run(main())
        """,
        path,
    ) as script:
        script.expect("through")
        with Registry(path) as other:  # which looks only, while nobody calls the one that had the claim
            until(lambda: other.count().get(Status.UNKNOWN) == 1)
        script.go()
        assert script.end() == 0


def test_what_was_left_is_done_in_order_whatever_one_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was left before there was a thread; and when it stops, which the end of the process waits for."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    ours, done = Later(), []
    ours.do(lambda: done.append(1))
    ours.do(lambda: 1 / 0)
    ours.ready()
    ours.do(lambda: done.append(2))
    ours.stop()
    assert (done, told) == ([1, 2], [ZeroDivisionError])


class Meeting:
    """A lock at which several threads are before one of them has it."""

    def __init__(self, threads: int) -> None:
        self._barrier, self._lock = threading.Barrier(threads), threading.Lock()

    def __enter__(self) -> None:
        self._barrier.wait(PATIENCE_S)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_threads_that_need_it_together_have_one_thread_for_what_was_left() -> None:
    """All of them found none: who comes second finds that of the first. One that nobody needed has nothing to stop."""
    ours, done = Later(), threading.Event()
    ours.stop()
    there = set(threading.enumerate())
    ours._starting = cast("Any", Meeting(2))
    others = [threading.Thread(target=ours.ready) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(PATIENCE_S)
    assert len(set(threading.enumerate()) - there) == 1
    ours.do(done.set)
    ours.stop()
    assert done.is_set()
    assert set(threading.enumerate()) <= there  # of a test before, one may have ended meanwhile


def test_a_walk_hears_of_an_error_that_came_between_two_of_its_steps() -> None:
    """What it would do about it first is not carried out, and taken for interrupted as well; then it is over."""
    heard: list[object] = []

    def steps() -> walk.Walk[None]:
        try:
            yield int, (), None
        except KeyboardInterrupt as error:
            heard.append(error)
            try:
                yield pytest.fail, ("it is not carried out",), None
            except KeyboardInterrupt as again:
                heard.append(again)
                raise

    one, error = steps(), KeyboardInterrupt()
    next(one)
    walk._end(one, error)
    assert heard == [error, error]
    assert one.gi_frame is None  # type: ignore[attr-defined]
