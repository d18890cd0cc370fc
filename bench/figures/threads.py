"""One process, many callers: 64 threads, and a thousand coroutines, against one thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from bench.contenders import POWER
from bench.contenders.sqlite_files import FILE
from bench.crew import NotDoneError, forget_peak, memory_mib
from bench.job import DAY, issue_coupon, runs
from bench.model import Figure, Measured, Side, Value, at_least, tail
from bench.race import ratios, to_working_size
from idemreg import AsyncRegistry, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.model import Goal, Scale

__all__ = ["FIGURES", "Callers"]

Policy = Literal["hold", "rerun"]
POLICIES: Final[tuple[Policy, ...]] = ("hold", "rerun")


class Taken(NamedTuple):
    """What one way of calling took: jobs a second of each round, and milliseconds of each call from its own begin."""

    rates: list[float]
    calls_ms: list[float]


class Callers:
    """One registry at `full`, and the ways to call it, with new tasks only. What each takes is added to ``taken``."""

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, FILE)
        self._registry = Registry(path, busy_timeout=60)
        self._jobs = {
            policy: self._registry.idempotent("coupon:{user_id}:{day}", on_crash=policy)(issue_coupon)
            for policy in POLICIES
        }
        self._users = 10**9
        to_working_size(lambda users: [self._jobs["hold"](user, DAY) for user in users], path)

    def one_thread(self, taken: Taken, policy: Policy, jobs: int) -> None:
        job, users = self._jobs[policy], self._take(jobs)
        taken.rates.append(_rate(jobs, lambda: _serve(job, users, taken.calls_ms)))

    def many_threads(self, taken: Taken, policy: Policy, jobs: int, threads: int) -> None:
        job, users, share = self._jobs[policy], self._take(jobs), jobs // threads
        ready = threading.Barrier(threads + 1)
        failed: list[BaseException] = []

        def serve(some: range) -> None:
            ready.wait()
            try:
                _serve(job, some, taken.calls_ms)
            except BaseException as error:  # noqa: BLE001 - told to the main thread
                failed.append(error)

        started = [threading.Thread(target=serve, args=(users[n * share : (n + 1) * share],)) for n in range(threads)]
        for thread in started:
            thread.start()

        def run() -> None:
            ready.wait()
            for thread in started:
                thread.join()

        taken.rates.append(_rate(share * threads, run))
        if failed:
            raise failed[0]

    def coroutines(self, taken: Taken, policy: Policy, coroutines: int) -> None:
        """All at once, each one job."""

        async def job(user_id: int, day: str) -> dict[str, object]:
            return issue_coupon(user_id, day)

        registry, users = AsyncRegistry.of(self._registry), self._take(coroutines)
        decorated = registry.idempotent(f"{policy}:{{user_id}}:{{day}}", on_crash=policy)(job)

        async def timed(user: int) -> None:
            began = time.perf_counter()
            await decorated(user, DAY)
            taken.calls_ms.append((time.perf_counter() - began) * 1_000)

        async def run() -> None:
            await asyncio.gather(*(timed(user) for user in users))

        taken.rates.append(_rate(coroutines, lambda: asyncio.run(run())))

    def close(self) -> None:
        self._registry.close()

    def _take(self, number: int) -> range:
        self._users += number
        return range(self._users - number, self._users)


def _serve(job: Callable[[int, str], object], users: range, calls_ms: list[float]) -> None:
    for user in users:
        began = time.perf_counter()
        job(user, DAY)
        calls_ms.append((time.perf_counter() - began) * 1_000)


def _rate(jobs: int, call: Callable[[], object]) -> float:
    before, began = runs(), time.perf_counter()
    call()
    spent = time.perf_counter() - began
    if (ran := runs() - before) != jobs:
        msg = f"{ran} jobs ran, not {jobs}"
        raise NotDoneError(msg)
    return jobs / spent


def threads(scale: Scale, folder: str) -> Measured:
    def many(callers: Callers, taken: Taken, policy: Policy) -> None:
        callers.many_threads(taken, policy, scale.thread_jobs, scale.threads)

    return _against_one(many, f"{scale.threads} threads", {"hold": at_least(3), "rerun": at_least(2)}, scale, folder)


def coroutines(scale: Scale, folder: str) -> Measured:
    def many(callers: Callers, taken: Taken, policy: Policy) -> None:
        callers.coroutines(taken, policy, scale.coroutines)

    return _against_one(many, f"{scale.coroutines:,} coroutines", {"hold": at_least(3), "rerun": None}, scale, folder)


def _against_one(
    serve: Callable[[Callers, Taken, Policy], None],
    name: str,
    goals: dict[Policy, Goal | None],
    scale: Scale,
    folder: str,
) -> Measured:
    """One thread and then the many, round by round."""
    forget_peak()
    callers = Callers(folder)
    many, one = ({policy: Taken([], []) for policy in POLICIES} for _ in range(2))
    for _ in range(scale.rounds):
        for policy in POLICIES:
            callers.one_thread(one[policy], policy, scale.full_calls)
            serve(callers, many[policy], policy)
    callers.close()
    return Measured(
        [
            *(Value(f"{name} / one thread, {p}", "x", ratios(many[p].rates, one[p].rates), goals[p]) for p in POLICIES),
            Value("resident memory", "MiB", [memory_mib()]),
        ],
        _sides(many, name) + _sides(one, "one thread"),
    )


def _sides(taken: dict[Policy, Taken], name: str) -> list[Side]:
    return [
        Side(f"{name}, {policy}", "new", "jobs/s", of.rates, POWER, tail(of.calls_ms, "ms"))
        for policy, of in taken.items()
    ]


FIGURES: Final = (
    Figure(
        "threads",
        "64 threads in one process",
        "full",
        "One registry, 30 jobs a thread, all started together, against one thread; jobs a second, rounds in turn."
        " Memory is the most that this process, which serves both sides, had resident.",
        threads,
    ),
    Figure(
        "coroutines",
        "1,000 coroutines",
        "full",
        "One job each, all gathered at once, over `AsyncRegistry`, against one thread over `Registry`; jobs a second,"
        " the start of the event loop included. A call lasts from its coroutine's first step. Memory is the most that"
        " this process, which serves both sides, had resident.",
        coroutines,
    ),
)
