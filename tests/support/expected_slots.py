"""What becomes of the slots of a schedule, reckoned anew from what docs/schedules.md promises.

It knows one process at a time at work and no crash of a store, so a look is short: what has come due since the last
one, what waits, and what has begun and is to go on. It reads no code of the package, and its slots are those of
Debian's own loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple

from tests.test_cron import as_debian_does

__all__ = ["Expected", "Job", "Process", "Trust", "between"]

DAY: Final = timedelta(days=1)
WAITS: Final = "pending"
DEAD: Final = "running"  # between two calls: whoever ran it has died in its middle
SKIPS: Final = frozenset(
    ["coalesced", "over_limit", "too_late", "window_closed", "overlap", "paused", "clock", "superseded"]
)
ENDS: Final = {"succeeds": "succeeded", "fails": "failed", "dies": DEAD}


class Trust(NamedTuple):
    """What is known of the clock. ``served``: by how much the hardware clock, which serves, is ahead of it."""

    is_good: bool = True
    longer: timedelta = timedelta()
    served: timedelta | None = None


class Job(NamedTuple):
    """How each job of a call goes: for how long, and how it ends.

    It succeeds, fails, is interrupted (so the call ends as well), or its process dies in it, without a word.
    ``sleeps``: in its middle, beyond its lease, and two processes sweep.
    """

    takes: timedelta = timedelta()
    ends: str = "succeeds"
    sleeps: bool = False


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
    attempts: Counter[datetime] = field(default_factory=Counter)
    swept: list[str] = field(default_factory=list)  # in the middle of the jobs of the last call
    version: int = 1
    state: str = "going"

    def __post_init__(self) -> None:
        self.since = self.began  # up to when it is known what came due
        self.after = self.began  # where the version begins

    def run_due(self, process: Process, wall: datetime, trust: Trust, job: Job) -> list[datetime] | None:
        """The slots that a call runs, in order; None where it is told that another schedule counts."""
        now = called = wall + (trust.served or timedelta())
        ran: list[datetime] = []
        tried: set[datetime] = set()
        self.swept = []
        busy = (now, now)
        while True:
            starts = self.look(process, now, trust, busy)
            if starts is None:
                return None
            slot = next((one for one in starts if one <= called and one not in tried), None)
            if slot is None:
                return ran
            tried.add(slot)
            busy = (now, now)
            if self.is_given_up(slot):
                continue
            ran.append(slot)
            self.runs(slot, job)
            busy, now = (now, now + job.takes), now + job.takes
            if job.ends in {"is interrupted", "dies"}:
                return ran

    def is_given_up(self, slot: datetime) -> bool:
        """Whether its owner died, and it may not run once more."""
        if self.fates[slot] != DEAD or (becomes := self.crashed(slot)) is None:
            return False
        self.fates[slot] = becomes
        return True

    def crashed(self, slot: datetime) -> str | None:
        """What becomes of a slot that was broken off; None where it is run again."""
        if self.options["on_crash"] == "hold":
            return "unknown"
        return "failed" if self.attempts[slot] == self.options["max_attempts"] else None

    def runs(self, slot: datetime, job: Job) -> None:
        self.attempts[slot] += 1
        self.fates[slot] = DEAD
        if job.sleeps:
            alive = None if self.options["lease"] else slot
            self.swept += self.sweep(alive) + self.sweep(alive)
        if self.fates[slot] == DEAD:  # and nobody has taken it away
            self.fates[slot] = ENDS.get(job.ends) or self.crashed(slot) or WAITS

    def sweep(self, alive: datetime | None = None) -> list[str]:
        """What is told: of each that is broken off what it becomes, or that it is left to the next look."""
        freed = sorted(slot for slot, fate in self.fates.items() if fate == DEAD and slot != alive)
        told = {slot: self.crashed(slot) or DEAD for slot in freed}
        self.fates |= told
        return sorted(told.values())

    def look(
        self, process: Process, now: datetime, trust: Trust, busy: tuple[datetime, datetime]
    ) -> list[datetime] | None:
        """What may start. ``busy``: from when to when a slot of it has just run."""
        if not trust.is_good and trust.served is None:
            self.state = "held" if self.state == "going" else self.state
            process.knows = self.version if process.cron == self.cron else process.knows
            return []
        if trust.is_good:
            self.comes_back(now)
        if process.cron != self.cron:
            return self.becomes(process, now)
        process.knows = self.version
        newest = between(*self.cron, self.since, now)[-1:]
        new = self.come_due(now)
        if self.state == "paused":
            self.skip(new, "paused")
            return []
        if self.options["overlap"] == "skip":
            due = self.waiting(now) if trust.served is None else new
            self.skip([slot for slot in due if busy[0] < slot <= busy[1]], "overlap")
        if trust.served is not None:
            self.state = "held"
            starts = [slot for slot in newest if slot in new and self.fates[slot] == WAITS]
            return [slot for slot in starts if not self.is_late(slot, now, trust)]
        late = [slot for slot in self.waiting(now) if self.is_late(slot, now, trust)]
        self.skip([slot for slot in late if slot not in new], "clock" if self.state == "held" else "window_closed")
        self.skip([slot for slot in late if slot in new], "clock" if self.state == "held" else "too_late")
        self.state = "going"
        return sorted({*self.coalesced(now), *self.goes_on(now, trust)})

    def comes_back(self, now: datetime) -> None:
        """Behind a clock that was ahead: no slot that is still to come was skipped."""
        self.fates = {slot: fate for slot, fate in self.fates.items() if slot <= now or fate not in SKIPS}
        self.since, self.after = min(self.since, now), min(self.after, now)

    def becomes(self, process: Process, now: datetime) -> list[datetime] | None:
        """The process began last, and has another schedule: that begins, and what the former had left never runs."""
        if process.knows is not None and process.knows < self.version:
            return None
        self.come_due(now)
        self.since = self.after = max(self.since, now)
        self.cron = process.cron
        self.skip([slot for slot in self.untried() if slot <= self.since or not self.is_ours(slot)], "superseded")
        self.version += 1
        self.state = "going" if self.state == "held" else self.state
        process.knows = self.version
        return []

    def resumes(self, now: datetime) -> None:
        self.skip(self.come_due(now), "paused")
        self.state = "going"

    def come_due(self, now: datetime) -> list[datetime]:
        """Those that have no row yet: what has run early has."""
        if not (slots := between(*self.cron, self.since, now)):
            return []
        self.since = now
        new = [slot for slot in slots if slot not in self.fates]
        self.fates |= dict.fromkeys(new, WAITS)
        return new

    def waiting(self, now: datetime) -> list[datetime]:
        return sorted(slot for slot in self.untried() if slot <= now)

    def untried(self) -> list[datetime]:
        return [slot for slot, fate in self.fates.items() if fate == WAITS and not self.attempts[slot]]

    def is_late(self, slot: datetime, now: datetime, trust: Trust) -> bool:
        grace_s = self.options["misfire_grace"]
        return grace_s is not None and now > slot + timedelta(seconds=grace_s) + trust.longer

    def goes_on(self, now: datetime, trust: Trust) -> list[datetime]:
        """What has begun, and is to be run again or decided about.

        What failed only in its window and version; what was broken off whenever it was.
        """
        left = [slot for slot, count in self.attempts.items() if count < self.options["max_attempts"]]
        failed = [slot for slot in left if self.fates[slot] == "failed" and slot > self.after]
        return [
            *(slot for slot, count in self.attempts.items() if count and self.fates[slot] in {DEAD, WAITS}),
            *(slot for slot in failed if self.is_ours(slot) and not self.is_late(slot, now, trust)),
        ]

    def is_ours(self, slot: datetime) -> bool:
        """Not one of a schedule of before, which ran early."""
        return bool(between(*self.cron, slot - timedelta(seconds=1), slot))

    def coalesced(self, now: datetime) -> list[datetime]:
        """Those of the waiting ones that may start; the others never will."""
        waits = self.waiting(now)
        came_due = [slot for slot, count in self.attempts.items() if count and slot <= now]
        newest = max(came_due, default=datetime.min.replace(tzinfo=UTC))
        if self.options["coalesce"] == "all":
            kept = waits[-self.options["limit"] :]
        elif self.options["coalesce"] == "earliest":
            kept = waits[:1]
        else:
            kept = [slot for slot in waits[-1:] if slot > newest]
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
