"""Rows that come from another registry: inserted as they are where there is none, never in place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.errors import ChecksumKeyError
from idemreg.sqlite.records import floor, raise_floor, registry_row
from idemreg.sqlite.rows import read
from idemreg.sqlite.seals import claim_seal, state_seal, values_seal
from idemreg.sqlite.tasks import is_large
from idemreg.store import Present

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Origin, Task
    from idemreg.progress import Step, Steps
    from idemreg.sqlite.connection import Connection

__all__ = ["put"]

# A running row is never put, so there is no owner to write. What schema.sql gives a default is left to it.
_INSERT: Final = (
    "INSERT INTO idempotent_log (task_id, status, checksum, updated_at, boot_stamp, name, token, attempt, policy,"
    " keep_ms, result, error, verdict, settled_by, evidence, is_large, claim_seal, state_seal)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def put(
    connection: Connection,
    schema_version: int,
    tasks: Sequence[Task],
    lowest: int,
    origin: Origin,
    steps: Steps = None,
) -> list[Present | None]:
    """Insert the rows, and raise the token floor past their tokens, also of those that stay out. In a transaction."""
    before = floor(connection, schema_version)
    is_empty = connection.execute("SELECT 1 FROM idempotent_log LIMIT 1").fetchall() == []
    if not is_empty and (row := registry_row(connection)) is not None and row.key_note != origin.key_note:
        msg = "the checksums of the export are made with another key than those of this registry"
        raise ChecksumKeyError(msg, hint="Import it into a registry of its own.")
    answers = [_put(connection, schema_version, task) for task in tasks]
    for task, answer in zip(tasks, answers, strict=True):
        if answer is None and steps is not None:
            _put_steps(connection, task.task_id, steps.get(task.task_id, ()))
    highest = max(before, lowest, *(task.token for task in tasks))
    # A registry without any task becomes the one that moves in: its receivers know the tasks by keys made of it.
    raise_floor(connection, highest, origin if is_empty else None)
    faults.point("import.in-transaction")
    return answers


def _put(connection: Connection, schema_version: int, task: Task) -> Present | None:
    is_far = is_large(task.result, task.error)
    packed, verdict = task.policy.pack(), None if task.verdict is None else int(task.verdict)
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
            packed,
            task.keep_ms,
            None if is_far else task.result,
            None if is_far else task.error,
            verdict,
            task.settled_by,
            task.evidence,
            is_far,
            claim_seal(
                task.task_id, task.name, task.checksum, packed, task.keep_ms, None, task.settled_by, task.evidence
            ),
            state_seal(
                task.task_id,
                int(task.status),
                task.token,
                task.attempt,
                None,
                verdict,
                task.updated_at,
                task.boot_stamp,
                task.result,
                task.error,
            ),
        ),
    )
    if connection.changes() != 1:
        row = read(connection, schema_version, task.task_id)
        return None if row is None else Present(row)
    if is_far:
        connection.execute("INSERT INTO idempotent_large VALUES (?, ?, ?)", (task.task_id, task.result, task.error))
    return None


def _put_steps(connection: Connection, task_id: str, steps: Sequence[Step]) -> None:
    connection.executemany(
        "INSERT INTO idempotent_step VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(task_id, *step, values_seal((task_id, *step))) for step in steps],
    )
