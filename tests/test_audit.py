"""The audit: what there should be, against what there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import Registry, ScheduleError
from idemreg.audit import STATES
from idemreg.clockcheck.verdict import Permit
from idemreg.planning import MOST_ROWS
from idemreg.slots import Reason
from idemreg.testing import ManualClock
from tests.support.processes import Script
from tests.support.raw import connect, reseal
from tests.test_scheduled import DAY, HOUR, SCHEDULER, Job

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


def why(registry: Registry) -> list[str]:
    """The state of each slot that is a gap or a double, and what is wrong."""
    return [f"{one.state}: {one.reason}" for one in registry.audit("job") if not one.is_sound]


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
    clock.advance(120)
    assert found(registry) == ["T04: run", "T05: pending"]
    clock.advance(600)
    assert why(registry) == ["late: its window has closed, and nobody has looked since"]
    job.due()
    assert found(registry) == ["T04: run", "T05: skipped window_closed"]


def test_a_slot_whose_owner_died_is_late(registry: Registry, clock: ManualClock, path: Path) -> None:
    """Killed in its job, and nobody looks: its row says running for ever. Whoever lives may take his time."""
    job = Job(registry, coalesce="all")
    with Script(SCHEDULER, path, HOUR, "all", "hold") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 4")
        clock.advance(2 * HOUR - 1)
        assert found(registry) == ["T04: running"]
        script.kill()
    assert why(registry) == ["late: its owner is dead, and nobody has looked since"]
    job.due()
    assert found(registry) == ["T04: unknown"]
    assert is_clean(registry)


def test_a_slot_that_was_claimed_just_now_is_not_late_yet(registry: Registry, clock: ManualClock, path: Path) -> None:
    """However old it is: whoever looks each minute has two minutes for it. A clock set back makes no row young."""
    Job(registry)
    with Script(SCHEDULER, path, 2 * HOUR, "earliest", "hold") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 4")
        script.kill()
    clock.advance(2 * HOUR + 120)
    assert found(registry)[0] == "T04: running"
    clock.advance(1)
    assert found(registry)[0] == "T04: late"
    clock.set(wall_us=clock.wall_us() - HOUR * 1_000_000)
    assert found(registry) == ["T04: late"]


PLANNER = """
    from idemreg import Registry, faults
    from idemreg.testing import ManualClock
    clock = ManualClock()
    clock.advance(int(sys.argv[2]))
    registry = Registry(sys.argv[1], durability="normal", clock=clock)
    registry.scheduled("job", cron="0 * * * *", coalesce="all")(lambda: None)
    faults.arm("slots.committed", faults.kill)
    registry.run_due()
"""


def test_a_slot_that_nobody_has_started_is_late(registry: Registry, clock: ManualClock, path: Path) -> None:
    """Killed behind its row, before its claim."""
    job = Job(registry, coalesce="all")
    with Script(PLANNER, path, HOUR) as script:
        assert script.end() == -9
    clock.advance(HOUR + 120)
    assert found(registry) == ["T04: pending"]
    clock.advance(1)
    assert why(registry) == ["late: nobody has started it since"]
    registry.pause("job")
    assert found(registry) == ["T04: pending paused"]
    assert is_clean(registry)
    registry.resume("job")
    job.due()
    assert found(registry) == ["T04: run"]


def test_what_waits_behind_a_slot_at_work_is_not_late(registry: Registry, clock: ManualClock, path: Path) -> None:
    """As long as that one's owner lives, or nobody can tell, as in a copy of the file; nor in the moment behind it."""
    job = Job(registry, coalesce="all", misfire_grace=HOUR)
    states: list[list[str]] = []

    def body(_slot: datetime) -> None:
        clock.advance(HOUR)
        states.append(found(registry))
        registry.backup(path.parent / "copy.db")
        with Registry(path.parent / "copy.db", clock=clock) as copy:
            states.append(found(copy))
        raise KeyboardInterrupt

    job.body = body
    clock.advance(2 * HOUR)
    with pytest.raises(KeyboardInterrupt):
        job.due()
    assert states == [["T04: running", "T05: pending", "T06: pending"]] * 2
    assert found(registry)[:2] == ["T04: unknown", "T05: pending"]
    clock.advance(121)
    assert found(registry)[:2] == ["T04: unknown", "T05: late"]


def test_a_slot_whose_lease_is_long_over_is_late(registry: Registry, clock: ManualClock) -> None:
    """Its owner may live, but holds it no more; whoever looks each minute has two minutes to decide about it."""
    job = Job(registry, coalesce="all", lease=60)
    states: list[list[str]] = []

    def hangs(_slot: datetime) -> None:
        clock.advance(60 + 120)
        states.append(found(registry))
        clock.advance(1)
        states.append(found(registry))
        assert why(registry)[0] == "late: its lease is over, and nobody has looked since"

    job.body = hangs
    clock.advance(2 * HOUR)
    registry.run_slot("job@2026-11-23T04:00:00Z")
    assert states == [["T04: running", "T05: late"], ["T04: late", "T05: late"]]


def test_while_a_schedule_is_held_its_slots_are_accounted_for(
    registry: Registry, clock: ManualClock, path: Path
) -> None:
    """Paused by an operator it may be given up, a dead slot and all; a clock in doubt is something to be told."""
    Job(registry, coalesce="all")
    with Script(SCHEDULER, path, 2 * HOUR, "all", "hold") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 4")
        script.kill()
    clock.advance(2 * HOUR + 121)
    held = Permit(scheduling=False, catch_up=False)
    registry.may_schedule = lambda: held  # type: ignore[method-assign]
    registry.run_due()
    assert why(registry) == ["late: the clock is not trusted"] * 2
    registry.pause("job")
    assert is_clean(registry)
    told = [(one.state, one.reason) for one in registry.audit("job")]
    assert told == [("running", "its owner is dead, and the schedule is paused"), ("pending", "paused")]


def test_a_slot_that_ends_while_the_audit_reads_is_not_late(registry: Registry, clock: ManualClock, path: Path) -> None:
    """Its row was read as running, and then its process has ended it and itself: nobody is dead."""
    job = Job(registry)
    clock.advance(HOUR)
    job.due()
    with Script(SCHEDULER, path, 2 * HOUR, "all", "hold") as script:
        script.expect("ready")
        script.go("look")
        script.expect("ran 5")
        clock.advance(2 * HOUR - 1)
        audited = registry.audit("job")
        assert next(audited).state == "run"
        script.go("end")
        script.expect("did 1")
        script.go("end")
        assert script.end() == 0
    assert [(one.state, one.reason) for one in audited] == [("run", None)]


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


def test_an_alarm_of_the_clock_is_no_slot(registry: Registry, clock: ManualClock) -> None:
    """A schedule may be named clock, as the tasks are that tell of a clock in doubt; a slot of it may be double."""
    job = Job(registry, "clock")
    clock.advance(HOUR)
    job.due()
    clock.set(wall_us=clock.wall_us() + HOUR * 1_000_000)
    job.due()
    registry.confirm_clock()
    job.due()
    registry.run("clock@2026-11-23T04:30:00Z", lambda: None, name="clock")
    assert len(list(registry.tasks(prefix="clock@"))) == 4
    assert [one.state for one in registry.audit("clock")] == ["run", "double", "run"]


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


def test_what_lies_between_two_versions_is_missing(registry: Registry, clock: ManualClock, path: Path) -> None:
    """Where each version ends the next begins. Had one begun later, what came due in between would be nobody's."""
    job = Job(registry, coalesce="all")
    clock.advance(HOUR)
    job.due()
    job.becomes("30 * * * *", coalesce="all")
    clock.advance(3 * HOUR)
    job.due()
    tamper(path, "UPDATE idempotent_schedule SET after_s = after_s + 7200 WHERE version = 2")
    tamper(path, "DELETE FROM idempotent_log WHERE task_id < 'job@2026-11-23T06:30'")
    assert [(one.task_id[14:19], one.state, one.reason, one.version) for one in registry.audit("job")] == [
        ("T04:0", "missing", "its row was removed", 1),
        ("T05:0", "missing", "no version of the schedule has it", 1),
        ("T06:0", "missing", "no version of the schedule has it", 1),
        ("T06:3", "run", None, 2),
    ]
    assert [one.task_id[14:19] for one in registry.audit("job", since=BEGAN + timedelta(hours=2))] == ["T06:0", "T06:3"]
    tamper(path, "DELETE FROM idempotent_schedule WHERE version = 2")
    assert found(registry)[-2:] == ["T06: double", "T07: missing"]


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
