"""Deterministic simulation: virtual processes on the real code, and a seed that decides who goes on at each step."""

from __future__ import annotations

from typing import Final

from tests.mutants import catalogue_beside, catalogue_simulation
from tests.simulator.schedule import playground
from tests.torture.trial import Tally, Trial, again

__all__ = ["TRIAL"]

# Mutants of other catalogues.
OF_OTHERS: Final = (
    "finish-without-token",
    "reader-does-not-join",
    "lease-ignored-at-finish",
    "lease-kept-at-finish",
    "lease-never-expires",
    "lease-expires-at-once",
    "lease-by-date",
    "lease-renewed-by-anybody",
)
ENOUGH: Final = 3  # violations of one part: there is no need to go on
FOUND: Final = (*OF_OTHERS, *(one.name for one in (*catalogue_simulation.MUTANTS, *catalogue_beside.MUTANTS)))
APART: Final = 2**32  # seeds of the schedules of one part


def run(seed: int, count: int) -> Tally:
    """Play so many schedules; the first is the seed's own."""
    tally = Tally()
    with playground() as ground:
        for number in range(count):
            own = seed + number * APART
            played = ground.play(own, is_whole=count == 1)
            tally.tried += 1
            tally.distinct.add(played.digest)
            tally.events += played.events
            tally.events["steps"] += played.steps
            if played.violation:
                tally.violations.append(f"{played.violation}; {again('simulation', own, 1)}; {played.story}")
                if len(tally.violations) == ENOUGH:
                    break
    return tally


TRIAL: Final = Trial("simulation", "schedules", 200_000, 4_000, run, FOUND)
