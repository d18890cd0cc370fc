"""The pages of a damaged file, read past SQLite: from the bytes of the database and of the frames of its -wal.

SQLite gives up at the first damaged page on its way to a row. Here every page is read by itself, in its newest
committed version (sqlite.org/fileformat2.html); what is in it, `sqlite/cells.py` decodes.

The file is opened for reading by descriptors of its own. Closing one of them drops the locks that SQLite holds on the
file elsewhere in this process: so no connection to it may be open here, and `Image` refuses where one is.
"""

from __future__ import annotations

import os
import struct
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from idemreg.errors import StoreError, StorePathError
from idemreg.sqlite import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Image", "Version"]

MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100  # in front of the tree of page 1
DEFAULT_PAGE_BYTES: Final = 2_048  # of a registry whose first page is gone
FRAME_HEADER: Final = struct.Struct(">IIIIII")
WAL_HEADER: Final = struct.Struct(">IIIIIIII")
WAL_MAGIC: Final = 0x377F0682  # its lowest bit says in which order the words of a checksum are taken
SAMPLED_PAGES: Final = 64
LOCK_BYTE: Final = 2**30  # the page that has it is never used


class Version(NamedTuple):
    """The bytes of a page as they were committed once. ``is_sound``: its checksum holds, where it has one."""

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
            raise StoreError(msg, hint="Salvage it in a process of its own: `idemreg doctor --salvage OUT`.")
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
            self._present = self._size(self._database) // self.page_bytes
            frames = (frame.page for frame in self.frames if frame.is_sound)
            self.count = max(self._present, self._told_count(), *frames, 0)
        except BaseException:
            self.close()
            raise

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
        size = WAL_HEADER.unpack(wal)[2] if len(wal) == WAL_HEADER.size else 0
        size = size if _is_page_size(size) else DEFAULT_PAGE_BYTES
        return size, self._reserved(size)

    def _reserved(self, size: int) -> int:
        """Where the header does not tell: whether the pages have checksums."""
        if self._verifier is None or self._database < 0:
            return 0
        found = [os.pread(self._database, size, number * size) for number in range(1, SAMPLED_PAGES)]
        whole = [data for data in found if len(data) == size and any(data)]
        return pages.RESERVED_BYTES if sum(map(self._verifies, whole)) * 2 > len(whole) else 0

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
        """Every page that is there, in the database or in the -wal."""
        beyond = sorted(number for number in self._by_page if number > self._present)
        return (number for number in chain(range(1, self._present + 1), beyond) if number != self._unused)

    def missing(self) -> Iterator[int]:
        """Every page that there should be, and is not. A damaged header tells of millions: see `missing_count`."""
        return filter(self.lacks, range(self._present + 1, self.count + 1))

    @property
    def missing_count(self) -> int:
        """How many they are."""
        beyond = range(self._present + 1, self.count + 1)
        return len(beyond) - sum(number in beyond for number in {*self._by_page, self._unused})

    def lacks(self, number: int) -> bool:
        """Whether the page should be there, and is not."""
        is_beyond = self._present < number <= self.count
        return is_beyond and number not in self._by_page and number != self._unused

    @property
    def _unused(self) -> int:
        return LOCK_BYTE // self.page_bytes + 1

    def newest(self, number: int) -> Version | None:
        """The page as it is now; None where it is missing, or all zeros."""
        return next(self.versions(number), None)

    def _holds(self, data: bytes) -> bool:
        return self.reserved != pages.RESERVED_BYTES or self._verifier is None or self._verifies(data)

    def _verifies(self, data: bytes) -> bool:
        assert self._verifier is not None  # noqa: S101 - its callers have looked
        return bool(self._verifier.execute("SELECT verify_checksum(?)", (data,)).fetchall()[0][0])

    def free_pages(self) -> set[int] | None:
        """The pages that hold nothing any more; None where their list cannot be read."""
        first = self.newest(1)
        if first is None or not first.is_sound or not first.data.startswith(MAGIC):
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
        return free if len(free) == told and all(0 < number <= self.count for number in free) else None


def _is_page_size(size: int) -> bool:
    return 512 <= size <= 65_536 and size & (size - 1) == 0  # noqa: PLR2004 - as the format has it


def _sums(order: str, data: bytes, sum1: int, sum2: int) -> tuple[int, int]:
    """The checksum of the -wal's frames, going on from the one before (fileformat2, 4.2)."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        sum1 = (sum1 + words[at] + sum2) & 0xFFFFFFFF
        sum2 = (sum2 + words[at + 1] + sum1) & 0xFFFFFFFF
    return sum1, sum2
