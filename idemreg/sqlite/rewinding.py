"""A schedule behind a clock that was ahead: it has come no further than to now.

By such a clock slots were skipped whose instants were still to come, and versions of the schedule began and ended
there. Once a clock is trusted by which that is so, each of these slots comes again when its time comes: every boundary
that lies ahead is moved to now, and the rows of those that never ran are removed, in one transaction. What has run
early, is at work, waits, or was settled by somebody else keeps its row, and a slot that has a row is never made again:
so nothing runs twice, however often a clock goes out and back.

Where nothing is lost nothing is written: the watermark stays ahead of a clock that is set back by a little, and of one
that comes again past slots that have run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg import faults
from idemreg.model import Status
from idemreg.slots import BY_SCHEDULE, Reason, slot_id, slot_of
from idemreg.sqlite import tasks
from idemreg.sqlite.records import floor, raise_floor
from idemreg.sqlite.rows import COLUMNS, to_task
from idemreg.sqlite.slots import newest, put, schedules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from idemreg.ledger import Schedule
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection

__all__ = ["is_due", "rewind"]

_REASONS: Final = frozenset(reason.value for reason in Reason)


def is_due(connection: Connection, schema_version: int, seen: Schedule, slots: Iterable[int], now_s: int) -> bool:
    """Whether one of the slots is lost: no look would make it any more, and it has not run."""
    floor(connection, schema_version)
    rows = _ahead(connection, seen, now_s)
    row = next(rows, None)
    for at_s in slots:
        task_id = slot_id(seen.name, at_s)
        while row is not None and row.task_id < task_id:
            row = next(rows, None)
        if row is None or row.task_id != task_id or _is_skipped(row):
            return True
    return False


def rewind(connection: Connection, schema_version: int, seen: Schedule, now_s: int) -> bool:
    """See `Ledger.rewind`. Inside a transaction. All versions are read in it: only the newest one is compared."""
    floor(connection, schema_version)
    if newest(connection, seen.name) != seen or seen.watermark_s <= now_s:
        return False
    goes = [row for row in _ahead(connection, seen, now_s) if _is_skipped(row) or _is_superseded(row, seen)]
    _forget(connection, goes)
    for schedule in schedules(connection, schema_version, seen.name):
        becomes = _not_ahead(schedule, now_s)
        if becomes != schedule:
            put(connection, becomes)
    faults.point("slots.rewound")
    return True


def _forget(connection: Connection, goes: Sequence[Task]) -> None:
    """Remove the rows: a hundred thousand that were never claimed at once, and as ever the few that were put back.

    The floor is raised also for those without a token: a -wal that removes rows, and does not, is another file's.
    """
    never_claimed = [(row.task_id,) for row in goes if not row.token]
    if never_claimed:
        connection.executemany("DELETE FROM idempotent_log WHERE task_id = ?", never_claimed)
        raise_floor(connection, 0)
    for row in goes:
        if row.token:
            tasks.forget(connection, row)


def _ahead(connection: Connection, seen: Schedule, now_s: int) -> Iterator[Task]:
    """The rows of slots after now, up to the watermark."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM idempotent_log WHERE task_id > ? AND task_id <= ? ORDER BY task_id",  # noqa: S608
        (slot_id(seen.name, now_s), slot_id(seen.name, seen.watermark_s)),
    )
    return (task for task in map(to_task, rows) if slot_of(task.task_id) is not None)


def _is_skipped(row: Task) -> bool:
    """Whether the schedule itself has skipped it, and it never ran."""
    is_by_schedule = row.status is Status.SKIPPED and row.settled_by == BY_SCHEDULE
    return is_by_schedule and row.attempt == 0 and row.evidence in _REASONS


def _is_superseded(row: Task, seen: Schedule) -> bool:
    """Whether it waits for a version that is over: whoever began the next one died before it could skip it."""
    return row.is_untried and (slot_of(row.task_id) or 0) <= seen.after_s


def _not_ahead(schedule: Schedule, now_s: int) -> Schedule:
    """The version as it would be had it ended, or looked, by now at the latest. One that is all to come is empty."""
    return schedule._replace(
        after_s=min(schedule.after_s, now_s),
        until_s=None if schedule.until_s is None else min(schedule.until_s, now_s),
        watermark_s=min(schedule.watermark_s, now_s),
        open_s=min(schedule.open_s, now_s),
    )
