"""What a figure is: numbers with their goals, who was measured, and how. Values only, with their form in JSON."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "SCALES",
    "Figure",
    "Goal",
    "Measured",
    "Scale",
    "Side",
    "Value",
    "at_least",
    "at_most",
    "percentile",
    "tail",
]


class Goal(NamedTuple):
    """What a value is to reach."""

    sense: str  # "≤" or "≥"
    bound: float

    def is_reached(self, value: float) -> bool:
        return value <= self.bound if self.sense == "≤" else value >= self.bound


def at_most(bound: float) -> Goal:
    return Goal("≤", bound)


def at_least(bound: float) -> Goal:
    return Goal("≥", bound)


class Value(NamedTuple):
    """One number of a figure: the median of its rounds. ``unit``: "x" for a ratio. Without a goal: for information."""

    label: str
    unit: str
    rounds: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def is_reached(self) -> bool | None:
        """None where there is no goal."""
        return None if self.goal is None else self.goal.is_reached(self.median)

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "unit": self.unit,
            "median": self.median,
            "lowest": min(self.rounds),
            "highest": max(self.rounds),
            "rounds": list(self.rounds),
            "goal": None if self.goal is None else {"sense": self.goal.sense, "bound": self.goal.bound},
            "reached": self.is_reached,
        }


class Side(NamedTuple):
    """One of those measured. ``rounds``: of the quantity ``what`` in ``unit``; ``more``: further columns by name."""

    name: str
    what: str
    unit: str
    rounds: Sequence[float]
    survives: str = ""
    more: dict[str, float] = {}  # noqa: RUF012 - never changed

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "median": statistics.median(self.rounds),
            "lowest": min(self.rounds),
            "highest": max(self.rounds),
            "survives": self.survives,
            "more": self.more,
        }


class Measured(NamedTuple):
    """What a run of a figure found. ``absent``: who could not take part, and why."""

    values: list[Value]
    sides: list[Side] = []  # noqa: RUF012 - never changed
    absent: list[str] = []  # noqa: RUF012 - never changed
    notes: list[str] = []  # noqa: RUF012 - never changed


class Scale(NamedTuple):
    """How much is measured. Rounds are counted ones; where one warms up, it comes on top."""

    name: str
    rounds: int = 7
    calls: int = 2_000  # of each contender in a round, at `normal`
    full_calls: int = 300  # the same at `full`
    peer_calls: int = 400  # of each contender in the tables of contenders
    jobs: int = 960  # of all processes together, in A
    load_s: float = 10  # B
    threads: int = 64
    coroutines: int = 1_000
    thread_jobs: int = 1_920
    batch: int = 500
    batches: int = 8
    slots: int = 100_000
    disk_rows: int = 50_000
    rows: int = 10_000_000
    few_rows: int = 10_000
    rows_of_a_status: int = 1_000
    new_tasks: int = 500  # on a file of so many rows, a round
    runs: int = 11  # of a whole process
    purged: int = 1_000_000
    writer_s: float = 20  # of a writer with nobody purging
    lease_jobs: int = 100  # of 10 ms, a round


SCALES: Final = {
    scale.name: scale
    for scale in (
        Scale("full"),
        # About two minutes. Big files are left to "full".
        Scale(
            "small",
            rounds=3,
            calls=1_000,
            full_calls=150,
            peer_calls=200,
            load_s=1.5,
            batches=3,
            slots=20_000,
            disk_rows=10_000,
        ),
        # For the tests of this machinery; its figures mean nothing.
        Scale(
            "tiny",
            rounds=2,
            calls=30,
            full_calls=10,
            peer_calls=5,
            jobs=40,
            load_s=1,  # within which a job ends on a busy machine too
            threads=4,
            coroutines=20,
            thread_jobs=24,
            batch=10,
            batches=2,
            slots=200,
            disk_rows=200,
            rows=3_000,
            few_rows=300,
            rows_of_a_status=20,
            new_tasks=30,
            runs=2,
            purged=600,
            writer_s=0.2,
            lease_jobs=5,
        ),
    )
}


class Figure(NamedTuple):
    """A row of the table of goals: its name for `--only`, what it is, how it is measured, and at which setting.

    ``measure`` gets the scale and an empty folder. ``is_small``: it is part of `make bench`. ``lacks`` tells what
    there is not on this machine that a whole table needs, each with its remedy.
    """

    name: str
    title: str
    durability: str
    how: str
    measure: Callable[[Scale, str], Measured]
    is_small: bool = True
    lacks: Callable[[], list[str]] = list


def percentile(numbers: Iterable[float], share: float) -> float:
    """The smallest number that is not below ``share`` of them (nearest rank)."""
    ordered = sorted(numbers)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def tail(calls: Sequence[float], unit: str) -> dict[str, float]:
    """The columns that tell of single calls, all rounds together."""
    return {f"p99 {unit}": percentile(calls, 0.99), f"worst {unit}": max(calls)}
