"""Missed slots: their rows, all in one transaction, against as many rows inserted by hand."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from bench.by_hand import INSERT, ByHand
from bench.contenders import CRASH
from bench.crew import NotDoneError
from bench.model import Figure, Measured, Side, Value, at_most
from bench.race import ratios
from idemreg import Registry
from idemreg.testing import ManualClock

if TYPE_CHECKING:
    from bench.model import Scale

__all__ = ["FIGURES"]

BEGAN: Final = datetime(2026, 11, 23, 3, tzinfo=UTC)  # as `ManualClock` begins


def by_schedule(path: str, slots: int) -> float:
    """Seconds of the first `run_due` behind an outage: reckon, insert, and run the newest slot."""
    clock = ManualClock()
    with Registry(path, durability="normal", clock=clock) as registry:
        registry.scheduled("coupons", cron="* * * * *", coalesce="latest")(lambda: None)
        registry.run_due()
        clock.advance(slots * 60)
        began = time.perf_counter()
        runs = registry.run_due()
        took = time.perf_counter() - began
        if len(runs) != 1 or sum(registry.count().values()) != slots:
            raise NotDoneError
    return took


def by_hand(path: str, slots: int) -> float:
    """Seconds of as many rows by one prepared statement in one transaction."""
    hand = ByHand(path, "normal")
    began = time.perf_counter()
    hand.connection.execute("BEGIN IMMEDIATE")
    ids = (f"coupons@{(BEGAN + timedelta(minutes=number)).isoformat()}" for number in range(slots))
    hand.connection.executemany(INSERT, ((task_id, "0" * 64, time.time_ns() // 1_000) for task_id in ids))
    hand.connection.execute("COMMIT")
    took = time.perf_counter() - began
    hand.close()
    return took


def measure(scale: Scale, folder: str) -> Measured:
    ours: list[float] = []
    hand: list[float] = []
    for number in range(scale.rounds):
        for is_ours in (True, False) if number % 2 else (False, True):
            path = os.path.join(folder, f"{number}-{is_ours}.db")
            (ours if is_ours else hand).append((by_schedule if is_ours else by_hand)(path, scale.slots))
    return Measured(
        [Value("missed slots / rows by hand", "x", ratios(ours, hand), at_most(3))],
        [Side("run_due", "missed slot", "µs", [took / scale.slots * 1e6 for took in ours], CRASH),
         Side("by hand", "row", "µs", [took / scale.slots * 1e6 for took in hand], CRASH)],
    )  # fmt: skip


FIGURES: Final = (
    Figure(
        "slots",
        "A schedule of every minute catches up 100,000 missed slots",
        "normal",
        'The first `run_due` behind an outage, with `coalesce="latest"`: it reckons the slots, inserts a row for each'
        " in one transaction, and runs the newest; against as many rows inserted by hand in one transaction, in turn in"
        " one process, each into a new file.",
        measure,
    ),
)
