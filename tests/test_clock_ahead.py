"""Slots that a clock skipped before their time had come: they come again once it is right, and none runs twice."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idemreg import ClockError, Registry, ScheduleError, Status, faults
from idemreg.cli.schedule import _next
from idemreg.clockcheck.readings import KERNEL, Hardware, Reading
from idemreg.clockcheck.verdict import Permit
from idemreg.ledger import State
from idemreg.planning import MOST_ROWS
from idemreg.scheduled import OverlapError
from idemreg.slots import REMOVED
from idemreg.sqlite import purging
from idemreg.testing import ManualClock
from tests.support.forked import in_child
from tests.support.processes import PATIENCE_S
from tests.test_scheduled import BEGAN, DAY, HOUR, HOURLY, Job, ledger, ran_by_two

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECOND_US = 1_000_000
MINUTE = 60
YEARS = 10 * 365 * DAY


class World(ManualClock):
    """A clock of which at first nobody can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.deviation_us: int | None = None  # as the kernel says
        self.boots = 0
        self.sources = (lambda _: Reading(KERNEL, self.deviation_us, 100),)

    def jump(self, by_s: float) -> None:
        self.set(wall_us=self.wall_us() + round(by_s * SECOND_US))

    def boot(self, ahead_s: float) -> None:
        """The machine starts anew, and its clock is ahead: no source contradicts it."""
        self.boots += 1
        self.set(boot_id=f"boot {self.boots}", boot_ms=9_000)
        self.jump(ahead_s)

    def step_back(self, by_s: float) -> None:
        """As a time daemon does, which answers for the clock from then on."""
        self.advance(MINUTE)
        self.jump(-by_s)
        self.deviation_us = 0


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def opened(open_registry: Callable[..., Registry], world: World) -> Callable[[], Registry]:
    """A registry of a process that starts now."""
    return lambda: open_registry(clock=world)


def passes(job: Job, world: World, count: int, step: int = HOUR) -> None:
    """Somebody looks at the end of each step."""
    for _ in range(count):
        world.advance(step)
        job.due()


def gaps(job: Job) -> list[Any]:
    return [one for one in job.registry.audit(job.name) if not one.is_sound]


def trusting(registry: Registry) -> Registry:
    """Whatever its clock does, somebody has confirmed it."""
    registry.may_schedule = Permit  # type: ignore[method-assign]
    registry._doubt_of_clock = lambda: None  # type: ignore[method-assign]
    return registry


# --- histories --------------------------------------------------------------------------------------------------


def test_a_clock_eight_hours_ahead_behind_a_reboot_costs_no_slot(opened: Callable[[], Registry], world: World) -> None:
    """A hardware clock in local time, until the daemon steps it back: each hour runs, and the early one not again."""
    world.deviation_us = 0
    passes(Job(opened()), world, 3)
    world.deviation_us = None
    world.boot(8 * HOUR)
    job = Job(opened())
    assert job.ran == ["11"]
    assert job.rows()["10"] == "coalesced"
    world.step_back(8 * HOUR)
    assert job.due() == []
    assert job.rows() == {"1": "succeeded", "2": "succeeded", "3": "succeeded", "11": "succeeded"}
    passes(job, world, 9)
    assert job.ran == ["11", "4", "5", "6", "7", "8", "9", "10", "12"]
    assert (gaps(job), set(job.rows().values())) == ([], {"succeeded"})


def test_a_clock_ten_years_ahead_costs_no_slot_once_it_is_confirmed(
    opened: Callable[[], Registry], world: World
) -> None:
    """No source ever speaks: the clock is behind what was stored, so it is in doubt until an operator confirms it."""
    passes(Job(opened(), cron="0 3 * * *"), world, 1, DAY)
    world.boot(YEARS)
    job = Job(opened(), cron="0 3 * * *")
    assert job.ran == [f"{YEARS // HOUR + 24}"]
    world.jump(MINUTE - YEARS)
    assert job.due() == []
    assert job.registry.check_clock().is_suspended
    assert len(job.rows()) == YEARS // DAY + 1
    job.registry.confirm_clock()
    job.due()
    passes(job, world, 3, DAY)
    assert job.ran[1:] == ["48", "72", "96"]
    assert gaps(job) == []
    assert [one.state for one in job.registry.audit("job")] == ["run"] * 4


def test_another_expression_begins_now(opened: Callable[[], Registry], world: World) -> None:
    """Not where the one before had come by the clock that was ahead."""
    Job(opened(), cron="0 3 * * *")
    world.boot(YEARS)
    Job(opened(), cron="0 3 * * *")
    world.step_back(YEARS)
    job = Job(opened())
    passes(job, world, 2)
    assert job.ran == ["1", "2"]
    assert gaps(job) == []


def test_more_slots_than_get_a_row_each_come_again_as_well(opened: Callable[[], Registry], world: World) -> None:
    """Those of ten years of minutes were skipped by a version of their own, which is as good as none then."""
    passes(Job(opened(), cron="* * * * *"), world, 2, MINUTE)
    world.boot(YEARS)
    job = Job(opened(), cron="* * * * *")
    assert [one.skips for one in ledger(job.registry).schedules("job")] == [None, "coalesced", None]
    assert sum(job.registry.count().values()) == MOST_ROWS + 2
    world.step_back(YEARS)
    assert job.due() == []
    assert sum(job.registry.count().values()) == 3
    passes(job, world, 3, MINUTE)
    assert len(job.ran) == 4
    found = [one.state for one in job.registry.audit("job")]
    assert found == ["run", "run", "skipped", "run", "run", "run"]  # one had come before anybody looked
    now_s = world.wall_us() // SECOND_US
    assert max(one.watermark_s for one in ledger(job.registry).schedules("job")) == now_s


def test_a_schedule_that_began_by_such_a_clock_has_its_slots_from_now_on(
    opened: Callable[[], Registry], world: World
) -> None:
    """The first boot of a device without a battery: none of its slots was ever skipped, nor would one ever come."""
    world.boot(YEARS)
    job = Job(opened())
    world.step_back(YEARS)
    job.due()
    passes(job, world, 2)
    assert (job.ran, gaps(job)) == (["1", "2"], [])


def test_versions_that_began_and_ended_ahead_are_as_if_they_had_been_now(
    opened: Callable[[], Registry], world: World
) -> None:
    """Edited twice while the clock was ahead; what the older ones ran early is no double."""
    passes(Job(opened()), world, 1)
    world.boot(YEARS)
    passes(Job(opened(), cron="30 * * * *"), world, 2)
    job = Job(opened(), cron="15 * * * *")
    world.step_back(YEARS)
    job.due()
    passes(job, world, 2)
    assert job.ran == ["3.25", "4.25"]
    versions = ledger(job.registry).schedules("job")
    assert [(one.cron, one.after_s == one.until_s) for one in versions] == [
        (HOURLY, False),
        ("30 * * * *", True),
        ("15 * * * *", False),
    ]
    assert [one.after_s for one in versions[1:]] == [one.until_s for one in versions[:-1]]
    assert gaps(job) == []
    world.boot(YEARS)
    early = [(one.task_id, one.state, one.version) for one in job.registry.audit("job") if one.version == 2]
    assert early == [("job@2036-11-20T04:30:00Z", "run", 2), ("job@2036-11-20T05:30:00Z", "run", 2)]


def test_what_waited_for_a_version_that_is_over_is_gone(
    opened: Callable[[], Registry], world: World, path: Path
) -> None:
    """Whoever began the next one died before it could skip it: no slot of the present one, it never runs."""
    registry = trusting(opened())
    Job(registry, overlap="queue", coalesce="all").body = lambda _: world.advance(HOUR)
    world.advance(HOUR)
    registry.run_due()

    def dies() -> str:
        faults.arm("slots.committed", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        Job(registry, cron="30 * * * *")
        return ""

    assert "KeyboardInterrupt" in in_child(dies)
    world.jump(-1.5 * HOUR)
    job = Job(registry, cron="30 * * * *")
    assert job.rows() == {"1": "succeeded"}
    passes(job, world, 2)
    assert job.rows() == {"1": "succeeded", "1.5": "succeeded", "2.5": "succeeded"}
    assert gaps(job) == []


def test_a_clock_that_goes_out_and_back_again_and_again(opened: Callable[[], Registry], world: World) -> None:
    """Farther and less far, over the same slots: each runs once."""
    registry = trusting(opened())
    job = Job(registry)
    for ahead in (8, 3, 30, 1):
        world.jump(ahead * HOUR)
        job.due()
        world.jump(-ahead * HOUR)
        job.due()
        passes(job, world, 1)
    passes(job, world, 40)
    assert sorted(job.ran, key=int) == [str(hour) for hour in range(1, 45)]
    assert (gaps(job), set(job.rows().values())) == ([], {"succeeded"})


# --- what keeps its row -----------------------------------------------------------------------------------------


def early(job: Job, world: World, hours: int = 6) -> None:
    """A look by a clock that is ahead, and right again."""
    world.jump(hours * HOUR)
    job.due()
    world.jump(-hours * HOUR)


def ended_early(job: Job, world: World) -> None:
    """By a clock that is ahead one is skipped by the schedule, one by a person, one cancelled, and two are run."""
    job.registry.may_schedule = lambda: Permit(catch_up=False)  # type: ignore[method-assign]
    world.jump(4 * HOUR)
    job.due()
    trusting(job.registry)
    job.body = lambda _: None
    job.registry.skip("job@2026-11-23T05:00:00Z", "holiday")
    job.registry.cancel("job@2026-11-23T06:00:00Z")
    world.jump(HOUR)
    job.due()
    world.jump(-5 * HOUR)
    assert (job.due(), job.ran) == ([], ["4", "5"])


def fails(_slot: datetime) -> object:
    raise ZeroDivisionError


def is_unsure(_slot: datetime) -> object:
    raise TimeoutError


@pytest.mark.parametrize(
    ("body", "word"), [(None, "succeeded"), (fails, "failed"), (is_unsure, "unknown")], ids=["ran", "failed", "unknown"]
)
def test_what_was_settled_early_keeps_its_row(
    opened: Callable[[], Registry], world: World, body: Any, word: str
) -> None:
    """Whatever became of it, by whom; only what the schedule has skipped comes again."""
    job = Job(trusting(opened()), max_attempts=1, unknown_on=TimeoutError)
    job.body = body or job.body
    ended_early(job, world)
    rows = {"2": "holiday", "3": "cancelled", "4": word, "5": "succeeded"}
    assert job.rows() == rows
    passes(job, world, 6)
    assert job.ran == ["4", "5", "1", "6"]
    assert job.rows() == {"1": "succeeded", **rows, "6": "succeeded"}
    assert gaps(job) == []


@pytest.mark.parametrize(
    ("coalesce", "after_5", "after_6"),
    [("latest", [], ["6"]), ("earliest", ["1"], ["1"]), ("all", ["1"], ["1", "6"])],
)
@pytest.mark.parametrize("hours", [5, 6])
def test_what_has_run_early_waits_for_nothing(
    opened: Callable[[], Registry], world: World, coalesce: str, after_5: list[str], after_6: list[str], hours: int
) -> None:
    """So it is none of those of which one stands for them all; under latest none runs that is older than it."""
    job = Job(trusting(opened()))
    ended_early(job, world)
    job._schedule(HOURLY, {"coalesce": coalesce})
    world.advance(hours * HOUR)
    job.due()
    assert job.ran[2:] == (after_5 if hours == 5 else after_6)
    assert job.due() == []


def test_an_early_slot_that_failed_is_tried_again_when_its_time_comes(
    opened: Callable[[], Registry], world: World
) -> None:
    """And no sooner; one of an expression that is over never."""
    job = Job(trusting(opened()))
    job.body = fails
    early(job, world)
    job.body = lambda _: None
    job.due()
    passes(job, world, 3)
    assert job.ran == ["6", "1", "2", "3"]
    passes(job, world, 3)
    assert (job.ran[4:], gaps(job)) == (["4", "5", "6"], [])
    job.body = fails
    early(job, world)
    job.body = lambda _: None
    job.becomes("30 * * * *")
    passes(job, world, 7)
    assert job.ran[-7:] == ["12", "6.5", "7.5", "8.5", "9.5", "10.5", "12.5"]
    assert (job.rows()["12"], job.rows()["11.5"], gaps(job)) == ("failed", "coalesced", [])  # older than one that began


def test_a_slot_that_waits_early_waits_for_its_instant(opened: Callable[[], Registry], world: World) -> None:
    """It has its row, and is not made again; the others that were skipped are."""
    job = Job(trusting(opened()), overlap="queue", misfire_grace=30 * MINUTE)
    job.body = lambda _: world.advance(HOUR)
    world.jump(5 * HOUR)
    job.due()
    job.body = lambda _: None
    assert job.rows() == {**dict.fromkeys("1234", "too_late"), "5": "succeeded", "6": "pending"}
    world.jump(-6 * HOUR)
    job.due()
    assert job.rows() == {"5": "succeeded", "6": "pending"}
    passes(job, world, 7)
    assert (job.ran, gaps(job)) == (["5", "1", "2", "3", "4", "6", "7"], [])


def test_a_paused_schedule_is_as_far_as_now_as_well(opened: Callable[[], Registry], world: World) -> None:
    """What comes due is skipped as paused when its time comes; behind `resume` the next slot runs."""
    job = Job(trusting(opened()))
    job.registry.pause("job")
    early(job, world)
    job.due()
    passes(job, world, 2)
    assert job.rows() == {"1": "paused", "2": "paused"}
    early(job, world)
    job.registry.resume("job")
    job.due()
    passes(job, world, 1)
    assert job.rows() == {"1": "paused", "2": "paused", "3": "succeeded"}
    assert gaps(job) == []


def test_a_clock_that_serves_takes_nothing_back(opened: Callable[[], Registry], world: World) -> None:
    """Nor one in doubt: only one that is trusted."""
    job = Job(trusting(opened()))
    early(job, world)
    before, schedule = job.rows(), job.schedule()
    for permit in (Permit(catch_up=False, correction_us=-1), Permit(scheduling=False, catch_up=False)):
        job.registry.may_schedule = functools.partial(Permit._replace, permit)  # type: ignore[method-assign]
        job.due()
        assert (job.rows(), job.schedule()._replace(state=State.GOING)) == (before, schedule)
    trusting(job.registry)
    job.due()
    assert job.rows() == {"6": "succeeded"}


def test_small_steps_back_repeat_nothing(opened: Callable[[], Registry], world: World) -> None:
    """What the clock comes past again has run; that it ran early is told once, however often it does."""
    job = Job(trusting(opened()))
    passes(job, world, 2)
    for grace in (None, MINUTE, None):
        job._schedule(HOURLY, {"misfire_grace": grace})
        world.jump(-0.02)
        assert job.due() == []
        world.advance(0.02)
        passes(job, world, 1)
    assert (job.ran, gaps(job)) == (["1", "2", "3", "4", "5"], [])
    assert len(ledger(job.registry).schedules("job")) == 2


def test_what_waits_early_is_older_than_none_that_is_to_come(opened: Callable[[], Registry], world: World) -> None:
    """Whatever else was ahead: under latest as well, each runs at its time, though a later one ran early."""
    job = Job(trusting(opened()))
    waits_early(job, world)
    passes(job, world, 7)
    assert (job.ran, gaps(job)) == (["6", "1", "2", "3", "4", "5", "7"], [])


def test_the_token_of_a_slot_that_was_put_back_is_not_given_again(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was claimed, found another at work, and was skipped then: its row goes, and the floor is above its token."""
    job = Job(trusting(opened()), overlap="queue")
    monkeypatch.setattr("idemreg.scheduled.check_alone", raises_overlap)
    world.jump(HOUR)
    job.due()
    monkeypatch.undo()
    (first,) = job.registry.tasks(prefix="job@")
    assert (first.status, first.attempt) == (Status.PENDING, 0)
    world.jump(HOUR)
    job.due()
    world.jump(-2 * HOUR)
    job.due()
    assert job.rows() == {"2": "succeeded"}
    passes(job, world, 1)
    (run,) = (task for task in job.registry.tasks(prefix="job@") if task.task_id.endswith("T04:00:00Z"))
    assert run.token > first.token > 0


def raises_overlap(*_words: object) -> None:
    raise OverlapError


# --- rows that purge has taken ----------------------------------------------------------------------------------


def settled_by_hand(job: Job, world: World) -> None:
    """By a clock that is ahead: one runs, one is skipped by a person, one cancelled, and one waits."""
    job.registry.may_schedule = lambda: Permit(catch_up=False)  # type: ignore[method-assign]
    world.jump(4 * HOUR)
    job.due()
    trusting(job.registry)
    job.registry.skip("job@2026-11-23T05:00:00Z", "holiday")
    job.registry.cancel("job@2026-11-23T06:00:00Z")


def test_what_ran_early_and_was_purged_runs_no_more(opened: Callable[[], Registry], world: World) -> None:
    """Nobody can tell any more whether it ran: each such slot has a row again, and one of the others comes."""
    job = Job(trusting(opened()), keep_for=30 * MINUTE)
    world.jump(8 * HOUR)
    job.due()
    passes(job, world, 1)
    world.advance(45 * MINUTE)
    job.registry.purge()
    world.advance(75 * MINUTE)
    job.due()
    assert (job.ran, job.rows()) == (["8", "9", "11"], {"10": "coalesced", "11": "succeeded"})
    world.jump(-8 * HOUR)
    job.due()
    assert job.rows() == {**dict.fromkeys("456789", REMOVED), "11": "succeeded"}
    found, now_s = ledger(job.registry).schedules("job")[-1], world.wall_us() // SECOND_US
    assert _next(job.registry.store, found, now_s) == int((BEGAN + timedelta(hours=10)).timestamp())
    passes(job, world, 9)
    assert (job.ran[3:], job.rows()["9"]) == (["10", "12"], REMOVED)
    assert {one.reason for one in job.registry.audit("job") if one.state == "skipped"} == {REMOVED}


def test_where_all_that_is_ahead_was_purged_each_is_told(opened: Callable[[], Registry], world: World) -> None:
    """Each has run, which nobody can tell any more: the next that comes is behind them."""
    job = Job(trusting(opened()), coalesce="all", keep_for=30 * MINUTE)
    world.jump(6 * HOUR)
    job.due()
    world.advance(45 * MINUTE)
    assert job.registry.purge().removed == 6
    world.jump(-6 * HOUR)
    job.due()
    assert job.rows() == dict.fromkeys("123456", REMOVED)
    passes(job, world, 7)
    assert (job.ran[6:], gaps(job)) == (["7"], [])


def test_what_a_person_has_ended_early_and_was_purged_does_not_come(
    opened: Callable[[], Registry], world: World
) -> None:
    """Nor is it taken back when the clock goes out again."""
    job = Job(trusting(opened()), coalesce="all", keep_for=30 * MINUTE)
    settled_by_hand(job, world)
    world.advance(45 * MINUTE)
    assert job.registry.purge().removed == 3
    job.becomes("*/30 * * * *", coalesce="all", keep_for=30 * MINUTE)
    world.jump(-4 * HOUR)
    job.due()
    early(job, world)
    job.due()
    passes(job, world, 5)
    assert not {"2", "3"}.intersection(job.ran)
    assert job.ran.count("4") == 1


def test_purge_takes_no_slot_that_is_to_come(opened: Callable[[], Registry], world: World) -> None:
    """By its schedule, whatever the clock: it goes once that has come there. A task like it goes as ever."""
    registry = trusting(opened())
    job = Job(registry, keep_for=30 * MINUTE)
    early(job, world)
    job.due()
    for task_id in ("jobs@2026-11-24T09:00:00Z", "job@2026-11-23T99:00:00Z", "job@x"):
        registry.run(task_id, int, name="x", keep_for=MINUTE)
    passes(job, world, 5)
    world.advance(45 * MINUTE)
    world.jump(8 * HOUR)  # what ran early is dated there
    assert registry.purge(dry_run=True).total == 8
    assert registry.purge().removed == 8
    assert job.rows() == {"6": "succeeded"}
    assert registry.purge(older_than=0).removed == 0
    world.jump(-8 * HOUR)
    passes(job, world, 2)
    assert job.ran == ["6", "1", "2", "3", "4", "5", "7"]
    assert "6" in job.rows()
    world.advance(HOUR)
    world.jump(8 * HOUR)
    registry.purge()
    assert job.rows() == {}


def test_a_purge_that_looked_before_the_schedule_went_back_takes_none(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the row by the watermark of then; by now its slot is to come."""
    job = Job(trusting(opened()), keep_for=30 * MINUTE)
    world.jump(6 * HOUR)
    job.due()
    world.advance(45 * MINUTE)
    find = purging.find

    def late(*words: Any) -> purging.Found:
        found = find(*words)
        world.jump(-6 * HOUR)
        Job(trusting(opened())).due()
        return found

    monkeypatch.setattr(purging, "find", late)
    assert job.registry.purge().removed == 0
    assert job.rows() == {"6": "succeeded"}


@given(
    st.lists(st.tuples(st.sampled_from(["goes", "jumps", "purges"]), st.integers(-300, 600)), min_size=10, max_size=40),
    st.sampled_from(["all", "latest", "earliest"]),
)
@settings(max_examples=30)
def test_wherever_the_clock_goes_and_whatever_purge_takes_no_slot_runs_twice(
    steps: list[tuple[str, int]], coalesce: str
) -> None:
    """Somebody looks behind each step; minutes. What is gone is told."""
    world = World()
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry(f"{folder}/jobs.db", durability="normal", clock=world) as one,
    ):
        job = Job(trusting(one), cron="*/20 * * * *", coalesce=coalesce, keep_for=10 * MINUTE)
        for step, minutes in steps:
            if step == "purges":
                with contextlib.suppress(ClockError):
                    one.purge()
            elif step == "goes":
                world.advance(abs(minutes) * MINUTE)
            else:
                world.jump(minutes * MINUTE)
            job.due()
        assert max(Counter(job.ran).values(), default=0) <= 1
        assert all(found.state == "missing" for found in gaps(job))


# --- what waits early, and the schedule becomes another ---------------------------------------------------------


def waits_early(job: Job, world: World) -> None:
    """By a clock that served and was ahead, which starts the newest only."""
    job.registry.may_schedule = lambda: Permit(catch_up=False)  # type: ignore[method-assign]
    world.jump(6 * HOUR)
    job.due()
    trusting(job.registry)
    world.jump(-6 * HOUR)
    assert job.rows() == {**dict.fromkeys("12345", "pending"), "6": "succeeded"}


def test_what_waits_early_and_the_next_expression_has_runs_at_its_time(
    opened: Callable[[], Registry], world: World
) -> None:
    """Its instant is behind the beginning of that; what it has not never runs, and comes again with one that has it."""
    job = Job(trusting(opened()), coalesce="all")
    waits_early(job, world)
    job.becomes("0,30 */2 * * *", coalesce="all")
    assert {job.rows()[hour] for hour in "135"} == {"pending"}  # 04:00, 06:00 and 08:00
    job.due()
    assert job.rows() == {**dict.fromkeys("135", "pending"), "6": "succeeded"}
    job.becomes("*/30 * * * *", coalesce="all")
    passes(job, world, 14, 30 * MINUTE)
    assert job.ran == ["6", *(f"{half / 2:g}" for half in range(1, 15) if half != 12)]
    assert gaps(job) == []


def test_who_died_before_it_was_skipped_has_skipped_nothing(opened: Callable[[], Registry], world: World) -> None:
    """The next version began where the one before had come; what waits before that would never run."""
    job = Job(trusting(opened()), coalesce="all")
    waits_early(job, world)
    world.jump(6 * HOUR)

    def dies() -> str:
        faults.arm("slots.committed", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        Job(trusting(opened()), cron="0 */1 * * *", coalesce="all")
        return ""

    assert "KeyboardInterrupt" in in_child(dies)
    assert job.schedule().after_s == BEGAN.timestamp() + 6 * HOUR
    world.jump(-6 * HOUR)
    job = Job(trusting(opened()), cron="0 */1 * * *", coalesce="all")
    passes(job, world, 7)
    assert (job.ran, gaps(job)) == (["1", "2", "3", "4", "5", "7"], [])


def test_what_is_skipped_early_behind_the_look_by_the_right_clock_comes_as_well(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was stopped in its look, before it had settled what that skips."""
    job, other = (Job(trusting(opened()), overlap="queue") for _ in range(2))
    waits_early(job, world)
    settle = job.registry.store.settle
    world.jump(8 * HOUR)
    seen: list[Any] = []

    def late(*words: Any) -> Any:
        if not seen:
            world.jump(-8 * HOUR)
            other.due()
        settled = settle(*words)
        seen.append((job.rows()["1"], job.schedule().watermark_s))
        return settled

    monkeypatch.setattr(job.registry.store, "settle", late)
    job.due()
    assert seen[0] == ("coalesced", BEGAN.timestamp())
    assert job.rows() == {"6": "succeeded", "8": "succeeded"}
    passes(other, world, 8)
    assert (sorted(job.ran + other.ran), gaps(other)) == (list("12345678"), [])


# --- the audit of it --------------------------------------------------------------------------------------------


def test_what_an_older_process_runs_at_its_time_is_a_double(opened: Callable[[], Registry], world: World) -> None:
    """By hand, and its expression is over: that version had the slot, and ended before anybody could run it."""
    job, old = (Job(trusting(opened())) for _ in range(2))
    passes(job, world, 1)
    world.advance(MINUTE)
    job.becomes("30 3 * * *")
    world.advance(2 * HOUR)
    with pytest.raises(ScheduleError):
        old.registry.run_slot("job@2026-11-23T06:00:00Z")
    assert (old.ran, gaps(job)) == ([], [])
    old.registry.run("job@2026-11-23T06:00:00Z", int, name="job")  # as a task like any other nobody refuses it
    assert [(one.task_id, one.state) for one in gaps(job)] == [("job@2026-11-23T06:00:00Z", "double")]


def test_what_was_run_ahead_by_hand_is_no_double_of_the_next_expression(
    opened: Callable[[], Registry], world: World
) -> None:
    """It has run while the version counted that had it; what ran then at no slot of that is one."""
    job = Job(trusting(opened()))
    job.registry.run_slot("job@2026-11-23T06:00:00Z")
    job.registry.run("job@2026-11-23T05:15:00Z", int, name="x")
    world.advance(MINUTE)
    job.becomes("30 * * * *")
    passes(job, world, 4)
    assert [(one.slot, one.version) for one in job.registry.audit("job") if one.version == 1] == [
        (BEGAN + timedelta(hours=3), 1)
    ]
    assert [(one.task_id, one.state) for one in gaps(job)] == [("job@2026-11-23T05:15:00Z", "double")]


def test_how_far_slots_ran_early_is_told_once(opened: Callable[[], Registry], world: World) -> None:
    """However often the clock goes out: by one empty version. So what ran early is no double of another expression."""
    job = Job(trusting(opened()))
    for hours in (6, 4, 8):
        early(job, world, hours)
        job.due()
    versions = ledger(job.registry).schedules("job")
    began_s = int(BEGAN.timestamp())
    assert [(one.after_s, one.until_s, one.open_s) for one in versions] == [
        (began_s, began_s, began_s + 8 * HOUR),
        (began_s, None, began_s),
    ]
    job.becomes("30 * * * *")
    passes(job, world, 10)
    assert [one.task_id[-9:-7] for one in job.registry.audit("job") if one.version == 1] == ["07", "09", "11"]
    assert gaps(job) == []


def test_what_ran_early_is_told_also_where_the_clock_goes_back_once_more(
    opened: Callable[[], Registry], world: World
) -> None:
    """By a little, behind the end of its version: that moves, and how far it had run early stays told."""
    job = Job(trusting(opened()))
    world.jump(6 * HOUR)
    job.due()
    world.advance(MINUTE)
    job.becomes("30 * * * *")
    world.jump(-6 * HOUR)
    job.due()
    world.jump(-1)
    job.due()
    passes(job, world, 7)
    assert "6" in job.ran
    assert gaps(job) == []


def test_what_was_run_by_hand_before_its_time_is_no_double_whatever_the_clock_said(
    opened: Callable[[], Registry], world: World
) -> None:
    """It was ahead then, and the expression another before it was right: so the version ended before that date."""
    job = Job(trusting(opened()))
    world.jump(4 * HOUR)
    job.registry.run_slot("job@2026-11-23T09:00:00Z")
    job.becomes("30 * * * *")
    world.jump(-4 * HOUR)
    job.due()
    passes(job, world, 7)
    assert [(one.task_id, one.state) for one in gaps(job)] == []
    assert "run" in [one.state for one in job.registry.audit("job") if one.slot == BEGAN + timedelta(hours=6)]


def test_what_was_run_by_hand_by_a_clock_in_doubt_is_no_double_of_the_next_expression(
    opened: Callable[[], Registry], world: World
) -> None:
    """By that clock it was late, by the right one it was early; and no look has gone as far as the clock did."""
    job = Job(opened())
    job.registry.may_schedule = lambda: Permit(scheduling=False, catch_up=False)  # type: ignore[method-assign]
    world.jump(8 * HOUR)
    job.registry.run_slot("job@2026-11-23T09:00:00Z")
    world.jump(-8 * HOUR)
    trusting(job.registry)
    world.advance(MINUTE)
    job.becomes("30 * * * *")
    passes(job, world, 7)
    assert ("6" in job.ran, gaps(job)) == (True, [])


@pytest.mark.parametrize("is_own", [False, True])
def test_what_runs_since_a_clock_was_ahead_holds_up_what_comes_due(
    opened: Callable[[], Registry], world: World, *, is_own: bool
) -> None:
    """Its claim is dated by that clock, at an instant that is still to come. To others and to its own look."""
    job, other = (Job(trusting(opened())) for _ in range(2))
    world.jump(4 * HOUR)

    def body(_slot: datetime) -> None:
        job.body = lambda _: None
        world.jump(-4 * HOUR)
        assert other.due() == []
        world.advance(2 * HOUR)
        assert is_own or other.due() == []

    job.body = body
    job.due()
    assert job.rows() == {"1": "overlap", "2": "overlap", "4": "succeeded"}
    passes(job, world, 2)
    assert (job.ran, gaps(job)) == (["4", "3"], [])


def test_what_purge_has_removed_early_is_run_by_hand_only_as_a_slot_of_the_version_of_its_time(
    opened: Callable[[], Registry], world: World
) -> None:
    """It has a row, by which it never comes; and by its time the schedule is another."""
    job = Job(trusting(opened()), cron="*/30 * * * *", keep_for=timedelta(hours=1))
    early(job, world, 4)
    world.jump(4 * HOUR)
    job.due()
    world.advance(2 * HOUR)
    job.registry.purge()
    world.jump(-6 * HOUR)
    job.becomes(HOURLY, keep_for=timedelta(hours=1))
    removed = [task.task_id[-9:-4] for task in job.registry.tasks() if task.evidence == REMOVED]
    assert {"06:00", "06:30"} <= {*removed}
    passes(job, world, 5)
    with pytest.raises(ScheduleError, match="no slot"):
        job.registry.run_slot("job@2026-11-23T06:30:00Z")
    job.registry.run_slot("job@2026-11-23T06:00:00Z")
    assert [one for one in gaps(job) if one.state == "double"] == []


def test_who_died_before_what_waits_early_was_skipped_lets_none_of_it_run(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, still to come, for a version that is over, and says so when its time comes; by hand it is no slot."""
    job = Job(trusting(opened()), coalesce="all")
    waits_early(job, world)
    other = trusting(opened())
    other.scheduled("job", cron="30 * * * *", coalesce="all")(lambda: None)

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(other.store, "settle", dies)
        with pytest.raises(KeyboardInterrupt):
            other.run_due()
    waiting = [task.task_id for task in other.tasks(status=Status.PENDING)]
    assert waiting
    with pytest.raises(ScheduleError, match="no slot"):
        job.registry.run_slot(waiting[0])
    for _ in range(10):
        world.advance(HOUR)
        other.run_due()
    assert {task.evidence for task in other.tasks() if task.task_id in waiting} == {"superseded"}
    assert [one for one in other.audit("job") if not one.is_sound] == []


# --- several processes ------------------------------------------------------------------------------------------


def test_who_looked_by_an_older_time_takes_nothing_back(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped before it read the schedule, which is ahead of its time by now, and of no clock."""
    job, other = (Job(trusting(opened()), misfire_grace=1) for _ in range(2))
    waiting = ledger(job.registry).waiting

    def late(name: str) -> Any:
        monkeypatch.undo()
        world.advance(2 * HOUR)
        other.due()
        return waiting(name)

    monkeypatch.setattr(job.registry.store, "waiting", late)
    job.due()
    assert other.rows() == {"1": "too_late", "2": "succeeded"}
    passes(job, world, 1)
    assert (job.ran, other.ran) == (["3"], ["2"])


def test_two_see_at_once_that_a_clock_was_ahead(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One takes it back, and the other, who has seen the same, finds it done; also where a slot has run since."""
    job, other = (Job(trusting(opened())) for _ in range(2))
    early(job, world)
    rewind = ledger(job.registry).rewind
    answers: list[bool] = []

    def late(*words: Any) -> bool:
        other.due()
        passes(other, world, 1)
        answers.append(rewind(*words))
        return answers[-1]

    monkeypatch.setattr(job.registry.store, "rewind", late)
    job.due()
    assert (answers, job.ran, other.ran) == ([False], ["6"], ["1"])
    passes(other, world, 6)
    assert (other.ran, gaps(job)) == (["1", "2", "3", "4", "5", "7"], [])


def test_a_look_by_the_clock_that_was_ahead_is_stored_behind_its_end(
    opened: Callable[[], Registry], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was stopped in its look: what it runs early is not run again, and all others come."""
    job, other = (Job(trusting(opened())) for _ in range(2))
    plan = ledger(job.registry).plan

    def late(*words: Any) -> bool:
        monkeypatch.undo()
        world.jump(-6 * HOUR)
        other.due()
        passes(other, world, 1)
        return plan(*words)

    early(other, world, 3)
    monkeypatch.setattr(job.registry.store, "plan", late)
    world.jump(6 * HOUR)
    job.due()
    assert (job.ran, other.ran) == (["6"], ["3", "1"])
    passes(other, world, 6)
    assert (job.ran, other.ran) == (["6"], ["3", "1", "2", "4", "5", "7"])
    assert gaps(job) == []


def test_a_slot_that_is_at_work_early_is_waited_for(opened: Callable[[], Registry], world: World) -> None:
    """Its process has not ended as the clock is put right: no other begins beside it, and it is not run again."""
    job, other = (Job(trusting(opened()), overlap="queue", coalesce="all") for _ in range(2))
    begun, ends = threading.Event(), threading.Event()

    def body(_slot: datetime) -> None:
        begun.set()
        assert ends.wait(PATIENCE_S)

    job.body = body
    job._schedule(HOURLY, {"overlap": "queue"})
    world.jump(6 * HOUR)
    thread = threading.Thread(target=job.due)
    thread.start()
    assert begun.wait(PATIENCE_S)
    world.jump(-6 * HOUR)
    other.due()
    passes(other, world, 2)
    assert other.rows() == {"1": "pending", "2": "pending", "6": "running"}
    ends.set()
    thread.join(PATIENCE_S)
    passes(other, world, 5)
    assert (job.ran, other.ran) == (["6", "2"], ["3", "4", "5", "7"])
    assert (gaps(other), other.rows()["1"]) == ([], "coalesced")


def test_an_early_slot_whose_lease_is_over_holds_nobody_up(opened: Callable[[], Registry], world: World) -> None:
    """It is decided about at once, and not when its time comes: until then no other would run."""
    job, other = (Job(trusting(opened()), lease=30, coalesce="all") for _ in range(2))

    def hangs(_slot: datetime) -> None:
        world.jump(-6 * HOUR)
        other.due()
        world.set(wall_us=world.wall_us() + HOUR * SECOND_US, boot_ms=world.boot_ms() + HOUR * 1_000)
        other.due()

    job.body = hangs
    job._schedule(HOURLY, {"lease": 30})
    world.jump(6 * HOUR)
    job.due()
    assert other.ran == ["1"]
    assert other.rows() == {"1": "succeeded", "6": "unknown"}


def test_who_dies_behind_it_leaves_a_file_that_opens(opened: Callable[[], Registry], world: World) -> None:
    """Rows that only a -wal removes are taken for hidden ones, but where the floor was raised with them."""
    first = trusting(opened())
    early(Job(first), world)
    first.close()

    def takes_back() -> str:
        job = Job(trusting(opened()))
        return str(job.rows())

    assert in_child(takes_back) == "{'6': 'succeeded'}"
    job = Job(trusting(opened()))
    passes(job, world, 7)
    assert (job.ran, gaps(job)) == (["1", "2", "3", "4", "5", "7"], [])


# A process that looks as often as it can, by the clock that is right: it takes back, and runs each hour as it comes.
LOOKS = """
    from idemreg import Registry
    from idemreg.clockcheck.verdict import Permit
    from idemreg.testing import ManualClock
    clock = ManualClock()
    registry = Registry(sys.argv[1], durability="normal", clock=clock)
    registry.may_schedule = Permit
    @registry.scheduled("job", cron="0 * * * *", coalesce="all")
    def job(slot):
        with open(sys.argv[2], "a") as file: file.write(f"{slot}\\n")
    say("ready")
    wait()
    for _ in range(60):
        registry.run_due()
        clock.advance(600)
"""


def test_two_processes_behind_such_a_clock_run_each_slot_once(
    opened: Callable[[], Registry], world: World, path: Path
) -> None:
    """Each by its own pace, so one is ahead of the other now and then: whoever is behind takes back what was."""
    job = Job(trusting(opened()))
    early(job, world, 9)
    lines = ran_by_two(LOOKS, path)
    assert sorted(lines) == [str(BEGAN + timedelta(hours=hour)) for hour in range(1, 9)]
    world.advance(10 * HOUR)
    job.due()
    assert (job.ran, gaps(job)) == (["9", "10"], [])


# --- the hardware clock served ----------------------------------------------------------------------------------


def test_what_lost_its_window_while_the_hardware_clock_served_says_so(
    opened: Callable[[], Registry], world: World
) -> None:
    """It has its row from then on, and waited for nothing but the clock."""
    ahead = [0.0]

    def hardware(_clock: Any) -> Hardware:
        ahead_us = round(ahead[0] * SECOND_US)
        return Hardware(world.wall_us() - ahead_us, ahead_us, SECOND_US, keeps_utc=True, name="rtc0")

    world.sources = (hardware,)
    job = Job(opened(), coalesce="all", misfire_grace=10 * MINUTE)
    world.advance(MINUTE)
    ahead[0] = -HOUR / 2
    world.jump(-HOUR / 2)
    assert (job.due(), job.schedule().state) == ([], State.HELD)
    world.advance(3 * HOUR)
    job.due()
    assert (job.ran, job.rows()) == (["3"], {"1": "pending", "2": "pending", "3": "succeeded"})
    job.registry.confirm_clock()
    world.advance(HOUR / 2)
    job.due()
    assert job.rows() == {"1": "clock", "2": "clock", "3": "succeeded"}
    assert job.schedule().state is State.GOING
