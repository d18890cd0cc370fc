"""A slot that somebody runs by hand, whatever its window: also one that its schedule has skipped, or one to come.

It is run beside others, which see it, and while a clock in doubt suspends scheduling. It must be a slot of the version
that has its instant in the file: else the audit would rightly call it a double. Where it has no row yet, that is known
only while this process has the schedule that counts. One from before the schedule began is reckoned by the present one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

from idemreg.cron import Cron
from idemreg.errors import ScheduleError
from idemreg.ledger import LOST_CRON
from idemreg.model import Status
from idemreg.scheduled import keep_in_sight
from idemreg.slots import BY_SCHEDULE, slot_of

if TYPE_CHECKING:
    from typing import Any

    from idemreg.claim import Terms
    from idemreg.deciding import Outcome
    from idemreg.ledger import Ledger
    from idemreg.model import Task
    from idemreg.planning import Timetable
    from idemreg.scheduled import Scheduled
    from idemreg.store import Store
    from idemreg.walk import Walk

__all__ = ["run_slot"]


def run_slot(scheduled: Scheduled, terms: Terms, task_id: str) -> Walk[Outcome[Any]]:
    """Run one slot by hand; one that its schedule has skipped is taken back for it.

    `ScheduleError` where it is no slot of the schedule. One that somebody else has skipped stays so.
    """
    store: Store = terms.store
    ledger = cast("Ledger", store)
    rows: list[Task | None] = yield store.get, ([task_id],), None
    row = rows[0]
    was_skipped = row is not None and row.status is Status.SKIPPED and row.settled_by == BY_SCHEDULE
    check = None  # what has begun goes on, whichever version it was of
    if row is None or row.is_untried or was_skipped:
        check = functools.partial(_check, ledger, scheduled.table)
        yield functools.partial(check, task_id, is_without_row=row is None), (), None
    if row is not None and was_skipped:
        yield functools.partial(store.forget, task_id, force=False, seen=row.version), (), None
    yield keep_in_sight, (ledger, scheduled.wanted, task_id), None
    return (yield from scheduled.by_hand(terms, task_id, check))


def _check(ledger: Ledger, table: Timetable, task_id: str, *, is_without_row: bool = False) -> None:
    """`ScheduleError` where the version that has its instant has no such slot, or that cannot be told here.

    Behind the claim once more: another version may have begun before it. What begins later is told of this slot.
    """
    versions = ledger.schedules(table.name)
    if is_without_row and versions and not table.is_of(counts := versions[-1]):
        msg = f"the file has the schedule {table.name!r} as {counts.cron!r} in {counts.zone}; this process has another"
        hint = "Where this one is the newer, the next look begins it: `run_due` first. Else start the process anew."
        raise ScheduleError(msg, hint=hint)
    at_s = slot_of(task_id) or 0
    has_it = next((one for one in reversed(versions) if one.after_s < at_s), None)
    cron = table.cron if has_it is None else Cron(has_it.cron, has_it.zone)
    if cron.names(at_s):
        return
    msg = f"{task_id} is no slot of the schedule: {cron.expression!r}"
    hint = f"See its slots with: `idemreg audit {table.name}`"
    if has_it is None:
        hint = "A slot is an instant of UTC that the expression names in its zone."
    elif has_it.cron == LOST_CRON:
        msg = f"what the schedule {table.name!r} was at {task_id} is lost: its file was damaged, and salvaged"
        hint = "Run what was missed as a task of another name."
    raise ScheduleError(msg, hint=hint)
