"""A copy of the file while it is at work: SQLite's backup, page by page, under one read transaction.

The read transaction makes it one instant, whoever writes meanwhile. Without it each commit of another process would
start the copy anew, and on a busy file it would never end. While it lasts the -wal cannot be reset, and grows.

It is written through the VFS of the page checksums, since pages that are read from the -wal have none yet.

*Rejected:* VACUUM INTO, which makes the file smaller. It is one statement: nothing to show, and Ctrl-C is not heard
before its end. Pages also arrive as they are, with their reserved bytes and page checksums.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import apsw

from idemreg import faults
from idemreg.errors import StorePathError
from idemreg.placing import COMPANIONS, new_file
from idemreg.sqlite import pages
from idemreg.sqlite.connection import translate
from idemreg.sqlite.records import floor
from idemreg.store import Backup

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.sqlite.connection import Connection

__all__ = ["copy"]

STEP_PAGES: Final = 500  # one megabyte between two looks at the clock, or for Ctrl-C


def copy(connection: Connection, schema_version: int, path: str, progress: Callable[[int, int], None] | None) -> Backup:
    """Copy the database to ``path``, which must not exist; ``progress`` gets the pages copied and the pages in all."""
    _refuse_remains(path)
    connection.execute("BEGIN")
    try:
        floor(connection, schema_version)  # the first read takes the snapshot
        with new_file(path) as part:
            count = _copy(connection, part, progress)
            faults.point("backup.copied")
        return Backup(path, count, count * connection.pragma("page_size"))
    finally:
        connection.execute("ROLLBACK")


def _refuse_remains(path: str) -> None:
    """SQLite would apply an old -wal or -journal to the copy; an old lock file must never get a database silently."""
    for suffix in COMPANIONS:
        if os.path.lexists(path + suffix):
            msg = f"{path}{suffix} is there, and would be taken for a part of the backup"
            raise StorePathError(msg, hint="It is left of another registry: choose another path, or move it away.")


def _copy(source: Connection, part: str, progress: Callable[[int, int], None] | None) -> int:
    # "nolock": a stick or a network folder may lack locks. Nobody else knows the file.
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    target = apsw.Connection(f"{pages.uri(part)}?nolock=1", flags=flags, vfs=pages.vfs())
    try:
        target.pragma("journal_mode", "off")  # half a copy is removed, never repaired
        target.pragma("synchronous", 0)  # it is synced as a whole, once
        # The first page first: by it the VFS knows that the pages have checksums.
        target.pragma("page_size", source.pragma("page_size"))
        target.reserve_bytes(reserve=source.reserve_bytes())
        target.pragma("user_version", 1)
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(STEP_PAGES)
                if progress is not None:
                    progress(backup.page_count - backup.remaining, backup.page_count)
            count = int(backup.page_count)
    except apsw.Error as error:
        raise translate(error, target) from error
    finally:
        target.close()
    return count
