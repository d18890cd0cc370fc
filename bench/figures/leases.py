"""What a lease adds: time to a job of ten milliseconds, and commits to one that is shorter than a third of it."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from bench.contenders import CRASH
from bench.model import Figure, Measured, Side, Value, at_most
from bench.race import ratios, to_working_size
from idemreg import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.model import Scale

__all__ = ["FIGURES", "commits_in"]

JOB_S: Final = 0.01
LEASED: Final[dict[str, Any]] = {"lease": 60}
COUNTED: Final = 20  # jobs whose commits are counted

_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24


def measure(scale: Scale, folder: str) -> Measured:
    """Microseconds a job without a lease and with one, each behind one of the other; and the commits of each."""
    path = os.path.join(folder, "jobs.db")
    with Registry(path, durability="normal") as registry:
        plain, leased = _calls(registry, "plain", {}), _calls(registry, "leased", LEASED)
        to_working_size(lambda users: [_shorter(registry, f"warm:{user}", {}) for user in users], path)
        rounds: list[list[float]] = []
        for number in range(scale.rounds + 1):
            users = range(number * scale.lease_jobs, (number + 1) * scale.lease_jobs)
            rounds.append(_medians([plain, leased], users))
    without, with_lease = zip(*rounds[1:], strict=True)  # the first warms up
    commits = [_commits(os.path.join(folder, f"{number}.db"), options) for number, options in enumerate(({}, LEASED))]
    return Measured(
        [
            Value("a job of 10 ms with a lease / without", "x", ratios(with_lease, without), at_most(1.05)),
            Value("commits that a lease adds to a shorter job", "commits", [commits[1] - commits[0]], at_most(0)),
        ],
        [Side("without a lease", "job", "µs", without, CRASH), Side("with a lease", "job", "µs", with_lease, CRASH)],
    )


def _medians(calls: Sequence[Callable[[int], object]], users: range) -> list[float]:
    """Microseconds of the middle one of each; the sum would tell of whom the system has let wait."""
    spent: list[list[int]] = [[] for _ in calls]
    for user in users:
        for call, times in zip(calls, spent, strict=True):
            began = time.perf_counter_ns()
            call(user)
            times.append(time.perf_counter_ns() - began)
    return [statistics.median(times) / 1_000 for times in spent]


def _calls(registry: Registry, name: str, options: dict[str, Any]) -> Callable[[int], object]:
    return lambda user: registry.run(f"{name}:{user}", _work, name=name, **options)


def _work() -> None:
    time.sleep(JOB_S)


def _shorter(registry: Registry, task_id: str, options: dict[str, Any]) -> object:
    return registry.run(task_id, dict, name="shorter", **options)


def _commits(path: str, options: dict[str, Any]) -> float:
    """Commits a job, of jobs behind the first."""
    with Registry(path) as registry:
        _shorter(registry, "first", options)
        before = commits_in(path)
        for number in range(COUNTED):
            _shorter(registry, f"t{number}", options)
        return (commits_in(path) - before) / COUNTED


def commits_in(path: str) -> int:
    """The frames of the present -wal that end a transaction: those that tell how large the database is behind it."""
    with open(f"{path}-wal", "rb") as file:
        wal = file.read()
    page, salts, count = int.from_bytes(wal[8:12]), wal[16:24], 0
    for at in range(_WAL_HEADER, len(wal) - _FRAME_HEADER + 1, _FRAME_HEADER + page):
        if wal[at + 8 : at + 16] != salts:
            break
        count += wal[at + 4 : at + 8] != bytes(4)
    return count


FIGURES: Final = (
    Figure(
        "lease",
        "What a lease adds to a job",
        "normal",
        "One process, one thread, jobs that sleep 10 ms, with lease=60 and without, in turn; the median of each round."
        " Commits are counted in the -wal, of jobs that do nothing.",
        measure,
    ),
)
