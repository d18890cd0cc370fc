"""Random lives of a schedule in which people run slots by hand, while clocks are ahead, in doubt, and put right.

No model tells here what should become of each slot: that nothing ran twice, and that the audit is clean, must hold
whatever came before what.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from idemreg import ClockError, Registry, ScheduleError, TaskDoneError
from idemreg.clockcheck.verdict import Permit
from idemreg.slots import slot_id
from idemreg.testing import ManualClock
from tests.support.lives import Lives

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND_US = 1_000_000
MINUTE = 60
HOUR = 3_600
BEGAN = datetime(2026, 10, 24, 20, tzinfo=UTC)
CRONS = st.sampled_from(["0 * * * *", "0 */3 * * *", "*/30 * * * *", "15 */2 * * *", "10 4 * * *"])
PROCESS = st.integers(0, 1)


class SlotsByHand(Lives):
    """Two processes with one schedule, each with the expression that it was started with."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(wall_us=int(BEGAN.timestamp()) * SECOND_US)
        self.ran: list[datetime] = []
        self.takes_s = self.ahead_s = 0
        self.is_trusted, self.is_paused = True, False

    @initialize(
        cron=CRONS,
        coalesce=st.sampled_from(["latest", "all", "earliest"]),
        overlap=st.sampled_from(["skip", "queue"]),
        misfire_grace=st.sampled_from([None, 600, 20_000]),
        limit=st.sampled_from([1, 4, 100]),
    )
    def begin(self, cron: str, **options: Any) -> None:
        self.cron, self.options = cron, options
        self.registries = [self.opened(), self.opened()]
        self.registries[0].run_due()

    def opened(self) -> Registry:
        """A process that starts: it has the present expression."""
        registry = Registry(self.path, durability="normal", clock=self.clock)
        registry.may_schedule = lambda: Permit(self.is_trusted, self.is_trusted)  # type: ignore[method-assign]
        registry._doubt_of_clock = lambda: None if self.is_trusted else ClockError("doubt")  # type: ignore[method-assign]
        registry.scheduled("job", cron=self.cron, max_attempts=1, **self.options)(self.job)
        return registry

    def job(self, slot: datetime) -> None:
        self.ran.append(slot)
        self.clock.advance(self.takes_s)

    def jumps(self, by_s: int) -> None:
        self.clock.set(wall_us=self.clock.wall_us() + by_s * SECOND_US)

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(process=PROCESS, minutes=st.integers(0, 400), takes_s=st.sampled_from([0, 0, 1_800, 7_000]))
    def looks(self, process: int, minutes: int = 0, takes_s: int = 0) -> None:
        self.clock.advance(minutes * MINUTE)
        self.takes_s = takes_s
        with self.told(process):
            self.registries[process].run_due()

    @contextlib.contextmanager
    def told(self, process: int) -> Iterator[None]:
        """A process that learns that another expression counts is started anew."""
        try:
            yield
        except ScheduleError:
            self.starts_anew(process)

    @rule(process=PROCESS)
    def starts_anew(self, process: int) -> None:
        self.registries[process].close()
        self.registries[process] = self.opened()

    @rule(process=PROCESS, cron=CRONS, looks=st.booleans())
    def is_edited(self, process: int, cron: str, *, looks: bool) -> None:
        """And somebody may run a slot by hand before anybody has looked."""
        self.cron = cron
        self.starts_anew(process)
        if looks:
            self.looks(process)

    @rule(minutes=st.integers(0, 3_000))
    def is_suspended(self, minutes: int) -> None:
        self.clock.advance(minutes * MINUTE)

    @precondition(lambda self: not self.ahead_s)
    @rule(hours=st.sampled_from([1, 8, 30, 200]), is_trusted=st.booleans(), process=PROCESS)
    def goes_ahead(self, hours: int, process: int, *, is_trusted: bool) -> None:
        self.ahead_s, self.is_trusted = hours * HOUR, is_trusted
        self.jumps(self.ahead_s)
        self.looks(process)

    @precondition(lambda self: self.ahead_s)
    @rule(is_trusted=st.booleans(), process=PROCESS)
    def is_put_right(self, process: int, *, is_trusted: bool) -> None:
        self.jumps(-self.ahead_s)
        self.ahead_s, self.is_trusted = 0, is_trusted
        self.looks(process)

    @rule()
    def is_judged_otherwise(self) -> None:
        self.is_trusted = not self.is_trusted

    @rule(process=PROCESS, halves=st.integers(-40, 40), rest=st.sampled_from([0, 0, 600, 900]))
    def runs_by_hand(self, process: int, halves: int, rest: int) -> None:
        """One of the last day or of the next, by any of the expressions; what is none is refused."""
        now_s = self.clock.wall_us() // SECOND_US
        self.takes_s = 0
        with contextlib.suppress(ScheduleError, TaskDoneError):
            self.registries[process].run_slot(slot_id("job", now_s - now_s % 1_800 + halves * 1_800 + rest))

    @rule()
    def is_paused_or_resumed(self) -> None:
        registry = self.registries[0]
        with contextlib.suppress(ClockError):
            (registry.resume if self.is_paused else registry.pause)("job")
            self.is_paused = not self.is_paused

    # --- what holds ---------------------------------------------------------------------------------------------

    @invariant()
    def nothing_ran_twice(self) -> None:
        assert max(Counter(self.ran).values(), default=0) <= 1

    def ends(self) -> None:
        """By a right clock, behind all that was seen: every slot has run or says why not, and nothing else has run."""
        self.jumps(-self.ahead_s)
        self.is_trusted = True
        self.starts_anew(0)
        self.looks(0)
        if self.is_paused:
            self.registries[0].resume("job")
        latest_s = max([self.clock.wall_us() // SECOND_US, *(int(slot.timestamp()) for slot in self.ran)])
        self.clock.set(wall_us=(latest_s + HOUR) * SECOND_US)
        for _ in range(2):
            self.looks(0)
        self.nothing_ran_twice()
        audited = list(self.registries[0].audit("job"))
        assert [one for one in audited if not one.is_sound] == []
        assert {one.slot for one in audited if one.attempt} == {slot for slot in self.ran if slot > BEGAN}


TestSlotsByHand = SlotsByHand.TestCase
TestSlotsByHand.settings = settings(max_examples=60, stateful_step_count=30)
