"""Fork: a gate, and connections left behind.

A child must not use the parent's connections: it could commit the parent's open transaction. It opens its own at its
next call, and before that it closes those that were idle. SQLite keeps one note for all connections of a process to one
file, of the locks that they hold; the child inherits the note, and none of the locks. Were one connection left, its own
would believe in them: the parent, closing the file, would find nobody else there, and delete the -wal under the child,
with all that the child writes. Closed they are without a checkpoint, which touches nothing but the child's own memory.

One in the middle of something is left open for ever (see `leak`), since a rollback writes to the shared -shm. So the
fork waits, for a moment, until no other thread is inside SQLite; the child would also inherit SQLite's mutexes locked.
Nor may another thread be in an import, and much is imported late here, by the first call that needs it: the lock of the
module would stay locked in the child, which would wait for it for ever.

A child that is forked inside `claim.transaction()` itself cannot have locks of its own, and a read without them may see
what is being overwritten: it is refused the file (see `is_left`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from idemreg.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["FORK_NAP_S", "forgets", "fork", "inside", "is_left", "is_waited_for", "leak", "leave", "no_fork_meanwhile"]

# How long a fork waits for other threads to leave SQLite: for a job in the middle of its own transaction, which may be
# there for hours; and for code of ours, which may be in a call of SQLite right now, and has its mutexes.
FORK_PATIENCE_S: Final = 1.0
FORK_PATIENCE_WITH_OURS_S: Final = 30.0
FORK_NAP_S: Final = 0.0002
MOST_EXCEPTIONS: Final = 1_000  # that are met while it waits: each would have it fork too early


_PACKAGE: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
_IMPORTS: Final = "<frozen importlib._bootstrap>"


class Forgetful(Protocol):
    """Something that is the parent's in a forked child."""

    def forget(self) -> None:
        """In a forked child: leave everything to the parent."""


class Fork:
    """The thread that is about to fork; 0 = none. Of several, one of them."""

    def __init__(self) -> None:
        self.thread = 0
        self.threads: dict[int, bool] = {}  # all of them, and whether each still waits for others


fork = Fork()

# What is inside SQLite now (a connection, or a ticket while one is being opened), and in which thread.
inside: dict[object, int] = {}

# Files that this process must not open: device and inode.
_left: set[tuple[int, int]] = set()

_forgetful: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def forgets(one: Forgetful) -> None:
    """From now on a forked child tells it to `forget`."""
    _forgetful.add(one)


@contextlib.contextmanager
def no_fork_meanwhile(clock: Clock) -> Iterator[None]:
    """While a file is opened or made: a fork of another thread waits for the end of it, and this for the fork's."""
    ticket, me = object(), threading.get_ident()
    try:
        while True:
            inside[ticket] = me
            if not fork.thread or fork.thread == me or is_waited_for(me):
                break
            del inside[ticket]
            clock.sleep(FORK_NAP_S)
        yield
    finally:
        inside.pop(ticket, None)


def is_waited_for(me: int) -> bool:
    """Whether the thread, which is about to be inside, was so already: a fork waits for it, and so it for no fork."""
    return all(fork.threads.copy().values()) and list(inside.values()).count(me) > 1


def _before_fork() -> None:
    """Python ignores an exception here, tells of it, and forks: so what a signal's handler raises ends no waiting.

    Unless it comes before the first line of this.
    """
    me, began, raised = threading.get_ident(), None, None
    for _ in range(MOST_EXCEPTIONS):
        try:
            if began is None:
                fork.threads[me] = True
                fork.thread = me
                began = Clock().monotonic()
            _wait_for_others(me, began)
            break
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
            raised = error
    fork.threads[me] = False
    if raised is not None:
        raise raised


def _wait_for_others(me: int, began: float) -> None:
    clock = Clock()
    while _is_anybody_inside(me) or _is_anybody_importing(me):
        waited_s = clock.monotonic() - began
        if waited_s >= FORK_PATIENCE_WITH_OURS_S or (waited_s >= FORK_PATIENCE_S and not _is_any_of_ours(me)):
            return
        clock.sleep(FORK_NAP_S)


def _is_anybody_inside(me: int) -> bool:
    return any(thread != me for thread in list(inside.values()))


def _is_any_of_ours(me: int) -> bool:
    """Whether one that is inside is in code of ours, and not in a job's: a thread in C is so from its last frame."""
    frames = sys._current_frames()  # noqa: SLF001
    at = [frames[thread] for thread in list(inside.values()) if thread != me and thread in frames]
    return any(frame.f_code.co_filename.startswith(_PACKAGE) for frame in at)


def _is_anybody_importing(me: int) -> bool:
    return any(_is_importing(frame) for thread, frame in sys._current_frames().items() if thread != me)  # noqa: SLF001


def _is_importing(frame: FrameType | None) -> bool:
    """Whether its thread is in an import that code of idemreg has asked for. Those of others are not waited for.

    (Some programs live as long as an import: their own.)
    """
    is_import = False
    while frame is not None:
        file = frame.f_code.co_filename
        if is_import and file.startswith(_PACKAGE):
            return True
        is_import = file == _IMPORTS
        frame = frame.f_back
    return False


def _after_fork_in_parent() -> None:
    fork.threads.pop(threading.get_ident(), None)
    fork.thread = next(iter(fork.threads.copy()), 0)


def _after_fork_in_child() -> None:
    fork.threads.clear()
    fork.thread = 0
    problem: Exception | None = None
    for one in list(_forgetful):
        try:
            one.forget()
        except Exception as error:  # noqa: BLE001 - the others are to be forgotten all the same
            problem = error
    for connection in inside:
        leak(connection)
    inside.clear()
    if problem is not None:
        raise problem


def leave(path: str) -> None:
    """In a child that was forked in the middle of something: its connection to the file is left open."""
    with contextlib.suppress(OSError):  # deleted: nobody can open it any more
        _left.add(_identity(path))


def is_left(path: str) -> bool:
    """Whether this process cannot have locks of its own on the file, for it was forked in the middle of something."""
    if not _left:
        return False
    try:
        return _identity(path) in _left
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int]:
    there = os.stat(path)
    return there.st_dev, there.st_ino


def leak(connection: object) -> None:
    """Make the object immortal, so that not even the interpreter's exit closes the parent's connection."""
    import ctypes  # noqa: PLC0415 - 1.4 ms that only forked children pay

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
