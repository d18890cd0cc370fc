"""APScheduler 3: the same slot fired by two schedulers, misfires that are coalesced, a job that fails."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
from apscheduler.schedulers.background import BackgroundScheduler

from idemreg import Status
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg import Registry


@pytest.fixture
def schedulers() -> Iterator[list[Any]]:
    """Two schedulers with stores of their own, as on two nodes that share a disk."""
    both = [BackgroundScheduler(timezone="UTC", job_defaults={"misfire_grace_time": None}) for _ in range(2)]
    for one in both:
        one.start()
    yield both
    for one in both:
        one.shutdown()


def ended(schedulers: list[Any], runs: int) -> Callable[[], list[Any]]:
    """Waits for so many runs, and gives their exceptions (None where there is none)."""
    seen: list[Any] = []
    enough = threading.Event()
    lock = threading.Lock()

    def hear(event: Any) -> None:
        with lock:
            seen.append(event.exception)
            if len(seen) >= runs:
                enough.set()

    for one in schedulers:
        one.add_listener(hear, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)

    def wait() -> list[Any]:
        assert enough.wait(PATIENCE_S)
        return seen

    return wait


def test_two_schedulers_fire_a_slot_once(schedulers: list[Any], open_registry: Callable[..., Registry]) -> None:
    """Each has a registry of its own on the one file; the slot's name decides, and it has one effect."""
    ran: list[str] = []
    wait = ended(schedulers, 2)
    for one in schedulers:
        registry = open_registry()

        @registry.idempotent("coupons:{day}", name="coupons", wait=PATIENCE_S)
        def coupons(day: str) -> None:
            ran.append(day)

        one.add_job(coupons, "date", args=["2026-11-23"])
    assert wait() == [None, None]
    assert ran == ["2026-11-23"]


def test_a_scheduler_that_comes_again_replays_what_it_missed(schedulers: list[Any], registry: Registry) -> None:
    """A slot that lies in the past is fired at once (no grace), by name; the one that ran before runs no more."""
    ran: list[str] = []

    @registry.idempotent("report:{day}")
    def report(day: str) -> None:
        ran.append(day)

    report("2026-11-22")
    wait = ended(schedulers, 2)
    past = datetime.now(UTC) - timedelta(days=1)
    for day in ("2026-11-22", "2026-11-23"):
        schedulers[0].add_job(report, "date", run_date=past, args=[day])
    assert wait() == [None, None]
    assert ran == ["2026-11-22", "2026-11-23"]


def test_a_failure_runs_again_when_it_is_fired_again(schedulers: list[Any], registry: Registry) -> None:
    """APScheduler has no retry; the next firing of the same slot is the next attempt, until it succeeds."""
    attempts: list[int] = []

    @registry.idempotent("flaky:{day}")
    def flaky(day: str) -> None:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ConnectionError(day)

    wait = ended(schedulers, 4)
    schedulers[0].add_job(
        flaky, "interval", seconds=0.02, args=["2026-11-23"], max_instances=1, next_run_time=datetime.now(UTC)
    )
    errors = wait()
    assert [type(error) for error in errors[:4]] == [ConnectionError, ConnectionError, type(None), type(None)]
    assert attempts == [1, 2, 3]
    task = registry.get("flaky:2026-11-23")
    assert task is not None
    assert (task.status, task.attempt) == (Status.SUCCEEDED, 3)
