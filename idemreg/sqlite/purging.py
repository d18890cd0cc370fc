"""Removing rows whose time has passed: look at a bounded piece without any lock, then remove it in one transaction.

Only final rows go, and those never change: a row that still has its status and token is the row that was looked at. So
the look needs no lock, and the transaction is short. What was forgotten or claimed anew in between stays, and so does a
slot behind which its schedule has gone back meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import faults
from idemreg.errors import StoreCorruptError
from idemreg.model import FINAL, Status
from idemreg.sqlite import leases
from idemreg.sqlite.queries import AGE_MS, boundary, conditions, within
from idemreg.sqlite.records import floor, raise_floor
from idemreg.sqlite.rows import COLUMNS, to_task
from idemreg.sqlite.slots import ANY_SLOT
from idemreg.sqlite.tasks import is_large
from idemreg.store import Group, Survey

if TYPE_CHECKING:
    from idemreg.model import Task
    from idemreg.query import Instant, Query
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.queries import Conditions

__all__ = ["Found", "find", "remove", "survey"]

# A slot to which its schedule has not come, by its row and no clock: it has run early, or was settled by hand. Its row
# keeps it from being made, and run again, when its time comes.
_TO_COME: Final = (
    f"(task_id GLOB '{ANY_SLOT}' AND EXISTS (SELECT 1 FROM idempotent_schedule AS its"  # noqa: S608 - a constant
    " WHERE its.name = substr(task_id, 1, length(task_id) - 21) AND its.until_s IS NULL"
    " AND its.watermark_s < unixepoch(substr(task_id, -20))))"
)

_REMOVE: Final = "DELETE FROM idempotent_log WHERE task_id = ? AND status = ? AND token = ?"
_REMOVE_SLOT: Final = f"{_REMOVE} AND NOT {_TO_COME}"  # its schedule may have gone back since it was found

_AT: Final = slice(-21, -20)  # where a slot has its @

# One transaction removes so many rows: other writers wait some milliseconds.
CHUNK_ROWS: Final = 500


class Found(NamedTuple):
    """Rows to remove, their seals verified, and where to go on looking."""

    rows: list[Task]
    after: str | None


def survey(connection: Connection, schema_version: int, query: Query, at: Instant, after: str | None) -> Survey:
    """Count what may go in one piece of the tasks, and tell the newest row of the piece.

    Every row is looked at, also those that the query does not mean: the newest tells whether the clock can be trusted.
    """
    floor(connection, schema_version)
    everything = query._replace(prefix="")
    last = boundary(connection, everything, after)
    wanted = _removable(query, at)
    within(wanted, query, after, last)
    groups: list[Any] = connection.execute(
        "SELECT status, name, count(*), min(updated_at), max(updated_at) FROM idempotent_log"  # noqa: S608 - constants
        f" {wanted.where} GROUP BY status, name",
        wanted.bindings,
    ).fetchall()
    piece = type(wanted)([], [])
    within(piece, everything, after, last)
    # SQLite gives the other columns of the row that has the maximum.
    newest: Any
    task_id: Any
    ((newest, task_id),) = connection.execute(
        f"SELECT max(updated_at), task_id FROM idempotent_log {piece.where}",  # noqa: S608 - constants only
        piece.bindings,
    ).fetchall()
    if not isinstance(newest, int | None):
        msg = f"the date of task {task_id!r} is none"
        raise StoreCorruptError(msg, task_id=task_id)
    return Survey([Group(Status(row[0]), *row[1:]) for row in groups], newest, task_id, last)


def find(connection: Connection, schema_version: int, query: Query, at: Instant, after: str | None) -> Found:
    """At most `CHUNK_ROWS` rows that may go, from one piece of the tasks."""
    floor(connection, schema_version)
    last = boundary(connection, query, after)
    wanted = _removable(query, at)
    within(wanted, query, after, last)
    rows: list[Any] = connection.execute(
        f"SELECT {COLUMNS} FROM idempotent_log {wanted.where} ORDER BY task_id LIMIT ?",  # noqa: S608 - constants only
        (*wanted.bindings, CHUNK_ROWS),
    ).fetchall()
    tasks = [to_task(row) for row in rows]
    return Found(tasks, tasks[-1].task_id if len(tasks) == CHUNK_ROWS else last)


def _removable(query: Query, at: Instant) -> Conditions:
    """Final, its own time passed, no slot that is to come. Without an asked age, a row that is kept for ever stays."""
    wanted_statuses = FINAL if query.statuses is None else query.statuses & FINAL
    wanted = conditions(query._replace(status=wanted_statuses), at)
    kept = f"keep_ms IS NOT NULL AND {AGE_MS} >= keep_ms"
    if query.older_ms is not None:
        kept = f"keep_ms IS NULL OR {AGE_MS} >= keep_ms"
    wanted.add(f"({kept})", at.boot_start, at.boot_ms, at.wall_us)
    wanted.add(f"NOT {_TO_COME}")
    return wanted


def remove(connection: Connection, schema_version: int, tasks: list[Task]) -> int:
    """Remove the rows that are still what they were, and raise the token floor past theirs. Inside a transaction."""
    lowest = floor(connection, schema_version)
    count, highest = 0, lowest
    for task in tasks:
        connection.execute(
            _REMOVE_SLOT if task.task_id[_AT] == "@" else _REMOVE,
            (task.task_id, int(task.status), task.token),
        )
        if connection.changes() != 1:
            continue
        if is_large(task.result, task.error):
            connection.execute("DELETE FROM idempotent_large WHERE task_id = ?", (task.task_id,))
        if task.policy.is_limited:
            leases.remove(connection, task.task_id)
        count, highest = count + 1, max(highest, task.token)
    _remove_steps(connection, tasks)
    raise_floor(connection, highest)
    faults.point("purge.in-transaction")
    return count


def _remove_steps(connection: Connection, tasks: list[Task]) -> None:
    """Those whose task is gone, by one statement for all: most tasks have none."""
    connection.execute(
        "DELETE FROM idempotent_step WHERE task_id BETWEEN ? AND ?"
        " AND NOT EXISTS (SELECT 1 FROM idempotent_log AS task WHERE task.task_id = idempotent_step.task_id)",
        (tasks[0].task_id, tasks[-1].task_id),
    )
