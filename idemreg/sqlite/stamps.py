"""What a row is stamped with: microseconds by the wall clock, and epoch and milliseconds of this boot.

And the newest of these times, for the clock check (`idemreg.clockcheck`): a wall clock behind it is wrong. No index of
the tasks tells it, which would cost each claim a part of its time. So whoever stamps a row notes it in the lock file,
in the page cache that all processes of the boot share:

    offset 280  boot      16 bytes  the boot in which it was noted
    offset 296  newest    int64     microseconds by the wall clock
    offset 304  is whole  uint8     1 once the rows from before are in it as well
    offset 308  seal      uint32    a CRC-32 of the above

A look begins it, reads all tasks, and only then says that it is whole. In between, as ever after, whoever stamps a row
raises it, with the write turn held and before the row is stored. So no row is missed: one that was stamped before the
beginning was stored by then, for that takes the turn as well. It never goes back within its boot, and is at most a
millisecond before the newest: what is so little newer is not noted, and 15 of 16 claims in a row write nothing. Behind
a reboot it says nothing, and behind an accident to the lock file, or in a copy: until a look has begun it anew.
"""

from __future__ import annotations

import contextlib
import os
import struct
from binascii import crc32
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

_MARK: Final = struct.Struct("<16sqB3x")
_SEAL: Final = struct.Struct("<I")
_MARK_AT: Final = 280
_BEFORE_ALL: Final = -(2**63)


class NewestTime:
    """The newest time that was noted in this boot.

    A time behind ``after_us`` and up to ``until_us`` need not be noted: it has been, or there is no mark to raise.
    """

    def __init__(self, lock_file: LockFile, boot_id: str) -> None:
        self._lock_file = lock_file
        self._boot = digest(boot_id)
        self.after_us = self.until_us = _BEFORE_ALL

    def note(self, wall_us: int) -> None:
        """A row is about to bear this time. With the write turn held.

        No error of the disk keeps a row from being stored for it: the next one notes it again.
        """
        with contextlib.suppress(OSError):
            mark = self._read()
            if mark is None:  # looked for again by a later row, or an earlier one
                self.after_us, self.until_us = wall_us - GRAIN_US, wall_us + GRAIN_US
                return
            newest_us, is_whole = mark
            if wall_us > newest_us:
                self._write(wall_us, is_whole=is_whole)
            self.after_us, self.until_us = _BEFORE_ALL, max(wall_us, newest_us) + GRAIN_US

    def begin(self) -> None:
        """Have all rows noted from now on. With the write turn held; nothing where the disk fails."""
        with contextlib.suppress(OSError):
            if self._read() is None:
                self._write(_BEFORE_ALL, is_whole=False)

    def complete(self, newest_us: int | None) -> None:
        """Note the newest time of all tasks, read since `begin`. Nothing where the mark was lost since, or as above."""
        with contextlib.suppress(OSError):
            if (mark := self._read()) is not None:
                self._write(mark[0] if newest_us is None else max(mark[0], newest_us), is_whole=True)

    def read(self) -> int | None:
        """The newest time, at most a millisecond too early; None where all tasks must be asked for it."""
        try:
            mark = self._read()
        except OSError:
            return None
        return mark[0] if mark is not None and mark[1] else None

    def _read(self) -> tuple[int, bool] | None:
        """The newest time that was noted, and whether it is whole."""
        data = os.pread(self._lock_file.fd, _MARK.size + _SEAL.size, _MARK_AT)
        if len(data) < _MARK.size + _SEAL.size or _SEAL.unpack_from(data, _MARK.size) != (crc32(data[: _MARK.size]),):
            return None
        boot, newest_us, is_whole = _MARK.unpack_from(data)
        return (newest_us, bool(is_whole)) if boot == self._boot else None

    def _write(self, newest_us: int, *, is_whole: bool) -> None:
        data = _MARK.pack(self._boot, newest_us, is_whole)
        write_whole(self._lock_file.fd, data + _SEAL.pack(crc32(data)), _MARK_AT)
