"""The guard: between a stored claim and its job, the files are still those that were opened.

The kernel lets anybody delete, replace or cut a file that others have open, and SQLite commits into it and says OK. A
job whose claim lies in such a file would run again, in whatever takes its place. So behind each claim, and around each
sync, it is looked whether the database, the -wal, its index and the lock file are what they were when they were opened.

*Names.* Whoever deletes, renames or makes a file changes the times of its folder. While these are as they were no name
was changed, and one fstat of the folder says so. Where they differ, and every 50 milliseconds in any case (a folder may
be moved as a whole, and a file system's clock may be a coarse one), each name is looked at. Numbers of inodes prove
enough for that: an open file keeps its own. The -wal is looked at through its link in /proc, as a stat would make its
next write and sync dearer (Linux 6.13 and later).

*Sizes.* Cutting a file changes no folder. Each file has a size below which it never falls by itself:

    lock file   one page, written once
    -wal        the frames that its index tells of. Whoever cuts it (a TRUNCATE checkpoint, by any program) sets the
                index to none first; so frames that were read, and are still told of behind a size too small, are gone.
                The next commit gives it its size back: so it is looked at before each, with the turn held. A program
                that knows nothing of turns does not look; but what it writes leaves a hole where a block is missing,
                so the -wal is asked for its first hole then, which is its end where it has none.
    database    what it had. SQLite makes it smaller for one reason only, a VACUUM of another program, and then to what
                the index says; or to less, where it has grown since in the -wal, and then the tables are read to see

The descriptor of the database is one that only names it (O_PATH): to close it drops none of SQLite's locks.

*What follows.* Whoever finds the database, the -wal or its index gone may not write any more: what is at the names now
belongs to others, and the next frame could damage it. So the process gives these files up (`Pool.lose`), whatever
comes back later; its open claims end as ends that cannot be recorded. Without its lock file it may write, and puts the
claim back, but no job begins: whoever opens the registry now has another lock file, and could not see that this
process lives.

It costs three microseconds a claim, nearly all of it in four calls of the system.
"""

from __future__ import annotations

import errno
import os
from os import SEEK_END, fstat, lseek
from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import StoreCorruptError, StoreError, SyncFailedError
from idemreg.lockfile import NOT_THERE, SIZE
from idemreg.sqlite.walindex import FILE_HEADER_BYTES, FRAME_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.clock import Clock
    from idemreg.lockfile import LockFile
    from idemreg.sqlite.walindex import WalIndex

__all__ = ["FilesReplacedError", "Guard"]

# Seconds after a change in the folder in which another may bear the same time; and seconds after which the names are
# looked at in any case.
SAME_TIME_S: Final = 0.02
LOOK_AGAIN_S: Final = 0.05

GONE: Final = "was deleted, moved or replaced"
CUT: Final = "was cut short"
CLOSED: Final = "cannot be looked at any more: its descriptors were closed"
MEANWHILE: Final = "while this process has the registry open"

TRIES: Final = 100  # to see the -wal's index and its size as of one moment, while others cut and write it
SMALLEST_PAGE: Final = 512
SEEK_HOLE: Final = getattr(os, "SEEK_HOLE", SEEK_END)


class FilesReplacedError(StoreCorruptError, SyncFailedError):
    """The files are not those that were opened: what was committed is nowhere that anybody will look."""

    code = StoreCorruptError.code
    hint = (
        "Stop every process that has the registry open, and put the file back, or a backup in the place of the"
        " database; then start them again."
    )


class Guard:
    """Watches the files of one open registry, for one process. Thread-safe."""

    def __init__(self, database: str, lock_file: LockFile, clock: Clock) -> None:
        """Some connection must be open, and keep the -wal and its index in being."""
        self._path, self._wal_path = database, f"{database}-wal"
        self._lock_file = lock_file
        self._monotonic = clock.monotonic
        self._folder = self._database = self._wal = -1
        self._index: WalIndex | None = None
        self._frames: Any = _NONE
        self._frame_bytes = 0  # of the -wal: how many there are, and the size of each
        self.lose: Callable[[FilesReplacedError], None] = _nothing  # called once, when the files are given up
        self.is_whole: Callable[[], bool] = _no  # whether the tables can be read, where the database became smaller
        try:
            self._folder = os.open(os.path.dirname(database), os.O_PATH | os.O_CLOEXEC)
            self._database = os.open(database, os.O_PATH | os.O_CLOEXEC)
            self._size = os.fstat(self._database).st_size
            self._names = [(path, os.stat(path).st_ino) for path in (database, f"{database}-shm")]
        except BaseException:  # too many files are open
            self.close()
            raise
        self._lock_file_gone = False
        self._times = (0, 0)  # of the folder
        self._unchanged_at = self._look_at = 0.0

    def watch_wal(self, fd: int, index: WalIndex) -> None:
        """From now on the -wal as well, by the descriptor and the index that its syncs go by."""
        self._wal, self._index = fd, index
        self._frames, self._frame_bytes = index.frames_seen, FRAME_HEADER_BYTES + index.page_bytes

    def check(self) -> None:
        """`FilesReplacedError` where a file is not the one that was opened, or is too small.

        `StoreError` where the system cannot tell, which says nothing about the files.
        """
        try:
            self.check_names(self._monotonic())
            if fstat(self._database).st_size != self._size:
                self._resized(fstat(self._database).st_size)
            if lseek(self._lock_file.fd, 0, SEEK_END) < SIZE:
                raise self._lock_file_lost(CUT)
            # As `WalIndex.used_bytes`, whose call costs as much as a call of the system.
            if frames := self._frames.value:
                used = FILE_HEADER_BYTES + frames * self._frame_bytes
                if lseek(self._wal, 0, SEEK_HOLE) < used:
                    self._check_wal()
        except OSError as error:
            self._look_again(error)
        if self._lock_file_gone:
            raise self._lock_file_lost(GONE)

    def before_writing(self) -> None:
        """`FilesReplacedError` where the -wal was cut: the next frame would give it its size back, with zeros in it."""
        if frames := self._frames.value:
            try:
                if lseek(self._wal, 0, SEEK_END) < FILE_HEADER_BYTES + frames * self._frame_bytes:
                    self._check_wal()
            except OSError as error:
                self._look_again(error)

    def check_names(self, now: float) -> None:
        """The first half of it: that the names still lead to the files. OSError where the system cannot tell.

        Without its lock file a process may go on to sync what it has committed, and only `check` minds.
        """
        folder = fstat(self._folder)
        times = (folder.st_mtime_ns, folder.st_ctime_ns)
        if times != self._times:
            self._unchanged_at = now + SAME_TIME_S
        elif self._unchanged_at <= now < self._look_at:
            return
        self.look_at_names()
        self._times, self._look_at = times, now + LOOK_AGAIN_S  # not before: what was found is found again

    def look_at_names(self) -> None:
        """The same, whatever the folder says."""
        for path, inode in self._names:
            if _inode_at(path) != inode:
                raise self._lost(path, GONE)
        if self._wal >= 0 and not self._is_wal_there():
            raise self._lost(self._wal_path, GONE)
        self._lock_file_gone = not self._lock_file.is_at_path()

    def _is_wal_there(self) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{self._wal}") == self._wal_path
        except OSError:  # no /proc, say
            return _inode_at(self._wal_path) == os.fstat(self._wal).st_ino

    def _look_again(self, error: OSError) -> None:
        try:
            if error.errno == errno.ENXIO:  # an empty -wal
                return self._check_wal()
        except OSError as another:
            error = another
        if error.errno == errno.EBADF:
            raise self._lost(self._path, CLOSED) from error
        raise self._unseen(error) from error

    def _unseen(self, error: OSError) -> StoreError:
        unseen = StoreError(f"the system cannot tell whether {self._path} is still there: {error.strerror}")
        unseen.retryable = True
        return unseen

    def _check_wal(self) -> None:
        for _ in range(TRIES):
            used = 0 if self._index is None else self._index.used_bytes
            if _size(self._wal) >= used:
                return
            if self._index is not None and self._index.used_bytes == used:
                raise self._lost(self._wal_path, CUT)

    def _resized(self, size: int) -> None:
        """It has grown, or another program has made it smaller, or it was cut."""
        if size < self._size and not self._may_be(size):
            raise self._lost(self._path, CUT)
        self._size = size

    def _may_be(self, size: int) -> bool:
        page_bytes = SMALLEST_PAGE if self._index is None else self._index.page_bytes
        if size < page_bytes or size % page_bytes:  # SQLite cuts behind a page; half of one reads as an empty one
            return False
        told = 0 if self._index is None else self._index.database_bytes
        return 0 < told <= size or self.is_whole()

    def _lost(self, path: str, what: str) -> FilesReplacedError:
        error = FilesReplacedError(f"{path} {what} {MEANWHILE}")
        self.lose(error)
        return error

    def _lock_file_lost(self, what: str) -> FilesReplacedError:
        return FilesReplacedError(f"{self._lock_file.path} {what} {MEANWHILE}")

    def close(self) -> None:
        """Close what it looks through. With no memory, of which there may be none."""
        folder, self._folder = self._folder, -1
        database, self._database = self._database, -1
        self._wal = -1
        self._frames = _NONE
        self._index, self.lose, self.is_whole = None, _nothing, _no
        try:
            if folder >= 0:
                os.close(folder)
        finally:
            if database >= 0:
                os.close(database)


class _None:
    """Frames of no -wal."""

    value = 0


_NONE: Final[Any] = _None()


def _inode_at(path: str) -> int:
    """Of what bears the name; -1 for nothing."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except NOT_THERE:
        return -1


def _size(fd: int) -> int:
    """Up to its first hole."""
    try:
        return lseek(fd, 0, SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:  # what an empty file answers
            raise
        return 0


def _nothing(_error: FilesReplacedError) -> None:
    """Nobody minds."""


def _no() -> bool:
    return False
