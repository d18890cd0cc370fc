"""Two calls against each other in one process: slices that take turns, the garbage collector on."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


__all__ = ["WARMERS", "race", "ratios", "to_working_size"]

SLICES = 20  # of one round; a slice of each contender follows a slice of the other

# A fresh -wal grows with each commit, which makes its sync dearer: whoever came first would pay for the others. By
# default SQLite checkpoints at 1,000 pages of 4 KiB; from there on the file is overwritten from its beginning.
WORKING_BYTES = 1_000 * 4_096
# Pages and checkpoints may be of another size: then it is the size that has not changed for so many turns.
UNCHANGED = 4
WARMING_CALLS = 200
MOST_WARMINGS = 30
WARMERS = range(9 * 10**9, 10**10)  # users of these calls


def race(
    contenders: Sequence[Callable[[int], object]], users: range, number: int, each: Sequence[list[float]] = ()
) -> list[float]:
    """Microseconds a call of each contender, in slices that take turns; who begins changes.

    ``each``: a list a contender that every call's microseconds are added to; to look at the clock is then in each.
    """
    spent = [0] * len(contenders)
    step = max(1, len(users) // SLICES)
    for turn, start in enumerate(range(users.start, users.stop, step), number):
        some = range(start, min(start + step, users.stop))
        for place in range(len(contenders)):
            who = (place + turn) % len(contenders)
            contender = contenders[who]
            if each:
                took = [_timed(contender, user) for user in some]
                spent[who] += sum(took)
                each[who].extend(ns / 1_000 for ns in took)
                continue
            began = time.perf_counter_ns()
            for user in some:
                contender(user)
            spent[who] += time.perf_counter_ns() - began
    return [ns / len(users) / 1_000 for ns in spent]


def _timed(call: Callable[[int], object], user: int) -> int:
    began = time.perf_counter_ns()
    call(user)
    return time.perf_counter_ns() - began


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of each round."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def to_working_size(serve: Callable[[range], object], path: str) -> int:
    """Have new users served, some at a time, until the -wal has the size that it keeps; the size that it has now."""
    sizes: list[int] = []
    for turn in range(MOST_WARMINGS):
        serve(WARMERS[turn * WARMING_CALLS : (turn + 1) * WARMING_CALLS])
        sizes.append(wal_bytes(path))
        if sizes[-1] >= WORKING_BYTES or (turn >= UNCHANGED and len(set(sizes[-UNCHANGED:])) == 1):
            break
    return sizes[-1]


def wal_bytes(path: str) -> int:
    try:
        return os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return 0
