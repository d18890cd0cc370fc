"""Byte-range locks that the kernel drops at the holder's death.

They are open-file-description locks (``F_OFD_SETLK``), and no other kind would do:

* POSIX locks (``fcntl.lockf``) belong to the process and vanish when *any* descriptor of the file is closed in it.
* ``flock`` covers the whole file, so each owner would need a file of its own.

An open-file-description lock belongs to the open file: it lives until the last descriptor of that open file is closed,
in whichever process. Three things follow, and the rest of idemreg leans on each of them.

* Death is seen without any time-out: the kernel closes what the dead held. Also for zombies, through SIGSTOP (still
  held), and across containers that share the volume.
* A descriptor inherited by a child keeps the lock. That is wanted for the command of ``idemreg run``, which keeps its
  task owned when the wrapper is killed; and it is why a forked child must *close* its inherited lock descriptors,
  never unlock through them: an unlock there would drop the parent's lock.
* An open file does not see its own locks, and a second lock through it is granted: two holders need two open files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from idemreg.descriptors import opened
from idemreg.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SUPPORTED", "is_held", "obey", "open_high", "orders", "self_test", "share", "try_lock", "unlock"]

# struct flock: type, whence, start, length, pid. The "0q" pads it as a C compiler does.
_FLOCK = struct.Struct("hhqqi0q")

SUPPORTED = hasattr(fcntl, "F_OFD_SETLK")

# Shell scripts reuse low descriptor numbers (`exec 3>`, `exec 9>` for flock, `exec 200>`), which would drop a lock that
# they inherited there. Nobody was seen to reuse one above this.
HIGH_DESCRIPTOR = 700

LOWEST_DESCRIPTOR = 3  # below are the standard streams

_NO_SUCH_NUMBER = frozenset({errno.EINVAL, errno.EMFILE})  # above the limit; all up to the limit taken
_HELD_BY_ANOTHER = frozenset({errno.EAGAIN, errno.EACCES})


def orders(byte: int) -> tuple[bytes, bytes]:
    """What `obey` is to be given to lock the byte, and to unlock it."""
    lock, unlock = (_FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
    return lock, unlock


def obey(fd: int, order: bytes) -> bool:
    """Carry the order out through this open file; False where another open file holds the lock.

    `StoreError` where the system has no locks to give.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        raise _refused(error) from error
    return True


def _refused(error: OSError) -> StoreError:
    return StoreError(f"the system refuses a lock on the lock file: {error.strerror}")


def try_lock(fd: int, byte: int) -> bool:
    """Take the exclusive lock on one byte through this open file; False where another open file holds it.

    ``fd`` must be open for writing. Never waits. `StoreError` where the file system refuses locks.
    """
    return obey(fd, orders(byte)[0])


def share(fd: int, byte: int) -> None:
    """Hold the lock on one byte together with others, in place of an exclusive one through this open file."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        raise _refused(error) from error


def unlock(fd: int, byte: int) -> None:
    """Give the lock on one byte back. Never in a forked child: it would drop the parent's lock."""
    obey(fd, orders(byte)[1])


def is_held(fd: int, byte: int) -> bool:
    """Whether another open file holds the lock on the byte. Takes nothing; about a microsecond."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    except OSError as error:
        raise _refused(error) from error
    return bool(kind != fcntl.F_UNLCK)


def open_high(path: str) -> int:
    """Open the lock file anew, on a descriptor number that shell scripts leave alone.

    The descriptor is not inheritable; whoever hands it to a command passes it by name.
    """
    with opened(path, os.O_RDWR) as low:
        return _duplicate(low, HIGH_DESCRIPTOR)


def _duplicate(fd: int, lowest: int) -> int:
    """On the number ``lowest`` or above; where the process may have no such number, as near to it as halves lead."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError as error:
        if error.errno not in _NO_SUCH_NUMBER or lowest <= LOWEST_DESCRIPTOR:
            raise
    return _duplicate(fd, max(LOWEST_DESCRIPTOR, lowest // 2))


def self_test(path: str, byte: int) -> bool:
    """Whether locks mean anything on this file system. About 10 microseconds; needs no other process.

    Some file systems grant every lock and enforce none: a takeover there would be a second execution. Checked is what
    a proof of death rests on: a lock is seen through another open file; it survives the close of one of two
    descriptors (as an orphan's must); and it is gone with the last (as at death, when the kernel closes them all).
    ``byte`` must be the caller's alone, a random one: two self-tests on one byte would fail each other.

    OSError or `StoreError` where it could not be carried out (no descriptor left, an error of the disk, no lock to be
    had): that says nothing of what locks mean.
    """
    with opened(path, os.O_RDWR) as prober:
        with opened(path, os.O_RDWR) as holder:
            with _doubled(holder):
                seen = try_lock(holder, byte) and is_held(prober, byte)
            survives = is_held(prober, byte)
        return seen and survives and not is_held(prober, byte)


@contextlib.contextmanager
def _doubled(fd: int) -> Iterator[int]:
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, (fd,)))  # as `opened` has it
        yield copies[0]
    finally:
        if copies:
            os.close(copies[0])
