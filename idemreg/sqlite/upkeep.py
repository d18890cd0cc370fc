"""The life of the file itself: creation, migration, a new boot.

Creation and migration are done by one process at a time, under the creation lock of the lock file; whoever comes
later finds them done. Each is one transaction, so a process killed in its middle leaves the file as it was.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from idemreg import faults
from idemreg.clock import Clock
from idemreg.errors import StoreCorruptError, StoreVersionError
from idemreg.keyed import KeyNote
from idemreg.lockfile import LockFile, digest, importing
from idemreg.sqlite import connection as connections
from idemreg.sqlite import noted, pages
from idemreg.sqlite.connection import Connection
from idemreg.sqlite.files import Location
from idemreg.sqlite.form import check_form
from idemreg.sqlite.making import APPLICATION_ID, check_identity, create_file, create_pages, has_content, set_wal
from idemreg.sqlite.records import RegistryRow, insert_registry, registry_row, write_registry, wrong_key
from idemreg.sqlite.rows import check_seals
from idemreg.sqlite.stamps import EPOCH_BITS
from idemreg.sqlite.walindex import WalIndex

if TYPE_CHECKING:
    from idemreg.sqlite.rest import Verdict

__all__ = [
    "SCHEMA",
    "Schema",
    "bring_up",
    "vanished",
]

LAST_EPOCH: Final = 2 ** (63 - EPOCH_BITS) - 1  # boots of one file; a token of a later one would overflow


class Schema(NamedTuple):
    """A version of the schema, its text, and how each older version becomes the next.

    A migration gets the connection inside the transaction; what it leaves in sqlite_schema is the text itself, comments
    and white space apart (see `sqlite/form.py`). It is a value so that a test can bring a second one.
    """

    version: int
    read_text: Callable[[], str]
    migrations: Mapping[int, Callable[[Connection], None]]


@cache  # a process opens files again and again, and what is read is as much as the rest of what the check takes
def _read_schema() -> str:
    # By the path of the package, not by importlib.resources: that import costs 15 ms.
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(package, "schema.sql"), encoding="utf-8") as file:
        return file.read()


SCHEMA: Final = Schema(version=1, read_text=_read_schema, migrations={})


# --- open, create, migrate --------------------------------------------------------------------------------------


class Making(NamedTuple):
    """How the file is to be, and how long others are waited for."""

    schema: Schema
    clock: Clock
    busy_s: float
    key_note: KeyNote | None = None
    page_checksums: bool = False  # where it is made now


class Brought(NamedTuple):
    """The file that was brought up."""

    path: str
    row: RegistryRow
    checks_pages: bool  # it has page checksums
    held: list[Connection]  # the one that it was brought up by, until somebody takes it over


def bring_up(location: Location, lock_file: LockFile, making: Making, held: list[Connection]) -> Brought:
    """Make the file a registry of this schema, of this lock file and of this boot, whatever of it is missing.

    Many processes may do so at the same instant: one does, the others find it done. The connection by which it is done
    is ``held`` from the moment that it is open: to close it is with the caller, also behind an error.
    """
    with lock_file.creation(making.clock, making.busy_s):
        lock_file.read_or_write_id()
        is_first = lock_file.is_alone()
        if lock_file.has_database and not has_content(location.database):
            raise vanished(location)
        create_file(location.database)
        try:
            brought = _bring_up(location.database, lock_file, making, held, is_first=is_first)
        except (apsw.Error, UnicodeDecodeError) as error:
            if connections.is_sync_failure(error):
                lock_file.note_failed_sync()
            if isinstance(error, apsw.NotADBError):
                msg = f"{location.database} is damaged: its header is not a database's"
                raise StoreCorruptError(msg) from error
            for connection in held:
                connections.check_room(connection, error)
            raise connections.translate(error, *held) from error
        lock_file.note_database()
        lock_file.share()
        return brought


def vanished(location: Location) -> StoreCorruptError:
    """The error of a database that is gone, and whose lock file knows better."""
    msg = f"{location.database} has vanished or is empty, but its lock file {location.lock} is still there"
    hint = f"Put a backup in its place; to start anew and forget every task, delete {location.lock}."
    return StoreCorruptError(msg, hint=hint)


def _bring_up(path: str, lock_file: LockFile, making: Making, held: list[Connection], *, is_first: bool) -> Brought:
    schema, clock, boot_id = making.schema, making.clock, making.clock.boot_id()
    connection, is_empty = _connect(path, making, held)
    verdict = _judge(connection, path, lock_file, boot_id) if is_first and not is_empty else None
    is_changed = verdict is not None and verdict.is_changed
    lock_file.begin_boot(boot_id)
    if is_empty:
        create_pages(connection, with_checksums=making.page_checksums)
    set_wal(connection)  # also where somebody took an existing file out of it
    faults.point("create.journal-set")
    if is_empty:
        _create(connection, lock_file, schema, clock)
    pages.check(connection)
    _migrate(connection, schema)
    check_form(connection, schema.read_text())
    if verdict is not None and verdict.is_strange:
        _check_strange(connection, path, verdict)
    registered = _adopt(connection, lock_file, schema, clock, is_changed=is_changed)
    if making.key_note is not None and registered.key_note != making.key_note.text:
        registered = _note_key(connection, schema, making.key_note)
    if is_empty or is_changed:
        _note(connection, path, lock_file, boot_id)
    return Brought(path, registered, pages.has(connection), held)


def _connect(
    path: str, making: Making, held: list[Connection], *, checks_pages: bool = False
) -> tuple[Connection, bool]:
    """A connection that verifies page checksums where the file has them, and whether the file is empty."""
    connection = connections.connect(
        path,
        synchronous=connections.FULL,
        busy_s=making.busy_s,
        clock=making.clock,
        checks_pages=checks_pages or making.page_checksums,
    )
    held.append(connection)
    connections.leave_wal(connection)
    is_empty = check_identity(connection, path)
    if checks_pages or not pages.has(connection):
        pages.check(connection)
        return connection, is_empty
    held.pop().close()
    return _connect(path, making, held, checks_pages=True)


def _judge(connection: Connection, path: str, lock_file: LockFile, boot_id: str) -> "Verdict":
    """What became of the files at rest, before anything is written; `StoreCorruptError` where it is not to be used."""
    with importing():
        from idemreg.sqlite import rest  # noqa: PLC0415 - the first to open them is asked, and nobody else

    verdict = rest.Verdict(is_changed=True, is_strange=True)
    if connection.pragma("journal_mode") == "wal":
        index = WalIndex(connection)
        try:
            if index.is_known:
                verdict = rest.judge(path, lock_file, digest(boot_id), index)
        finally:
            index.close()
    is_checked = verdict.is_strange and os.path.getsize(path) <= rest.CHECKED_BYTES
    if is_checked and (found := pages.damage(connection, "integrity_check", 1)):
        msg = f"{path} is damaged: {found[0]}"
        raise StoreCorruptError(msg)
    return verdict


def _check_strange(connection: Connection, path: str, verdict: "Verdict") -> None:
    with importing():
        from idemreg.sqlite import rest  # noqa: PLC0415 - as above

    if os.path.getsize(path) <= rest.CHECKED_BYTES:
        check_seals(connection)
        if verdict.is_covered:
            rest.check_uncovered(path, connection)


def _note(connection: Connection, path: str, lock_file: LockFile, boot_id: str) -> None:
    """Move what is in the -wal into the database, so that there is something that can be noted of it."""
    if lock_file.has_failed_sync(boot_id):
        return
    index = WalIndex(connection)
    try:
        if index.is_known:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            noted.note(path, lock_file, index)
    finally:
        index.close()


def _create(connection: Connection, lock_file: LockFile, schema: Schema, clock: Clock) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(schema.read_text())
        registry_id = os.urandom(16).hex()
        row = RegistryRow(schema.version, registry_id, lock_file.lock_id, clock.boot_id(), 1 << EPOCH_BITS, None)
        insert_registry(connection, row)
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", schema.version)
        faults.point("create.in-transaction")
        connection.execute("COMMIT")
    finally:
        connections.roll_back(connection)
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
            if version not in schema.migrations:
                msg = f"the file says that it has schema {version}, which never was"
                raise StoreCorruptError(msg)
            schema.migrations[version](connection)
            version += 1
        if (row := registry_row(connection)) is not None:
            write_registry(connection, row._replace(schema_version=version))
        connection.pragma("user_version", version)
        faults.point("migrate.in-transaction")
        connection.execute("COMMIT")
    finally:
        connections.roll_back(connection)
    faults.point("migrate.committed")


def _refuse_newer(connection: Connection, schema: Schema) -> None:
    version = connection.pragma("user_version")
    if version > schema.version:
        msg = f"the file has schema {version}; this idemreg knows schemas up to {schema.version}"
        raise StoreVersionError(msg)


def _adopt(
    connection: Connection, lock_file: LockFile, schema: Schema, clock: Clock, *, is_changed: bool
) -> RegistryRow:
    """Note this lock file and this boot in the file, where they are new. Committed at FULL.

    The first opener after a boot raises the epoch, so that a token lost in a power cut never returns; and who finds
    that the file may be an older copy, above each that the lock file has seen. Of the same kind are the instances of
    serial numbers, which a copy has in common with its original.
    """
    registered = _registered(connection, schema)
    boot_id = clock.boot_id()
    highest = noted.raise_epoch(lock_file, registered.floor >> EPOCH_BITS)
    is_changed = is_changed or registered.floor >> EPOCH_BITS < highest
    if not is_changed and (registered.lock_id, registered.boot_id) == (lock_file.lock_id, boot_id):
        return registered
    connection.execute("BEGIN IMMEDIATE")
    try:
        registered = _registered(connection, schema)
        floor = registered.floor
        if is_changed or registered.boot_id != boot_id:
            floor = (max(floor >> EPOCH_BITS, highest) + 1) << EPOCH_BITS
        write_registry(connection, registered._replace(lock_id=lock_file.lock_id, boot_id=boot_id, floor=floor))
        _draw_anew(connection)
        faults.point("boot.before-commit")
        connection.execute("COMMIT")
    finally:
        connections.roll_back(connection)
    registered = _registered(connection, schema)
    noted.raise_epoch(lock_file, registered.floor >> EPOCH_BITS)
    return registered


def _draw_anew(connection: Connection) -> None:
    with importing():
        from idemreg.sqlite.serial_marks import draw_anew  # noqa: PLC0415 - once a boot
    draw_anew(connection)


def _note_key(connection: Connection, schema: Schema, wanted: KeyNote) -> RegistryRow:
    """A registry without tasks takes the key over; `ChecksumKeyError` where its tasks have another, or none.

    The floor is raised, by which the next claim of whoever has it open notices that its key is not that any more.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        row = _registered(connection, schema)
        if row.key_note != wanted.text and connection.execute("SELECT 1 FROM idempotent_log LIMIT 1").fetchall():
            raise wrong_key(row, wanted)
        row = row._replace(key_note=wanted.text, floor=row.floor + 1)
        write_registry(connection, row)
        connection.execute("COMMIT")
        return row
    finally:
        connections.roll_back(connection)


def _registered(connection: Connection, schema: Schema) -> RegistryRow:
    row = registry_row(connection, schema.version)
    if row is None:
        _refuse_newer(connection, schema)
        msg = "the row about the file itself is missing"
        raise StoreCorruptError(msg)
    if not 1 <= row.floor >> EPOCH_BITS < LAST_EPOCH:
        msg = f"the file says that tokens begin above {row.floor}, which no registry has come to"
        raise StoreCorruptError(msg)
    return row
