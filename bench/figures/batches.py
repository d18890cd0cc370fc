"""Many tasks by two commits, against as many single calls."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from bench.contenders import POWER
from bench.contenders.sqlite_files import FILE
from bench.crew import NotDoneError, forget_peak, memory_mib
from bench.job import DAY, issue_coupon
from bench.model import Figure, Measured, Side, Value, at_least, tail
from bench.race import ratios
from idemreg import Claim, Outcome, Registry

if TYPE_CHECKING:
    from bench.model import Scale

__all__ = ["FIGURES"]


def by_batch(registry: Registry, users: range, calls_ms: list[float]) -> None:
    began = time.perf_counter()
    payloads = ((f"coupon:{user}:{DAY}", {"user_id": user, "day": DAY}) for user in users)
    ended: list[tuple[Claim, Any]] = []
    for claim, user in zip(registry.claim_many(payloads, name="issue_coupon"), users, strict=True):
        if not isinstance(claim, Claim):
            msg = f"no claim for user {user}: {claim!r}"
            raise NotDoneError(msg)
        with_result = issue_coupon(user, DAY)
        claim.enter()
        ended.append((claim, with_result))
    for outcome in registry.finish_many(ended):
        if not isinstance(outcome, Outcome):
            raise NotDoneError from outcome
    calls_ms.append((time.perf_counter() - began) * 1_000)


def singly(registry: Registry, users: range, calls_ms: list[float]) -> None:
    for user in users:
        began = time.perf_counter()
        registry.run(
            f"coupon:{user}:{DAY}",
            lambda user=user: issue_coupon(user, DAY),  # type: ignore[misc] # bound now
            payload={"user_id": user, "day": DAY},
            name="issue_coupon",
        )
        calls_ms.append((time.perf_counter() - began) * 1_000)


def measure(scale: Scale, folder: str) -> Measured:
    batch: list[float] = []
    single: list[float] = []
    calls_ms: dict[bool, list[float]] = {True: [], False: []}
    forget_peak()
    with Registry(os.path.join(folder, FILE), busy_timeout=60) as registry:
        first = 10**9
        singly(registry, range(first, first := first + scale.full_calls), [])  # warms up
        for number in range(scale.rounds):
            for is_batch in (True, False) if number % 2 else (False, True):
                sizes = [scale.batch] * scale.batches if is_batch else [scale.full_calls]
                began = time.perf_counter()
                for size in sizes:
                    (by_batch if is_batch else singly)(registry, range(first, first + size), calls_ms[is_batch])
                    first += size
                (batch if is_batch else single).append(sum(sizes) / (time.perf_counter() - began))
        counted = sum(registry.count().values())
    if counted != first - 10**9:
        msg = f"{counted} tasks, not {first - 10**9}"
        raise NotDoneError(msg)
    return Measured(
        [Value(f"{scale.batch} a batch / single calls", "x", ratios(batch, single), at_least(8)),
         Value("resident memory", "MiB", [memory_mib()])],
        [Side("claim_many + finish_many", "new", "jobs/s", batch, POWER, tail(calls_ms[True], "ms")),
         Side("single calls", "new", "jobs/s", single, POWER, tail(calls_ms[False], "ms"))],
    )  # fmt: skip


FIGURES: Final = (
    Figure(
        "batch",
        "`claim_many` + `finish_many`, 500 a batch",
        "full",
        "Each claim of a batch is entered and its job run, then all are finished; jobs a second against `run`, one call"
        " a job, in turn in one process. p99 and worst are of a whole batch, and of a call; memory is"
        " the most that the process had resident.",
        measure,
    ),
)
