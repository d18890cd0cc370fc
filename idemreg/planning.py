"""What a look at a schedule decides: which slots get a row, which are skipped and why, which may start. Pure.

In the order in which it is decided:

- *First seen*, a schedule begins now: no slot of the past is fired. The same where its expression or zone is another:
  that begins a new version, and what the one before had not started is skipped as `superseded`. The process that began
  last counts: one that had looked before, with its own expression, finds it superseded and looks no more.
- *Paused*: slots that come due are skipped as `paused`.
- *Window*: a slot may start up to ``misfire_grace`` after its instant, and no later. It is skipped as `too_late` where
  its window had closed before anybody looked, and as `window_closed` where it waited in it (behind another slot, or
  for whoever made its row and died). `clock` in place of `too_late`: nobody might look, since the clock was not to be
  trusted.
- *Clock*: while it is suspended nothing is decided; where the hardware clock serves meanwhile, only the newest slot
  that has come due since the last look starts. What comes due while one runs is treated as below, and all others wait
  until the clock is confirmed.
- *Overlap*: one slot of a schedule at a time. What comes due while one runs is skipped as `overlap`, or waits (queue).
  One runs as long as its row says so and its owner is not proven dead. Where its lease has expired it is decided about
  before another starts, since until then its owner may come back. An unknown slot holds nobody up: it is for an
  operator, or for its verify hook.
- *Coalesce*: of several slots that wait, missed or queued, ``latest`` runs the newest and ``earliest`` the oldest; the
  others are `coalesced`. So is, under ``latest``, what is older than one that has come due and begun (by a clock that
  served, or by hand). ``all`` runs each in order, but of more than ``limit`` only the newest, and the others are
  `over_limit`.

What has started before goes on under its own policy: a slot whose owner died, or has lost its lease, is claimed again
by ``on_crash``, in its window or not, and so is one that was interrupted under rerun, which is pending; about an
unknown one the verify hook is asked, as by any call; a failed one is retried in its window while attempts are left, or
whenever an operator said so (`retry`, or `resolve` with did-not-happen).

A clock that goes back makes nothing due anew that has run: a slot with a row has it, and a pending one waits until its
instant comes again. But what the schedule has skipped before its instant had come, by the clock that is trusted now,
was skipped by a wrong one, and comes again when its time comes (`Ledger.rewind`). `MOST_ROWS` bounds a look: of more
missed slots only the newest get a row each; all before them are one row of the table of schedules that says why they
were skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from idemreg.clockcheck.verdict import Permit
from idemreg.cron import Cron
from idemreg.deciding import Decision, decide
from idemreg.errors import ScheduleError, StoreBusyError
from idemreg.ledger import NewSlot, Schedule, State
from idemreg.model import Liveness, Status, Verdict
from idemreg.slots import Reason, slot_id, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from idemreg.deciding import Wanted
    from idemreg.ledger import Waiting
    from idemreg.model import Task

__all__ = [
    "MOST_ROWS",
    "Circumstances",
    "Coalesce",
    "Overlap",
    "Plan",
    "Timetable",
    "always_changing",
    "reckon",
    "resumed",
]

MOST_ROWS: Final = 100_000  # ten weeks of every minute; in one transaction, about a second

SECOND_US: Final = 1_000_000
MS_US: Final = 1_000

Coalesce = Literal["all", "latest", "earliest"]
Overlap = Literal["skip", "queue"]


class Timetable(NamedTuple):
    """When, and what becomes of slots that cannot run in time. ``grace_ms``: None, a slot may start whenever it can."""

    name: str
    cron: Cron
    grace_ms: int | None
    coalesce: Coalesce
    limit: int
    overlap: Overlap

    def is_of(self, schedule: Schedule) -> bool:
        """Whether the version has this expression and this zone."""
        return (schedule.cron, schedule.zone) == (self.cron.expression, self.cron.zone)


class Circumstances(NamedTuple):
    """Those under which one looks at a schedule.

    ``now_us``: the wall clock, corrected as the ``permit`` of the clock check says. ``ran``: from when to when this
    process has just run a slot of it (µs of the wall clock as it is). ``own``: the version that counted when this
    process last looked, with its own expression.
    """

    now_us: int
    permit: Permit = Permit()
    ran: tuple[int, int] | None = None
    own: int | None = None

    @property
    def now_s(self) -> int:
        """The last whole second."""
        return self.now_us // SECOND_US

    def is_behind(self, found: Waiting) -> bool:
        """Whether the schedule has come, or skipped, beyond the clock, and that is trusted: nothing serves for it."""
        if (seen := found.schedule) is None or not self.permit.catch_up:
            return False
        return max(seen.watermark_s, found.skipped_s or 0) > self.now_s


class Plan(NamedTuple):
    """What is to be stored (`Ledger.plan`), which pending slots are to be skipped, and which may start, in order."""

    becomes: list[Schedule]
    slots: list[NewSlot]
    skips: list[tuple[str, Reason]]
    runs: list[str]


NOTHING: Final = Plan([], [], [], [])


def reckon(table: Timetable, found: Waiting, wanted: Wanted, look: Circumstances) -> Plan:
    """What becomes of the schedule at this look. ``wanted``: as its slots are claimed, but for the task_id."""
    seen, now_s = found.schedule, look.now_s
    if not look.permit.scheduling:
        return NOTHING if seen is None else NOTHING._replace(becomes=_held(seen))
    if seen is None:
        return NOTHING._replace(becomes=[_version(table, 1, now_s, now_s)])
    if not table.is_of(seen):
        return _superseded(table, found, look)
    new = table.cron.newest(seen.watermark_s, now_s, MOST_ROWS)
    if seen.state is State.PAUSED:
        return NOTHING._replace(
            becomes=_advanced(seen, table.cron, new, Reason.PAUSED, now_s),
            slots=[NewSlot(at, Reason.PAUSED) for at in new],
        )
    return _going(table, found, wanted, look, new)


def resumed(seen: Schedule, now_s: int) -> Plan:
    """A paused schedule goes on: what has come due meanwhile is skipped."""
    cron = Cron(seen.cron, seen.zone)
    new = cron.newest(seen.watermark_s, now_s, MOST_ROWS)
    *before, last = _advanced(seen, cron, new, Reason.PAUSED, now_s) or [seen]
    return NOTHING._replace(
        becomes=[*before, last._replace(state=State.GOING)], slots=[NewSlot(at, Reason.PAUSED) for at in new]
    )


# --- versions ---------------------------------------------------------------------------------------------------


def _version(table: Timetable, number: int, now_s: int, open_s: int, state: State = State.GOING) -> Schedule:
    cron = table.cron
    return Schedule(
        table.name, number, cron.expression, cron.zone, now_s, None, now_s, open_s, table.grace_ms, state, None
    )


def _held(seen: Schedule) -> list[Schedule]:
    return [seen._replace(state=State.HELD)] if seen.state is State.GOING else []


def _superseded(table: Timetable, found: Waiting, look: Circumstances) -> Plan:
    """The schedule is another from now on. What the one before had not started never will."""
    seen = found.schedule
    assert seen is not None  # noqa: S101 - whoever calls has looked
    if look.own is not None and look.own < seen.version:
        msg = f"the schedule {table.name!r} is {seen.cron!r} in {seen.zone} by now; this process still has another"
        raise ScheduleError(msg, hint="Start it anew with the definition that counts, or give it a name of its own.")
    now_s = max(look.now_s, seen.watermark_s)
    cron = Cron(seen.cron, seen.zone)
    new = cron.newest(seen.watermark_s, now_s, MOST_ROWS)
    *before, last = _advanced(seen, cron, new, Reason.SUPERSEDED, now_s) or [seen]
    ended = last._replace(watermark_s=now_s, until_s=now_s, open_s=min(last.open_s, now_s))
    state = State.GOING if seen.state is State.HELD else seen.state
    return Plan(
        becomes=[*before, ended, _version(table, ended.version + 1, now_s, seen.open_s, state)],
        slots=[NewSlot(at_s, Reason.SUPERSEDED) for at_s in new],
        skips=[
            (task.task_id, Reason.SUPERSEDED)
            for task in found.tasks
            if task.is_untried and not _is_of(table, task, now_s)
        ],
        runs=[],
    )


def _is_of(table: Timetable, task: Task, after_s: int) -> bool:
    """Whether a slot that waits, for a clock was ahead, is one of the schedule that begins at an instant."""
    at_s = _at(task)
    return at_s > after_s and table.cron.names(at_s)


def _advanced(seen: Schedule, cron: Cron, new: Sequence[int], reason: Reason, now_s: int) -> list[Schedule]:
    """The watermark moves past the new slots. Those before them, where they are too many, are skipped as a whole."""
    if not new:
        return []
    is_cut = len(new) == MOST_ROWS and cron.following(seen.watermark_s, new[0] - 1) is not None
    if not is_cut:
        return [seen._replace(watermark_s=now_s)]
    last_s = new[0] - 1
    skipped = seen._replace(
        version=seen.version + 1, after_s=seen.watermark_s, until_s=last_s, watermark_s=last_s, skips=reason
    )
    going = seen._replace(version=seen.version + 2, after_s=last_s, watermark_s=now_s)
    return [seen._replace(until_s=seen.watermark_s), skipped, going]


# --- slots ------------------------------------------------------------------------------------------------------


def _going(table: Timetable, found: Waiting, wanted: Wanted, look: Circumstances, new: list[int]) -> Plan:
    seen = found.schedule
    assert seen is not None  # noqa: S101
    pending = {_at(task): task.task_id for task in found.tasks if task.is_untried}
    due = sorted({*(at_s for at_s in pending if at_s <= look.now_s), *new}.difference(found.early))
    fresh = frozenset(new).difference(pending, found.early)
    alive, expired, dead = _running(found)
    if not look.permit.catch_up:
        return _serving(table, found, look, new, fresh, [*alive, *expired])
    reasons = _windows(seen, due, fresh, table, look) | _overlaps(seen, due, alive, table, look)
    early = (at_s for at_s, has_begun in found.early.items() if has_begun)
    begun_s = max((at_s for at_s in (*found.begun, *early) if at_s <= look.now_s), default=-1)
    kept = _coalesce([at_s for at_s in due if at_s not in reasons], begun_s, table, reasons)
    again = [*dead, *_put_back(found), *_asked(found, wanted), *_retried(found, seen, wanted, table, look)]
    becomes = _advanced(seen, table.cron, new, _oldest(seen, new, table, look), look.now_s)
    if not becomes and seen.state is State.HELD:
        becomes = [seen]  # the clock is trusted again: what is missed later is no clock's
    if becomes:
        going_s = [_at(task) for task in (*alive, *expired, *again)]
        open_s = min([*kept, *pending, *going_s], default=look.now_s)
        becomes[-1] = becomes[-1]._replace(open_s=open_s, grace_ms=table.grace_ms, state=State.GOING)
    return Plan(
        becomes=becomes,
        slots=[NewSlot(at_s, reasons.get(at_s)) for at_s in due if at_s in fresh],
        skips=[(pending[at_s], reason) for at_s, reason in sorted(reasons.items()) if at_s in pending],
        runs=[] if alive else [*(task.task_id for task in expired), *_in_order(table, kept, again, look)],
    )


def _in_order(table: Timetable, kept: Iterable[int], again: Iterable[Task], look: Circumstances) -> list[str]:
    """What has begun early, and is to go on, waits for its instant."""
    has_come = (task.task_id for task in again if _at(task) <= look.now_s)
    return sorted([*(slot_id(table.name, at_s) for at_s in kept), *has_come])


def _serving(
    table: Timetable, found: Waiting, look: Circumstances, new: list[int], fresh: frozenset[int], at_work: list[Task]
) -> Plan:
    """By a clock that serves in another's place: rows for what has come due, of which the newest may start."""
    seen = found.schedule
    assert seen is not None  # noqa: S101
    reasons = _overlaps(seen, new, at_work, table, look)
    may_start = fresh.difference(reasons) if not at_work else frozenset[int]()
    starts = [at_s for at_s in new[-1:] if at_s in may_start and _is_open(at_s, table, look)]
    held = seen._replace(state=State.HELD)  # what loses its window by that says so
    return Plan(
        becomes=_advanced(held, table.cron, new, Reason.CLOCK, look.now_s) or _held(seen),
        slots=[NewSlot(at_s, reasons.get(at_s)) for at_s in new if at_s in fresh],
        skips=[],
        runs=[slot_id(table.name, at_s) for at_s in starts],
    )


def _at(task: Task) -> int:
    return slot_of(task.task_id) or 0


def _running(found: Waiting) -> tuple[list[Task], list[Task], list[Task]]:
    """The running slots: those at work for all that is known, those whose lease is over, and those of dead owners."""
    alive: list[Task] = []
    freed: dict[Liveness, list[Task]] = {Liveness.EXPIRED: [], Liveness.DEAD: []}
    for task in found.tasks:
        if task.status is Status.RUNNING:
            freed.get(found.owners[task.task_id].liveness, alive).append(task)
    return alive, freed[Liveness.EXPIRED], freed[Liveness.DEAD]


def _put_back(found: Waiting) -> Iterable[Task]:
    """The pending slots that have begun: what was interrupted, or a dead owner's that another could not yet start."""
    return (task for task in found.tasks if task.status is Status.PENDING and not task.is_untried)


def _asked(found: Waiting, wanted: Wanted) -> Iterable[Task]:
    """The unknown slots about which a claim would ask the verify hook."""
    for task in found.tasks:
        if task.status is Status.UNKNOWN:
            claim = decide(task, wanted._replace(task_id=task.task_id), Liveness.CANNOT_TELL)
            if claim is Decision.VERIFY:
                yield task


def _retried(found: Waiting, seen: Schedule, wanted: Wanted, table: Timetable, look: Circumstances) -> Iterable[Task]:
    """The failed slots that may run again."""
    for task in found.tasks:
        if task.status is not Status.FAILED:
            continue
        claim = decide(task, wanted._replace(task_id=task.task_id), Liveness.CANNOT_TELL)
        is_ordered = task.verdict in {Verdict.RETRY, Verdict.DID_NOT_HAPPEN}
        if claim is Decision.CLAIM and (is_ordered or _is_left(_at(task), seen, table, look)):
            yield task


def _is_left(at_s: int, seen: Schedule, table: Timetable, look: Circumstances) -> bool:
    """Whether a slot is of this version, and its window is open. One of an older that ran early may lie behind both."""
    is_open = at_s > seen.after_s and _is_open(at_s, table, look)
    return is_open and table.cron.names(at_s)


def _is_open(at_s: int, table: Timetable, look: Circumstances) -> bool:
    """Whether a slot may start now."""
    if table.grace_ms is None:
        return True
    return look.now_us <= at_s * SECOND_US + (table.grace_ms + look.permit.extension_ms) * MS_US


def _late(seen: Schedule) -> Reason:
    """Why nobody looked before a window closed."""
    return Reason.CLOCK if seen.state is State.HELD else Reason.TOO_LATE


def _oldest(seen: Schedule, new: Sequence[int], table: Timetable, look: Circumstances) -> Reason:
    """Why the slots before the new ones, where they are too many for a row each, are skipped."""
    if new and not _is_open(new[0], table, look):
        return _late(seen)
    return Reason.OVER_LIMIT if table.coalesce == "all" else Reason.COALESCED


def _windows(
    seen: Schedule, due: Iterable[int], fresh: frozenset[int], table: Timetable, look: Circumstances
) -> dict[int, Reason]:
    late = _late(seen)
    reasons = {}
    for at_s in due:
        if at_s not in fresh and not _is_of_version(seen, table, at_s):
            reasons[at_s] = Reason.SUPERSEDED  # whoever began this version died before it could say so
        elif not _is_open(at_s, table, look):
            reasons[at_s] = late if at_s in fresh or seen.state is State.HELD else Reason.WINDOW_CLOSED
    return reasons


def _is_of_version(seen: Schedule, table: Timetable, at_s: int) -> bool:
    """Whether what waits is a slot of it, and not of one before. To reckon that for thousands at each look is slow."""
    return at_s > seen.after_s and (seen.version == 1 or table.cron.names(at_s))


def _overlaps(
    seen: Schedule, due: Iterable[int], alive: Iterable[Task], table: Timetable, look: Circumstances
) -> dict[int, Reason]:
    """What came due while a slot ran. What was due before that waits for its turn: it is being caught up.

    A claim is dated by the wall clock, whatever serves in its place. That may have been set since: back, and the claim
    is of a time to come, so the slot has run since the last look; or forward, and before the last look nobody skips.
    """
    if table.overlap == "queue":
        return {}
    correction_us = look.permit.correction_us
    wall_us, looked_us = look.now_us - correction_us, seen.watermark_s * SECOND_US - correction_us
    spans = [(task.updated_at, wall_us) for task in alive] + ([] if look.ran is None else [look.ran])
    ran = [(max(begun_us, looked_us) if begun_us <= ended_us else looked_us, ended_us) for begun_us, ended_us in spans]
    return {
        at_s: Reason.OVERLAP
        for at_s in due
        if any(begun_us < at_s * SECOND_US - correction_us <= ended_us for begun_us, ended_us in ran)
    }


def _coalesce(waits: list[int], begun_s: int, table: Timetable, reasons: dict[int, Reason]) -> list[int]:
    """Those that are left of the slots that wait; the others get their reason."""
    match table.coalesce:
        case "latest":
            kept, reason = [at_s for at_s in waits[-1:] if at_s > begun_s], Reason.COALESCED
        case "earliest":
            kept, reason = waits[:1], Reason.COALESCED
        case "all":
            kept, reason = waits[-table.limit :], Reason.OVER_LIMIT
    left = frozenset(kept)
    reasons.update({at_s: reason for at_s in waits if at_s not in left})
    return kept


def always_changing(name: str) -> StoreBusyError:
    """The error of who was never the first to write what he has seen of a schedule; a bound on his tries."""
    msg = f"others change the schedule {name!r} all the time"
    return StoreBusyError(msg)
