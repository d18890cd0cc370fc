"""8 and 32 processes on one file, measured twice, since a short run flatters.

A: equal work a process, until the last has finished. SQLite's back-off starves some processes while others run on, so
the last one's wait counts. B: load for a while, with the fewest and most jobs of a process and the longest wait.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.contenders import KINDS, Place
from bench.contenders.sqlite_files import FILE
from bench.crew import Crew, NotDoneError, Order
from bench.model import Figure, Measured, Side, Value, at_least, at_most, percentile
from bench.race import ratios, to_working_size
from bench.slow_disk import compiler, lacks, slower_syncs

if TYPE_CHECKING:
    from bench.crew import Report
    from bench.model import Goal, Scale

__all__ = ["FIGURES", "Field", "Load", "load_of"]

A, QUEUED, HOLD, RERUN = "by hand", "by hand, queued", "idemreg", "idemreg, rerun"
WHO: Final = (A, QUEUED, HOLD, RERUN)
LABELS: Final = {A: "by hand (a)", QUEUED: "by hand (b)", HOLD: "hold", RERUN: "rerun"}
EACH: Final = 10**7  # users of one process


class Load(NamedTuple):
    """What all processes together did in one round."""

    jobs_s: float
    longest_ms: float
    p99_ms: float
    fewest: int
    most: int
    memory_mib: float  # of the process that has most


class Field:
    """The processes and the files, with the next user of each."""

    def __init__(self, crew: Crew, folder: str) -> None:
        self._crew = crew
        self._next = dict.fromkeys(WHO, 0)
        self.wal_bytes = {who: self._warmed(who, os.path.join(home(folder, who), FILE)) for who in WHO}

    def equal_work(self, who: str, jobs: int) -> Load:
        """A: each process does its share of the jobs."""
        share = jobs // self._crew.size
        reports = self._crew.work(self._orders(who, share, 0))
        if (ran := sum(report.ran for report in reports)) != share * self._crew.size:
            msg = f"{who}: {ran} jobs ran, not {share * self._crew.size}"
            raise NotDoneError(msg)
        return load_of(reports, max(report.ended_ns for report in reports))

    def steady(self, who: str, load_s: float) -> Load:
        """B: each process does what it can; what is under way at the end is finished, and counts as a wait only."""
        orders = self._orders(who, EACH // 100, load_s)
        reports, until = self._crew.work(orders), orders[0].until_ns
        if not any(jobs_until(report, until) for report in reports):
            msg = f"{who}: none of {self._crew.size} processes ended a job within {load_s} s"
            raise NotDoneError(msg)
        return load_of(reports, until)

    def _orders(self, who: str, jobs: int, load_s: float) -> list[Order]:
        start = self._crew.start_ns()
        until = start + round(load_s * 1e9) if load_s else 0
        first = self._next[who]
        self._next[who] += jobs
        return [
            Order(who, range(at := 10**9 + member * EACH + first, at + jobs), start, until)
            for member in range(self._crew.size)
        ]

    def _warmed(self, who: str, path: str) -> int:
        """Let one process bring the -wal to its working size; all of them keep the file open from here on."""
        return to_working_size(lambda users: self._crew.work([Order(who, users)]), path)


def load_of(reports: list[Report], end_ns: int) -> Load:
    """What was done until the end. A call that was under way then counts as a wait, and not as a job."""
    spent = [ns for report in reports for ns in report.spent_ns]
    counts = [jobs_until(report, end_ns) for report in reports]
    return Load(
        sum(counts) / ((end_ns - min(report.began_ns for report in reports)) / 1e9),
        max(spent) / 1e6,
        percentile(spent, 0.99) / 1e6,
        min(counts),
        max(counts),
        max(report.memory_mib for report in reports),
    )


def jobs_until(report: Report, end_ns: int) -> int:
    """Jobs that were over then. Who came too late to begin one has none under way either."""
    return len(report.spent_ns) - (len(report.spent_ns) > 0 and report.ended_ns > end_ns)


def home(folder: str, who: str) -> str:
    return os.path.join(folder, who.replace(" ", "-").replace(",", ""))


Loads = dict[str, list[Load]]


def measure(size: int, scale: Scale, folder: str) -> tuple[Loads, Loads, dict[str, int]]:
    """The rounds of A and B; who begins changes with every round."""
    for who in WHO:
        os.makedirs(home(folder, who))
    equal: Loads = {who: [] for who in WHO}
    steady: Loads = {who: [] for who in WHO}
    with Crew(size, {who: Place(home(folder, who), "full") for who in WHO}) as crew:
        field = Field(crew, folder)
        for number in range(scale.rounds):
            for place in range(len(WHO)):
                who = WHO[(place + number) % len(WHO)]
                equal[who].append(field.equal_work(who, scale.jobs))
            for place in range(len(WHO)):
                who = WHO[(place + number) % len(WHO)]
                steady[who].append(field.steady(who, scale.load_s))
    return equal, steady, field.wal_bytes


class Goals(NamedTuple):
    """Of one number of processes, each (hold, rerun)."""

    equal: tuple[Goal | None, Goal | None] = (None, None)
    equal_queued: tuple[Goal | None, Goal | None] = (None, None)
    steady: tuple[Goal | None, Goal | None] = (None, None)
    with_waits: bool = False


GOALS: Final = {
    8: Goals(
        (at_least(2.2), at_least(3)), (at_least(1.6), at_least(2.5)), (at_least(1.4), at_least(2.2)), with_waits=False
    ),
    32: Goals((at_least(4), at_least(7)), (at_least(2), at_least(2.5)), (at_least(1.4), at_least(2)), with_waits=True),
}


def table(size: int, goals_of: Goals, scale: Scale, folder: str) -> Measured:
    equal, steady, wal = measure(size, scale, folder)
    values = []
    for kind, loads, against, goals in (
        ("A", equal, A, goals_of.equal),
        ("A", equal, QUEUED, goals_of.equal_queued),
        ("B", steady, A, goals_of.steady),
    ):
        for who, goal in zip((HOLD, RERUN), goals, strict=True):
            rounds = ratios(*([load.jobs_s for load in loads[one]] for one in (who, against)))
            values.append(Value(f"{kind}: jobs/s of {LABELS[who]} / {LABELS[against]}", "x", rounds, goal))
    values += _waits(equal, steady, with_goals=goals_of.with_waits)
    most_mib = max(load.memory_mib for loads in (equal, steady) for of in loads.values() for load in of)
    values.append(Value("resident memory of a process", "MiB", [most_mib]))
    sides = [_side(who, kind, loads[who]) for kind, loads in (("A", equal), ("B", steady)) for who in WHO]
    return Measured(values, sides, notes=[f"{LABELS[who]}: -wal of {wal[who]:,} bytes at the start" for who in WHO])


def on_a_slower_disk(scale: Scale, folder: str) -> Measured:
    """What all share is a sync, so its price decides; the machine's own disk may be a fast one."""
    if (cc := compiler()) is None:
        return Measured([], absent=lacks())
    with slower_syncs(cc, folder):
        return table(8, Goals(), scale, folder)


def _waits(equal: Loads, steady: Loads, *, with_goals: bool) -> list[Value]:
    """The longest wait against (a), and how evenly the processes were served."""
    values = []
    for kind, loads, most in (("A", equal, 1 / 20), ("B", steady, 1 / 50)):
        for who in (HOLD, RERUN):
            rounds = ratios(*([load.longest_ms for load in loads[one]] for one in (who, A)))
            goal = at_most(most) if with_goals else None
            values.append(Value(f"{kind}: longest wait of {LABELS[who]} / by hand (a)", "x", rounds, goal))
    for who in (HOLD, RERUN):
        shares = [load.fewest / load.most for load in steady[who]]
        goal = at_least(0.9) if with_goals else None
        values.append(Value(f"B: fewest / most jobs of a process, {LABELS[who]}", "", shares, goal))
    return values


def _side(who: str, kind: str, loads: list[Load]) -> Side:
    more = {
        "p99 ms": percentile([load.p99_ms for load in loads], 0.5),
        "longest ms": max(load.longest_ms for load in loads),
        "fewest jobs": min(load.fewest for load in loads),
        "most jobs": max(load.most for load in loads),
    }
    return Side(LABELS[who], kind, "jobs/s", [load.jobs_s for load in loads], KINDS[who].survives["full"], more)


_HOW: Final = (
    "{} processes on one file, on a -wal at working size, the contenders' rounds in turn. A: equal work a process, 960"
    " jobs in all, until the last has finished. B: 10 s of load. (a) has a 60 s busy time-out, (b) a flock around each"
    " write. Memory is that of the process that had most resident, and each has all four open."
)

FIGURES: Final = (
    *(
        Figure(
            f"processes-{size}", f"{size} processes", "full", _HOW.format(size), functools.partial(table, size, goals)
        )
        for size, goals in GOALS.items()
    ),
    Figure(
        "processes-slow",
        "8 processes, each sync a millisecond slower",
        "full",
        f"{_HOW.format(8)} Each sync of anybody sleeps for a millisecond first, in a library before the system's own.",
        on_a_slower_disk,
        is_small=False,
        lacks=lacks,
    ),
)
