"""One process, many callers: 64 threads, and a thousand coroutines, against one thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Literal

from bench.contenders import POWER
from bench.contenders.sqlite_files import FILE
from bench.crew import NotDoneError
from bench.job import DAY, issue_coupon, runs
from bench.model import Figure, Measured, Side, Value, at_least
from bench.race import ratios, to_working_size
from idemreg import AsyncRegistry, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.model import Scale

__all__ = ["FIGURES", "Callers"]

Policy = Literal["hold", "rerun"]
POLICIES: Final[tuple[Policy, ...]] = ("hold", "rerun")


class Callers:
    """One registry at `full`, and the ways to call it. Each way gives jobs a second, of new tasks only."""

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, FILE)
        self._registry = Registry(path, busy_timeout=60)
        self._jobs = {
            policy: self._registry.idempotent("coupon:{user_id}:{day}", on_crash=policy)(issue_coupon)
            for policy in POLICIES
        }
        self._users = 10**9
        to_working_size(lambda users: [self._jobs["hold"](user, DAY) for user in users], path)

    def one_thread(self, policy: Policy, jobs: int) -> float:
        job, users = self._jobs[policy], self._take(jobs)
        return _rate(jobs, lambda: [job(user, DAY) for user in users])

    def many_threads(self, policy: Policy, jobs: int, threads: int) -> float:
        job, users, share = self._jobs[policy], self._take(jobs), jobs // threads
        ready = threading.Barrier(threads + 1)
        failed: list[BaseException] = []

        def serve(some: range) -> None:
            ready.wait()
            try:
                for user in some:
                    job(user, DAY)
            except BaseException as error:  # noqa: BLE001 - told to the main thread
                failed.append(error)

        started = [threading.Thread(target=serve, args=(users[n * share : (n + 1) * share],)) for n in range(threads)]
        for thread in started:
            thread.start()

        def run() -> None:
            ready.wait()
            for thread in started:
                thread.join()

        rate = _rate(share * threads, run)
        if failed:
            raise failed[0]
        return rate

    def coroutines(self, policy: Policy, coroutines: int) -> float:
        """All at once, each one job."""

        async def job(user_id: int, day: str) -> dict[str, object]:
            return issue_coupon(user_id, day)

        registry, users = AsyncRegistry.of(self._registry), self._take(coroutines)
        decorated = registry.idempotent(f"{policy}:{{user_id}}:{{day}}", on_crash=policy)(job)

        async def run() -> None:
            await asyncio.gather(*(decorated(user, DAY) for user in users))

        return _rate(coroutines, lambda: asyncio.run(run()))

    def close(self) -> None:
        self._registry.close()

    def _take(self, number: int) -> range:
        self._users += number
        return range(self._users - number, self._users)


def _rate(jobs: int, call: Callable[[], object]) -> float:
    before, began = runs(), time.perf_counter()
    call()
    spent = time.perf_counter() - began
    if (ran := runs() - before) != jobs:
        msg = f"{ran} jobs ran, not {jobs}"
        raise NotDoneError(msg)
    return jobs / spent


def threads(scale: Scale, folder: str) -> Measured:
    callers = Callers(folder)
    many: dict[Policy, list[float]] = {policy: [] for policy in POLICIES}
    one: dict[Policy, list[float]] = {policy: [] for policy in POLICIES}
    for _ in range(scale.rounds):
        for policy in POLICIES:
            one[policy].append(callers.one_thread(policy, scale.full_calls))
            many[policy].append(callers.many_threads(policy, scale.thread_jobs, scale.threads))
    callers.close()
    goals = {"hold": at_least(3), "rerun": at_least(2)}
    name = f"{scale.threads} threads"
    return Measured(
        [Value(f"{name} / one thread, {p}", "x", ratios(many[p], one[p]), goals[p]) for p in POLICIES],
        _sides(many, name) + _sides(one, "one thread"),
    )


def coroutines(scale: Scale, folder: str) -> Measured:
    callers = Callers(folder)
    many: dict[Policy, list[float]] = {policy: [] for policy in POLICIES}
    one: dict[Policy, list[float]] = {policy: [] for policy in POLICIES}
    for _ in range(scale.rounds):
        for policy in POLICIES:
            one[policy].append(callers.one_thread(policy, scale.full_calls))
            many[policy].append(callers.coroutines(policy, scale.coroutines))
    callers.close()
    goals = {"hold": at_least(3), "rerun": None}
    name = f"{scale.coroutines:,} coroutines"
    return Measured(
        [Value(f"{name} / one thread, {p}", "x", ratios(many[p], one[p]), goals[p]) for p in POLICIES],
        _sides(many, name) + _sides(one, "one thread"),
    )


def _sides(rates: dict[Policy, list[float]], name: str) -> list[Side]:
    return [Side(f"{name}, {policy}", "new", "jobs/s", rounds, POWER) for policy, rounds in rates.items()]


FIGURES: Final = (
    Figure(
        "threads",
        "64 threads in one process",
        "full",
        "One registry, 30 jobs a thread, all started together, against one thread; jobs a second, rounds in turn.",
        threads,
    ),
    Figure(
        "coroutines",
        "1,000 coroutines",
        "full",
        "One job each, all gathered at once, over `AsyncRegistry`, against one thread over `Registry`; jobs a second,"
        " the start of the event loop included.",
        coroutines,
    ),
)
