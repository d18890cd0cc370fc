"""What a row is stamped with: microseconds by the wall clock, and epoch and milliseconds of this boot.

And the newest of these times, for the clock check (`idemreg.clockcheck`): a wall clock behind it is wrong. No index of
the tasks tells it, which would cost each claim a part of its time. So whoever stamps a row notes it in the lock file,
in the page cache that all processes of the boot share:

    offset 280  boot      16 bytes  the boot in which it was noted
    offset 296  newest    int64     microseconds by the wall clock
    offset 304                      each of its bits turned over

It is noted with the write turn held, before the row is stored, and never goes back within its boot. So whatever a row
of this boot is stamped with, once it can be read the mark is at most a millisecond before it: what is so little newer
is not noted, and 15 of 16 claims in a row write nothing. After a reboot the mark says nothing, and after an accident to
the lock file: then a look reads all tasks.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final

from idemreg.lockfile import digest, write_whole

if TYPE_CHECKING:
    from idemreg.lockfile import LockFile

__all__ = ["EPOCH_BITS", "LATEST_MS", "NewestTime", "Stamp"]

Stamp = tuple[int, int]

EPOCH_BITS: Final = 40  # of a stamp, for the milliseconds; the boot epoch is above

# The time since boot that a stamp has room for: 34 years. A broken hardware clock can make a sleep of the machine as
# long; from then on rows of this boot grow no older, and stay.
LATEST_MS: Final = 2**EPOCH_BITS - 1

GRAIN_US: Final = 1_000  # the finest band of the clock check is ten times as wide

_MARK: Final = struct.Struct("<16sqq")
_MARK_AT: Final = 280
_BEFORE_ALL: Final = -(2**63)


class NewestTime:
    """The newest time that was noted in this boot."""

    def __init__(self, lock_file: LockFile, boot_id: str) -> None:
        self._lock_file = lock_file
        self._boot = digest(boot_id)
        self.covered_us = _BEFORE_ALL  # up to here there is nothing to note

    def note(self, wall_us: int) -> None:
        """A row is about to bear this time. With the write turn held.

        No error of the disk keeps a row from being stored for it: the next one notes it again.
        """
        with contextlib.suppress(OSError):
            found = self._read()
            if found is None or wall_us > found:
                write_whole(self._lock_file.fd, _MARK.pack(self._boot, wall_us, ~wall_us), _MARK_AT)
                found = wall_us
            self.covered_us = found + GRAIN_US

    def read(self) -> int | None:
        """The newest time, at most a millisecond too early; None where all tasks must be asked for it."""
        try:
            return self._read()
        except OSError:
            return None

    def _read(self) -> int | None:
        data = os.pread(self._lock_file.fd, _MARK.size, _MARK_AT)
        if len(data) < _MARK.size:
            return None
        boot, newest, check = _MARK.unpack(data)
        return int(newest) if (boot, check) == (self._boot, ~newest) else None
