"""Who reads the -wal now: the processes that keep a checkpoint from moving pages, or the -wal from starting anew.

SQLite marks a read transaction by a shared POSIX lock on one of five bytes of the -shm: 123 to 127, which is
120 + 3 + i (WALINDEX_LOCK_OFFSET and WAL_READ_LOCK in its wal.c). The kernel lists those locks with their process in
/proc/locks.
Nothing here opens the -shm: closing any descriptor of it would drop SQLite's own locks in this process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg.processes import LOCKS_PATH, age_s, command_of, locks_on

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["WalReader", "wal_readers"]

READ_MARK_BYTES: Final = range(123, 128)
OPEN_BYTE: Final = 128  # every process that has the -shm open holds it, this one as well
READERS_LIMIT: Final = 32  # named at once
LOOKS: Final = 3  # /proc/locks is told page by page: while others lock and unlock, a lock that stays can be left out


class WalReader(NamedTuple):
    """A process that was inside a read transaction when a checkpoint could not complete.

    ``process_s``: for how long the process has existed; None where that cannot be told. ``seen_s``: for how long the
    checkpointer has seen it there, at each of its looks; None where this was the first and only look.
    """

    pid: int
    command: str
    process_s: float | None
    seen_s: float | None = None

    def describe(self) -> str:
        """The reader in words."""
        me = ", which is this process" if self.pid == os.getpid() else ""
        who = f"process {self.pid} ({self.command or 'its command cannot be told'}){me}"
        ages = []
        if self.seen_s is not None:
            ages.append(f"seen reading for {self.seen_s:.0f} s")
        if self.process_s is not None:
            ages.append(f"started {self.process_s:.0f} s ago")
        return ", ".join([who, *ages])


def wal_readers(database: str, clock: Clock, *, locks_path: str = LOCKS_PATH) -> tuple[WalReader, ...] | None:
    """The processes that read now, as far as this one may see them; None where /proc does not tell."""
    marked: list[int] = []
    for _ in range(LOOKS):
        locks = locks_on(f"{database}-shm", own_byte=OPEN_BYTE, locks_path=locks_path)
        if locks is None:
            return None
        marked = sorted({lock.pid for lock in locks if any(map(lock.covers, READ_MARK_BYTES))})
        if marked:
            break
    return tuple(WalReader(pid, command_of(pid), age_s(pid, clock)) for pid in marked[:READERS_LIMIT])
