"""Jobs on a schedule: the slots that are due are run once each, by whoever looks.

`run_due` is one look after the other until nothing is left that was due when it was called. A look stores what has come
due (`idemreg.planning`), and one slot is run under an ordinary claim; then the next look. So a slot that waited behind
another is judged by its window when it could start, and whoever else looks meanwhile finds the same rows. Of several
processes that look at once, one moves the watermark and one gets each claim; who meets a slot at work leaves the rest
to whoever runs it.

That no two slots of a schedule run at once is made sure of behind the claim: whoever has claimed one makes sure that
others see it, and where it finds another at work puts its own back, and nothing has run. Both may do so; then the next
look runs them.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast, get_args

from idemreg.attempt import run_walk
from idemreg.clock import seconds
from idemreg.cron import Cron
from idemreg.errors import IdemregError, ScheduleError, TaskDoneError, TaskIdError, TaskRunningError, require
from idemreg.model import Liveness, Verdict
from idemreg.overtime import within_time
from idemreg.planning import MOST_ROWS, NOTHING, Circumstances, Coalesce, Overlap, Timetable, always_changing, reckon
from idemreg.request import check_job, job_name, wanted
from idemreg.slots import BY_SCHEDULE, instant, slot_id, slot_of
from idemreg.store import Settlement
from idemreg.tagged import canonical
from idemreg.template import check_task_id
from idemreg.walk import NotStartedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from idemreg.claim import Terms
    from idemreg.clock import Clock
    from idemreg.clockcheck.verdict import Permit
    from idemreg.deciding import Outcome, Wanted
    from idemreg.ledger import Ledger, Waiting
    from idemreg.options import Options
    from idemreg.planning import Plan
    from idemreg.store import Store
    from idemreg.walk import Walk

__all__ = [
    "Memory",
    "NotAdmittedError",
    "OverlapError",
    "Scheduled",
    "SlotRun",
    "check_alone",
    "due",
    "keep_in_sight",
    "timetable",
]

TRIES: Final = 10  # of a look, where others look at the same instant

MAX_GRACE_S: Final = 10_000 * 365 * 86_400  # as `keep_for`: more is a mistake in the unit
NO_CONTENT: Final = canonical(None)


class SlotRun(NamedTuple):
    """A slot that `run_due` has run. ``error``: what its job raised, or why nobody may run it; else the ``outcome``."""

    task_id: str
    slot: datetime
    outcome: Any
    error: Exception | None


class OverlapError(Exception):
    """Another slot of the schedule is at work, so this one is put back. Never seen by callers."""


class NotAdmittedError(Exception):
    """A slot is put back before its job begins, for the error that is the cause of this. Never seen by callers."""


def timetable(
    name: object,
    cron: str,
    tz: str,
    misfire_grace: float | timedelta | None,
    coalesce: Coalesce,
    limit: int,
    overlap: Overlap,
) -> Timetable:
    """The options of a schedule, checked; `ScheduleError` or ValueError name what is wrong with which."""
    require(coalesce, str, "coalesce is a word")
    require(overlap, str, "overlap is a word")
    require(limit, int, "limit is a whole number")
    if not isinstance(name, str) or not name or "@" in name:
        given = repr(name) if isinstance(name, str) else type(name).__name__  # whose own repr may fail
        msg = f"a schedule has a name without an @, not {given}"
        raise ScheduleError(msg, hint="Its slots are NAME@2026-11-22T19:00:00Z.")
    try:
        check_task_id(slot_id(name, 0))
    except TaskIdError as error:
        msg = f"a schedule's name begins its task_ids: {error.message}"
        raise ScheduleError(msg, hint=error.hint) from error
    for option, value, kind in (("coalesce", coalesce, Coalesce), ("overlap", overlap, Overlap)):
        if value not in (choices := get_args(kind)):
            msg = f"{option} is one of {', '.join(map(repr, choices))}, not {value!r}"
            raise ValueError(msg)
    if type(limit) is not int or not 1 <= limit <= MOST_ROWS:
        msg = f"limit is a whole number from 1 to {MOST_ROWS:,}, not {limit!r}"
        raise ValueError(msg)
    grace_s = None if misfire_grace is None else min(seconds(misfire_grace, what="misfire_grace"), MAX_GRACE_S)
    return Timetable(name, Cron(cron, tz), None if grace_s is None else int(grace_s * 1_000), coalesce, limit, overlap)


# --- a look -----------------------------------------------------------------------------------------------------


class Memory:
    """What a process remembers of a schedule: the version that counted when it last looked, by its own expression."""

    def __init__(self) -> None:
        self.version: int | None = None


def look(store: Store, table: Timetable, wanted: Wanted, circumstances: Circumstances, memory: Memory) -> Walk[Plan]:
    """Store what has come due, and say what may start now. Where others were faster, what they have left.

    Behind a clock that was ahead, what it has skipped too early is taken back first.

    `ScheduleError` where another process has begun another version since this one last looked.
    """
    ledger = cast("Ledger", store)
    for _ in range(TRIES):
        found = yield ledger.waiting, (table.name,), None
        if found.schedule is not None and circumstances.is_behind(found):
            is_rewound = yield ledger.rewind, (found.schedule, circumstances.now_s, wanted), None
            if is_rewound:
                continue
        plan: Plan = yield reckon, (table, found, wanted, circumstances._replace(own=memory.version)), None
        if plan.becomes:
            is_planned = yield ledger.plan, (found.schedule, plan.becomes, plan.slots, wanted), None
            if not is_planned:
                continue
        counts = plan.becomes[-1] if plan.becomes else found.schedule
        if counts is not None and table.is_of(counts):  # in doubt of the clock one sees another's as well
            memory.version = counts.version
        for task_id, reason in plan.skips:  # what has begun meanwhile is let be
            yield store.settle, (task_id, Settlement(Verdict.SKIPPED, BY_SCHEDULE, reason.value)), None
        return plan
    return NOTHING


def due(
    store: Store,
    clock: Clock,
    table: Timetable,
    wanted: Wanted,
    may_schedule: Callable[[], Permit],
    execute: Callable[[str], Walk[Any]],
    memory: Memory,
    tell: Callable[[SlotRun], object] | None = None,
) -> Walk[list[SlotRun]]:
    """Run each slot that is due now, once, and say what became of it. An error of a job is told, not raised.

    ``tell`` hears of each as it ends: of a job that exits there is no list in the end.

    A slot that fails is not tried again before the next call. What comes due meanwhile is the next call's. Where a look
    fails behind slots that have run, these are told, and the next call meets the error.
    """
    began_s: int | None = None
    tried: set[str] = set()
    runs: list[SlotRun] = []
    ran: tuple[int, int] | None = None
    while True:
        try:
            permit = yield may_schedule, (), None
            seen = Circumstances(clock.wall_us() + permit.correction_us, permit, ran)
            plan = yield from look(store, table, wanted, seen, memory)
            began_s = seen.now_s if began_s is None else began_s
            following = (one for one in plan.runs if one not in tried and not began_s < _at(one) <= seen.now_s)
            if (task_id := next(following, None)) is None:
                return runs
            tried.add(task_id)
            yield keep_in_sight, (cast("Ledger", store), wanted, task_id), None
        except IdemregError:
            if runs:
                return runs
            raise
        started_us = clock.wall_us()
        run = yield from _run(execute, task_id)
        if run is _AT_WORK:
            return runs  # somebody is, and goes on with the rest
        if isinstance(run, SlotRun):
            runs.append(run)
            if tell is not None:
                yield tell, (run,), None
        ran = started_us, clock.wall_us()


_AT_WORK: Final = "at work"
_ENDED: Final = "ended"


def _run(execute: Callable[[str], Walk[Any]], task_id: str) -> Walk[SlotRun | str]:
    """Run a slot; `_AT_WORK` where another is at work, `_ENDED` where somebody else has run it."""
    slot = instant(_at(task_id))
    try:
        outcome = yield from execute(task_id)
    except OverlapError:
        return _AT_WORK
    except NotAdmittedError as error:
        cause = cast("Exception", error.__cause__)
        return _AT_WORK if isinstance(cause, OverlapError) else SlotRun(task_id, slot, None, cause)
    except (TaskRunningError, TaskDoneError) as error:
        if error.task_id == task_id:  # and not of a task that its job has called
            return _AT_WORK if isinstance(error, TaskRunningError) else _ENDED
        return SlotRun(task_id, slot, None, error)
    except Exception as error:  # noqa: BLE001 - one job's error keeps no other from running
        return SlotRun(task_id, slot, None, error)
    return SlotRun(task_id, slot, outcome, None)


def _at(task_id: str) -> int:
    return slot_of(task_id) or 0


def keep_in_sight(ledger: Ledger, wanted: Wanted, task_id: str) -> Waiting:
    """Whoever looks for running slots must find this one, also if it is older than any that may run by itself.

    What is there then. `StoreBusyError` where others change the schedule all the time: it must not run unseen.
    """
    name, _, _ = task_id.partition("@")
    for _ in range(TRIES):
        found = ledger.waiting(name)
        if (schedule := found.schedule) is None or schedule.open_s <= _at(task_id):
            return found
        ledger.plan(schedule, [schedule._replace(open_s=_at(task_id))], [], wanted)  # or somebody else was faster
    raise always_changing(name)


def check_alone(ledger: Ledger, wanted: Wanted, task_id: str) -> None:
    """`OverlapError` where another slot of the schedule is at work than this one, which the caller has claimed.

    Also where the other's lease has expired: its owner may come back until somebody has decided about it.
    """
    # Once more: a look may have begun before the claim, and have been stored behind the first.
    found = keep_in_sight(ledger, wanted, task_id)
    others = [owner for one, owner in found.owners.items() if one != task_id]
    if any(owner.liveness is not Liveness.DEAD for owner in others):
        raise OverlapError


# --- functions --------------------------------------------------------------------------------------------------


class Scheduled(NamedTuple):
    """A function on a schedule. ``parameter``: how it is given its slot, by which name or (empty) by its place."""

    table: Timetable
    function: Callable[..., Any]
    options: Options
    parameter: str | None  # None: it takes none
    memory: Memory

    @classmethod
    def of(cls, table: Timetable, function: Callable[..., Any], options: Options) -> Scheduled:
        """The function, once it is known that it can be called with a slot, or without anything."""
        check_job(function, is_awaited=True)
        return cls(table, function, options, _parameter(function), Memory())

    @property
    def wanted(self) -> Wanted:
        """As its slots are claimed, but for the task_id. The slot is all that tells two of them apart."""
        return wanted(slot_id(self.table.name, 0), self.table.name, NO_CONTENT, self.options)

    def arguments(self, task_id: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What its function is called with."""
        if self.parameter is None:
            return (), {}
        slot = instant(_at(task_id))
        return ((), {self.parameter: slot}) if self.parameter else ((slot,), {})

    def due(
        self, terms: Terms, may_schedule: Callable[[], Permit], tell: Callable[[SlotRun], object] | None = None
    ) -> Walk[list[SlotRun]]:
        """The walk that runs what is due of it."""
        terms = terms._replace(options=terms.options._replace(raise_on_duplicate=True))

        def execute(task_id: str) -> Walk[Outcome[Any]]:
            return self._run(terms, task_id, check_alone)

        return due(terms.store, terms.clock, self.table, self.wanted, may_schedule, execute, self.memory, tell)

    def by_hand(self, terms: Terms, task_id: str, check: Callable[[str], object] | None) -> Walk[Outcome[Any]]:
        """The walk that runs one slot as it is called. ``check``: of what must hold behind its claim as well."""

        def admit(ledger: Ledger, wanted: Wanted, task_id: str) -> None:
            keep_in_sight(ledger, wanted, task_id)
            if check is not None:
                check(task_id)

        try:
            return (yield from self._run(terms, task_id, admit))
        except NotAdmittedError as error:
            raise cast("Exception", error.__cause__) from None

    def _run(self, terms: Terms, task_id: str, admit: Callable[[Ledger, Wanted, str], object]) -> Walk[Outcome[Any]]:
        """``admit``: called behind the claim; its error puts the slot back."""
        options = terms.options
        terms = terms._replace(options=options._replace(release_on=(*options.release_on, NotAdmittedError)))
        check = functools.partial(admit, cast("Ledger", terms.store), self.wanted, task_id)
        job = self._admitted(terms, check)
        return run_walk(terms, self.wanted._replace(task_id=task_id), job, *self.arguments(task_id))

    def _admitted(self, terms: Terms, check: Callable[[], object]) -> Callable[..., Any]:
        """What a step can call: the function, cancelled when its time is over where it is awaited, behind a check."""
        if (offload := terms.offload) is None:
            function = self.function

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - what the function takes and gives
                try:
                    check()
                except Exception as error:
                    raise NotAdmittedError from error
                except BaseException as error:
                    raise NotStartedError from error
                return function(*args, **kwargs)

            return call
        job = within_time(terms, self.function)

        @functools.wraps(self.function)
        async def acall(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            host = offload.host()
            try:
                try:
                    await host.call(check, ())
                finally:
                    await host.checkpoint()  # a caller who was cancelled meanwhile
            except Exception as error:
                raise NotAdmittedError from error
            except BaseException as error:  # also where the coroutine is closed
                raise NotStartedError from error
            result = job(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return acall


def _parameter(function: Callable[..., Any]) -> str | None:
    """TypeError where it takes more than one argument."""
    parameters = list(inspect.signature(function).parameters.values())
    needed = [one for one in parameters[1:] if one.default is one.empty and one.kind not in _GATHERED]
    if needed:
        msg = f"{job_name(function)} takes its slot, or nothing; it has also {needed[0].name!r}"
        raise TypeError(msg)
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
        return None
    return parameters[0].name if parameters[0].kind is inspect.Parameter.KEYWORD_ONLY else ""


_GATHERED: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
