"""The table of contenders: everybody at the same job, each in a process of its own, slice by slice in turn."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.contenders import KINDS, Place, absent
from bench.crew import Crew, NotDoneError, Order
from bench.model import Figure, Measured, Side, Value, at_least, percentile
from bench.race import WARMERS, ratios

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.crew import Report
    from bench.model import Goal, Scale
    from idemreg.options import Durability

__all__ = ["FIGURES", "WARMING_CALLS"]

SLICES: Final = 2  # of a round: each contender's caches are cold at the beginning of a slice
AGAIN: Final = 20  # duplicates before a slice, which are not counted
# Nobody is measured on a fresh file. By hand a -wal has its size after some 700 new tasks.
WARMING_CALLS: Final = {"full": 800, "small": 800, "tiny": AGAIN}


class Taken(NamedTuple):
    """What one contender took: a list of microseconds a call for each round, and its memory."""

    new: list[list[float]]
    again: list[list[float]]
    memory_mib: list[float]


def measure(who: Sequence[str], durability: Durability, scale: Scale, folder: str) -> dict[str, Taken]:
    """Rounds in which the contenders take turns, slice by slice, first new tasks and then the same again."""
    taken = {one: Taken([], [], []) for one in who}
    with contextlib.ExitStack() as stack:
        crews = {one: stack.enter_context(_alone(one, durability, folder, stack)) for one in who}
        for one, crew in crews.items():
            served(crew, one, WARMERS[: WARMING_CALLS[scale.name]], is_new=True)
        for number in range(scale.rounds):
            users = range(10**9 + number * scale.peer_calls, 10**9 + (number + 1) * scale.peer_calls)
            for is_new in (True, False):
                for one, spent in _round(crews, users, number, is_new=is_new).items():
                    (taken[one].new if is_new else taken[one].again).append(spent)
        for one, crew in crews.items():
            taken[one].memory_mib.append(served(crew, one, users[:1], is_new=False).memory_mib)
    return taken


def _alone(who: str, durability: Durability, folder: str, stack: contextlib.ExitStack) -> Crew:
    """A process for the contender, and a server where it needs one."""
    home = os.path.join(folder, who.replace(" ", "-").replace(",", ""))
    os.makedirs(home)
    socket = ""
    if KINDS[who].uses_redis:
        from bench.contenders.servers import redis_server  # noqa: PLC0415 - only where somebody needs it

        socket = stack.enter_context(redis_server(home, durability))
    return Crew(1, {who: Place(home, durability, socket)})


def _round(crews: dict[str, Crew], users: range, number: int, *, is_new: bool) -> dict[str, list[float]]:
    """Microseconds of each call; who begins changes with every slice."""
    spent: dict[str, list[float]] = {who: [] for who in crews}
    names, step = list(crews), max(1, len(users) // SLICES)
    for turn, start in enumerate(range(0, len(users), step), number):
        for place in range(len(names)):
            who = names[(place + turn) % len(names)]
            report = served(crews[who], who, users[start : start + step], is_new=is_new)
            spent[who] += [ns / 1_000 for ns in report.spent_ns]
    return spent


def served(crew: Crew, who: str, users: range, *, is_new: bool) -> Report:
    (report,) = crew.work([Order(who, users, warming=WARMERS[: 0 if users[0] in WARMERS else AGAIN])])
    if report.ran != (len(users) if is_new else 0):
        msg = f"{who}: {report.ran} jobs ran for {len(users)} {'new tasks' if is_new else 'duplicates'}"
        raise NotDoneError(msg)
    return report


def side(who: str, call: str, rounds: list[list[float]], memory_mib: float, durability: Durability) -> Side:
    every = [spent for one in rounds for spent in one]
    more = {
        "p99 µs": percentile(every, 0.99),
        "worst µs": max(every),
        "memory MiB": memory_mib,
    }
    means = [statistics.fmean(one) for one in rounds]
    return Side(who, call, "µs", means, KINDS[who].survives[durability], more)


# Of each setting: against whom, for which call, and how many times as long as idemreg they are to take.
_GOALS: Final[dict[Durability, list[tuple[str, str, Goal]]]] = {
    "normal": [("diskcache, memoize", "new", at_least(2))],
    "full": [
        ("DBOS", "new", at_least(10)),
        ("DBOS", "duplicate", at_least(50)),
        ("Powertools on Redis", "new", at_least(2)),
    ],
}
_LEFT_OUT: Final = {  # of other tables
    "by hand, queued",
    "by hand, no look",
    "idemreg, no guard",
    "idemreg, no seals",
    "idemreg, page checksums",
}


def _wanted(durability: Durability) -> list[str]:
    return [name for name, kind in KINDS.items() if durability in kind.survives and name not in _LEFT_OUT]


def _missing(durability: Durability) -> dict[str, str]:
    """Who cannot take part, and why."""
    return {name: why for name in _wanted(durability) if (why := absent(name)) is not None}


def lacks(durability: Durability) -> list[str]:
    return list(_missing(durability).values())


def table(durability: Durability, scale: Scale, folder: str) -> Measured:
    missing = _missing(durability)
    taken = measure([name for name in _wanted(durability) if name not in missing], durability, scale, folder)
    means = {
        (who, call): [statistics.fmean(one) for one in rounds]
        for who, of in taken.items()
        for call, rounds in (("new", of.new), ("duplicate", of.again))
    }
    values = [
        Value(f"{who} / idemreg, {call}", "x", ratios(means[who, call], means["idemreg", call]), goal)
        for who, call, goal in _GOALS[durability]
        if who in taken
    ]
    sides = [
        side(who, call, rounds, of.memory_mib[0], durability)
        for call in ("new", "duplicate")
        for who, of in taken.items()
        for rounds in [of.new if call == "new" else of.again]
    ]
    unable = [name for name, kind in KINDS.items() if durability not in kind.survives]
    notes = [f"{name} has no setting that is like `{durability}`." for name in unable]
    return Measured(values, sides, list(missing.values()), notes)


_HOW: Final = (
    "Each contender in a process of its own, slices in turn; means of rounds. Memory is that of the"
    " process with the contender imported and open; a Redis server's own is not counted."
)

FIGURES: Final = (
    *(
        Figure(
            f"peers-{durability}",
            "Contenders",
            durability,
            _HOW,
            functools.partial(table, durability),
            lacks=functools.partial(lacks, durability),
        )
        for durability in _GOALS
    ),
)
