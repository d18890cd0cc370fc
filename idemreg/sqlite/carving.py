"""The pages of a damaged file, read past SQLite: from the bytes of the database and of the frames of its -wal.

SQLite gives up at the first damaged page on its way to a row. Here every page is looked at by itself, in its newest
committed version, and its cells are decoded one by one (sqlite.org/fileformat2.html). Nothing is believed: whatever a
page says is bounded, and what makes no sense is left out. Whether a row is as it was written, its seal tells.

The file is opened for reading by descriptors of its own. Closing one of them drops the locks that SQLite holds on the
file elsewhere in this process: so no connection to it may be open here, and `Image` refuses where one is.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import apsw

from idemreg.errors import StoreError, StorePathError
from idemreg.sqlite import pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["Image", "Tree", "Version", "cells", "children"]

MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100  # in front of the tree of page 1
SAMPLE: Final = 64  # pages that are asked for their checksum, where the header is gone
DEFAULT_PAGE_BYTES: Final = 2_048  # of a registry whose first page is gone
FRAME_HEADER: Final = struct.Struct(">IIIIII")
WAL_HEADER: Final = struct.Struct(">IIIIIIII")
WAL_MAGIC: Final = 0x377F0682  # its lowest bit says in which order the words of a checksum are taken
MAX_PAYLOAD: Final = 16 * 2**20  # a row of idemreg has less

INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 0x02, 0x05, 0x0A, 0x0D
LOCK_BYTE: Final = 2**30  # the page that has it is never used


class Tree(NamedTuple):
    """A child of an interior page, and between which keys (of an index) its rows are: None = no bound."""

    page: int
    above: Any
    below: Any


class Version(NamedTuple):
    """The bytes of a page as they were committed once. ``is_sound``: its checksum holds."""

    data: bytes
    is_sound: bool


class Frame(NamedTuple):
    """Where the -wal has a page, whether its frame's checksum holds, and whether a transaction ends with it."""

    page: int
    offset: int
    is_sound: bool
    commits: bool


class Image:
    """A database and its -wal, as they lie on the disk."""

    def __init__(self, path: str) -> None:
        if any(os.path.realpath(one.filename) == path for one in apsw.connections() if one.filename):
            msg = f"{path} is open in this process"
            raise StoreError(msg, hint="Salvage it in a process of its own: idemreg doctor --salvage OUT")
        self._files: dict[str, int] = {}
        self._verifier = apsw.Connection(":memory:") if pages.vfs() is not None else None
        try:
            self._database, self._wal = self._open(path), self._open(path + "-wal")
            self.page_bytes, self.reserved = self._sizes()
            self.usable: Final = self.page_bytes - self.reserved
            self.frames, self.has_lost_frames = self._read_frames()
            self._by_page: dict[int, list[Frame]] = {}
            self.overflow: set[int] = set()  # pages that some record goes on in
            for frame in self.frames:
                self._by_page.setdefault(frame.page, []).append(frame)
            self.count = max(self._size(self._database) // self.page_bytes, self._told_count(), *self._by_page, 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both files."""
        for fd in self._files.values():
            os.close(fd)
        self._files = {}
        if self._verifier is not None:
            self._verifier.close()

    def _open(self, path: str) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return -1
        except OSError as error:
            msg = f"cannot open {path}: {error.strerror}"
            raise StorePathError(msg) from error
        self._files[path] = fd
        return fd

    @staticmethod
    def _size(fd: int) -> int:
        return os.fstat(fd).st_size if fd >= 0 else 0

    def _sizes(self) -> tuple[int, int]:
        """The size of a page, and the bytes reserved in it: of the database, else of the -wal, else as idemreg's."""
        head = os.pread(self._database, HEADER_BYTES, 0) if self._database >= 0 else b""
        if head[:16] == MAGIC and len(head) == HEADER_BYTES:
            size = int.from_bytes(head[16:18], "big")
            size = 65_536 if size == 1 else size
            if _is_page_size(size) and head[20] <= size - 480:
                return size, head[20]
        wal = os.pread(self._wal, WAL_HEADER.size, 0) if self._wal >= 0 else b""
        if len(wal) == WAL_HEADER.size and _is_page_size(size := WAL_HEADER.unpack(wal)[2]):
            return size, self._guessed_reserve(size)
        return DEFAULT_PAGE_BYTES, self._guessed_reserve(DEFAULT_PAGE_BYTES)

    def _guessed_reserve(self, page_bytes: int) -> int:
        """Without the header that says so: if the checksum of any page holds, the file has page checksums."""
        count = self._size(self._database) // page_bytes
        found = (os.pread(self._database, page_bytes, number * page_bytes) for number in range(1, min(count, SAMPLE)))
        has_checksums = any(any(data) and self._verifies(data) for data in found)
        return pages.RESERVED_BYTES if has_checksums else 0

    def _told_count(self) -> int:
        """How many pages the database should have, where that may be believed: it may have been cut short."""
        first = self.newest(1)
        told = int.from_bytes(first.data[28:32], "big") if first is not None and first.is_sound else 0
        return told if told * self.page_bytes < 2**40 else 0

    # --- the -wal -----------------------------------------------------------------------------------------------

    def _read_frames(self) -> tuple[list[Frame], bool]:
        """The frames of its present round up to the last commit, and whether one is damaged or cannot be placed."""
        room = FRAME_HEADER.size + self.page_bytes
        number = max(self._size(self._wal) - WAL_HEADER.size, 0) // room
        head = os.pread(self._wal, WAL_HEADER.size, 0) if number else b""
        if not number or not any(head):
            return [], False
        magic, _, _, _, *salts, sum1, sum2 = WAL_HEADER.unpack(head)
        order = ">" if magic & 1 else "<"
        has_head = magic & ~1 == WAL_MAGIC and _sums(order, head[:24], 0, 0) == (sum1, sum2)
        frames: list[Frame] = []
        lost = not has_head
        sums, last, end, strange = (sum1, sum2), 0, 0, 0
        for at in range(number):
            offset = WAL_HEADER.size + at * room
            data = os.pread(self._wal, room, offset)
            page, commit, *frame_salts, sum1, sum2 = FRAME_HEADER.unpack(data[: FRAME_HEADER.size])
            if not has_head and not at:
                salts = frame_salts
            if frame_salts == salts:
                is_sound = _sums(order, data[:8] + data[FRAME_HEADER.size :], *sums) == (sum1, sum2)
                frames.append(Frame(page, offset + FRAME_HEADER.size, is_sound, is_sound and commit > 0))
                lost = lost or not is_sound or strange > 0
                last, end = (len(frames), at) if frames[-1].commits else (last, end)
            else:
                strange += 1  # of an earlier round, and so behind all of this one; or its head is damaged
            sums = (sum1, sum2)
        return frames[:last], lost

    # --- pages --------------------------------------------------------------------------------------------------

    def versions(self, number: int) -> Iterator[Version]:
        """The page as it was committed, the newest first; its former versions as far as they are still there."""
        for frame in reversed(self._by_page.get(number, ())):
            data = os.pread(self._wal, self.page_bytes, frame.offset)
            if len(data) == self.page_bytes:
                yield Version(data, frame.is_sound)
        data = os.pread(self._database, self.page_bytes, (number - 1) * self.page_bytes) if self._database >= 0 else b""
        if len(data) == self.page_bytes and any(data):
            yield Version(data, self._holds(data))

    def numbers(self) -> Iterator[int]:
        """Every page that there should be."""
        unused = LOCK_BYTE // self.page_bytes + 1
        return (number for number in range(1, self.count + 1) if number != unused)

    def newest(self, number: int) -> Version | None:
        """The page as it is now; None where it is missing, or all zeros."""
        return next(self.versions(number), None)

    def _holds(self, data: bytes) -> bool:
        return self.reserved != pages.RESERVED_BYTES or self._verifier is None or self._verifies(data)

    def _verifies(self, data: bytes) -> bool:
        """Whether the checksum of a page holds."""
        if self._verifier is None:
            return False
        return bool(self._verifier.execute("SELECT verify_checksum(?)", (data,)).fetchall()[0][0])

    def is_well(self) -> bool:
        """What SQLite says of the whole, where no page has a checksum that would tell. It looks at a copy."""
        if self.reserved == pages.RESERVED_BYTES:
            return True
        with tempfile.NamedTemporaryFile(prefix="idemreg-") as file:
            for number in range(1, self.count + 1):
                page = self.newest(number)
                data = bytes(self.page_bytes) if page is None else page.data
                if number == 1:
                    data = data[:18] + b"\x01\x01" + data[20:]  # not in WAL mode: the frames are in it
                file.write(data)
            file.flush()
            try:
                with contextlib.closing(apsw.Connection(file.name, flags=apsw.SQLITE_OPEN_READONLY)) as connection:
                    connection.pragma("trusted_schema", 0)
                    return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
            except apsw.Error:
                return False

    def free_pages(self) -> set[int] | None:
        """The pages that hold nothing any more; None where their list cannot be read."""
        first = self.newest(1)
        if first is None or not first.is_sound:
            return None
        trunk, told = struct.unpack(">II", first.data[32:40])
        free: set[int] = set()
        while trunk:
            page = self.newest(trunk) if trunk <= self.count and trunk not in free else None
            if page is None or not page.is_sound:
                return None
            following, leaves = struct.unpack(">II", page.data[:8])
            if leaves > self.usable // 4 - 2:
                return None
            free.add(trunk)
            free.update(struct.unpack(f">{leaves}I", page.data[8 : 8 + 4 * leaves]))
            trunk = following
        return free if len(free) == told else None


def _is_page_size(size: int) -> bool:
    return 512 <= size <= 65_536 and size & (size - 1) == 0  # noqa: PLR2004 - as the format has it


def _sums(order: str, data: bytes, sum1: int, sum2: int) -> tuple[int, int]:
    """The checksum of the -wal's frames, going on from the one before (fileformat2, 4.2)."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        sum1 = (sum1 + words[at] + sum2) & 0xFFFFFFFF
        sum2 = (sum2 + words[at + 1] + sum1) & 0xFFFFFFFF
    return sum1, sum2


# --- cells ------------------------------------------------------------------------------------------------------


def cells(image: Image, number: int, data: bytes) -> Iterator[list[Any]]:
    """The records of a page of a tree, each as its values; what cannot be decoded is left out.

    Of a record whose end is missing the first value alone.
    """
    for at, kind in _cell_places(image, number, data):
        try:
            yield _record(image, data, at, kind)
        except _CutError as cut:
            try:
                yield _values(cut.beginning, 1)
            except (IndexError, ValueError, struct.error):
                continue
        except (IndexError, ValueError, struct.error):
            continue


class _CutError(ValueError):
    """The record goes on in a page that is not there."""

    def __init__(self, beginning: bytes) -> None:
        super().__init__()
        self.beginning = beginning


def children(image: Image, number: int, data: bytes) -> list[Tree]:
    """The children of an interior page; of an index with the keys between which they are."""
    kind, begin = data[_begin(number)], _begin(number)
    if kind not in (INTERIOR_INDEX, INTERIOR_TABLE):
        return []
    found, above = [], None
    for at, _ in _cell_places(image, number, data):
        page, below = int.from_bytes(data[at : at + 4], "big"), None
        if kind == INTERIOR_INDEX:
            try:
                below = _record(image, data, at, kind)[0]
            except (IndexError, ValueError, struct.error):
                below = None
        found.append(Tree(page, above, below))
        above = below
    found.append(Tree(int.from_bytes(data[begin + 8 : begin + 12], "big"), above, None))
    return found


def _begin(number: int) -> int:
    return HEADER_BYTES if number == 1 else 0


def _cell_places(image: Image, number: int, data: bytes) -> Iterator[tuple[int, int]]:
    begin = _begin(number)
    kind = data[begin]
    if kind not in (INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE):
        return
    first = begin + (12 if kind in (INTERIOR_INDEX, INTERIOR_TABLE) else 8)
    count = min(int.from_bytes(data[begin + 3 : begin + 5], "big"), (image.usable - first) // 2)
    for place in range(first, first + 2 * count, 2):
        at = int.from_bytes(data[place : place + 2], "big")
        if first + 2 * count <= at < image.usable - 3:
            yield at, kind


def _record(image: Image, data: bytes, at: int, kind: int) -> list[Any]:
    """The values of the record in a cell (fileformat2, 1.6 and 2.1)."""
    if kind == INTERIOR_TABLE:
        return []
    if kind == INTERIOR_INDEX:
        at += 4
    size, at = _varint(data, at)
    if kind == LEAF_TABLE:
        _, at = _varint(data, at)
    return _values(_payload(image, data, at, size, kind))


def _values(payload: bytes, most: int | None = None) -> list[Any]:
    head, at = _varint(payload, 0)
    types = []
    while at < head:
        one, at = _varint(payload, at)
        types.append(one)
    values: list[Any] = []
    for one in types[:most]:
        value, at = _value(payload, at, one)
        values.append(value)
    return values


def _payload(image: Image, data: bytes, at: int, size: int, kind: int) -> bytes:
    """All of the record, its overflow pages included."""
    if size > MAX_PAYLOAD:
        raise ValueError
    usable = image.usable
    most = usable - 35 if kind == LEAF_TABLE else (usable - 12) * 64 // 255 - 23
    local = size
    if size > most:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= most else least
    if at + local > usable:
        raise ValueError
    if local == size:
        return data[at : at + size]
    parts, left = [data[at : at + local]], size - local
    following = int.from_bytes(data[at + local : at + local + 4], "big")
    while left > 0:
        page = image.newest(following) if 0 < following <= image.count else None
        image.overflow.add(following)
        if page is None:
            raise _CutError(parts[0])
        following = int.from_bytes(page.data[:4], "big")
        parts.append(page.data[4 : 4 + min(left, usable - 4)])
        left -= usable - 4
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004 - the last one
            return value, at
    return value << 8 | data[at], at + 1


_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return {0: None, 8: 0, 9: 1}[kind], at
    if (size := _INTEGER_BYTES.get(kind)) is not None:
        end = at + size
        value: Any = int.from_bytes(payload[at:end], "big", signed=True)
    elif kind == 7:  # noqa: PLR2004 - a real number
        end = at + 8
        value = struct.unpack(">d", payload[at:end])[0]
    elif kind >= 12:  # noqa: PLR2004 - bytes, or text
        end = at + (kind - 12) // 2
        raw = payload[at:end]
        value = raw.decode() if kind & 1 else raw  # UnicodeDecodeError is a ValueError
    else:
        raise ValueError
    if end > len(payload):
        raise ValueError
    return value, end
