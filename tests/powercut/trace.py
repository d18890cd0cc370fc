"""The log of a recording, read: one `Record` after another, in the order in which things happened."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["FOLDER", "BrokenTraceError", "Record", "read"]

# struct header of record.c: magic, size, check | kind, pid, tid, file, at.
HEADER: Final = struct.Struct("<III B3x IIQq")
MAGIC: Final = b"WCUT"
CHECKED_FROM: Final = 12

FOLDER: Final = 0  # as the file of a record: the folder itself


class BrokenTraceError(Exception):
    """The log cannot be judged: something in it is not modelled, or was not recorded."""


class Record(NamedTuple):
    """One thing that happened.

    kind  file   at      data
    C     inode          name     a file was made
    W     inode  offset  bytes    written
    T     inode  size             cut or extended to this size
    U                    name     unlinked
    R, L                 a/b      renamed, linked
    B     inode  number           a sync begins (of the folder: inode 0)
    E     inode  number           it has succeeded
    F     inode  number           it reported the failure of an earlier one
    G     inode  number           it has failed: what it would have covered is in memory, and never written again
    N                    JSON     a caller was told
    X                    text     not modelled
    """

    kind: str
    pid: int
    file: int
    at: int
    data: bytes


def read(path: str) -> list[Record]:
    """All records. What a process was killed in the middle of is left out."""
    log = Path(path).read_bytes()
    records = []
    at = 0
    while 0 <= at <= len(log) - HEADER.size:
        magic, size, check, kind, pid, _, file, where = HEADER.unpack_from(log, at)
        end = at + HEADER.size + size
        if magic == int.from_bytes(MAGIC, "little") and end <= len(log) and _is_whole(log, at, end, check):
            records.append(Record(chr(kind), pid, file, where, log[at + HEADER.size : end]))
            at = end
        else:
            at = log.find(MAGIC, at + 1)
    for record in records:
        if record.kind == "X":
            msg = f"not modelled: {record.data.decode()}"
            raise BrokenTraceError(msg)
    return records


def _is_whole(log: bytes, at: int, end: int, check: int) -> bool:
    return zlib.adler32(memoryview(log)[at + CHECKED_FROM : end]) == check
