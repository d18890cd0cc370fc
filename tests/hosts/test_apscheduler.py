"""Under APScheduler 3, with its jobs in memory: schedulers of two threads, two schedulers, and two processes."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_SUBMITTED
from apscheduler.executors.base import run_job
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.util import obj_to_ref, ref_to_obj

from idemreg import AsyncRegistry, ChecksumMismatchError, Registry, Status, current_claim
from idemreg.testing import ManualClock
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DUE = datetime(2020, 11, 23, 3, tzinfo=UTC)  # of the past: due at once, whatever the date is

due: ContextVar[datetime] = ContextVar("due")


def run_at(job: Any, store: str, run_times: list[datetime], logger: str) -> list[Any]:
    events = []
    for run_time in run_times:
        due.set(run_time)
        events += run_job(job, store, [run_time], logger)
    return events


class DueExecutor(ThreadPoolExecutor):  # type: ignore[misc] # without types
    """As in docs/apscheduler.md."""

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        future = self._pool.submit(run_at, job, job._jobstore_alias, run_times, self._logger.name)
        future.add_done_callback(lambda done: self._run_job_success(job.id, done.result()))


class Schedule:
    """A scheduler of two threads, and the events that it tells."""

    def __init__(self) -> None:
        self.events: Queue[Any] = Queue()
        # A job of the past is due at once, however late: no test waits for a clock.
        defaults = {"misfire_grace_time": None, "coalesce": False}
        self.scheduler = BackgroundScheduler(executors={"default": DueExecutor(2)}, job_defaults=defaults, timezone=UTC)
        self.scheduler.add_listener(self.events.put, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)

    def at(self, run_date: datetime, job: Any, *args: object) -> None:
        self.scheduler.add_job(job, "date", run_date=run_date, args=args)

    def ends(self, count: int) -> list[Any]:
        return [self.events.get(timeout=PATIENCE_S) for _ in range(count)]


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    schedule = Schedule()
    schedule.scheduler.start()
    yield schedule
    schedule.scheduler.shutdown()


def end_of(registry: Registry, task_id: str) -> tuple[Status, int]:
    task = registry.get(task_id)
    assert task is not None
    return task.status, task.attempt


def test_a_due_time_runs_once(schedule: Schedule, registry: Registry) -> None:
    """Fired twice for one time, as after a restart from a job store that was not written: one body."""
    entered = []

    @registry.idempotent("report:{day}", wait=PATIENCE_S)
    def report(day: str) -> str:
        entered.append(day)
        return f"the report of {day}"

    for _ in range(2):
        schedule.at(DUE, report, "2020-11-23")
    assert [event.retval for event in schedule.ends(2)] == ["the report of 2020-11-23"] * 2
    assert entered == ["2020-11-23"]


def test_the_executor_tells_the_due_time(schedule: Schedule, registry: Registry) -> None:
    """A job that made up for missed runs ran once for each of their times, and not twice for the time it is now."""
    submitted: Queue[Any] = Queue()
    schedule.scheduler.add_listener(submitted.put, EVENT_JOB_SUBMITTED)

    @registry.idempotent("report:{hour}")
    def report(hour: datetime) -> str:
        return hour.isoformat()

    def hourly() -> str:
        return report(due.get())

    start = datetime.now(UTC) - timedelta(hours=3, minutes=30)
    schedule.scheduler.add_job(hourly, "interval", hours=1, start_date=start, next_run_time=start)
    times = submitted.get(timeout=PATIENCE_S).scheduled_run_times
    assert len(times) == 4
    assert [event.retval for event in schedule.ends(4)] == [one.isoformat() for one in times]
    assert registry.count() == {Status.SUCCEEDED: 4}


def test_a_retry_by_a_listener_is_the_next_attempt(schedule: Schedule, registry: Registry) -> None:
    """APScheduler 3 has no retry: a listener that adds the job again, for the same due time, gets the next attempt."""
    attempts = []

    @registry.idempotent("report:{due}")
    def report(due: datetime) -> None:
        attempts.append(current_claim().attempt)
        if len(attempts) < 3:
            raise OSError

    def again(event: Any) -> None:
        schedule.at(DUE, report, event.scheduled_run_time)

    schedule.scheduler.add_listener(again, EVENT_JOB_ERROR)
    schedule.at(DUE, report, DUE)
    schedule.ends(3)
    assert attempts == [1, 2, 3]
    assert end_of(registry, f"report:{DUE.isoformat()}") == (Status.SUCCEEDED, 3)


def test_other_arguments_are_an_event(schedule: Schedule, registry: Registry) -> None:
    """The same due time with other arguments is refused, and APScheduler tells its listeners."""

    @registry.idempotent("report:{day}")
    def report(day: str, pages: int) -> None: ...

    schedule.at(DUE, report, "2020-11-23", 1)
    schedule.ends(1)
    schedule.at(DUE, report, "2020-11-23", 2)
    (event,) = schedule.ends(1)
    assert type(event.exception) is ChecksumMismatchError


@pytest.mark.parametrize("bad", [((), {}), ((1, 2), {}), ((1,), {"colour": "red"})])
def test_apscheduler_checks_the_arguments(
    schedule: Schedule, registry: Registry, bad: tuple[tuple[int, ...], dict[str, str]]
) -> None:
    """A job whose arguments do not fit is a ValueError where it is added, as without the decorator."""

    @registry.idempotent("report:{page}")
    def report(page: int) -> None: ...

    args, kwargs = bad
    with pytest.raises(ValueError, match="arguments"):
        schedule.scheduler.add_job(report, "date", run_date=DUE, args=args, kwargs=kwargs)


@Registry("never-opened.db").idempotent("module:{key}")
def job_of_a_module(key: str) -> None: ...


def test_a_job_store_finds_the_decorated_function() -> None:
    """Stores and process pools keep a job by its reference, which leads to the decorated function."""
    assert ref_to_obj(obj_to_ref(job_of_a_module)) is job_of_a_module


def test_two_threads_share_one_execution(schedule: Schedule, registry: Registry) -> None:
    """Both threads of the executor have the task at once: one enters the body, the other waits and has its result."""
    here = threading.Barrier(2)
    entered = []

    @registry.idempotent("slow:{key}", wait=PATIENCE_S)
    def slow(key: str) -> int:
        entered.append(key)
        return threading.get_ident()

    def both(key: str) -> int:
        here.wait(PATIENCE_S)
        return slow(key)

    for _ in range(2):
        schedule.at(DUE, both, "a")
    first, second = schedule.ends(2)
    assert first.retval == second.retval
    assert entered == ["a"]


def test_two_processes_run_a_due_time_once(path: Path) -> None:
    """A scheduler in each of two processes, as in every worker of a web server: each due time is run by one of them."""
    source = """
        import datetime
        from queue import Queue
        from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
        from apscheduler.schedulers.background import BackgroundScheduler
        from idemreg import Registry
        from tests.hosts.test_apscheduler import DUE, DueExecutor, due

        registry = Registry(sys.argv[1], durability="normal")

        @registry.idempotent("report:{day}", wait=60)
        def report(day: datetime.date) -> int:
            with open(sys.argv[1] + ".witness", "a") as file:
                file.write(f"{day}\\n")
            return os.getpid()

        def nightly():
            return report(due.get().date())

        ended = Queue()
        defaults = {"misfire_grace_time": None}
        scheduler = BackgroundScheduler(executors={"default": DueExecutor(4)}, job_defaults=defaults, timezone="UTC")
        scheduler.add_listener(ended.put, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        say("ready")
        wait()
        scheduler.start()
        for number in range(10):
            scheduler.add_job(nightly, "date", run_date=DUE + datetime.timedelta(days=number))
        ends = [ended.get(timeout=60) for _ in range(10)]
        for end in sorted(ends, key=lambda end: end.scheduled_run_time):
            say(end.scheduled_run_time.date(), end.retval)
        scheduler.shutdown()
        registry.close()
    """
    with Script(source, path) as one, Script(source, path) as other:
        for script in (one, other):
            script.expect("ready")
        for script in (one, other):
            script.go()
        assert [one.line() for _ in range(10)] == [other.line() for _ in range(10)]
        assert (one.end(), other.end()) == (0, 0)
    days = path.with_name(path.name + ".witness").read_text("utf-8").split()
    assert sorted(days) == [str((DUE + timedelta(days=number)).date()) for number in range(10)]


def test_a_coroutine_runs_once(registry: Registry) -> None:
    """Under the asyncio scheduler a decorated coroutine function is a coroutine function, and is awaited."""
    entered = []

    @AsyncRegistry.of(registry).idempotent("report:{day}", wait=PATIENCE_S)
    async def report(day: str) -> str:
        entered.append(day)
        return f"the report of {day}"

    async def main() -> list[Any]:
        ended: asyncio.Queue[Any] = asyncio.Queue()
        scheduler = AsyncIOScheduler(job_defaults={"misfire_grace_time": None}, timezone=UTC)
        scheduler.add_listener(ended.put_nowait, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        scheduler.start()
        for _ in range(2):
            scheduler.add_job(report, "date", run_date=DUE, args=["2020-11-23"])
        async with asyncio.timeout(PATIENCE_S):
            ends = [(await ended.get()).retval for _ in range(2)]
        scheduler.shutdown()
        return ends

    assert asyncio.run(main()) == ["the report of 2020-11-23"] * 2
    assert entered == ["2020-11-23"]


def test_two_schedulers_that_look_run_each_slot_once(path: Path) -> None:
    """Both call `run_due` by an interval: the first look begins the schedule, and its slot is run by one of them."""
    clock = ManualClock()
    seen: list[datetime] = []
    schedules = Schedule(), Schedule()
    registries = [Registry(path, clock=clock) for _ in schedules]
    for schedule, registry in zip(schedules, registries, strict=True):
        registry.scheduled("report", cron="0 3 * * *")(seen.append)
        schedule.scheduler.add_job(registry.run_due, "interval", minutes=1, id="due")
        schedule.scheduler.start()

    def look() -> list[Any]:
        for schedule in schedules:
            schedule.scheduler.modify_job("due", next_run_time=datetime.now(UTC), misfire_grace_time=None)
        events = [schedule.events.get(timeout=PATIENCE_S) for schedule in schedules]
        assert not any(event.exception for event in events)
        return [run.task_id for event in events for run in event.retval]

    try:
        assert look() == []
        clock.advance(timedelta(days=1))
        (task_id,) = look()
        assert look() == []
        assert [task.task_id for task in registries[0].tasks()] == [task_id]
        assert [f"report@{slot:%FT%TZ}" for slot in seen] == [task_id]
    finally:
        for schedule, registry in zip(schedules, registries, strict=True):
            schedule.scheduler.shutdown()
            registry.close()
