"""The clock check: look, compare with the last look, suspend, confirm.

The alarm is a task of the registry (``clock@`` and the instant by the clock that is in doubt), so there is one truth
and no flag beside it: while it is open nothing is scheduled, and whatever ends it has confirmed the clock. It is
`unknown`, for that is what it says: nobody knows whether the clock is right, and nothing goes on before somebody says
so. Every tool for such tasks serves: `idemreg list` and doctor show it, its error tells what was found, its evidence
who confirmed the clock and by what, and `idemreg resolve ... happened` does what `idemreg clock --confirm` does. What
would let it run again is refused (`idemreg.manage`), for nothing runs it. *Rejected:* a
`pending` task, which any call of its job may run and no tool calls urgent; a `failed` one, which `retry` would run.

The order of the two commits is what a crash meets: first the row about the clock names the alarm, then the alarm is
claimed and ended. Between them the clock is suspended already, and the next look raises the alarm that is missing.

What a look compares with is read before the clock is: whoever notes a later look meanwhile is not ahead of this one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from idemreg.clockcheck.alarm import JOB, PREFIX, as_wanted
from idemreg.clockcheck.chrony import chrony
from idemreg.clockcheck.hardware import hardware
from idemreg.clockcheck.kernel import kernel
from idemreg.clockcheck.readings import (
    Hardware,
    Moment,
    Reading,
    Trusted,
    Watch,
    boot_reading,
    hardware_reading,
    stored_reading,
)
from idemreg.clockcheck.verdict import MS_US, ClockBands, ClockCheck, Judged, in_doubt, judge, permit
from idemreg.codec import store_result
from idemreg.ends import bounded
from idemreg.errors import StoreBusyError, TransitionError
from idemreg.events import ClockConfirmed, ClockSuspended
from idemreg.model import Status, Verdict
from idemreg.query import Query
from idemreg.store import End, Granted, Lost, Settlement, Store, Unknown, Unsure

if TYPE_CHECKING:
    from idemreg.clock import Clock
    from idemreg.errors import ClockError
    from idemreg.events import Teller
    from idemreg.model import Task
    from idemreg.store import Answer

__all__ = ["ClockStore", "appraise", "check", "confirm", "doubt", "moment"]

BY_SOURCE: Final = "clock check"

EVIDENCE_CHARACTERS: Final = 4_096
BY_CHARACTERS: Final = 200

# A look is kept so long before it is written anew: a jump is as plain against an older one, and most looks only read.
KEEP_MS: Final = 60_000

# The wall clock and the time since boot are read together again where the process was stopped between them.
READ_TRIES: Final = 5
NEAR_US: Final = 200
FAR_US: Final = 1_000  # a look that is vaguer is not kept

# Another process may have looked, or confirmed, in between; each try then begins with what it has found.
NOTE_TRIES: Final = 10

MACHINE: Final = (kernel, chrony, hardware)


class ClockStore(Store, Protocol):
    """A store that keeps what is known of the clock between two looks."""

    def watch(self) -> Watch:
        """What is kept."""

    def newest_us(self) -> int | None:
        """The newest stored time, to a millisecond; None: all tasks must be asked."""

    def begin_newest(self) -> int | None:
        """Note the times of all rows that are stored from now on. None where that cannot be just now."""

    def complete_newest(self, reading: int, newest_us: int | None) -> None:
        """Note the newest of the rows that were stored before, as they were read since `begin_newest` gave this."""

    def note_watch(self, seen: Watch, new: Watch) -> bool:
        """Keep ``new`` in place of ``seen``; False where another process was faster."""


def check(
    store: ClockStore,
    clock: Clock,
    teller: Teller | None,
    bands: ClockBands | None = None,
    *,
    is_thorough: bool = True,
) -> ClockCheck:
    """Look at the clock, and suspend or go on by what is found; see `Registry.check_clock`.

    ``is_thorough``: all tasks are read for the newest stored time. A scheduler, which looks before each slot, reads
    them at the first look of a boot; from then on it goes by what was noted of those that were stored since.
    """
    for _ in range(NOTE_TRIES):
        look = _look(store, clock, bands or ClockBands(), is_thorough=is_thorough)
        if look.watch.alarm is not None:
            done = _under_alarm(store, look, look.watch.alarm, teller)
        elif look.judged.suspends:
            done = _suspend(store, look, teller)
        else:
            done = _go_on(store, look)
        if done is not None:
            return done
    raise _too_many()


def appraise(store: ClockStore, clock: Clock, bands: ClockBands) -> ClockCheck:
    """What would follow by these bands. No alarm is raised and none ends: a scheduler may go by other ones."""
    look = _look(store, clock, bands)
    alarm = look.watch.alarm
    permitted = permit(look.judged, bands, look.readings, is_suspended=alarm is not None or look.judged.suspends)
    return look.done(alarm)._replace(permit=permitted)


def doubt(store: ClockStore, clock: Clock, teller: Teller | None, bands: ClockBands | None) -> ClockError | None:
    """What keeps anybody from telling by the clock what has come due; no alarm is raised for it.

    Whoever asks may go by other bands than the scheduler, and an alarm would suspend that one as well.
    """
    look = _look(store, clock, bands or ClockBands())
    if look.watch.alarm is not None:
        return check(store, clock, teller, bands).problem
    return in_doubt(look.done(None)) if look.judged.suspends else None


def confirm(
    store: ClockStore, clock: Clock, teller: Teller | None, bands: ClockBands | None, evidence: str, by: str
) -> ClockCheck:
    """Trust the clock as it is now, and end the alarm; see `Registry.confirm_clock`."""
    for _ in range(NOTE_TRIES):
        look = _look(store, clock, bands or ClockBands())
        if (alarm := look.watch.alarm) is not None:
            row = store.get([alarm])[0]
            if row is not None and not row.is_final:
                _settle_or_raise(store, row, bounded(evidence, EVIDENCE_CHARACTERS), bounded(by, BY_CHARACTERS))
                _tell(teller, ClockConfirmed(alarm, JOB, f"{by}: {evidence}" if evidence else by))
        if _trust(store, look, accepted_us=look.to_accept_us):  # for which all tasks were read
            return check(store, clock, teller, bands, is_thorough=False)
    raise _too_many()


# --- a look -----------------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """One look: what was kept, what there is now, and what follows from both."""

    bands: ClockBands
    watch: Watch
    now: Moment
    newest_us: int | None  # of the stored times
    hardware_us: int | None
    readings: tuple[Reading, ...]
    judged: Judged

    @property
    def to_accept_us(self) -> int:
        """What an operator who confirms the clock now accepts of it."""
        worst_us = self.judged.worst_us
        return worst_us if worst_us >= self.bands.suspend_from_ms * MS_US else 0

    def done(self, alarm: str | None) -> ClockCheck:
        """As it is told to the caller."""
        permitted = permit(self.judged, self.bands, self.readings, is_suspended=alarm is not None)
        return ClockCheck(self.judged.verdict, self.judged.deviation_us, permitted, alarm, self.readings)


def _look(store: ClockStore, clock: Clock, bands: ClockBands, *, is_thorough: bool = True) -> _Look:
    watch = store.watch()
    trusted = watch.trusted
    # Under an alarm none is asked for: it is there, and its end takes them all in.
    newest_us = None if watch.alarm is not None else _newest(store, is_thorough=is_thorough or _is_first(watch, clock))
    now = moment(clock)
    asked = [ask(clock) for ask in (MACHINE if clock.sources is None else clock.sources)]
    hardware_us = next((one.ahead_us for one in asked if isinstance(one, Hardware) and one.has_time), None)
    readings = (
        *(hardware_reading(one, trusted) if isinstance(one, Hardware) else one for one in asked),
        boot_reading(now, trusted),
        stored_reading(now, trusted, newest_us, is_asked=watch.alarm is None),
    )
    judged = judge(readings, bands, 0 if trusted is None else trusted.accepted_us)
    return _Look(bands, watch, now, newest_us, hardware_us, readings, judged)


def _is_first(watch: Watch, clock: Clock) -> bool:
    """Whether nobody has looked in this boot."""
    return watch.trusted is None or watch.trusted.boot_id != clock.boot_id()


def moment(clock: Clock) -> Moment:
    """The wall clock and the time since boot, as near to each other as they can be read."""
    best = _moment(clock)
    for _ in range(READ_TRIES):
        if best.gap_us <= NEAR_US:
            break
        best = min(best, _moment(clock), key=lambda one: one.gap_us)
    return best


def _moment(clock: Clock) -> Moment:
    before_us = clock.wall_us()
    boot_ms = clock.boot_ms()
    after_us = clock.wall_us()
    return Moment((before_us + after_us) // 2, boot_ms, clock.boot_id(), abs(after_us - before_us))


def _newest(store: ClockStore, *, is_thorough: bool = True) -> int | None:
    """The newest stored time, as it was noted; else by all tasks, and then it is noted."""
    noted_us = store.newest_us()
    if noted_us is not None and not is_thorough:
        return noted_us
    reading = store.begin_newest() if noted_us is None else None
    newest_us = _newest_of_all(store)
    if reading is not None:
        store.complete_newest(reading, newest_us)
    return _latest(newest_us, store.newest_us())


def _newest_of_all(store: Store) -> int | None:
    """The newest time of all tasks. Read piece by piece, under no lock."""
    at, newest_us, after, is_last = store.instant(), None, None, False
    while not is_last:
        piece = store.survey(Query(), at, after)
        newest_us, after = _latest(newest_us, piece.newest), piece.after
        is_last = after is None
    return newest_us


def _latest(*times_us: int | None) -> int | None:
    return max((one for one in times_us if one is not None), default=None)


# --- what follows: None where what is kept has changed, so that all is to be looked at again -----------------------


def _go_on(store: ClockStore, look: _Look) -> ClockCheck:
    """Nothing is suspended. The look is kept where the last one is old, or where a source has overruled another."""
    trusted, now = look.watch.trusted, look.now
    is_due = trusted is None or trusted.boot_id != now.boot_id or now.boot_ms - trusted.boot_ms >= KEEP_MS
    if (is_due or look.judged.overrules) and now.gap_us <= FAR_US:
        accepted_us = 0 if trusted is None else min(trusted.accepted_us, look.to_accept_us)
        _trust(store, look, accepted_us=accepted_us)
    return look.done(None)


def _suspend(store: ClockStore, look: _Look, teller: Teller | None) -> ClockCheck | None:
    alarm = _name(store, look.now)
    if not store.note_watch(look.watch, look.watch._replace(alarm=alarm, of_jump=look.judged.jumped)):
        return None
    _raise_alarm(store, look, alarm, teller)
    return look.done(alarm)


def _under_alarm(store: ClockStore, look: _Look, alarm: str, teller: Teller | None) -> ClockCheck | None:
    row = store.get([alarm])[0]
    if row is None or row.status in _NOT_RAISED:  # whoever raised it died or is still at it, or it was forgotten
        _raise_alarm(store, look, alarm, teller)
    elif row.is_final:  # `idemreg resolve`, or a confirmation whose process died: of the clock as it is now
        _trust(store, look, accepted_us=look.to_accept_us)
        return None
    elif look.judged.confirms or (look.watch.of_jump and look.judged.is_back):
        evidence = _told(look.readings)
        if _settle(store, row, evidence, BY_SOURCE):
            _tell(teller, ClockConfirmed(alarm, JOB, evidence))
            _trust(store, look, accepted_us=0)
            return None
    return look.done(alarm)


def _trust(store: ClockStore, look: _Look, *, accepted_us: int) -> bool:
    """From now on this look is what later ones compare with, and nothing is suspended."""
    now, trusted, newest_us = look.now, look.watch.trusted, look.newest_us
    if look.watch.alarm is not None:  # none was read; and what was stored by a clock that was wrong counts no more
        newest_us = _newest(store)
    known = (now.wall_us, newest_us, None if trusted is None else trusted.newest_us)
    newest = max(one for one in known if one is not None)
    new = Trusted(now.wall_us, now.boot_ms, now.boot_id, newest, look.hardware_us, accepted_us)
    return store.note_watch(look.watch, Watch(new))


# --- the alarm --------------------------------------------------------------------------------------------------


_NOT_RAISED: Final = frozenset({Status.PENDING, Status.RUNNING})


def _name(store: Store, now: Moment) -> str:
    """A task_id that no task has: a clock that was set back comes past the same instant twice."""
    wall_us = now.wall_us
    while store.get([name := f"{PREFIX}{_instant(wall_us)}"])[0] is not None:
        wall_us += 1
    return name


def _instant(wall_us: int) -> str:
    try:
        instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=wall_us)
    except OverflowError:  # beyond the years 1 to 9999: no clock is right there, but the alarm needs a name
        return str(wall_us)
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _raise_alarm(store: Store, look: _Look, alarm: str, teller: Teller | None) -> None:
    """Make the alarm's row, once: who finds that another process has it, or had it, leaves it alone."""
    reason = _doubt(look)
    answers: list[Answer] = []
    try:
        answers = store.claim([as_wanted(alarm)])
        is_new = _end(store, answers[0], reason)
    except BaseException:  # an interrupt: nobody else would end the claim of a process that lives
        for answer in answers:
            if isinstance(answer, Granted):
                store.abandon(_as_unknown(answer, reason))
        raise
    if is_new:
        _tell(teller, ClockSuspended(alarm, JOB, reason))


def _end(store: Store, answer: Answer, reason: str) -> bool:
    """End the claim of an alarm, where it was granted. Whether the alarm is unknown by this look."""
    ended = store.finish([_as_unknown(answer, reason)])[0] if isinstance(answer, Granted) else answer
    if isinstance(ended, Unsure):
        raise ended.cause
    # Or it is of a process that died between its claim and its end.
    return isinstance(answer, Granted) or (isinstance(answer, Unknown) and answer.is_new)


def _as_unknown(grant: Granted, reason: str) -> End:
    return End(
        *(grant.task_id, grant.token, grant.owner, Status.UNKNOWN, grant.attempt),
        error=f"the clock is in doubt: {reason}",
    )


def _told(readings: tuple[Reading, ...]) -> str:
    """What each source says that says anything."""
    return "; ".join(f"{one.source}: {one.describe()}" for one in readings if one.deviation_us is not None)


def _doubt(look: _Look) -> str:
    """Why the clock is in doubt. Whoever raises another's alarm may find nothing that is wrong with it."""
    found = _told(look.readings)
    if look.judged.suspends:
        return found
    return f"an earlier look found it so and has not said why; now {found or 'no source says anything'}"


def _settle(store: Store, row: Task, evidence: str, by: str) -> bool:
    """End the alarm. False while whoever raises it is still at it.

    In a file of an earlier version it may have been settled as *did not happen*, so it counts as failed: then it ends
    as cancelled.
    """
    if row.status is Status.FAILED:
        settlement = Settlement(Verdict.CANCELLED, by, evidence)
    else:
        settlement = Settlement(Verdict.HAPPENED, by, evidence, store_result(None, None))
    answer = store.settle(row.task_id, settlement)
    return not isinstance(answer, Lost) or (answer.task is not None and answer.task.is_final)


def _settle_or_raise(store: Store, row: Task, evidence: str, by: str) -> None:
    if not _settle(store, row, evidence, by):
        msg = "another process is raising the alarm just now"
        raise TransitionError(msg, task_id=row.task_id, hint="Call again: `idemreg clock --confirm`.")


def _tell(teller: Teller | None, event: ClockSuspended | ClockConfirmed) -> None:
    if teller is not None:
        teller.tell(event)


def _too_many() -> StoreBusyError:
    return StoreBusyError(f"other processes looked at the clock {NOTE_TRIES} times in between")
