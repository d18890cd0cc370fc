"""What lay at rest: whether the files are still what the last process left, asked by the first to open them.

While nobody had the files open, anybody may have changed, lost or replaced them, and SQLite would not know. It reads a
-wal up to the first frame that is not whole, and takes what comes behind it for never committed: one bit flipped there,
and tasks that had ended are gone, and would run again. It takes a missing -wal for an empty one, an old one for its
own.

The lock file holds two records that tell more. That of the syncs (`syncing`, offset 64) says which frames were on the
disk for certain: the salts of the -wal, the last frame, the checksum over all frames up to it. The other is written
here, when nobody's frames are left to be moved (behind a checkpoint, and at the end):

    offset 176  epoch   uint64    the highest of any token that this lock file has seen given, and each of its bits
    offset 184                    turned over; both 0 where it has seen none
    offset 192  noted   uint64    1 where the rest holds; 0 from before a checkpoint until behind it, where only the
                                  inodes hold
    offset 200  inode, size, mtime, ctime (nanoseconds) of the database, int64 each
    offset 232  begun   uint64    the number of the last sync that had begun by then
    offset 240  salts   8 bytes   of the -wal, all of whose frames up to
    offset 248  moved   uint64    this one were in the database
    offset 256  lock    uint64    the inode of this lock file
    offset 264  boot    16 bytes  the boot in which it was noted
    offset 504  dead    uint64    how many salts of -wals that are over were noted, in a ring of 64
    offset 512  the ring, 8 bytes each
    offset 1024 waits   8 bytes   the salts of a -wal that is over once the next has a frame

The first to open the files holds a byte of the lock file alone for a moment; all who have them open share it. He lets
SQLite recover the -wal, compares, and only then writes anything. He refuses where he knows that something is lost:

1. *Frames.* A -wal with the salts of the last sync is the same -wal, since salts are drawn anew whenever it begins
   anew. It can be longer than it was at that sync, never shorter, whoever was killed and wherever the power went: the
   sync had put these frames on the disk. Shorter, or of another checksum at that frame: frames were lost or changed.
   Likewise where its header is damaged, and its first frame has these salts.
2. *The whole -wal.* SQLite begins a -wal anew, empties or removes it once all of it is in the database, to which it has
   written then. So where the database was not written since the note, a sync that began after the note has covered
   frames which are nowhere else; if the -wal has other salts now, or is not there, they were lost. This is said within
   one boot only: a cut of the power may lose the times of the database, and keep its content.
3. *An older -wal.* One whose salts are in the ring was over before a later one was synced. Moved into the database, it
   would undo what came after it. (The ring is written behind a sync of the later one, and so of the folder: no cut of
   the power brings the older one back.)
4. *Content that a -wal hides.* Where a -wal that no sync of ours has seen lies over a database that was not written
   since the note, the database itself is whole. No task of it that is over may be missing behind that -wal, or be
   another, unless the token floor was raised, as it is with every row that goes. (That of another registry hides rows.)
5. *Another database under the -wal.* The -wal, of the very frames, and the lock file are the files that were there, and
   the database is another file: frames of the one would be moved into the other.

A program that knows nothing of idemreg may have done what it likes with SQLite: a checkpoint writes to the database, so
rule 2 says nothing any more; a -wal of its own has salts that no rule knows. Where the records are missing, void or of
a lock file that was copied, they say nothing.

What is not refused may be suspicious all the same: the database is not as it was noted (a backup was put in its place,
or a process was killed in the middle of a checkpoint), or a -wal is there that no sync of ours has seen. Then the
epoch of the tokens is raised above all that were given (`upkeep`), for an older copy would give them once more; and
SQLite's integrity_check looks at the whole, where that takes no more than some seconds (`CHECKED_BYTES`).

Salts have no order that could tell older from newer. SQLite adds one to the first at a restart; but a connection that
was no part of a restart, and writes first behind it, draws both at random.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from idemreg.errors import StoreCorruptError, StoreError
from idemreg.lockfile import write_whole
from idemreg.sqlite import pages
from idemreg.sqlite.connection import harden
from idemreg.sqlite.walindex import FILE_HEADER_BYTES, FRAME_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.lockfile import LockFile
    from idemreg.sqlite.walindex import WalIndex

__all__ = [
    "CHECKED_BYTES",
    "Verdict",
    "Wal",
    "bury",
    "check_uncovered",
    "check_wal",
    "judge",
    "moving",
    "note",
    "raise_epoch",
    "void",
    "wal_at",
]

# Of the database: what integrity_check reads in about a second, on a busy machine.
CHECKED_BYTES: Final = 64 * 2**20

_SYNCS: Final = struct.Struct("<48sQQQQ16s")
_SYNCS_AT: Final = 64
_EPOCH_AT: Final = 176
_NOTE: Final = struct.Struct("<QqqqqQ8sQQ16s")
_NOTE_AT: Final = 192
_BOOT_AT: Final = 144
_RING_AT: Final = 504
_RING_SALTS: Final = 64
_WAITING_AT: Final = _RING_AT + 8 + 8 * _RING_SALTS
_NUMBER: Final = struct.Struct("<Q")
_EPOCH: Final = struct.Struct("<QQ")
_ALL_ONES: Final = 2**64 - 1

_READ_ONLY: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
_REGISTRY: Final = "SELECT registry_id, floor FROM idempotent_registry"
_OVER: Final = "SELECT task_id, token, state_seal FROM idempotent_log WHERE status IN (1, 5, 6)"

_INDEX: Final = struct.Struct("=12xBxHII8s8s8x")  # of the header of the index: see `walindex`
_NO_SALTS: Final = bytes(8)
_SALTS_AT: Final = 16  # in the -wal's own header
WAL_MAGIC: Final = 0x377F0682  # or one more, where the checksums are big-endian


class Wal(NamedTuple):
    """A -wal, as its index or a sync has told of it. ``frames`` is 0 where there is none."""

    frames: int = 0
    checksum: bytes = _NO_SALTS  # over all of them, as two numbers of this machine
    salts: bytes = _NO_SALTS
    page_bytes: int = 0

    @classmethod
    def of(cls, header: bytes | None) -> Wal:
        """By the header of an index."""
        if header is None:
            return cls()
        is_init, page, frames, _, checksum, salts = _INDEX.unpack(header)
        return cls(frames, checksum, salts, 65_536 if page == 1 else page) if is_init == 1 else cls()


class Verdict(NamedTuple):
    """What is to be done about the files; where anything is lost, `judge` raises."""

    is_changed: bool = False  # the database may be an older copy
    is_strange: bool = False  # the whole is to be checked
    is_covered: bool = False  # a -wal that no sync of ours has seen lies over a database that was not written since


class _Note(NamedTuple):
    noted: int
    inode: int
    size: int
    mtime: int
    ctime: int
    begun: int
    salts: bytes
    moved: int
    lock_inode: int
    boot: bytes


def judge(database: str, lock_file: LockFile, boot: bytes, index: WalIndex) -> Verdict:
    """Compare what is there with what was left, with nobody else inside; `StoreCorruptError` where anything is lost.

    ``boot``: the digest of this boot. A connection that has read the database must be open, and the index its.
    """
    there = Wal.of(index.header())
    synced, left, is_same = check_wal(database, lock_file, boot, there)
    is_strange = not is_same or (there.frames > 0 and there.salts != synced.salts)
    if is_same and left.boot != boot:
        _write(lock_file, left._replace(begun=0, boot=boot))
    elif not is_same:
        inode, own = os.stat(database).st_ino, os.fstat(lock_file.fd).st_ino
        _write(lock_file, left._replace(noted=0, inode=inode, lock_inode=own))
    return Verdict(is_changed=not is_same, is_strange=is_strange, is_covered=is_same and is_strange)


def check_wal(database: str, lock_file: LockFile, boot: bytes, there: Wal) -> tuple[Wal, _Note, bool]:
    """`StoreCorruptError` where the -wal that is there is not what the lock file tells of: rules 1, 2, 3 and 5.

    Else what was synced, what was noted, and whether the database is as it was noted. Writes nothing.
    """
    header, _, done, _, wal_inode, synced_boot = _SYNCS.unpack(lock_file.read(_SYNCS_AT, _SYNCS.size))
    wal, synced, left = f"{database}-wal", Wal.of(header), _read(lock_file)
    now = os.stat(database)
    is_same = bool(left.noted) and left[1:5] == (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    if synced.frames:
        if there.salts == synced.salts or _has_damaged_header(wal, synced.salts):
            _check_frames(wal, synced, there)
        elif is_same and left.boot == synced_boot == boot and done > left.begun and not _was_moved(synced, left):
            raise _lost(wal, "is not the one that was there, which held what is not in the database yet")
    if there.frames:  # also those of a claim that was never synced
        _check_inodes(database, lock_file, left, now.st_ino, wal_inode)
    if there.frames and there.salts in _ring(lock_file):
        raise _lost(wal, "is an older one, whose content has been in the database for long")
    return synced, left, is_same


def wal_at(database: str, frames: int) -> Wal:
    """The -wal beside the database, of which so many frames are committed; for `check_wal` without an index."""
    return Wal(frames, salts=_read_some(f"{database}-wal", _SALTS_AT, 8)) if frames else Wal()


def _was_moved(synced: Wal, left: _Note) -> bool:
    return synced.salts == left.salts and synced.frames <= left.moved


def _check_frames(path: str, synced: Wal, there: Wal) -> None:
    """Rule 1."""
    if there.frames < synced.frames:
        raise _lost(path, "has lost frames that were on the disk", f"{there.frames} of {synced.frames} can be read")
    at = FILE_HEADER_BYTES + (synced.frames - 1) * (FRAME_HEADER_BYTES + synced.page_bytes) + 16
    checksum = struct.pack("=II", *struct.unpack(">II", _read_some(path, at, 8).ljust(8, b"\0")))
    if checksum != synced.checksum:
        raise _lost(path, "was changed: its frames are not those that were on the disk")


def _has_damaged_header(path: str, salts: bytes) -> bool:
    head = _read_some(path, 0, FILE_HEADER_BYTES + 16)
    if len(head) < FILE_HEADER_BYTES + 16 or head[FILE_HEADER_BYTES + 8 :] != salts:
        return False
    magic, *words, first, second = struct.unpack(">8I", head[:FILE_HEADER_BYTES])
    if magic & ~1 != WAL_MAGIC:
        return any(head[:FILE_HEADER_BYTES])
    if not magic & 1:
        magic, *words = struct.unpack("<6I", head[:24])
    low = high = 0
    for even, odd in zip([magic, *words][::2], [magic, *words][1::2], strict=True):
        low = (low + even + high) & 0xFFFFFFFF
        high = (high + odd + low) & 0xFFFFFFFF
    return (low, high) != (first, second)


def _read_some(path: str, at: int, size: int) -> bytes:
    # The -wal carries none of SQLite's locks, which the close of another descriptor would drop.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # and not where the disk cannot tell: nobody is to be told of damage then
        return b""
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)


def _check_inodes(database: str, lock_file: LockFile, left: _Note, inode: int, wal_inode: int) -> None:
    """Rule 5."""
    if left.inode in {0, inode} or left.lock_inode != os.fstat(lock_file.fd).st_ino:
        return
    if os.stat(f"{database}-wal").st_ino == wal_inode:
        msg = f"{database} was replaced, and the -wal of the one that was there lies beside it"
        hint = f"If a backup was put in its place, remove {database}-wal and {database}-shm, which are not of it."
        raise StoreCorruptError(msg, hint=hint)


def _lost(path: str, what: str, more: str = "") -> StoreCorruptError:
    hint = (
        "Put the -wal back as it was, or a backup in the place of the database (remove -wal and -shm then). To go on"
        " with what is left, and forget what was lost, delete the lock file."
    )
    return StoreCorruptError(f"{path} {what}" + (f": {more}" if more else ""), hint=hint)


def check_uncovered(database: str, connection: apsw.Connection) -> None:
    """Rule 4. ``connection`` sees the database through its -wal."""
    plain = apsw.Connection(f"{pages.uri(database)}?immutable=1", flags=_READ_ONLY, vfs=pages.vfs())
    try:
        harden(plain)  # its schema was not looked at: the one that was lies over it
        rows: list[Any] = [one.execute(_REGISTRY).fetchall()[0] for one in (plain, connection)]
        (registry_id, floor), (seen_id, seen_floor) = rows
        over = set(plain.execute(_OVER).fetchall())
        is_raised = registry_id == seen_id and seen_floor > floor
        is_hiding = bool(over) and not is_raised and not over.issubset(connection.execute(_OVER))
    finally:
        plain.close()
    if is_hiding:
        wal = f"{database}-wal"
        raise _lost(wal, "hides what is in the database, as that of another registry would")


# --- the note -------------------------------------------------------------------------------------------------------


def void(lock_file: LockFile) -> None:
    """Before a checkpoint: whoever is killed in the middle of it leaves no note that is not true any more."""
    os.pwrite(lock_file.fd, _NUMBER.pack(0), _NOTE_AT)


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
    page = os.pread(lock_file.fd, _SYNCS.size, _SYNCS_AT)
    if index.header() != header or len(page) < _SYNCS.size:
        return
    _, begun, _, _, _, boot = _SYNCS.unpack(page)
    own = os.fstat(lock_file.fd).st_ino
    times = now.st_mtime_ns, now.st_ctime_ns
    _write(lock_file, _Note(1, now.st_ino, now.st_size, *times, begun, there.salts, there.frames, own, boot))


def _read(lock_file: LockFile) -> _Note:
    return _Note._make(_NOTE.unpack(lock_file.read(_NOTE_AT, _NOTE.size)))


def _write(lock_file: LockFile, left: _Note) -> None:
    void(lock_file)
    noted, rest = (data := _NOTE.pack(*left))[: _NUMBER.size], data[_NUMBER.size :]
    if os.pwrite(lock_file.fd, rest, _NOTE_AT + _NUMBER.size) == len(rest):  # half of it would not be true
        os.pwrite(lock_file.fd, noted, _NOTE_AT)


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
    if not now.frames or (waiting := lock_file.read(_WAITING_AT, 8)) == _NO_SALTS:
        return
    if waiting != now.salts:
        (number,) = _NUMBER.unpack(lock_file.read(_RING_AT, _NUMBER.size))
        os.pwrite(lock_file.fd, waiting, _RING_AT + 8 + 8 * (number % _RING_SALTS))
        os.pwrite(lock_file.fd, _NUMBER.pack((number + 1) & _ALL_ONES), _RING_AT)
    os.pwrite(lock_file.fd, _NO_SALTS, _WAITING_AT)


def _ring(lock_file: LockFile) -> frozenset[bytes]:
    ring = lock_file.read(_RING_AT + 8, 8 * _RING_SALTS)
    return frozenset(ring[at : at + 8] for at in range(0, len(ring), 8)) - {_NO_SALTS}
