"""A wait that a signal ends, and descriptors that no interrupt leaves open.

A handler of the program may raise (Python's own for Ctrl-C does) behind any step of ours. So what is taken is noted by
the very call that takes it: between two calls, a descriptor that was opened would be lost, or Python's wakeup
descriptor, which an event loop beneath us needs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import selectors
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["exit_descriptor", "woken_by_signals"]

READ_BYTES: Final = 4_096

_PIPE: Final = os.O_CLOEXEC | os.O_NONBLOCK
_quiet: Final = functools.partial(signal.set_wakeup_fd, warn_on_full_buffer=False)


@contextlib.contextmanager
def exit_descriptor(pid: int) -> Iterator[int | None]:
    """A descriptor that becomes readable when the process ends; None where the kernel has none, or none is left."""
    opened: list[int] = []
    try:
        try:
            with contextlib.suppress(OSError, AttributeError):
                opened.extend(map(os.pidfd_open, [pid]))
            yield opened[0] if opened else None
        finally:
            _close(opened)
    finally:  # where a handler has raised in there, what is left of it
        _close(opened)


def _close(opened: list[int]) -> None:
    while opened:  # in one call as well: a number that was closed, and is still noted, may be another file's by then
        deque(map(os.close, map(opened.pop, [-1])), maxlen=0)


@contextlib.contextmanager
def woken_by_signals(selector: selectors.BaseSelector) -> Iterator[None]:
    """Let a signal end the selector's wait, in the main thread, where Python carries out its handlers.

    One that comes right before the wait would be handled only behind it, for the system call has not begun that it
    could interrupt: a command that is silent would never be told to end. What becomes readable has a `Woken` as its
    data.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    woken = Woken()
    try:
        try:
            woken.open(selector)
            yield
        finally:
            woken.close(selector)
    finally:  # as above
        woken.close(selector)


class Woken:
    """What Python writes where a signal has come. An event loop that runs beneath is told of it as well."""

    def __init__(self) -> None:
        self._before: list[int] = []  # the program's own descriptor, once ours is in its place
        self._pipe: list[int] = []  # our end, and Python's

    def open(self, selector: selectors.BaseSelector) -> None:
        """Nothing where no descriptor is left, nor for the command's end: so it is looked for, now and then."""
        try:
            self._pipe.extend(itertools.chain.from_iterable(map(os.pipe2, [_PIPE])))
        except OSError:
            return
        ours, pythons = self._pipe
        selector.register(ours, selectors.EVENT_READ, self)
        self._before.extend(map(_quiet, [pythons]))

    def pass_on(self) -> bool:
        """Take it from the pipe, and give it to whom it would have gone."""
        with contextlib.suppress(OSError):  # there is none, or the other has no room
            numbers = os.read(self._pipe[0], READ_BYTES)
            if self._before and self._before[0] >= 0:
                os.write(self._before[0], numbers)
        return True

    def close(self, selector: selectors.BaseSelector) -> None:
        """As before. Called again it goes on where a handler has raised in its middle.

        In this order: Python must not write to a number that is another file's.
        """
        if not self._pipe:
            return
        if self._before:
            _set_wakeup(self._before[0])
        with contextlib.suppress(KeyError, ValueError):  # it is not there (any more)
            selector.unregister(self._pipe[0])
        if len(self._pipe) > 1:
            deque(map(os.close, map(self._pipe.pop, [-1])), maxlen=0)
        self.pass_on()
        _close(self._pipe)


def _set_wakeup(fd: int) -> None:
    try:
        signal.set_wakeup_fd(fd)
    except (OSError, ValueError):  # an event loop's, which was closed meanwhile
        signal.set_wakeup_fd(-1)
