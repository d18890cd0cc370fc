"""What is noted in the lock file for the next to open the files first: `rest` reads it, and tells what stands where.

A room of its own, so that who opens files that others have open need not import how files at rest are judged.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from idemreg.errors import StoreCorruptError, StoreError
from idemreg.lockfile import LockFile, write_whole
from idemreg.sqlite.walindex import WalIndex

__all__ = [
    "NOTE",
    "NOTE_AT",
    "NO_SALTS",
    "RING_AT",
    "RING_SALTS",
    "SYNCS",
    "SYNCS_AT",
    "Wal",
    "bury",
    "moving",
    "note",
    "raise_epoch",
    "void",
    "write_note",
]

SYNCS: Final = struct.Struct("<48sQQQQ16s")
SYNCS_AT: Final = 64
_EPOCH_AT: Final = 176
NOTE: Final = struct.Struct("<QqqqqQ8sQQ16s")
NOTE_AT: Final = 192
RING_AT: Final = 504
RING_SALTS: Final = 64
_WAITING_AT: Final = RING_AT + 8 + 8 * RING_SALTS
_NUMBER: Final = struct.Struct("<Q")
_EPOCH: Final = struct.Struct("<QQ")
_ALL_ONES: Final = 2**64 - 1

_INDEX: Final = struct.Struct("=12xBxHII8s8s8x")  # of the header of the index: see `walindex`
NO_SALTS: Final = bytes(8)


class Wal(NamedTuple):
    """A -wal, as its index or a sync has told of it. ``frames`` is 0 where there is none."""

    frames: int = 0
    checksum: bytes = NO_SALTS  # over all of them, as two numbers of this machine
    salts: bytes = NO_SALTS
    page_bytes: int = 0

    @classmethod
    def of(cls, header: bytes | None) -> Self:
        """By the header of an index."""
        if header is None:
            return cls()
        is_init, page, frames, _, checksum, salts = _INDEX.unpack(header)
        return cls(frames, checksum, salts, 65_536 if page == 1 else page) if is_init == 1 else cls()


def void(lock_file: LockFile) -> None:
    """Before a checkpoint: whoever is killed in the middle of it leaves no note that is not true any more."""
    os.pwrite(lock_file.fd, _NUMBER.pack(0), NOTE_AT)


@contextlib.contextmanager
def moving(database: str, lock_file: LockFile, index: WalIndex | None) -> Iterator[None]:
    """A checkpoint: the note is void meanwhile, and made anew behind it. `StoreError` where that cannot be said."""
    try:
        void(lock_file)
    except OSError as error:
        msg = f"cannot write to the lock file: {error.strerror}"
        raise StoreError(msg) from error
    yield
    if index is not None:
        with contextlib.suppress(OSError):  # the pages are moved, and the next to open the files looks at all of them
            note(database, lock_file, index)


def note(database: str, lock_file: LockFile, index: WalIndex) -> None:
    """Behind a checkpoint note the database, if nothing is left to be moved, and nobody commits meanwhile.

    Whoever moves anything later has to write to the database, and finds frames that came after this.
    """
    header = index.header()
    there = Wal.of(header)
    if header is None or index.moved < there.frames:
        return
    now = os.stat(database)
    page = os.pread(lock_file.fd, SYNCS.size, SYNCS_AT)
    if index.header() != header or len(page) < SYNCS.size:
        return
    _, begun, _, _, _, boot = SYNCS.unpack(page)
    own = os.fstat(lock_file.fd).st_ino
    times = now.st_mtime_ns, now.st_ctime_ns
    write_note(lock_file, 1, now.st_ino, now.st_size, *times, begun, there.salts, there.frames, own, boot)


def write_note(lock_file: LockFile, *fields: int | bytes) -> None:
    """Write the note anew, so that whoever is killed in the middle of it leaves none."""
    void(lock_file)
    noted, rest = (data := NOTE.pack(*fields))[: _NUMBER.size], data[_NUMBER.size :]
    if os.pwrite(lock_file.fd, rest, NOTE_AT + _NUMBER.size) == len(rest):  # half of it would not be true
        os.pwrite(lock_file.fd, noted, NOTE_AT)


# --- the epoch ------------------------------------------------------------------------------------------------------


def raise_epoch(lock_file: LockFile, epoch: int) -> int:
    """The highest epoch that this lock file has seen, after seeing this one. On the disk where it is a new one."""
    highest, check = _EPOCH.unpack(data := lock_file.read(_EPOCH_AT, _EPOCH.size))
    if (highest or check) and highest ^ check != _ALL_ONES:
        if not _is_half_of(data, epoch):
            msg = f"the lock file {lock_file.path} was changed: it tells of tokens that were never given"
            raise StoreCorruptError(msg, hint="Put it back, or delete it: then nobody can tell whose owners are dead.")
        highest = 0
    if epoch > highest:
        write_whole(lock_file.fd, _epoch(epoch), _EPOCH_AT)
        os.fdatasync(lock_file.fd)
    return max(epoch, int(highest))


def _epoch(epoch: int) -> bytes:
    return _EPOCH.pack(epoch, epoch ^ _ALL_ONES)


def _is_half_of(data: bytes, epoch: int) -> bool:
    """Whether somebody began to write this epoch, the file's own, over none or the one before, and the disk failed."""
    now = _epoch(epoch)
    before = (bytes(_EPOCH.size), _epoch(max(epoch - 1, 0)))
    return any(data == now[:size] + old[size:] for old in before for size in range(1, _EPOCH.size))


# --- the ring -------------------------------------------------------------------------------------------------------


def bury(lock_file: LockFile, before: bytes, header: bytes) -> None:
    """Note that the -wal of one header is over, since frames of another were synced. With the sync turn held.

    SQLite tells of new salts before it writes the first frame under them: until then the old -wal lies there, and its
    salts wait. If nothing ever is written under the new ones (the disk was full, and everybody killed then), SQLite
    goes on with the old -wal, and it is not over. They wait in a place of their own: of two writes to the lock file a
    cut of the power may keep either, so no number beside the ring could say which of its entries does not count yet.
    """
    over, now = Wal.of(before), Wal.of(header)
    if over.frames and over.salts != now.salts:
        os.pwrite(lock_file.fd, over.salts, _WAITING_AT)
    if not now.frames or (waiting := lock_file.read(_WAITING_AT, 8)) == NO_SALTS:
        return
    if waiting != now.salts:
        (number,) = _NUMBER.unpack(lock_file.read(RING_AT, _NUMBER.size))
        os.pwrite(lock_file.fd, waiting, RING_AT + 8 + 8 * (number % RING_SALTS))
        os.pwrite(lock_file.fd, _NUMBER.pack((number + 1) & _ALL_ONES), RING_AT)
    os.pwrite(lock_file.fd, NO_SALTS, _WAITING_AT)
