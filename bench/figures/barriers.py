"""What the file guard, the seals and page checksums cost: idemreg against itself without one of them."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Final

from bench.figures.peers import measure, side
from bench.model import Figure, Measured, Value
from bench.race import ratios

if TYPE_CHECKING:
    from bench.model import Scale
    from idemreg.options import Durability

__all__ = ["FIGURES"]

WITHOUT: Final = {"the file guard": "idemreg, no guard", "the seals": "idemreg, no seals"}
WITH: Final = {"page checksums": "idemreg, page checksums"}


def costs(durability: Durability, scale: Scale, folder: str) -> Measured:
    taken = measure(["idemreg", *WITHOUT.values(), *WITH.values()], durability, scale, folder)
    means = {
        (who, call): [statistics.fmean(one) for one in rounds]
        for who, of in taken.items()
        for call, rounds in (("new", of.new), ("duplicate", of.again))
    }
    values = [
        Value(f"{what}, {call}", "x", ratios(*pair))
        for call in ("new", "duplicate")
        for what, pair in (
            *((what, (means["idemreg", call], means[who, call])) for what, who in WITHOUT.items()),
            *((what, (means[who, call], means["idemreg", call])) for what, who in WITH.items()),
        )
    ]
    sides = [
        side(who, call, of.new if call == "new" else of.again, of.memory_mib[0], durability)
        for call in ("new", "duplicate")
        for who, of in taken.items()
    ]
    return Measured(values, sides)


_HOW: Final = (
    "With it / without it, each in a process of its own, slices in turn; means of rounds. The guard and the seals are"
    " on in every other figure, page checksums in none: a file has them where they are asked for."
)

FIGURES: Final = (
    Figure("barriers-normal", "What guard and seals cost", "normal", _HOW, functools.partial(costs, "normal")),
    Figure(
        "barriers-full", "What guard and seals cost", "full", _HOW, functools.partial(costs, "full"), is_small=False
    ),
)
