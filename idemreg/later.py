"""What a finaliser leaves to another thread.

Garbage is collected between any two steps of any thread, also while it holds a lock: of ours, of an executor, of the
program. So a finaliser waits for nothing, and submits to no executor, which takes two locks that are not re-entrant. It
leaves its call here: `queue.SimpleQueue.put` is the one way to another thread that may come in the middle of itself.

One thread for the process carries the calls out, in order and at once. It holds no registry while it waits.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from idemreg.untold import Untold

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Later", "later"]

STOP_S: Final = 10.0  # that the end of the process waits for what was left, on a slow disk


class Later:
    """The calls that were left, and their thread. In a forked child those of its parent are not carried out."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._starting = threading.Lock()  # over which thread is the thread
        self._thread: threading.Thread | None = None

    def ready(self) -> None:
        """See that there is a thread; no finaliser may call this. RuntimeError where the system gives none.

        Before anything is granted, so that whoever drops it finds somebody who puts it back.
        """
        if self._thread is None:
            self._start()

    def do(self, call: Callable[[], object]) -> None:
        """Have it called soon. Takes no lock, waits for nothing; safe in a finaliser, on any thread."""
        self._calls.put(call)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=_serve, args=(self._calls,), name="idemreg-later", daemon=True)
                thread.start()
                self._thread = thread
                _stop_at_exit()

    def stop(self) -> None:
        """Do what was left, and no more: a daemon thread must not be inside SQLite while modules are torn down."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(STOP_S)

    def forget(self) -> None:
        """In a forked child: the thread is the parent's, and so is what was left."""
        self._reset()


def _serve(calls: SimpleQueue[Callable[[], object] | None]) -> None:
    untold = Untold()
    while _carry_out(calls, untold):
        pass


def _carry_out(calls: SimpleQueue[Callable[[], object] | None], untold: Untold) -> bool:
    """The next call. A function of its own, whose end lets go of what was called: it may be the last of a registry."""
    call = calls.get()
    if call is None:
        return False
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - the thread must outlive it
        untold.tell(error)
    return True


later: Final = Later()


@functools.cache
def _stop_at_exit() -> None:
    """Once, behind the start of the first thread: what is registered last is called first, before files are closed."""
    atexit.register(later.stop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=later.forget)
