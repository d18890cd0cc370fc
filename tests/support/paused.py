"""A process that stops itself, and holds nothing then that others wait for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.support.processes import Script

__all__ = ["PAUSE", "has_stopped"]

# In the program of a `Script`, ``pause()`` stops the process until SIGCONT comes. One that is stopped from outside may
# be renewing its lease just then: it keeps the turn to write, and whoever takes its task is told that it is busy. The
# signal is this thread's own: it stops here, and not a moment later, as where another thread gets it.
PAUSE: Final = """
import threading
from idemreg.heartbeat import heart
def pause():
    with heart._stepping: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
"""


def has_stopped(script: Script) -> None:
    """Wait until all of it stands still."""
    os.waitid(os.P_PID, script.process.pid, os.WSTOPPED)
