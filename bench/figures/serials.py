"""A serial number against what it stands in for: a random id of the standard library."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Final

from bench.contenders import NO_ROW, POWER
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
        calls = [lambda _: numbers.next(), lambda _: uuid.uuid4()]
        users = range(scale.calls * A_CALL)
        rounds = [race(calls, users, number) for number in range(scale.rounds + 1)][1:]
    ours, theirs = zip(*rounds, strict=True)
    return Measured(
        [Value("a serial / uuid.uuid4()", "x", ratios(ours, theirs), at_most(4))],
        [Side("a serial", "an id", "µs", ours, POWER), Side("uuid.uuid4()", "an id", "µs", theirs, NO_ROW)],
    )


_HOW: Final = "One thread, slices in turn; the clock runs, and what is reserved by commits on the way is in it."

FIGURES: Final = (Figure("serials", "A serial number", "full", _HOW, measure),)
