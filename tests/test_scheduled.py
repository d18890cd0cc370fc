"""Slots: each is run once, or skipped for a reason, whoever looks and whatever the clock does."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import (
    AsyncRegistry,
    ClaimLostError,
    Registry,
    ScheduleError,
    Status,
    StoreBusyError,
    TaskDoneError,
    TaskTimeoutError,
    TaskUnknownError,
    aio,
    by_hand,
    current_claim,
)
from idemreg.clockcheck.verdict import Permit
from idemreg.ledger import Ledger, Schedule, State
from idemreg.model import Verdict
from idemreg.planning import MOST_ROWS, always_changing
from idemreg.scheduled import TRIES
from idemreg.slots import BY_SCHEDULE, Reason, instant, slot_id
from idemreg.testing import ManualClock
from tests.support.processes import PATIENCE_S, Script
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg.model import Task
    from idemreg.scheduled import SlotRun

HOUR = 3_600
DAY = 24 * HOUR
# The manual clock begins at 2026-11-23 03:00 UTC, and with it each schedule.
BEGAN = datetime(2026, 11, 23, 3, tzinfo=UTC)
H = timedelta(hours=1)
HOURLY = "0 * * * *"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(open_registry: Callable[..., Registry], clock: ManualClock) -> Registry:
    return open_registry(clock=clock)


@pytest.fixture
def trusted(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock does, somebody has confirmed it."""
    monkeypatch.setattr(registry, "may_schedule", Permit)


class Job:
    """What was run, and when."""

    def __init__(self, registry: Registry, name: str = "job", cron: str = HOURLY, **options: Any) -> None:
        self.registry = registry
        self.name = name
        self.ran: list[str] = []
        self.body: Callable[[datetime], object] = lambda slot: None
        self._schedule(cron, options)
        registry.run_due(name)  # it begins

    def _schedule(self, cron: str, options: dict[str, Any]) -> None:
        @self.registry.scheduled(self.name, cron=cron, **options)
        def job(slot: datetime) -> object:
            self.ran.append(hours(slot))
            return self.body(slot)

    def due(self) -> list[SlotRun]:
        return self.registry.run_due(self.name)

    def becomes(self, cron: str, **options: Any) -> None:
        self._schedule(cron, options)
        self.due()

    def rows(self) -> dict[str, str]:
        """Each slot that has a row, and what it is: its status, or why it was skipped."""
        tasks = self.registry.tasks(prefix=f"{self.name}@")
        return {
            hours(datetime.fromisoformat(task.task_id.rpartition("@")[2])): task.evidence or task.status.word
            if task.status is Status.SKIPPED
            else task.status.word
            for task in tasks
        }

    def schedule(self) -> Schedule:
        return ledger(self.registry).schedules(self.name)[-1]


def ledger(registry: Registry) -> Ledger:
    return cast("Ledger", registry.store)


def hours(slot: datetime) -> str:
    """Since the schedule began: 1 is the first full hour."""
    return f"{(slot - BEGAN).total_seconds() / HOUR:g}"


# --- one slot ---------------------------------------------------------------------------------------------------


def test_what_is_due_runs_once(registry: Registry, clock: ManualClock) -> None:
    """A slot runs at the first call behind its instant, and no more."""
    job = Job(registry)
    assert job.due() == []
    clock.advance(HOUR)
    (run,) = job.due()
    assert (run.task_id, run.slot) == ("job@2026-11-23T04:00:00Z", instant(int(BEGAN.timestamp()) + HOUR))
    assert run.outcome.status is Status.SUCCEEDED
    assert job.due() == []
    assert job.ran == ["1"]


def test_the_past_is_not_fired(registry: Registry, clock: ManualClock) -> None:
    """A schedule that is seen for the first time begins now; its instant itself is past."""
    job = Job(registry)
    assert job.rows() == {}
    assert (job.schedule().after_s, job.schedule().watermark_s) == (BEGAN.timestamp(), BEGAN.timestamp())


def test_a_slot_is_a_task(registry: Registry, clock: ManualClock) -> None:
    """Its row has its name, its result and its attempt, as any other."""
    job = Job(registry, keep_for=DAY)
    job.body = lambda slot: {"slot": slot}
    clock.advance(HOUR)
    job.due()
    task = registry.get("job@2026-11-23T04:00:00Z")
    assert task is not None
    assert (task.name, task.attempt, task.keep_ms) == ("job", 1, DAY * 1_000)
    assert registry.run("job@2026-11-23T04:00:00Z", lambda: None, name="job").result == {"slot": BEGAN + H}


def test_the_job_learns_its_slot(registry: Registry, clock: ManualClock) -> None:
    """As an argument, by name where it wants it so, or from its claim; a job that takes none is called without."""
    seen: list[object] = []
    registry.scheduled("plain", cron=HOURLY)(seen.append)
    registry.scheduled("none", cron=HOURLY)(lambda: seen.append(current_claim().slot))

    @registry.scheduled("named", cron=HOURLY)
    def named(*, slot: datetime, tries: int = 3) -> None:
        seen.append(slot)

    registry.scheduled("partial", cron=HOURLY)(functools.partial(seen.append))
    registry.run_due()
    clock.advance(HOUR)
    assert len(registry.run_due()) == 4
    assert seen == [BEGAN + H] * 4
    with registry.claim("other") as claim:
        assert claim.slot is None


def test_the_function_stays_as_it_is(registry: Registry) -> None:
    """The decorator gives back the function itself."""

    def job() -> int:
        return 7

    assert registry.scheduled("job", cron=HOURLY)(job) is job


@pytest.mark.parametrize("name", ["", "a@b", "a\n", "x" * 500, " a", 7])
def test_names_that_are_none(registry: Registry, name: Any) -> None:
    """A name begins task_ids, and ends at the @."""
    with pytest.raises(ScheduleError):
        registry.scheduled(name, cron=HOURLY)


@pytest.mark.parametrize(
    "options",
    [
        {"coalesce": "newest"},
        {"overlap": "run"},
        {"limit": 0},
        {"limit": True},
        {"misfire_grace": -1},
        {"wait": "x"},
    ],
)
def test_options_that_are_none(registry: Registry, options: dict[str, Any]) -> None:
    """Nonsense is refused at decoration."""
    with pytest.raises(ValueError, match=next(iter(options))):
        registry.scheduled("job", cron=HOURLY, **options)


def test_functions_that_are_none(registry: Registry) -> None:
    """One that takes more than a slot, or makes a generator, is refused at decoration; so is another under the name."""
    with pytest.raises(TypeError):
        registry.scheduled("job", cron=HOURLY)(lambda slot, other: None)
    with pytest.raises(TypeError):
        registry.scheduled("job", cron=HOURLY)(lambda: (yield))
    registry.scheduled("job", cron=HOURLY)(test_the_past_is_not_fired_body)
    registry.scheduled("job", cron=HOURLY)(test_the_past_is_not_fired_body)  # as a reload does
    with pytest.raises(ValueError, match="already"):
        registry.scheduled("job", cron=HOURLY)(lambda: None)


def test_the_past_is_not_fired_body() -> None:
    """Nothing: a function of this module."""


def test_a_name_that_nobody_decorated(registry: Registry) -> None:
    """`run_due` and `run_slot` name what they do not know."""
    with pytest.raises(ScheduleError):
        registry.run_due("job")
    for task_id in ("job@2026-11-23T04:00:00Z", "order:42"):
        with pytest.raises(ScheduleError):
            registry.run_slot(task_id)


# --- missed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "ran", "rest"),
    [
        ({}, ["5"], "coalesced"),
        ({"coalesce": "latest"}, ["5"], "coalesced"),
        ({"coalesce": "earliest"}, ["1"], "coalesced"),
        ({"coalesce": "all"}, ["1", "2", "3", "4", "5"], None),
        ({"coalesce": "all", "limit": 2}, ["4", "5"], "over_limit"),
    ],
)
def test_what_was_missed_is_caught_up(
    registry: Registry, clock: ManualClock, options: dict[str, Any], ran: list[str], rest: str | None
) -> None:
    """After five missed slots: the newest, the oldest, all, or the last so many; the others say why not."""
    job = Job(registry, **options)
    clock.advance(5 * HOUR)
    assert len(job.due()) == len(ran)
    assert job.ran == ran
    assert job.rows() == {hour: "succeeded" if hour in ran else rest for hour in "12345"}


def test_what_was_skipped_is_settled(registry: Registry, clock: ManualClock) -> None:
    """A skipped slot is a task that was settled by its schedule, with the reason as its evidence."""
    job = Job(registry)
    clock.advance(2 * HOUR)
    job.due()
    task = registry.get("job@2026-11-23T04:00:00Z")
    assert task is not None
    assert (task.status, task.verdict, task.settled_by) == (Status.SKIPPED, Verdict.SKIPPED, BY_SCHEDULE)
    assert (task.evidence, task.attempt, task.token) == ("coalesced", 0, 0)


def test_a_window_closes(registry: Registry, clock: ManualClock) -> None:
    """A slot starts up to its grace after its instant, to the microsecond, and then never."""
    job = Job(registry, misfire_grace=60)
    clock.advance(HOUR + 60)
    job.due()
    clock.advance(HOUR)
    clock.set(wall_us=clock.wall_us() + 1)
    job.due()
    assert job.rows() == {"1": "succeeded", "2": "too_late"}


def test_only_those_in_their_window_are_coalesced(registry: Registry, clock: ManualClock) -> None:
    """A slot that may not start any more stands for nobody."""
    job = Job(registry, misfire_grace=2.5 * HOUR, coalesce="earliest")
    clock.advance(5 * HOUR)
    job.due()
    assert job.rows() == {"1": "too_late", "2": "too_late", "3": "succeeded", "4": "coalesced", "5": "coalesced"}


def test_who_waited_too_long_says_so(registry: Registry, clock: ManualClock) -> None:
    """A slot that waited in its window behind others, and could not start in it, is `window_closed`, but by hand."""
    job = Job(registry, misfire_grace=90 * 60, coalesce="all", overlap="queue")
    job.body = lambda slot: clock.advance(HOUR)
    clock.advance(2 * HOUR)  # the first hour's window is open for half an hour still
    job.due()
    assert (job.ran, job.rows()["3"], job.rows()["4"]) == (["1", "2"], "pending", "pending")
    job.body = lambda slot: clock.advance(2 * HOUR)
    job.due()
    rows = dict.fromkeys("123", "succeeded") | {"4": "window_closed", "5": "pending", "6": "pending"}
    assert job.rows() == rows
    assert not registry.run_slot("job@2026-11-23T07:00:00Z").replayed
    assert job.rows() == rows | {"4": "succeeded"}
    assert job.ran == ["1", "2", "3", "4"]


def test_an_extended_window_closes(registry: Registry, clock: ManualClock) -> None:
    """To the microsecond as well; nobody looked before it did."""
    job = Job(registry, misfire_grace=60)
    registry.may_schedule = lambda: Permit(extension_ms=20)  # type: ignore[method-assign]
    for us in (0, 1):
        clock.advance(HOUR)
        clock.set(wall_us=int((BEGAN + (us + 1) * H).timestamp()) * 1_000_000 + 60_020_000 + us)
        job.due()
    assert job.rows() == {"1": "succeeded", "2": "too_late"}


def test_five_years_of_minutes_are_no_explosion(registry: Registry, clock: ManualClock) -> None:
    """Of 2.6 million missed slots the newest hundred thousand have a row each; all others are one row of a schedule."""
    job = Job(registry, cron="* * * * *")
    clock.advance(5 * 365 * DAY)
    assert len(job.due()) == 1
    assert sum(registry.count().values()) == MOST_ROWS
    first, skipped, last = ledger(registry).schedules("job")
    assert (first.until_s, skipped.until_s) == (skipped.after_s, last.after_s)
    assert (skipped.skips, last.skips, first.skips) == (Reason.COALESCED, None, None)
    assert last.watermark_s - last.after_s == (MOST_ROWS - 1) * 60 + 1
    clock.advance(60)
    assert len(job.due()) == 1


@pytest.mark.parametrize(
    ("is_held", "options", "reason"),
    [
        (False, {"misfire_grace": 60}, Reason.TOO_LATE),
        (True, {"misfire_grace": 60}, Reason.CLOCK),
        (False, {"misfire_grace": 60, "coalesce": "all"}, Reason.TOO_LATE),
        (False, {"misfire_grace": 365 * DAY, "coalesce": "all"}, Reason.OVER_LIMIT),
        (False, {"misfire_grace": 365 * DAY}, Reason.COALESCED),
    ],
)
def test_the_oldest_of_a_long_outage_say_why_as_those_behind_them(
    registry: Registry,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    is_held: object,
    options: dict[str, Any],
    reason: Reason,
) -> None:
    """Where the window of the first slot that has a row had closed, so had those of all before it."""
    monkeypatch.setattr("idemreg.planning.MOST_ROWS", 200)
    job, permit = Job(registry, cron="* * * * *", **options), Permit()
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    if is_held:
        permit = Permit(scheduling=False, catch_up=False)
        job.due()
        permit = Permit()
    clock.advance(4 * HOUR)
    job.due()
    assert [one.skips for one in ledger(registry).schedules("job")] == [None, reason, None]
    assert next(iter(job.rows().values())) == reason.value


# --- overlap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "ran", "third"), [("skip", ["1"], "overlap"), ("queue", ["1", "3"], "succeeded")])
def test_one_at_a_time(
    registry: Registry,
    open_registry: Callable[..., Registry],
    clock: ManualClock,
    overlap: str,
    ran: list[str],
    third: str,
) -> None:
    """What comes due while a slot runs in another process or thread is skipped, or waits until it has ended."""
    job, other = Job(registry, overlap=overlap), Job(open_registry(clock=clock), overlap=overlap)

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        assert other.due() == []
        clock.advance(HOUR)
        assert other.due() == []

    job.body = body
    clock.advance(HOUR)
    job.due()
    assert job.ran == ["1"]
    job.body = lambda slot: None
    assert [run.task_id for run in other.due()] == (["job@2026-11-23T06:00:00Z"] if overlap == "queue" else [])
    assert job.ran + other.ran == ran
    assert job.rows() == {"1": "succeeded", "2": "overlap" if overlap == "skip" else "coalesced", "3": third}


@pytest.mark.parametrize(("overlap", "second"), [("skip", "overlap"), ("queue", "pending")])
def test_what_comes_due_while_one_runs_here(registry: Registry, clock: ManualClock, overlap: str, second: str) -> None:
    """Nobody else need look: who has run a slot knows what came due meanwhile; what waits is for the next call."""
    job = Job(registry, overlap=overlap)
    job.body = lambda slot: clock.advance(1.5 * HOUR)
    clock.advance(HOUR)
    assert len(job.due()) == 1
    assert job.rows() == {"1": "succeeded", "2": second}


def test_what_was_missed_before_is_not_skipped_for_an_overlap(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """While one process catches up slot after slot, another that looks leaves it the rest."""
    job, other = Job(registry, coalesce="all"), Job(open_registry(clock=clock), coalesce="all")
    job.body = lambda slot: other.due()
    clock.advance(3 * HOUR)
    job.due()
    assert (job.ran, other.ran) == (["1", "2", "3"], [])


def test_a_claim_that_finds_another_at_work_is_put_back(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another claims, behind its look, the slot that it gives up: it notices behind its own claim, and nothing runs."""
    job, other = Job(registry), Job(open_registry(clock=clock))
    registry.may_schedule = lambda: Permit(catch_up=False)  # type: ignore[method-assign]
    clock.advance(2 * HOUR)
    job.due()
    assert job.rows() == {"1": "pending", "2": "succeeded"}
    clock.advance(HOUR)
    waiting, begun = other.registry.store.waiting, list[Any]()  # type: ignore[attr-defined]

    def slow(name: str) -> Any:
        found = waiting(name)
        if not begun:
            begun.append(registry.claim("job@2026-11-23T04:00:00Z", name="job"))
        return found

    monkeypatch.setattr(other.registry.store, "waiting", slow)
    assert other.due() == []
    assert (other.ran, other.rows()) == ([], {"1": "running", "2": "succeeded", "3": "pending"})
    task = registry.get("job@2026-11-23T06:00:00Z")
    assert task is not None
    assert task.attempt == 0
    begun[0].succeed()
    assert len(other.due()) == 1
    assert other.rows() == dict.fromkeys("123", "succeeded")


def test_an_unknown_slot_holds_nobody_up(registry: Registry, clock: ManualClock) -> None:
    """It waits for an operator; the next slot runs. Resolved as not happened, it runs at the next call."""
    job = Job(registry, unknown_on=TimeoutError)

    def gone(_slot: datetime) -> None:
        raise TimeoutError

    job.body = gone
    clock.advance(HOUR)
    (run,) = job.due()
    assert isinstance(run.error, TimeoutError)
    job.body = lambda slot: None
    clock.advance(HOUR)
    job.due()
    assert job.rows() == {"1": "unknown", "2": "succeeded"}
    registry.resolve("job@2026-11-23T04:00:00Z", "did-not-happen")
    job.due()
    assert job.ran == ["1", "2", "1"]


# --- limits -----------------------------------------------------------------------------------------------------


def test_a_slot_whose_lease_is_over_is_taken_over(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """By the next look, although its owner lives; what the late owner gives is refused, and what waited runs."""
    limits: dict[str, Any] = {"on_crash": "rerun", "lease": 60, "coalesce": "all", "overlap": "queue"}
    job, other = Job(registry, **limits), Job(open_registry(clock=clock), **limits)

    def hangs(_slot: datetime) -> None:
        clock.advance(HOUR + 61)
        assert [run.error for run in other.due()] == [None, None]

    job.body = hangs
    clock.advance(HOUR)
    (late,) = job.due()
    assert isinstance(late.error, ClaimLostError)
    assert (job.ran, other.ran) == (["1"], ["1", "2"])
    assert job.rows() == {"1": "succeeded", "2": "succeeded"}


def test_a_slot_whose_lease_is_over_is_decided_about_before_another_starts(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """Also one that is later, as it runs by hand: until then its owner may come back, and both would be at work."""
    job, other = Job(registry, coalesce="all", lease=60), Job(open_registry(clock=clock), coalesce="all")
    statuses: list[dict[str, str]] = []
    other.body = lambda slot: statuses.append(other.rows())

    def hangs(_slot: datetime) -> None:
        clock.advance(61)
        told, ran = other.due()
        assert isinstance(told.error, TaskUnknownError)
        assert ran.error is None

    job.body = hangs
    clock.advance(2 * HOUR)
    with pytest.raises(ClaimLostError):
        registry.run_slot("job@2026-11-23T05:00:00Z")
    assert statuses == [{"1": "running", "2": "unknown"}]


def test_a_look_that_fails_behind_a_slot_hides_it_not(registry: Registry, clock: ManualClock) -> None:
    """A busy file behind the first slot: the caller hears of what has run, and of the error at the next call."""
    job = Job(registry, coalesce="all")
    permits: list[Permit] = [Permit()]

    def may_schedule() -> Permit:
        if not permits:
            msg = "the file is busy"
            raise StoreBusyError(msg)
        return permits.pop()

    registry.may_schedule = may_schedule  # type: ignore[method-assign]
    clock.advance(2 * HOUR)
    assert [run.task_id for run in job.due()] == ["job@2026-11-23T04:00:00Z"]
    with pytest.raises(StoreBusyError):
        job.due()


@pytest.mark.parametrize("kind", ["awaited", "called"])
def test_a_coroutine_on_a_schedule_is_cancelled_when_its_time_is_over(
    registry: Registry, clock: ManualClock, kind: str
) -> None:
    """As one that is decorated, also where the registry has no event loop of its own."""
    async_registry = AsyncRegistry.of(registry)

    @registry.scheduled("job", cron=HOURLY, timeout=0.01)
    async def job() -> None:
        await asyncio.wait_for(asyncio.Event().wait(), PATIENCE_S)

    def due() -> list[SlotRun]:
        return asyncio.run(async_registry.run_due()) if kind == "awaited" else registry.run_due()

    due()
    clock.advance(HOUR)
    (run,) = due()
    assert isinstance(run.error, TaskTimeoutError)


# --- failures ---------------------------------------------------------------------------------------------------


def test_a_failed_slot_is_retried_at_the_next_call(registry: Registry, clock: ManualClock) -> None:
    """Until it succeeds or its attempts are used up; once a call."""
    job = Job(registry, max_attempts=3)

    def fails(_slot: datetime) -> None:
        raise OSError

    job.body = fails
    clock.advance(HOUR)
    assert [len(job.due()) for _ in range(5)] == [1, 1, 1, 0, 0]
    registry.retry("job@2026-11-23T04:00:00Z")
    assert [len(job.due()) for _ in range(2)] == [1, 0]


def test_a_failed_slot_is_not_retried_when_its_window_has_closed(registry: Registry, clock: ManualClock) -> None:
    """It stays failed; an operator's `retry` runs it all the same."""
    job = Job(registry, misfire_grace=60)
    job.body = lambda slot: 1 / 0
    clock.advance(HOUR)
    job.due()
    clock.advance(61)
    assert job.due() == []
    registry.retry("job@2026-11-23T04:00:00Z")
    assert len(job.due()) == 1


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda job, clock: clock.advance(61),
        lambda job, clock: clock.advance(HOUR),
        lambda job, clock: job.becomes("30 * * * *", misfire_grace=60, on_crash="rerun"),
    ],
    ids=["its window has closed", "another waits", "another version has begun"],
)
def test_a_slot_that_was_interrupted_goes_on_as_one_whose_owner_died(
    registry: Registry, clock: ManualClock, meanwhile: Callable[[Job, ManualClock], object]
) -> None:
    """Under rerun it is run again; else a job that was broken off in its middle would count as skipped."""
    job = Job(registry, misfire_grace=60, on_crash="rerun")

    def stop(_slot: datetime) -> None:
        raise KeyboardInterrupt

    job.body = stop
    clock.advance(HOUR)
    with pytest.raises(KeyboardInterrupt):
        job.due()
    assert job.rows() == {"1": "pending"}
    job.body = lambda slot: None
    meanwhile(job, clock)
    job.due()
    assert job.ran[:2] == ["1", "1"]
    assert job.rows()["1"] == "succeeded"


def test_a_slot_that_was_interrupted_counts_as_begun(
    registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that served; under latest an older one, which waited for a better clock, is not run behind it."""
    job = Job(registry, on_crash="rerun")

    def stop(_slot: datetime) -> None:
        raise KeyboardInterrupt

    job.body = stop
    clock.advance(2 * HOUR)
    monkeypatch.setattr(registry, "may_schedule", lambda: Permit(scheduling=True, catch_up=False))
    with pytest.raises(KeyboardInterrupt):
        job.due()
    assert job.rows() == {"1": "pending", "2": "pending"}
    job.body = lambda slot: None
    monkeypatch.setattr(registry, "may_schedule", Permit)
    job.due()
    assert (job.ran, job.rows()) == (["2", "2"], {"1": "coalesced", "2": "succeeded"})


def test_a_failed_slot_of_an_older_version_is_not_retried(registry: Registry, clock: ManualClock) -> None:
    """By itself; `retry` has it run, by the job as it is now."""
    job = Job(registry)
    job.body = lambda slot: 1 / 0
    clock.advance(HOUR)
    assert len(job.due()) == 1
    job.becomes("30 * * * *")
    job.body = lambda slot: None
    assert job.due() == []
    registry.retry("job@2026-11-23T04:00:00Z")
    assert [(run.task_id, run.error) for run in job.due()] == [("job@2026-11-23T04:00:00Z", None)]


def test_a_slot_to_come_that_is_run_by_hand_has_run_when_its_time_comes(registry: Registry, clock: ManualClock) -> None:
    """It runs now, and once."""
    job = Job(registry)
    assert not registry.run_slot("job@2026-11-23T05:00:00Z").replayed
    clock.advance(HOUR)
    assert [run.task_id[-9:-4] for run in job.due()] == ["04:00"]
    clock.advance(HOUR)
    assert job.due() == []
    assert [one.state for one in registry.audit("job")] == ["run", "run"]


def test_a_held_failure_is_not_retried(registry: Registry, clock: ManualClock) -> None:
    """on_failure="hold" holds slots as it does any task."""
    job = Job(registry, on_failure="hold")
    job.body = lambda slot: 1 / 0
    clock.advance(HOUR)
    assert [len(job.due()) for _ in range(2)] == [1, 0]


def test_one_failure_keeps_nothing_else_from_running(registry: Registry, clock: ManualClock) -> None:
    """Each schedule, and each slot, has its own end."""
    job, other = Job(registry, coalesce="all"), Job(registry, "other")
    job.body = lambda slot: 1 / 0
    clock.advance(2 * HOUR)
    runs = registry.run_due()
    assert [type(run.error) for run in runs] == [ZeroDivisionError, ZeroDivisionError, type(None)]
    assert other.ran == ["2"]


# --- the schedule changes ---------------------------------------------------------------------------------------


def test_another_expression_begins_another_version(registry: Registry, clock: ManualClock) -> None:
    """What the old one missed is `superseded`, the past is not fired, and the rows of both stay."""
    job = Job(registry)
    clock.advance(2.5 * HOUR)
    job.becomes("*/15 * * * *", coalesce="all")
    clock.advance(HOUR / 2)
    job.due()
    assert job.rows() == {"1": "superseded", "2": "superseded", "2.75": "succeeded", "3": "succeeded"}
    old, new = ledger(registry).schedules("job")
    assert (old.version, new.version, old.until_s) == (1, 2, new.after_s)


def test_what_waits_is_superseded(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """A pending slot of the version before never runs; one that runs goes on, and overlaps with the new ones."""
    job, other = Job(registry, overlap="queue"), Job(open_registry(clock=clock), overlap="queue")

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        other.due()
        other.becomes("*/30 * * * *", overlap="queue")
        clock.advance(HOUR / 2)
        assert other.due() == []

    job.body = body
    clock.advance(HOUR)
    job.due()
    other.due()
    assert other.rows() == {"1": "succeeded", "2": "superseded", "2.5": "succeeded"}
    with pytest.raises(ScheduleError):
        job.due()  # an old process does not take the schedule back
    third = Job(registry, "third")
    clock.advance(HOUR)
    with pytest.raises(ScheduleError):
        registry.run_due()
    assert (job.schedule().version, third.ran) == (2, ["3"])


RESCHEDULER = """
    from idemreg import Registry, faults
    from idemreg.testing import ManualClock
    clock = ManualClock()
    clock.advance(int(sys.argv[2]))
    registry = Registry(sys.argv[1], durability="normal", clock=clock)
    registry.scheduled("job", cron="*/30 * * * *", overlap="queue")(lambda: None)
    faults.arm("slots.committed", faults.kill)
    registry.run_due()
"""


def test_whoever_dies_as_a_version_begins_leaves_nothing_to_run(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, path: Path
) -> None:
    """It is stored, and what waited for the one before has not been told so: the next look does."""
    job, other = Job(registry, overlap="queue"), Job(open_registry(clock=clock), overlap="queue")

    ends: list[int] = []

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        other.due()
        with Script(RESCHEDULER, path, passed(BEGAN + 2 * H)) as script:
            ends.append(script.end())

    job.body = body
    clock.advance(HOUR)
    job.due()
    assert ends == [-signal.SIGKILL]
    assert job.rows() == {"1": "succeeded", "2": "pending"}
    assert [one.version for one in ledger(registry).schedules("job")] == [1, 2]
    heir = Job(open_registry(clock=clock), cron="*/30 * * * *", overlap="queue")
    assert heir.rows() == {"1": "succeeded", "2": "superseded"}
    assert (job.ran, other.ran, heir.ran) == (["1"], [], [])


def test_a_look_in_doubt_does_not_make_an_old_process_a_new_one(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """While the clock is not trusted it sees the schedule that counts, which is not its own: it takes nothing back."""
    job, other, permit = Job(registry), Job(open_registry(clock=clock)), Permit(scheduling=False, catch_up=False)
    other.becomes("*/30 * * * *")
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    assert job.due() == []
    permit = Permit()
    clock.advance(HOUR)
    with pytest.raises(ScheduleError):
        job.due()
    assert (len(other.due()), other.schedule().version) == (1, 2)


def test_another_zone_is_another_schedule(registry: Registry, clock: ManualClock) -> None:
    """03:00 in Shanghai is 19:00 UTC of the day before."""
    job = Job(registry, cron="0 3 * * *")
    job.becomes("0 3 * * *", tz="Asia/Shanghai")
    clock.advance(DAY)
    (run,) = job.due()
    assert run.task_id == "job@2026-11-23T19:00:00Z"


def test_another_spelling_is_no_other_schedule(registry: Registry) -> None:
    """Spaces and capitals begin no version, and neither do options that are no part of the expression."""
    job = Job(registry, cron="0 3 * * mon")
    job.becomes(" 0  3 * * MON", misfire_grace=5)
    assert job.schedule().version == 1


# --- the clock --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trusted")
def test_a_clock_set_back_repeats_nothing(registry: Registry, clock: ManualClock) -> None:
    """Across midnight and back: each slot once, and those that come again are not new."""
    job = Job(registry)
    for _ in range(3):
        clock.advance(HOUR)
        job.due()
    clock.set(wall_us=clock.wall_us() - 3 * HOUR * 1_000_000)
    for _ in range(4):
        job.due()
        clock.advance(HOUR)
    job.due()
    assert job.ran == ["1", "2", "3", "4"]
    assert job.schedule().watermark_s == BEGAN.timestamp() + 4 * HOUR


def test_a_pending_slot_waits_for_its_instant(registry: Registry, clock: ManualClock) -> None:
    """Where the clock goes back behind it, it is not run before its time; it is not lost either."""
    job = Job(registry, overlap="queue")
    job.body = lambda slot: clock.advance(HOUR)
    clock.advance(HOUR)
    job.due()
    job.body = lambda slot: None
    clock.set(wall_us=clock.wall_us() - 1)
    assert job.due() == []
    clock.set(wall_us=clock.wall_us() + 1)
    assert len(job.due()) == 1


def test_a_clock_that_is_not_trusted_suspends(registry: Registry, clock: ManualClock) -> None:
    """Nothing is due meanwhile. What lost its window by that says so; a window is extended where it is told so."""
    job, permit = Job(registry, misfire_grace=60), Permit(scheduling=False, catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    Job(registry, "fresh")
    clock.advance(HOUR)
    assert job.due() == []
    assert (job.rows(), job.schedule().state) == ({}, State.HELD)
    assert ledger(registry).schedules("fresh") == []  # it would begin by that clock
    clock.advance(HOUR + 60)
    permit = Permit(extension_ms=20)
    clock.set(wall_us=clock.wall_us() + 20_000)
    job.due()
    assert job.rows() == {"1": "clock", "2": "succeeded"}
    assert job.schedule().state is State.GOING


def test_what_is_held_by_the_clock_is_not_resumed_by_hand(registry: Registry, clock: ManualClock) -> None:
    """Nobody has paused it: what has come due by a clock in doubt is skipped for no pause, and runs once it is not."""
    job, permit = Job(registry), Permit(scheduling=False, catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    job.due()
    clock.advance(HOUR)
    registry.resume("job")
    assert (job.rows(), job.schedule().state) == ({}, State.HELD)
    permit = Permit()
    assert len(job.due()) == 1


def test_a_clock_that_is_confirmed_holds_nothing_any_more(registry: Registry, clock: ManualClock) -> None:
    """From the first look behind it, also where no slot has come due meanwhile: an outage later is no clock's."""
    job, permit = Job(registry, cron="0 3 * * *", misfire_grace=60), Permit(scheduling=False, catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    clock.advance(HOUR)
    job.due()
    before = job.schedule()
    permit = Permit(catch_up=False)  # a hardware clock serves: what is missed stays held
    job.due()
    assert (before.state, job.schedule()) == (State.HELD, before)
    permit = Permit()
    job.due()
    assert job.schedule() == before._replace(state=State.GOING, open_s=before.watermark_s + HOUR)
    clock.advance(2 * DAY)
    assert {(one.state, one.reason) for one in registry.audit("job")} == {("late", "nobody has looked since")}
    job.due()
    assert set(job.rows().values()) == {"too_late"}


def test_a_jump_suspends_until_it_is_confirmed(registry: Registry, clock: ManualClock) -> None:
    """The clock check itself is asked: what came due by a jump waits for a person, and then runs once."""
    job = Job(registry)
    job.due()
    clock.set(wall_us=clock.wall_us() + 3 * HOUR * 1_000_000)
    assert job.due() == []
    registry.confirm_clock(evidence="the jump was right")
    assert len(job.due()) == 1
    assert job.rows() == {"1": "coalesced", "2": "coalesced", "3": "succeeded"}


def test_by_a_clock_that_serves_only_the_newest_starts(registry: Registry, clock: ManualClock) -> None:
    """The hardware clock serves for what is due now, corrected; what was missed waits until the clock is confirmed."""
    job, permit = Job(registry, coalesce="all"), Permit(catch_up=False, correction_us=HOUR * 1_000_000)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    clock.advance(2 * HOUR)
    assert len(job.due()) == 1
    assert job.rows() == {"1": "pending", "2": "pending", "3": "succeeded"}
    permit = Permit()
    clock.advance(HOUR)
    assert len(job.due()) == 2
    assert job.rows() == {"1": "succeeded", "2": "succeeded", "3": "succeeded"}


def test_what_is_older_than_what_ran_by_a_clock_that_serves_is_coalesced(
    registry: Registry, clock: ManualClock
) -> None:
    """The newest stands for them all: none of them runs behind it once the clock is confirmed."""
    job, permit = Job(registry), Permit(catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    clock.advance(3 * HOUR)
    job.due()
    clock.advance(HOUR)
    job.due()
    assert job.rows() == {"1": "pending", "2": "pending", "3": "succeeded", "4": "succeeded"}
    permit = Permit()
    assert job.due() == []
    assert job.rows() == {"1": "coalesced", "2": "coalesced", "3": "succeeded", "4": "succeeded"}


def test_what_ran_by_a_clock_that_went_back_since_is_still_to_come(registry: Registry, clock: ManualClock) -> None:
    """So it stands for none of those that wait: each runs when its time has come."""
    job, permit = Job(registry), Permit(catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    clock.advance(3 * HOUR)
    job.due()
    assert job.rows() == {"1": "pending", "2": "pending", "3": "succeeded"}
    permit = Permit()
    clock.set(wall_us=clock.wall_us() - int(1.5 * HOUR * 1_000_000))
    job.due()
    assert job.rows() == {"1": "succeeded", "2": "pending", "3": "succeeded"}
    clock.advance(2 * HOUR)
    job.due()
    assert job.rows() == {"1": "succeeded", "2": "coalesced", "3": "succeeded"}


@pytest.mark.parametrize("other", ["job@2026-11-23T09:00:00Z", "job@by-hand"])
def test_a_slot_to_come_that_ran_by_hand_hides_none_that_has_begun(
    registry: Registry, clock: ManualClock, other: str
) -> None:
    """Nor does a task that only has a name like one."""
    job, permit = Job(registry), Permit(catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    clock.advance(3 * HOUR)
    job.due()
    registry.run_slot(other) if other.endswith("Z") else registry.run(other, lambda: None)
    permit = Permit()
    assert job.due() == []
    assert job.ran == ["3", "6"][: 1 + other.endswith("Z")]


def test_a_task_that_is_called_nearly_like_a_slot_hides_none_that_has_begun(
    registry: Registry, clock: ManualClock
) -> None:
    """It has the form, but is no instant."""
    job, permit = Job(registry), Permit(catch_up=False)
    registry.may_schedule = lambda: permit  # type: ignore[method-assign]
    clock.advance(3.5 * HOUR)
    job.due()
    registry.run("job@2026-11-23T06:10:99Z", lambda: None)
    permit = Permit()
    assert job.due() == []
    assert job.ran == ["3"]


def test_a_task_with_another_name_before_its_instant_is_no_slot_of_the_schedule(
    registry: Registry, clock: ManualClock
) -> None:
    """A schedule's name has no @. One that waits is neither skipped nor run, and one at work is in nobody's way."""
    other = "job@eu@2026-11-23T02:00:00Z"
    for name in (other, f"{other}!", "job@eu@2026-11-23T04:00:00Z"):
        registry.add(name)
    at_work = registry.claim("job@eu@2026-11-23T05:00:00Z")
    failed = registry.claim("job@eu@2026-11-23T01:00:00Z")
    assert failed.slot is None
    failed.fail(ValueError("no luck"))
    job = Job(registry, max_attempts=3)
    clock.advance(HOUR)
    assert [one.task_id for one in job.due()] == ["job@2026-11-23T04:00:00Z"]
    at_work.succeed()
    job.becomes("30 * * * *")
    names = [(task.task_id, task.status.word) for task in registry.tasks(prefix="job@eu@")]
    assert [word for _, word in names] == ["failed", "pending", "pending", "pending", "succeeded"]
    with pytest.raises(ScheduleError, match="is no slot"):
        registry.run_slot(other)


def test_a_slot_to_come_that_ran_by_hand_stands_for_none_that_waits(registry: Registry, clock: ManualClock) -> None:
    """Its time has not come; what waited in the queue runs."""
    job = Job(registry, overlap="queue")
    job.body = lambda slot: clock.advance(HOUR)
    clock.advance(HOUR)
    job.due()
    job.body = lambda slot: None
    registry.run_slot("job@2026-11-23T09:00:00Z")
    assert job.rows() == {"1": "succeeded", "2": "pending", "6": "succeeded"}
    assert len(job.due()) == 1
    assert job.rows() == {"1": "succeeded", "2": "succeeded", "6": "succeeded"}


@pytest.mark.parametrize("ahead_h", [0, -10, 10])
@pytest.mark.parametrize(("overlap", "second"), [("skip", "overlap"), ("queue", "pending")])
def test_by_a_clock_that_serves_slots_overlap_as_ever(
    registry: Registry, clock: ManualClock, overlap: str, second: str, ahead_h: int
) -> None:
    """What comes due while a slot runs is skipped where it is to be, and does not run once the clock is confirmed.

    However far the clock that serves is from the one that is in doubt.
    """
    job = Job(registry, coalesce="all", overlap=overlap)
    clock.set(wall_us=clock.wall_us() - ahead_h * HOUR * 1_000_000)
    correction_us = ahead_h * HOUR * 1_000_000
    registry.may_schedule = lambda: Permit(catch_up=False, correction_us=correction_us)  # type: ignore[method-assign]
    job.body = lambda slot: clock.advance(1.5 * HOUR)
    clock.advance(HOUR)
    assert len(job.due()) == 1
    assert job.rows() == {"1": "succeeded", "2": second}


def test_what_waits_as_the_clock_is_set_forward_overlaps_nothing(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """The claim is of a time long ago, by a clock for which another served: what was due waits."""
    job, other = (Job(one, coalesce="all") for one in (registry, open_registry(clock=clock)))
    right_us = clock.wall_us() + 3 * HOUR * 1_000_000
    clock.set(wall_us=0)
    permits = [Permit(catch_up=False, correction_us=right_us)]
    registry.may_schedule = lambda: permits[-1]  # type: ignore[method-assign]

    def body(_slot: datetime) -> None:
        job.body = lambda _: None
        clock.set(wall_us=right_us)
        permits.append(Permit())
        assert other.due() == []

    job.body = body
    job.due()
    other.due()
    assert job.rows() == {"1": "succeeded", "2": "succeeded", "3": "succeeded"}


@pytest.mark.parametrize(("overlap", "second"), [("skip", "overlap"), ("queue", "pending")])
def test_by_a_clock_that_serves_others_slots_overlap_as_ever(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, overlap: str, second: str
) -> None:
    """Its claim is dated by the clock that is in doubt; what comes due while it runs is told by the other one."""
    job, other = Job(registry, overlap=overlap), Job(open_registry(clock=clock), overlap=overlap)
    for one in (job, other):
        one.registry.may_schedule = lambda: Permit(catch_up=False, correction_us=-10 * HOUR * 1_000_000)  # type: ignore[method-assign]
    clock.set(wall_us=clock.wall_us() + 10 * HOUR * 1_000_000)

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        assert other.due() == []

    job.body = body
    clock.advance(HOUR)
    job.due()
    assert job.rows() == {"1": "succeeded", "2": second}


# --- by hand ----------------------------------------------------------------------------------------------------


def test_what_is_no_slot_is_not_run_by_hand(registry: Registry) -> None:
    """An instant that the expression does not name would be a double to the audit."""
    job = Job(registry)
    with pytest.raises(ScheduleError, match="no slot"):
        registry.run_slot("job@2026-11-23T04:30:00Z")
    assert (job.rows(), job.ran) == ({}, [])


def test_a_schedule_that_nobody_has_begun_runs_nothing_by_hand(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """A version that was edited, and not yet looked at: its slot of the past would be a double to the audit."""
    Job(registry)
    clock.advance(2 * HOUR)
    edited, ran = open_registry(clock=clock), list[datetime]()
    edited.scheduled("job", cron="30 * * * *")(ran.append)
    with pytest.raises(ScheduleError, match="another") as refused:
        edited.run_slot("job@2026-11-23T04:30:00Z")
    assert "run_due" in (refused.value.hint or "")
    edited.run_due()
    with pytest.raises(ScheduleError, match=r"no slot of the schedule: '0 \* \* \* \*'"):
        edited.run_slot("job@2026-11-23T04:30:00Z")
    assert ran == []
    edited.run_slot("job@2026-11-23T05:30:00Z")
    clock.advance(HOUR)
    assert [one.state for one in edited.audit("job")] == ["skipped", "skipped", "run"]


def beside(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, meanwhile: Callable[[], object]) -> None:
    """Once, before a step of the walk, something else happens."""
    step, has_come = getattr(module, name), list[bool]()

    def late(*words: Any) -> Any:
        if not has_come:
            has_come.append(True)
            meanwhile()
        return step(*words)

    monkeypatch.setattr(module, name, late)


def test_what_is_no_slot_any_more_by_its_claim_is_put_back(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins another version between the check and the claim."""
    job, edited = Job(registry), open_registry(clock=clock)
    edited.scheduled("job", cron="30 * * * *")(lambda: None)
    beside(monkeypatch, by_hand, "keep_in_sight", edited.run_due)
    with pytest.raises(ScheduleError, match="no slot"):
        registry.run_slot("job@2026-11-23T04:00:00Z")
    clock.advance(2 * HOUR)
    edited.run_due()
    assert (job.ran, job.rows()["1"]) == ([], "superseded")
    assert all(one.is_sound for one in edited.audit("job"))


def test_what_began_by_hand_since_the_look_is_told_of_its_version(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has looked, and then begins another version; the slot to come ends behind its own instant."""
    job, edited = Job(registry), open_registry(clock=clock)
    job.body = lambda _: clock.advance(2 * HOUR)
    edited.scheduled("job", cron="30 * * * *")(lambda: None)
    beside(monkeypatch, edited.store, "plan", lambda: registry.run_slot("job@2026-11-23T04:00:00Z"))
    edited.run_due()
    clock.advance(HOUR)
    edited.run_due()
    assert ([one.state for one in edited.audit("job") if one.attempt], job.ran) == (["run", "run"], ["1"])
    assert all(one.is_sound for one in edited.audit("job"))


@pytest.mark.parametrize("year", ["0001-01-01", "0001-01-02", "9999-12-31"])
def test_the_ends_of_time_are_no_slots(registry: Registry, clock: ManualClock, year: str) -> None:
    """Nothing can be reckoned there; and a row that somebody has made there stops no schedule."""
    job = Job(registry, cron="0 0 1 1 *")
    with pytest.raises(ScheduleError, match="no slot"):
        registry.run_slot(f"job@{year}T00:00:00Z")
    registry.run(f"job@{year}T23:00:00Z", int, name="job")
    job.becomes("30 * * * *")
    clock.advance(HOUR)
    assert len(job.due()) == 1


def test_what_has_begun_goes_on_by_hand_whichever_version_counts(registry: Registry, clock: ManualClock) -> None:
    """It ran early and failed; by its time the schedule has no such slot, and the audit knows it all the same."""
    job = Job(registry)

    def fails(_slot: datetime) -> None:
        raise ValueError

    job.body = fails
    with pytest.raises(ValueError):
        registry.run_slot("job@2026-11-23T06:00:00Z")
    job.becomes("30 * * * *")
    job.body = lambda _: None
    assert registry.run_slot("job@2026-11-23T06:00:00Z").attempt == 2
    clock.advance(4 * HOUR)
    job.due()
    assert job.ran[:2] == ["3", "3"]
    assert all(one.is_sound for one in registry.audit("job"))


def test_a_slot_of_before_the_schedule_is_run_by_hand(registry: Registry, clock: ManualClock) -> None:
    """To make good what was missed before there was a registry."""
    job = Job(registry)
    clock.advance(HOUR)
    job.due()
    registry.run_slot("job@2026-11-22T04:00:00Z")
    assert [one.state for one in registry.audit("job")] == ["run"]


def test_a_skipped_slot_can_be_run_by_hand(registry: Registry, clock: ManualClock) -> None:
    """Whatever its window; once, as any task. What somebody has skipped himself stays so."""
    job = Job(registry, misfire_grace=60)
    clock.advance(HOUR + 61)
    job.due()
    slot = "job@2026-11-23T04:00:00Z"
    assert not registry.run_slot(slot).replayed
    assert registry.run_slot(slot).replayed
    assert job.ran == ["1"]
    registry.add("job@2027-01-01T00:00:00Z", name="job")
    registry.skip("job@2027-01-01T00:00:00Z", "holiday")
    with pytest.raises(TaskDoneError):
        registry.run_slot("job@2027-01-01T00:00:00Z")


def test_what_runs_by_hand_is_seen_by_others(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """An old slot that is run by hand keeps the schedule's own from running beside it."""
    job, other = Job(registry, misfire_grace=60), Job(open_registry(clock=clock), misfire_grace=60)
    clock.advance(2 * HOUR + 61)
    job.due()

    def body(_slot: datetime) -> None:
        clock.advance(HOUR - 61)
        assert other.due() == []

    job.body = body
    registry.run_slot("job@2026-11-23T04:00:00Z")
    assert other.rows() == {"1": "succeeded", "2": "too_late", "3": "overlap"}


def runs_aside(registry: Registry, task_id: str) -> threading.Thread:
    """Run the slot by hand, until its job lets go of it."""
    thread = threading.Thread(target=registry.run_slot, args=(task_id,))
    thread.start()
    return thread


@pytest.fixture
def out_of_sight(registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock) -> tuple[Job, Job]:
    """Two slots were too late, the older has run by hand; a third is due. Two processes with the schedule."""
    job, other = Job(registry, misfire_grace=60), Job(open_registry(clock=clock), misfire_grace=60)
    clock.advance(2 * HOUR + 61)
    job.due()
    job.registry.run_slot("job@2026-11-23T04:00:00Z")
    clock.advance(HOUR - 61)
    return job, other


def test_what_was_begun_by_hand_since_the_look_is_seen_by_others(
    out_of_sight: tuple[Job, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look stores what it has found, and another slot is at work by then: none runs beside it."""
    job, other = out_of_sight
    begun, ends = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    plan = ledger(job.registry).plan

    def body(_slot: datetime) -> None:
        begun.set()
        assert ends.wait(PATIENCE_S)

    def late(*words: Any) -> bool:
        if not threads:
            threads.append(runs_aside(other.registry, "job@2026-11-23T05:00:00Z"))
            assert begun.wait(PATIENCE_S)
        return plan(*words)

    other.body = body
    monkeypatch.setattr(job.registry.store, "plan", late)
    assert job.due() == []
    assert job.rows() == {"1": "succeeded", "2": "running", "3": "pending"}
    ends.set()
    threads[0].join(PATIENCE_S)
    assert [run.error for run in job.due()] == [None]
    assert job.rows() == {"1": "succeeded", "2": "succeeded", "3": "succeeded"}


def test_what_is_claimed_by_hand_behind_a_look_is_seen_by_others(
    out_of_sight: tuple[Job, Job], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looks, and runs what is due, in the moment before the claim."""
    job, other = out_of_sight
    look, looked = job.registry.store.look, list[str]()

    def late(wanted: Any) -> Any:
        if not looked:
            looked.extend(run.task_id for run in other.due())
        return look(wanted)

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        assert other.due() == []

    job.body = body
    monkeypatch.setattr(job.registry.store, "look", late)
    job.registry.run_slot("job@2026-11-23T05:00:00Z")
    assert looked == ["job@2026-11-23T06:00:00Z"]
    assert job.rows() == {"1": "succeeded", "2": "succeeded", "3": "succeeded", "4": "overlap"}


def test_what_a_look_runs_is_seen_by_others_whatever_was_stored_before_its_claim(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that is older than the retry of a slot knows of no reason to keep it in sight."""
    job, other = Job(registry), Job(open_registry(clock=clock))
    look, stored = registry.store.look, list[bool]()

    def late(wanted: Any) -> Any:
        if not stored:
            seen = ledger(registry).schedules("job")[-1]
            stored.append(ledger(registry).plan(seen, [seen._replace(open_s=seen.watermark_s + 1)], [], wanted))
        return look(wanted)

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        assert other.due() == []

    clock.advance(HOUR)
    job.body = body
    monkeypatch.setattr(registry.store, "look", late)
    job.due()
    assert stored == [True]
    assert job.rows() == {"1": "succeeded", "2": "overlap"}


def test_a_slot_that_cannot_be_looked_about_behind_its_claim_is_put_back(
    registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says why, the job has not begun, and no attempt is used up."""
    job = Job(registry)
    clock.advance(HOUR)
    waiting, left = ledger(registry).waiting, iter(range(2))

    def busy(name: str) -> Any:
        if next(left, None) is None:
            raise always_changing(name)
        return waiting(name)

    monkeypatch.setattr(registry.store, "waiting", busy)
    (run,) = job.due()
    assert isinstance(run.error, StoreBusyError)
    assert job.rows() == {"1": "pending"}
    with pytest.raises(StoreBusyError):
        registry.run_slot("job@2026-11-23T04:00:00Z")
    monkeypatch.undo()
    assert [one.outcome.attempt for one in job.due()] == [1]
    assert job.ran == ["1"]


def test_one_that_is_run_by_hand_says_so_itself(
    registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before its claim went well, the one behind it does not: its caller has the error, and the slot waits."""
    job = Job(registry)
    clock.advance(HOUR)
    waiting, left = ledger(registry).waiting, iter(range(1))

    def busy(name: str) -> Any:
        if next(left, None) is None:
            raise always_changing(name)
        return waiting(name)

    monkeypatch.setattr(registry.store, "waiting", busy)
    with pytest.raises(StoreBusyError) as raised:
        registry.run_slot("job@2026-11-23T04:00:00Z")
    assert raised.value.__suppress_context__
    assert (job.ran, job.rows()) == ([], {"1": "pending"})
    monkeypatch.undo()
    assert [one.outcome.attempt for one in job.due()] == [1]


def test_a_slot_that_runs_by_hand_at_the_first_look_is_seen_by_others(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock
) -> None:
    """Nobody had looked at the schedule before, so there was no row of it to note the slot in."""
    ran: list[datetime] = []
    other = open_registry(clock=clock)
    other.scheduled("job", cron=HOURLY)(ran.append)

    @registry.scheduled("job", cron=HOURLY)
    def by_hand(_slot: datetime) -> None:
        assert other.run_due() == []
        clock.advance(HOUR)
        assert other.run_due() == []

    registry.run_slot("job@2026-11-23T02:00:00Z")
    assert ran == []
    assert {one.state for one in registry.audit("job")} == {"skipped"}


@pytest.mark.parametrize("how", ["due", "by hand"])
def test_an_interrupt_before_the_job_of_a_slot_puts_it_back(
    how: str, registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its claim, while the file is asked whether another is at work: it is pending, and no attempt is used."""
    job = Job(registry)
    clock.advance(HOUR)
    waiting, left = ledger(registry).waiting, iter(range(2 if how == "due" else 1))

    def interrupted(name: str) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return waiting(name)

    with monkeypatch.context() as patch:
        patch.setattr(registry.store, "waiting", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.due() if how == "due" else registry.run_slot("job@2026-11-23T04:00:00Z")
    assert job.ran == []
    assert {one.status for one in registry.tasks()} <= {Status.PENDING}
    assert [one.outcome.attempt for one in job.due()] == [1]


# --- coroutines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["due", "by hand"])
def test_a_slot_of_a_coroutine_that_cannot_be_looked_about_is_put_back(
    how: str, registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a plain function: the file says why, and no attempt is used up."""
    asynchronous, ran = AsyncRegistry.of(registry), list[datetime]()

    @asynchronous.scheduled("job", cron=HOURLY)
    async def job(slot: datetime) -> None:
        ran.append(slot)

    waiting, left = ledger(registry).waiting, iter(range(2 if how == "due" else 1))

    def busy(name: str) -> Any:
        if next(left, None) is None:
            raise always_changing(name)
        return waiting(name)

    async def main() -> None:
        await asynchronous.run_due()
        clock.advance(HOUR)
        with monkeypatch.context() as patch:
            patch.setattr(registry.store, "waiting", busy)
            if how == "due":
                (run,) = await asynchronous.run_due()
                assert isinstance(run.error, StoreBusyError)
            else:
                with pytest.raises(StoreBusyError):
                    await asynchronous.run_slot("job@2026-11-23T04:00:00Z")
        assert (ran, [one.status for one in registry.tasks()]) == ([], [Status.PENDING])
        assert [one.outcome.attempt for one in await asynchronous.run_due() if one.outcome] == [1]

    asyncio.run(main())
    assert ran == [BEGAN + H]


@pytest.mark.parametrize("on_crash", ["hold", "rerun"])
@pytest.mark.parametrize("how", ["due", "by hand"])
def test_a_slot_of_a_coroutine_that_is_closed_before_its_job_is_put_back(
    how: str, on_crash: Any, registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a cancellation, though nothing can be awaited any more; also where one attempt is all that there is."""
    asynchronous, ran = AsyncRegistry.of(registry), list[datetime]()

    @asynchronous.scheduled("job", cron=HOURLY, on_crash=on_crash, max_attempts=1)
    async def job(slot: datetime) -> None:
        ran.append(slot)

    waiting, left = ledger(registry).waiting, iter(range(2 if how == "due" else 1))
    asked, goes_on = threading.Event(), threading.Event()

    def slow(name: str) -> Any:
        if next(left, None) is None:
            asked.set()
            assert goes_on.wait(PATIENCE_S)
        return waiting(name)

    async def main() -> None:
        await asynchronous.run_due()
        clock.advance(HOUR)
        with monkeypatch.context() as patch:
            patch.setattr(registry.store, "waiting", slow)
            one: Any = asynchronous.run_due() if how == "due" else asynchronous.run_slot("job@2026-11-23T04:00:00Z")
            while not asked.is_set():
                step: Any = one.send(None)
                is_done = asked.is_set if step is None else step.done
                await asyncio.to_thread(until, lambda done=is_done: asked.is_set() or done())  # type: ignore[misc]
            one.close()
            goes_on.set()
        await asyncio.to_thread(until, lambda: not list(registry.tasks(status=Status.RUNNING)))
        assert ({task.status for task in registry.tasks()}, ran) == ({Status.PENDING}, [])
        assert (await asynchronous.run_slot("job@2026-11-23T04:00:00Z")).attempt == 1

    asyncio.run(main())
    assert ran == [BEGAN + H]


@pytest.mark.parametrize("how", ["due", "by hand"])
def test_a_caller_who_is_cancelled_before_the_job_of_a_slot_puts_it_back(
    how: str, registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interrupt; also where one attempt is all that there is."""
    asynchronous, ran = AsyncRegistry.of(registry), list[datetime]()

    @asynchronous.scheduled("job", cron=HOURLY, on_crash="rerun", max_attempts=1)
    async def job(slot: datetime) -> None:
        ran.append(slot)

    waiting, left = ledger(registry).waiting, iter(range(2 if how == "due" else 1))
    asked, goes_on = threading.Event(), threading.Event()

    def slow(name: str) -> Any:
        if next(left, None) is None:
            asked.set()
            assert goes_on.wait(PATIENCE_S)
        return waiting(name)

    async def main() -> None:
        await asynchronous.run_due()
        clock.advance(HOUR)
        with monkeypatch.context() as patch:
            patch.setattr(registry.store, "waiting", slow)
            one = asynchronous.run_due() if how == "due" else asynchronous.run_slot("job@2026-11-23T04:00:00Z")
            caller = asyncio.ensure_future(one)
            assert await asyncio.to_thread(asked.wait, PATIENCE_S)
            caller.cancel()
            await asyncio.sleep(0)
            goes_on.set()
            with pytest.raises(asyncio.CancelledError):
                await caller
        assert ran == []
        assert {one.status for one in registry.tasks()} <= {Status.PENDING}
        await asynchronous.run_due()
        assert ran == [BEGAN + H]

    asyncio.run(main())


def test_coroutines_are_awaited(
    open_registry: Callable[..., Registry],
    clock: ManualClock,
    loop: Callable[..., Any],
    nothing_on_the_event_loop: None,
) -> None:
    """`AsyncRegistry` runs coroutine functions and plain ones; no call of the store is made on the event loop."""
    registry = AsyncRegistry.of(open_registry(clock=clock))
    ran: list[object] = []

    @registry.scheduled("job", cron=HOURLY, coalesce="all")
    async def job(slot: datetime) -> datetime:
        ran.append(aio.current_claim().slot)
        return slot

    registry.scheduled("plain", cron=HOURLY)(ran.append)

    async def main() -> list[SlotRun]:
        await registry.run_due()
        clock.advance(2 * HOUR)
        runs = await registry.run_due()
        assert (await registry.run_slot("job@2026-11-23T04:00:00Z")).replayed
        return runs

    runs = loop(main)
    assert [run.error for run in runs] == [None] * 3
    assert ran == [BEGAN + H, BEGAN + 2 * H, BEGAN + 2 * H]
    registry.registry.close()


def test_a_registry_without_a_loop_runs_them_as_well(registry: Registry, clock: ManualClock) -> None:
    """Each under an event loop of its own; inside of a running one it says what to use."""
    ran = []

    @registry.scheduled("job", cron=HOURLY)
    async def job() -> None:
        await asyncio.sleep(0)
        ran.append(current_claim().slot)

    async def inside() -> None:
        registry.run_due()

    registry.run_due()
    clock.advance(HOUR)
    with pytest.raises(RuntimeError):
        asyncio.run(inside())
    registry.run_due()
    assert ran == [BEGAN + H]


def test_a_coroutine_function_finds_the_claim_of_coroutines(registry: Registry, clock: ManualClock) -> None:
    """Whoever runs its slot: it was written to await what it does with its claim."""
    ran = []

    async def piece() -> int:
        return 7

    @registry.scheduled("job", cron=HOURLY)
    async def job() -> Any:
        ran.append(await aio.current_claim().run_step("piece", piece))
        return ran[-1]

    registry.run_due()
    clock.advance(HOUR)
    (run,) = registry.run_due()
    clock.advance(HOUR)
    outcome = registry.run_slot(f"job@{(BEGAN + 2 * H).isoformat().replace('+00:00', 'Z')}")
    assert (run.error, run.outcome.result, outcome.result, ran) == (None, 7, 7, [7, 7])


# --- processes --------------------------------------------------------------------------------------------------

SCHEDULER = """
    from datetime import timedelta
    from idemreg import Registry
    from idemreg.testing import ManualClock
    clock = ManualClock()
    clock.advance(int(sys.argv[2]))
    registry = Registry(sys.argv[1], durability="normal", clock=clock)
    @registry.scheduled("job", cron="0 * * * *", coalesce=sys.argv[3], on_crash=sys.argv[4])
    def job(slot):
        say("ran", slot.hour)
        if wait() == "hang": wait()
    say("ready")
    while wait() == "look":
        runs = registry.run_due()
        say("did", len(runs), *(type(run.error).__name__ for run in runs if run.error))
"""

# Two of them look as often as they can, until nothing is left. Their clocks stand, also while one waits for the other:
# it would be that much ahead of the other's, which the clock check is right to call a clock in doubt.
EAGER = """
    from idemreg import Registry, Status
    from idemreg.clock import Clock
    from idemreg.testing import ManualClock
    class Standing(ManualClock):
        def sleep(self, pause): Clock.sleep(self, pause)
    clock = Standing()
    clock.advance(int(sys.argv[2]))
    registry = Registry(sys.argv[1], durability="normal", clock=clock)
    @registry.scheduled("job", cron="0 * * * *", coalesce="all", limit=1_000)
    def job(slot):
        with open(sys.argv[3], "a") as file: file.write(f"{slot}\\n")
    say("ready")
    wait()
    while registry.count().keys() != {Status.SUCCEEDED}: registry.run_due()
"""


def passed(at: datetime) -> int:
    """Seconds since a `ManualClock` begins."""
    return int((at - BEGAN).total_seconds())


def ran_by_two(program: str, path: Path, *words: object) -> list[str]:
    """What two processes that begin together have noted in their witness, each by a line."""
    witness = path.parent / "witness"
    with Script(program, path, *words, witness) as one, Script(program, path, *words, witness) as two:
        for script in (one, two):
            script.expect("ready")
        for script in (one, two):
            script.go()
        assert (one.end(), two.end()) == (0, 0)
    return witness.read_text().splitlines()


def test_two_processes_run_each_slot_once(registry: Registry, clock: ManualClock, path: Path) -> None:
    """Both look at the same instant, again and again: each slot is run by one of them."""
    Job(registry, coalesce="all", limit=1_000)
    clock.advance(60 * HOUR)
    now = passed(BEGAN + 60 * H)
    lines = ran_by_two(EAGER, path, now)
    assert len(lines) == len(set(lines)) == 60


def test_a_scheduler_that_is_killed_over_three_slots_catches_up(
    registry: Registry, clock: ManualClock, path: Path
) -> None:
    """Killed in the middle of a slot, under rerun: that one is run again, and then those that it missed."""
    job = Job(registry, coalesce="all", on_crash="rerun")
    with Script(SCHEDULER, path, passed(BEGAN + H), "all", "rerun") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 4")
        script.kill()
    clock.advance(4 * HOUR)
    assert len(job.due()) == 4
    assert job.ran == ["1", "2", "3", "4"]
    assert set(job.rows().values()) == {"succeeded"}


def test_under_hold_a_killed_slot_is_unknown_and_the_next_run(
    registry: Registry, clock: ManualClock, path: Path
) -> None:
    """The default: nobody repeats what has begun; it is told, and nothing else waits for it."""
    job = Job(registry, coalesce="all")
    with Script(SCHEDULER, path, passed(BEGAN + H), "all", "hold") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 4")
        script.kill()
    clock.advance(2 * HOUR)
    unknown, run = job.due()
    assert (type(unknown.error), run.error) == (TaskUnknownError, None)
    assert job.rows() == {"1": "unknown", "2": "succeeded"}


def slot_of_a_dead_owner(path: Path) -> None:
    """The first slot was begun under verify, and its owner is killed."""
    verified = SCHEDULER.replace("on_crash=sys.argv[4]", 'on_crash="verify", verify=print')
    with Script(verified, path, passed(BEGAN + H), "latest") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 4")
        script.kill()


@pytest.mark.parametrize("first", ["look", "sweep"])
@pytest.mark.parametrize(
    ("answer", "becomes", "errors"),
    [("did not", "succeeded", [type(None)]), ("happened", "succeeded", []), ("?", "unknown", [TaskUnknownError])],
)
def test_the_hook_of_a_slot_is_asked_whoever_has_found_its_owner_dead(
    registry: Registry, clock: ManualClock, path: Path, answer: str, becomes: str, errors: list[type], first: str
) -> None:
    """A sweep has no hook, and makes the slot unknown: the next look asks, and runs what did not happen."""
    asked: list[tuple[str, datetime]] = []

    def hook(row: Task, slot: datetime) -> bool | None:
        asked.append((row.task_id, slot))
        return {"did not": False, "happened": True}.get(answer)

    job = Job(registry, on_crash="verify", verify=hook)
    slot_of_a_dead_owner(path)
    clock.advance(HOUR)
    if first == "sweep":
        assert [(one.did, one.status) for one in registry.sweep()] == [("settled", Status.UNKNOWN)]
    runs = job.due()
    assert asked == [("job@2026-11-23T04:00:00Z", BEGAN + H)]
    assert job.rows() == {"1": becomes}
    assert job.ran == (["1"] if answer == "did not" else [])
    assert [type(run.error) for run in runs] == errors


def test_the_hook_of_an_unknown_slot_is_asked_as_by_any_call(registry: Registry, clock: ManualClock) -> None:
    """Once a look, whatever it or an operator has said before, beside slots that run; only its answer ends it."""
    answers: list[bool | None] = [None, None, False]
    options: dict[str, Any] = {"on_crash": "verify", "verify": lambda _row, _slot: answers.pop(0), "misfire_grace": 60}
    job = Job(registry, unknown_on=TimeoutError, **options)

    def gone(_slot: datetime) -> None:
        raise TimeoutError

    job.body = gone
    clock.advance(HOUR)
    assert [type(run.error) for run in job.due()] == [TimeoutError]
    job.body = lambda slot: None
    clock.advance(HOUR)
    assert [type(run.error) for run in job.due()] == [TaskUnknownError, type(None)]
    registry.resolve("job@2026-11-23T04:00:00Z", "cannot-tell", evidence="no log of it")
    assert [type(run.error) for run in job.due()] == [TaskUnknownError]
    assert job.rows() == {"1": "unknown", "2": "succeeded"}
    assert [run.error for run in job.due()] == [None]
    assert job.rows() == {"1": "succeeded", "2": "succeeded"}
    assert (job.ran, answers) == (["1", "2", "1"], [])


@pytest.mark.parametrize(("begun", "now"), [("hold", "verify"), ("rerun", "rerun")])
def test_an_unknown_slot_waits_where_no_hook_may_speak(
    registry: Registry, clock: ManualClock, begun: str, now: str
) -> None:
    """One that was claimed under hold stays with the operator, also behind a function that has a hook by now."""
    asked: list[object] = []
    job = Job(registry, on_crash=begun, unknown_on=ZeroDivisionError)
    job.body = lambda slot: 1 / 0
    clock.advance(HOUR)
    job.due()
    job.becomes(HOURLY, on_crash=now, **({"verify": lambda *_: asked.append(1)} if now == "verify" else {}))
    assert (job.due(), job.rows(), asked) == ([], {"1": "unknown"}, [])


def test_a_slot_that_was_dropped_is_told(registry: Registry, clock: ManualClock) -> None:
    """A job that is interrupted ends as by a crash, and the interruption goes to the caller of `run_due`."""
    job = Job(registry)

    def stop(_slot: datetime) -> None:
        raise KeyboardInterrupt

    job.body = stop
    clock.advance(HOUR)
    with pytest.raises(KeyboardInterrupt):
        job.due()
    assert job.rows() == {"1": "unknown"}


def test_threads_of_a_process_run_each_slot_once(registry: Registry, clock: ManualClock) -> None:
    """As processes do."""
    job = Job(registry, coalesce="all")
    clock.advance(40 * HOUR)
    barrier = threading.Barrier(4)

    def look() -> None:
        barrier.wait()
        while registry.count().keys() != {Status.SUCCEEDED}:
            job.due()

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.ran, key=int) == [str(hour) for hour in range(1, 41)]


@pytest.mark.parametrize("failures", [1, TRIES])
def test_a_slot_that_others_would_not_see_does_not_run(
    registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Older than those that may run by themselves, it is noted first; where others are always faster it is told."""
    job = Job(registry)
    clock.advance(3 * HOUR)
    job.due()
    plan, left = ledger(registry).plan, iter(range(failures))
    monkeypatch.setattr(registry.store, "plan", lambda *words: next(left, None) is None and plan(*words))
    if failures == 1:
        assert registry.run_slot("job@2026-11-23T05:00:00Z").status is Status.SUCCEEDED
    else:
        with pytest.raises(StoreBusyError, match="all the time"):
            registry.run_slot("job@2026-11-23T05:00:00Z")
    assert job.ran == (["3", "2"] if failures == 1 else ["3"])
    assert registry.run_slot("job@2026-11-23T05:00:00Z").replayed is (failures == 1)
    assert job.rows() == {"1": "coalesced", "2": "succeeded", "3": "succeeded"}


def test_a_slot_that_finds_another_at_work_is_put_back(
    registry: Registry, open_registry: Callable[..., Registry], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another was begun by hand between the look and the claim: nothing runs beside it, and the next look runs it."""
    job, other = Job(registry), Job(open_registry(clock=clock))
    begun, ends = threading.Event(), threading.Event()

    def body(_slot: datetime) -> None:
        begun.set()
        assert ends.wait(PATIENCE_S)

    other.body = body
    clock.advance(2 * HOUR)
    by_hand = threading.Thread(target=other.registry.run_slot, args=("job@2026-11-23T04:00:00Z",))
    look = registry.store.look

    def late(wanted: Any) -> Any:
        if not begun.is_set():
            by_hand.start()
            assert begun.wait(PATIENCE_S)
        return look(wanted)

    monkeypatch.setattr(registry.store, "look", late)
    assert job.due() == []
    assert (job.ran, job.rows()) == ([], {"1": "running", "2": "pending"})
    ends.set()
    by_hand.join(PATIENCE_S)
    assert [run.error for run in job.due()] == [None]
    assert (other.ran, job.ran, job.rows()) == (["1"], ["2"], {"1": "succeeded", "2": "succeeded"})


def test_a_slot_of_a_forgotten_schedule_keeps_its_row(registry: Registry, clock: ManualClock) -> None:
    """Where the schedule's row is gone (an import does not bring it) and its slots are there, none is run again."""
    job = Job(registry)
    clock.advance(HOUR)
    job.due()
    lines = list(registry.export_lines())
    clock.set(wall_us=clock.wall_us() - HOUR * 1_000_000)
    with Registry(f"{registry.path}.other", durability="normal", clock=clock) as other:
        other.import_lines(lines)
        other.may_schedule = Permit  # type: ignore[method-assign] # that clock was set back on purpose
        twin = Job(other)
        clock.advance(2 * HOUR)
        twin.due()
        assert twin.rows() == {"1": "succeeded", "2": "succeeded"}
        assert twin.ran == ["2"]
    assert slot_id("job", 0) == "job@1970-01-01T00:00:00Z"
