"""A serial number against what it stands in for: a random id of the standard library."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Final

from bench.model import Figure, Measured, Side, Value, at_most
from bench.race import race, ratios
from idemreg import Registry

if TYPE_CHECKING:
    from bench.model import Scale

__all__ = ["FIGURES"]

A_CALL: Final = 20  # serials for each call of another figure: they cost so much less


def measure(scale: Scale, folder: str) -> Measured:
    with Registry(os.path.join(folder, "jobs.db")) as registry:
        numbers = registry.serials("COUP")
        sides = {"a serial": lambda _: numbers.next(), "uuid.uuid4()": lambda _: uuid.uuid4()}
        users = range(scale.calls * A_CALL)
        rounds = [race(list(sides.values()), users, number) for number in range(scale.rounds + 1)][1:]
    ours, theirs = zip(*rounds, strict=True)
    return Measured(
        [Value("a serial / uuid.uuid4()", "x", ratios(ours, theirs), at_most(4))],
        [Side(name, "an id", "µs", taken) for name, taken in zip(sides, (ours, theirs), strict=True)],
    )


_HOW: Final = "One thread, slices in turn; the clock runs, and what is reserved by commits on the way is in it."

FIGURES: Final = (Figure("serials", "A serial number", "full", _HOW, measure),)
