"""What a thousand coroutines do to the disk and to their event loop.

The syncs are the kernel's own account, by strace, of a process of its own. The loop's thread may write, lock, sync and
sleep not at all, which the same account shows; what it waits for else would show in how late a ticker comes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.contenders import NO_ROW, POWER
from bench.contenders.sqlite_files import FILE
from bench.job import DAY, issue_coupon
from bench.model import Figure, Measured, Side, Value, at_most, percentile
from bench.race import ratios
from bench.traced import MARK
from idemreg import AsyncRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from bench.model import Scale

__all__ = ["FIGURES", "Traced", "read_trace"]

SYNCS: Final = "fdatasync,fsync,msync,sync_file_range"
WRITES: Final = "write,pwrite64,writev,pwritev,ftruncate,fallocate"
WAITS: Final = "flock,fcntl,nanosleep,clock_nanosleep"
LOCKS: Final = re.compile(r"F_(OFD_)?SETLKW?\b")
RUNS_TRACED: Final = 3


class Traced(NamedTuple):
    """Of one run: syncs that the claims caused, and what the loop's thread did that it must not, over the whole."""

    syncs: int
    on_the_loop: int


def read_trace(lines: list[str]) -> Traced:
    """Marks part the account in three: the claims, the jobs, the rest. The first process named is the loop's thread."""
    place = syncs = on_the_loop = 0
    loop = lines[0].split()[0] if lines else ""
    for line in lines:
        called = re.match(r"(\d+) +(\w+)\((.*)", line)
        if called is None:  # "<... resumed>", an exit, a signal
            continue
        thread, name, rest = called.groups()
        if rest.startswith(str(MARK)):
            place += 1
            continue
        if place == 1 and name in SYNCS.split(","):
            syncs += 1
        if place in (1, 2) and thread == loop:
            on_the_loop += name != "fcntl" or LOCKS.search(rest) is not None
    if place != 3:
        msg = f"the account has {place} marks, not 3"
        raise ValueError(msg)
    return Traced(syncs, on_the_loop)


def traced(folder: str, coroutines: int) -> Traced:
    account = os.path.join(folder, "strace")
    trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={SYNCS},{WRITES},{WAITS}", "-o", account]
    subprocess.run([*trace, sys.executable, "-m", "bench.traced", folder, str(coroutines)], check=True)
    with open(account, encoding="utf-8", errors="replace") as file:
        return read_trace(file.read().splitlines())


def lacks_strace() -> list[str]:
    return [] if shutil.which("strace") else ["strace, which counts the syncs (Debian: apt install strace)"]


def syncs(scale: Scale, folder: str) -> Measured:
    if lacking := lacks_strace():
        return Measured([], absent=lacking)
    runs = []
    for number in range(RUNS_TRACED):
        home = os.path.join(folder, str(number))
        os.makedirs(home)
        runs.append(traced(home, scale.coroutines))
    values = [
        Value(f"{scale.coroutines:,} claims at once", "syncs", [run.syncs for run in runs], at_most(100)),
        Value("writes, locks, syncs on the loop's thread", "calls", [run.on_the_loop for run in runs], at_most(0)),
    ]
    return Measured(values)


# --- the ticker -------------------------------------------------------------------------------------------------

TICK_S: Final = 0.001
JOBS_EACH: Final = 3  # of a coroutine, one after the other
POOL_THREADS: Final = 4
SURVIVES: Final = {"idemreg": POWER, "pure Python": NO_ROW}


class Costs(NamedTuple):
    """CPU seconds: of the loop's own thread, and of all others."""

    loop: float
    others: float


async def _late_under(load: Coroutine[None, None, object]) -> tuple[list[float], Costs]:
    """Milliseconds that each tick came late while the load ran, and what the load cost."""
    late: list[float] = []
    loop_began, all_began = time.thread_time(), time.process_time()
    task = asyncio.ensure_future(load)
    while not task.done():
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append((time.perf_counter() - due) * 1_000)
    await task
    on_loop = time.thread_time() - loop_began
    return late, Costs(on_loop, time.process_time() - all_began - on_loop)


def ours(path: str, users: range, each: int) -> tuple[list[float], Costs]:
    """The coroutines' jobs over a registry."""

    async def run() -> tuple[list[float], Costs]:
        registry = AsyncRegistry(path, busy_timeout=60)
        await registry.open()

        async def job(user_id: int, day: str) -> dict[str, object]:
            return issue_coupon(user_id, day)

        once = registry.idempotent("coupon:{user_id}:{day}")(job)

        async def some(first: int) -> None:
            for user in range(first, first + each):
                await once(user, DAY)

        try:
            return await _late_under(asyncio.wait([asyncio.ensure_future(some(user)) for user in users[::each]]))
        finally:
            await registry.close()

    return asyncio.run(run())


def pure(coroutines: int, each: int, loop_s: float, call_s: float) -> tuple[list[float], Costs]:
    """The same load of pure Python: as many coroutines, threads and calls, each with as much CPU time in its place."""

    async def run() -> tuple[list[float], Costs]:
        loop = asyncio.get_running_loop()

        async def some() -> None:
            for _ in range(2 * each):  # a claim and a finish
                _spin(loop_s)
                await loop.run_in_executor(pool, _spin, call_s)

        return await _late_under(asyncio.wait([asyncio.ensure_future(some()) for _ in range(coroutines)]))

    with ThreadPoolExecutor(POOL_THREADS) as pool:
        return asyncio.run(run())


def _spin(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def ticker(scale: Scale, folder: str) -> Measured:
    """The first round of both is for calibration: what a call costs beyond the bare hops of the pure load."""
    coroutines, jobs = scale.coroutines, scale.coroutines * JOBS_EACH
    path = os.path.join(folder, FILE)

    def round_of_ours(number: int) -> tuple[list[float], Costs]:
        return ours(path, range(10**9 + number * jobs, 10**9 + (number + 1) * jobs), JOBS_EACH)

    _, cost = round_of_ours(0)
    _, bare = pure(coroutines, JOBS_EACH, 0, 0)
    loop_s = max(0.0, (cost.loop - bare.loop) / (2 * jobs))
    call_s = max(0.0, (cost.others - bare.others) / (2 * jobs))
    taken = {"idemreg": [], "pure Python": []}  # type: dict[str, list[list[float]]]
    cpu = {"idemreg": [], "pure Python": []}  # type: dict[str, list[float]]
    for number in range(scale.rounds):
        runs: list[tuple[str, Callable[[], tuple[list[float], Costs]]]] = [
            ("idemreg", lambda number=number: round_of_ours(number + 1)),  # type: ignore[misc]
            ("pure Python", lambda: pure(coroutines, JOBS_EACH, loop_s, call_s)),
        ]
        for who, run in runs if number % 2 else runs[::-1]:
            late, costs = run()
            taken[who].append(late)
            cpu[who].append(sum(costs))
    worst = {who: [max(late) for late in rounds] for who, rounds in taken.items()}
    sides = [
        Side(
            who, "worst tick", "ms", worst[who], SURVIVES[who], {"p99 ms": _p99(rounds), "CPU s a round": max(cpu[who])}
        )
        for who, rounds in taken.items()
    ]
    value = Value(
        "worst lateness of a tick / under pure Python", "x", ratios(worst["idemreg"], worst["pure Python"]), at_most(3)
    )
    return Measured([value], sides)


def _p99(rounds: list[list[float]]) -> float:
    return percentile([late for one in rounds for late in one], 0.99)


FIGURES: Final = (
    Figure(
        "syncs",
        "1,000 claims at once: syncs, counted",
        "full",
        "strace counts the syncs of a process between the first of 1,000 gathered claims and the last. In the same"
        " account of these claims and of 1,000 whole jobs: writes, locks, syncs and sleeps of the loop's thread.",
        syncs,
        lacks=lacks_strace,
    ),
    Figure(
        "ticker",
        "Lateness of a 1 ms ticker on the event loop",
        "full",
        "The worst tick under 1,000 coroutines with three jobs each, against the same number of coroutines and calls to"
        " threads that spend as much CPU time on pure Python, on the loop and off it.",
        ticker,
    ),
)
