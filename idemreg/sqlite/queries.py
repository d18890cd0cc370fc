"""Reading many tasks: which rows a query means, pages and counts. Nothing here writes."""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

from operator import itemgetter
from typing import Any, Final, NamedTuple

from idemreg.errors import StoreCorruptError
from idemreg.model import Origin, Status, Verdict
from idemreg.query import Instant, Page, Query
from idemreg.sqlite.connection import Connection
from idemreg.sqlite.records import floor, newer_schema, registry_row
from idemreg.sqlite.rows import COLUMNS, to_task

__all__ = [
    "AGE_MS",
    "Conditions",
    "boundary",
    "conditions",
    "count",
    "origin",
    "page",
    "within",
]

# The text of the partial index's own condition: the planner uses the index only where it reads the same.
_ATTENTION: Final = "status NOT IN (1, 3)"
_IN_INDEX: Final = frozenset(Status) - {Status.SUCCEEDED, Status.RUNNING}

# Rows looked at for one page, where most of them may not be wanted: a read of bounded length never holds the -wal back.
SCANNED_ROWS: Final = 20_000

# Milliseconds since the last change: by time since boot for rows of this boot (the stamp's lower 40 bits), by date for
# those before. Bindings: boot_start, boot_ms, wall_us.
AGE_MS: Final = (
    "(CASE WHEN boot_stamp >= ? THEN ? - (boot_stamp & 1099511627775) ELSE (? - updated_at) / 1000 END)"  # 2^40 - 1
)


class Conditions(NamedTuple):
    """Terms of a WHERE, and what is bound in them, in order."""

    terms: list[str]
    bindings: list[str | int]

    def add(self, term: str, *bindings: str | int) -> None:
        """One more that must hold."""
        self.terms.append(term)
        self.bindings.extend(bindings)

    @property
    def where(self) -> str:
        """The clause; empty where there is no term."""
        return f"WHERE {' AND '.join(self.terms)}" if self.terms else ""


def page(connection: Connection, schema_version: int, query: Query, at: Instant, after: str | None, limit: int) -> Page:
    """At most ``limit`` tasks in the order of their task_id, continued behind ``after``.

    By prefix, and by statuses that have an index, it reads only what it returns. For all else it looks through a
    bounded number of rows, and may find less than there is, or none: `Page.after` says where to go on.
    """
    floor(connection, schema_version)
    if (statuses := query.statuses) is not None and statuses <= _IN_INDEX:
        return _indexed_page(connection, query, at, after, limit)
    last = boundary(connection, query, after) if _is_sparse(query) else None
    wanted = conditions(query, at)
    within(wanted, query, after, last)
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM idempotent_log {wanted.where} ORDER BY task_id LIMIT ?",  # noqa: S608 - constants only
        (*wanted.bindings, limit),
    ).fetchall()
    tasks = [to_task(row) for row in rows]
    return Page(tasks, tasks[-1].task_id if len(tasks) == limit else last)


def _indexed_page(connection: Connection, query: Query, at: Instant, after: str | None, limit: int) -> Page:
    """One search of the index a status, since `status IN (...)` would sort all that is left for each page."""
    rows: list[Any] = []
    for status in query.statuses or ():
        wanted = conditions(query._replace(status=status), at)
        wanted.add(_ATTENTION)
        within(wanted, query, after, None)
        rows += connection.execute(
            f"SELECT {COLUMNS} FROM idempotent_log {wanted.where} ORDER BY task_id LIMIT ?",  # noqa: S608 - constants
            (*wanted.bindings, limit),
        ).fetchall()
    rows.sort(key=itemgetter(0))  # by code points, which is SQLite's order as well
    tasks = [to_task(row) for row in rows[:limit]]
    return Page(tasks, tasks[-1].task_id if len(tasks) == limit else None)


def _is_sparse(query: Query) -> bool:
    """Whether the query may pass over rows, so that a page needs a bound on what it looks at."""
    return query._replace(prefix="") != type(query)()


def boundary(connection: Connection, query: Query, after: str | None) -> str | None:
    """The task_id up to which a piece of `SCANNED_ROWS` rows of the prefix goes; None where the rest is shorter."""
    wanted = Conditions([], [])
    within(wanted, query, after, None)
    row = connection.execute(
        f"SELECT task_id FROM idempotent_log {wanted.where} ORDER BY task_id LIMIT 1 OFFSET ?",  # noqa: S608
        (*wanted.bindings, SCANNED_ROWS - 1),
    ).fetchone()
    return None if row is None else row[0]


def within(wanted: Conditions, query: Query, after: str | None, last: str | None) -> None:
    """Add the range of task_ids: the prefix, behind ``after``, up to ``last``."""
    if query.prefix:
        wanted.add("task_id >= ? AND substr(task_id, 1, ?) = ?", query.prefix, len(query.prefix), query.prefix)
        if (end := _behind(query.prefix)) is not None:
            wanted.add("task_id < ?", end)
    if after is not None:
        wanted.add("task_id > ?", after)
    if last is not None:
        wanted.add("task_id <= ?", last)


def conditions(query: Query, at: Instant) -> Conditions:
    """What a row must be, but for the range of its task_id."""
    wanted = Conditions([], [])
    if isinstance(query.status, Status):
        wanted.add("status = ?", int(query.status))  # with IN, also of one, the planner sorts
    elif (statuses := query.status) is not None:
        wanted.add(f"status IN ({', '.join('?' * len(statuses))})", *map(int, sorted(statuses)))
    if query.name is not None:
        wanted.add("name = ?", query.name)
    if query.older_ms is not None:
        wanted.add(f"{AGE_MS} >= ?", *_age(at), query.older_ms)
    if query.newer_ms is not None:
        wanted.add(f"{AGE_MS} < ?", *_age(at), query.newer_ms)
    if query.dead:  # as `Task.is_dead_letter` says; max_attempts stands above the fifth bit of the policy
        wanted.add(f"status = {int(Status.FAILED)} AND verdict IS NOT {int(Verdict.RETRY)} AND attempt >= policy >> 5")
    return wanted


def _age(at: Instant) -> tuple[int, int, int]:
    return at.boot_start, at.boot_ms, at.wall_us


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
    try:
        return {Status(status): number for status, number in rows}
    except ValueError as unknown:
        msg = f"a task has a status that no idemreg writes: {unknown}"
        raise StoreCorruptError(msg) from unknown


def origin(connection: Connection, schema_version: int) -> Origin:
    """The id, and the note of the key."""
    row = registry_row(connection, schema_version)
    if row is None:
        raise newer_schema()
    return Origin(row.registry_id, row.key_note)
