"""The start of a command, of which is known what was started wherever an error comes in between."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

from idemreg.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Start", "spawn"]

CHILDREN: Final = "/proc/thread-self/children"  # also those that have ended, until somebody waits for them


def spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    lock_fd: int | None,
    stdin: int | None,
    folder: str | None = None,
    start: Start | None = None,
) -> Child:
    """Start the command with that standard input (None: ours), two pipes, and its owner's lock; in that folder.

    Without a lock of its own it inherits what we did, so also the lock of the command that it is a part of. ``start``
    tells behind an error what was started.
    """
    return (start or Start()).begin(argv, environment, lock_fd, stdin, folder)


class Start:
    """One start of a command, made before the command: where that is interrupted, this tells what was started.

    An error may come at any step of `Popen` (of a signal's handler, or for lack of memory), also where the command runs
    already and nobody was given it. A task that is put back then, or left, would be that of a command that goes on.
    """

    def __init__(self) -> None:
        self.child: Child | None = None
        self.is_unclear = False  # nobody can know whether there is a command
        self._process: Final = subprocess.Popen.__new__(subprocess.Popen)
        self._others: frozenset[int] | None = None
        self._is_undecided = False

    def begin(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        lock_fd: int | None,
        stdin: int | None,
        folder: str | None,
    ) -> Child:
        """See `spawn`."""
        self._others = _children()
        self._is_undecided = True
        subprocess.Popen.__init__(  # the caller's command is the purpose
            self._process,
            list(argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=folder,
            close_fds=lock_fd is not None,
            pass_fds=() if lock_fd is None else (lock_fd,),
        )
        self.child = Child(self._process)
        return self.child

    def left(self, error: BaseException) -> Child | None:
        """Behind an error: the command that was started all the same, and may have ended since; None where none was."""
        if self.child is None and self._is_undecided:
            is_refusal = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is not None)
            if getattr(self._process, "pid", None) is None:
                self._look_for_it(is_refusal=is_refusal)
            elif is_refusal and _is_gone(self._process.pid):
                self._process.poll()  # somebody else has its status: it takes note of that
            elif self._process.returncode is None:
                self.child = Child(self._process)
            self._is_undecided = False
        return self.child

    def _look_for_it(self, *, is_refusal: bool) -> None:
        """The error came before `Popen` knew its number, so that only this thread's new children tell of it."""
        now = _children()
        if now is None or self._others is None:
            self.is_unclear = not is_refusal  # of `Popen` itself, which then has started nothing
            return
        new = now - self._others
        if len(new) == 1:
            (self._process.pid,) = new
            self.child = Child(self._process)
        else:  # where others wait for children, it may have come and gone
            self.is_unclear = bool(new) or not (is_refusal or signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)


def _children() -> frozenset[int] | None:
    """The children that this thread has started, and nobody has waited for; None where that cannot be told."""
    try:
        with open(CHILDREN, "rb") as file:
            return frozenset(map(int, file.read().split()))
    except (OSError, MemoryError):
        return None


def _is_gone(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return True
    return False
