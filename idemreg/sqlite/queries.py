"""Reading many tasks: pages and counts. Nothing here writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idemreg.model import Status
from idemreg.sqlite.tasks import COLUMNS, floor, to_task
from idemreg.store import Page

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection
    from idemreg.store import Query

__all__ = ["count", "page"]

# The text of the partial index's own condition: the planner uses the index only where it reads the same.
_ATTENTION = "status NOT IN (1, 3)"
_IN_INDEX = frozenset(Status) - {Status.SUCCEEDED, Status.RUNNING}


def page(connection: Connection, schema_version: int, query: Query, after: str | None, limit: int) -> Page:
    """At most ``limit`` tasks in the order of their task_id, continued behind ``after``.

    By prefix and by most statuses it reads only what it returns; `succeeded` and `running` have no index and are
    looked for in all tasks.
    """
    floor(connection, schema_version)
    conditions, bindings = _conditions(query, after)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM idempotent_log {where} ORDER BY task_id LIMIT ?",  # noqa: S608 - constants only
        (*bindings, limit),
    ).fetchall()
    tasks = [to_task(connection, row) for row in rows]
    return Page(tasks, tasks[-1].task_id if len(tasks) == limit else None)


def _conditions(query: Query, after: str | None) -> tuple[list[str], list[str | int]]:
    conditions: list[str] = []
    bindings: list[str | int] = []
    if query.status is not None:
        conditions.append("status = ?")
        bindings.append(int(query.status))
        if query.status in _IN_INDEX:
            conditions.append(_ATTENTION)
    if query.prefix:
        conditions.append("task_id >= ? AND substr(task_id, 1, ?) = ?")
        bindings += [query.prefix, len(query.prefix), query.prefix]
        if (end := _behind(query.prefix)) is not None:
            conditions.append("task_id < ?")
            bindings.append(end)
    if after is not None:
        conditions.append("task_id > ?")
        bindings.append(after)
    return conditions, bindings


def _behind(prefix: str) -> str | None:
    """The smallest text behind every text with this prefix, so that the search ends there; None where it has none."""
    last = ord(prefix[-1])
    if last in (0xD7FF, 0x10FFFF):  # surrogates follow, or nothing
        return None
    return prefix[:-1] + chr(last + 1)


def count(connection: Connection, schema_version: int) -> dict[Status, int]:
    """How many tasks are in each status that occurs. Reads all of them."""
    floor(connection, schema_version)
    rows = connection.execute("SELECT status, count(*) FROM idempotent_log GROUP BY status ORDER BY status")
    return {Status(status): number for status, number in rows}
