"""Steps, and the driver that carries them out.

A walk is a generator that yields what is to be done next and is sent the answer; it touches nothing itself. So the
protocol is written once, and a driver of ten lines decides how its steps are done: `drive` calls them; one that awaits
them serves asynchronous callers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

__all__ = ["Step", "Walk", "drive"]

R = TypeVar("R")


class Step(NamedTuple):
    """Something to do. ``is_user_code``: the job or a hook of the user, and no call of the store."""

    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    is_user_code: bool = False


Walk: TypeAlias = Generator[Step, Any, R]


def drive(walk: Walk[R]) -> R:
    """Carry the steps of a walk out by calling them, and return what the walk returns."""
    try:
        step = next(walk)
        while True:
            try:
                value = step.call(*step.args)
            except BaseException as error:  # noqa: BLE001 - the walk decides about every one of them
                step = walk.throw(error)
            else:
                step = walk.send(value)
    except StopIteration as stop:
        return cast("R", stop.value)
