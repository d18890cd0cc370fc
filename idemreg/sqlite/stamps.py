"""What a row is stamped with: microseconds by the wall clock, and epoch and milliseconds of this boot.

And the newest of these times, for the clock check (`idemreg.clockcheck`): a wall clock behind it is wrong. No index of
the tasks tells it, which would cost each claim a part of its time. So whoever stamps a row notes it in the lock file,
in the page cache that all processes of the boot share:

    offset 280  boot      16 bytes  the boot in which it was noted
    offset 296  newest    int64     microseconds by the wall clock
    offset 304  reading   uint32    a random number: which reading of all tasks it was begun for
    offset 308  is whole  uint8     1 once that reading is in it as well
    offset 312  seal      uint32    a CRC-32 of the above

A look begins it with the time that it is, reads all tasks, and only then says that it is whole. In between, as ever
after, whoever stamps a row raises it, with the write turn held and before the row is stored. So no row is missed: one
that was stamped before the beginning was stored by then, for that takes the turn as well. It is at most a millisecond
before the newest: what is so little newer is not noted, and 15 of 16 claims in a row write nothing. It never goes back
within its boot: a row that was removed counts until then, for it was a right clock's time or a wrong one's.

It says nothing behind a reboot, behind an accident to the lock file, in a copy, and where rows were imported whose
times are still to come: until a look has begun it anew. Where the disk fails at it, the same process makes it good with
the next row; one that ends before takes that along.
"""

from __future__ import annotations

import contextlib
import os
import struct
from binascii import crc32
from typing import TYPE_CHECKING, Final

from idemreg.errors import StoreError
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

_MARK: Final = struct.Struct("<16sqIB3x")
_SEAL: Final = struct.Struct("<I")
_MARK_AT: Final = 280
_BEFORE_ALL: Final = -(2**63)


class NewestTime:
    """The newest time that was noted in this boot. What writes is called with the write turn held.

    A time behind ``after_us`` and up to ``until_us`` need not be noted: it has been, or there is no mark to raise.
    """

    def __init__(self, lock_file: LockFile, boot_id: str) -> None:
        self._lock_file = lock_file
        self._boot = digest(boot_id)
        self._owed_us = _BEFORE_ALL  # what the disk did not take
        self.after_us = self.until_us = _BEFORE_ALL

    def note(self, wall_us: int) -> None:
        """A row is about to bear this time. No error of the disk keeps it from being stored."""
        newest_us = max(wall_us, self._owed_us)
        try:
            mark = self._read()
            if mark is None:  # looked for again by a later row, or an earlier one
                self.after_us, self.until_us = wall_us - GRAIN_US, wall_us + GRAIN_US
                return
            noted_us, reading, is_whole = mark
            if newest_us > noted_us:
                self._write(newest_us, reading, is_whole=is_whole)
            self._owed_us = _BEFORE_ALL
            self.after_us, self.until_us = _BEFORE_ALL, max(newest_us, noted_us) + GRAIN_US
        except OSError:
            self._owed_us = newest_us
            self.after_us = self.until_us = _BEFORE_ALL

    def begin(self, now_us: int) -> int | None:
        """Have all rows noted from now on. What to `complete` once all tasks were read; None where the disk fails."""
        with contextlib.suppress(OSError):
            mark = self._read()
            return self._begin(now_us) if mark is None else mark[1]
        return None

    def complete(self, reading: int, newest_us: int | None) -> None:
        """Note the newest time of all tasks, as they were read since `begin`. Nothing where it was begun anew since."""
        with contextlib.suppress(OSError):
            mark = self._read()
            if mark is not None and mark[1] == reading:
                self._write(mark[0] if newest_us is None else max(mark[0], newest_us), reading, is_whole=True)

    def void(self) -> None:
        """Rows of times to come are about to be stored: all tasks must be read, by whoever reads once they are."""
        try:
            if (mark := self._read()) is not None:
                self._begin(mark[0])
        except OSError as error:
            msg = f"cannot write to the lock file: {error.strerror}"
            raise StoreError(msg) from error

    def read(self) -> int | None:
        """The newest time, at most a millisecond too early; None where all tasks must be asked for it."""
        try:
            mark = self._read()
        except OSError:
            return None
        return mark[0] if mark is not None and mark[2] else None

    def _begin(self, newest_us: int) -> int:
        reading = int.from_bytes(os.urandom(4), "big")
        self._write(newest_us, reading, is_whole=False)
        return reading

    def _read(self) -> tuple[int, int, bool] | None:
        """The newest time that was noted, for which reading, and whether it is whole."""
        data = os.pread(self._lock_file.fd, _MARK.size + _SEAL.size, _MARK_AT)
        if len(data) < _MARK.size + _SEAL.size or _SEAL.unpack_from(data, _MARK.size) != (crc32(data[: _MARK.size]),):
            return None
        boot, newest_us, reading, is_whole = _MARK.unpack_from(data)
        return (newest_us, reading, bool(is_whole)) if boot == self._boot else None

    def _write(self, newest_us: int, reading: int, *, is_whole: bool) -> None:
        data = _MARK.pack(self._boot, newest_us, reading, is_whole)
        write_whole(self._lock_file.fd, data + _SEAL.pack(crc32(data)), _MARK_AT)
