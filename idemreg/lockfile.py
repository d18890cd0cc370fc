"""The lock file beside the database: 4,096 bytes and the notes of batches, never truncated or replaced.

Its content is a magic word and a random id; its meaning is in the locks on bytes far beyond its end, which the kernel
keeps. The same id stands in the database and in each owner's record: a lock file that was deleted and made anew has
another id, so its free bytes prove nobody dead.

    offset 0   magic, 16 bytes
    offset 16  lock id, 16 bytes
    offset 32  1 once the database was made: a lock file without its database is then an accident, not a beginning
    offset 64  what the last good sync of the -wal covered, 104 bytes: see `sqlite/syncing.py`
    offset 176 how the database was left, 104 bytes, and from offset 504 on -wals that are over: see `sqlite/rest.py`
    offset 280 the newest time of any row, 36 bytes: see `sqlite/stamps.py`
    the rest   zeros, for the bookkeeping of later versions

    offset 4096 and on: the notes of batches, a byte a task: 1 once its job was entered. They survive the death of the
    process and not that of the machine, which is all that is asked of them: nobody trusts those of an earlier boot.

    byte 2^62           write turn: held by the process that writes (`turn.py`, the other turns too)
    byte 2^62 + 1       sync turn: held by the process that syncs the -wal for all
    byte 2^62 + 2       creation: held while the files are made or a schema is migrated
    byte 2^62 + 3       checkpoint turn: held by the process that moves the -wal's pages
    byte 2^62 + 4       open: shared by all who have the files open
    byte 2^62 + 16 + n  owner n
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Self

from idemreg import faults, oslock
from idemreg.descriptors import opened
from idemreg.errors import StoreBusyError, StoreCorruptError, StoreError, StoreFullError, StorePathError
from idemreg.placing import make_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.clock import Clock

__all__ = [
    "CHECKPOINT_TURN",
    "FAILED_SYNC_OFFSET",
    "FIRST_NOTE",
    "NOT_THERE",
    "SYNC_RECORD_OFFSET",
    "SYNC_TURN",
    "TOO_MANY_OPEN",
    "WRITE_TURN",
    "LockFile",
    "digest",
    "importing",
    "is_new",
    "open_error",
    "out_of_descriptors",
    "owner_byte",
    "random_owner",
    "tells_of_database",
    "write_whole",
]

MAGIC = b"idemreg lock 1\0\0"
SIZE = 4_096  # one page: it is written in one piece
FIRST_NOTE = SIZE
ID_BYTES = 16
DATABASE_OFFSET = len(MAGIC) + ID_BYTES
HEAD_BYTES = DATABASE_OFFSET + 1
SYNC_RECORD_OFFSET = 64
SYNC_NUMBERS_OFFSET = 112
FAILED_SYNC_OFFSET = 128
SYNC_BOOT_OFFSET = 144
BOOT_BYTES = 16
WRITE_TURN = 2**62
SYNC_TURN = 2**62 + 1
CREATION_BYTE = 2**62 + 2
CHECKPOINT_TURN = 2**62 + 3
OPEN_BYTE = 2**62 + 4
FIRST_OWNER_BYTE = 2**62 + 16
OWNER_BITS = 62

TOO_MANY_OPEN = frozenset({errno.EMFILE, errno.ENFILE})
# What says that a name leads nowhere. Every other error of a stat says nothing about the file.
NOT_THERE = (FileNotFoundError, NotADirectoryError)
# Without waiting: a FIFO or a device may be in the place of the file.
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# The creation lock is held for a few milliseconds by whoever makes the files. There is no queue: pollers nap.
NAP_SECONDS = 0.002


def random_owner() -> int:
    """A number for a new owner; never reused, since 2^62 leaves no room for chance."""
    number = int.from_bytes(os.urandom(8), "big") >> (64 - OWNER_BITS)
    return int(number % (2**OWNER_BITS - 32)) + 1


def owner_byte(owner: int) -> int:
    """The byte of the lock file that the owner holds while it lives."""
    return FIRST_OWNER_BYTE + owner


def is_new(head: bytes) -> bool:
    """Whether a lock file that begins so has no id that counts: it is empty or all zero, or its writer was stopped.

    One of less than a page that tells of no database was never written to its end, and none has used its id.
    """
    is_part = len(head) < SIZE and head[: len(MAGIC)] == MAGIC[: len(head)]
    return not any(head) or (is_part and not any(head[DATABASE_OFFSET:HEAD_BYTES]))


def tells_of_database(path: str) -> bool:
    """Whether a lock file lies there that was beside a database. No where it cannot be read: who opens it says why."""
    try:
        with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            head = os.pread(fd, SIZE, 0)
    except OSError:
        return False
    return head.startswith(MAGIC) and not is_new(head) and head[DATABASE_OFFSET] == 1


def write_whole(fd: int, data: bytes, at: int) -> None:
    """Write all of it. A system that takes a part only is asked for the rest, and says then what is in the way."""
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def _in_the_way(path: str) -> StorePathError:
    msg = f"{path} is in the way: it is not a lock file of idemreg"
    return StorePathError(msg, hint="Move that file away, or choose another path for the registry.")


class LockFile:
    """The lock file. Its descriptor is for the locks of this process alone, never for a command's.

    It is made before it is opened, so that whoever is interrupted behind `open` has what to close.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.lock_id = ""
        self.has_database = False

    def open(self) -> Self:
        """Open it, and make it where it is not there. Behind an error nothing is open."""
        fds: list[int] = []
        try:
            _open(self.path, fds)
            self.fd = fds[0]
        except BaseException as error:
            self.fd = -1
            if fds:  # not in a loop, for which there may be no memory
                os.close(fds[0])
            if isinstance(error, OSError):
                raise open_error(self.path, error) from error
            raise
        return self

    @contextlib.contextmanager
    def creation(self, clock: Clock, busy_s: float) -> Iterator[None]:
        """Hold the creation lock: one process at a time makes or migrates the files.

        `StoreBusyError` after ``busy_s`` seconds.
        """
        deadline = clock.monotonic() + busy_s
        while not oslock.try_lock(self.fd, CREATION_BYTE):
            if clock.monotonic() >= deadline:
                msg = f"another process has been creating or migrating {self.path} for {busy_s:g} s"
                raise StoreBusyError(msg)
            clock.sleep(NAP_SECONDS)
        try:
            yield
        finally:
            oslock.unlock(self.fd, CREATION_BYTE)

    def is_alone(self) -> bool:
        """Whether nobody else has the files open. Call it under `creation` only, and `share` behind it."""
        return oslock.try_lock(self.fd, OPEN_BYTE)

    def share(self) -> None:
        """From now on the files are open here, until `close`. Call it under `creation` only."""
        oslock.share(self.fd, OPEN_BYTE)

    def is_open_elsewhere(self) -> bool:
        """Whether anybody has the files open, but through this."""
        return oslock.is_held(self.fd, OPEN_BYTE)

    def read_or_write_id(self) -> str:
        """Read the id; write one where the file is new. Call it under `creation` only."""
        head = os.pread(self.fd, SIZE, 0)
        if is_new(head):
            # New, or its writer was killed in between: nobody can have used an id that is not there.
            head = (MAGIC + os.urandom(ID_BYTES)).ljust(SIZE, b"\0")
            write_whole(self.fd, head, 0)
            os.fsync(self.fd)
            faults.point("create.lock-file-written")
        elif not head.startswith(MAGIC):
            raise _in_the_way(self.path)
        elif len(head) < SIZE:
            raise self.was_cut()
        self.lock_id = head[len(MAGIC) : DATABASE_OFFSET].hex()
        self.has_database = head[DATABASE_OFFSET] == 1
        return self.lock_id

    def note_database(self) -> None:
        """Note that the database was made. Call it under `creation` only."""
        if not self.has_database:
            os.pwrite(self.fd, b"\x01", DATABASE_OFFSET)
            os.fsync(self.fd)
            self.has_database = True

    def begin_boot(self, boot_id: str) -> None:
        """What the syncs of an earlier boot have left says nothing any more. Call it under `creation` only."""
        if not self.is_of_boot(boot_id):
            void = b"\xff" * (SYNC_NUMBERS_OFFSET - SYNC_RECORD_OFFSET)
            zeros = bytes(SYNC_BOOT_OFFSET - SYNC_NUMBERS_OFFSET)
            write_whole(self.fd, void + zeros + digest(boot_id) + bytes(8), SYNC_RECORD_OFFSET)

    def is_of_boot(self, boot_id: str) -> bool:
        """Whether what is noted of syncs is of this boot."""
        return os.pread(self.fd, BOOT_BYTES, SYNC_BOOT_OFFSET) == digest(boot_id)

    def note_failed_sync(self) -> None:
        """Note that a sync of the -wal has failed, for every process until the next boot; see `sqlite/syncing.py`."""
        os.pwrite(self.fd, struct.pack("<Q", 1), FAILED_SYNC_OFFSET)

    def has_failed_sync(self, boot_id: str) -> bool:
        """Whether a sync of the -wal has failed in this boot."""
        return self.is_of_boot(boot_id) and any(os.pread(self.fd, 8, FAILED_SYNC_OFFSET))

    def clear_notes(self, at: int, number: int) -> None:
        """Take a place for notes. Raises where the disk is full, so that entering a task never does."""
        written = os.pwrite(self.fd, bytes(number), at)
        if written != number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def write_note(self, at: int) -> None:
        """Note that a job is about to be entered. In the page cache at once, where every process sees it."""
        os.pwrite(self.fd, b"\x01", at)  # of one byte nothing can be left out

    def read(self, at: int, size: int) -> bytes:
        """What stands there; `StoreCorruptError` where the file was cut short, by whomever."""
        data = os.pread(self.fd, size, at)
        if len(data) < size:
            raise self.was_cut()
        return data

    def was_cut(self) -> StoreCorruptError:
        """The error of a lock file that is too short."""
        msg = f"the lock file {self.path} was cut short"
        return StoreCorruptError(msg, hint="Put it back, or delete it: then nobody can tell whose owners are dead.")

    def read_note(self, at: int) -> bool:
        """Whether the job was entered; also where the place is not there, since somebody must have removed it."""
        try:
            return os.pread(self.fd, 1, at) != b"\0"
        except OSError as error:
            msg = f"cannot read the lock file: {error.strerror}"
            raise StoreError(msg) from error

    def is_at_path(self) -> bool:
        """Whether the path still names the file that is open here. OSError where the system cannot tell."""
        try:
            there, here = os.stat(self.path, follow_symlinks=False), os.fstat(self.fd)
        except NOT_THERE:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) and here.st_nlink > 0

    def close(self) -> None:
        """Close the descriptor, and with it drop every lock taken through it."""
        # -1 first: a thread may fork in between, and the child close another file of that number.
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _open(path: str, fds: list[int]) -> None:
    """Open it; make it where it is not there, for its owner alone, whatever the umask.

    The descriptor goes into the list by the call that opens it, one of C, into which no interrupt can come.
    """
    try:
        fds.extend(map(os.open, [path], [_OPEN]))
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another process was faster
            make_file(path)
        fds.extend(map(os.open, [path], [_OPEN]))
    if not stat.S_ISREG(os.fstat(fds[0]).st_mode):
        raise _in_the_way(path)


def open_error(path: str, error: OSError) -> StoreError:
    """The error for a file that could not be opened, or made."""
    msg = f"cannot open {path}: {error.strerror}"
    if error.errno == errno.ENOSPC:
        return StoreFullError(msg)
    return out_of_descriptors(msg) if error.errno in TOO_MANY_OPEN else StorePathError(msg)


def out_of_descriptors(message: str) -> StoreError:
    """This process, or the machine, has no room for one more open file: nothing is wrong with the path."""
    error = StoreError(message, hint="Too many files are open: close some, or raise the limit (`ulimit -n`).")
    error.retryable = True
    return error


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around an import that comes when something is first asked for: `StoreError` where the system refuses it."""
    try:
        yield
    except OSError as error:
        msg = f"cannot import what this call needs: {error.strerror}"
        raise (out_of_descriptors(msg) if error.errno in TOO_MANY_OPEN else StoreError(msg)) from error


def digest(boot_id: str) -> bytes:
    """A boot in 16 bytes."""
    try:  # hashlib's own; hashlib itself loads OpenSSL, 2.5 ms that each `idemreg show` would pay
        from _blake2 import blake2b  # noqa: PLC0415
    except ImportError:  # another Python than CPython may have none
        from hashlib import blake2b  # noqa: PLC0415
    short: bytes = blake2b(boot_id.encode(), digest_size=BOOT_BYTES).digest()
    return short
