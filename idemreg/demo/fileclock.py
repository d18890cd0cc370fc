"""A clock that is a file: whoever reads it has the same instant, and time passes only when somebody writes it.

One line: the wall clock in microseconds since the epoch, and the milliseconds since boot. That is all that decides
something in a registry: by the one a slot is due, by the other a lease is over. How long a process waits for another
is real time, since another takes real time to answer: so `monotonic` and `sleep` stay the machine's own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from idemreg.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from idemreg.clockcheck.readings import Source

__all__ = ["ClockFile", "FileClock"]

BEGIN_BOOT_MS = 3_600_000


class FileClock(Clock):
    """Reads the file. Leases by it are renewed by `Heart.step` alone, and no source of the machine is asked."""

    is_real = False
    sources: Sequence[Source] | None = ()

    def __init__(self, path: str) -> None:
        self._path = path

    def wall_us(self) -> int:
        """Microseconds since the epoch, as written."""
        return self._read()[0]

    def boot_ms(self) -> int:
        """Milliseconds since boot, as written."""
        return self._read()[1]

    def _read(self) -> tuple[int, int]:
        with open(self._path, encoding="ascii") as file:
            wall_us, boot_ms = file.read().split()
        return int(wall_us), int(boot_ms)


class ClockFile:
    """Writes the file, which is there from the beginning."""

    def __init__(self, path: str, begin: datetime) -> None:
        self.path = path
        self.now = begin
        self._boot_ms = BEGIN_BOOT_MS
        self._write()

    def advance(self, duration: timedelta) -> None:
        """Let time pass: the wall clock and the time since boot go on alike."""
        self._boot_ms += round(duration.total_seconds() * 1_000)
        self.now += duration
        self._write()

    def set(self, now: datetime) -> None:
        """Somebody sets the wall clock; the time since boot knows nothing of it."""
        self.now = now
        self._write()

    def _write(self) -> None:
        """In place of the old file at once, so that nobody reads half of it."""
        beside = f"{self.path}.new"
        with open(beside, "w", encoding="ascii") as file:
            file.write(f"{round(self.now.timestamp()) * 1_000_000} {self._boot_ms}\n")
        os.replace(beside, self.path)
