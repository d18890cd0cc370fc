"""The -wal of an open registry: its state, checkpoints with a bound, and word of each commit of this process.

SQLite's own checkpoint inside a commit is off: it swallows what the disk reports, and it is reported once. In its place
each commit looks at the -wal's index, which costs a comparison, and checkpoints once it is long; or it tells whoever
watches the -wal. Since a thread that listens can die, the commit keeps a net: told so by the watcher, it checkpoints
itself.

Such a checkpoint goes in two steps. The first moves what is there, while others write. The second moves the little that
came meanwhile, under the write turn: so it ends, and the next commit begins the -wal anew, in the size that it has.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from idemreg.descriptors import opened
from idemreg.errors import StoreBusyError, StoreError
from idemreg.sqlite import checkpoints, noted
from idemreg.sqlite.connection import AUTOCHECKPOINT_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg.clock import Clock
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.database import Database
    from idemreg.sqlite.opened import Opened
    from idemreg.sqlite.opening import Opening
    from idemreg.sqlite.walindex import WalIndex
    from idemreg.turn import Turns

__all__ = ["Wal"]

# The -wal is written to this size once, and keeps it until the last process closes it: a sync of a file that grows
# costs several times as much, since the file system has its own notes to write. Half as much again as it holds when
# it is checkpointed. Zeros are no frames to SQLite. It costs as much as some dozens of syncs, so a process that syncs a
# few times only does without.
WORKING_BYTES: Final = 6 * 2**20
ZEROS_AT_ONCE: Final = 2**16
SYNCS_BEFORE: Final = 20

# Seconds that the second step waits for its turn to write: the next commit tries again.
PATIENCE_S: Final = 0.05

_AT_WORK: Final = 0  # the one place before the turn to checkpoint


class Wal:
    """The -wal of the registry's file. Thread-safe."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._clock = opening.clock
        # What hears of the commits, the last one alone -> what is called whenever the file is opened.
        self._watchers: dict[Callable[[int], bool], Callable[[], None]] = {}

    def when_opened(self, opened: Opened) -> None:
        """Watch the commits of files that are open now."""
        database = opened.database
        if database.index is not None:  # where there is none, SQLite checkpoints at its commits
            grown = next(reversed(list(self._watchers)), None)
            database.after_commit = _AfterCommit(database, database.index, self._clock, grown)
        for tell in list(self._watchers.values()):
            tell()

    @property
    def is_open(self) -> bool:
        """Whether this process has the file open now."""
        return self._opening.current is not None

    def open(self) -> None:
        """Open the file now, where it is not."""
        self._opening.opened()

    def state(self) -> checkpoints.WalState | None:
        """How many pages are in the -wal, and how many of them in the database already; None while it is not open."""
        with self._opening.using_open() as opened:
            return None if opened is None else opened.database.read(checkpoints.wal_state)

    def file_bytes(self) -> int:
        """The size of the -wal's file, which never shrinks but by TRUNCATE and at the last close; 0 where it is not."""
        try:
            return os.stat(f"{os.path.realpath(self._opening.path)}-wal").st_size
        except OSError:
            return 0

    def checkpoint(self, mode: checkpoints.Mode, *, busy_s: float | None = None) -> checkpoints.Checkpoint:
        """Move pages from the -wal into the database; see `checkpoints.checkpoint`.

        ``busy_s`` bounds how long it waits for others, in place of the registry's busy time-out: FULL, RESTART and
        TRUNCATE keep every writer out for as long as they wait for readers. Readers that kept it from completing are
        named in the answer.
        """
        with self._opening.using() as opened:
            return self._checkpoint(opened.database, mode, busy_s)

    def checkpoint_open(self, mode: checkpoints.Mode, *, busy_s: float | None = None) -> checkpoints.Checkpoint | None:
        """The same where the file is open; None where it is not, which is then left so."""
        with self._opening.using_open() as opened:
            return None if opened is None else self._checkpoint(opened.database, mode, busy_s)

    def _checkpoint(self, database: Database, mode: checkpoints.Mode, busy_s: float | None) -> checkpoints.Checkpoint:
        begun = self._clock.monotonic()
        until = begun + (database.busy_s if busy_s is None else busy_s)
        database.durable()
        done = database.read(_checkpoint, database, mode) if mode == "PASSIVE" else _alone(database, mode, until)
        done = done._replace(duration_us=round((self._clock.monotonic() - begun) * 1_000_000))
        if not done.busy:
            return done
        from idemreg.sqlite.readers import wal_readers  # noqa: PLC0415 - only where somebody is in the way

        return done._replace(readers=wal_readers(database.path, self._clock))

    def watch(self, grown: Callable[[int], bool], opened: Callable[[], None]) -> None:
        """From now on ``grown`` hears of each commit of this process, which does not checkpoint by itself.

        It gets the pages in the -wal, and answers whether the commit shall checkpoint all the same. It must be quick
        and never raise. ``opened`` is called whenever the file is opened, and now if it is. Whoever watched before
        hears of no commit until this one has stopped watching.
        """
        self._watchers.setdefault(grown, opened)
        self._changed()

    def unwatch(self, grown: Callable[[int], bool]) -> None:
        """Give the checkpoints back to who watched before, or to the commits. In any order; twice is nothing."""
        if self._watchers.pop(grown, None) is not None:
            self._changed()

    def _changed(self) -> None:
        if (now_open := self._opening.current) is not None:
            self.when_opened(now_open)

    def forget(self, grown: Callable[[int], bool]) -> None:
        """In a forked child: as `unwatch`, for what it will open. What the parent has open is not touched."""
        self._watchers.pop(grown, None)


def _alone(database: Database, mode: checkpoints.Mode, until: float) -> checkpoints.Checkpoint:
    """A checkpoint that keeps writers out, under the write turn. Busy where the turn is not free in time."""
    try:
        with database.alone(until) as connection:
            return _checkpoint(connection, database, mode)
    except StoreBusyError:
        state = database.read(checkpoints.wal_state)
        return checkpoints.Checkpoint(mode, state.pages, state.moved, busy=True)


def _checkpoint(connection: Connection, database: Database, mode: checkpoints.Mode) -> checkpoints.Checkpoint:
    """A checkpoint; `SyncFailedError` where what it would move may not be on the disk, or the files are others now."""
    if database.sync is not None:
        database.sync.check_before_moving(connection)
    database.check_files()
    with noted.moving(database.path, database.lock_file, database.index):
        return checkpoints.checkpoint(connection, mode)


def _fill(fd: int) -> None:
    """Zeros up to the working size; none at all where there is no room for that: the rows need what there is."""
    size = os.lseek(fd, 0, os.SEEK_END)
    try:
        for offset in range(size, WORKING_BYTES, ZEROS_AT_ONCE):
            os.pwrite(fd, bytes(min(ZEROS_AT_ONCE, WORKING_BYTES - offset)), offset)
    except OSError:
        os.ftruncate(fd, size)
        raise


class _AfterCommit:
    """What a commit does for the -wal once it is through."""

    def __init__(self, database: Database, index: WalIndex, clock: Clock, grown: Callable[[int], bool] | None) -> None:
        assert database.sync is not None  # noqa: S101 - it comes with the index
        self._sync = database.sync
        self._database = database
        self._index = index
        self._clock = clock
        self._grown = self._is_long if grown is None else grown
        self._is_grown = False
        self._frames = 0
        self._due_at = AUTOCHECKPOINT_PAGES

    def __call__(self) -> None:
        frames = self._index.frames
        if frames < self._frames:  # the -wal began anew, and may have been cut
            self._due_at = AUTOCHECKPOINT_PAGES
            self._is_grown = False
        self._frames = frames
        # The commit is done: an error here would make its caller believe that it failed. A failed sync is remembered.
        if not self._is_grown and self._sync.syncs >= SYNCS_BEFORE:
            self._is_grown = True
            with contextlib.suppress(StoreError, OSError):
                self._grow()
        if self._grown(frames) and self._index.moved < frames:
            with contextlib.suppress(StoreError, OSError):
                self._checkpoint()

    def _is_long(self, frames: int) -> bool:
        if frames < self._due_at:
            return False
        self._due_at = frames + AUTOCHECKPOINT_PAGES  # not at every commit, while a reader makes it futile
        return True

    def _checkpoint(self) -> None:
        with self._turn() as is_ours:
            if not is_ours:
                return
            database = self._database
            database.durable()
            database.read(_checkpoint, database, "PASSIVE")
            with database.alone(self._clock.monotonic() + PATIENCE_S) as connection:
                _checkpoint(connection, database, "PASSIVE")

    def _grow(self) -> None:
        """Write zeros beyond the end of the -wal, which nobody else moves under the write lock."""
        if self._sync.wal_bytes() >= WORKING_BYTES:
            return
        with self._database.alone(self._clock.monotonic() + PATIENCE_S) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                with opened(f"{self._database.path}-wal", os.O_WRONLY) as fd:
                    _fill(fd)
                    self._sync_grown(fd)
            finally:
                connection.execute("ROLLBACK")

    def _sync_grown(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError:  # of what others have committed as well, and no other descriptor need hear of it
            self._sync.taint()
            raise

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """One thread of one process checkpoints; the others go on.

        The place is one for all that hear of the file's commits, of which one may follow another meanwhile. It holds a
        ticket that was made before, as the gate does and why; see `writing`.
        """
        turns, ticket = self._database.turns, object()
        try:
            yield turns.checkpointing.setdefault(_AT_WORK, ticket) is ticket and turns.checkpoint.try_take()
        finally:
            try:
                _leave(turns, ticket)
            finally:
                _leave(turns, ticket)


def _leave(turns: Turns, ticket: object) -> None:
    """Twice is once. A turn that another process has is not taken from it."""
    if turns.checkpointing.get(_AT_WORK) is ticket:
        turns.checkpoint.drop()
        del turns.checkpointing[_AT_WORK]
