"""The audit: what there should be, against what there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Registry, ScheduleError
from idemreg.audit import STATES
from idemreg.planning import MOST_ROWS
from idemreg.slots import Reason
from idemreg.testing import ManualClock
from tests.support.raw import connect, reseal
from tests.test_scheduled import DAY, HOUR, Job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BEGAN = datetime(2026, 11, 23, 3, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(open_registry: Callable[..., Registry], clock: ManualClock) -> Registry:
    return open_registry(clock=clock)


def found(registry: Registry, **options: Any) -> list[str]:
    """The hour of each slot, its state, and why."""
    return [
        f"{one.task_id[14:18]} {one.state}" + (f" {one.reason}" if one.reason in [*Reason, "holiday"] else "")
        for one in registry.audit("job", **options)
    ]


def is_clean(registry: Registry) -> bool:
    return all(one.is_sound for one in registry.audit("job"))


def test_a_time_without_any_slot_is_refused_at_once(registry: Registry, clock: ManualClock) -> None:
    """A slip in a date would else be clean for ever. Up to this very second is no slip, and as far as until is."""
    Job(registry, cron="0 * * * *")
    registry.run_due()
    clock.advance(2 * HOUR)
    now = datetime.fromtimestamp(clock.wall_us() / 1_000_000, UTC)
    for since, until in ((now, BEGAN), (BEGAN, BEGAN), (now + timedelta(seconds=1), None)):
        with pytest.raises(ScheduleError):
            registry.audit("job", since=since, until=until)
    assert list(registry.audit("job", since=now)) == []
    assert len(list(registry.audit("job", since=BEGAN, until=now + timedelta(days=9)))) == 2


def tamper(path: Path, statement: str) -> None:
    """As if idemreg had written it so: with seals."""
    connection = connect(path)
    connection.execute(statement)
    reseal(connection)
    connection.close()


COPY = """
INSERT INTO idempotent_log SELECT 'job@' || '2026-11-23T04:30:00Z', status, checksum, updated_at, boot_stamp, name,
 token, attempt, owner, policy, keep_ms, result, error, is_large, note, verdict, settled_by, evidence, claim_seal,
 state_seal FROM idempotent_log WHERE task_id = 'job@2026-11-23T04:00:00Z'
"""


def test_each_state_of_a_row(registry: Registry, clock: ManualClock) -> None:
    """Run, failed, unknown, skipped for a reason, pending and running are told as they are, and are no gap."""
    job = Job(registry, coalesce="all", unknown_on=TimeoutError, max_attempts=1)
    errors: dict[int, type[Exception]] = {5: ValueError, 6: TimeoutError}

    def body(slot: datetime) -> None:
        if slot.hour in errors:
            raise errors[slot.hour]

    job.body = body
    for _ in range(4):
        clock.advance(HOUR)
        job.due()
    clock.advance(3 * HOUR)
    registry.add("job@2026-11-23T08:00:00Z", name="job")
    registry.skip("job@2026-11-23T08:00:00Z", "holiday")
    job.body = lambda slot: running.extend(found(registry))
    running: list[str] = []
    job.due()
    assert running[:7] == [
        "T04: run", "T05: failed", "T06: unknown", "T07: run", "T08: skipped holiday", "T09: running", "T10: pending",
    ]  # fmt: skip
    assert is_clean(registry)


def test_a_quiet_schedule_is_clean(registry: Registry, clock: ManualClock) -> None:
    """What was skipped has its reason, and what is due right now is no gap before two minutes have passed."""
    job = Job(registry)
    clock.advance(3 * HOUR)
    job.due()
    clock.advance(HOUR + 120)
    assert found(registry) == ["T04: skipped coalesced", "T05: skipped coalesced", "T06: run", "T07: pending"]
    assert is_clean(registry)
    clock.advance(1)
    assert found(registry)[-1] == "T07: late"
    assert not is_clean(registry)


def test_a_pending_slot_whose_window_has_long_closed_is_late(registry: Registry, clock: ManualClock) -> None:
    """Whoever should look does not; the next look would skip it."""
    job = Job(registry, overlap="queue", misfire_grace=600)
    job.body = lambda slot: clock.advance(HOUR)
    clock.advance(HOUR)
    job.due()
    clock.advance(600 + 120)
    assert found(registry) == ["T04: run", "T05: pending"]
    clock.advance(1)
    assert found(registry) == ["T04: run", "T05: late"]
    job.due()
    assert found(registry) == ["T04: run", "T05: skipped window_closed"]


def test_a_planted_gap_is_found(registry: Registry, clock: ManualClock) -> None:
    """A row that somebody has removed: the slot is missing."""
    job = Job(registry, coalesce="all")
    clock.advance(3 * HOUR)
    job.due()
    registry.forget("job@2026-11-23T05:00:00Z")
    assert found(registry) == ["T04: run", "T05: missing", "T06: run"]
    assert not is_clean(registry)
    registry.run_slot("job@2026-11-23T05:00:00Z")
    assert is_clean(registry)


def test_a_planted_double_is_found(registry: Registry, clock: ManualClock, path: Path) -> None:
    """A row beside the slots, as a second copy of the schedule would leave it, with every seal right."""
    job = Job(registry, coalesce="all")
    clock.advance(2 * HOUR)
    job.due()
    tamper(path, COPY)
    assert found(registry) == ["T04: run", "T04: double", "T05: run"]
    double = list(registry.audit("job"))[1]
    assert (double.task_id, double.attempt, double.version) == ("job@2026-11-23T04:30:00Z", 1, None)
    tamper(path, COPY.replace("2026-11-23T04:30:00Z", "2026-11-23T04:00:00+00:00"))
    assert found(registry).count("T04: double") == 2


def test_a_row_that_never_ran_is_no_double(registry: Registry, clock: ManualClock) -> None:
    """Somebody has skipped an instant that is no slot."""
    Job(registry)
    registry.add("job@2026-11-23T03:30:00Z", name="job")
    registry.skip("job@2026-11-23T03:30:00Z", "holiday")
    clock.advance(HOUR)
    assert found(registry) == ["T04: pending"]


def test_every_version_is_reckoned_by_its_own_expression(registry: Registry, clock: ManualClock) -> None:
    """Over an edit the audit is clean, and each slot tells its version."""
    job = Job(registry)
    clock.advance(HOUR)
    job.due()
    clock.advance(1.5 * HOUR)
    job.becomes("*/30 * * * *", coalesce="all")
    clock.advance(HOUR)
    job.due()
    assert [(one.state, one.version) for one in registry.audit("job")] == [
        ("run", 1), ("skipped", 1), ("run", 2), ("run", 2),
    ]  # fmt: skip


def test_the_audit_may_be_cut(registry: Registry, clock: ManualClock) -> None:
    """After one instant, up to another; an instant needs its zone."""
    job = Job(registry, coalesce="all")
    clock.advance(5 * HOUR)
    job.due()
    hour = timedelta(hours=1)
    assert found(registry, since=BEGAN + hour, until=BEGAN + 3 * hour) == ["T05: run", "T06: run"]
    assert found(registry, until=BEGAN + 100 * hour) == found(registry)
    with pytest.raises(ValueError, match="zone"):
        found(registry, since=BEGAN.replace(tzinfo=None))


def test_what_has_no_rows_is_told_by_its_version(registry: Registry, clock: ManualClock) -> None:
    """After a long outage the slots that have no row each are skipped as a whole: the audit knows each of them."""
    job = Job(registry, cron="* * * * *")
    clock.advance(100 * DAY)
    job.due()
    states = [one.state for one in registry.audit("job")]
    assert (len(states), states.count("skipped"), states[-1]) == (100 * 1_440, 100 * 1_440 - 1, "run")
    assert len(states) > MOST_ROWS


def test_a_paused_schedule_is_clean(registry: Registry, clock: ManualClock) -> None:
    """What comes due meanwhile is skipped as paused, whoever looks or nobody; it goes on with the next slot."""
    job = Job(registry)
    registry.pause("job")
    clock.advance(HOUR)
    assert job.due() == []
    clock.advance(HOUR)
    assert found(registry) == ["T04: skipped paused", "T05: pending paused"]
    registry.resume("job")
    registry.resume("job")
    clock.advance(HOUR)
    job.due()
    assert found(registry) == ["T04: skipped paused", "T05: skipped paused", "T06: run"]
    assert is_clean(registry)


def test_a_schedule_that_nobody_knows(registry: Registry) -> None:
    """It is named, and nothing comes into being."""
    for ask in (registry.audit, registry.pause, registry.resume):
        with pytest.raises(ScheduleError):
            ask("job")


def test_the_nights_are_audited_as_they_were_run(registry: Registry, clock: ManualClock) -> None:
    """Over the nights of a spring, looked at each day: clean, nothing twice, and a fixed time once a day."""
    zones = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Shanghai")
    jobs = [
        Job(registry, f"{cron[0]} {zone}", cron, tz=zone) for zone in zones for cron in ("30 2 * * *", "*/30 * * * *")
    ]
    clock.advance(108 * DAY)
    for _ in range(30):  # from 11 March on
        clock.advance(DAY)
        registry.run_due()
    for job in jobs:
        slots = list(registry.audit(job.name))
        assert {one.state for one in slots} <= {"run", "skipped"}
        assert len(job.ran) == len(set(job.ran)) == 30
        assert job.name[0] == "*" or len(slots) == 138


def test_the_states_are_those_of_the_documents() -> None:
    """The list that people read is the list that there is."""
    assert len(set(STATES)) == 10
