"""Random lives of a schedule, over nights when clocks change, against the slots that Debian's cron would have."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from idemreg import Registry, ScheduleError, Status
from idemreg.clockcheck.verdict import Permit
from idemreg.slots import Reason
from idemreg.testing import ManualClock
from tests.test_cron import as_debian_does

HOUR_US = 3_600 * 1_000_000
NIGHTS = [datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)]  # of Berlin
CRONS = [
    ("0 * * * *", "UTC"),
    ("0 */3 * * *", "UTC"),
    ("30 2 * * *", "Europe/Berlin"),
    ("*/30 * * * *", "Europe/Berlin"),
    ("15 */2 * * *", "Asia/Shanghai"),
]


class Schedules(RuleBasedStateMachine):
    """Two processes look at one schedule, die in a slot, are suspended, edited, paused, and their clocks jump."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="idemreg-slots-")
        self.path = Path(self.folder.name) / "jobs.db"
        self.ran: list[datetime] = []
        self.swept: list[Status] = []  # what became of a slot whose job slept

    @initialize(
        night=st.sampled_from(NIGHTS),
        cron=st.sampled_from(CRONS),
        coalesce=st.sampled_from(["all", "latest", "earliest"]),
        overlap=st.sampled_from(["skip", "queue"]),
        grace=st.sampled_from([None, 600, 5_400]),
        limit=st.sampled_from([1, 3, 100]),
        lease=st.sampled_from([None, 30]),
    )
    def begin(self, night: datetime, cron: tuple[str, str], **options: Any) -> None:
        self.clock = ManualClock(wall_us=int(night.timestamp()) * 1_000_000)
        options["misfire_grace"] = options.pop("grace")
        self.options, self.cron = options, cron
        self.registries = [self.opened(), self.opened()]
        self.look(0)
        self.look(1)

    def opened(self) -> Registry:
        """A process that starts: it has the present expression."""
        registry = Registry(self.path, durability="normal", clock=self.clock)
        registry.may_schedule = Permit  # type: ignore[method-assign] # each jump is confirmed by somebody
        expression, zone = self.cron
        registry.scheduled("job", cron=expression, tz=zone, **self.options)(self.job)
        return registry

    def job(self, slot: datetime) -> None:
        self.ran.append(slot)
        if self.dies:
            self.dies = False
            raise SystemExit
        if self.sleeps_s:
            self.clock.set(
                wall_us=self.clock.wall_us() + self.sleeps_s * 1_000_000,
                boot_ms=self.clock.boot_ms() + self.sleeps_s * 1_000,
            )
            self.swept += [one.status for registry in self.registries for one in registry.sweep()]
        self.clock.advance(self.takes)

    sleeps_s = 0
    dies = False
    takes = 0.0
    paused = False

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(minutes=st.integers(1, 600))
    def passes(self, minutes: int) -> None:
        self.clock.advance(minutes * 60)

    @rule(minutes=st.integers(-600, 600))
    def jumps(self, minutes: int) -> None:
        """The wall clock alone."""
        self.clock.set(wall_us=self.clock.wall_us() + minutes * 60 * 1_000_000)

    @rule(minutes=st.integers(1, 3_000), process=st.integers(0, 1))
    def is_suspended(self, minutes: int, process: int) -> None:
        """The machine sleeps over slots: boot time and the wall clock go on, and nothing runs; then somebody looks."""
        span_s = minutes * 60
        self.clock.set(wall_us=self.clock.wall_us() + span_s * 1_000_000, boot_ms=self.clock.boot_ms() + span_s * 1_000)
        self.look(process)

    @rule(minutes=st.integers(1, 600), process=st.integers(0, 1))
    def is_suspended_in_a_slot(self, minutes: int, process: int) -> None:
        """The same in the middle of a job, which goes on behind it: its slot is nobody else's, but for a lease."""
        self.sleeps_s, self.swept = minutes * 60, []
        before = len(self.ran)
        self.look(process)
        self.sleeps_s = 0
        is_freed = self.options["lease"] is not None
        assert self.swept == [Status.UNKNOWN] * (len(self.ran) - before) * is_freed

    @rule(process=st.integers(0, 1))
    def sweeps(self, process: int) -> None:
        """Between two looks nobody has a slot, and whoever was interrupted has said so: there is nothing to settle."""
        before = len(self.ran)
        assert self.registries[process].sweep() == []
        assert len(self.ran) == before

    @rule(process=st.integers(0, 1), takes=st.sampled_from([0, 1_800, 7_000]))
    def look(self, process: int, takes: float = 0) -> None:
        self.takes = takes
        try:
            self.registries[process].run_due()
        except ScheduleError:  # it still has the expression of before: it is started anew
            self.starts_anew(process)

    @rule(process=st.integers(0, 1))
    def dies_in_a_slot(self, process: int) -> None:
        self.dies, self.takes = True, 0
        try:
            self.registries[process].run_due()
        except (SystemExit, ScheduleError):
            self.starts_anew(process)
        self.dies = False

    @rule(process=st.integers(0, 1))
    def starts_anew(self, process: int) -> None:
        self.registries[process].close()
        self.registries[process] = self.opened()

    @rule(cron=st.sampled_from(CRONS), process=st.integers(0, 1))
    def is_edited(self, cron: tuple[str, str], process: int) -> None:
        self.cron = cron
        self.starts_anew(process)
        self.look(process)

    @precondition(lambda self: not self.paused)
    @rule()
    def pauses(self) -> None:
        self.registries[0].pause("job")
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resumes(self) -> None:
        self.registries[0].resume("job")
        self.paused = False

    # --- what holds ---------------------------------------------------------------------------------------------

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert len(self.ran) == len(set(self.ran))

    def teardown(self) -> None:
        try:
            if hasattr(self, "registries"):
                self.ends()
                for registry in self.registries:
                    registry.close()
        finally:
            self.folder.cleanup()

    def ends(self) -> None:
        """A last look behind all that was ever seen: the audit is clean, and the model finds what it should."""
        registry = self.registries[0]
        versions = registry.store.schedules("job")  # type: ignore[attr-defined]
        latest_us = max([self.clock.wall_us(), *(one.watermark_s * 1_000_000 for one in versions)])
        self.clock.set(wall_us=latest_us + HOUR_US)
        self.starts_anew(0)
        self.look(0)
        self.nothing_runs_twice()
        audited = list(self.registries[0].audit("job"))
        assert all(one.is_sound for one in audited), [one for one in audited if not one.is_sound]
        for one in audited:
            assert one.state != "skipped" or one.reason in list(Reason)
        slots = [f"{one.slot:%m-%d %H:%M}" for one in audited]
        versions = self.registries[0].store.schedules("job")  # type: ignore[attr-defined]
        assert slots == [slot for one in versions for slot in self.reckoned(one)]
        rows = {task.task_id: task.status for task in self.registries[0].tasks()}
        assert set(rows) == {one.task_id for one in audited}
        assert set(self.ran) == {one.slot for one in audited if one.attempt}
        assert not {Status.RUNNING, Status.FAILED} & set(rows.values())

    @staticmethod
    def reckoned(version: Any) -> list[str]:
        """By the other reckoning, which knows no zoneinfo and no cronsim."""
        until_s = version.watermark_s if version.until_s is None else version.until_s
        if until_s == version.after_s:
            return []
        after, until = (datetime.fromtimestamp(at_s, UTC) for at_s in (version.after_s, until_s))
        return as_debian_does(version.cron, version.zone, after.replace(second=0), until)


Schedules.TestCase.settings = settings(max_examples=40, stateful_step_count=15)
TestSchedules = Schedules.TestCase
