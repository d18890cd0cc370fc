"""Turns: bytes of the lock file that one process at a time holds, for a moment.

Whoever wants a turn asks again and again, in the end with naps between that grow. Nobody queues in the kernel: a wait
there has no deadline, does not hear Ctrl-C, and behind a stopped process it has no end. It is fair all the same: of 32
processes over 12 seconds each had its turn 2,584 to 2,634 times, where SQLite's own back-off gave 1 to 4,831.

The kernel drops a turn when its holder dies. The descriptor is a turn's own, never one that a command inherits: a
command that outlives its wrapper would hold the whole registry. Within the process locks of Python stand in front of
a turn, since an open file does not see its own locks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from idemreg import oslock
from idemreg.lockfile import CHECKPOINT_TURN, SYNC_TURN, WRITE_TURN

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["Turn", "Turns"]

# A turn to write lasts about as long as a nap costs: so first it is tried again at once, some times, then after letting
# others have the processor. With 8 processes on 2 cores this alone doubled the jobs a second.
TRIES: Final = 10
YIELDS: Final = 10

# Seconds between two tries after that: the first about as long as a commit, the longest as some syncs.
FIRST_NAP_S: Final = 0.00002
LONGEST_NAP_S: Final = 0.001
NAP_GROWTH: Final = 1.6


class Turns:
    """The turns of one registry, for one process, on a descriptor of their own."""

    def __init__(self, path: str, clock: Clock) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.write = Turn(self.fd, WRITE_TURN, clock)
            self.sync = Turn(self.fd, SYNC_TURN, clock)
            self.checkpoint = Turn(self.fd, CHECKPOINT_TURN, clock)
            self.checkpointing: dict[int, object] = {}  # what stands in front of that one; see `sqlite/wal.py`
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the descriptor, which drops what this process holds; in a forked child it drops nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.write.fd = self.sync.fd = self.checkpoint.fd = -1  # not in a loop, for which there may be no memory
            os.close(fd)


class Turn:
    """One byte. Threads of this process must not meet here: see the module."""

    def __init__(self, fd: int, byte: int, clock: Clock) -> None:
        self.fd = fd
        self.lock, self.unlock = oslock.orders(byte)
        self._clock = clock

    def try_take(self) -> bool:
        """Take the turn if it is free."""
        return oslock.obey(self.fd, self.lock)

    def take(self, until: float) -> bool:
        """Take the turn; False where it has not become free ``until`` then, by the monotonic clock."""
        for number in range(TRIES + YIELDS):
            if number >= TRIES:
                os.sched_yield()
            if oslock.obey(self.fd, self.lock):
                return True
        nap = FIRST_NAP_S
        while (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(nap, left))
            if oslock.obey(self.fd, self.lock):
                return True
            nap = min(nap * NAP_GROWTH, LONGEST_NAP_S)
        return False

    def drop(self) -> None:
        """Let the next have it. Does nothing in a forked child, to which the turn of its parent is not given."""
        if self.fd >= 0:
            oslock.obey(self.fd, self.unlock)
