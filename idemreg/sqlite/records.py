"""The rows that are no tasks, each under its seal: the one about the file, and those of the owners.

Every function that writes runs inside a transaction that its caller opened. Such a row is read, changed and written
whole, with its seal anew.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from idemreg.errors import ChecksumKeyError, StoreVersionError
from idemreg.keyed import KeyNote
from idemreg.liveness import OwnerRecord
from idemreg.model import Origin
from idemreg.sqlite.connection import Connection
from idemreg.sqlite.seals import broken, values_hold, values_seal

__all__ = [
    "RegistryRow",
    "all_owners",
    "check_seals",
    "floor",
    "forget_owner",
    "insert_registry",
    "leave_batch",
    "newer_schema",
    "other_owners",
    "owner_record",
    "place_notes",
    "raise_floor",
    "record_owner",
    "registry_row",
    "write_registry",
    "wrong_key",
]


# --- the file ---------------------------------------------------------------------------------------------------


class RegistryRow(NamedTuple):
    """The one row about the file."""

    schema_version: int
    registry_id: str
    lock_id: str
    boot_id: str
    floor: int
    key_note: str | None

    def seal(self, connection: Connection) -> int:
        """Its seal. It covers how many bytes of a page are reserved: by that number alone SQLite checks its pages."""
        return values_seal((*self, connection.reserve_bytes()))


_READ: Final = "SELECT schema_version, registry_id, lock_id, boot_id, floor, key_note, seal FROM idempotent_registry"


def registry_row(connection: Connection, schema_version: int | None = None) -> RegistryRow | None:
    """The row; None where it is missing, or of another version than the one that is asked for."""
    rows: list[Any] = connection.execute(_READ).fetchall()
    if not rows or (schema_version is not None and rows[0][0] != schema_version):
        return None
    row = RegistryRow._make(rows[0][:-1])
    if not values_hold((*row, connection.reserve_bytes()), rows[0][-1]):
        what = "the row about the file"
        raise broken(what)
    return row


def insert_registry(connection: Connection, row: RegistryRow) -> None:
    """Write the row of a new file."""
    connection.execute("INSERT INTO idempotent_registry VALUES (1, ?, ?, ?, ?, ?, ?, ?)", (*row, row.seal(connection)))


def write_registry(connection: Connection, row: RegistryRow) -> None:
    """Write it in place of the one that is there, which was read in the same transaction."""
    connection.execute(
        "UPDATE idempotent_registry SET schema_version = ?, registry_id = ?, lock_id = ?, boot_id = ?, floor = ?,"
        " key_note = ?, seal = ?",
        (*row, row.seal(connection)),
    )


def floor(connection: Connection, schema_version: int, key_note: KeyNote | None = None) -> int:
    """The token floor; `StoreVersionError` where the file's schema is not the one this code knows.

    ``key_note``: of whoever is about to store a checksum; `ChecksumKeyError` where the file has another.
    """
    row = registry_row(connection, schema_version)
    if row is None:
        raise newer_schema()
    if key_note is not None and row.key_note != key_note.text:
        raise wrong_key(row, key_note)
    return row.floor


def wrong_key(row: RegistryRow, given: KeyNote) -> ChecksumKeyError:
    """The error of a registry whose checksums are made with another key than the one given, or with none."""
    return ChecksumKeyError(_WRONG_KEY[row.key_note is not None, given.text is not None])


_WRONG_KEY: Final = {  # whether the file's tasks have one, and whether one was given
    (True, False): "the checksums of this registry are made with a key, and none was given",
    (True, True): "the checksums of this registry are made with another key than the one given",
    (False, True): "the checksums of this registry are made without a key, and one was given",
}


def raise_floor(connection: Connection, token: int, origin: Origin | None = None) -> None:
    """From now on every token is above this one. With an ``origin``, the file becomes that registry."""
    row = registry_row(connection)
    assert row is not None  # noqa: S101 - whoever removes or brings rows has read it in the same transaction
    row = row._replace(floor=max(row.floor + 1, token))
    if origin is not None:
        row = row._replace(registry_id=origin.registry_id, key_note=origin.key_note)
    write_registry(connection, row)


def newer_schema() -> StoreVersionError:
    """The error of code that is older than the file."""
    return StoreVersionError("the file was migrated to a schema that this process does not know")


# --- owners -----------------------------------------------------------------------------------------------------


def record_owner(connection: Connection, record: OwnerRecord) -> None:
    """Write the owner's record, before or with its first claim."""
    connection.execute(
        "INSERT OR REPLACE INTO idempotent_owner VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*record, values_seal(record)),
    )


def _to_record(row: Sequence[Any]) -> OwnerRecord:
    record = OwnerRecord._make(row[:-1])
    if not values_hold(record, row[-1]):
        what = f"the record of owner {record.id!r}"
        raise broken(what)
    return record


def owner_record(connection: Connection, owner: int) -> OwnerRecord | None:
    """The owner's record; None where it ended in order, or was proven dead before."""
    row = connection.execute("SELECT * FROM idempotent_owner WHERE id = ?", (owner,)).fetchone()
    return None if row is None else _to_record(row)


def other_owners(connection: Connection, limit: int) -> list[OwnerRecord]:
    """Some of the recorded owners; not those of batches, whose records others still need."""
    rows = connection.execute("SELECT * FROM idempotent_owner WHERE claims IS NULL ORDER BY id LIMIT ?", (limit,))
    return [_to_record(row) for row in rows.fetchall()]


def all_owners(connection: Connection, limit: int) -> list[OwnerRecord]:
    """Those of batches as well."""
    rows = connection.execute("SELECT * FROM idempotent_owner ORDER BY id LIMIT ?", (limit,)).fetchall()
    return [_to_record(row) for row in rows]


def leave_batch(connection: Connection, owner: int, claims: int = 1) -> None:
    """That many claims of a batch have ended; the record goes with the last. Nothing where it is no batch's."""
    record = owner_record(connection, owner)
    if record is None or record.claims is None:
        return
    if record.claims <= claims:
        forget_owner(connection, owner)
    else:
        record_owner(connection, record._replace(claims=record.claims - claims))


def place_notes(connection: Connection, first: int, size: int) -> int:
    """The first gap of the lock file that takes so many notes, between those of the batches that have claims."""
    rows = connection.execute("SELECT * FROM idempotent_owner WHERE notes_at IS NOT NULL ORDER BY notes_at").fetchall()
    at = first
    for record in map(_to_record, rows):
        begin, notes = record.notes_at or 0, record.notes or 0
        if begin - at >= size:
            break
        at = max(at, begin + notes)
    return at


def forget_owner(connection: Connection, owner: int) -> None:
    """Remove the record of an owner that has no claim left, or was proven dead."""
    connection.execute("DELETE FROM idempotent_owner WHERE id = ?", (owner,))


# --- all of them ------------------------------------------------------------------------------------------------

# In each of these tables a row ends with its seal, over all before it but the id that the only row about the clock has.
_CLOCK: Final = "idempotent_clock"
_SEALED: Final = (
    "idempotent_owner", "idempotent_serial", "idempotent_step", _CLOCK, "idempotent_schedule", "idempotent_lease",
    "idempotent_argument",
)  # fmt: skip


def check_seals(connection: Connection) -> None:
    """`StoreCorruptError` where a row that is no task is not as it was written. Reads all of them."""
    registry_row(connection)
    for table in _SEALED:
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608 - a constant
            *values, seal = row[table == _CLOCK :]
            if not values_hold(values, seal):
                what = f"a row of {table}, {row[0]!r},"
                raise broken(what)
