"""A schedule behind a clock that was ahead: it has come no further than to now.

By such a clock slots were skipped whose instants were still to come, and versions of the schedule began and ended
there. Once a clock is trusted by which that is so, each of these slots comes again when its time comes: every boundary
that lies ahead is moved to now, and the rows of those that never ran are removed, in one transaction. What has run
early, is at work, waits, or was settled by somebody else keeps its row, and a slot that has a row is never made again:
so nothing runs twice, however often a clock goes out and back. Where `purge` has taken the row of an early slot, nobody
can tell whether it ran: it is given a row again, by which it never comes (`REMOVED`). And `purge` takes none to which
its schedule has not come.

Beyond the watermark and now a schedule skips nothing rightly either: what was skipped there (by who was stopped in his
look, or as of an expression that is over) comes again as well.

So it is also where a clock was set back by a little, past slots that have all run: a schedule that stayed ahead of now
would take what has run there for newer than what is due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from idemreg import faults
from idemreg.cron import Cron
from idemreg.ledger import is_skipped
from idemreg.model import Status
from idemreg.slots import slot_id, slot_of
from idemreg.sqlite import tasks
from idemreg.sqlite.records import raise_floor
from idemreg.sqlite.slots import ahead, mark_removed, put, schedules

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from idemreg.deciding import Wanted
    from idemreg.ledger import Schedule
    from idemreg.model import Task
    from idemreg.sqlite.connection import Connection
    from idemreg.sqlite.stamps import Stamp

__all__ = ["rewind"]


def rewind(
    connection: Connection, schema_version: int, seen: Schedule, now_s: int, wanted: Wanted, stamp: Stamp
) -> bool:
    """See `Ledger.rewind`. Inside a transaction. All versions are read in it: only the newest one is compared."""
    versions = schedules(connection, schema_version, seen.name)
    rows = list(ahead(connection, seen.name, now_s))
    goes = [row for row in rows if _goes(row, seen)]
    if versions[-1:] != [seen] or (seen.watermark_s <= now_s and not goes):
        return False
    present = {row.task_id for row in rows}
    had = (at_s for schedule in versions for at_s in _slots(schedule, now_s))
    removed = (at_s for at_s in had if slot_id(seen.name, at_s) not in present)
    mark_removed(connection, seen.name, removed, wanted, stamp)
    _forget(connection, goes)
    is_over = {Status.SKIPPED, Status.CANCELLED}
    begun = {slot_of(row.task_id) for row in rows if not row.is_untried and row.status not in is_over}
    for schedule in _not_ahead(versions, now_s, begun):
        put(connection, schedule)
    faults.point("slots.rewound")
    return True


def _slots(schedule: Schedule, now_s: int) -> Iterator[int]:
    """The slots of a version after now that were each given a row, in order: none where it skips all."""
    after_s = max(now_s, schedule.after_s)
    if schedule.skips is None and after_s < schedule.watermark_s:
        yield from Cron(schedule.cron, schedule.zone).between(after_s, schedule.watermark_s)


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


def _goes(row: Task | None, seen: Schedule) -> bool:
    """Whether a row ahead of now is taken back: it never ran, and as it is it never would."""
    return row is not None and (is_skipped(row) or _is_superseded(row, seen))


def _is_superseded(row: Task, seen: Schedule) -> bool:
    """Whether it waits for a version that is over: whoever began the next one died before it could skip it."""
    return row.is_untried and (slot_of(row.task_id) or 0) <= seen.after_s


def _not_ahead(versions: Sequence[Schedule], now_s: int, begun: Container[int | None]) -> Iterator[Schedule]:
    """The versions that change: each as if it had ended, or looked, by now at the latest. One all to come is empty.

    How far its own slots have begun stays told, for the audit, as the ``open_s`` of a version that has ended: of this
    one, or of an empty one before the one that counts.
    """
    before: Schedule | None = None
    for one in versions:
        schedule = one
        begun_s = max((at_s for at_s in _slots(schedule, now_s) if at_s in begun), default=now_s)
        after_s = min(schedule.after_s, now_s)
        if schedule.until_s is None:
            yield from _counting(schedule._replace(after_s=after_s), before, now_s, begun_s)
        elif schedule.until_s > now_s:
            if schedule.open_s > schedule.until_s:  # told already, when it was first taken back
                begun_s = max(begun_s, schedule.open_s)
            schedule = schedule._replace(after_s=after_s, until_s=now_s, watermark_s=now_s, open_s=begun_s)
            yield schedule
        before = schedule


def _counting(schedule: Schedule, before: Schedule | None, now_s: int, begun_s: int) -> Iterator[Schedule]:
    """The version that counts, and what tells how far its slots have begun, where that is ahead."""
    becomes = schedule._replace(watermark_s=min(schedule.watermark_s, now_s), open_s=min(schedule.open_s, now_s))
    if begun_s > now_s:
        empty = schedule._replace(until_s=schedule.after_s, watermark_s=schedule.after_s, open_s=begun_s)
        if before is not None and _slots_of(before) == _slots_of(empty):
            yield before._replace(open_s=max(before.open_s, begun_s))
        else:
            yield empty
            becomes = becomes._replace(version=schedule.version + 1)
    yield becomes


def _slots_of(schedule: Schedule) -> tuple[object, ...]:
    """Which slots are its own."""
    return schedule.cron, schedule.zone, schedule.after_s, schedule.until_s
