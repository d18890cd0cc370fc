"""Steps, and the driver that carries them out.

A walk is a generator that yields what is to be done next and is sent the answer; it touches nothing itself. So the
protocol is written once, and a driver of ten lines decides how its steps are done: `drive` calls them; one that awaits
them serves asynchronous callers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

__all__ = ["Step", "Walk", "drive"]

R = TypeVar("R")


# Something to do: what to call, and with what. Keyword arguments mark the user's code, a job or a hook; None in their
# place marks a call of the store. A bare tuple, since two of them are made for every job.
Step: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any] | None]

Walk: TypeAlias = Generator[Step, Any, R]


def drive(walk: Walk[R]) -> R:
    """Carry the steps of a walk out by calling them, and return what the walk returns."""
    try:
        step = next(walk)
        while True:
            try:
                call, args, kwargs = step
                value = call(*args) if kwargs is None else call(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the walk decides about every one of them
                step = walk.throw(error)
            else:
                step = walk.send(value)
    except StopIteration as stop:
        return cast("R", stop.value)
