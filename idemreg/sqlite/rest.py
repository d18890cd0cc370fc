"""What lay at rest: whether the files are still what the last process left, asked by the first to open them.

While nobody had the files open, anybody may have changed, lost or replaced them, and SQLite would not know. It reads a
-wal up to the first frame that is not whole, and takes what comes behind it for never committed: one bit flipped there,
and tasks that had ended are gone, and would run again. It takes a missing -wal for an empty one, an old one for its
own.

The lock file holds two records that tell more. That of the syncs (`syncing`, offset 64) says which frames were on the
disk for certain: the salts of the -wal, the last frame, the checksum over all frames up to it. The other is written
(by `noted`) when nobody's frames are left to be moved, behind a checkpoint and at the end:

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

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import os
import struct
from typing import Any, Final, NamedTuple

import apsw

from idemreg.descriptors import opened
from idemreg.errors import StoreCorruptError
from idemreg.lockfile import LockFile
from idemreg.sqlite import pages
from idemreg.sqlite.connection import harden
from idemreg.sqlite.noted import NO_SALTS, NOTE, NOTE_AT, RING_AT, RING_SALTS, SYNCS, SYNCS_AT, Wal, write_note
from idemreg.sqlite.walindex import FILE_HEADER_BYTES, FRAME_HEADER_BYTES, WalIndex

__all__ = [
    "CHECKED_BYTES",
    "Verdict",
    "check_uncovered",
    "check_wal",
    "judge",
    "wal_at",
]

# Of the database: what integrity_check reads in about a second, on a busy machine.
CHECKED_BYTES: Final = 64 * 2**20

_READ_ONLY: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
_REGISTRY: Final = "SELECT registry_id, floor FROM idempotent_registry"
_OVER: Final = "SELECT task_id, token, state_seal FROM idempotent_log WHERE status IN (1, 5, 6)"

_SALTS_AT: Final = 16  # in the -wal's own header
WAL_MAGIC: Final = 0x377F0682  # or one more, where the checksums are big-endian


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
        write_note(lock_file, *left._replace(begun=0, boot=boot))
    elif not is_same:
        inode, own = os.stat(database).st_ino, os.fstat(lock_file.fd).st_ino
        write_note(lock_file, *left._replace(noted=0, inode=inode, lock_inode=own))
    return Verdict(is_changed=not is_same, is_strange=is_strange, is_covered=is_same and is_strange)


def check_wal(database: str, lock_file: LockFile, boot: bytes, there: Wal) -> tuple[Wal, _Note, bool]:
    """`StoreCorruptError` where the -wal that is there is not what the lock file tells of: rules 1, 2, 3 and 5.

    Else what was synced, what was noted, and whether the database is as it was noted. Writes nothing.
    """
    header, _, done, _, wal_inode, synced_boot = SYNCS.unpack(lock_file.read(SYNCS_AT, SYNCS.size))
    wal, synced, left = f"{database}-wal", Wal.of(header if _is_whole(header) else None), _read(lock_file)
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
    return _sum([magic, *words]) != (first, second)


def _is_whole(header: bytes) -> bool:
    """Whether the header of an index is what some sync has seen; no where the disk took a part of it."""
    *words, first, second = struct.unpack("=12I", header)
    return _sum(words) == (first, second)


def _sum(words: list[int]) -> tuple[int, int]:
    """SQLite's checksum of a -wal's header, and of its index's."""
    low = high = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        low = (low + even + high) & 0xFFFFFFFF
        high = (high + odd + low) & 0xFFFFFFFF
    return low, high


def _read_some(path: str, at: int, size: int) -> bytes:
    # The -wal carries none of SQLite's locks, which the close of another descriptor would drop.
    try:
        with opened(path, os.O_RDONLY) as fd:
            return os.pread(fd, size, at)
    except FileNotFoundError:  # and not where the disk cannot tell: nobody is to be told of damage then
        return b""


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


def _read(lock_file: LockFile) -> _Note:
    return _Note._make(NOTE.unpack(lock_file.read(NOTE_AT, NOTE.size)))


def _ring(lock_file: LockFile) -> frozenset[bytes]:
    ring = lock_file.read(RING_AT + 8, 8 * RING_SALTS)
    return frozenset(ring[at : at + 8] for at in range(0, len(ring), 8)) - {NO_SALTS}
