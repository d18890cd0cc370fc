"""What becomes of the slots of a schedule, reckoned anew from what docs/schedules.md promises.

It knows one process at a time at work, no failures and no crash of a store, so a look is short: what has come due since
the last one, and what waits. It reads no code of the package, and its slots are those of Debian's own loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple

from tests.test_cron import as_debian_does

__all__ = ["Expected", "Job", "Process", "Trust", "between"]

DAY: Final = timedelta(days=1)
WAITS: Final = "pending"
RAN: Final = frozenset({"succeeded", "unknown"})


class Trust(NamedTuple):
    """What is known of the clock. ``served``: by how much the hardware clock, which serves, is ahead of it."""

    is_good: bool = True
    longer: timedelta = timedelta()
    served: timedelta | None = None


class Job(NamedTuple):
    """How each job of a call goes: for how long, its row's status behind it, and whether its process dies of it."""

    takes: timedelta = timedelta()
    end: str = "succeeded"
    kills: bool = False


@dataclass
class Process:
    """Which schedule it has, and the version that counted when it last looked by it."""

    cron: tuple[str, str]
    knows: int | None = None


@dataclass
class Expected:
    """The schedule. ``fates``: of each slot that has a row its status, or why it was skipped."""

    cron: tuple[str, str]
    options: dict[str, Any]
    began: datetime
    fates: dict[datetime, str] = field(default_factory=dict)
    version: int = 1
    state: str = "going"

    def __post_init__(self) -> None:
        self.since = self.began  # up to when it is known what came due

    def run_due(self, process: Process, wall: datetime, trust: Trust, job: Job) -> list[datetime] | None:
        """The slots that a call runs, in order; None where it is told that another schedule counts."""
        now = called = wall + (trust.served or timedelta())
        ran: list[datetime] = []
        busy = (now, now)
        while True:
            starts = self.look(process, now, trust, busy)
            if starts is None:
                return None
            slot = next((one for one in starts if one <= called), None)
            if slot is None:
                return ran
            ran.append(slot)
            self.fates[slot] = job.end
            busy, now = (now, now + job.takes), now + job.takes
            if job.kills:
                return ran

    def look(
        self, process: Process, now: datetime, trust: Trust, busy: tuple[datetime, datetime]
    ) -> list[datetime] | None:
        """What may start. ``busy``: from when to when a slot of it has just run."""
        if not trust.is_good and trust.served is None:
            self.state = "held" if self.state == "going" else self.state
            return []
        if process.cron != self.cron:
            return self.becomes(process, now)
        process.knows = self.version
        new = self.come_due(now)
        if self.state == "paused":
            self.skip(new, "paused")
            return []
        if self.options["overlap"] == "skip":
            due = self.waiting(now) if trust.served is None else new
            self.skip([slot for slot in due if busy[0] < slot <= busy[1]], "overlap")
        if trust.served is not None:
            return [slot for slot in new[-1:] if self.fates[slot] == WAITS and not self.is_late(slot, now, trust)]
        late = [slot for slot in self.waiting(now) if self.is_late(slot, now, trust)]
        self.skip([slot for slot in late if slot not in new], "window_closed")
        self.skip([slot for slot in late if slot in new], "clock" if self.state == "held" else "too_late")
        self.state = "going"
        return self.coalesced(now)

    def becomes(self, process: Process, now: datetime) -> list[datetime] | None:
        """The process began last, and has another schedule: that begins, and what the former had left never runs."""
        if process.knows is not None and process.knows < self.version:
            return None
        self.come_due(now)
        self.skip([slot for slot, fate in self.fates.items() if fate == WAITS], "superseded")
        self.since, self.cron = max(self.since, now), process.cron
        self.version += 1
        self.state = "going" if self.state == "held" else self.state
        process.knows = self.version
        return []

    def resumes(self, now: datetime) -> None:
        self.skip(self.come_due(now), "paused")
        self.state = "going"

    def come_due(self, now: datetime) -> list[datetime]:
        new = between(*self.cron, self.since, now)
        if new:
            self.since = now
            self.fates |= dict.fromkeys(new, WAITS)
        return new

    def waiting(self, now: datetime) -> list[datetime]:
        return sorted(slot for slot, fate in self.fates.items() if fate == WAITS and slot <= now)

    def is_late(self, slot: datetime, now: datetime, trust: Trust) -> bool:
        grace_s = self.options["misfire_grace"]
        return grace_s is not None and now > slot + timedelta(seconds=grace_s) + trust.longer

    def coalesced(self, now: datetime) -> list[datetime]:
        """Those of the waiting ones that may start; the others never will."""
        waits = self.waiting(now)
        newest = max((slot for slot, fate in self.fates.items() if fate in RAN), default=self.began)
        if self.options["coalesce"] == "all":
            kept = waits[-self.options["limit"] :]
        elif self.options["coalesce"] == "earliest":
            kept = waits[:1]
        else:
            kept = [slot for slot in waits[-1:] if not slot < newest <= now]
        rest = "over_limit" if self.options["coalesce"] == "all" else "coalesced"
        self.skip([slot for slot in waits if slot not in kept], rest)
        return kept

    def skip(self, slots: list[datetime], reason: str) -> None:
        self.fates |= dict.fromkeys(slots, reason)


def between(cron: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """The slots after the one up to the other, by the other reckoning, which knows no zoneinfo and no cronsim."""
    day = after.replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    while day < until:
        found += [slot for slot in _of_day(cron, zone, day) if after < slot <= until]
        day += DAY
    return found


@cache
def _of_day(cron: str, zone: str, day: datetime) -> list[datetime]:
    """After midnight up to the next, in UTC."""
    slots = as_debian_does(cron, zone, day, day + DAY)
    return [datetime.strptime(f"{day.year}-{slot}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC) for slot in slots]
