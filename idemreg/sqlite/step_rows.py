"""The rows of steps, read and their seals verified. Most jobs have none, so a look at tasks does without this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.progress import Step
from idemreg.sqlite.records import floor
from idemreg.sqlite.seals import broken, values_hold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.sqlite.connection import Connection

__all__ = ["STEP_COLUMNS", "check_steps", "of_task", "tasks_with_steps", "to_step"]

STEP_COLUMNS: Final = "task_id, name, number, token, saved_at, result, seal"


def of_task(connection: Connection, schema_version: int, task_id: str) -> list[Step]:
    """The steps of a task, in the order in which they were saved."""
    floor(connection, schema_version)
    rows: list[Any] = connection.execute(
        f"SELECT {STEP_COLUMNS} FROM idempotent_step WHERE task_id = ? ORDER BY number",  # noqa: S608 - a constant
        (task_id,),
    ).fetchall()
    return [to_step(row) for row in rows]


def tasks_with_steps(connection: Connection, schema_version: int, first: str, last: str) -> set[str]:
    """Which of the tasks from the first to the last have steps."""
    floor(connection, schema_version)
    rows: list[Any] = connection.execute(
        "SELECT DISTINCT task_id FROM idempotent_step WHERE task_id BETWEEN ? AND ?", (first, last)
    ).fetchall()
    return {task_id for (task_id,) in rows}


def check_steps(connection: Connection) -> None:
    """`StoreCorruptError` where a step is not as it was written. Reads all of them."""
    for row in connection.execute(f"SELECT {STEP_COLUMNS} FROM idempotent_step"):  # noqa: S608 - a constant
        to_step(row)


def to_step(row: Sequence[Any]) -> Step:
    """A row of `STEP_COLUMNS`, its seal verified."""
    if not values_hold(row[:-1], row[-1]):
        what = f"step {row[1]!r} of task {row[0]!r}"
        raise broken(what, row[0])
    return Step._make(row[1:-1])
