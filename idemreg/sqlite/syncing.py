"""Group sync: commits leave the -wal to one sync that covers them all, of every thread and process.

Connections commit at synchronous=NORMAL, which appends to the -wal and syncs nothing. What must be durable is then
synced here, outside of SQLite's write lock, by whoever holds the sync turn; all others who wait are covered by it or by
the next. There is no daemon, and nothing to set up. The lock file holds what the last good sync covered:

    offset  64  header  48 bytes  the -wal's index when that sync began (see `walindex`)
    offset 112  begun   uint64    the number of the last sync that began
    offset 120  done    uint64    the number of the last sync that ended well
    offset 128  failed  uint64    0, or the number of the sync that failed
    offset 136  inode   uint64    of the -wal
    offset 144  boot    16 bytes  a digest of the boot in which all this was written

Why it is correct, step by step.

1. *A sync covers what was in the page cache when it began.* SQLite publishes the header behind the frames. So a sync
   that began after somebody saw header H covers all that H tells of. That is why the header to be published is read
   before the sync (read after it, it could tell of frames that the sync never saw), and published after it.
2. *Equal header, equal -wal*: the header holds the checksum over all frames and the salts of the -wal. So who finds the
   header of now to be the published one needs no sync, whoever wrote, in whatever process or program.
3. *Who finds another header joins a sync that begins later than that.* He reads ``begun``, and waits for ``done`` to be
   above it: a sync numbered above began after he read, and its leader read the header later still. The number is
   written before the header is read; else a sync that began earlier could be taken for a later one. Numbers are needed
   because headers have no order once the -wal began anew.
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
9. *The -wal that is synced is the one at the path.* A descriptor of a deleted file syncs happily. It is compared before
   each sync by its link in /proc: a stat would make the next write of the file dearer (Linux 6.13 and later).
"""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg import faults
from idemreg.errors import StoreCorruptError, SyncFailedError
from idemreg.lockfile import SYNC_RECORD_OFFSET
from idemreg.sqlite.walindex import HEADER_BYTES, NO_HEADER

if TYPE_CHECKING:
    from idemreg.clock import Clock
    from idemreg.lockfile import LockFile
    from idemreg.sqlite.walindex import WalIndex
    from idemreg.turn import Turn

__all__ = ["GroupSync", "SyncRecord"]

_RECORD: Final = struct.Struct("<48sQQQQ16s")
_NUMBER: Final = struct.Struct("<Q")
_BEGUN_OFFSET: Final = SYNC_RECORD_OFFSET + HEADER_BYTES
_INODE_OFFSET: Final = _BEGUN_OFFSET + 24

# Seconds that a sync of another process is waited for; or three times the last sync, where that is more.
PATIENCE_S: Final = 0.02
PATIENT_SYNCS: Final = 3

# Whoever waits needs the rest of one sync and the whole of the next. The first nap is about as long, measured by the
# last sync of this process: a nap costs as much processor time as a commit, so one or two must do.
NAP_SYNCS: Final = 1.5
FIRST_NAP_S: Final = 0.0001
LONGEST_NAP_S: Final = 0.001
NAP_GROWTH: Final = 1.4


class SyncRecord(NamedTuple):
    """What the lock file says about the syncs of the -wal."""

    header: bytes
    begun: int
    done: int
    failed: int
    inode: int
    boot: bytes


class GroupSync:
    """Makes what is committed durable, for one process. Thread-safe."""

    def __init__(self, lock_file: LockFile, wal_path: str, index: WalIndex, turn: Turn, clock: Clock) -> None:
        """Open the -wal, which some connection must keep in being."""
        self._lock_file = lock_file
        self._index = index
        self._turn = turn
        self._clock = clock
        self._path = wal_path
        self._fd = os.open(wal_path, os.O_RDWR | os.O_CLOEXEC)
        self._leading = threading.Lock()  # the turn does not see the threads of its own process
        self._synced = b""  # both copies of a header that is known to be covered
        self._last_s = 0.0
        self.syncs = 0  # made by this process
        self._note_wal()

    def _note_wal(self) -> None:
        """Of another -wal the header says nothing; the numbers go on."""
        inode = os.fstat(self._fd).st_ino
        with self._leading:
            if self._read().inode == inode or not self._turn.take(self._clock.monotonic() + PATIENCE_S):
                return  # where somebody syncs right now, he knows this -wal
            try:
                record = self._read()
                if record.inode != inode:
                    self._put(SYNC_RECORD_OFFSET, NO_HEADER + _NUMBER.pack(record.begun) * 2)
                    self._put(_INODE_OFFSET, _NUMBER.pack(inode))
            finally:
                self._turn.drop()

    # --- the record -----------------------------------------------------------------------------------------------

    def _read(self) -> SyncRecord:
        data = os.pread(self._lock_file.fd, _RECORD.size, SYNC_RECORD_OFFSET)
        if len(data) < _RECORD.size:
            msg = f"the lock file {self._lock_file.path} was cut short"
            raise StoreCorruptError(msg, hint="Stop every process that uses the registry, and open it again.")
        return SyncRecord._make(_RECORD.unpack(data))

    def _put(self, offset: int, data: bytes) -> None:
        # In one call and inside one page: no kill and no reader comes in between. Never more than is to be changed:
        # ``failed`` may be written at any moment.
        os.pwrite(self._lock_file.fd, data, offset)

    # --- sync -----------------------------------------------------------------------------------------------------

    def durable(self) -> None:
        """Return once all that is committed now is on the disk. No deadline: what is committed cannot be taken back.

        `SyncFailedError`: it may or may not be there, and nothing that is visible proves it before the next boot.
        """
        if self._index.copies.raw == self._synced:
            return  # no system call
        header = self._index.header()
        record = self._read()
        if record.failed:
            raise failed_before()
        if header is not None and header == record.header:
            self._synced = header * 2
            return
        self._join(record.begun)

    def check(self) -> None:
        """`SyncFailedError` where a sync has failed in this boot: then not even the epoch of the tokens is sure."""
        if self._read().failed:
            raise failed_before()

    def _join(self, seen: int) -> None:
        """Wait for a sync numbered above ``seen``, or make it."""
        with self._leading:
            nap = min(max(FIRST_NAP_S, NAP_SYNCS * self._last_s), LONGEST_NAP_S)
            until = self._clock.monotonic() + max(PATIENCE_S, PATIENT_SYNCS * self._last_s)
            while not (has_turn := self._turn.try_take()):
                if self._is_covered(seen):
                    return
                if self._clock.monotonic() >= until:
                    break  # its holder is stopped, or its disk is: without the turn nothing is published
                self._clock.sleep(nap)
                nap = min(nap * NAP_GROWTH, LONGEST_NAP_S)
            try:
                if not self._is_covered(seen):
                    self._sync(publish=has_turn)
            finally:
                if has_turn:
                    self._turn.drop()

    def _is_covered(self, seen: int) -> bool:
        record = self._read()
        if record.failed:
            raise failed_before()
        return record.done > seen

    def _sync(self, *, publish: bool) -> None:
        record = self._read()
        number = record.begun + 1
        if publish:
            self._put(_BEGUN_OFFSET, _NUMBER.pack(number))
        faults.point("sync.begun")
        header = self._index.header()  # before the sync: see step 1
        self._check_path()
        begun_at = self._clock.monotonic()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.taint(number)
            msg = f"the disk reported an error at the sync of {self._path}: {error.strerror}"
            raise SyncFailedError(msg) from error
        self._last_s = self._clock.monotonic() - begun_at
        self.syncs += 1
        faults.point("sync.done")
        if publish:
            self._put(SYNC_RECORD_OFFSET, (header or NO_HEADER) + _NUMBER.pack(number) * 2)
            faults.point("sync.published")
        if self._read().failed:  # of somebody without the turn, meanwhile
            raise failed_before()
        if header is not None:
            self._synced = header * 2

    def taint(self, number: int = 0) -> None:
        """A write or sync of the files has failed: nothing that is visible proves anything from now on."""
        self._synced = b""
        self._lock_file.note_failed_sync(number or 1)

    def _check_path(self) -> None:
        """What is about to be synced is the file at the path, and not one that was deleted or replaced."""
        try:
            there = os.readlink(f"/proc/self/fd/{self._fd}")
        except OSError:  # no /proc
            there = self._path if os.stat(self._path).st_ino == os.fstat(self._fd).st_ino else ""
        if there != self._path:
            msg = f"{self._path} was deleted, moved or replaced while this process has the registry open"
            raise SyncFailedError(msg, hint="What was written since may be lost. Stop the processes that have it open.")

    def close(self) -> None:
        """Close the -wal, which carries no locks."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def failed_before() -> SyncFailedError:
    """A sync has failed in this boot, in whichever process."""
    msg = "a sync of the -wal failed earlier, so what is visible may not be on the disk"
    return SyncFailedError(msg)
