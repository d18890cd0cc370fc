"""The life of the file itself: creation, migration, a new boot, checkpoints.

Creation and migration are done by one process at a time, under the creation lock of the lock file; whoever comes
later finds them done. Each is one transaction, so a process killed in its middle leaves the file as it was.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import apsw

from idemreg import faults
from idemreg.errors import StoreCorruptError, StorePathError, StoreVersionError
from idemreg.lockfile import open_error
from idemreg.sqlite import connection as connections

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from idemreg.clock import Clock
    from idemreg.lockfile import LockFile
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.files import Location
    from idemreg.sqlite.readers import WalReader

__all__ = ["MODES", "SCHEMA", "Checkpoint", "Mode", "Schema", "WalState", "bring_up", "checkpoint", "wal_state"]

APPLICATION_ID: Final = 0x1DE3_4E61  # in the database's header: this file is a registry of idemreg
RESERVED_BYTES: Final = 8  # at the end of each page, for page checksums (SQLite's cksumvfs)
# Half of SQLite's default: each commit writes whole pages to the -wal, and a claim and its finish take 22 µs in place
# of 26 (at 1,024 bytes hardly less, for a deeper tree). Measured with the statements of `sqlite/tasks`.
PAGE_BYTES: Final = 2_048
EPOCH_BITS: Final = 40  # of a token, for the counter; the boot epoch is above

Mode = Literal["PASSIVE", "FULL", "RESTART", "TRUNCATE"]
MODES: Final = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")

WAL_HEADER_BYTES: Final = 32  # of the -wal, and of each page in it (sqlite.org/fileformat2.html, 4.1)
FRAME_HEADER_BYTES: Final = 24


class Schema(NamedTuple):
    """A version of the schema, its text, and how each older version becomes the next.

    A migration gets the connection inside the transaction. It is a value so that a test can bring a second one.
    """

    version: int
    read_text: Callable[[], str]
    migrations: Mapping[int, Callable[[Connection], None]]


def _read_schema() -> str:
    # By the path of the package, not by importlib.resources: that import costs 15 ms.
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(package, "schema.sql"), encoding="utf-8") as file:
        return file.read()


SCHEMA: Final = Schema(version=1, read_text=_read_schema, migrations={})


class Registered(NamedTuple):
    """The one row about the file."""

    registry_id: str
    lock_id: str
    boot_id: str
    floor: int

    @property
    def epoch(self) -> int:
        return self.floor >> EPOCH_BITS


# --- open, create, migrate --------------------------------------------------------------------------------------


def bring_up(location: Location, lock_file: LockFile, schema: Schema, clock: Clock, busy_s: float) -> Registered:
    """Make the file a registry of this schema, of this lock file and of this boot, whatever of it is missing.

    Many processes may do so at the same instant: one does, the others find it done.
    """
    with lock_file.creation(clock, busy_s):
        lock_file.read_or_write_id()
        lock_file.begin_boot(clock.boot_id())
        if lock_file.has_database and not _has_content(location.database):
            msg = f"{location.database} has vanished or is empty, but its lock file {lock_file.path} is still there"
            hint = f"Put a backup in its place; to start anew and forget every task, delete {lock_file.path}."
            raise StoreCorruptError(msg, hint=hint)
        _create_file(location.database)
        try:
            registered = _bring_up(location, lock_file, schema, clock, busy_s)
        except apsw.Error as error:
            if connections.is_sync_failure(error):
                lock_file.note_failed_sync()
            raise connections.translate(error) from error
        lock_file.note_database()
        return registered


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:  # and not where the disk cannot tell: nobody is to be told to start anew then
        return False


def _create_file(path: str) -> None:
    """Create the file empty, readable by its owner only, and its name durable, where it does not exist."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise open_error(path, error) from error
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bring_up(location: Location, lock_file: LockFile, schema: Schema, clock: Clock, busy_s: float) -> Registered:
    connection = connections.connect(location.database, synchronous=connections.FULL, busy_s=busy_s, clock=clock)
    try:
        connections.leave_wal(connection)
        is_empty = check_identity(connection, location.database)
        if is_empty:
            _create_pages(connection)
        _set_wal(connection)  # also where somebody took an existing file out of it
        faults.point("create.journal-set")
        if is_empty:
            _create(connection, lock_file, schema, clock)
        _migrate(connection, schema)
        return _adopt(connection, lock_file, schema, clock)
    finally:
        connection.close()


def check_identity(connection: Connection, path: str) -> bool:
    """Whether the database is empty; `StorePathError` where it is another program's.

    One read transaction: who looked before and after another process made the registry would see tables of nobody.
    """
    connection.execute("BEGIN")
    try:
        application_id = connection.pragma("application_id")
        version = connection.pragma("user_version")
        is_empty = connection.execute("SELECT 1 FROM sqlite_schema").fetchall() == []
    finally:
        _roll_back(connection)
    if application_id == APPLICATION_ID:
        return False
    if not is_empty or application_id or version:
        msg = f"{path} is a database of another program"
        raise StorePathError(msg, hint="Choose another path: a registry has a file of its own.")
    return True


def _create_pages(connection: Connection) -> None:
    """Set what stands before the first table, or it would need a VACUUM."""
    connection.pragma("page_size", PAGE_BYTES)
    connection.reserve_bytes(reserve=RESERVED_BYTES)


def _set_wal(connection: Connection) -> None:
    if connection.pragma("journal_mode") != "wal" and connection.pragma("journal_mode", "wal") != "wal":
        msg = "this file system does not support SQLite's WAL mode"
        raise StorePathError(msg)


def _create(connection: Connection, lock_file: LockFile, schema: Schema, clock: Clock) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(schema.read_text())
        connection.execute(
            "INSERT INTO idempotent_registry VALUES (1, ?, ?, ?, ?, ?)",
            (schema.version, os.urandom(16).hex(), lock_file.lock_id, clock.boot_id(), 1 << EPOCH_BITS),
        )
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", schema.version)
        faults.point("create.in-transaction")
        connection.execute("COMMIT")
    finally:
        _roll_back(connection)
    faults.point("create.committed")


def _migrate(connection: Connection, schema: Schema) -> None:
    """Bring an older schema up, all steps in one transaction."""
    _refuse_newer(connection, schema)
    if connection.pragma("user_version") == schema.version:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.pragma("user_version")
        while version < schema.version:
            schema.migrations[version](connection)
            version += 1
        connection.execute("UPDATE idempotent_registry SET schema_version = ?", (version,))
        connection.pragma("user_version", version)
        faults.point("migrate.in-transaction")
        connection.execute("COMMIT")
    finally:
        _roll_back(connection)
    faults.point("migrate.committed")


def _refuse_newer(connection: Connection, schema: Schema) -> None:
    version = connection.pragma("user_version")
    if version > schema.version:
        msg = f"the file has schema {version}; this idemreg knows schemas up to {schema.version}"
        raise StoreVersionError(msg)


def _adopt(connection: Connection, lock_file: LockFile, schema: Schema, clock: Clock) -> Registered:
    """Note this lock file and this boot in the file, where they are new. Committed at FULL.

    The first opener after a boot raises the epoch, so that a token lost in a power cut never returns.
    """
    registered = _registered(connection, schema)
    boot_id = clock.boot_id()
    if (registered.lock_id, registered.boot_id) == (lock_file.lock_id, boot_id):
        return registered
    connection.execute("BEGIN IMMEDIATE")
    try:
        registered = _registered(connection, schema)
        floor = registered.floor
        if registered.boot_id != boot_id:
            floor = (registered.epoch + 1) << EPOCH_BITS
        connection.execute(
            "UPDATE idempotent_registry SET lock_id = ?, boot_id = ?, floor = ?", (lock_file.lock_id, boot_id, floor)
        )
        faults.point("boot.before-commit")
        connection.execute("COMMIT")
    finally:
        _roll_back(connection)
    return _registered(connection, schema)


def _registered(connection: Connection, schema: Schema) -> Registered:
    row = connection.execute(
        "SELECT registry_id, lock_id, boot_id, floor FROM idempotent_registry WHERE schema_version = ?",
        (schema.version,),
    ).fetchone()
    if row is None:
        _refuse_newer(connection, schema)
        msg = "the row about the file itself is missing"
        raise StoreCorruptError(msg)
    return Registered._make(row)


def _roll_back(connection: Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


# --- checkpoint -------------------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """What a checkpoint did. ``busy``: a reader or a writer kept it from finishing.

    ``wal_pages`` and ``moved_pages`` are counted since the -wal last began anew; -1 where another checkpoint was at
    work. ``readers``: who was reading when it could not finish; None where the system does not tell.
    """

    mode: Mode
    wal_pages: int
    moved_pages: int
    busy: bool
    duration_us: int = 0
    readers: tuple[WalReader, ...] | None = ()


class WalState(NamedTuple):
    """How many pages are in the -wal, how many of them in the database already, and how large a page is."""

    pages: int
    moved: int
    page_bytes: int

    @property
    def used_bytes(self) -> int:
        """The bytes of the -wal that are in use; its file may be larger, since it never shrinks."""
        return WAL_HEADER_BYTES + self.pages * (self.page_bytes + FRAME_HEADER_BYTES)


def checkpoint(connection: Connection, mode: Mode) -> Checkpoint:
    """Move pages from the -wal into the database.

    PASSIVE waits for nobody; FULL and RESTART wait for writers and readers up to the busy time-out; TRUNCATE also
    cuts the -wal to nothing, which makes the next commits dearer (a growing file syncs slower).
    """
    if mode not in MODES:
        msg = f"no checkpoint mode {mode!r}: one of {', '.join(MODES)}"
        raise ValueError(msg)
    # By the pragma: `Connection.wal_checkpoint` raises where it was kept from finishing, and loses the numbers.
    was_kept, wal_pages, moved_pages = _wal_checkpoint(connection, mode)
    return Checkpoint(mode, wal_pages, moved_pages, busy=bool(was_kept) or moved_pages < wal_pages)


def _wal_checkpoint(connection: Connection, mode: str) -> Any:  # noqa: ANN401 - SQLite's row of three integers
    return connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]


def wal_state(connection: Connection) -> WalState:
    """Look at the -wal without moving anything."""
    _, pages, moved = _wal_checkpoint(connection, "NOOP")
    return WalState(max(pages, 0), max(moved, 0), connection.pragma("page_size"))
