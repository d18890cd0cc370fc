"""Page checksums, where they are asked for: SQLite's cksumvfs, which comes with apsw's wheel.

It keeps a checksum in the last 8 bytes of each page and verifies it whenever a page is read from the database file, so
that a flipped bit is an error before anybody decides by it. It is a file system to SQLite (a VFS) in front of the real
one. Loading it makes it the default of the process, where it would see every other program's files too: so the former
default is put back at once, and only our connections name it. What stays is one more SQL function on every connection
of apsw's, `verify_checksum`.

Pages in the -wal carry no such checksum: SQLite writes them past the VFS, with a checksum of its own for each frame,
which it verifies when it recovers the -wal after a crash, and not when it reads a page. So another program that moves
the -wal into the database without the VFS (a shell that is the last to close after a crash, a replicator) leaves wrong
checksums, and the file is refused from then on. That is why a file has them only where they are asked for; the damage
that a file suffers at rest is found without them by whoever opens it first, if it shows that the file was written to
(`rest`). They find what shows nothing: a disk that gives other bits than it was given.

An apsw that was not built for PyPI may lack it; files that have page checksums are refused there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import Final

import apsw

from idemreg.errors import StoreError, StoreVersionError

__all__ = ["LIBRARY", "RESERVED_BYTES", "check", "damage", "has", "is_damage", "is_unread", "uri", "vfs"]

VFS: Final = "cksmvfs"  # as cksumvfs registers itself
RESERVED_BYTES: Final = 8  # at the end of each page; only with exactly so many does it do anything

# What SQLite's checks of the file say of a page that they could not get (btree.c, checkTreePage and checkList). They
# have looked at its number before: so it is the disk that did not give it, or memory, and not the file that is damaged.
_NO_PAGE: Final = "failed to get page"
_CODE: Final = r"unable to get the page\. error code=(\d+)"
_UNREAD: Final = frozenset({apsw.SQLITE_IOERR, apsw.SQLITE_NOMEM})

# What a disk says that cannot be read, and SQLite takes for a damaged file system (os_unix.c, unixRead).
_REFUSED: Final = frozenset({errno.EIO, errno.ENXIO, errno.ERANGE})
_FILE_CONTROL: Final = 10  # xFileControl in sqlite3_io_methods, counted in pointers

# By the path of the package: `apsw.sqlite_extra`, which would tell, costs 15 ms of importlib.resources.
LIBRARY: Final = os.path.join(os.path.dirname(apsw.__file__), "sqlite_extra_binaries", "cksumvfs.so")


def vfs() -> str | None:
    """The VFS that verifies; None where this apsw has none. Loads it once a process, in a third of a millisecond.

    Without a lock, which a fork might leave held: threads that come together load it twice, which changes nothing.
    """
    if VFS in (names := apsw.vfs_names()):
        return VFS
    with contextlib.suppress(apsw.Error):
        connection = apsw.Connection(":memory:")
        try:
            connection.enable_load_extension(enable=True)
            connection.load_extension(LIBRARY)
            return VFS
        finally:
            apsw.set_default_vfs(names[0])
            connection.close()
    return None


def has(connection: apsw.Connection) -> bool:
    """Whether the file has page checksums. It has been read from."""
    return connection.reserve_bytes() == RESERVED_BYTES


def check(connection: apsw.Connection) -> None:
    """Refuse a file whose checksums this process would neither verify nor keep right. The file has been read from."""
    if not has(connection):
        return
    if vfs() is None:
        msg = "the file has page checksums, which this build of apsw can neither verify nor keep right"
        raise StoreVersionError(msg, hint="Install apsw from PyPI: `pip install --force-reinstall apsw`.")
    if connection.pragma("checksum_verification") != "1":  # a VFS answers in text
        msg = "SQLite does not verify the page checksums of the file"
        raise StoreError(msg)


def damage(connection: apsw.Connection, check: str, limit: int) -> list[str]:
    """What SQLite's quick_check or integrity_check has to say; nothing where all is well.

    `StoreError` where a page could not be read, for which both have words as for damage. What it says is asked for a
    second time: where memory goes in its middle it counts what it has seen until then, and may tell of a sound file
    that an index has a wrong number of entries. The second then cannot begin (a MemoryError), or says that all is well.
    """
    found = _asked(connection, check, limit) and _asked(connection, check, limit)
    if found and all(_is_unread(text, checks_pages=has(connection)) for text in found):
        msg = f"the disk reported an error: {found[0]}"
        raise StoreError(msg)
    return found


def _asked(connection: apsw.Connection, check: str, limit: int) -> list[str]:
    return [str(text) for (text,) in connection.execute(f"PRAGMA {check}({limit:d})") if text != "ok"]


def _is_unread(text: str, *, checks_pages: bool) -> bool:
    if (code := re.search(_CODE, text)) is None:
        return _NO_PAGE in text and not checks_pages
    return int(code[1]) & 0xFF in _UNREAD and int(code[1]) != apsw.SQLITE_IOERR_DATA


def uri(path: str) -> str:
    """The path as the beginning of a URI (sqlite.org/uri.html, 3.1)."""
    return "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def is_unread(connection: apsw.Connection) -> bool:
    """Whether the disk has refused this connection a read, of the database or of the -wal, since it was opened.

    In the middle of a statement SQLite tells that in the words of damage (SQLITE_CORRUPT), and forgets the error. What
    remembers it are its open files, which keep the last one of a read.
    """
    import ctypes  # noqa: PLC0415 - errors only

    pointer = ctypes.c_void_p
    kind, number = ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.c_int, ctypes.POINTER(ctypes.c_int)), ctypes.c_int()
    for which in (apsw.SQLITE_FCNTL_FILE_POINTER, apsw.SQLITE_FCNTL_JOURNAL_POINTER):  # in WAL mode that is the -wal
        file = pointer()
        connection.file_control("main", which, ctypes.addressof(file))
        if file.value and (methods := pointer.from_address(file.value).value):
            method = pointer.from_address(methods + _FILE_CONTROL * ctypes.sizeof(pointer)).value
            kind(method or 0)(file, apsw.SQLITE_FCNTL_LAST_ERRNO, ctypes.byref(number))
        if number.value in _REFUSED:
            return True
    return False


def is_damage(error: Exception) -> bool:
    """Whether a page was read whose checksum is wrong. Nothing was committed by the statement that met it."""
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
