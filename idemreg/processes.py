"""What /proc tells about other processes: who locks a file, with what command, since when.

For people only: nothing here decides whether an owner lives (see `idemreg.liveness`). Where /proc is absent or shows
less (a container sees only the processes of its own), every answer is None or empty, and callers say so.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from idemreg.clock import Clock

__all__ = ["FileLock", "age_s", "command_of", "locks_on"]

LOCKS_PATH: Final = "/proc/locks"

COMMAND_CHARACTERS: Final = 120  # of a command line
LOCKS_LIMIT: Final = 100_000  # lines of /proc/locks that are looked at
_START_TIME_FIELD: Final = 19  # of /proc/PID/stat, counted from the state behind the last parenthesis
_HEX: Final = 16


class FileLock(NamedTuple):
    """One lock of one file. ``pid`` is -1 for an open-file-description lock, which belongs to no process."""

    pid: int
    device: tuple[int, int]
    inode: int
    first: int
    last: int

    def covers(self, byte: int) -> bool:
        """Whether the byte is locked by it."""
        return self.first <= byte <= self.last


def locks_on(path: str, *, own_byte: int | None = None, locks_path: str = LOCKS_PATH) -> list[FileLock] | None:
    """The locks that are held on the file, as far as /proc/locks shows them; None where it cannot be read.

    ``own_byte``: one that this process itself holds by a POSIX lock, if it does. It tells under which device number
    the kernel lists the file: on btrfs and overlays that is another than `stat` gives. Where locks come and go during
    the look, on whatever file, the kernel may pass one over, or list it twice; here each is given once.
    """
    try:
        found = os.stat(path)
        with open(locks_path, encoding="ascii", errors="replace") as file:
            locks = [lock for _, line in zip(range(LOCKS_LIMIT), file, strict=False) if (lock := _lock(line))]
    except OSError:
        return None
    mine = [lock for lock in locks if lock.inode == found.st_ino]
    devices = {(os.major(found.st_dev), os.minor(found.st_dev))}
    if own_byte is not None:
        me = os.getpid()
        devices |= {lock.device for lock in mine if lock.pid == me and lock.covers(own_byte)}
    return [lock for lock in dict.fromkeys(mine) if lock.device in devices]


def _lock(line: str) -> FileLock | None:
    """A line such as ``1: POSIX  ADVISORY  READ 12106 fe:00:2392617 124 124`` (proc_locks(5)); None for a waiter."""
    words = line.split()
    try:
        *_, pid, place, first, last = words
        major, minor, inode = place.split(":")
        end = 2**63 - 1 if last == "EOF" else int(last)
        lock = FileLock(int(pid), (int(major, _HEX), int(minor, _HEX)), int(inode), int(first), end)
    except ValueError:
        return None
    return None if words[1] == "->" else lock


def command_of(pid: int) -> str:
    """The process's command line, shortened; empty where it cannot be told."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(COMMAND_CHARACTERS * 4).split(b"\0")
    except OSError:
        return ""
    return " ".join(b" ".join(words).decode("utf-8", "replace").split())[:COMMAND_CHARACTERS]


def age_s(pid: int, clock: Clock) -> float | None:
    """For how many seconds the process has existed, suspend included; None where it cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    # The command stands in parentheses and may hold spaces and parentheses itself: read from behind the last.
    ticks = int(text[text.rindex(")") + 2 :].split()[_START_TIME_FIELD])
    return max(0.0, clock.boot_ms() / 1_000 - ticks / os.sysconf("SC_CLK_TCK"))
