"""The transitions of a task: one function, one statement, one transition, its changed rows counted.

Every function runs inside a transaction that its caller opened; what it decided by was read in the same transaction.
The compare-and-set in each statement is therefore a second barrier: it holds should the first, SQLite's write lock,
have been lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import StoreCorruptError, StoreVersionError
from idemreg.liveness import OwnerRecord
from idemreg.model import NO_CHECKSUM, Policy, Status, Task, Verdict, unpack_policy
from idemreg.store import Absent, Stored

if TYPE_CHECKING:
    from idemreg.model import Wanted
    from idemreg.sqlite.connection import Connection
    from idemreg.store import End, Settlement

__all__ = [
    "Stamp",
    "claim",
    "finish",
    "floor",
    "forget",
    "forget_owner",
    "glance",
    "insert",
    "is_plain_success",
    "leave_batch",
    "note",
    "note_of",
    "other_owners",
    "owner_record",
    "place_notes",
    "read",
    "record_owner",
    "settle",
    "succeed",
    "to_task",
]

# Longer results and errors live in a table of their own, so that a page of the tree of tasks holds many tasks.
INLINE_CHARACTERS: Final = 200

# The large values in the same statement: between two, another process may have ended the task anew, or forgotten it.
# The row would then lack them, or bear those of another attempt.
_LARGE: Final = "FROM idempotent_large AS large WHERE large.task_id = idempotent_log.task_id"
COLUMNS: Final = (
    "task_id, status, checksum, updated_at, boot_stamp, name, token, attempt, owner, policy, keep_ms,"
    f" CASE WHEN is_large THEN (SELECT large.result {_LARGE}) ELSE result END,"
    f" CASE WHEN is_large THEN (SELECT large.error {_LARGE}) ELSE error END,"
    f" verdict, settled_by, evidence, is_large AND NOT EXISTS (SELECT 1 {_LARGE})"
)

_LACKS_LARGE: Final = 16
_STATUSES: Final = {int(one): one for one in Status}
_VERDICTS: Final = {None: None} | {int(one): one for one in Verdict}

_VERSION: Final = "(SELECT floor FROM idempotent_registry WHERE schema_version = ?)"

# What a row is stamped with: microseconds by the wall clock, and epoch and milliseconds of this boot.
Stamp = tuple[int, int]


_READ: Final = f"SELECT {COLUMNS}, {_VERSION} FROM idempotent_log WHERE task_id = ?"  # noqa: S608 - constants


def read(connection: Connection, schema_version: int, task_id: str) -> Task | None:
    """The row, with its large values. Checks in the same statement that this code may read it.

    A row that is not there has no version to check: who acts on that (a claim does) checks the version where it acts.
    """
    row = connection.execute(_READ, (schema_version, task_id)).fetchone()
    if row is None:
        return None
    if row[-1] is None:
        raise _newer_schema()
    return to_task(row)


_GLANCE: Final = (
    "SELECT token, attempt, result, status = 1 AND name = ? AND checksum = ? AND result IS NOT NULL"
    " AND (SELECT schema_version FROM idempotent_registry) = ? FROM idempotent_log WHERE task_id = ?"
)


def glance(connection: Connection, schema_version: int, wanted: Wanted) -> Stored | Absent | None:
    """The stored success of the very task, or that there is no row; None where more must be read.

    `model.decide` says the same of such a row. Half of a duplicate's time went into the columns that only other
    answers need.
    """
    bindings = (wanted.name, wanted.checksum, schema_version, wanted.task_id)
    rows: list[Any] = connection.hot.execute(_GLANCE, bindings).fetchall()
    if not rows:
        return _ABSENT
    token, attempt, result, is_it = rows[0]
    return Stored(token, attempt, result) if is_it else None


_ABSENT: Final = Absent()


def to_task(row: tuple[Any, ...]) -> Task:
    """A row that begins with `COLUMNS` as a Task."""
    if row[_LACKS_LARGE]:
        msg = f"the large result of task {row[0]!r} is missing"
        raise StoreCorruptError(msg, task_id=row[0])
    try:
        # By tables and slices: this is on the path of every duplicate.
        fields = (row[0], _STATUSES[row[1]], *row[2:9], unpack_policy(row[9]), *row[10:13])
        return Task._make((*fields, _VERDICTS[row[13]], row[14], row[15]))
    except (ValueError, LookupError) as broken:
        msg = f"the row of task {row[0]!r} holds a value that no idemreg writes: {broken}"
        raise StoreCorruptError(msg, task_id=row[0]) from broken


def floor(connection: Connection, schema_version: int) -> int:
    """The token floor; `StoreVersionError` where the file's schema is not the one this code knows."""
    row = connection.execute("SELECT floor FROM idempotent_registry WHERE schema_version = ?", (schema_version,))
    if (found := row.fetchone()) is None:
        raise _newer_schema()
    return int(found[0])


def _newer_schema() -> StoreVersionError:
    return StoreVersionError("the file was migrated to a schema that this process does not know")


# --- claim ------------------------------------------------------------------------------------------------------


_INSERT: Final = (
    "INSERT INTO idempotent_log (task_id, checksum, updated_at, boot_stamp, name, policy, keep_ms, status, token,"
    " attempt, owner, is_large) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0 FROM idempotent_registry"
    " WHERE schema_version = ? AND floor = ? ON CONFLICT DO NOTHING"
)
_NOTE: Final = "UPDATE idempotent_log SET note = ? WHERE task_id = ?"


def insert(
    connection: Connection, wanted: Wanted, schema_version: int, floor: int, owner: int | None, stamp: Stamp
) -> bool:
    """none -> running, with the first token above the floor; or none -> pending, where there is no ``owner``.

    False where the task has a row, or the ground has shifted (a migration, a `forget` that raised the ``floor``): the
    statement checks both itself, so that it may be a transaction of its own.
    """
    task_id, name, checksum, policy, keep_ms, *_ = wanted
    status, token, attempt = (0, 0, 0) if owner is None else (3, floor + 1, 1)
    fields = (task_id, checksum, *stamp, name, policy.pack(), keep_ms, status, token, attempt, owner)
    connection.hot.execute(_INSERT, (*fields, schema_version, floor))
    return connection.changes() == 1


def note(connection: Connection, task_id: str, place: int | None) -> None:
    """Say which note of its owner tells whether the job of a claim was entered; None: the claim itself does."""
    connection.execute(_NOTE, (place, task_id))


def note_of(connection: Connection, task_id: str) -> int | None:
    """Which note tells of the task."""
    row: Any = connection.execute("SELECT note FROM idempotent_log WHERE task_id = ?", (task_id,)).fetchone()
    return None if row is None else row[0]


def claim(
    connection: Connection,
    row: Task,
    wanted: Wanted,
    policy: Policy,
    token: int,
    attempt: int,
    owner: int,
    stamp: Stamp,
) -> bool:
    """pending, failed, unknown or running -> running, with a larger token. False where the row changed."""
    connection.execute(
        "UPDATE idempotent_log SET status = 3, name = ?, checksum = ?, updated_at = ?, boot_stamp = ?, token = ?,"
        " attempt = ?, owner = ?,"
        " policy = ?, keep_ms = ?, verdict = NULL, note = NULL WHERE task_id = ? AND status = ? AND token = ?",
        (
            wanted.name,
            wanted.checksum,
            *stamp,
            token,
            attempt,
            owner,
            policy.pack(),
            wanted.keep_ms,
            row.task_id,
            int(row.status),
            row.token,
        ),
    )
    return connection.changes() == 1


# --- finish and settle ------------------------------------------------------------------------------------------


def is_plain_success(end: End) -> bool:
    """Whether `succeed` may do for this end: a success with a small result, the hot path."""
    return end.status is _SUCCEEDED and not _is_large(end.result, end.error)


_SUCCEEDED: Final = Status.SUCCEEDED
_SUCCEED: Final = (
    "UPDATE idempotent_log SET status = 1, updated_at = ?, boot_stamp = ?, owner = NULL, result = ?, error = ?,"
    " verdict = NULL WHERE task_id = ? AND token = ? AND owner = ? AND status = 3 AND is_large = 0"
    " AND (SELECT schema_version FROM idempotent_registry) = ?"
)


def succeed(connection: Connection, schema_version: int, end: End, stamp: Stamp) -> bool:
    """running -> succeeded. False as in `finish`, and where the row has something large from before."""
    bindings = (*stamp, end.result, end.error, end.task_id, end.token, end.owner, schema_version)
    connection.hot.execute(_SUCCEED, bindings)
    return connection.changes() == 1


def finish(connection: Connection, schema_version: int, end: End, stamp: Stamp) -> bool:
    """running -> succeeded, failed, unknown, or back.

    False where the claim is not this owner's any more, or this code must not write the file's schema.
    """
    is_large = _is_large(end.result, end.error)
    connection.execute(
        "UPDATE idempotent_log SET status = ?, updated_at = ?, boot_stamp = ?, attempt = ?, owner = NULL, result = ?,"
        " error = ?, is_large = ?, verdict = ? WHERE task_id = ? AND token = ? AND owner = ? AND status = 3"
        " AND (SELECT schema_version FROM idempotent_registry) = ?",
        (
            int(end.status),
            *stamp,
            end.attempt,
            None if is_large else end.result,
            None if is_large else end.error,
            is_large,
            end.verdict,
            end.task_id,
            end.token,
            end.owner,
            schema_version,
        ),
    )
    if connection.changes() != 1:
        return False
    _write_large(connection, end.task_id, end.result, end.error, is_large=is_large)
    if end.was_absent:
        connection.execute(
            "UPDATE idempotent_log SET name = '', checksum = ? WHERE task_id = ? AND token = ?",
            (NO_CHECKSUM, end.task_id, end.token),
        )
    return True


def settle(connection: Connection, row: Task, status: Status, settlement: Settlement, stamp: Stamp) -> bool:
    """An end decided without the owner. False where the row changed.

    A claim leaves the result of the attempt before in its row, so that of a running row is not this attempt's.
    """
    succeeded = status is Status.SUCCEEDED
    result = settlement.result if succeeded or row.status is Status.RUNNING else row.result
    error = settlement.error if succeeded else settlement.error or row.error
    is_large = _is_large(result, error)
    connection.execute(
        "UPDATE idempotent_log SET status = ?, updated_at = ?, boot_stamp = ?, owner = NULL, result = ?, error = ?,"
        " is_large = ?, verdict = ?, settled_by = ?, evidence = ? WHERE task_id = ? AND status = ? AND token = ?",
        (
            int(status),
            *stamp,
            None if is_large else result,
            None if is_large else error,
            is_large,
            int(settlement.verdict),
            settlement.by,
            settlement.evidence,
            row.task_id,
            int(row.status),
            row.token,
        ),
    )
    if connection.changes() != 1:
        return False
    _write_large(connection, row.task_id, result, error, is_large=is_large)
    return True


def _is_large(result: str | None, error: str | None) -> bool:
    return (0 if result is None else len(result)) + (0 if error is None else len(error)) > INLINE_CHARACTERS


def _write_large(
    connection: Connection, task_id: str, result: str | None, error: str | None, *, is_large: bool
) -> None:
    if is_large:
        connection.execute(
            "INSERT INTO idempotent_large (task_id, result, error) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET result = excluded.result, error = excluded.error",
            (task_id, result, error),
        )
    else:
        connection.execute("DELETE FROM idempotent_large WHERE task_id = ?", (task_id,))


# --- forget -----------------------------------------------------------------------------------------------------


def forget(connection: Connection, row: Task) -> bool:
    """any -> none. Raises the token floor past the row's token, so that it is never given again."""
    connection.execute(
        "DELETE FROM idempotent_log WHERE task_id = ? AND status = ? AND token = ?",
        (row.task_id, int(row.status), row.token),
    )
    if connection.changes() != 1:
        return False
    connection.execute("DELETE FROM idempotent_large WHERE task_id = ?", (row.task_id,))
    connection.execute("UPDATE idempotent_registry SET floor = max(floor, ?)", (row.token,))
    return True


# --- owners -----------------------------------------------------------------------------------------------------


def record_owner(connection: Connection, record: OwnerRecord) -> None:
    """Write the owner's record, before or with its first claim."""
    connection.execute("INSERT OR REPLACE INTO idempotent_owner VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", record)


def owner_record(connection: Connection, owner: int) -> OwnerRecord | None:
    """The owner's record; None where it ended in order, or was proven dead before."""
    row = connection.execute("SELECT * FROM idempotent_owner WHERE id = ?", (owner,)).fetchone()
    return None if row is None else OwnerRecord._make(row)


def other_owners(connection: Connection, limit: int) -> list[OwnerRecord]:
    """Some of the recorded owners; not those of batches, whose records others still need."""
    rows = connection.execute("SELECT * FROM idempotent_owner WHERE claims IS NULL ORDER BY id LIMIT ?", (limit,))
    return [OwnerRecord._make(row) for row in rows]


def leave_batch(connection: Connection, owner: int, claims: int = 1) -> None:
    """That many claims of a batch have ended; the record goes with the last. Nothing where it is no batch's."""
    connection.execute(
        "UPDATE idempotent_owner SET claims = claims - ? WHERE id = ? AND claims IS NOT NULL", (claims, owner)
    )
    if connection.changes():
        connection.execute("DELETE FROM idempotent_owner WHERE id = ? AND claims <= 0", (owner,))


def place_notes(connection: Connection, first: int, size: int) -> int:
    """The first gap of the lock file that takes so many notes, between those of the batches that have claims."""
    rows: Any = connection.execute(
        "SELECT notes_at, notes_at + notes FROM idempotent_owner WHERE notes_at IS NOT NULL ORDER BY notes_at"
    )
    at = first
    for begin, end in rows.fetchall():
        if begin - at >= size:
            break
        at = max(at, end)
    return at


def forget_owner(connection: Connection, owner: int) -> None:
    """Remove the record of an owner that has no claim left, or was proven dead."""
    connection.execute("DELETE FROM idempotent_owner WHERE id = ?", (owner,))
