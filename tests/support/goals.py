"""The goals that the project set itself, apart from the benchmark: of each figure, in its table's order."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["GOALS", "of"]

GOALS: Final[dict[str, list[tuple[str, float]]]] = {
    "calls-normal": [("≤", 1.35), ("≤", 1.5)],  # new task, duplicate
    "calls-full": [("≤", 1.2), ("≤", 0.75)],  # hold, rerun
    "barriers-normal": [],
    "barriers-full": [],
    "peers-normal": [("≥", 2)],  # diskcache
    "peers-full": [("≥", 10), ("≥", 50), ("≥", 2)],  # DBOS new and duplicate, Powertools on Redis
    # Hold, rerun of A against (a), of A against (b), and of B against (a).
    "processes-8": [("≥", 2.2), ("≥", 3), ("≥", 1.6), ("≥", 2.5), ("≥", 1.4), ("≥", 2.2)],
    "processes-32": [
        *[("≥", 4), ("≥", 7), ("≥", 2), ("≥", 2.5), ("≥", 1.4), ("≥", 2)],
        *[("≤", 1 / 20), ("≤", 1 / 20), ("≤", 1 / 50), ("≤", 1 / 50)],  # the longest wait, of A and of B
        *[("≥", 0.9), ("≥", 0.9)],  # fewest / most jobs of a process
    ],
    "processes-slow": [],
    "threads": [("≥", 3), ("≥", 2)],  # hold, rerun
    "coroutines": [("≥", 3)],
    "syncs": [("≤", 100), ("≤", 0)],  # of 1,000 claims; what the loop's thread must not do
    "ticker": [("≤", 3)],
    "batch": [("≥", 8)],
    "serials": [("≤", 4)],
    "slots": [("≤", 3)],
    "disk": [("≤", 190)],
    "lease": [("≤", 1.05), ("≤", 0)],  # time, commits
    "rows-new": [("≤", 1.5), ("≤", 3), ("≤", 1.5)],  # ordered, random, duplicate
    "rows-list": [("≤", 3)] * 7,  # by id, by prefix, and five statuses
    "rows-export": [("≤", 64)],
    "rows-purge": [("≤", 64), ("≤", 10)],  # memory, a writer's longest wait
}


def of(values: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """The goals of a figure's values, as its JSON has them."""
    return [(one["goal"]["sense"], one["goal"]["bound"]) for one in values if one["goal"]]
