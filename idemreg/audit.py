"""The audit: the schedule is reckoned anew, and compared with the ledger, slot by slot.

Every version of the schedule says from when to when it counted, so the slots that there should be are known whatever
became of their rows. The two are gone through side by side, in the order of time, a page of rows at a time.

    run, running, failed, unknown, skipped, cancelled, pending     as the row says
    late       due for more than two minutes, and nobody has looked: it has no row yet; or it is pending, and no slot of
               the schedule is at work that it may wait for; or it is running, and its owner is dead, or its lease over.
               A gap: whoever should call `run_due` does not
    missing    before the watermark, and without a row: somebody has removed it; or between two versions. A gap
    double     a row, which has run or may run, at an instant that is no slot of the schedule. But one of a version that
               ended before that instant is as its row says where it has run early: by hand, and the row is from before
               that instant; or by a clock that was ahead, which the version tells

What `purge` has removed is missing as well: keep the rows (``keep_for``) for as long as you audit. And zones are
reckoned by the rules that this system has now, which a country may have changed since.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from idemreg.clockcheck.alarm import is_alarm
from idemreg.cron import Cron
from idemreg.errors import ScheduleError, require
from idemreg.ledger import State
from idemreg.listing import PAGE_TASKS
from idemreg.model import Liveness, Status
from idemreg.query import Query
from idemreg.slots import instant, slot_id, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from idemreg.ledger import Ledger, Schedule
    from idemreg.model import Task
    from idemreg.owner import OwnerInfo
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
    return _compare(should, _rows(store, name, begin_s, end_s), _Sight(store, versions, now_us))


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
    for schedule in _unbroken(versions):
        begin_s = max(since_s, schedule.after_s)
        end_s = until_s if schedule.until_s is None else min(until_s, schedule.until_s)
        if begin_s < end_s:
            cron = Cron(schedule.cron, schedule.zone)
            yield from (_Due(at_s, schedule, cron) for at_s in cron.between(begin_s, end_s))


def _unbroken(versions: list[Schedule]) -> Iterator[Schedule]:
    """The versions; and where one ends before the next begins, the same goes on up to there: nobody has seen its slots.

    No look leaves such a gap: both ends are written in one transaction. So its slots are missing, whoever is at fault.
    """
    for schedule, following in zip(versions, [*versions[1:], None], strict=True):
        yield schedule
        next_s = LATEST_S if following is None else following.after_s
        if (end_s := schedule.until_s) is not None and end_s < next_s:
            yield schedule._replace(after_s=end_s, watermark_s=end_s, until_s=next_s, skips=None)


def _rows(store: Store, name: str, since_s: int, until_s: int) -> Iterator[Task]:
    """The rows whose task_id lies between the two, of whatever form the rest of it is.

    But alarms of the clock check, which begin as the slots of a schedule that is named clock do.
    """
    last = slot_id(name, until_s)
    after: str | None = slot_id(name, since_s)
    while after is not None:
        page = store.page(Query(prefix=f"{name}@"), after, PAGE_TASKS)
        for task in page.tasks:
            if task.task_id > last:
                return
            if not is_alarm(task):
                yield task
        after = page.after


def _compare(should: Iterator[_Due], rows: Iterator[Task], sight: _Sight) -> Iterator[Audited]:
    """Both are in order; what only one of them has comes out by itself."""
    due, row = next(should, None), next(rows, None)
    while due is not None or row is not None:
        task_id = "" if due is None else slot_id(due.schedule.name, due.at_s)
        if due is None or (row is not None and row.task_id < task_id):
            assert row is not None  # noqa: S101 - one of the two is there
            if (found := _beside(row, sight)) is not None:
                yield found
            row = next(rows, None)
        elif row is None or row.task_id > task_id:
            yield _without_row(due, task_id, sight.now_us)
            due = next(should, None)
        else:
            yield _with_row(due, row, sight)
            due, row = next(should, None), next(rows, None)


def _beside(row: Task, sight: _Sight) -> Audited | None:
    """A row where the schedule has no slot; one that never ran and never will is nothing."""
    if row.status in {Status.SKIPPED, Status.CANCELLED}:
        return None
    at_s = slot_of(row.task_id)
    if at_s is not None and (due := sight.early(at_s, row)) is not None:
        return _with_row(due, row, sight)
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
    if due.schedule.until_s is not None:
        return told("missing", "no version of the schedule has it")
    state = due.schedule.state
    if state is State.PAUSED or now_us // 1_000_000 - due.at_s <= LATE_S:
        return told("pending", "paused" if state is State.PAUSED else None)
    return told("late", "the clock is not trusted" if state is State.HELD else "nobody has looked since")


def _with_row(due: _Due, row: Task, sight: _Sight) -> Audited:
    row, why = sight.examined(row)
    told = functools.partial(_audited, due, row.task_id, attempt=row.attempt)
    if row.status is Status.SKIPPED:
        return told("skipped", row.evidence or None, attempt=0)
    if why is None or sight.is_recent(due.at_s * 1_000_000):
        return told(_WORDS[row.status], None)
    if sight.state is State.PAUSED:
        return told(_WORDS[row.status], f"{why}, and the schedule is paused" if why else "paused")
    if sight.state is State.HELD:
        return told("late", "the clock is not trusted")
    if row.status is Status.PENDING and sight.has_closed(due):
        why = "its window has closed"
    return told("late", f"{why}, and nobody has looked since" if why else "nobody has started it since")


class _Sight:
    """What there is to know beside a row of whether it waits in vain. Of one instant: as the audit began."""

    def __init__(self, store: Store, versions: list[Schedule], now_us: int) -> None:
        self._store = store
        self._versions = versions
        self.now_us = now_us
        found = cast("Ledger", store).waiting(versions[0].name)
        self.state = State.GOING if found.schedule is None else found.schedule.state
        self._is_attended = any(_freed(owner) is None for owner in found.owners.values())

    def is_recent(self, at_us: int) -> bool:
        """Whether that is not two minutes ago. What lies far ahead was written by a clock that has been set back."""
        return abs(self.now_us - at_us) <= LATE_S * 1_000_000

    def early(self, at_s: int, row: Task) -> _Due | None:
        """The slot of a version that ended before its instant, where it can have run early: by a clock or by hand."""
        for schedule in self._versions:
            until_s = at_s if schedule.until_s is None else schedule.until_s
            if until_s < at_s and (at_s <= schedule.open_s or row.updated_at < at_s * 1_000_000):
                cron = Cron(schedule.cron, schedule.zone)
                if cron.names(at_s):
                    return _Due(at_s, schedule, cron)
        return None

    def has_closed(self, due: _Due) -> bool:
        """Whether the window of the slot has."""
        grace_ms = due.schedule.grace_ms
        return grace_ms is not None and self.now_us > (due.at_s * 1_000 + grace_ms) * 1_000

    def examined(self, row: Task) -> tuple[Task, str | None]:
        """The row, and why somebody should have looked at it since (the empty text: it waits); None: nobody need."""
        if self.is_recent(row.updated_at):
            self._is_attended = True  # what waits behind it, in order, gets its time
            return row, None
        if row.status is Status.PENDING:
            return row, None if self._is_attended else ""
        return self._owned(row) if row.status is Status.RUNNING else (row, None)

    def _owned(self, row: Task) -> tuple[Task, str | None]:
        owner = self._store.owner(row)
        why = None if owner is None else _freed(owner)
        if why is None:
            return row, None
        (now,) = self._store.get([row.task_id])  # one that has ended, and its process with it, died of nothing
        return (row, why) if now is not None and now.version == row.version else (now or row, None)


def _freed(owner: OwnerInfo) -> str | None:
    """Why the owner of a running task holds it no more; None where it does, and where nobody can tell."""
    if owner.liveness is Liveness.DEAD:
        return "its owner is dead"
    is_over = owner.liveness is Liveness.EXPIRED and (owner.lease_left_ms or 0) < -LATE_S * 1_000
    return "its lease is over" if is_over else None
