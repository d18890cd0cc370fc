"""Steps, and the drivers that carry them out.

A walk is a generator that yields what is to be done next and is sent the answer; it touches nothing itself. So the
protocol is written once, and a driver decides how its steps are done: `drive` calls them, `adrive` awaits them.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

__all__ = ["PAUSE", "Host", "NotStartedError", "Step", "Walk", "adrive", "drive", "refuse_loop_in_loop", "under_loop"]

R = TypeVar("R")

# Something to do: what to call, and with what. Keyword arguments mark the user's code, a job or a hook; None in their
# place marks a call of the store, and PAUSE a sleep of so many seconds. A bare tuple, since two are made for every job.
Step: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any] | None]

Walk: TypeAlias = Generator[Step, Any, R]

PAUSE: Final[Mapping[str, Any]] = {}

# What a walk still wants to do about an error that ends it: an end to be stored, and what is to be told if it cannot.
STEPS_BEHIND_ERROR: Final = 8


class NotStartedError(BaseException):
    """Thrown into a walk in place of a step of user code: the caller was cancelled before it began. See its cause.

    Where that is a GeneratorExit, the coroutine was closed, and the walk can have no more steps done.
    """


def drive(walk: Walk[R]) -> R:
    """Carry the steps of a walk out by calling them, and return what the walk returns.

    A job that returns a coroutine fails by it: nobody here would ever run it. Of errors between two steps see `adrive`.
    """
    step: Step | None = None
    generator: Any = walk
    try:
        while True:
            try:
                if step is None:
                    step = next(walk)
                call, args, kwargs = step
                if kwargs is None:
                    value = call(*args)
                elif type(value := call(*args, **kwargs)) is CoroutineType:
                    _refuse(value, call)
                step = walk.send(value)
            except BaseException as error:
                if generator.gi_frame is None:  # `_is_over`, without the call: each job ends so
                    raise
                step = walk.throw(error)
    except StopIteration as stop:
        result: R = stop.value
        return result
    except NotStartedError as stop:
        raise cast("BaseException", stop.__cause__) from None
    except BaseException as error:
        _end(walk, error)
        raise


def _is_over(walk: Any) -> bool:  # noqa: ANN401 - a generator, of which its type tells less
    """Whether it has returned or raised; else an error comes from its step, or from between two of them."""
    return walk.gi_frame is None


def _end(walk: Walk[Any], error: BaseException) -> None:
    """Let the walk hear of an error that came between two steps; what it would do about it first is not carried out.

    It takes that for interrupted as well. A walk that is over hears nothing, nor one whose coroutine is closed.
    """
    try:
        with suppress(BaseException):  # the caller hears of the first already
            for _ in range(STEPS_BEHIND_ERROR):
                if not isinstance(error, GeneratorExit) and not _is_over(walk):
                    walk.throw(error)
        walk.close()
    finally:
        del error  # whose traceback has this frame


def _refuse(coroutine: Coroutine[Any, Any, Any], job: object) -> None:
    coroutine.close()
    msg = f"{getattr(job, '__qualname__', job)} returned a coroutine, and nobody here awaits it: use AsyncRegistry"
    raise TypeError(msg)


class Host(Protocol):
    """How one caller of an event loop has things done. Made anew for every walk."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller was cancelled in a `call` that goes on; any thread may ask."""

    async def call(self, call: Callable[..., Any], args: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever it returns
        """Call off the event loop's thread, and wait for the end of it, also where the caller is cancelled."""

    async def sleep(self, pause: float) -> None:
        """Let ``pause`` seconds pass; ends early, by an error, where the caller is cancelled."""

    async def checkpoint(self) -> None:
        """Raise if the caller was cancelled."""

    def leave(self) -> None:
        """The walk is over: raise what a `call` held back."""


async def adrive(walk: Walk[R], host: Host) -> R:
    """Carry the steps out from an event loop. A claim or a finish once begun is done whole, whatever is cancelled.

    A coroutine that is closed in the middle of its job awaits no more: its claim is dropped. So where a walk is closed
    as a step is awaited, that was handed over, and is done.

    Here and in `drive` an error may also come between two steps (Ctrl-C, no memory). The walk hears of it as of an
    error of the step, since it may have been about to store an end. Left as it was, the traceback of its job's error
    would keep it alive, and with it a claim that nobody ends.
    """
    step: Step | None = None
    try:
        while True:
            try:
                if step is None:
                    step = next(walk)
                value = await _do(step, host)
                step = walk.send(value)
            except BaseException as error:
                if isinstance(error, GeneratorExit) or _is_over(walk):
                    raise
                step = walk.throw(error)
    except StopIteration as stop:
        host.leave()
        return cast("R", stop.value)
    except NotStartedError as stop:
        raise cast("BaseException", stop.__cause__) from None
    except BaseException as error:
        _end(walk, error)
        if isinstance(error, Exception):
            host.leave()
        raise


def under_loop(walk: Walk[R], host: Callable[[], Host]) -> R:
    """Carry out what is written for a coroutine's caller from outside of any event loop: under one of its own."""
    import asyncio  # noqa: PLC0415 - for coroutines only

    async def main() -> R:
        return await adrive(walk, host())

    return asyncio.run(main())


def refuse_loop_in_loop(name: str) -> None:
    """RuntimeError where this coroutine function would need an event loop of its own inside of another."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public one raises for none
        msg = f"{name} is a coroutine function, and an event loop is running: use AsyncRegistry"
        raise RuntimeError(msg)


async def _do(step: Step, host: Host) -> Any:  # noqa: ANN401 - whatever the step gives
    call, args, kwargs = step
    if kwargs is None:
        return await host.call(call, args)
    if kwargs is PAUSE:
        return await host.sleep(*args)
    try:
        await host.checkpoint()
    except BaseException as cancelled:
        raise NotStartedError from cancelled
    value = call(*args, **kwargs)
    return await value if isinstance(value, Awaitable) else value
