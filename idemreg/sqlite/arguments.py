"""The arguments of tasks that asked to be rerun, a row each: see idempotent_argument in schema.sql.

Every function that writes runs inside a transaction that its caller opened. What deletes them is the same transaction
that makes their task final, so no final task is ever seen with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.recovery import Kept
from idemreg.sqlite.seals import broken, values_hold, values_seal

if TYPE_CHECKING:
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection

__all__ = ["check_seals", "drop", "keep", "page", "read", "remove"]

_COLUMNS: Final = "task_id, is_command, arguments, seal"


def keep(connection: Connection, task_id: str, kept: Kept) -> None:
    """Store what a claim brought, in place of what an earlier one did."""
    row = task_id, int(kept.is_command), kept.arguments
    connection.execute("INSERT OR REPLACE INTO idempotent_argument VALUES (?, ?, ?, ?)", (*row, values_seal(row)))


def read(connection: Connection, task_id: str) -> Kept | None:
    """The task's; None where there are none."""
    found: Any = connection.execute(
        f"SELECT {_COLUMNS} FROM idempotent_argument WHERE task_id = ?",  # noqa: S608 - a constant
        (task_id,),
    ).fetchone()
    return None if found is None else _checked(found)


def page(connection: Connection, after: str | None, limit: int) -> list[tuple[str, Kept]]:
    """At most ``limit`` of them whose task is there, behind ``after``, with their task_ids, in order."""
    rows: list[Any] = connection.execute(
        f"SELECT {_COLUMNS} FROM idempotent_argument AS kept WHERE task_id > ?"  # noqa: S608 - a constant
        " AND EXISTS (SELECT 1 FROM idempotent_log AS task WHERE task.task_id = kept.task_id) ORDER BY task_id LIMIT ?",
        (after or "", limit),
    ).fetchall()
    return [(row[0], _checked(row)) for row in rows]


def drop(connection: Connection, row: Task) -> None:
    """The task that the row tells of is final now, or gone, or claimed by somebody who keeps none."""
    if row.policy.keeps_arguments:
        remove(connection, row.task_id)


def remove(connection: Connection, task_id: str) -> None:
    """Keep none of the task any more."""
    connection.execute("DELETE FROM idempotent_argument WHERE task_id = ?", (task_id,))


def check_seals(connection: Connection) -> None:
    """`StoreCorruptError` where a row is not as it was written. Reads all of them."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM idempotent_argument"):  # noqa: S608 - a constant
        _checked(row)


def _checked(found: Any) -> Kept:  # noqa: ANN401 - a row
    *values, seal = found
    if not values_hold(values, seal):
        what = f"what is kept of the arguments of task {found[0]!r}"
        raise broken(what, str(found[0]))
    return Kept(bool(values[1]), values[2])
