"""The disk at one point of a trace: what is durable, and what a cut at this point may keep or lose.

What a good sync covered is *durable*. All else is *pending*: each of it may be on the disk or not, in any combination.
That is more than any one file system does, and what POSIX permits all of them. Names (made, unlinked, renamed) are
durable once the folder was synced.
"""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.powercut.trace import FOLDER, BrokenTraceError

if TYPE_CHECKING:
    from tests.powercut.trace import Record

__all__ = ["BLOCK", "Disk", "File", "Name", "Op", "Resize", "Write", "block_hash", "short_hash"]

BLOCK: Final = 4_096  # bytes; images are built and compared by blocks
_ZEROS: Final = bytes(BLOCK)


class Write(NamedTuple):
    """Bytes written; ``number`` is the place in the trace, over all files."""

    number: int
    at: int
    data: bytes


class Resize(NamedTuple):
    """A file cut, or extended by zeros."""

    number: int
    size: int


Op = Write | Resize


class Name(NamedTuple):
    """A name that appeared (``file``) or went (None)."""

    number: int
    name: str
    file: File | None


def block_hash(index: int, block: bytes) -> int:
    """Of one block of a file; zeros count as nothing, so that a hole and written zeros are the same.

    The same in every process: Python salts its hashes of bytes and of text, but not those of integers.
    """
    block = block.rstrip(b"\0")
    return hash((index, short_hash(block))) if block else 0


def short_hash(data: bytes) -> int:
    """64 bits of a hash."""
    return int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:8], "little")


class File:
    """One file. ``base`` is durable; ``pending`` is not, and ``doomed`` never will be: its sync has failed."""

    def __init__(self) -> None:
        self.base = bytearray()
        self.pending: list[Op] = []
        self.doomed: list[Write] = []
        # The blocks that became durable, one after another: whoever shows the file knows by its length what is new.
        self.changed: list[int] = []
        self._hashes: dict[int, int] = {}
        self._hashed = 0
        self._hash = 0

    def unsure(self) -> list[Op]:
        """What a cut may lose, oldest first."""
        return [*self.doomed, *self.pending] if self.doomed else self.pending

    def sync(self, begun: int) -> None:
        """A sync that began at ``begun`` has succeeded."""
        ops, self.pending = self._split(begun)
        for op in ops:
            self._settle(op)

    def fail(self, begun: int) -> None:
        """It has failed. The kernel forgets that the pages differ from the disk, and no later sync writes them."""
        ops, self.pending = self._split(begun)
        for op in ops:
            if isinstance(op, Write):
                self.doomed.append(op)
            else:
                self._settle(op)

    def _split(self, begun: int) -> tuple[list[Op], list[Op]]:
        covered = next((at for at, op in enumerate(self.pending) if op.number >= begun), len(self.pending))
        return self.pending[:covered], self.pending[covered:]

    def _settle(self, op: Op) -> None:
        before = len(self.base)
        if isinstance(op, Write):
            end = op.at + len(op.data)
            if op.at > before:
                self.base.extend(bytes(op.at - before))
            self.base[op.at : end] = op.data
            if self.doomed:
                self.doomed = [part for one in self.doomed for part in _without(one, op.at, end)]
            self._touch(min(op.at, before), end)
        elif op.size < before:
            del self.base[op.size :]
            self.doomed = [part for one in self.doomed for part in _without(one, op.size, sys.maxsize)]
            self._touch(op.size, before)
        else:
            self.base.extend(bytes(op.size - before))
            self._touch(before, op.size)

    def _touch(self, first: int, end: int) -> None:
        if end > first:
            self.changed.extend(range(first // BLOCK, (end - 1) // BLOCK + 1))

    def block(self, index: int) -> bytes:
        """A durable block; shorter, or empty, where the file ends."""
        return bytes(self.base[index * BLOCK : (index + 1) * BLOCK])

    def hash(self) -> int:
        """Of what is durable; the sum of its blocks' (`hash_of`)."""
        for index in {*self.changed[self._hashed :]}:
            self._hash -= self._hashes.get(index, 0)
            self._hashes[index] = block_hash(index, self.block(index))
            self._hash += self._hashes[index]
        self._hashed = len(self.changed)
        return self._hash

    def hash_of(self, index: int) -> int:
        """Of one durable block. Call `hash` before."""
        return self._hashes.get(index, 0)


def _without(write: Write, first: int, end: int) -> list[Write]:
    """What is left of a write whose bytes from ``first`` to ``end`` were written again."""
    mine = write.at + len(write.data)
    if end <= write.at or first >= mine:
        return [write]
    left = [write._replace(data=write.data[: first - write.at])] if first > write.at else []
    right = [write._replace(at=end, data=write.data[end - write.at :])] if end < mine else []
    return left + right


class Disk:
    """All files, brought forward record by record."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}  # durable
        self.pending: list[Name] = []  # names that are not
        self._files: dict[int, File] = {}  # by inode: the latest that had it
        self._now: dict[str, File] = {}  # names as the processes see them
        self._begun: dict[int, int] = {}

    def apply(self, number: int, record: Record) -> bool:
        """Bring one record in; whether it changed what a cut may leave."""
        kind = record.kind
        if kind == "B":
            self._begun[record.at] = number
        elif kind in "EFG":
            return self._end_sync(kind, record)
        elif kind == "W":
            self._file(record).pending.append(Write(number, record.at, record.data))
        elif kind == "T":
            self._file(record).pending.append(Resize(number, record.at))
        elif kind == "C":
            file = self._files[record.file] = File()
            self._rename(number, record.data.decode(), file)
        elif kind in "URL":
            self._name(number, kind, record.data.decode())
        return kind in "WTCURL"

    def _file(self, record: Record) -> File:
        try:
            return self._files[record.file]
        except KeyError:
            msg = f"file {record.file} was never made"
            raise BrokenTraceError(msg) from None

    def _end_sync(self, kind: str, record: Record) -> bool:
        begun = self._begun.pop(record.at)
        if kind == "F":
            return False
        if record.file != FOLDER:
            (self._file(record).sync if kind == "E" else self._file(record).fail)(begun)
            return True
        for change in self.pending:
            if change.number < begun:
                apply_name(self.names, change)
        self.pending = [change for change in self.pending if change.number >= begun]
        return True

    def _name(self, number: int, kind: str, names: str) -> None:
        old, _, new = names.partition("/")
        file = self._now[old]
        if kind != "U":
            self._rename(number, new, file)
        if kind != "L":
            self._rename(number, old, None)

    def _rename(self, number: int, name: str, file: File | None) -> None:
        change = Name(number, name, file)
        self.pending.append(change)
        apply_name(self._now, change)


def apply_name(names: dict[str, File], change: Name) -> None:
    """Carry one change of a name out."""
    if change.file is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.file
