"""The audit: the schedule is reckoned anew, and compared with the ledger, slot by slot.

Every version of the schedule says from when to when it counted, so the slots that there should be are known whatever
became of their rows. The two are gone through side by side, in the order of time, a page of rows at a time.

    run, running, failed, unknown, skipped, cancelled, pending     as the row says
    late       due for more than two minutes, and nobody has looked; or pending, its window long closed. A gap: whoever
               should call `run_due` does not
    missing    before the watermark, and without a row: somebody has removed it. A gap
    double     a row, which has run or may run, at an instant that is no slot of the schedule

What `purge` has removed is missing as well: keep the rows (``keep_for``) for as long as you audit. And zones are
reckoned by the rules that this system has now, which a country may have changed since.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from idemreg.cron import Cron
from idemreg.errors import ScheduleError, require
from idemreg.ledger import State
from idemreg.listing import PAGE_TASKS
from idemreg.model import Status
from idemreg.slots import instant, slot_id, slot_of
from idemreg.store import Query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from idemreg.ledger import Ledger, Schedule
    from idemreg.model import Task
    from idemreg.store import Store

__all__ = ["GAPS", "STATES", "Audited", "audit"]

# A line in a crontab calls each minute, and one call may be at work.
LATE_S: Final = 120

LATEST_S: Final = 2**37  # beyond any date

GAPS: Final = frozenset({"late", "missing", "double"})
STATES: Final = ("run", "running", "failed", "unknown", "skipped", "cancelled", "pending", "late", "missing", "double")
_WORDS: Final = {status: status.word for status in Status} | {Status.SUCCEEDED: "run"}


class Audited(NamedTuple):
    """A slot as the audit finds it. ``state``: one of `STATES`. ``reason``: why it was skipped, or what is wrong."""

    task_id: str
    slot: datetime | None
    local: datetime | None
    state: str
    reason: str | None
    attempt: int
    version: int | None

    @property
    def is_sound(self) -> bool:
        """Whether it is neither a gap nor a double."""
        return self.state not in GAPS


class _Due(NamedTuple):
    """A slot that there should be."""

    at_s: int
    schedule: Schedule
    cron: Cron


def audit(store: Store, name: str, since_s: int | None, until_s: int | None, now_us: int) -> Iterator[Audited]:
    """Every slot after ``since_s`` (None: since the schedule began) up to ``until_s`` (now), in order.

    `ScheduleError` at once where there is no such schedule, and where no slot can lie in that time.
    """
    require(name, str, "the name of a schedule is text")
    _check_time(since_s, until_s, now_us // 1_000_000)
    versions = cast("Ledger", store).schedules(name)
    if not versions:
        msg = f"the file knows no schedule {name!r}"
        raise ScheduleError(msg, hint="`idemreg schedule` lists those that it knows; the first look at one begins it.")
    begin_s = versions[0].after_s if since_s is None else max(since_s, versions[0].after_s)
    end_s = min(now_us // 1_000_000, LATEST_S if until_s is None else until_s)
    should = _slots(versions, begin_s, end_s)
    return _compare(should, _rows(store, name, begin_s, end_s), now_us)


def _check_time(since_s: int | None, until_s: int | None, now_s: int) -> None:
    """A slip in a date, which would make every audit a clean one."""
    if since_s is None:
        return
    if until_s is not None and since_s >= until_s:
        msg = f"no slot lies between {instant(since_s)} and {instant(until_s)}: the time ends before it begins"
        raise ScheduleError(msg, hint="Give the earlier one as since, and the later one as until.")
    if since_s > now_s:
        msg = f"there is nothing to audit yet: by this clock {instant(since_s)} is still to come"
        raise ScheduleError(msg, hint="Give a time that has passed as since.")


def _slots(versions: list[Schedule], since_s: int, until_s: int) -> Iterator[_Due]:
    for schedule in versions:
        begin_s = max(since_s, schedule.after_s)
        end_s = until_s if schedule.until_s is None else min(until_s, schedule.until_s)
        if begin_s < end_s:
            cron = Cron(schedule.cron, schedule.zone)
            yield from (_Due(at_s, schedule, cron) for at_s in cron.between(begin_s, end_s))


def _rows(store: Store, name: str, since_s: int, until_s: int) -> Iterator[Task]:
    """The rows whose task_id lies between the two, of whatever form the rest of it is."""
    last = slot_id(name, until_s)
    after: str | None = slot_id(name, since_s)
    while after is not None:
        page = store.page(Query(prefix=f"{name}@"), after, PAGE_TASKS)
        for task in page.tasks:
            if task.task_id > last:
                return
            yield task
        after = page.after


def _compare(should: Iterator[_Due], rows: Iterator[Task], now_us: int) -> Iterator[Audited]:
    """Both are in order; what only one of them has comes out by itself."""
    due, row = next(should, None), next(rows, None)
    while due is not None or row is not None:
        task_id = "" if due is None else slot_id(due.schedule.name, due.at_s)
        if due is None or (row is not None and row.task_id < task_id):
            assert row is not None  # noqa: S101 - one of the two is there
            if (found := _beside(row)) is not None:
                yield found
            row = next(rows, None)
        elif row is None or row.task_id > task_id:
            yield _without_row(due, task_id, now_us)
            due = next(should, None)
        else:
            yield _with_row(due, row, now_us)
            due, row = next(should, None), next(rows, None)


def _beside(row: Task) -> Audited | None:
    """A row where the schedule has no slot; one that never ran and never will is nothing."""
    if row.status in {Status.SKIPPED, Status.CANCELLED}:
        return None
    at_s = slot_of(row.task_id)
    slot = None if at_s is None else instant(at_s)
    return Audited(row.task_id, slot, slot, "double", f"{_WORDS[row.status]}, and no slot", row.attempt, None)


def _audited(due: _Due, task_id: str, state: str, reason: str | None, attempt: int = 0) -> Audited:
    return Audited(task_id, instant(due.at_s), due.cron.local(due.at_s), state, reason, attempt, due.schedule.version)


def _without_row(due: _Due, task_id: str, now_us: int) -> Audited:
    told = functools.partial(_audited, due, task_id)
    if due.schedule.skips is not None:
        return told("skipped", due.schedule.skips.value)
    if due.at_s <= due.schedule.watermark_s:
        return told("missing", "its row was removed")
    state = due.schedule.state
    if state is State.PAUSED or now_us // 1_000_000 - due.at_s <= LATE_S:
        return told("pending", "paused" if state is State.PAUSED else None)
    return told("late", "the clock is not trusted" if state is State.HELD else "nobody has looked since")


def _with_row(due: _Due, row: Task, now_us: int) -> Audited:
    told = functools.partial(_audited, due, row.task_id)
    if row.status is Status.SKIPPED:
        return told("skipped", row.evidence or None)
    grace_ms = due.schedule.grace_ms
    closed_ms = None if grace_ms is None else due.at_s * 1_000 + grace_ms + LATE_S * 1_000
    if row.status is Status.PENDING and closed_ms is not None and now_us // 1_000 > closed_ms:
        return told("late", "its window has closed, and nobody has looked since")
    return told(_WORDS[row.status], None, row.attempt)
