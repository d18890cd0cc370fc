"""Group sync: commits leave the -wal to one sync that covers them all, of every thread and process.

Connections commit at synchronous=NORMAL, which appends to the -wal and syncs nothing. What must be durable is then
synced here, outside of SQLite's write lock, by whoever holds the sync turn; all others who wait are covered by it or by
the next. There is no daemon, and nothing to set up. The lock file holds what the last good sync covered:

    offset  64  header  48 bytes  the -wal's index when that sync began (see `walindex`)
    offset 112  begun   uint64    the number of the last sync that began
    offset 120  done    uint64    the number of the last sync that ended well
    offset 128  failed  uint64    0, or 1 where a sync has failed
    offset 136  inode   uint64    of the -wal
    offset 144  boot    16 bytes  a digest of the boot in which all this was written
    offset 160  wanted  uint64    the number of a sync that somebody sleeps for; not the latest in each case

Why it is correct, step by step.

1. *A sync covers what was in the page cache when it began.* SQLite publishes the header behind the frames. So a sync
   that began after somebody saw header H covers all that H tells of. That is why the header to be published is read
   before the sync (read after it, it could tell of frames that the sync never saw), and published after it.
2. *Equal header, equal -wal*: the header holds the checksum over all frames and the salts of the -wal. So who finds the
   header of now to be the published one needs no sync, whoever wrote, in whatever process or program.
3. *Who finds another header joins a sync that begins later than that.* He reads ``begun``, and waits for ``done`` to be
   above it: a sync numbered above began after he read. Number and header come before the sync itself, in either order:
   what counts is that it began behind both. Numbers are needed because headers have no order once the -wal began anew.
4. *A reader joins too.* A row is visible as soon as it is committed, and may not be durable yet. Nobody answers from a
   final row (`durable` after the read): a power cut could take it back, and the task would run again. The reader's
   snapshot is never newer than the header that he looks at afterwards.
5. *The -wal that begins anew, or is truncated or deleted,* was moved into the database before, and SQLite syncs it and
   then the database before it says so, at NORMAL too. So what a sync would have covered is durable by then. A -wal that
   was deleted and made anew has another inode: the record is then void but for its numbers, which go on.
6. *A process that dies or stops*, wherever: the kernel drops its turn. Its commits are told of by the header already,
   so the next reader or writer syncs them. A sync that began and never ended leaves ``begun`` above ``done``; the next
   takes the next number. A stopped leader costs the others a short patience, after which each syncs by himself and
   publishes nothing.
7. *A sync that failed* is told to each open descriptor once; later ones say OK, and the page cache shows what the disk
   does not have. So ``failed`` is written before the turn is dropped, and looked at before anything is believed. What
   is visible proves nothing from then on: no answer is durable before the machine was booted anew, which clears the
   page cache, and the mark. Nor is the -wal moved into the database, not even by the last to close it: on the disk the
   database could be overwritten by half of what the -wal there lacks.
8. *Another boot*: numbers and the failed mark are void, and the header, which costs one sync. The first opener of a
   boot sees to it before it writes anything (`LockFile.begin_boot`).
9. *The -wal that is synced is the one at the path.* A descriptor of a deleted file syncs happily, so the guard looks at
   the names before each sync (see `guard`). And what others have synced counts only for the -wal that they had: the
   record tells of another inode where it was deleted under this process, and somebody has begun a new one.

Whoever waits says in ``wanted`` that he does, and sleeps on the low half of ``done`` (see `futex`), on the channel of
the sync that will cover him. A leader that is done and finds his number wanted wakes those that he has covered, and one
of the next sync to lead it. Nobody is missed but for a nap: who says so too late for the leader to see it finds
``done`` changed, and where two say it at once, the smaller number may stay.

All of this comes behind a sync, when the processor's caches have forgotten it: a call of the system that a claim can do
without saves it five to fifteen microseconds, ten times what the call costs in a loop.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import contextlib
import os
import struct
import sys
import threading
from typing import Final, NamedTuple

from idemreg import faults
from idemreg.clock import Clock
from idemreg.errors import StoreCorruptError, StoreError, SyncFailedError
from idemreg.futex import Futex
from idemreg.lockfile import SYNC_RECORD_OFFSET, LockFile, write_whole
from idemreg.sqlite.connection import Connection
from idemreg.sqlite.guard import Guard
from idemreg.sqlite.noted import bury
from idemreg.sqlite.walindex import FRAMES, HEADER_BYTES, NO_HEADER, SALTS, WalIndex
from idemreg.turn import Turn

__all__ = ["GroupSync", "SyncRecord"]

_RECORD: Final = struct.Struct("<48sQQQQ16sQ")
_NUMBER: Final = struct.Struct("<Q")
_BEGUN_OFFSET: Final = SYNC_RECORD_OFFSET + HEADER_BYTES
_DONE_OFFSET: Final = _BEGUN_OFFSET + (8 if sys.byteorder == "little" else 12)
_INODE_OFFSET: Final = _BEGUN_OFFSET + 24
_WANTED_OFFSET: Final = _BEGUN_OFFSET + 48

# Seconds that a sync of another process is waited for; or three times the last sync, where that is more.
PATIENCE_S: Final = 0.02
PATIENT_SYNCS: Final = 3

# Seconds between two looks of somebody whom nobody wakes: whoever had the turn was killed.
LONGEST_NAP_S: Final = 0.002


class SyncRecord(NamedTuple):
    """What the lock file says about the syncs of the -wal."""

    header: bytes
    begun: int
    done: int
    failed: int
    inode: int
    boot: bytes
    wanted: int


class GroupSync:
    """Makes what is committed durable, for one process. Thread-safe."""

    def __init__(
        self, lock_file: LockFile, wal_path: str, index: WalIndex, turn: Turn, clock: Clock, guard: Guard
    ) -> None:
        """Open the -wal, which some connection must keep in being, and which the guard watches from now on."""
        self._lock_file = lock_file
        self._guard = guard
        self._index = index
        self._turn = turn
        self._clock = clock
        self._path = wal_path
        self._fd = -1
        try:
            self._fd = os.open(wal_path, os.O_RDWR | os.O_CLOEXEC)
            self._inode = os.fstat(self._fd).st_ino
            self._done = Futex(lock_file.path, lock_file.fd, _DONE_OFFSET, clock)
        except BaseException:  # too many files are open
            self._close_wal()
            raise
        guard.watch_wal(self._fd, index)
        self._leading = threading.RLock()  # the turn does not see the threads of its own process
        self._is_leading = False
        self._synced = b""  # both copies of a header that is known to be covered
        self._failed = False
        self._last_s = 0.0
        # Syncs of this process, published or not: how many began, and the last that ended well.
        self._begun = self.syncs = 0

    # --- the record -----------------------------------------------------------------------------------------------

    def _read(self) -> SyncRecord:
        data = os.pread(self._lock_file.fd, _RECORD.size, SYNC_RECORD_OFFSET)
        if len(data) < _RECORD.size:
            msg = f"the lock file {self._lock_file.path} was cut short"
            raise StoreCorruptError(msg, hint="Stop every process that uses the registry, and open it again.")
        return SyncRecord._make(_RECORD.unpack(data))

    def _put(self, offset: int, data: bytes) -> None:
        # In one call and inside one page: no kill and no reader comes in between, unless the disk takes it by halves.
        # Never more than is to be changed: ``failed`` may be written at any moment.
        write_whole(self._lock_file.fd, data, offset)

    def _sound(self) -> SyncRecord:
        """The record, if no sync has failed and the -wal is still there."""
        record = self._read()
        if self._failed or record.failed:
            msg = "a sync of the -wal failed earlier, so what is visible may not be on the disk"
            raise SyncFailedError(msg)
        if record.inode != self._inode:
            self._guard.look_at_names()
        return record

    def _covers(self, record: SyncRecord, seen: int) -> bool:
        """Whether a sync numbered above ``seen`` is done, of this very -wal (see step 9)."""
        return record.done > seen and record.inode == self._inode

    # --- sync -----------------------------------------------------------------------------------------------------

    def durable(self) -> None:
        """Return once all that is committed now is on the disk. No deadline: what is committed cannot be taken back.

        `SyncFailedError`: it may or may not be there, and nothing that is visible proves it before the next boot.
        """
        if self._index.copies.raw == self._synced:
            return  # no system call
        faults.point("sync.wanted")
        try:
            begun = self._begun
            header = self._index.header()
            record = self._sound()
            if header is not None and header == record.header and record.inode == self._inode:
                self._note_synced(header)
            else:
                self._join(record.begun, begun)
        except OSError as error:
            raise self._refused(error) from error

    def check(self, *, is_synced: bool = True) -> None:
        """`SyncFailedError` where a sync has failed in this boot, and nothing that is visible is sure.

        ``is_synced``: False before a claim that needs no sync of its own. It stands on the epoch of the tokens, and
        whoever has raised that may have been killed between his commit and its sync.
        """
        try:
            self._sound()
            if not is_synced and not self.syncs:
                self.durable()
        except OSError as error:
            raise self._refused(error) from error

    def check_before_moving(self, connection: Connection) -> None:
        """`SyncFailedError` where the -wal must not be moved into the database by this connection.

        SQLite syncs the -wal first, by a descriptor that it opens as late as it can, and the kernel tells of a failure
        only those that were open. So it is opened here, and then a sync that is under way is waited for: where that
        fails, its leader says so before he drops the turn. What fails later SQLite is told by the kernel.
        """
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        with self._leading:
            if not self._is_leading:
                try:
                    self._turn.take(self._clock.monotonic() + PATIENCE_S)
                finally:
                    try:
                        self._turn.drop()
                    except BaseException:  # an interrupt, or no memory, before it was dropped
                        self._turn.drop()
                        raise
        self.check()

    def _refused(self, error: OSError) -> SyncFailedError:
        refused = SyncFailedError(f"the disk reported an error at the sync of {self._path}: {error.strerror}")
        refused.retryable = not self._failed  # it was not the sync itself
        return refused

    def _join(self, seen: int, begun: int) -> None:
        """Wait for a sync numbered above ``seen``, or for one of this process above ``begun``; or make it."""
        with self._leading:
            if self._is_leading:  # called by a finaliser or a signal's handler, in the middle of a sync
                self._sync(None)
                return
            if self.syncs > begun:
                return
            self._is_leading = True
            try:
                has_turn = self._try_take() or self._wait(seen)
                record = self._sound()
                if not self._covers(record, seen):
                    record = self._sync(record if has_turn else None)
            finally:
                self._is_leading = False
                try:
                    self._turn.drop()
                except BaseException:  # as above
                    self._turn.drop()
                    raise
            if has_turn and record.wanted >= record.done:
                self._done.wake(record.done)
                self._done.wake(record.done + 1, 1)

    def _wait(self, seen: int) -> bool:
        """True once the turn is ours; False once another's sync covers, or patience has ended."""
        until = self._clock.monotonic() + max(PATIENCE_S, PATIENT_SYNCS * self._last_s)
        while (left := until - self._clock.monotonic()) > 0:
            record = self._sound()
            if self._covers(record, seen):
                return False
            if self._try_take():
                return True
            if record.wanted <= seen:
                self._put(_WANTED_OFFSET, _NUMBER.pack(seen + 1))
            self._done.wait(record.done, seen + 1, min(left, LONGEST_NAP_S))
        return False  # its holder is stopped, or its disk is

    def _try_take(self) -> bool:
        try:
            return self._turn.try_take()
        except StoreError:  # the system has no lock to give: who syncs alone needs none, and what is committed stays
            return False

    def _sync(self, record: SyncRecord | None) -> SyncRecord:
        """Sync the -wal; with the turn, and so the record as it stands, number the sync and publish what it covers.

        The record afterwards.
        """
        begun = self._begun = self._begun + 1
        if record is not None:
            self._put(_BEGUN_OFFSET, _NUMBER.pack(record.begun + 1))
        faults.point("sync.begun")
        header = self._index.header() or NO_HEADER  # before the sync: see step 1
        begun_at = self._clock.monotonic()
        self._guard.check_names(begun_at)
        try:
            os.fdatasync(self._fd)
        except OSError:  # of this alone: where the lock file cannot be written, no sync has lost anything
            self.taint()  # with the turn held: the next must not begin before
            raise
        self._last_s = self._clock.monotonic() - begun_at
        faults.point("sync.done")
        if record is not None:
            self._publish(record, header)
            faults.point("sync.published")
        record = self._sound()  # nobody without the turn has failed meanwhile
        self.syncs = begun
        self._note_synced(header)
        return record

    def _publish(self, record: SyncRecord, header: bytes) -> None:
        if record.header[SALTS] != header[SALTS] or not any(record.header[FRAMES]):
            bury(self._lock_file, record.header, header)
        if record.inode != self._inode:  # the first sync of this -wal
            self._put(SYNC_RECORD_OFFSET, NO_HEADER)
            self._put(_INODE_OFFSET, _NUMBER.pack(self._inode))
        self._put(SYNC_RECORD_OFFSET, header + _NUMBER.pack(record.begun + 1) * 2)

    def _note_synced(self, header: bytes) -> None:
        self._synced = header * 2
        if self._failed:  # another thread was told so meanwhile
            self._synced = b""

    def taint(self) -> None:
        """A write or sync of the files has failed: nothing that is visible proves anything from now on."""
        self._failed = True
        self._synced = b""
        with contextlib.suppress(OSError):  # then this process alone knows
            self._lock_file.note_failed_sync()

    def wal_bytes(self) -> int:
        """The size of the -wal's file, without a stat (see step 9)."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def close(self) -> None:
        """Close the -wal, which carries no locks."""
        try:
            if self._fd >= 0:
                self._done.close()
        finally:  # there may be no memory for it
            self._close_wal()

    def _close_wal(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
