"""The row of a task, read: its columns, its seals verified, and what becomes of them as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import StoreCorruptError
from idemreg.model import Status, Task, Verdict, unpack_policy
from idemreg.sqlite import records
from idemreg.sqlite.records import newer_schema
from idemreg.sqlite.seals import TASK_COLUMNS, broken, claim_seal, task_holds

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection

__all__ = ["COLUMNS", "check_seals", "claim_fields", "note_of", "read", "to_task"]

# The large values in the same statement: between two, another process may have ended the task anew, or forgotten it.
# The row would then lack them, or bear those of another attempt.
_LARGE: Final = "FROM idempotent_large AS large WHERE large.task_id = idempotent_log.task_id"
_READ_AS: Final = {
    "result": f"CASE WHEN is_large THEN (SELECT large.result {_LARGE}) ELSE result END",
    "error": f"CASE WHEN is_large THEN (SELECT large.error {_LARGE}) ELSE error END",
    "is_large": f"is_large AND NOT EXISTS (SELECT 1 {_LARGE})",  # whether they are missing
}
COLUMNS: Final = ", ".join(_READ_AS.get(name, name) for name in TASK_COLUMNS)

_LACKS_LARGE: Final = 16
_STATUSES: Final = {int(one): one for one in Status}
_VERDICTS: Final = {None: None} | {int(one): one for one in Verdict}

_VERSION: Final = "(SELECT floor FROM idempotent_registry WHERE schema_version = ?)"

_READ: Final = f"SELECT {COLUMNS}, {_VERSION} FROM idempotent_log WHERE task_id = ?"  # noqa: S608 - constants


def read(connection: Connection, schema_version: int, task_id: str) -> Task | None:
    """The row, with its large values. Checks in the same statement that this code may read it.

    A row that is not there has no version to check: who acts on that (a claim does) checks the version where it acts.
    """
    row = connection.execute(_READ, (schema_version, task_id)).fetchone()
    if row is None:
        return None
    if row[-1] is None:
        raise newer_schema()
    if row[0] != task_id:  # damage in the tree leads to another's row, which is whole
        what = f"the row of task {task_id!r}"
        raise broken(what, task_id)
    return to_task(row)


def check_seals(connection: Connection) -> None:
    """`StoreCorruptError` where a row of any table is not as it was written. Reads all of them."""
    for row in connection.execute(f"SELECT {COLUMNS} FROM idempotent_log"):  # noqa: S608 - constants
        to_task(row)
    records.check_seals(connection)


def to_task(row: tuple[Any, ...]) -> Task:
    """A row that begins with `COLUMNS` as a Task, its seals verified."""
    if row[_LACKS_LARGE]:
        msg = f"the large result of task {row[0]!r} is missing"
        raise StoreCorruptError(msg, task_id=row[0])
    if not task_holds(row):
        what = f"the row of task {row[0]!r}"
        raise broken(what, row[0])
    try:
        # By tables and slices: this is on the path of every duplicate.
        fields = (row[0], _STATUSES[row[1]], *row[2:9], unpack_policy(row[9]), *row[10:13])
        return Task._make((*fields, _VERDICTS[row[13]], row[14], row[15]))
    except (ValueError, LookupError) as unknown:
        msg = f"the row of task {row[0]!r} holds a value that no idemreg writes: {unknown}"
        raise StoreCorruptError(msg, task_id=row[0]) from unknown


_CLAIM_FIELDS: Final = "task_id, name, checksum, policy, keep_ms, note, settled_by, evidence"


def note_of(connection: Connection, task_id: str) -> int | None:
    """Which note tells of the task."""
    row = claim_fields(connection, task_id)
    return None if row is None else row[5]


def claim_fields(connection: Connection, task_id: str) -> tuple[Any, ...] | None:
    """What `claim_seal` takes, as it is stored, once it is verified."""
    row: Any = connection.execute(
        f"SELECT {_CLAIM_FIELDS}, claim_seal FROM idempotent_log WHERE task_id = ?",  # noqa: S608 - constants
        (task_id,),
    ).fetchone()
    if row is None:
        return None
    try:
        holds = claim_seal(*row[:-1]) == row[-1]
    except TypeError:  # damage may make any type of a value
        holds = False
    if not holds:
        what = f"the row of task {task_id!r}"
        raise broken(what, task_id)
    return tuple(row[:-1])
