"""Rows that come from another registry: inserted as they are where there is none, never in place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.errors import ChecksumKeyError
from idemreg.sqlite.tasks import INLINE_CHARACTERS, floor, read
from idemreg.store import Present

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Origin, Task
    from idemreg.sqlite.connection import Connection

__all__ = ["put"]

# A running row is never put, so there is no owner to write. What schema.sql gives a default is left to it.
_INSERT: Final = (
    "INSERT INTO idempotent_log (task_id, status, checksum, updated_at, boot_stamp, name, token, attempt, policy,"
    " keep_ms, result, error, verdict, settled_by, evidence, is_large)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def put(
    connection: Connection, schema_version: int, tasks: Sequence[Task], lowest: int, origin: Origin
) -> list[Present | None]:
    """Insert the rows, and raise the token floor past their tokens, also of those that stay out. In a transaction."""
    before = floor(connection, schema_version)
    _adopt(connection, origin)
    answers = [_put(connection, schema_version, task) for task in tasks]
    highest = max(before, lowest, *(task.token for task in tasks))
    if highest > before:
        connection.execute("UPDATE idempotent_registry SET floor = ?", (highest,))
    faults.point("import.in-transaction")
    return answers


def _put(connection: Connection, schema_version: int, task: Task) -> Present | None:
    is_large = len(task.result or "") + len(task.error or "") > INLINE_CHARACTERS
    connection.execute(
        _INSERT,
        (
            task.task_id,
            int(task.status),
            task.checksum,
            task.updated_at,
            task.boot_stamp,
            task.name,
            task.token,
            task.attempt,
            task.policy.pack(),
            task.keep_ms,
            None if is_large else task.result,
            None if is_large else task.error,
            task.verdict,
            task.settled_by,
            task.evidence,
            is_large,
        ),
    )
    if connection.changes() != 1:
        row = read(connection, schema_version, task.task_id)
        return None if row is None else Present(row)
    if is_large:
        connection.execute("INSERT INTO idempotent_large VALUES (?, ?, ?)", (task.task_id, task.result, task.error))
    return None


def _adopt(connection: Connection, origin: Origin) -> None:
    """A registry without any task becomes the one that moves in: receivers know its tasks by keys made of its id."""
    connection.execute(
        "UPDATE idempotent_registry SET registry_id = ?, key_note = ?"
        " WHERE (registry_id, key_note) IS NOT (?, ?) AND NOT EXISTS (SELECT 1 FROM idempotent_log)",
        (*origin, *origin),
    )
    (noted,) = connection.execute("SELECT key_note FROM idempotent_registry").fetchall()[0]
    if noted != origin.key_note:
        msg = "the checksums of the export are made with another key than those of this registry"
        raise ChecksumKeyError(msg, hint="Import it into a registry of its own.")
