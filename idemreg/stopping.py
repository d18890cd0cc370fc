"""Ending a command whose claim is lost, or whose time is over: it is asked to end, and a while later it is killed.

From a thread of its own, which waits for nothing but that moment: whoever passes the command's output on may be kept
waiting by a reader that does not read, and must not keep the command alive by it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Final, Protocol, Self

from idemreg.errors import ClaimLostError, TaskTimeoutError

if TYPE_CHECKING:
    from idemreg.child import Child
    from idemreg.errors import IdemregError

__all__ = ["KILL_AFTER_S", "Stopping"]

KILL_AFTER_S: Final = 10.0  # between the question and the kill, as service managers leave some time to clear up

# Between two looks at the clock. Waiting does not count the time that the machine sleeps, which deadlines do.
LOOK_S: Final = 5.0
CLOCK_PART_S: Final = 0.001  # deadlines are in whole milliseconds: one more, and it is over


class Limited(Protocol):
    """A claim with limits, as far as its end goes."""

    def check(self) -> None:
        """Raise `ClaimLostError` or `TaskTimeoutError` where the command should end."""

    def changes_in_s(self) -> float:
        """Seconds until `check` may answer otherwise."""


class Stopping:
    """While it is entered, the command is ended as soon as its claim's `check` raises; ``why`` it was, if it was."""

    def __init__(self, claim: Limited, child: Child) -> None:
        self.why: IdemregError | None = None
        self._claim = claim
        self._child = child
        self._has_ended = threading.Event()
        self._fd: int | None = None
        self._thread = threading.Thread(target=self._watch, name="idemreg-stopping", daemon=True)

    def __enter__(self) -> Self:
        # By a descriptor, since the number of a process that was waited for may be another's by now. It has not been.
        self._fd = _descriptor(self._child.pid)
        try:
            self._thread.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def _watch(self) -> None:
        while self._may_run():
            if self._has_ended.wait(min(self._claim.changes_in_s() + CLOCK_PART_S, LOOK_S)):
                return
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # one that is stopped could not hear of it
        if not self._has_ended.wait(KILL_AFTER_S):
            self._send(signal.SIGKILL)

    def _may_run(self) -> bool:
        try:
            self._claim.check()
        except (ClaimLostError, TaskTimeoutError) as why:
            if not self._child.has_ended():
                self.why = why
            return False
        return True

    def _send(self, number: signal.Signals) -> None:
        if self._fd is None:
            self._child.send_signal(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)


def _descriptor(pid: int) -> int | None:
    """A descriptor of the process; None where the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
