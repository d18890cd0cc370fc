"""SQLite's own note of what is committed: the header of the -wal's index, in the memory that all processes share.

The first 48 bytes of the -shm change at every commit, by whichever program. They hold the salts of the -wal, its last
frame and the checksum over all frames up to it: an equal header means an equal -wal. SQLite publishes it behind the
frames, and recovers it from the frames after a crash; so a process that is killed anywhere, or a program that knows
nothing of idemreg, leaves nothing forgotten, as a count of our own would (sqlite.org/walformat.html, 2.1).

It is read through SQLite's own mapping. A descriptor of our own for the -shm would, when it is closed, drop the locks
of SQLite on it. The way there is public: SQLITE_FCNTL_FILE_POINTER gives the open file, whose method xShmMap gives the
mapping (sqlite3.h, sqlite3_io_methods). 0.1 microseconds a look; the import of ctypes takes 1.4 milliseconds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import StorePathError

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

__all__ = [
    "FILE_HEADER_BYTES",
    "FRAMES",
    "FRAME_HEADER_BYTES",
    "HEADER_BYTES",
    "NO_HEADER",
    "SALTS",
    "WalIndex",
]

HEADER_BYTES: Final = 48
NO_HEADER: Final = b"\xff" * HEADER_BYTES  # of no -wal; not zeros, which is how a truncated -shm reads

FILE_POINTER: Final = 7  # SQLITE_FCNTL_FILE_POINTER
REGION_BYTES: Final = 32_768  # SQLite maps the -shm in regions of this size
SHM_MAP_METHOD: Final = 13  # xShmMap in sqlite3_io_methods, counted in pointers; there since version 2 of them
READ_ONLY: Final = 8  # SQLITE_READONLY, which has extended codes
PRIMARY_CODE: Final = 0xFF
VERSION: Final = 3_007_000  # of the index's format, the only one so far
FILE_HEADER_BYTES: Final = 32  # of the -wal, and of each frame in it (sqlite.org/fileformat2.html, 4.1)
FRAME_HEADER_BYTES: Final = 24
TRIES: Final = 100  # a commit writes the two copies of the header within a hundred nanoseconds

# In the header, uint32 as the machine has them: how many frames are committed, and the pages of the database then.
_FRAMES: Final = 16
_PAGES: Final = 20
FRAMES: Final = slice(16, 20)  # in the header: how many are committed
SALTS: Final = slice(32, 40)  # in the header: drawn anew whenever the -wal begins anew
_MOVED: Final = 2 * HEADER_BYTES  # behind both headers: how many of them are in the database already, likewise


class WalIndex:
    """The header, as seen through one connection, which must be in WAL mode, and stay open until `close`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        at, code = _map(connection)
        # Both copies of the header. Whoever has seen them equal to a header twice has seen that header.
        self.copies = at(0, 2 * HEADER_BYTES)
        self.frames_seen = at(_FRAMES)  # ``value`` is how many there are now
        self._pages = at(_PAGES)
        self._moved = at(_MOVED)
        self._nothing = type(self.copies)(), type(self._moved)()  # now: at the close there may be no memory for it
        self.page_bytes: int = connection.pragma("page_size")
        # SQLite takes a -shm that it could not open for writing for one of a read-only disk, for as long as any
        # connection of the process has it open: nothing could be written, whatever becomes of the disk.
        if code & PRIMARY_CODE == READ_ONLY:
            msg = f"{connection.db_filename('main')}-shm cannot be opened for writing"
            raise StorePathError(msg)

    def close(self) -> None:
        """Before the connection is closed: from now on there is nothing to be seen, where the memory is unmapped."""
        self.copies, self.frames_seen = self._nothing
        self._pages = self._moved = self.frames_seen

    @property
    def is_known(self) -> bool:
        """Whether the index has the format that is known here; where not, nothing of it must be believed."""
        for _ in range(TRIES):
            if (header := self.header()) is not None:
                break
            # A writer is stopped between the two copies, or was killed there: SQLite's own reader waits, or recovers.
            self._connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        return header is not None and int.from_bytes(header[:4], sys.byteorder) == VERSION and header[12] == 1

    def header(self) -> bytes | None:
        """What is committed now; None where a commit is about to change it."""
        for _ in range(TRIES):
            seen: bytes = self.copies.raw
            header = seen[:HEADER_BYTES]
            if seen[HEADER_BYTES:] == header:  # a writer changes the second copy first; this read began with the first
                return header
        return None

    @property
    def frames(self) -> int:
        """How many frames are in the -wal. A guess, as the next: no lock is held."""
        return int(self.frames_seen.value)

    @property
    def used_bytes(self) -> int:
        """How much of the -wal's file they take."""
        frames = int(self.frames_seen.value)
        return frames and FILE_HEADER_BYTES + frames * (self.page_bytes + FRAME_HEADER_BYTES)

    @property
    def database_bytes(self) -> int:
        """The size of the database, once all of them are in it; 0 where there are none yet."""
        return int(self._pages.value) * self.page_bytes

    @property
    def moved(self) -> int:
        """How many of them are in the database already."""
        return int(self._moved.value)


def _map(connection: apsw.Connection) -> tuple[Callable[..., Any], int]:
    """What gives bytes of the shared memory, or a uint32 of it, and SQLite's code.

    Where there is none they are zeros, which are of no known format.
    """
    import ctypes  # noqa: PLC0415 - not before a file is opened

    pointer = ctypes.c_void_p
    file = pointer()
    connection.file_control("main", FILE_POINTER, ctypes.addressof(file))
    methods = ctypes.cast(pointer.from_address(file.value or 0).value or 0, ctypes.POINTER(pointer))
    kind = ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.POINTER(pointer))
    region = pointer()
    code = kind(methods[SHM_MAP_METHOD] or 0)(file, 0, REGION_BYTES, 0, ctypes.byref(region))

    def at(offset: int, size: int = 0) -> Any:  # noqa: ANN401 - what ctypes has
        mapped = ctypes.c_char * size if size else ctypes.c_uint32
        return mapped() if code or not region.value else mapped.from_address(region.value + offset)

    return at, code
