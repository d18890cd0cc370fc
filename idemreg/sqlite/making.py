"""An empty file that is to be a registry's: made, told from another program's, and given its form."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from idemreg.descriptors import opened
from idemreg.errors import StoreError, StorePathError
from idemreg.lockfile import open_error
from idemreg.placing import make_file
from idemreg.sqlite import pages
from idemreg.sqlite.connection import roll_back

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection

__all__ = ["APPLICATION_ID", "PAGE_BYTES", "check_identity", "create_file", "create_pages", "has_content", "set_wal"]

APPLICATION_ID: Final = 0x1DE3_4E61  # in the database's header: this file is a registry of idemreg
# Half of SQLite's default: each commit writes whole pages to the -wal, and a claim and its finish take 22 µs in place
# of 26 (at 1,024 bytes hardly less, for a deeper tree). Measured with the statements of `sqlite/tasks`.
PAGE_BYTES: Final = 2_048


def has_content(path: str) -> bool:
    """Whether there is a file with anything in it."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:  # and not where the disk cannot tell: nobody is to be told to start anew then
        return False


def create_file(path: str) -> None:
    """Create the file empty, readable by its owner only, and its name durable, where it does not exist."""
    try:
        make_file(path)
    except FileExistsError:
        return
    except OSError as error:
        raise open_error(path, error) from error
    with opened(os.path.dirname(path), os.O_RDONLY) as folder:
        os.fsync(folder)


def check_identity(connection: Connection, path: str) -> bool:
    """Whether the database is empty; `StorePathError` where it is another program's.

    One read transaction: who looked before and after another process made the registry would see tables of nobody.
    """
    connection.execute("BEGIN")
    try:
        application_id = connection.pragma("application_id")
        if application_id == APPLICATION_ID:
            return False
        version = connection.pragma("user_version")
        is_empty = connection.execute("SELECT 1 FROM sqlite_schema").fetchall() == []
    finally:
        roll_back(connection)
    if not is_empty or application_id or version:
        msg = f"{path} is a database of another program"
        raise StorePathError(msg, hint="Choose another path: a registry has a file of its own.")
    return True


def create_pages(connection: Connection, *, with_checksums: bool) -> None:
    """Set what stands before the first page, or it would need a VACUUM. Another program may have made that page."""
    if connection.pragma("page_count"):
        return
    connection.pragma("page_size", PAGE_BYTES)
    if with_checksums:
        if pages.vfs() is None:
            msg = "this build of apsw has no page checksums"
            raise StoreError(msg, hint="Install apsw from PyPI: `pip install --force-reinstall apsw`.")
        connection.reserve_bytes(reserve=pages.RESERVED_BYTES)


def set_wal(connection: Connection) -> None:
    """WAL mode, which stays with the file; `StorePathError` where the file system has no room for it."""
    if connection.pragma("journal_mode") != "wal" and connection.pragma("journal_mode", "wal") != "wal":
        msg = "this file system does not support SQLite's WAL mode"
        raise StorePathError(msg)
