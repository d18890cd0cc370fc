"""Random lives of a schedule, over nights when clocks change, against a model that tells which slots run and why not.

The model (`tests.support.expected_slots`) knows when slots are from another reckoning, that of Debian's cron.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from idemreg import ClockError, Registry, ScheduleError, Status
from idemreg.clockcheck.verdict import Permit
from idemreg.slots import Reason
from idemreg.testing import ManualClock
from tests.support.expected_slots import Expected, Job, Process, Trust, between
from tests.support.forked import in_dying_child
from tests.support.lives import Lives

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTE_US = 60 * 1_000_000
HOUR_US = 60 * MINUTE_US
NIGHTS = [datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)]  # of Berlin
CRONS = [
    ("0 * * * *", "UTC"),
    ("0 */3 * * *", "UTC"),
    ("30 2 * * *", "Europe/Berlin"),
    ("*/30 * * * *", "Europe/Berlin"),
    ("15 */2 * * *", "Asia/Shanghai"),
]
TRUSTED = [Trust(), Trust(longer=timedelta(milliseconds=20))]
DOUBTED = [
    *[Trust(is_good=False)] * 2,  # twice as often as one of those by which the hardware clock serves
    Trust(is_good=False, served=timedelta(hours=-1)),
    Trust(is_good=False, served=timedelta(minutes=90)),
]
PROCESS = st.integers(0, 1)
MINUTES = st.integers(0, 400)
TAKES_S = st.sampled_from([0, 1_800, 7_000])
RAISES: dict[str, type[BaseException] | None] = {"succeeds": None, "fails": ValueError, "is interrupted": SystemExit}
ENDS = st.sampled_from(["succeeds", "fails", "dies", "succeeds", "fails", "dies", "is interrupted"])


def permit(trust: Trust) -> Permit:
    """As the clock check says it."""
    correction_us = (trust.served or timedelta()) // timedelta(microseconds=1)
    extension_ms = trust.longer / timedelta(milliseconds=1)
    return Permit(trust.is_good or trust.served is not None, trust.is_good, extension_ms, correction_us)


def doubt(trust: Trust) -> ClockError | None:
    return None if trust.is_good else ClockError("for the test")


def swept(registry: Registry) -> list[str]:
    """What a sweep tells, of each task what it is now."""
    return sorted(one.status.word for one in registry.sweep())


class Schedules(Lives):
    """Two processes look at one schedule, fail, die in a slot, are suspended, edited, paused, and their clocks jump."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[datetime] = []
        self.swept: list[str] = []  # what was told of in the middle of a job that slept
        self.trust = Trust()

    @initialize(
        night=st.sampled_from(NIGHTS),
        cron=st.sampled_from(CRONS),
        coalesce=st.sampled_from(["all", "all", "latest", "latest", "earliest"]),
        overlap=st.sampled_from(["skip", "queue"]),
        grace=st.sampled_from([None, 600, 5_400, 20_000]),
        limit=st.sampled_from([1, 2, 4, 100]),
        lease=st.sampled_from([None, 30]),
        max_attempts=st.sampled_from([2, 2, 1]),
    )
    def begin(self, night: datetime, cron: tuple[str, str], **options: Any) -> None:
        self.clock = ManualClock(wall_us=int(night.timestamp()) * 1_000_000)
        options |= {"misfire_grace": options.pop("grace"), "on_crash": self.on_crash}
        self.options, self.cron = options, cron
        self.registries, self.processes = [self.opened(), self.opened()], [Process(cron, 1), Process(cron, 1)]
        for registry in self.registries:
            registry.run_due()
        self.expected = Expected(cron, options, night)

    def opened(self) -> Registry:
        """A process that starts: it has the present expression."""
        registry = Registry(self.path, durability="normal", clock=self.clock)
        registry.may_schedule = lambda: permit(self.trust)  # type: ignore[method-assign]
        registry._doubt_of_clock = lambda: doubt(self.trust)  # type: ignore[method-assign]
        expression, zone = self.cron
        registry.scheduled("job", cron=expression, tz=zone, **self.options)(self.job)
        return registry

    def job(self, slot: datetime) -> None:
        self.ran.append(slot)
        if self.dies is not None:
            self.dies(slot.isoformat())
        if self.sleeps_s:
            self.suspend(self.sleeps_s)
            self.swept += [word for registry in self.registries for word in swept(registry)]
        self.clock.advance(self.takes_s)
        if self.raises is not None:
            raise self.raises

    def suspend(self, span_s: float) -> None:
        """Boot time and the wall clock go on, and nothing runs."""
        self.clock.set(
            wall_us=self.clock.wall_us() + round(span_s * 1_000_000),
            boot_ms=self.clock.boot_ms() + round(span_s * 1_000),
        )

    on_crash = "hold"
    dies: Callable[[str], NoReturn] | None = None
    raises: type[BaseException] | None = None
    sleeps_s = 0
    takes_s = 0.0
    ahead_s = 0
    boots = 0
    paused = False

    @property
    def now(self) -> datetime:
        """By the wall clock."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.clock.wall_us())

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(minutes=st.integers(-600, 600))
    def jumps(self, minutes: int) -> None:
        """The wall clock alone."""
        self.clock.set(wall_us=self.clock.wall_us() + minutes * MINUTE_US)

    @rule(trust=st.sampled_from(TRUSTED * 3 + DOUBTED), process=PROCESS, minutes=MINUTES, takes_s=TAKES_S, ends=ENDS)
    def is_judged(self, trust: Trust, process: int, minutes: int, takes_s: int, ends: str) -> None:
        """The clock check says something else of the clock, and somebody looks."""
        self.trust = trust
        self.look(process, minutes, takes_s, ends)

    @rule(minutes=st.integers(1, 3_000), process=PROCESS)
    def is_suspended(self, minutes: int, process: int) -> None:
        """The machine sleeps over slots; then somebody looks."""
        self.suspend(minutes * 60)
        self.looks(process)

    @precondition(lambda self: self.options["misfire_grace"] is not None)
    @rule(process=PROCESS, trust=st.sampled_from(TRUSTED), late_us=st.integers(0, 1))
    def looks_as_a_window_closes(self, process: int, trust: Trust, late_us: int) -> None:
        """Of the next slot whose window has not closed: to the microsecond, or one behind it."""
        self.trust = trust
        grace = timedelta(seconds=self.options["misfire_grace"]) + trust.longer
        if slots := between(*self.cron, self.now - grace, self.now + timedelta(days=1)):
            self.suspend((slots[0] + grace - self.now).total_seconds() + late_us / 1_000_000)
            self.looks(process)

    @rule(minutes=st.integers(1, 600), process=PROCESS)
    def is_suspended_in_a_slot(self, minutes: int, process: int) -> None:
        """The same in the middle of a job, which goes on behind it: its slot is nobody else's, but for a lease."""
        self.sleeps_s, self.swept = minutes * 60, []
        self.looks(process)
        self.sleeps_s = 0
        assert self.swept == self.expected.swept

    @rule(process=PROCESS)
    def sweeps(self, process: int) -> None:
        """Between two looks: what is told is of those who died in a slot, for whoever was interrupted has said so."""
        before = len(self.ran)
        assert swept(self.registries[process]) == self.expected.sweep()
        assert self.rows() == self.expected.fates
        assert len(self.ran) == before

    @rule(process=PROCESS, minutes=MINUTES, takes_s=TAKES_S, ends=ENDS)
    def look(self, process: int, minutes: int, takes_s: float, ends: str) -> None:
        """Some time later. Its jobs end so; or the first does, and the call with it, which says so or is dead."""
        self.clock.advance(minutes * 60)
        self.looks(process, takes_s, ends)

    @precondition(lambda self: not self.ahead_s)
    @rule(hours=st.sampled_from([1, 8, 30, 800]), process=PROCESS)
    def boots_ahead(self, hours: int, process: int) -> None:
        """The machine starts anew, by a clock that is so far ahead; nobody can tell, so all goes on."""
        self.trust, self.ahead_s = TRUSTED[0], hours * 3_600
        self.boots += 1
        for registry in self.registries:
            registry.close()
        self.clock.set(
            wall_us=self.clock.wall_us() + hours * HOUR_US, boot_ms=5_000 + self.boots, boot_id=f"boot {self.boots}"
        )
        self.registries = [self.opened(), self.opened()]
        self.processes = [Process(self.cron), Process(self.cron)]
        self.looks(process)

    @precondition(lambda self: self.ahead_s)
    @rule(doubt=st.sampled_from([None, None, *DOUBTED]), process=PROCESS, takes_s=TAKES_S, ends=ENDS)
    def is_put_right(self, doubt: Trust | None, process: int, takes_s: int, ends: str) -> None:
        """The clock is stepped back by a source that answers for it; or it is in doubt first, and confirmed then."""
        self.clock.set(wall_us=self.clock.wall_us() - self.ahead_s * 1_000_000)
        self.ahead_s = 0
        for trust in (TRUSTED[0],) if doubt is None else (doubt, TRUSTED[0]):
            self.is_judged(trust, process, 0, takes_s, ends)

    def looks(self, process: int, takes_s: float = 0, ends: str = "succeeds") -> None:
        """What runs, in which order, and what becomes of all other slots is what the model says."""
        self.takes_s = takes_s
        job = Job(timedelta(seconds=takes_s + self.sleeps_s), ends, bool(self.sleeps_s))
        runs = self.expected.run_due(self.processes[process], self.now, self.trust, job)
        before = len(self.ran)
        is_told = self.child_runs_due(process) if ends == "dies" else self.runs_due(process, RAISES[ends])
        assert (None if is_told else self.ran[before:]) == runs
        assert self.rows() == self.expected.fates

    def runs_due(self, process: int, error: type[BaseException] | None) -> bool:
        """Each job raises the error. Whether the process is told that another schedule counts than it has."""
        self.raises = error
        try:
            self.registries[process].run_due()
        except (SystemExit, ScheduleError) as ended:  # dead; or it still has the expression of before
            self.starts_anew(process)
            return isinstance(ended, ScheduleError)
        finally:
            self.raises = None
        return False

    def child_runs_due(self, process: int) -> bool:
        """The same of a child in its place, which dies in the middle of the first job, or else behind the call."""

        def body(die: Callable[[str], NoReturn]) -> str:
            self.dies = die
            try:
                self.registries[process].run_due()
            except ScheduleError:
                return "told"
            return ""

        words = in_dying_child(body)
        self.starts_anew(process)
        self.ran += [datetime.fromisoformat(words)] if words not in {"told", ""} else []
        return words == "told"

    def rows(self) -> dict[datetime, str]:
        """Each slot and its status, or why it was skipped."""
        return {
            datetime.fromisoformat(task.task_id.rpartition("@")[2]): task.evidence or task.status.word
            if task.status is Status.SKIPPED
            else task.status.word
            for task in self.registries[0].tasks()
        }

    @rule(process=PROCESS)
    def starts_anew(self, process: int) -> None:
        self.registries[process].close()
        self.registries[process], self.processes[process] = self.opened(), Process(self.cron)

    @rule(cron=st.sampled_from(CRONS), process=PROCESS, minutes=MINUTES)
    def is_edited(self, cron: tuple[str, str], process: int, minutes: int) -> None:
        self.cron = cron
        self.starts_anew(process)
        self.look(process, minutes, 0, "succeeds")

    @precondition(lambda self: not self.paused)
    @rule()
    def pauses(self) -> None:
        self.registries[0].pause("job")
        self.expected.state = "paused"
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resumes(self) -> None:
        if not self.trust.is_good:
            with pytest.raises(ClockError):
                self.registries[0].resume("job")
            return
        self.registries[0].resume("job")
        self.expected.resumes(self.now)
        self.paused = False

    # --- what holds ---------------------------------------------------------------------------------------------

    @invariant()
    def nothing_runs_more_often_than_it_may(self) -> None:
        """And it runs as often as the model says."""
        if hasattr(self, "expected"):
            runs = Counter(self.ran)
            assert runs == self.expected.attempts
            assert max(runs.values(), default=0) <= self.options["max_attempts"]

    def ends(self) -> None:
        """A last look behind all that was ever seen: the audit is clean, and has the slots that the model has."""
        ran_us = [int(slot.timestamp()) * 1_000_000 for slot in self.ran]
        registry = self.registries[0]
        versions = registry.store.schedules("job")  # type: ignore[attr-defined]
        latest_us = max([self.clock.wall_us(), *ran_us, *(one.watermark_s * 1_000_000 for one in versions)])
        self.clock.set(wall_us=latest_us + HOUR_US)
        self.starts_anew(0)
        self.trust = Trust()
        for _ in range(2):  # the first may begin another version, and then runs nothing
            self.looks(0)
        self.nothing_runs_more_often_than_it_may()
        audited = list(self.registries[0].audit("job"))
        assert all(one.is_sound for one in audited), [one for one in audited if not one.is_sound]
        for one in audited:
            assert one.state != "skipped" or one.reason in list(Reason)
        versions = self.registries[0].store.schedules("job")  # type: ignore[attr-defined]
        slots = {slot for one in versions for slot in self.reckoned(one)}
        early = {one.slot for one in audited if one.slot is not None}.difference(
            slots
        )  # of a version that ended before their time
        assert all(one.attempt for one in audited if one.slot in early)
        assert [one.slot for one in audited] == sorted(slots | early)
        assert set(self.ran) == {one.slot for one in audited if one.attempt}

    @staticmethod
    def reckoned(version: Any) -> list[datetime]:
        until_s = version.watermark_s if version.until_s is None else version.until_s
        after, until = (datetime.fromtimestamp(at_s, UTC) for at_s in (version.after_s, until_s))
        return between(version.cron, version.zone, after, until)


class SchedulesUnderRerun(Schedules):
    """Of half of the lives this is the policy: drawn as the rest is, few of some forty might have it."""

    on_crash = "rerun"


TestSchedules = Schedules.TestCase
TestSchedulesUnderRerun = SchedulesUnderRerun.TestCase
TestSchedules.settings = TestSchedulesUnderRerun.settings = settings(max_examples=40, stateful_step_count=20)
