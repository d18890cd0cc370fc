"""One process: a decorated call against the same statements by hand, in one process, slice by slice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from bench.contenders import KINDS, Place, contender
from bench.contenders.sqlite_files import FILE
from bench.crew import NotDoneError
from bench.job import runs
from bench.model import Figure, Measured, Side, Value, at_most, percentile
from bench.race import race, ratios, to_working_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contenders import Contender
    from bench.model import Scale
    from idemreg.options import Durability

__all__ = ["FIGURES", "opened"]


def opened(who: str, folder: str, durability: Durability) -> tuple[Contender, str]:
    """The contender in a folder of its own, on a -wal at working size; and its file."""
    home = os.path.join(folder, who.replace(" ", "-").replace(",", ""))
    os.makedirs(home)
    one, path = contender(who, Place(home, durability)), os.path.join(home, FILE)
    to_working_size(lambda users: [one.call(user) for user in users], path)
    return one, path


def measure(who: Sequence[str], durability: Durability, calls: int, scale: Scale, folder: str) -> dict[str, Any]:
    """Microseconds a call, new and duplicate, of each contender in each round; the first round warms up."""
    held = [opened(one, folder, durability)[0] for one in who]
    new: list[list[float]] = []
    again: list[list[float]] = []
    each: dict[str, list[list[float]]] = {}
    for number in range(scale.rounds + 1):
        if number <= 1:  # what the warming round has taken does not count
            each = {"new": [[] for _ in who], "duplicate": [[] for _ in who]}
        users = range(10**9 + number * calls, 10**9 + (number + 1) * calls)
        before = runs()
        new.append(race([one.call for one in held], users, number, each["new"]))
        _must_run(runs() - before, calls * len(who))
        again.append(race([one.call for one in held], users, number, each["duplicate"]))
        _must_run(runs() - before, calls * len(who))
    for one in held:
        one.close()
    return {
        "new": dict(zip(who, zip(*new[1:], strict=True), strict=True)),
        "duplicate": dict(zip(who, zip(*again[1:], strict=True), strict=True)),
        "each": {what: dict(zip(who, lists, strict=True)) for what, lists in each.items()},
    }


def _must_run(ran: int, wanted: int) -> None:
    if ran != wanted:
        msg = f"{ran} jobs ran, not {wanted}"
        raise NotDoneError(msg)


def sides(found: dict[str, Any], durability: Durability) -> list[Side]:
    return [
        Side(who, call, "µs", found[call][who], KINDS[who].survives[durability], _worst(found["each"][call][who]))
        for call in ("new", "duplicate")
        for who in found[call]
    ]


def _worst(calls: list[float]) -> dict[str, float]:
    return {"p99 µs": percentile(calls, 0.99), "longest µs": max(calls)}


def normal(scale: Scale, folder: str) -> Measured:
    found = measure(("by hand", "idemreg", "by hand, no look"), "normal", scale.calls, scale, folder)
    new, again = found["new"], found["duplicate"]
    del again["by hand, no look"]  # a duplicate takes the write lock there: nobody would do it so
    values = [
        Value("new task / by hand", "x", ratios(new["idemreg"], new["by hand"]), at_most(1.35)),
        Value("duplicate / by hand", "x", ratios(again["idemreg"], again["by hand"]), at_most(1.5)),
        Value("new task / by hand without a look first", "x", ratios(new["idemreg"], new["by hand, no look"])),
    ]
    return Measured(values, sides(found, "normal"))


def full(scale: Scale, folder: str) -> Measured:
    found = measure(("by hand", "idemreg", "idemreg, rerun"), "full", scale.full_calls, scale, folder)
    new, again = found["new"], found["duplicate"]
    values = [
        Value("hold / by hand (a)", "x", ratios(new["idemreg"], new["by hand"]), at_most(1.2)),
        Value("rerun / by hand (a)", "x", ratios(new["idemreg, rerun"], new["by hand"]), at_most(0.75)),
        Value("duplicate / by hand", "x", ratios(again["idemreg"], again["by hand"])),
    ]
    return Measured(values, sides(found, "full"))


_HOW: Final = (
    "One process, one thread, the contenders' slices in turn; time of a call, on a -wal at working size. By hand is the"
    " same select, SHA-256, JSON, insert and update on apsw."
)

FIGURES: Final = (
    Figure("calls-normal", "One process: new task, duplicate", "normal", _HOW, normal),
    Figure("calls-full", "One process: new task under hold and rerun", "full", _HOW, full),
)
