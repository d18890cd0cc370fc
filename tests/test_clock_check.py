"""The clock check of a registry: what suspends, what confirms, and that it outlives reboots, crashes and rivals."""

from __future__ import annotations

import os
import resource
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from idemreg import (
    AsyncRegistry,
    ClockBands,
    ClockCheck,
    ClockError,
    ClockVerdict,
    Registry,
    Status,
    StoreCorruptError,
    TransitionError,
    Verdict,
    events,
)
from idemreg.clockcheck.check import KEEP_MS, appraise, moment
from idemreg.clockcheck.readings import CHRONY, HARDWARE, KERNEL, Hardware, Reading
from idemreg.clockcheck.verdict import Permit
from idemreg.ledger import Ledger, State
from idemreg.model import Policy, Task
from idemreg.sqlite import purging
from idemreg.sqlite.connection import CommitUnsureError
from idemreg.store import Settlement
from idemreg.testing import ManualClock
from tests.support.bands import GRACE_S, Said, each_band
from tests.support.processes import Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Clock
    from idemreg.sqlite.backend import SqliteStore

GOOD, DEVIATING, CANNOT_TELL = ClockVerdict.GOOD, ClockVerdict.DEVIATING, ClockVerdict.CANNOT_TELL
MS, SECOND, HOUR, DAY = 1_000, 1_000_000, 3_600_000_000, 86_400_000_000
YEARS = 100 * 365 * DAY

GOES_ON, SUSPENDED = Permit(), Permit(scheduling=False, catch_up=False)


class World(ManualClock):
    """A clock set by hand, and sources that say what a test says."""

    def __init__(self) -> None:
        super().__init__(boot_id="first boot")
        self.said: list[Reading] = []
        self.hardware_ahead_us: int | None = None  # the wall clock minus a hardware clock in UTC
        self.sources = (self._kernel, self._hardware)

    def _kernel(self, _clock: Clock) -> Reading:
        return self.said[0] if self.said else Reading(KERNEL, None, text="it is not synchronised to anybody")

    def _hardware(self, _clock: Clock) -> Reading | Hardware:
        if self.hardware_ahead_us is None:
            return Reading(HARDWARE, None, text="there is none")
        ahead_us = self.hardware_ahead_us
        return Hardware(self.wall_us() - ahead_us, ahead_us, SECOND, keeps_utc=True, name="rtc0")

    def jump(self, by_us: int) -> None:
        """Only the wall clock."""
        self.set(wall_us=self.wall_us() + by_us)
        if self.hardware_ahead_us is not None:
            self.hardware_ahead_us += by_us

    def reboot(self, boot_id: str = "second boot") -> None:
        self.set(boot_id=boot_id, boot_ms=10_000)

    def synchronise(self, deviation_us: int | None, resolution_us: int = 100) -> None:
        self.said = [Reading(KERNEL, deviation_us, resolution_us)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def registry(open_registry: Callable[..., Registry], world: World, told: list[Any]) -> Registry:
    def tell(event: events.Event) -> None:
        if isinstance(event, (events.ClockSuspended, events.ClockConfirmed)):
            told.append(event)

    return open_registry(clock=world, on_event=tell)


@pytest.fixture
def looked(registry: Registry, world: World) -> Registry:
    """A registry that has looked at its clock an hour ago, with nobody to answer for it."""
    assert registry.check_clock().permit == GOES_ON
    world.advance(3_600)
    return registry


def alarm_of(found: ClockCheck) -> str:
    assert found.alarm is not None
    return found.alarm


def suspended(registry: Registry) -> ClockCheck:
    found = registry.check_clock()
    assert found.is_suspended
    assert found.permit == SUSPENDED
    return found


def goes_on(registry: Registry) -> ClockCheck:
    found = registry.check_clock()
    assert not found.is_suspended
    assert (found.permit.scheduling, found.permit.catch_up) == (True, True)
    return found


# --- nothing is wrong -------------------------------------------------------------------------------------------


def test_nobody_can_tell_and_all_goes_on(registry: Registry, world: World) -> None:
    """Most devices and containers: no source, no suspension, whatever time passes."""
    for seconds in (0, 1, 60, 3_600, 10 * 365 * 86_400):
        world.advance(seconds)
        found = registry.check_clock()
        assert (found.verdict, found.permit, found.alarm) == (CANNOT_TELL, GOES_ON, None)
    assert list(registry.tasks()) == []


def test_a_synchronised_clock_is_good(registry: Registry, world: World) -> None:
    """By a source that is finer than the lowest band."""
    world.synchronise(1_500)
    found = registry.check_clock()
    assert (found.verdict, found.deviation_us, found.permit) == (GOOD, 1_500, GOES_ON)


def test_a_small_deviation_extends_the_window(registry: Registry, world: World) -> None:
    """And nothing else."""
    world.synchronise(-30_000)
    found = registry.check_clock()
    assert (found.verdict, found.deviation_us, found.alarm) == (DEVIATING, -30_000, None)
    assert found.permit == Permit(extension_ms=20)


def test_the_bands_are_settings_of_the_registry(looked: Registry, world: World) -> None:
    """For every later check of it."""
    looked.clock_bands = ClockBands(extend_from_ms=100, suspend_from_ms=200, extension_ms=5)
    world.jump(99_000)
    assert looked.check_clock().permit == GOES_ON
    world.jump(100_000)
    assert looked.check_clock().permit == Permit(extension_ms=5)
    world.jump(100_000)
    suspended(looked)


def test_suspend_is_no_jump(looked: Registry, world: World) -> None:
    """Both clocks have counted it."""
    world.advance(30 * 86_400)
    assert goes_on(looked).verdict is CANNOT_TELL


def test_most_looks_write_nothing(looked: Registry, path: Path, world: World) -> None:
    """A look is kept for a minute: a jump is as plain against an older one."""
    looked.check_clock()
    before = path.with_name("jobs.db-wal").stat().st_size, row(path)
    for _ in range(5):
        world.advance(1)
        looked.check_clock()
    assert (path.with_name("jobs.db-wal").stat().st_size, row(path)) == before
    world.advance(KEEP_MS / 1_000)
    looked.check_clock()
    assert row(path) != before[1]


def row(path: Path) -> Any:
    connection = connect(path)
    try:
        return connection.execute("SELECT * FROM idempotent_clock").fetchall()
    finally:
        connection.close()


# --- what suspends ----------------------------------------------------------------------------------------------

each_jump = pytest.mark.parametrize("jump_us", [50 * MS, SECOND, HOUR, YEARS], ids=["50ms", "1s", "1h", "100y"])
each_sign = pytest.mark.parametrize("sign", [1, -1], ids=["forward", "back"])


@each_jump
@each_sign
def test_a_jump_suspends_until_it_is_confirmed(looked: Registry, world: World, jump_us: int, sign: int) -> None:
    """By the first look that sees it; a later one has nothing new to say, and is suspended all the same."""
    world.jump(sign * jump_us)
    found = suspended(looked)
    assert (found.verdict, found.deviation_us) == (DEVIATING, sign * jump_us)
    world.advance(3_600)
    assert suspended(looked).alarm == found.alarm
    looked.confirm_clock()
    assert goes_on(looked).verdict is CANNOT_TELL


@each_sign
def test_a_paused_schedule_is_not_resumed_in_doubt(looked: Registry, world: World, sign: int) -> None:
    """What has come due meanwhile was paused, and by such a clock nobody can say what that was."""
    looked.scheduled("job", cron="0 * * * *")(lambda: None)
    looked.run_due()
    looked.pause("job")
    before = cast("Ledger", looked.store).schedules("job")
    world.jump(sign * DAY)
    with pytest.raises(ClockError, match="in doubt"):
        looked.resume("job")
    assert cast("Ledger", looked.store).schedules("job") == before
    assert list(looked.tasks(prefix="clock@")) == []  # whoever schedules may go by wider bands: none is held for this
    suspended(looked)
    with pytest.raises(ClockError, match="the alarm is"):
        looked.resume("job")
    looked.confirm_clock()
    looked.resume("job")
    assert cast("Ledger", looked.store).schedules("job")[-1].state is State.GOING


@each_sign
@pytest.mark.parametrize(("jump_us", "extension_ms"), [(9_999, 0), (10_000, 20), (49_999, 20)])
def test_a_small_jump_suspends_nothing(
    looked: Registry, world: World, jump_us: int, extension_ms: float, sign: int
) -> None:
    """Within the bands; the next look compares with this one, once that is a minute old."""
    world.jump(sign * jump_us)
    assert goes_on(looked).permit.extension_ms == extension_ms
    world.advance(60)
    assert goes_on(looked).permit == GOES_ON


@pytest.mark.parametrize("deviation_us", [50_000, -50_000, HOUR, -YEARS])
def test_a_source_that_says_so_suspends(registry: Registry, world: World, deviation_us: int) -> None:
    """At the first look already."""
    world.synchronise(deviation_us)
    assert suspended(registry).deviation_us == deviation_us


@pytest.mark.parametrize("behind_us", [10 * MS, SECOND, HOUR, YEARS])
@pytest.mark.parametrize("has_looked", [True, False])
def test_a_clock_behind_a_stored_time_suspends(
    registry: Registry, world: World, behind_us: int, *, has_looked: bool
) -> None:
    """After a reboot, when nothing else can tell: of a task, or of the last look."""
    if has_looked:
        registry.check_clock()
    world.advance(60)
    registry.add("t")
    world.reboot()
    world.jump(-behind_us)
    assert suspended(registry).deviation_us == -behind_us


def test_a_clock_that_went_out_and_back_is_behind_what_was_stored(registry: Registry, world: World) -> None:
    """Within a boot nobody may have looked meanwhile, and the time since boot says that all is well."""
    assert registry.may_schedule() == GOES_ON
    world.jump(HOUR)
    registry.add("t")
    world.jump(-HOUR)
    assert suspended(registry).deviation_us == -HOUR
    registry.confirm_clock()
    world.advance(60)
    goes_on(registry)


def put(registry: Registry, ahead_us: int = 0, result: str | None = None) -> None:
    ended = Task(
        *("imported", Status.SUCCEEDED, "0" * 64, registry.clock.wall_us() + ahead_us, 0, "job", 1, 1, None, Policy()),
        *(None, result, None, None, None, None),
    )
    registry.store.put([ended], 1, registry.store.origin())


STORED: dict[str, Callable[[Registry], object]] = {
    "added": lambda registry: registry.add("t"),
    "run": lambda registry: registry.run("t", lambda: None),
    "batch": lambda registry: list(registry.consume("ab", str, task_id=str)),
    "imported": put,
}


@pytest.mark.parametrize("how", STORED)
def test_a_scheduler_sees_whatever_was_stored_since_its_last_look(registry: Registry, world: World, how: str) -> None:
    """The clock went ahead and came back between two looks: only what was stored meanwhile tells of it."""
    registry.may_schedule()
    world.jump(HOUR)
    STORED[how](registry)
    world.jump(-HOUR)
    assert registry.may_schedule() == SUSPENDED


def test_and_what_another_process_has_stored(registry: Registry, path: Path, world: World) -> None:
    """What it notes is seen by all of the boot, also once it is gone."""
    registry.may_schedule()
    program = """
        from idemreg import Registry
        from idemreg.testing import ManualClock
        clock = ManualClock(wall_us=int(sys.argv[2]), boot_id="first boot")
        with Registry(sys.argv[1], clock=clock) as registry:
            registry.add("t")
        say("stored")
    """
    with Script(program, path, world.wall_us() + HOUR) as script:
        script.expect("stored")
    assert registry.may_schedule() == SUSPENDED


@pytest.mark.parametrize("ahead_us", [11 * MS, 9 * MS])
def test_it_is_noted_as_finely_as_the_bands_ask(registry: Registry, world: World, ahead_us: int) -> None:
    """Ten milliseconds behind are too many; what is less than one newer than the mark is not noted."""
    registry.may_schedule()
    registry.add("a")
    world.jump(ahead_us)
    registry.add("b")
    world.jump(999)
    registry.add("c")
    world.jump(-ahead_us - 999)
    assert (registry.may_schedule() == SUSPENDED) is (ahead_us > 10 * MS)


def test_a_scheduler_reads_all_tasks_once_a_boot(
    registry: Registry, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks before each slot, and has not the time to read all tasks each time."""
    pieces: list[object] = []
    survey = purging.survey

    def count(*asked: Any) -> Any:
        pieces.append(asked)
        return survey(*asked)

    monkeypatch.setattr(purging, "survey", count)
    for _ in range(2):
        registry.may_schedule()
        assert len(pieces) == 1
        for _ in range(3):
            world.advance(KEEP_MS / 1_000)
            registry.add(f"t@{world.wall_us()}")
            assert registry.may_schedule() == GOES_ON
        assert len(pieces) == 1
        pieces.clear()
        world.reboot(f"boot at {world.wall_us()}")


def test_without_its_mark_all_tasks_are_read(registry: Registry, path: Path, world: World) -> None:
    """The lock file was deleted, and with it what was noted there of the newest time."""
    registry.may_schedule()
    world.jump(HOUR)
    registry.add("t")
    world.jump(-HOUR)
    registry.close()
    path.with_name("jobs.db-lock").unlink()
    registry.add("u")  # which says nothing of those before
    assert registry.may_schedule() == SUSPENDED


def test_an_import_that_fails_is_no_stored_time(registry: Registry, path: Path, world: World) -> None:
    """Whatever the times of its rows: none of them is there."""
    registry.may_schedule()
    largest = max(os.path.getsize(f"{path}{end}") for end in ("", "-wal", "-lock"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(CommitUnsureError):
            put(registry, ahead_us=DAY, result=f'"{"x" * largest}"')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(registry.tasks()) == []
    registry.add("t")
    assert registry.may_schedule() == GOES_ON
    put(registry, ahead_us=DAY)
    assert registry.may_schedule() == SUSPENDED


def test_a_look_needs_nobody_who_writes(registry: Registry, path: Path, world: World) -> None:
    """Who cannot note what he finds tells it all the same."""
    registry.add("t")
    with registry.claim("open") as claim, claim.transaction(), Registry(path, clock=world, busy_timeout=0.1) as other:
        assert appraise(cast("SqliteStore", other.store), world, ClockBands()).permit == GOES_ON
    world.advance(1)
    assert registry.may_schedule() == GOES_ON


def test_in_a_copy_all_tasks_are_read(registry: Registry, path: Path, world: World) -> None:
    """It brings the last look along, and no mark."""
    registry.may_schedule()
    world.jump(HOUR)
    registry.add("t")
    world.jump(-HOUR)
    registry.backup(copied := path.with_name("copy.db"))
    with Registry(copied, clock=world) as copy:
        copy.add("u")
        assert copy.may_schedule() == SUSPENDED


def test_what_was_stored_by_a_clock_that_came_back_suspends_no_more(looked: Registry, world: World) -> None:
    """A jump that is over ends its alarm by itself, and what was stored meanwhile is known from then on."""
    world.jump(HOUR)
    suspended(looked)
    looked.add("t")
    world.jump(-HOUR)
    goes_on(looked)
    world.advance(60)
    goes_on(looked)


def test_other_bands_are_tried_without_an_alarm(looked: Registry, world: World, told: list[Any]) -> None:
    """What would follow, and nothing does, to a scheduler that goes by its own."""
    world.synchronise(70 * MS)
    found = looked.check_clock(ClockBands(suspend_from_ms=100))
    assert (found.permit.scheduling, found.permit.extension_ms) == (True, 20)
    found = looked.check_clock(ClockBands(suspend_from_ms=70))
    assert (found.permit, found.alarm) == (SUSPENDED, None)
    assert "would be suspended" in found.consequence
    assert (told, list(looked.tasks())) == ([], [])
    alarm = suspended(looked).alarm
    found = looked.check_clock(ClockBands(suspend_from_ms=100))
    assert (found.permit, found.alarm) == (SUSPENDED, alarm)


def test_a_reboot_is_no_jump(looked: Registry, world: World) -> None:
    """The time since boot began anew, and is compared with nothing."""
    world.reboot()
    assert goes_on(looked).verdict is CANNOT_TELL
    world.jump(HOUR)
    suspended(looked)


def test_a_suspension_outlives_reboots_and_processes(looked: Registry, world: World, path: Path) -> None:
    """It is a task, and ends as one: nothing in a new process or a new boot makes it go."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    looked.close()
    world.reboot()
    world.advance(86_400)
    with Registry(path, durability="normal", clock=world) as other:
        assert suspended(other).alarm == alarm
        other.confirm_clock()
        goes_on(other)


def test_a_machine_that_stood_still_is_noticed(looked: Registry, world: World) -> None:
    """Nothing jumps and the kernel is content, but the hardware clock has gone on: so that serves meanwhile."""
    world.synchronise(0)
    world.hardware_ahead_us = 3 * SECOND
    goes_on(looked)
    world.advance(61)
    goes_on(looked)
    world.hardware_ahead_us -= HOUR
    found = looked.check_clock()
    stood_us = HOUR - 3 * SECOND  # by the hardware clock as it is
    assert (found.verdict, found.deviation_us) == (DEVIATING, -stood_us)
    assert found.permit == Permit(scheduling=True, catch_up=False, extension_ms=20, correction_us=stood_us)
    world.jump(HOUR)
    assert goes_on(looked).verdict is GOOD, "its daemon has put it right"


def test_the_hardware_clock_serves_only_where_it_speaks(looked: Registry, world: World) -> None:
    """A jump of half a second is within its resolution: nothing serves."""
    world.hardware_ahead_us = 0
    goes_on(looked)
    world.jump(SECOND // 2)
    suspended(looked)
    world.jump(HOUR)
    assert looked.check_clock().permit.correction_us == -(HOUR + SECOND // 2)


# --- the alarm --------------------------------------------------------------------------------------------------


def test_the_alarm_is_an_unknown_task(looked: Registry, world: World, told: list[Any]) -> None:
    """Listed with what was found, told once, and counted among what waits for somebody."""
    world.jump(HOUR)
    instant = world.wall_us()
    alarm = alarm_of(suspended(looked))
    suspended(looked)
    task = looked.get(alarm)
    assert task is not None
    assert (task.status, task.name, task.attempt) == (Status.UNKNOWN, "idemreg clock", 1)
    assert task.updated_at == instant
    assert "1.0 h ahead" in (task.error or "")
    assert alarm == "clock@2026-11-23T05:00:00.000000Z"
    assert [one.task_id for one in looked.tasks(status=Status.UNKNOWN, prefix="clock@")] == [alarm]
    assert [(type(one).__name__, one.task_id) for one in told] == [("ClockSuspended", alarm)]
    assert "1.0 h ahead" in told[0].reason
    assert [one.code for one in looked.doctor() if one.code in ("unknown", "clock-suspended", "seal-broken")] == [
        "clock-suspended"
    ]


def test_an_operator_confirms(looked: Registry, world: World, told: list[Any]) -> None:
    """The alarm has succeeded, with who said so and by what; it is told, and the clock is compared with now."""
    world.jump(-HOUR)
    alarm = alarm_of(suspended(looked))
    found = looked.confirm_clock(evidence="my watch", by="ada")
    assert (found.verdict, found.permit, found.alarm) == (CANNOT_TELL, GOES_ON, None)
    task = looked.get(alarm)
    assert task is not None
    assert (task.status, task.verdict, task.settled_by, task.evidence) == (
        Status.SUCCEEDED,
        Verdict.HAPPENED,
        "ada",
        "my watch",
    )
    assert told[1:] == [events.ClockConfirmed(alarm, "idemreg clock", "ada: my watch")]
    world.jump(HOUR)
    assert alarm_of(suspended(looked)) != alarm


def test_an_operator_may_resolve_the_task_as_well(looked: Registry, world: World) -> None:
    """`idemreg resolve` confirms the clock as it is at the next look."""
    world.jump(HOUR)
    looked.resolve(alarm_of(suspended(looked)), "happened", evidence="my watch")
    assert goes_on(looked).verdict is CANNOT_TELL
    assert goes_on(looked).verdict is CANNOT_TELL


def test_cancelling_the_alarm_confirms_too(looked: Registry, world: World) -> None:
    """Whatever ends the task for good; what does not, does not."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    looked.resolve(alarm, "cannot-tell")
    suspended(looked)
    looked.cancel(alarm)
    goes_on(looked)


def test_an_alarm_cannot_be_made_to_run_again(looked: Registry, world: World) -> None:
    """It has no job: what would let it run is refused with the way out, and changes nothing."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    before = looked.get(alarm)
    refusals: list[Callable[[], object]] = [
        lambda: looked.resolve(alarm, "did-not-happen"),
        lambda: looked.resolve(alarm, Verdict.DID_NOT_HAPPEN),
        lambda: looked.retry(alarm),
    ]
    for refused in refusals:
        with pytest.raises(TransitionError) as caught:
            refused()
        assert (caught.value.task_id, "idemreg clock --confirm" in caught.value.hint) == (alarm, True)
    assert looked.get(alarm) == before


def test_a_slot_is_no_alarm(looked: Registry) -> None:
    """Of a schedule that is called clock, nor is another task of the job's name."""
    for task_id, name in (("clock@2026-11-23T03:00:00Z", "clock"), ("c", "idemreg clock")):
        with pytest.raises(LookupError):
            looked.run(task_id, {}.popitem, name=name, unknown_on=LookupError)
        assert looked.resolve(task_id, "did-not-happen").status is Status.FAILED
        assert looked.retry(task_id).status is Status.FAILED


def test_an_alarm_that_was_called_right_can_still_be_confirmed(looked: Registry, world: World) -> None:
    """By an earlier version: the clock was wrong (did not happen); later somebody, or a source, confirms it."""
    for confirm in (looked.confirm_clock, lambda: world.synchronise(0)):
        world.jump(HOUR)
        alarm = alarm_of(suspended(looked))
        looked.store.settle(alarm, Settlement(Verdict.DID_NOT_HAPPEN, "ada", ""))
        suspended(looked)
        confirm()
        goes_on(looked)
        task = looked.get(alarm)
        assert task is not None
        assert task.status is Status.CANCELLED


def test_a_forgotten_alarm_is_raised_again(looked: Registry, world: World) -> None:
    """Forgetting confirms nothing."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    looked.forget(alarm, force=True)
    assert suspended(looked).alarm == alarm
    task = looked.get(alarm)
    assert task is not None
    assert task.status is Status.UNKNOWN


def test_confirming_a_clock_that_nobody_doubts_keeps_the_look(looked: Registry, world: World) -> None:
    """A jump that was meant is confirmed before anybody has seen it."""
    world.jump(HOUR)
    looked.confirm_clock()
    goes_on(looked)
    assert list(looked.tasks()) == []


def test_two_alarms_of_one_instant_have_two_names(looked: Registry, world: World) -> None:
    """A clock that is set back comes past the same microsecond again."""
    names = set()
    for _ in range(2):
        world.jump(HOUR)
        names.add(alarm_of(suspended(looked)))
        looked.confirm_clock()
        world.jump(-HOUR)
        looked.confirm_clock()
    assert len(names) == 2


@pytest.mark.parametrize("wall_us", [2**62, -(2**62), 0])
def test_a_date_that_is_none_has_an_alarm_all_the_same(looked: Registry, world: World, wall_us: int) -> None:
    """Beyond the years that a calendar has."""
    world.set(wall_us=wall_us)
    task = looked.get(alarm_of(suspended(looked)))
    assert task is not None
    looked.confirm_clock()
    goes_on(looked)


# --- what confirms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation_us", [0, 9_999, -49_999])
def test_a_synchronised_source_confirms(looked: Registry, world: World, told: list[Any], deviation_us: int) -> None:
    """By itself, at the next look; its word is the evidence."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    world.synchronise(deviation_us)
    goes_on(looked)
    task = looked.get(alarm)
    assert task is not None
    assert (task.status, task.settled_by) == (Status.SUCCEEDED, "clock check")
    assert "kernel" in (task.evidence or "")
    assert [type(one).__name__ for one in told] == ["ClockSuspended", "ClockConfirmed"]
    world.said = []
    assert goes_on(looked).verdict is CANNOT_TELL, "later looks compare with the confirmed one"


@pytest.mark.parametrize("deviation_us", [None, 50_000, -HOUR])
def test_a_source_that_deviates_or_is_silent_confirms_nothing(
    looked: Registry, world: World, deviation_us: int | None
) -> None:
    """Nor does one that is coarser than the bands."""
    world.jump(HOUR)
    suspended(looked)
    world.synchronise(deviation_us)
    suspended(looked)
    world.synchronise(0, resolution_us=50_000)
    suspended(looked)


def test_a_source_that_answers_at_once_raises_no_alarm(looked: Registry, world: World) -> None:
    """A device without a battery starts in 1970, and jumps to the present when its daemon has an answer."""
    world.synchronise(0)
    world.jump(50 * 365 * DAY)
    assert goes_on(looked).verdict is GOOD
    world.said = []
    assert goes_on(looked).verdict is CANNOT_TELL
    world.synchronise(0)
    world.jump(HOUR)
    assert goes_on(looked).verdict is GOOD, "and so within a minute of the look before"
    world.said = []
    assert goes_on(looked).verdict is CANNOT_TELL
    assert list(looked.tasks()) == []


def test_a_clock_that_is_put_back_confirms_itself(looked: Registry, world: World) -> None:
    """It goes on from the last trusted look as if it had never jumped."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    world.advance(600)
    world.jump(-HOUR + 9 * MS)
    goes_on(looked)
    task = looked.get(alarm)
    assert task is not None
    assert "time since boot" in (task.evidence or "")
    world.jump(HOUR)
    suspended(looked)
    world.jump(-HOUR + 30 * MS)
    suspended(looked)


def test_a_source_that_falls_silent_confirms_nothing(registry: Registry, world: World) -> None:
    """What it has said stands, although no jump was seen."""
    goes_on(registry)
    world.synchronise(HOUR)
    suspended(registry)
    world.said = []
    suspended(registry)
    world.synchronise(0)
    goes_on(registry)


def test_what_an_operator_accepts_is_remembered(registry: Registry, world: World) -> None:
    """A source that goes on saying the same suspends no more, until it is worse by a band; windows stay longer."""
    world.synchronise(80_000)
    suspended(registry)
    registry.confirm_clock()
    for _ in range(3):
        world.advance(61)
        assert goes_on(registry).permit == Permit(extension_ms=20)
    world.synchronise(129_000)
    goes_on(registry)
    world.synchronise(131_000)
    suspended(registry)


def test_what_was_accepted_is_forgotten_once_it_is_over(registry: Registry, world: World) -> None:
    """A good look ends it."""
    world.synchronise(80_000)
    suspended(registry)
    registry.confirm_clock()
    world.synchronise(0)
    world.advance(61)
    goes_on(registry)
    world.synchronise(80_000)
    suspended(registry)


def test_stored_times_that_were_confirmed_do_not_count_again(registry: Registry, world: World) -> None:
    """Rows of a clock that ran a year ahead stay; the clock that was set right is confirmed once, not once a boot."""
    world.jump(365 * DAY)
    registry.add("t")
    world.jump(-365 * DAY)
    suspended(registry)
    registry.confirm_clock()
    for number in range(3):
        world.advance(60)
        world.reboot(f"boot {number}")
        goes_on(registry)
    world.jump(-HOUR)
    suspended(registry)


def test_a_hardware_clock_that_is_off_by_itself_is_confirmed_once(registry: Registry, world: World) -> None:
    """From then on it is compared with its own word."""
    world.hardware_ahead_us = 10 * SECOND
    assert registry.check_clock().permit.correction_us == -10 * SECOND
    registry.confirm_clock()
    assert goes_on(registry).verdict is CANNOT_TELL
    world.hardware_ahead_us = None
    goes_on(registry)


# --- crashes and rivals -----------------------------------------------------------------------------------------

JUMPS = """
from idemreg import Registry, faults
from idemreg.testing import ManualClock
clock = ManualClock(boot_id="b")
registry = Registry(sys.argv[1], clock=clock)
registry.check_clock()
clock.set(wall_us=clock.wall_us() + 3_600_000_000)
"""


@pytest.mark.parametrize(
    "point", ["claim.in-transaction", "claim.committed", "finish.in-transaction", "finish.committed"]
)
def test_whoever_dies_raising_an_alarm_leaves_it_suspended(path: Path, point: str) -> None:
    """Killed between any two of its commits: the next look is suspended, and the alarm there or raised."""
    with Script(f'{JUMPS}\nfaults.arm("{point}", faults.kill)\nregistry.check_clock()', path) as dies:
        assert dies.end() == -9
    clock = ManualClock(boot_id="b", boot_ms=3_600_000)
    clock.set(wall_us=clock.wall_us() + HOUR)
    with Registry(path, clock=clock) as registry:
        alarm = alarm_of(suspended(registry))
        task = registry.get(alarm)
        assert task is not None
        assert task.status is Status.UNKNOWN
        registry.confirm_clock()
        goes_on(registry)


def test_whoever_raises_another_s_alarm_says_that_it_was_another_s(path: Path) -> None:
    """It may find nothing wrong itself: a clock that is a little behind the one that died was ahead of."""
    with Script(f'{JUMPS}\nfaults.arm("claim.in-transaction", faults.kill)\nregistry.check_clock()', path) as dies:
        assert dies.end() == -9
    with Registry(path, clock=ManualClock(boot_id="b")) as registry:
        alarm = registry.get(alarm_of(registry.check_clock()))
        assert alarm is not None
        assert "an earlier look found it so" in (alarm.error or "")


@pytest.mark.parametrize("point", ["settle.in-transaction", "settle.committed"])
def test_whoever_dies_confirming_leaves_no_doubt(path: Path, point: str) -> None:
    """Before the commit nothing is confirmed; behind it the next look finds that it is."""
    script = f'{JUMPS}\nregistry.check_clock()\nfaults.arm("{point}", faults.kill)\nregistry.confirm_clock()'
    with Script(script, path) as dies:
        assert dies.end() == -9
    clock = ManualClock(boot_id="b")
    clock.set(wall_us=clock.wall_us() + HOUR)
    with Registry(path, clock=clock) as registry:
        assert registry.check_clock().is_suspended == (point == "settle.in-transaction")


def test_many_threads_raise_one_alarm(looked: Registry, world: World, told: list[Any]) -> None:
    """One task and one event, whoever is first; and one confirmation is enough for all."""
    world.jump(HOUR)
    threads, found = 8, []
    start = threading.Barrier(threads)

    def look() -> None:
        start.wait()
        found.append(looked.check_clock())

    everybody = [threading.Thread(target=look) for _ in range(threads)]
    for one in everybody:
        one.start()
    for one in everybody:
        one.join()
    assert len({one.alarm for one in found}) == 1
    assert all(one.permit == SUSPENDED for one in found)
    assert len(list(looked.tasks())) == len(told) == 1
    looked.confirm_clock()
    goes_on(looked)


def test_whoever_was_faster_is_heard(looked: Registry, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process raises its alarm between this one's look and its note: this one takes that alarm."""
    store = cast("SqliteStore", looked.store)
    note, alarms = store.note_watch, []

    def slow(*args: Any) -> bool:
        monkeypatch.setattr(store, "note_watch", note)
        world.advance(1)  # its alarm has another name
        alarms.append(suspended(looked).alarm)
        return note(*args)

    world.jump(HOUR)
    monkeypatch.setattr(store, "note_watch", slow)
    assert suspended(looked).alarm == alarms[0]
    assert len(list(looked.tasks())) == 1


def test_an_alarm_that_goes_as_it_is_confirmed_is_raised_again(
    looked: Registry, world: World, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator forgets it between a look and its confirmation: nothing was confirmed, so all stays suspended."""
    world.jump(HOUR)
    alarm = alarm_of(suspended(looked))
    world.synchronise(0)
    settle = looked.store.settle

    def slow(*args: Any) -> Any:
        monkeypatch.setattr(looked.store, "settle", settle)
        looked.forget(alarm, force=True)
        return settle(*args)

    monkeypatch.setattr(looked.store, "settle", slow)
    assert suspended(looked).alarm == alarm
    assert looked.get(alarm) is None
    assert [type(event) for event in told] == [events.ClockSuspended]
    assert suspended(looked).alarm == alarm
    task = looked.get(alarm)
    assert task is not None
    assert task.status is Status.UNKNOWN
    goes_on(looked)
    assert [type(event) for event in told] == [events.ClockSuspended, events.ClockSuspended, events.ClockConfirmed]


def test_a_damaged_row_about_the_clock_is_an_error(looked: Registry, path: Path) -> None:
    """Nothing is scheduled on its word, and doctor names it."""
    looked.check_clock()
    connection = connect(path)
    connection.execute("UPDATE idempotent_clock SET alarm = NULL, wall_us = wall_us + 1")
    connection.close()
    with pytest.raises(StoreCorruptError):
        looked.check_clock()
    assert [one.text for one in looked.doctor() if one.code == "seal-broken"] == [
        "The row about the clock is not as it was written: its seal does not hold."
    ]


# --- no claim depends on it -------------------------------------------------------------------------------------


def test_no_claim_depends_on_it(looked: Registry, world: World) -> None:
    """While all is suspended a task runs, replays and fails as ever."""
    looked.run("before", lambda: 1)
    world.jump(-YEARS)
    suspended(looked)
    assert looked.run("t", lambda: 7).result == 7
    assert looked.run("t", lambda: pytest.fail("it ran twice")).replayed
    assert looked.run("before", lambda: pytest.fail("it ran twice")).result == 1


# --- the machine ------------------------------------------------------------------------------------------------


def test_the_machines_sources_are_asked_of_the_machines_clock(open_registry: Callable[..., Registry]) -> None:
    """All three, and each has an answer or a reason."""
    found = open_registry().check_clock()
    assert [one.source for one in found.readings][:3] == [KERNEL, CHRONY, HARDWARE]
    assert all(one.deviation_us is not None or one.text for one in found.readings)


def test_the_machines_sources_know_nothing_of_a_manual_clock(open_registry: Callable[..., Registry]) -> None:
    """It may be set to any date."""
    found = open_registry(clock=ManualClock()).check_clock()
    assert {one.source for one in found.readings} == {"time since boot", "stored times"}


def test_both_clocks_are_read_as_near_to_each_other_as_can_be() -> None:
    """A process that was stopped between them reads again."""

    class Stopped(ManualClock):
        stops = 2

        def boot_ms(self) -> int:
            if self.stops:
                self.stops -= 1
                self.advance(5)
            return super().boot_ms()

    clock = Stopped()
    assert moment(clock).gap_us == 0
    clock.stops = 100
    assert moment(clock).gap_us == 5 * SECOND


def test_a_coroutine_asks_as_well(open_registry: Callable[..., Registry], loop: Any) -> None:
    """`AsyncRegistry` has both."""
    world = World()
    areg = AsyncRegistry.of(open_registry(clock=world))

    async def main() -> None:
        assert not (await areg.check_clock()).is_suspended
        world.jump(HOUR)
        assert (await areg.check_clock()).is_suspended
        assert not (await areg.confirm_clock(by="ada")).is_suspended

    loop(main)


@each_band
def test_coroutines_are_scheduled_within_the_bands(
    open_registry: Callable[..., Registry], loop: Any, deviation_us: int | None, late_us: int, becomes: str | None
) -> None:
    """`AsyncRegistry.run_due` asks before each look: a window is as long as the clock has it, or nothing is decided."""
    clock, said, ran = ManualClock(), Said(), list[Any]()
    clock.sources = (said,)
    areg = AsyncRegistry.of(open_registry(clock=clock))

    @areg.scheduled("job", cron="0 * * * *", misfire_grace=GRACE_S)
    async def job(slot: Any) -> None:
        ran.append(slot)

    async def states() -> list[str]:
        return [task.evidence or task.status.word async for task in areg.tasks(prefix="job@")]

    async def main() -> None:
        await areg.run_due()
        clock.advance(3_600 + GRACE_S + late_us / 1_000_000)
        said.deviation_us = deviation_us
        assert len(await areg.run_due()) == (becomes == "succeeded")
        assert await states() == ([] if becomes is None else [becomes])
        said.deviation_us = 0
        assert len(await areg.run_due()) == (becomes is None)
        assert await states() == [becomes or "succeeded"]

    loop(main)
    assert len(ran) == (becomes != "too_late")
