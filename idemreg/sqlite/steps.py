"""The steps of a task: looked up, and saved by a compare-and-set on the claim that they belong to.

Every function runs inside a transaction, or on a connection, that its caller opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg import faults
from idemreg.errors import StepError
from idemreg.model import Status, Task
from idemreg.progress import Step
from idemreg.sqlite import rows
from idemreg.sqlite.seals import values_seal
from idemreg.sqlite.step_rows import STEP_COLUMNS, to_step
from idemreg.store import Lost

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection

__all__ = ["MAX_STEPS", "MAX_STEPS_BYTES", "find", "save"]

# Of one task, for as long as its row is there.
MAX_STEPS: Final = 1_000
MAX_STEPS_BYTES: Final = 16 * 2**20  # of their results together; of one alone as of a task


def find(connection: Connection, schema_version: int, task_id: str, token: int, name: str) -> Step | Lost | None:
    """The step; None where it was not saved and may be."""
    row = rows.read(connection, schema_version, task_id)
    if not _is_held(row, token):
        return Lost(row)
    if (step := _find(connection, task_id, name)) is None:
        _room(connection, task_id)
    return step


def save(
    connection: Connection,
    schema_version: int,
    task_id: str,
    token: int,
    name: str,
    result: str | None,
    saved_at: int,
) -> Step | Lost:
    """none -> saved, by the claim's owner only."""
    row = rows.read(connection, schema_version, task_id)
    if row is None or not _is_held(row, token):
        return Lost(row)
    count, left_bytes = _room(connection, task_id)
    if result is not None and len(result.encode()) > left_bytes:
        result = None
    step = Step(name, count + 1, token, saved_at, result)
    seal = values_seal((task_id, *step))
    connection.execute(
        "INSERT INTO idempotent_step SELECT ?, ?, ?, ?, ?, ?, ? FROM idempotent_log"
        " WHERE task_id = ? AND token = ? AND owner = ? AND status = 3 ON CONFLICT DO NOTHING",
        (task_id, *step, seal, task_id, token, row.owner),
    )
    if connection.changes() != 1:
        msg = f"step {name!r} was saved before: it has run twice"
        raise StepError(msg, task_id=task_id)
    faults.point("step.in-transaction")
    return step


def _is_held(row: Task | None, token: int) -> bool:
    return row is not None and row.status is Status.RUNNING and row.token == token


def _find(connection: Connection, task_id: str, name: str) -> Step | None:
    row: Any = connection.execute(
        f"SELECT {STEP_COLUMNS} FROM idempotent_step WHERE task_id = ? AND name = ?",  # noqa: S608 - a constant
        (task_id, name),
    ).fetchone()
    return None if row is None else to_step(row)


def _room(connection: Connection, task_id: str) -> tuple[int, int]:
    """How many steps the task has, and how many bytes there are for results; `StepError` where it has all it may."""
    rows: list[Any] = connection.execute(
        "SELECT count(*), coalesce(sum(octet_length(result)), 0) FROM idempotent_step WHERE task_id = ?", (task_id,)
    ).fetchall()
    count, used_bytes = rows[0]
    if count >= MAX_STEPS:
        msg = f"the task has {count:,} steps already, and no more are kept"
        raise StepError(msg, task_id=task_id, hint="Make the steps larger, or the task smaller.")
    return count, MAX_STEPS_BYTES - used_bytes
